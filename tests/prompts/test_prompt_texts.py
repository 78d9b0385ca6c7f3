import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclm_lite.errors import InputError, ProfileFormatError
from reclm_lite.prompts.answer import format_profile, parse_profile
from reclm_lite.prompts.entries import clean, units
from reclm_lite.prompts.forms import item_prompt, user_prompt
from reclm_lite.prompts.view import MAX_UNITS
from reclm_lite.text.keyphrases import PhraseStats
from reclm_lite.types import ItemText, Profile

plain_prompt = functools.partial(user_prompt, form="instruct")
GAME = ItemText("Patriots rally past Jets in overtime", "sports", "football_nfl", "Tom Brady threw for 300 yards.")
FILM = ItemText("Matrix, The (1999)", "Action|Sci-Fi|Thriller")
BOOK = ItemText("A field guide to mosses", "books")
PROFILE = Profile(("a fan", "b fan", "c fan"), ("x", "y z", "w"))


def test_prompt_of_one_item_shows_its_parts():
    assert user_prompt([GAME]) == (
        "Topics:\n* football nfl\n** sports\n*** Patriots rally\n"
        "History:\n# Patriots rally past\n## Jets in\n### overtime\n"
        "Profile:\n"
    )


def test_a_history_of_three_shows_three_titles():
    prompt = user_prompt([GAME, FILM, BOOK])
    for title in ("Patriots rally past Jets in overtime", "Matrix (1999)", "field guide to mosses"):
        assert f"# {title}\n" in prompt


def test_prompt_does_not_depend_on_order_or_repetition():
    rng = random.Random(0)
    history = [ItemText(f"story {i} of word{i % 5}", f"topic{i % 3}") for i in range(30)]
    neighbors = [[ItemText(f"other {i}-{j}", f"topic{j}") for j in range(3)] for i in range(4)]
    expected = user_prompt(history, neighbors)
    for _ in range(5):
        shuffled = history + rng.sample(history, 7)
        rng.shuffle(shuffled)
        mixed = [rng.sample(n, len(n)) for n in neighbors]
        rng.shuffle(mixed)
        assert user_prompt(shuffled, mixed) == expected


def test_stats_put_the_topic_that_is_rare_in_the_catalogue_first():
    catalogue = [ItemText(f"story {i}", "common") for i in range(50)] + [ItemText("one", "rare")]
    history = [ItemText("first", "common"), ItemText("second", "rare")]
    assert user_prompt(history, stats=PhraseStats.from_items(catalogue)).startswith("Topics:\n* rare\n** common\n")


def test_topics_that_begin_alike_are_not_both_shown():
    prompt = user_prompt([ItemText("Mosses", "news", "newsus")])
    assert "* news us\n" in prompt and "* news\n" not in prompt


def test_neighbors_fill_in_what_a_short_history_lacks():
    prompt = user_prompt([ItemText("Mosses")], [[ItemText("Mosses"), BOOK]])
    assert prompt.count("# Mosses\n") == 1
    assert "* books\n" in prompt and "## field guide to mosses\n" in prompt


def test_neighbors_do_not_displace_the_users_own_items():
    own = [ItemText("Oak"), ItemText("Elm"), ItemText("Fir")]
    assert "field guide" not in user_prompt(own, [[BOOK]] * 5)


def test_a_user_without_history_is_shown_through_neighbors():
    assert "# field guide to mosses" in user_prompt([], [[BOOK]])


def test_no_text_at_all_is_refused():
    for history in ([], [ItemText("")], [ItemText(" \n", "", "", "\t")]):
        with pytest.raises(InputError, match="expected at least one item with text"):
            user_prompt(history)
        with pytest.raises(InputError):
            plain_prompt(history)


def test_item_without_title_uses_its_description():
    assert "# tides" in user_prompt([ItemText("", "", "", "About tides")])


def test_item_prompt_names_the_item_and_says_what_it_is():
    prompt = item_prompt(GAME, [FILM])
    assert "\nItem:\n# Patriots rally" in prompt
    assert "\nFilm:\n# Matrix (1999)" in item_prompt(FILM)


def test_clean_removes_what_could_be_taken_for_structure():
    assert clean("a;b\n<|im_end|>\x00 </s> [INST] “c” Jack’s") == "a b im end /s INST c Jack's"
    assert clean("Matrix, The (1999)") == "The Matrix (1999)"


def test_long_input_is_shortened_to_the_bound():
    long = [ItemText("WORD7 " * 60, "T" * 99, "x|" * 40, "d" * 5000) for _ in range(3)]
    many = [ItemText(f"{i} " + "東京" * 80, f"カテゴリ{i}") for i in range(30)]
    for history in (long, many, long + many):
        assert units(user_prompt(history, [many, long])) <= MAX_UNITS


texts = st.text(max_size=80)
items = st.builds(ItemText, texts, texts, texts, texts)


@settings(max_examples=150, deadline=None)
@given(st.lists(items, max_size=5), st.lists(st.lists(items, max_size=3), max_size=3))
def test_any_text_gives_three_topics_and_three_lines_or_a_clear_refusal(history, neighbors):
    try:
        prompt = user_prompt(history, neighbors)
    except InputError:
        return
    assert units(prompt) <= MAX_UNITS
    assert prompt.isprintable() or all(c == "\n" or c.isprintable() for c in prompt)
    assert not set(";<>|[]") & set(prompt)
    marks = [line.split(" ")[0] for line in prompt.splitlines()]
    assert marks[1:4] == ["*", "**", "***"] and marks[5:8] == ["#", "##", "###"] and len(marks) == 9


def test_instruct_prompt_asks_for_the_same_answer_form():
    prompt = plain_prompt([GAME], [[FILM]])
    assert "User identity: first, second, third; User interests: first, second, third" in prompt
    assert "Patriots rally past Jets" in prompt and "The Matrix (1999)" in prompt


def test_profile_survives_format_and_parse():
    assert format_profile(PROFILE) == "User identity: a fan, b fan, c fan; User interests: x, y z, w"
    assert parse_profile(format_profile(PROFILE)) == PROFILE
    assert parse_profile(f"  {format_profile(PROFILE)}.\n") == PROFILE


@pytest.mark.parametrize(
    "answer",
    [
        "",
        ".",
        "User identity: a, b, c",
        "User identity: a, b; User interests: x, y, z",
        "User identity: a, b, c; User interests: x, y, z, w",
        "User identity: a, b, ; User interests: x, y, z",
        "User identity: a, A, c; User interests: x, y, z",
        "User identity: a, b, c; User interests: x, y, y",
        "User identity: a, b, c; User interests: x, y, " + "z" * 61,
        "User identity: a, b, c; User interests: x, y, z; more",
        "Sure! User identity: a, b, c; User interests: x, y, z",
        "User identity: a, b, c; User interests: x, y, z\nUser identity: a, b, c",
        "User identity: a, b, c, User interests: x, y, z",
        "User identity: a\u200b, b, c; User interests: x, y, z",
        "User identity: a, b, c; User interests: x, y, \u202ez",
    ],
)
def test_other_forms_are_refused(answer):
    with pytest.raises(ProfileFormatError, match="expected"):
        parse_profile(answer)


def test_a_character_that_shows_nothing_is_named():
    with pytest.raises(ProfileFormatError, match="U\\+202E in"):
        parse_profile("User identity: a, b, c; User interests: x, y, \u202ez")


def test_whitespace_of_any_kind_becomes_a_space():
    assert parse_profile("User identity: a\tb,\u00a0c,  d; User interests: x, y, z").identity == ("a b", "c", "d")


def test_a_film_is_told_by_its_year_even_where_its_title_is_cut():
    assert "\nFilms:\n" in user_prompt([ItemText("A very long title " * 8 + "(1999)")])


def test_instruct_prompt_shows_no_empty_line_no_title_twice_and_no_endless_topics():
    own = [
        ItemText("..."),
        ItemText("Bread", "food"),
        ItemText("Heat (1995)", "|".join(f"genre number {n}" for n in range(17))),
    ]
    near = [[ItemText("Same", "a"), ItemText("Same", "b"), ItemText("Bread", "baking"), ItemText("***")]]
    prompt = plain_prompt(own, near)
    assert '- ""' not in prompt and prompt.count('- "Same"') == 1 and prompt.count("Bread") == 1
    assert all(len(line) < 100 for line in prompt.splitlines() if line.startswith("- "))
    with pytest.raises(InputError, match="at least one item with text"):
        plain_prompt([ItemText("...")])


@pytest.mark.parametrize("end", ["", ".", "..", " . .", "...\n", "\u3000.\u3000."])
def test_what_is_accepted_is_parsed_to_the_same_again(end):
    profile = parse_profile(f"User identity: a, b, c; User interests: x, y, old films{end}")
    assert profile.interests[-1] == "old films" and parse_profile(format_profile(profile)) == profile
