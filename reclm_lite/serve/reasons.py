"""Why an item is recommended, in words: the strongest statement about user and item that the data support.

Six kinds of evidence are measured. *similar*: the item's text vector is close to that of an item in the
user's history. *together*: others who took an item of the history took this one too, at least twice as often as
everyone. *interest*: every content word of an interest in the profile occurs in the item's text.
*neighbors*: similar users took it. *category*: it shares a category with the history.
*query*: its text is close to the words (or the profile) that the recommendation started from.

The kinds are compared on one scale: the share of the catalog with at least as much of the same evidence (smaller is
stronger). Popularity holds for every user, so it is used only if no personal reason is strong. A reason states a fact
about the item and the user. It does not claim to explain the model, and no language model writes it: every number in it
is computed here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ..text.bounds import bounded
from ..types import ItemText

# Evidence that more than this share of the catalogue has tells nothing about one item.
MAX_TAIL_SHARE = 0.10
# Cosines below this are unrelated texts for the sentence encoders in use, whatever their rank.
MIN_COSINE = 0.30
# Tail shares are estimated on this many items of the catalogue, evenly spaced.
MAX_REFERENCE_ITEMS = 2048
# At least this many others must have taken both items; and at most this many items of a history are
# counted (the least popular, which say most), since counting walks through all their takers.
MIN_TOGETHER = 3
MAX_COUNTED_HISTORY = 100
# A share among few is uncertain: this many takers who did not take the item are added before comparing.
_TOGETHER_PRIOR = 10
_TITLE_CHARS = 80
_STOPWORDS = frozenset(
    "a an and are as at be by for from has have in into is it its of on or that the this to was were will with".split()
)


@dataclass(frozen=True)
class Evidence:
    """What is known about one user and the catalog.

    texts: the text of every item. counts: int64 (n_items,) users who took each item. item_vectors: float32 (n_items,
    dim), rows L2-normalized (zero rows: no text), or None. history: int32, the user's items. known: CSR (n_users,
    n_items) of all interactions, or None. is_counted: whether `counts` and `known` include the user. neighbor_items:
    one int32 array of items per neighbor. interests: phrases of the user's profile. query: float32 (dim,) normalized,
    or None; query_label: what the query was ("your words", "your profile").
    """

    texts: Sequence[ItemText]
    counts: np.ndarray
    n_users: int
    item_vectors: np.ndarray | None = None
    history: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    is_counted: bool = True
    known: sp.csr_matrix | None = None
    neighbor_items: tuple[np.ndarray, ...] = ()
    interests: tuple[str, ...] = ()
    query: np.ndarray | None = None
    query_label: str = "your words"


@dataclass(frozen=True)
class Reason:
    """`text` is for display; `kind`, `tail_share` (0 to 1, smaller is stronger) and `anchor` (an item index) allow
    checking it."""

    kind: str
    text: str
    tail_share: float = 1.0
    anchor: int | None = None


def words_of(text: str) -> list[str]:
    """Content words in lower case without a plural `s`, so that `Space telescopes` matches `a space telescope`."""
    words = (word.casefold() for word in re.findall(r"\w+", bounded(text)))
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        for word in words
        if word not in _STOPWORDS
    ]


def _short(text: str) -> str:
    """The text on one line, shortened at a word boundary if it is long."""
    text = " ".join(text.split())
    return text if len(text) <= _TITLE_CHARS else text[: _TITLE_CHARS - 1].rsplit(" ", 1)[0].rstrip(",;:.- ") + "…"


def quoted(title: str) -> str:
    """A title in quotation marks, on one line, shortened at a word boundary if it is long."""
    return f"“{_short(title)}”"


def share_in_words(n: int, total: int) -> str:
    """`4 % of users`; exact counts if the percentage would round to 0 or there are few users."""
    if total >= 1000 and n / total >= 0.01:
        return f"{100 * n / total:.0f} % of users"
    return f"{n:,} of {total:,} users" if total != 1 else f"{n} of 1 user"


class Reasoner:
    """Finds the reasons for one user's recommendations; reads the catalog once."""

    def __init__(self, evidence: Evidence):
        self.evidence = evidence
        n_items = len(evidence.texts)
        self.reference = np.unique(
            np.linspace(0, max(0, n_items - 1), min(n_items, MAX_REFERENCE_ITEMS)).astype(np.int64)
        )
        self._history = np.unique(np.asarray(evidence.history, dtype=np.int64))
        self._known = set(self._history.tolist())
        self._neighbor_counts = np.zeros(n_items, np.int64)
        for items in evidence.neighbor_items:
            self._neighbor_counts[np.unique(items)] += 1
        self._interest_words = [(phrase, set(words_of(phrase))) for phrase in evidence.interests]
        self._interest_tails: dict[str, float] = {}
        self._item_words: dict[int, set[str]] = {}
        self._category_counts = [self._count_history(field_name) for field_name in ("subcategory", "category")]
        self._together_items, self._together_counts = self._count_together()
        self._reference_together = np.sort(self._together_share(self.reference).max(axis=0, initial=0.0))
        vectors = evidence.item_vectors
        self._reference_similarity = self._reference_query = None
        if vectors is not None and len(self._history):
            reference = self.reference[~np.isin(self.reference, self._history)]
            if len(reference):
                self._reference_similarity = np.sort((vectors[reference] @ vectors[self._history].T).max(axis=1))
        if vectors is not None and evidence.query is not None:
            self._reference_query = np.sort(vectors[self.reference] @ evidence.query)

    # -- the public question -----------------------------------------------------

    def reason(self, item: int, *, basis: str = "model") -> Reason:
        """The strongest statement about `item` that the data support. With `basis` "popularity" no personal reason is
        given, because none determined the rank; with "text" closeness to the query is always allowed, because it
        did."""
        popular = self._popular(item)
        if basis == "popularity":
            return popular
        query = self._query(item)
        personal = (
            query,
            self._similar(item),
            self._together(item),
            self._interest(item),
            self._neighbors(item),
            self._category(item),
        )
        found = [reason for reason in personal if reason is not None]
        telling = [
            reason for reason in found if reason.tail_share <= MAX_TAIL_SHARE or (basis == "text" and reason is query)
        ]
        return min(telling or [*found, popular], key=lambda reason: reason.tail_share)

    # -- one method per kind -------------------------------------------------------

    def _similar(self, item: int) -> Reason | None:
        if self._reference_similarity is None:
            return None
        vectors = self.evidence.item_vectors
        similarity = vectors[self._history] @ vectors[item]
        best = int(np.argmax(similarity))
        cosine = float(similarity[best])
        anchor = int(self._history[best])
        if cosine < MIN_COSINE or anchor == item or not self.evidence.texts[anchor].title.strip():
            return None
        shared = self._shared_category(item, anchor)
        note = f" ({shared})" if shared else f" (text similarity {cosine:.2f})"
        text = f"like {quoted(self.evidence.texts[anchor].title)}{note}"
        return Reason("similar", text, _tail_share(self._reference_similarity, cosine), anchor)

    def _together(self, item: int) -> Reason | None:
        shares = self._together_share(np.array([item]))[:, 0]
        if not len(shares) or not shares.max() or item in self._known:
            return None
        best = int(np.argmax(shares))
        anchor = int(self._together_items[best])
        n_both, n_others = (
            int(self._together_counts[best, item]),
            int(self.evidence.counts[anchor]) - self.evidence.is_counted,
        )
        if not self.evidence.texts[anchor].title.strip():
            return None
        times = n_both / n_others / (int(self.evidence.counts[item]) / self.evidence.n_users)
        title = quoted(self.evidence.texts[anchor].title)
        text = f"{n_both:,} of the {n_others:,} others who took {title} took it too, {times:.1f} times the usual share"
        return Reason("together", text, _tail_share(self._reference_together, float(shares[best])), anchor)

    def _interest(self, item: int) -> Reason | None:
        best: Reason | None = None
        for phrase, words in self._interest_words:
            if not words or not words <= self._words(item):
                continue
            if phrase not in self._interest_tails:
                n_matching = sum(words <= self._words(int(other)) for other in self.reference)
                self._interest_tails[phrase] = (1 + n_matching) / (1 + len(self.reference))
            tail = self._interest_tails[phrase]
            if best is None or tail < best.tail_share:
                best = Reason("interest", f"matches your interest {quoted(phrase)}", tail)
        return best

    def _neighbors(self, item: int) -> Reason | None:
        n_neighbors, n_took = len(self.evidence.neighbor_items), int(self._neighbor_counts[item])
        if not n_took:
            return None
        # "Similar", not "most similar": of users with the same history the neighbor list names one.
        who = "a similar user" if n_neighbors == 1 else f"{n_took} of {n_neighbors} similar users"
        tail = _tail_share(np.sort(self._neighbor_counts[self.reference]), n_took)
        # One of several is chance, however few items the neighbors took: used only where nothing else is telling.
        return Reason(
            "neighbors", f"{who} took it", max(tail, 2 * MAX_TAIL_SHARE) if n_took == 1 < n_neighbors else tail
        )

    def _category(self, item: int) -> Reason | None:
        """Shared category, measured by its share of the catalog."""
        text, n_history = self.evidence.texts[item], len(self._history)
        for field_name, counts in zip(("subcategory", "category"), self._category_counts, strict=True):
            value = getattr(text, field_name)
            n_shared = counts.get(value, 0) if value else 0
            if not n_shared:
                continue
            n_same = sum(getattr(self.evidence.texts[int(other)], field_name) == value for other in self.reference)
            tail = (1 + n_same) / (1 + len(self.reference))
            whose = (
                "your only item is in it" if n_history == 1 else f"{n_shared:,} of your {n_history:,} items are in it"
            )
            if n_history > 1 and n_shared == 1:
                whose = f"1 of your {n_history:,} items is in it"
            # One shared item among many is weak however rare the category: weigh by the share of the history.
            return Reason("category", f"{field_name} {quoted(value)}: {whose}", min(1.0, tail * n_history / n_shared))
        return None

    def _query(self, item: int) -> Reason | None:
        if self._reference_query is None:
            return None
        cosine = float(self.evidence.item_vectors[item] @ self.evidence.query)
        if cosine < MIN_COSINE:
            return None
        text = f"close to {self.evidence.query_label} in text (similarity {cosine:.2f})"
        return Reason("query", text, _tail_share(self._reference_query, cosine))

    def _popular(self, item: int) -> Reason:
        count, n_users = int(self.evidence.counts[item]), self.evidence.n_users
        if not count:
            return Reason("new", "new: no user has taken it yet")
        tail = _tail_share(np.sort(self.evidence.counts[self.reference]), count)
        share = share_in_words(count, n_users)
        return Reason("popular", f"{'popular: ' if tail <= 0.25 else ''}{share} took it", tail)

    # -- counted once --------------------------------------------------------------

    def _count_together(self) -> tuple[np.ndarray, np.ndarray]:
        """(items of the history int64 (n,), how many others took both int64 (n, n_items))."""
        n_items, known = len(self.evidence.texts), self.evidence.known
        if known is None or not len(self._history):
            return np.zeros(0, np.int64), np.zeros((0, n_items), np.int64)
        popularity = self.evidence.counts[self._history]
        items = self._history[np.lexsort((self._history, popularity))][:MAX_COUNTED_HISTORY]
        counts = np.zeros((len(items), n_items), np.int64)
        by_item = known[:, items].tocsc()
        for row in range(len(items)):
            takers = by_item.indices[by_item.indptr[row] : by_item.indptr[row + 1]]
            counts[row] = np.bincount(known[takers].indices, minlength=n_items)
        if self.evidence.is_counted:
            # The user is among the takers of each and has taken the whole history: not an "other".
            counts[:, self._history] -= 1
        return items, counts

    def _together_share(self, items: np.ndarray) -> np.ndarray:
        """Shrunk share of the other users of each history item who also have `items`: float64 (n, len(items)); 0 if
        there are too few."""
        both = self._together_counts[:, items]
        others = np.maximum(self.evidence.counts[self._together_items] - self.evidence.is_counted, 1)[:, None]
        everyone = self.evidence.counts[items][None, :] / max(1, self.evidence.n_users)
        telling = (both >= MIN_TOGETHER) & (both / others >= 2 * everyone)
        return np.where(telling, both / (others + _TOGETHER_PRIOR), 0.0)

    # -- small facts ---------------------------------------------------------------

    def _words(self, item: int) -> set[str]:
        if item not in self._item_words:
            self._item_words[item] = set(words_of(self.evidence.texts[item].joined()))
        return self._item_words[item]

    def _count_history(self, field_name: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for item in self._history:
            value = getattr(self.evidence.texts[int(item)], field_name)
            if value:
                counts[value] = counts.get(value, 0) + 1
        return counts

    def _shared_category(self, item: int, anchor: int) -> str:
        mine, other = self.evidence.texts[item], self.evidence.texts[anchor]
        for field_name in ("subcategory", "category"):
            value = getattr(mine, field_name)
            if value and value == getattr(other, field_name):
                return f"same {field_name}, {_short(value)}"
        return ""


def _tail_share(sorted_reference: np.ndarray, value: float) -> float:
    """Share of the reference with at least `value`, including the item itself; never 0."""
    n = len(sorted_reference)
    return (1 + n - int(np.searchsorted(sorted_reference, value, side="left"))) / (1 + n)
