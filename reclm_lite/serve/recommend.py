"""Recommendations for one user or a search text: ranked, with reasons and the basis of the ranking.

All interactions in the workspace are masked, including held-out ones, as in a deployed system; no split is needed.
Evaluation has its own ranking. Three bases, in this order:

    model        a fitted model: for users it was fitted on, and for anybody whose history it can place
    text         cosine of item texts to a vector (the words asked for, the user's profile, or the mean of a
                 history that the model does not know), plus a little popularity
    popularity   the number of users who took an item

Every answer has its basis and a sentence about it. Left out: a server, and caching across processes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ..artefacts import COMMITTED
from ..data.dataset import item_ids, item_texts, load_interactions, user_index
from ..errors import InputError, MissingArtefactError, WorkspaceError
from ..workspace import Workspace
from . import sources
from .ranking import masked, standardised, tells_apart, top
from .reasons import Evidence, Reasoner

log = logging.getLogger(__name__)

# Asked-for words: cosine plus at most this (for the most popular item), little more than a tie-breaker.
WORDS_POPULARITY_WEIGHT = 0.05
# A taste (a profile, a history) is looser: cosine and log-popularity are standardised over the items, and popularity
# counts this much more. With the mean text of a history as the taste, R@20 at 2 to 3 was 0.176 to 0.184 on the demo
# (popularity 0.124) and 0.061 to 0.068 on MIND (popularity 0.069); at 1, 0.175 and 0.039.
TASTE_POPULARITY_WEIGHT = 2.5
# Comparing an unknown id with more ids than this would take seconds.
_MAX_IDS_COMPARED = 200_000


@dataclass(frozen=True)
class RecommendedItem:
    """`item` is the data's own id; `score` is on the basis's own scale, higher is better."""

    item: str
    title: str
    score: float
    reason: str
    item_idx: int = field(default=-1, repr=False)


@dataclass(frozen=True)
class Recommendation:
    """`user` is None for a search text or a history alone; `basis` is "model", "text" or "popularity"; `note` explains
    it in a sentence."""

    user: str | None
    items: list[RecommendedItem]
    basis: str
    note: str

    def as_json(self) -> dict:
        """The document that `reclm recommend --json` prints."""
        items = [{"item": i.item, "title": i.title, "score": i.score, "reason": i.reason} for i in self.items]
        return {"user": self.user, "items": items, "basis": self.basis, "note": self.note}


def recommend(
    ws: Workspace,
    user_id: str | None,
    *,
    k: int = 20,
    model: str | None = None,
    text: str | None = None,
    history: Sequence[str] | None = None,
    encoder: Path | None = None,
    allow_stale: bool = False,
) -> Recommendation:
    """The `k` best items for a user, for a search text (without the user's items, if both are given), or for a user who
    is not in the workspace and has the items `history` (ids).

    model: a fitted model's name such as `lightgcn` or `lightgcn+users`; None: the best on validation. encoder: the GGUF
    that made the item vectors, for `text`; None for the bundled one. allow_stale: rank with a model that was fitted on
    earlier interactions of the same users and items; the note says so. Raises InputError for an unknown user or item or
    k < 1, MissingArtefactError if the model is missing or stale.
    """
    return Recommender(ws, model=model, encoder=encoder, allow_stale=allow_stale).recommend(
        user_id, k=k, text=text, history=history
    )


class Recommender:
    """Recommendations for many users of one workspace. Data, texts and the model are read once, when first needed."""

    def __init__(
        self, ws: Workspace, *, model: str | None = None, encoder: Path | None = None, allow_stale: bool = False
    ):
        self.ws = ws
        self._allow_stale = allow_stale
        self._encoder = encoder
        self._wanted_model = model
        self.interactions = load_interactions(ws)
        self.known = self.interactions.matrix()
        self.known.sort_indices()
        self.counts = np.bincount(self.known.indices, minlength=self.interactions.n_items).astype(np.int64)

    # -- what is read once ----------------------------------------------------------

    @cached_property
    def texts(self) -> list:
        return item_texts(self.ws)

    @cached_property
    def item_ids(self) -> list[str]:
        return item_ids(self.ws)

    @cached_property
    def item_vectors(self) -> np.ndarray | None:
        """float32 (n_items, dim), rows normalized (zero rows: no text), or None if missing or stale."""
        return sources.item_vectors(self.ws, self.interactions.n_items)

    @cached_property
    def _choice(self) -> tuple:
        """(model or None, sentence): the requested model, otherwise the best on validation that is up to date."""
        return sources.choose_model(self.ws, self._wanted_model, allow_stale=self._allow_stale)

    @property
    def model(self):
        """The fitted model in use, or None."""
        return self._choice[0]

    @property
    def model_name(self) -> str:
        """Name of the model in use, such as `lightgcn+users`; empty if there is none."""
        return sources.model_name(self.model.name, self.model.profiles) if self.model is not None else ""

    @cached_property
    def popularity(self) -> np.ndarray:
        """float32 (n_items,): log-popularity from 0 (nobody) to 1 (the most popular item)."""
        logs = np.log1p(self.counts.astype(np.float64))
        return (logs / max(logs.max(initial=0.0), 1e-12)).astype(np.float32)

    # -- answers --------------------------------------------------------------------

    def recommend(
        self, user_id: str | None, *, k: int = 20, text: str | None = None, history: Sequence[str] | None = None
    ) -> Recommendation:
        """See the function `recommend`."""
        if k < 1:
            raise InputError(f"expected k of at least 1, found {k}: ask for one item or more")
        if text is not None and not text.strip():
            raise InputError("the text to recommend for is empty: give a few words")
        if user_id is None and text is None and history is None:
            raise InputError(
                "expected a user id, a text or a history, found none of them: give --user, --text or --history"
            )
        if history is not None and (user_id is not None or text is not None):
            raise InputError("a history cannot be combined with a user or a text: give one of them")
        user = None if user_id is None else self._user(user_id)
        items_had = self._items(history) if history is not None else np.zeros(0, np.int32)
        if text is not None:
            scores, basis, note, query, label = self._for_words(text)
        elif user is None:
            scores, basis, note, query, label = self._for_stranger(items_had)
        else:
            scores, basis, note, query, label = self._for_user(user)
        history = self.history(user) if user is not None else items_had
        chosen = top(masked(scores, history), k)
        left_out = ""
        if len(history):
            left_out = (
                " One known item is excluded." if len(history) == 1 else f" {len(history):,} known items are excluded."
            )
        if len(chosen) < k:
            left_out += f" Fewer than {k:,} items can be ranked: {len(chosen):,} given."
        reasoner = self.reasoner(user, history=history, query=query, query_label=label)
        items = []
        for i in map(int, chosen):
            reason = reasoner.reason(i, basis=basis).text
            items.append(
                RecommendedItem(self.item_ids[i], self.texts[i].title or self.item_ids[i], float(scores[i]), reason, i)
            )
        self._require_same_data()  # what was read on the way is read by now
        return Recommendation(user_id, items, basis, note + left_out)

    def history(self, user: int) -> np.ndarray:
        """int32, ascending: all items that the user is known to have."""
        return self.known.indices[self.known.indptr[user] : self.known.indptr[user + 1]]

    def top_items(self, users: np.ndarray, k: int) -> list[np.ndarray]:
        """Item indices recommended to each user (by index), without reasons; used to measure coverage."""
        return [top(masked(self._for_user(int(user))[0], self.history(int(user))), k) for user in users]

    def reasoner(
        self,
        user: int | None,
        *,
        history: np.ndarray | None = None,
        query: np.ndarray | None = None,
        query_label: str = "your words",
    ) -> Reasoner:
        """The Reasoner for one user's items (None: no user, or only a `history`)."""
        if history is None:
            history = self.history(user) if user is not None else np.zeros(0, np.int32)
        evidence = Evidence(
            texts=self.texts,
            counts=self.counts,
            n_users=self.interactions.n_users,
            item_vectors=self.item_vectors,
            history=history,
            is_counted=user is not None,
            known=self.known,
            neighbor_items=tuple(self.history(n) for n in self._neighbors(user)) if user is not None else (),
            interests=sources.interests(self.ws, user) if user is not None else (),
            query=query,
            query_label=query_label,
        )
        return Reasoner(evidence)

    # -- one basis each --------------------------------------------------------------

    def _for_words(self, text: str) -> tuple:
        if self.item_vectors is None:
            raise MissingArtefactError(
                "recommending for a text needs up-to-date item vectors: run `reclm embed items -w "
                f"{self.ws.argument}` first"
            )
        if not self.item_vectors.any():
            raise InputError(
                f"no item of {self.ws.root} has a text to compare your words with: recommend for a user with --user ID"
            )
        query = sources.embed_words(self.ws, text, self._encoder)
        has_text = self.item_vectors.any(axis=1)
        scores = np.where(has_text, self.item_vectors @ query + WORDS_POPULARITY_WEIGHT * self.popularity, np.nan)
        return scores, "text", "Ranked by text similarity of the items to your words.", query, "your words"

    def _for_user(self, user: int) -> tuple:
        """(scores float32 (n_items,), NaN for items that are no candidates; basis; note; query; label)."""
        model, sentence = self._choice
        has_history = self.known.indptr[user] < self.known.indptr[user + 1]
        if model is not None and has_history and sources.is_ready(model, user):
            scores = self._model_scores(model, user)
            if not model.scorer.can_be_silent or tells_apart(scores):
                return scores, "popularity" if model.name == "popularity" else "model", sentence, None, ""
        why = "This user has no history yet" if not has_history else "The model does not know this user's history yet"
        if model is None and has_history:
            return self._popular_scores(), "popularity", sentence, None, ""
        profile = sources.profile_text(self.ws, user)
        vector = sources.profile_vector(self._profile_arrays, user, profile)
        if vector is not None and self.item_vectors is not None:
            note = f"{why}: ranked by text similarity of the items to the user's profile, and by popularity."
            return self._taste_scores(vector), "text", note, vector, "your profile"
        taste = self._taste_of(self.history(user))
        if taste is not None:
            note = f"{why}: ranked by text similarity of the items to the history, and by popularity."
            return self._taste_scores(taste), "text", note, None, ""
        if profile:
            why += f", and the profile has no up-to-date vector (`reclm embed profiles -w {self.ws.argument}` makes it)"
        elif not has_history:
            why += ", and no profile"
        return self._popular_scores(), "popularity", f"{why}: ranked by popularity only.", None, ""

    def _for_stranger(self, history: np.ndarray) -> tuple:
        """Like `_for_user`, for a history (int32, ascending) of a user who is not in the workspace."""
        model, sentence = self._choice
        if model is None:
            return self._popular_scores(), "popularity", sentence, None, ""
        row = sp.csr_matrix(
            (np.ones(len(history), np.float32), history, [0, len(history)]), shape=(1, self.interactions.n_items)
        )
        folded = model.folded(row)
        if sources.is_ready(folded, 0):
            scores = self._model_scores(folded, 0)
            if not model.scorer.can_be_silent or tells_apart(scores):
                return scores, "popularity" if model.name == "popularity" else "model", sentence, None, ""
        why = "The model knows none of these items" if len(history) else "No items were given"
        taste = self._taste_of(history)
        if taste is not None:
            note = f"{why}: ranked by text similarity of the items to the history, and by popularity."
            return self._taste_scores(taste), "text", note, None, ""
        return self._popular_scores(), "popularity", f"{why}: ranked by popularity only.", None, ""

    def _taste_of(self, history: np.ndarray) -> np.ndarray | None:
        """float32 (dim,), normalized: the mean text of a history; None if no item has a text."""
        if not len(history) or self.item_vectors is None:
            return None
        mean = self.item_vectors[history].mean(axis=0)
        norm = float(np.linalg.norm(mean))
        return mean / norm if norm > 0 else None

    def _model_scores(self, model, user: int) -> np.ndarray:
        candidates = np.arange(self.interactions.n_items, dtype=np.int32)
        scores = np.asarray(model.scores(np.array([user], dtype=np.int32), candidates), dtype=np.float32)[0]
        # An item without text that nobody took is nothing a model can have learned of.
        candidate = self.counts > 0
        if self.item_vectors is not None:
            candidate |= self.item_vectors.any(axis=1)
        return np.where(candidate, scores, np.nan)

    def _taste_scores(self, taste: np.ndarray) -> np.ndarray:
        """Standardised cosine plus weighted standardised log-popularity: float32 (n_items,), NaN for items without
        text."""
        has_text = self.item_vectors.any(axis=1)
        cosine = standardised(self.item_vectors @ taste, has_text)
        popularity = standardised(self.popularity, has_text)
        return np.where(has_text, cosine + TASTE_POPULARITY_WEIGHT * popularity, np.nan)

    def _popular_scores(self) -> np.ndarray:
        return np.where(self.counts > 0, self.counts, np.nan).astype(np.float32)

    # -- lookups ------------------------------------------------------------------------

    def _require_same_data(self) -> None:
        """Raise WorkspaceError if another process forgot people, or imported, since this one read the data."""
        if self.ws.get_meta(COMMITTED) != self.interactions.fingerprint:
            raise WorkspaceError(f"the data of {self.ws.root} has changed since it was read: create a new Recommender")

    def _user(self, user_id: str) -> int:
        self._require_same_data()
        index = user_index(self.ws, user_id)
        if index is None:
            raise InputError(_unknown_user(self.ws, user_id))
        return index

    def _items(self, ids: Sequence[str]) -> np.ndarray:
        """int32, ascending, distinct: the items of these ids. Raises InputError naming the unknown ones."""
        place = {item_id: index for index, item_id in enumerate(self.item_ids)}
        wanted = [item_id.strip() for item_id in ids if item_id.strip()]
        unknown = [item_id for item_id in dict.fromkeys(wanted) if item_id not in place]
        if unknown:
            more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
            raise InputError(
                f"no item {', '.join(map(repr, unknown[:5]))}{more} among the {len(place):,} of {self.ws.root}: ids "
                f"look like {', '.join(map(repr, self.item_ids[:3]))}; give ids of the imported data, separated by "
                "commas"
            )
        if not wanted:
            raise InputError("the history is empty: give at least one item id; separate ids by commas")
        return np.unique([place[item_id] for item_id in wanted]).astype(np.int32)

    @cached_property
    def _profile_arrays(self) -> dict[str, np.ndarray] | None:
        arrays = sources.profile_arrays(self.ws, self.interactions.n_users)
        if (
            arrays is not None
            and self.item_vectors is not None
            and arrays["vectors"].shape[1] != self.item_vectors.shape[1]
        ):
            log.warning(
                "profile vectors have another dimension than item vectors and are not used: run `reclm embed "
                "profiles -w %s`",
                self.ws.root,
            )
            return None
        return arrays

    @cached_property
    def _neighbor_table(self) -> np.ndarray | None:
        return sources.neighbor_indices(self.ws, self.interactions.n_users)

    def _neighbors(self, user: int) -> list[int]:
        if self._neighbor_table is None:
            return []
        return [int(n) for n in self._neighbor_table[user] if n >= 0 and n != user]


def _unknown_user(ws: Workspace, user_id: str) -> str:
    """The error message for an unknown user: the closest ids, and what to do."""
    import difflib

    n_users = ws.db.execute("SELECT COUNT(*) FROM users").fetchone()[0]
    ids = [row[0] for row in ws.db.execute("SELECT user_id FROM users ORDER BY user_idx LIMIT ?", (_MAX_IDS_COMPARED,))]
    close = difflib.get_close_matches(user_id, ids, n=3, cutoff=0.6)
    if close:
        offer = f"the most similar ids are {', '.join(map(repr, close))}"
    else:
        offer = f"ids look like {', '.join(map(repr, ids[:3]))}" if ids else "the workspace has no users"
    return (
        f"no user {user_id!r} among the {n_users:,} of {ws.root}: {offer}; give an id of the imported data, or "
        "recommend for a search text with --text WORDS"
    )
