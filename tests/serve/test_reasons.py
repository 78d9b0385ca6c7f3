"""Reasons are true: every number and title is recomputed here from the same data in another way."""

import re

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.serve.reasons import Evidence, Reasoner, quoted, share_in_words, words_of
from reclm_lite.types import ItemText

SUBJECTS = ("space telescopes", "village football", "slow cooking", "tax reform")


def catalogue(n_items: int = 200) -> tuple[list[ItemText], np.ndarray]:
    """Items in four subjects in turn; vectors near one axis per subject."""
    rng = np.random.default_rng(3)
    texts, vectors = [], np.zeros((n_items, 16), np.float32)
    for item in range(n_items):
        subject = SUBJECTS[item % 4]
        texts.append(ItemText(f"Story {item} on {subject}", "news", subject, f"More of {subject}."))
        vectors[item, item % 4] = 1.0
    vectors += 0.15 * rng.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return texts, vectors


def evidence(**changes) -> Evidence:
    texts, vectors = catalogue()
    counts = np.arange(len(texts))[::-1].astype(np.int64)
    return Evidence(**{"texts": texts, "counts": counts, "n_users": 5000, "item_vectors": vectors, **changes})


def test_similar_names_the_closest_item_of_the_history_and_what_they_share():
    texts, vectors = catalogue()
    history = np.array([5, 9, 14], np.int32)
    reasoner = Reasoner(evidence(history=history))
    for item in (1, 21, 45):  # village football
        reason = reasoner._similar(item)
        cosines = [float(vectors[h] @ vectors[item]) for h in history]
        assert reason.anchor == history[int(np.argmax(cosines))]
        assert texts[reason.anchor].title in reason.text
        assert "same subcategory, village football" in reason.text


def test_similar_states_the_cosine_where_no_category_is_shared():
    texts, vectors = catalogue()
    bare = [ItemText(text.title) for text in texts]
    reason = Reasoner(evidence(texts=bare, history=np.array([5], np.int32)))._similar(1)
    stated = float(re.search(r"similarity (-?[\d.]+)", reason.text).group(1))
    assert stated == pytest.approx(float(vectors[5] @ vectors[1]), abs=0.005)


def test_similar_is_silent_for_unrelated_texts():
    assert Reasoner(evidence(history=np.array([4], np.int32)))._similar(1) is None


def test_together_counts_the_others_who_took_both():
    known = sp.lil_matrix((40, 200), dtype=np.float32)
    known[0, 8] = known[0, 11] = 1  # the user
    for other in range(1, 9):
        known[other, 8] = 1
    for other in range(1, 6):
        known[other, 30] = 1
    known[20, 30] = 1
    counts = np.asarray(known.tocsr().sum(axis=0), np.int64).ravel()
    world = {"known": known.tocsr(), "counts": counts, "n_users": 40, "item_vectors": None}
    reasoner = Reasoner(evidence(history=np.array([8, 11], np.int32), **world))
    reason = reasoner.reason(30)
    assert (
        reason.text == "5 of the 8 others who took “Story 8 on space telescopes” took it too, 4.2 times the usual share"
    )
    assert reason.anchor == 8  # 5 of 8 beside 6 of 40
    assert reasoner._together(31) is None and reasoner._together(11) is None


def test_together_is_silent_where_everyone_takes_the_item_as_often():
    known = sp.csr_matrix(np.ones((40, 200), np.float32))
    world = {"known": known, "counts": np.full(200, 40), "n_users": 40, "item_vectors": None}
    assert Reasoner(evidence(history=np.array([8], np.int32), **world))._together(30) is None


def test_neighbors_are_counted_once_each():
    neighbors = (np.array([7, 7, 8]), np.array([7]), np.array([8, 9]), np.array([1]), np.array([], np.int64))
    reasoner = Reasoner(evidence(item_vectors=None, neighbor_items=neighbors))
    assert reasoner.reason(7).text == "2 of 5 similar users took it"
    assert reasoner._neighbors(9).text == "1 of 5 similar users took it"
    assert reasoner.reason(9).kind == "popular"


def test_interest_is_named_only_if_all_its_words_occur():
    reasoner = Reasoner(evidence(item_vectors=None, interests=("space telescope", "deep space telescopes", "opera")))
    assert reasoner._interest(4).text == "matches your interest “space telescope”"
    assert reasoner._interest(5) is None


def test_category_counts_the_history():
    reason = Reasoner(evidence(item_vectors=None, history=np.array([1, 5, 2], np.int32)))._category(9)
    assert reason.text == "subcategory “village football”: 2 of your 3 items are in it"


def test_popularity_states_the_true_share():
    reasoner = Reasoner(evidence(item_vectors=None))
    assert reasoner.reason(0, basis="popularity").text == "popular: 4 % of users took it"  # 199 of 5,000
    assert reasoner.reason(190, basis="popularity").text == "9 of 5,000 users took it"
    assert reasoner.reason(199, basis="popularity").text == "new: no user has taken it yet"


def test_popularity_basis_gives_no_personal_reason():
    reasoner = Reasoner(evidence(history=np.array([0, 4, 8], np.int32), interests=("space telescopes",)))
    assert reasoner.reason(12, basis="popularity").kind == "popular"
    assert reasoner.reason(12).kind != "popular" or reasoner._similar(12).tail_share > 0.1


def test_strongest_evidence_is_the_rarest_in_the_catalogue():
    # Two neighbors took item 40 and nothing else: rarer than one item in four being about the same subject.
    reasoner = Reasoner(evidence(history=np.array([8], np.int32), neighbor_items=(np.array([40]), np.array([40]))))
    assert reasoner.reason(40).text == "2 of 2 similar users took it"


def test_query_reason_states_its_cosine():
    texts, vectors = catalogue()
    query = np.eye(16, dtype=np.float32)[2]
    reasoner = Reasoner(evidence(query=query))
    best = int(np.argmax(vectors @ query))
    assert (
        reasoner.reason(best, basis="text").text == f"close to your words in text (similarity {vectors[best, 2]:.2f})"
    )


def test_every_reason_is_a_short_line_of_a_known_kind():
    rng = np.random.default_rng(0)
    for trial in range(20):
        history = rng.choice(200, size=rng.integers(0, 12), replace=False).astype(np.int32)
        neighbors = tuple(rng.choice(200, size=5) for _ in range(rng.integers(0, 6)))
        reasoner = Reasoner(evidence(history=history, neighbor_items=neighbors, interests=SUBJECTS[: trial % 4]))
        for item in rng.choice(200, size=10):
            reason = reasoner.reason(int(item))
            assert reason.kind in {
                "similar",
                "together",
                "interest",
                "neighbors",
                "category",
                "query",
                "popular",
                "new",
            }
            assert 0 < reason.tail_share <= 1
            assert "\n" not in reason.text and 5 < len(reason.text) < 180


def test_an_empty_world_still_answers():
    reasoner = Reasoner(Evidence(texts=[ItemText("Only one")], counts=np.array([0]), n_users=0))
    assert reasoner.reason(0).text == "new: no user has taken it yet"


def test_words_drop_plurals_and_stopwords():
    assert words_of("The Space-Telescopes of glass") == ["space", "telescope", "glass"]


def test_long_titles_are_cut_at_a_word():
    text = quoted("word " * 40)
    assert len(text) <= 83 and text.endswith("word…”")


@pytest.mark.parametrize(
    ("n", "total", "said"),
    [(412, 9742, "4 % of users"), (3, 610, "3 of 610 users"), (5, 57128, "5 of 57,128 users"), (1, 1, "1 of 1 user")],
)
def test_share_in_words(n, total, said):
    assert share_in_words(n, total) == said
