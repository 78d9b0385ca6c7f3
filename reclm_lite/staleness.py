"""Finds stale artefacts: those with an input, or an input of an input, that has changed since they were made."""

from dataclasses import dataclass
from typing import Protocol

from .artefacts import COMMITTED, INTERACTIONS, is_name

# Of inputs of inputs: interactions, split, model, neighbors, profile vectors, model with profiles are six.
_MAX_DEPTH = 20
# Of names that an answer lists; a workspace of this software comes to some ten.
_MAX_TOLD = 40


class Artefacts(Protocol):
    """The questions about artefacts that a workspace answers (workspace.Workspace)."""

    def has(self, name: str) -> bool: ...

    def provenance(self, name: str, *, made_by: str) -> dict: ...

    def other_ids(self, name: str, provenance: dict) -> list[str]: ...

    def command_for(self, name: str) -> str: ...

    def get_meta(self, key: str) -> str | None: ...


@dataclass(frozen=True)
class Stale:
    """What has changed under one artefact. again: the artefacts to make again, inputs before what is made of them, the
    artefact itself the last. Both are cut after _MAX_TOLD names."""

    fingerprint: str
    changed: list[str]
    again: list[str]


def staleness(ws: Artefacts, name: str, told: dict[str, Stale] | None = None, above: tuple[str, ...] = ()) -> Stale:
    """What has changed under artefact `name`.

    told: answers that were found before, each artefact's once; whoever asks for many artefacts passes one for all, so
    that every header is read once. above: what `name` is an input of.
    """
    told = {} if told is None else told
    if name not in told:
        told[name] = _staleness_of(ws, name, told, above)
    return told[name]


def _staleness_of(ws: Artefacts, name: str, told: dict[str, Stale], above: tuple[str, ...]) -> Stale:
    provenance = ws.provenance(name, made_by=ws.command_for(name))
    changed = [f"the list of {side}" for side in ws.other_ids(name, provenance)] if "ids" in provenance else []
    again: list[str] = []
    if name == INTERACTIONS and provenance["fingerprint"] != ws.get_meta(COMMITTED):
        changed.append(name)
    for key, fingerprint in provenance["inputs"].items():
        if not is_name(key) or key in (*above, name) or len(above) > _MAX_DEPTH or not ws.has(key):
            changed.append(key)
            continue
        deeper = staleness(ws, key, told, (*above, name))
        changed += deeper.changed if deeper.fingerprint == fingerprint else [key]
        again += deeper.again
    changed, again = list(dict.fromkeys(changed))[:_MAX_TOLD], list(dict.fromkeys(again))[:_MAX_TOLD]
    return Stale(provenance["fingerprint"], changed, [*again, name] if changed else again)
