"""What a fit reads from a workspace: the split, the items' text vectors, profile vectors of users and items."""

from dataclasses import dataclass

import numpy as np

from ..data.dataset import Split
from ..errors import InputError, shell_word
from ..workspace import Workspace


@dataclass(frozen=True)
class Inputs:
    """The data of a fit. text, user_profiles, item_profiles: float32 (n, n_in) or None; a zero row means none."""

    split: Split
    text: np.ndarray | None = None
    user_profiles: np.ndarray | None = None
    item_profiles: np.ndarray | None = None


def load_inputs(ws: Workspace, split: Split, profiles: str, used: dict[str, str]) -> Inputs:
    """Read the vectors that a fit needs, and add their fingerprints to `used`.

    Raises MissingArtefactError, naming the command that makes it, for a missing or stale artefact; InputError for
    vectors that are not finite or whose number is not that of the items or users.
    """

    def read(name: str, made_by: str, n_rows: int, what: str) -> np.ndarray:
        ws.require_fresh(name, made_by=made_by)
        artefact = ws.load(name, made_by=made_by)
        vectors = artefact.arrays.get("vectors", np.zeros(0))
        if vectors.ndim != 2 or len(vectors) != n_rows or vectors.dtype.kind != "f" or not np.isfinite(vectors).all():
            raise InputError(
                f"{name}: expected finite vectors of {n_rows} {what}, found {vectors.dtype} {vectors.shape}; run "
                f"`{made_by}` again"
            )
        used[name] = artefact.fingerprint
        return np.ascontiguousarray(vectors, dtype=np.float32)

    root = ws.root
    embed_profiles = f"reclm embed profiles -w {shell_word(root)}"
    has_text = ws.db.execute(
        "SELECT 1 FROM items WHERE title || category || subcategory || description <> '' LIMIT 1"
    ).fetchone()
    text = user_profiles = item_profiles = None
    if has_text:
        text = read("vectors/items", f"reclm embed items -w {shell_word(root)}", split.n_items, "items")
    for side, n_rows in (("user", split.n_users), ("item", split.n_items)):
        if profiles not in (f"{side}s", "both"):
            continue
        name = f"vectors/{side}_profiles"
        made_by = embed_profiles
        if not _has_profiles(ws, side):
            made_by = f"reclm profile {side}s -w {shell_word(root)}` and then `{embed_profiles}"
        vectors = read(name, made_by, n_rows, f"{side}s")
        if side == "user":
            user_profiles = vectors
        else:
            item_profiles = vectors
    return Inputs(split, text, user_profiles, item_profiles)


def _has_profiles(ws: Workspace, side: str) -> bool:
    return ws.db.execute("SELECT 1 FROM profiles WHERE side=? LIMIT 1", (side,)).fetchone() is not None
