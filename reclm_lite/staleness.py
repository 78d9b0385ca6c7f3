"""Finds stale artefacts: those with an input, or an input of an input, that has changed since they were made."""

from typing import Protocol

from .artefacts import COMMITTED, INTERACTIONS, is_name

# Of inputs of inputs: interactions, split, model, neighbors, profile vectors, model with profiles are six.
_MAX_DEPTH = 20


class Artefacts(Protocol):
    """The questions about artefacts that a workspace answers (workspace.Workspace)."""

    def has(self, name: str) -> bool: ...

    def provenance(self, name: str, *, made_by: str) -> dict: ...

    def fingerprint(self, name: str) -> str | None: ...

    def other_ids(self, name: str, provenance: dict) -> list[str]: ...

    def command_for(self, name: str) -> str: ...

    def get_meta(self, key: str) -> str | None: ...


def staleness(
    ws: Artefacts, name: str, above: tuple[str, ...] = (), told: dict | None = None
) -> tuple[list[str], list[str]]:
    """(names of what has changed, artefacts to make again in order: inputs first, `name` last)

    above: the artefacts that `name` is an input of. told: a cache of answers by artefact.
    """
    told = {} if told is None else told
    if name not in told:
        told[name] = _staleness_of(ws, name, above, told)
    return told[name]


def _staleness_of(ws: Artefacts, name: str, above: tuple[str, ...], told: dict) -> tuple[list[str], list[str]]:
    provenance = ws.provenance(name, made_by=ws.command_for(name))
    changed = [f"the list of {side}" for side in ws.other_ids(name, provenance)] if "ids" in provenance else []
    again: list[str] = []
    if name == INTERACTIONS and provenance["fingerprint"] != ws.get_meta(COMMITTED):
        changed.append(name)
    for key, fingerprint in provenance["inputs"].items():
        if not is_name(key) or key in (*above, name) or len(above) > _MAX_DEPTH or not ws.has(key):
            changed.append(key)
            continue
        deeper, first = staleness(ws, key, (*above, name), told)
        changed += deeper if ws.fingerprint(key) == fingerprint else [key]
        again += first
    changed, again = list(dict.fromkeys(changed)), list(dict.fromkeys(again))
    return changed, [*again, name] if changed else again
