import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclm_lite.errors import InputError
from reclm_lite.profiles.sources.rules import RuleTeacher, identity_of
from reclm_lite.prompts.answer import format_profile, parse_profile
from reclm_lite.text.keyphrases import PhraseStats
from reclm_lite.types import ItemText

CATALOGUE = [ItemText(f"Common news about weather {i}", "news") for i in range(40)] + [
    ItemText("Patriots rally past Jets in overtime", "sports", "football_nfl"),
    ItemText("Jets trade veteran quarterback", "sports", "football_nfl"),
]
TEACHER = RuleTeacher(PhraseStats.from_items(CATALOGUE))


def test_interests_are_the_leading_phrases_of_the_users_items():
    profile = TEACHER.profile(CATALOGUE[-2:])
    assert set(profile.interests[:2]) == {"Patriots rally", "Jets trade veteran"}
    assert profile.identity[:2] == ("football nfl follower", "sports follower")


def test_a_topic_rare_in_the_catalogue_comes_first():
    history = [ItemText("weather again", "news"), ItemText("Jets win", "sports")]
    assert TEACHER.profile(history).identity[0] == "sports follower"


def test_rare_words_come_before_common_ones_in_a_single_item():
    profile = TEACHER.profile([ItemText("Mayor: common news or weather, zebra finches")])
    assert profile.interests[:2] == ("Mayor", "zebra finches")


def test_neighbors_fill_in_when_the_history_is_short():
    profile = TEACHER.profile([ItemText("Mosses")], [[ItemText("Lichens"), ItemText("Ferns")]])
    assert profile.interests == ("Mosses", "Ferns", "Lichens")


@pytest.mark.parametrize(
    ("topic", "film", "identity"),
    [
        ("war", True, "war film fan"),
        ("football nfl", False, "football nfl follower"),
        ("food", False, "food enthusiast"),
        ("mosses", False, "mosses fan"),
    ],
)
def test_identity_names_the_kind_of_person(topic, film, identity):
    assert identity_of(topic, film=film) == identity


def test_films_are_told_by_their_year():
    profile = TEACHER.profile([ItemText("Thin Red Line, The (1998)", "War|Drama|Action")])
    assert all(identity.endswith("film fan") for identity in profile.identity)
    assert profile.interests[0] == "Thin Red Line"


@pytest.mark.parametrize(
    "title", ["Up", "It", "The", "1917", "300 (2006)", "é", "東京", "Up (2009)", "a;b", "what's up"]
)
def test_one_short_title_still_gives_three_and_three(title):
    profile = TEACHER.profile([ItemText(title)])
    assert parse_profile(format_profile(profile)) == profile


def test_no_words_at_all_is_refused():
    for title in ("", "?!", "…"):
        with pytest.raises(InputError, match="expected"):
            TEACHER.profile([ItemText(title)])


def test_item_profile_has_the_same_form():
    profile = TEACHER.item_profile(CATALOGUE[-1], CATALOGUE[-2:-1])
    assert parse_profile(format_profile(profile)) == profile


words = st.text(max_size=60)
items = st.builds(ItemText, words, words, words, words)


@settings(max_examples=200, deadline=None)
@given(st.lists(items, min_size=1, max_size=5), st.lists(st.lists(items, max_size=3), max_size=3))
def test_any_text_gives_a_profile_of_the_published_form_or_a_refusal(history, neighbors):
    try:
        profile = TEACHER.profile(history, neighbors)
    except InputError:
        return
    assert parse_profile(format_profile(profile)) == profile
