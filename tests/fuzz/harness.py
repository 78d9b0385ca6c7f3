"""What a fuzz target is, a mutator that draws from a seed, and the loop that both the suite and `make fuzz` run.

A target is one function that takes bytes as a stranger may send them. It returns a label of the outcome ("accepted",
"refused"),
and raises for whatever must not happen: an exception that is no sentence of ours, a result that breaks a promise. A
crash, more memory than the bound, or more time than the bound is a finding as well.

To add a target, write a file in `targets/` with a tuple TARGETS; the suite, `make fuzz` and the results find it there.
Left out: coverage-guided mutation, which is Atheris' (run.py).
"""

import importlib.util
import random
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TARGETS_FOLDER = Path(__file__).parent / "targets"


@dataclass(frozen=True)
class Target:
    """name: lower case, `_` between words. what: which code gets the bytes, in a few words.

    seeds: inputs to mutate; small, valid ones as well as the smallest of each known attack. run: takes one input,
    returns a label.
    dictionary: tokens that mutations put in. max_bytes: inputs are cut to this. memory_bytes: what a process may have
    beyond the address space that it has after loading; 0 leaves it unbounded. n_slice: how many mutated inputs the
    suite runs.
    """

    name: str
    what: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], str]
    dictionary: tuple[bytes, ...] = ()
    max_bytes: int = 4096
    memory_bytes: int = 1 << 30
    n_slice: int = 500


def load_targets() -> dict[str, Target]:
    """name -> target, of every file in `targets/`."""
    found: dict[str, Target] = {}
    for path in sorted(TARGETS_FOLDER.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"fuzz_target_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for target in module.TARGETS:
            if target.name in found:
                raise ValueError(f"two fuzz targets are named {target.name}")
            found[target.name] = target
    return found


def mutate(rng: random.Random, seeds: list[bytes], dictionary: tuple[bytes, ...], max_bytes: int) -> bytes:
    """One to five changes of a seed: bytes flipped, set, cut, doubled, moved, spliced with another seed, tokens put
    in."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 5)):
        where = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 32)), max(len(data) - where, 0))
        kind = rng.randrange(9)
        if kind == 0 and where < len(data):
            data[where] ^= 1 << rng.randrange(8)
        elif kind == 1 and where < len(data):
            data[where] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[where : where + length]
        elif kind == 3:
            data[where:where] = data[where : where + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            data[where:where] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif kind == 5 and dictionary:
            data[where : where + rng.choice((0, 0, length))] = rng.choice(dictionary)
        elif kind == 6:
            other = rng.choice(seeds)
            data[where:] = other[rng.randrange(len(other) + 1) :]
        elif kind == 7:
            del data[where:]
        elif kind == 8:  # a number: the next bytes as little-endian, near 0 or near a power of two
            width = rng.choice((1, 2, 4, 8))
            value = (1 << rng.randrange(8 * width + 1)) + rng.choice((-1, 0, 1))
            data[where : where + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data[:max_bytes])


def bound_memory(extra_bytes: int) -> None:
    """Let this process map at most `extra_bytes` more than it has: what wants more gets a MemoryError or is ended."""
    if not extra_bytes:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_mutated(target: Target, *, n: int, seed: int, before: Callable[[bytes], None] = lambda data: None) -> Counter:
    """Run all seeds, then `n` mutated inputs; outcome -> count. `before` sees every input before it runs."""
    rng = random.Random(seed)
    seeds = target.seeds()
    outcomes: Counter = Counter()
    for data in seeds:
        before(data)
        outcomes[target.run(data)] += 1
    for _ in range(n):
        data = mutate(rng, seeds, target.dictionary, target.max_bytes)
        before(data)
        outcomes[target.run(data)] += 1
    return outcomes
