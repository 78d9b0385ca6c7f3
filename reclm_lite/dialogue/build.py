"""`reclm dialogue build`: all dialogues of a kind into a file, one after another, and a manifest beside it.

Users come first, then items, each variant after the other, by ascending index; equal inputs and seeds give equal bytes.
A line is written when it is made, so memory grows by no more than a digest of each, by which equal ones are known. The
file takes its name when it is whole and every interaction behind it was looked up (`leakguard`), or not at all.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import atomic_path, file_sha256
from ..own_paths import make_folder
from ..prompts.forms import COMPACT, FORMS, template_versions
from ..prompts.inputs import PromptInputs
from ..prompts.interface import ITEM, USER
from ..types import ItemText
from ..workspace import DIALOGUES, Workspace
from .budget import Budget, estimated
from .draws import Known
from .first_round import Shown
from .leakguard import NEIGHBORS, LeakGuard
from .make import Made, Maker, MakeSettings
from .preferences import SHARES
from .records import FORMAT, KINDS, PARTS, PREFERENCE, RL, SFT, Dialogue, line_of
from .teacher import Teacher

NO_NEIGHBORS = (
    "there are no neighbors: prompts show own items alone, No and negatives are items of anybody; run "
    "`reclm neighbors` first to have them"
)
ALIKE = "the same as one before"
TRAINED_ON = "held out, with a first round that is trained on"


@dataclass(frozen=True)
class BuildSettings:
    """Which dialogues to make. sides: "user", "item" or both. form: name of a prompt form. limit: at most this many
    users, and items, drawn at random. variants: of each user and item, each hiding other items. rounds: of sft, 1 or 2.
    n_negatives: of rl. held_out: share of the part that is never trained on. corruptions: kind -> share, of preference.
    """

    kind: str
    sides: tuple[str, ...] = (USER, ITEM)
    form: str = COMPACT
    seed: int = 0
    limit: int | None = None
    variants: int = 1
    rounds: int = 2
    n_negatives: int = 10
    held_out: float = 0.05
    corruptions: dict[str, float] = field(default_factory=lambda: dict(SHARES))

    def check(self) -> None:
        """Raises InputError if a setting is invalid."""
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("form", self.form, tuple(FORMS)),
            ("rounds", self.rounds, (1, 2)),
        ):
            if value not in known:
                raise InputError(
                    f"expected {name} among {', '.join(map(str, known))}, found {value!r}; choose one of them"
                )
        if not self.sides or not set(self.sides) <= {USER, ITEM}:
            raise InputError(f"expected the sides user and item, or one of them, found {self.sides!r}")
        for name, value in (("limit", self.limit), ("variants", self.variants), ("n_negatives", self.n_negatives)):
            if value is not None and value < 1:
                raise InputError(f"expected {name} of at least 1, found {value}")
        if not 0 <= self.held_out < 1:
            raise InputError(f"expected a held-out share from 0 to below 1, found {self.held_out}")

    def as_dict(self) -> dict:
        """What the manifest says of it: the options that the kind heeds."""
        found = {
            "sides": list(self.sides),
            "form": self.form,
            "seed": self.seed,
            "limit": self.limit,
            "variants": self.variants,
        }
        found["held_out"] = self.held_out
        found |= {
            SFT: {"rounds": self.rounds},
            PREFERENCE: {"corruptions": self.corruptions},
            RL: {"negatives": self.n_negatives},
        }[self.kind]
        return found


@dataclass
class BuildSummary:
    """What was made. counts: of dialogues by kind of count, see docs/dialogues.md. left_out: by reason."""

    kind: str
    n_dialogues: int = 0
    sha256: str = ""
    counts: dict = field(default_factory=dict)
    left_out: dict = field(default_factory=dict)
    n_pairs_checked: int = 0
    notes: list[str] = field(default_factory=list)
    manifest: dict = field(default_factory=dict)


def default_path(ws: Workspace, kind: str) -> Path:
    """Where dialogues of a kind lie in a workspace; `reclm tune` looks there."""
    return ws.root / DIALOGUES / f"{kind}.jsonl"


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def build(
    ws: Workspace,
    inputs: PromptInputs,
    teacher: Teacher,
    settings: BuildSettings,
    *,
    path: Path | None = None,
    budget: Budget | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuildSummary:
    """Write the dialogues of a kind to `path` (the workspace's own, if None), and the manifest beside them.

    inputs: what `load_inputs` read. progress: called with users and items done, and of all. Raises InputError if
    nothing could be made, MissingArtefactError where an input is missing or stale, LeakError where something held out
    came in.
    """
    settings.check()
    budget = budget or estimated(1024, settings.form)
    guard = LeakGuard.of(ws)
    guard.check_matrix(inputs.train)
    if not any(not text.is_empty() for text in inputs.texts):
        raise InputError(
            f"expected items with texts in {ws.root}, found none with any: import titles or descriptions (`reclm "
            "import`)"
        )
    known = Known(inputs, guard.users, guard.items, settings.seed, settings.held_out, _finder(ws, inputs))
    make = MakeSettings(settings.kind, settings.form, settings.rounds, settings.n_negatives, settings.corruptions)
    maker = Maker(known, guard, teacher, budget, make)
    chosen = {side: _chosen(known, side, settings.limit) for side in settings.sides}
    whom = [
        (side, idx, variant) for side in settings.sides for variant in range(settings.variants) for idx in chosen[side]
    ]
    teacher.prepare(_asked(maker, whom), maker.writer)
    named_by_user = path is not None
    if not named_by_user:
        ws.require_own_folders()
    path = default_path(ws, settings.kind) if path is None else Path(path)
    summary = BuildSummary(settings.kind, notes=[NO_NEIGHBORS] if inputs.neighbors is None else [])
    by, counts = {name: Counter() for name in ("side", "part")}, Counter()
    make_folder(path.parent)
    with atomic_path(path, named_by_user=named_by_user) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            for made in _distinct(_made(maker, whom, progress), _trained_on(maker, whom), maker.left_out):
                file.writelines(map(line_of, made.dialogues))
                summary.n_dialogues += len(made.dialogues)
                for dialogue in made.dialogues:
                    by["side"][dialogue.side] += 1
                    by["part"][dialogue.part] += 1
                counts += made.counts
        guard.close()
        left_out = maker.left_out + teacher.left_out
        if not summary.n_dialogues:
            reasons = "; ".join(f"{reason}: {n:,}" for reason, n in sorted(left_out.items())) or "nobody to make one of"
            raise InputError(
                f"expected at least one dialogue, found that none can be made ({reasons}); nothing was written"
            )
        summary.sha256 = file_sha256(temporary)
    summary.counts = {name: dict(sorted(counter.items())) for name, counter in by.items()} | dict(
        sorted(counts.items())
    )
    summary.left_out = dict(sorted(left_out.items()))
    summary.n_pairs_checked = guard.n_checked
    summary.manifest = _manifest(ws, inputs, teacher, settings, budget, summary)
    with atomic_path(manifest_path(path)) as temporary:
        temporary.write_text(json.dumps(summary.manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return summary


def _finder(ws: Workspace, inputs: PromptInputs) -> "Finder | None":  # noqa: F821
    if inputs.neighbors is None:
        return None
    from ..cf.neighbors import Finder  # numba is slow to load

    return Finder.of(ws)


def _chosen(known: Known, side: str, limit: int | None) -> list[int]:
    """Indices, ascending: all of a side, or so many by lot."""
    idxs: Sequence[int] = range(known.inputs.train.shape[0 if side == USER else 1])
    if limit is None or limit >= len(idxs):
        return list(idxs)
    lots = sorted((known.lots("limit", side, idx, 0).random(), idx) for idx in idxs)
    return sorted(idx for _, idx in lots[:limit])


def _asked(maker: Maker, whom: Sequence[tuple[str, int, int]]) -> Iterator[Shown]:
    for side, idx, variant in whom:
        yield from maker.asked(side, idx, variant)


def _made(maker: Maker, whom: Sequence[tuple[str, int, int]], progress: Callable[[int, int], None]) -> Iterator[Made]:
    for n_done, (side, idx, variant) in enumerate(whom, 1):
        if (made := maker.make(side, idx, variant)) is not None:
            yield made
        if n_done % 64 == 0 or n_done == len(whom):
            progress(n_done, len(whom))


def _trained_on(maker: Maker, whom: Sequence[tuple[str, int, int]]) -> set[bytes]:
    """Digests of the first rounds that are in training; none where nothing is held out."""
    found: set[bytes] = set()
    if not any(maker.known.part(side, idx) == PARTS[1] for side, idx, _ in whom):
        return found
    for side, idx, variant in whom:
        if maker.known.part(side, idx) == PARTS[0] and not isinstance(first := maker.first(side, idx, variant), str):
            found.add(_digest_of(maker.writer.text(first[1], maker.settings.form)))
    return found


def _distinct(found: Iterator[Made], trained_on: set[bytes], left_out: Counter) -> Iterator[Made]:
    """Each dialogue once, as many users share a short history, and with it all that there is to learn; held out, no
    first round that is trained on, which users of other histories may come to by what they hide.
    """
    seen: set[bytes] = set()
    for made in found:
        first = made.dialogues[0]
        if first.part == PARTS[1] and _digest_of(first.messages[0].text) in trained_on:
            left_out[TRAINED_ON] += len(made.dialogues)
            continue
        digests = {_digest(dialogue) for dialogue in made.dialogues}
        if digests & seen:  # a pair goes as a whole, so that there stay as many Yes as No
            left_out[ALIKE] += len(made.dialogues)
            continue
        seen |= digests
        yield made


def _digest(dialogue: Dialogue) -> bytes:
    """Of what can be learned from. Neither the rejected text nor negatives count: they are drawn for each user, so that
    those of many users who share a prompt would outweigh all others.
    """
    return _digest_of(
        repr(
            ([message.text for message in dialogue.messages], dialogue.chosen, dialogue.corruption, dialogue.positives)
        )
    )


def _digest_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def _manifest(
    ws: Workspace,
    inputs: PromptInputs,
    teacher: Teacher,
    settings: BuildSettings,
    budget: Budget,
    summary: BuildSummary,
) -> dict:
    """JSON-able; no times, no paths, so that equal builds have equal manifests."""
    return {
        "format": FORMAT,
        "kind": settings.kind,
        "sha256": summary.sha256,
        "n_dialogues": summary.n_dialogues,
        "counts": summary.counts,
        "left_out": summary.left_out,
        "options": settings.as_dict() | {"max_tokens": budget.max_tokens, "tokens_counted_by": budget.name},
        "teacher": teacher.identity,
        "templates": template_versions(),
        "inputs": {
            "matrices/interactions": inputs.data_key,
            "matrices/split": inputs.split_fingerprint,
            NEIGHBORS: None if inputs.neighbors is None else ws.fingerprint(NEIGHBORS),
            "texts": texts_digest(inputs.texts),
        },
        "pairs_checked": summary.n_pairs_checked,
    }


def texts_digest(texts: Sequence[ItemText]) -> str:
    """A hash of all items' texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(repr((text.title, text.category, text.subcategory, text.description)).encode("utf-8", "replace"))
    return digest.hexdigest()[:32]
