"""Profiles as vectors: `vectors/user_profiles` and `vectors/item_profiles`, arrays as in `text.item_vectors`.

What is embedded is a profile's words without its fixed labels, interests first: `x, y, z; a, b, c`. The labels are the
same in every profile and would only draw all vectors together. Rows without a usable profile are zero.
"""

import hashlib
from collections.abc import Callable

from ..errors import MissingArtefactError, ProfileFormatError
from ..prompts.answer import parse_profile
from ..text.item_vectors import EmbedCounts, Encoder, earlier_arrays, embed_texts, open_encoder, save_if_changed
from ..workspace import Workspace
from . import store


def profile_words(text: str) -> str:
    """The text that is embedded for a profile: `interests; identities`, or the text itself if it is no profile."""
    try:
        profile = parse_profile(text)
    except ProfileFormatError:
        return text
    return f"{', '.join(profile.interests)}; {', '.join(profile.identity)}"


def profiles_digest(rows: list[tuple[int, str]]) -> str:
    """SHA-256 (32 hex digits) over the usable profiles of a side."""
    digest = hashlib.sha256()
    for idx, text in rows:
        digest.update(f"{idx}\t{text}\n".encode())
    return digest.hexdigest()[:32]


def profile_vectors_stale(ws: Workspace, side: str) -> bool:
    """Whether a side's profiles are not those that its vectors were made from (or there are no vectors at all)."""
    name = artefact_name(side)
    if not ws.has(name):
        return True
    params = ws.provenance(name, made_by=ws.command_for(name))["params"]
    return params.get("profiles_digest") != profiles_digest(store.usable_profiles(ws, side))


def artefact_name(side: str) -> str:
    return f"vectors/{store.one_side(side)}_profiles"


def embed_profiles(ws: Workspace, encoder: Encoder | None = None, *, progress: Callable | None = None) -> EmbedCounts:
    """Make the profile vectors of users, and of items where items have profiles; distinct texts are embedded once.

    Raises MissingArtefactError if no profile has been made, or only for a split that has since been replaced.
    """
    counts = EmbedCounts("profiles")
    with ws.writing():
        sides = [side for side in store.SIDES if store.profile_counts(ws, side) or ws.has(artefact_name(side))]
        if not sides:
            raise MissingArtefactError(
                f"there are no profiles in {ws.root} yet: run `reclm profile users -w {ws.argument}` first"
            )
        split = ws.fingerprint("matrices/split")
        for side in sides:
            made_from = store.profiles_split(ws, side)
            if made_from is not None and made_from != split:
                raise MissingArtefactError(
                    f"the {side} profiles were made from another split than the current one: run `reclm profile "
                    f"{side}s -w {ws.argument}` again (what was generated is reused)"
                )
        with open_encoder(encoder) as encoder:
            for side in sides:
                _embed_side(ws, side, encoder, split, progress, counts)
    return counts


def _embed_side(
    ws: Workspace, side: str, encoder: Encoder, split: str | None, progress: Callable | None, counts: EmbedCounts
) -> None:
    n = ws.db.execute(f"SELECT COUNT(*) FROM {side}s").fetchone()[0]
    rows = store.usable_profiles(ws, side)
    texts = [""] * n
    for idx, text in rows:
        texts[idx] = profile_words(text)
    name = artefact_name(side)
    arrays, changed = embed_texts(texts, encoder, earlier_arrays(ws, name, encoder), progress, counts)
    counts.changed[name] = changed
    inputs = {"matrices/split": split} if split else {}
    params = {"encoder": encoder.identity, "profiles_digest": profiles_digest(rows), "n_profiles": len(rows)}
    save_if_changed(ws, name, arrays, changed, inputs, params)
