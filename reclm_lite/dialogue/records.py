"""Dialogues as JSON lines: what `reclm dialogue build` writes and `reclm tune` reads.

Three kinds, one line each, in the order of their making:

    sft         messages: user, assistant (the profile), and, where there is a second round, user, assistant (Yes or No)
    preference  messages: user; chosen and rejected profiles, and how the rejected one was made (`corruption`)
    rl          messages: user; texts of items that the person took (`positives`) and never touched (`negatives`)

Every message is a list of spans, pairs of text and origin (`prompts.spans`), and its text is theirs put together.

`part` is `train` or `held_out`: dialogues that are never trained on, to measure with. Both come from training
interactions.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..own_paths import require_own_path
from ..prompts.forms import FORMS
from ..prompts.spans import ORIGINS, Span, text_of

FORMAT = "reclm-dialogue/1"
SFT, PREFERENCE, RL = "sft", "preference", "rl"
KINDS = (SFT, PREFERENCE, RL)
PARTS = ("train", "held_out")


@dataclass(frozen=True)
class Message:
    """role: "user" or "assistant"."""

    role: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return text_of(self.spans)


@dataclass(frozen=True)
class Dialogue:
    """One line of a file. id: unique in the file. side: "user" or "item". Fields of other kinds are empty."""

    kind: str
    id: str
    side: str
    form: str
    part: str
    messages: tuple[Message, ...]
    chosen: str = ""
    rejected: str = ""
    corruption: str = ""
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object that stands on its line."""
        found: dict[str, Any] = {
            "kind": self.kind,
            "id": self.id,
            "side": self.side,
            "form": self.form,
            "part": self.part,
        }
        found["messages"] = [{"role": m.role, "spans": [[s.text, s.origin] for s in m.spans]} for m in self.messages]
        if self.kind == PREFERENCE:
            found |= {"chosen": self.chosen, "rejected": self.rejected, "corruption": self.corruption}
        elif self.kind == RL:
            found |= {"positives": list(self.positives), "negatives": list(self.negatives)}
        return found


def line_of(dialogue: Dialogue) -> str:
    """A dialogue as its line, line break included; equal dialogues give equal bytes."""
    return json.dumps(dialogue.as_json(), ensure_ascii=False, separators=(",", ":")) + "\n"


def read_dialogues(path: Path, kind: str, *, part: str | None = None) -> Iterator[Dialogue]:
    """The dialogues of a file, one by one. part: "train" or "held_out" alone.

    Raises InputError naming the line where the file is not there, a line is not a dialogue of this kind, or a span has
    an origin that may not be learned from; WorkspaceError where it lies in a workspace behind a link.
    """
    path = Path(path)
    require_own_path(path)
    if not path.is_file():
        raise InputError(
            f"expected a file of dialogues at {path}, found none; make it with `reclm dialogue build {kind}`"
        )
    n_lines = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(_decoded(file, path), 1):
            if not line.strip():
                continue
            n_lines += 1
            dialogue = _parsed(line, kind, f"line {number} of {path}")
            if part is None or dialogue.part == part:
                yield dialogue
    if not n_lines:
        raise InputError(
            f"expected dialogues in {path}, found an empty file; make it again with `reclm dialogue build {kind}`"
        )


def _decoded(file: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 text in {path}, found {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error


def _parsed(line: str, kind: str, where: str) -> Dialogue:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"expected JSON on {where}, found: {error}; write one object a line") from error
    if not isinstance(entry, dict) or entry.get("kind") != kind:
        found = entry.get("kind") if isinstance(entry, dict) else type(entry).__name__
        raise InputError(
            f"expected a dialogue of kind {kind!r} on {where}, found {found!r}; give the file of `reclm dialogue "
            f"build {kind}`"
        )
    try:
        messages = tuple(
            Message(
                _one_of(m["role"], ("user", "assistant")),
                tuple(Span(_text(text), _one_of(origin, ORIGINS)) for text, origin in m["spans"]),
            )
            for m in entry["messages"]
        )
        dialogue = Dialogue(
            kind,
            _text(entry["id"]),
            _one_of(entry["side"], ("user", "item")),
            _one_of(entry["form"], tuple(FORMS)),
            _one_of(entry["part"], PARTS),
            messages,
            chosen=_text(entry["chosen"]) if kind == PREFERENCE else "",
            rejected=_text(entry["rejected"]) if kind == PREFERENCE else "",
            corruption=_text(entry["corruption"]) if kind == PREFERENCE else "",
            positives=tuple(map(_text, entry["positives"])) if kind == RL else (),
            negatives=tuple(map(_text, entry["negatives"])) if kind == RL else (),
        )
    except KeyError as error:
        raise InputError(
            f"expected the field {error} on {where}, found none; make the file again with `reclm dialogue build {kind}`"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected a dialogue on {where}, found: {error}; make the file again with `reclm dialogue build {kind}`"
        ) from error
    roles = [message.role for message in messages]
    wanted = [["user", "assistant"], ["user", "assistant"] * 2] if kind == SFT else [["user"]]
    if roles not in wanted:
        raise InputError(
            f"expected messages of {' or '.join(', '.join(w) for w in wanted)} on {where}, found "
            f"{', '.join(roles) or 'none'}"
        )
    return dialogue


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} where a text should be")
    return value


def _one_of(value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} where one of {', '.join(known)} should be")
    return str(value)
