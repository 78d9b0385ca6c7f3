import time

import pytest

from reclm_lite.text.keyphrases import PhraseStats, candidates, chunks, segments, topics_of, words
from reclm_lite.types import ItemText


def test_phrases_cross_neither_stop_words_nor_punctuation():
    assert segments("Patriots rally past the New York Jets, in overtime") == [
        ["Patriots", "rally"],
        ["York", "Jets"],
        ["overtime"],
    ]


def test_chunks_are_runs_cut_into_threes_never_digits_alone():
    assert chunks("old grey harbour seal colony in 1995 and Oslo") == ["old grey harbour", "seal colony", "Oslo"]


def test_candidates_have_one_to_three_words_and_keep_case():
    assert candidates("Red Tall Old House") == [
        "Red",
        "Red Tall",
        "Red Tall Old",
        "Tall",
        "Tall Old",
        "Tall Old House",
        "Old",
        "Old House",
        "House",
    ]


def test_a_repeated_candidate_is_named_once_in_its_first_spelling():
    assert candidates("Moss, moss and MOSS") == ["Moss"]


def test_hyphens_apostrophes_and_accents_stay_within_words():
    assert words("Spider-Man: Amélie's Père-Noël") == ["Spider-Man", "Amélie's", "Père-Noël"]


@pytest.mark.parametrize(
    "text", ["東京タワーの新しいニュース映画", "Привет мир", "สวัสดีชาวโลก", "🎉🎉", "", "?!", "a the of"]
)
def test_any_script_is_taken_without_failing(text):
    assert all(1 <= len(word) <= 30 for word in words(text))
    PhraseStats.from_texts([text])


def test_counts_are_document_frequencies():
    stats = PhraseStats.from_texts(["red moss red moss", "red fern", "blue fern"])
    assert stats.phrase_counts["red"] == 2 and stats.phrase_counts["fern"] == 2 and stats.phrase_counts["blue"] == 1
    assert stats.idf("never seen") > stats.idf("blue") > stats.idf("RED")


def test_topics_are_split_lowered_and_kept_once():
    assert topics_of(ItemText("", "Action|Sci-Fi", "action, war_film")) == ("action", "sci-fi", "war film")
    assert topics_of(ItemText("x", "(no genres listed)")) == ()


def test_a_subcategory_glued_to_its_category_is_taken_apart():
    assert topics_of(ItemText("", "travel", "travelnews")) == ("travel", "travel news")
    assert topics_of(ItemText("", "news", "news")) == ("news",)
    assert topics_of(ItemText("", "news", "newsy")) == ("news", "newsy")


def test_a_closing_year_adds_its_decade_as_a_topic():
    assert topics_of(ItemText("Up (2009)", "Animation")) == ("animation", "2000s")


def test_topic_share_is_smoothed():
    stats = PhraseStats.from_items([ItemText("a", "news"), ItemText("b", "news"), ItemText("c", "golf")])
    assert stats.topic_share("news") > stats.topic_share("golf") > stats.topic_share("chess") > 0


def test_twenty_thousand_headlines_take_seconds():
    texts = [
        f"Mayor {i} opens the old harbour bridge number {i % 97} before winter storm season begins"
        for i in range(20_000)
    ]
    started = time.process_time()
    PhraseStats.from_texts(texts)
    assert time.process_time() - started < 10
