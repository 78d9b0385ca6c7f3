"""Constrained decoding: the grammar of answers, followed token by token for many sequences at once.

Nearly every token of an answer goes on with a phrase. Two numbers describe such a token (how many characters, how many
spaces), and a few numpy operations decide for all sequences whether the phrase still has room for it. The text itself
is looked at only at a comma, a semicolon, the end, a digit, or a character in pieces, by `answer_grammar`, which is the
reference: a test checks that the quick way never accepts what `answer_grammar` refuses.
"""

import codecs
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..prompts.answer import MAX_PHRASE_CHARS, is_unprinted
from .answer_grammar import MAX_WORDS, START, GrammarState

PLAIN, NEWLINE, END, SILENT = 1, 2, 3, 4  # what a token does: goes on, breaks the line, ends the text, writes nothing
N_GUIDED_CHOICES = 128  # likeliest tokens that are tried before an answer is given up
_UNKNOWN = 0
_TURNS = frozenset(",;")


class TokenTable:
    """What is known of each token of a vocabulary, looked up once. One table serves all workers of a model."""

    def __init__(self, model: Any):
        self.model = model
        self.kind = np.zeros(model.n_vocab, np.int8)
        # Of a token that only goes on with a phrase: its characters and spaces. Others: more than any phrase has room
        # for.
        self.n_chars = np.full(model.n_vocab, 10_000, np.int32)
        self.n_spaces = np.zeros(model.n_vocab, np.int32)
        self._pieces: dict[int, bytes] = {}
        self._continuations: dict[str, tuple[int, ...]] = {}

    def piece(self, token: int) -> bytes:
        """The bytes that a token writes; none for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.model.piece(token)
        return piece

    def kinds(self, tokens: np.ndarray) -> np.ndarray:
        """int8 (len(tokens),): PLAIN, NEWLINE, END or SILENT."""
        kinds = self.kind[tokens]
        if not kinds.all():
            for token in np.unique(tokens[kinds == _UNKNOWN]).tolist():
                self._look_up(token)
            kinds = self.kind[tokens]
        return kinds

    def kind_of(self, token: int) -> int:
        """PLAIN, NEWLINE, END or SILENT."""
        if self.kind[token] == _UNKNOWN:
            self._look_up(token)
        return int(self.kind[token])

    def _look_up(self, token: int) -> None:
        piece = self.piece(token)
        if self.model.lib.llama_vocab_is_eog(self.model.vocab, token):
            kind = END
        elif b"\n" in piece:
            kind = NEWLINE
        else:
            kind = PLAIN if piece else SILENT
        text = piece.decode("utf-8", errors="replace")
        if (
            kind == PLAIN
            and "\ufffd" not in text
            and not any(c in _TURNS or c.isdigit() or not c.isprintable() for c in text)
        ):
            self.n_chars[token] = len(text)
            self.n_spaces[token] = sum(c.isspace() for c in text)
        self.kind[token] = kind

    def continuation(self, fixed: str) -> tuple[int, ...]:
        """The tokens that write exactly `fixed` in the middle of a line, as the vocabulary would cut it there."""
        found = self._continuations.get(fixed)
        if found is None:
            found = self._continuations[fixed] = self._cut(fixed)
        return found

    def _cut(self, fixed: str) -> tuple[int, ...]:
        tokenize = self.model.tokenize
        for before in ("\n", "a", "x y"):  # some vocabularies put a space before the first word of a text
            head, whole = tokenize(before, add_special=False), tokenize(before + fixed, add_special=False)
            tail = whole[len(head) :]
            if whole[: len(head)] == head and b"".join(map(self.piece, tail)) == fixed.encode():
                return tuple(tail)
        return ()

    @cached_property
    def end(self) -> int:
        """The token that ends a text, or -1."""
        return int(self.model.lib.llama_vocab_eos(self.model.vocab))


@lru_cache(maxsize=1 << 14)
def _begins_character(rest: bytes) -> bool:
    """Whether some character that is printed begins with these bytes (a lead byte and those after it, UTF-8)."""
    n_bytes = 2 if rest[0] < 0xE0 else 3 if rest[0] < 0xF0 else 4
    n_open = 6 * (n_bytes - len(rest))
    point = rest[0] & (0x7F >> n_bytes)
    for byte in rest[1:]:
        point = point << 6 | byte & 0x3F
    shortest = (0x80, 0x800, 0x10000)[n_bytes - 2]
    points = range(max(point << n_open, shortest), min((point + 1) << n_open, 0x110000))
    return any(not is_unprinted(chr(point)) for point in points)


class _Written(NamedTuple):
    """What one sequence has written.

    state: in the grammar (None: no valid profile any more). rest: bytes of a character that is not whole yet.
    """

    state: GrammarState | None = START
    rest: bytes = b""

    def after(self, piece: bytes) -> "_Written | None":
        """With `piece` written too; None if it does not fit."""
        if self.state is None:
            return None
        if not self.rest and piece.isascii():
            state = self.state.after(piece.decode("ascii"))
            return _Written(state) if state else None
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            text = decoder.decode(self.rest + piece)
        except UnicodeDecodeError:
            return None
        state, rest = self.state.after(text), decoder.getstate()[0]
        # A character may be spread over several tokens: its beginning is judged like any character.
        if state is None or (rest and (not _begins_character(rest) or state.after("\ufffd") is None)):
            return None
        return _Written(state, rest)


class AnswerConstraint:
    """The state of each of `n_slots` answers in the grammar."""

    def __init__(self, table: TokenTable, n_slots: int):
        self.table = table
        # Of the last `choose`, by slot, where the model's choice was passed over: how much less likely, in logits, the
        # next token that fits is than the one taken.
        self.gaps: dict[int, float] = {}
        self.dead: set[int] = set()  # of the last `choose`: slots whose answer cannot become a profile any more
        self._written = [_Written()] * n_slots
        self._since: list[list[int]] = [[] for _ in range(n_slots)]  # quick tokens that `_written` does not hold yet
        # Room of the present phrase; none where the text must be looked at.
        self._chars_left = np.zeros(n_slots, np.int32)
        self._spaces_left = np.zeros(n_slots, np.int32)
        self._is_quick = np.zeros(n_slots, np.int8)
        from ..kernels import decoding  # numba is slow to load

        self._decoding = decoding

    def begin(self, slot: int) -> tuple[int, ...]:
        """An empty answer; returns the tokens that it must begin with."""
        self._since[slot] = []
        return self._take(slot, _Written())

    def move(self, source: int, target: int) -> None:
        """The answer of `source` goes on in `target`."""
        by_slot: tuple[Any, ...] = (self._written, self._since, self._chars_left, self._spaces_left)
        for kept in by_slot:
            kept[target] = kept[source]
        self._since[source] = []

    def is_dead(self, slot: int) -> bool:
        """Whether the answer cannot become a profile any more: nothing that was tried fitted."""
        return self._written[slot].state is None

    def choose(self, slots: np.ndarray, logits: np.ndarray, chosen: np.ndarray) -> dict[int, tuple[int, ...]]:
        """Replace the choices that the grammar refuses.

        slots: int64 (n,). logits: float32 (n, n_vocab). chosen: int64 (n,), the model's choices, changed in place.

        Returns, for slots that have reached fixed words, the tokens that must follow.
        What a dead slot writes is not looked at.
        """
        table, n = self.table, len(slots)
        self.gaps, self.dead = {}, set()
        if not self._decoding.pass_quickly(
            chosen,
            slots,
            table.kind,
            table.n_chars,
            table.n_spaces,
            self._chars_left,
            self._spaces_left,
            self._is_quick,
        ):
            for slot, token in zip(slots.tolist(), chosen.tolist(), strict=True):
                self._since[slot].append(token)
            return {}
        forced = {}
        for at, slot, token, is_quick in zip(
            range(n), slots.tolist(), chosen.tolist(), self._is_quick[:n].tolist(), strict=True
        ):
            if is_quick:
                self._since[slot].append(token)
                continue
            if self.is_dead(slot):
                continue
            kind = table.kind_of(token)
            written, since = self._written[slot], b"".join(map(table.piece, self._since[slot]))
            self._since[slot] = []
            after = written.after(since + table.piece(token)) if kind == PLAIN else None
            if after is None:
                written = (written.after(since) or _Written(None)) if since else written
                after = self._fits(written, token, kind) if kind != PLAIN else None
            if after is None:
                chosen[at], after, gap = self._other_choice(written, logits[at], token)
                if gap is not None:
                    self.gaps[slot] = gap
                if after.state is None:
                    self.dead.add(slot)
            if must := self._take(slot, after):
                forced[slot] = must
        return forced

    def _take(self, slot: int, written: _Written) -> tuple[int, ...]:
        """What a slot has written now; takes in the fixed words that must follow, and measures the next phrase's
        room."""
        must: tuple[int, ...] = ()
        state = written.state
        if state is not None and not written.rest and (fixed := state.forced):
            must = self.table.continuation(fixed)
            if must:
                state = state.after(fixed)
                written = _Written(state)
        self._written[slot] = written
        self._chars_left[slot] = -1
        # Not quick once a word may have been the last, or where digits may yet make an id.
        if state is not None and not written.rest and not state.forced and not any(map(str.isdigit, state.phrase)):
            self._chars_left[slot] = MAX_PHRASE_CHARS - len(state.phrase)
            self._spaces_left[slot] = MAX_WORDS - 1 - sum(map(str.isspace, state.phrase))
        return must

    def _other_choice(self, written: _Written, logits: np.ndarray, chosen: int) -> tuple[int, _Written, float | None]:
        """The likeliest token that fits, what is written then, and its distance from the next that fits (None: there is
        none).

        The model's own choice, and no state any more, if none fits.
        """
        if written.state is None:
            return chosen, written, None
        table = self.table
        n = min(N_GUIDED_CHOICES, len(logits))
        best = np.argpartition(-logits, n - 1)[:n] if n < len(logits) else np.arange(n)
        best = best[np.lexsort((best, -logits[best]))].astype(np.int32)
        candidates = [*zip(best.tolist(), table.kinds(best).tolist(), strict=True)]
        # A phrase as long as may be, and none of the likeliest tokens closes it.
        candidates += [(token, PLAIN) for mark in (",", ";") for token in table.continuation(mark)]
        candidates += [(table.end, END)] if table.end >= 0 else []
        taken, taken_after = chosen, None
        for token, kind in candidates:
            after = self._fits(written, token, kind)
            if after is None or (taken_after is not None and token == taken):
                continue
            if taken_after is not None:
                return taken, taken_after, float(logits[taken]) - float(logits[token])
            taken, taken_after = token, after
        return taken, taken_after or _Written(None), None

    def _fits(self, written: _Written, token: int, kind: int) -> _Written | None:
        """What is written with `token`, or None if no valid profile has it there."""
        if kind == PLAIN:
            return written.after(self.table.piece(token))
        if kind == SILENT:
            return None
        if kind == NEWLINE:  # what stands before the line break is part of the answer; what follows is not
            last = written.after(self.table.piece(token).split(b"\n")[0].rstrip())
            if last is None:
                return None
            written = last
        ends = not written.rest and written.state is not None and written.state.may_end
        return written if ends else None
