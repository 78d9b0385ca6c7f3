"""The shortening rule of prompts: the oldest own items are left out first, then the neighbors.

Where a prompt has no room, the oldest own items are left out one by one until it has; where it has none with one item
left, the neighbors are left out and items counted anew. Left out: what room is (`budget`), and what a prompt says.
"""

from collections.abc import Callable


def longest(
    write: Callable[[int, list], str], n_own: int, most: int, near: list, has_room: Callable[[str], bool]
) -> tuple[str, int]:
    """(text, number of own items in it): the longest prompt that has room, or the shortest where none has.

    write: makes the prompt of so many of the newest own items and of neighbors. most: own items that the form shows at
    most, of n_own.
    """
    text = write(most, near)
    if has_room(text):
        return text, most
    for others in (near, []):
        low, high = 1, most  # `low` items are known to be needed at least, `high` is the most that may fit
        best = None
        while low <= high:
            middle = (low + high) // 2
            text = write(middle, others)
            if has_room(text):
                best, low = (text, middle), middle + 1
            else:
                high = middle - 1
        if best is not None:
            return best
    return write(min(1, most), [] if n_own else near[:1]), min(1, most)
