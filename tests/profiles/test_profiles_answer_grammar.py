"""Constrained decoding enforces the answer format, and does not change answers that already have it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_workspace import make_workspace, profile
from tiny_llama import write_tiny_llama

from reclm_lite.errors import ProfileFormatError
from reclm_lite.profiles.answer_grammar import HEAD, MAX_WORDS, MIDDLE, START, may_begin, may_end
from reclm_lite.profiles.scheduler import Engine, Sampling
from reclm_lite.prompts.answer import format_profile, parse_profile
from reclm_lite.types import Profile

WHOLE = "User identity: golf fan, cook, reader; User interests: Tiger Woods, sour bread, Dune"
PHRASES = st.lists(
    st.text("abcdefghij é", min_size=1, max_size=20), min_size=6, max_size=6, unique_by=lambda p: " ".join(p.split())
)


def test_every_beginning_of_a_profile_may_begin_it():
    assert all(may_begin(WHOLE[:n]) for n in range(len(WHOLE) + 1))
    assert [n for n in range(len(WHOLE) + 1) if may_end(WHOLE[:n])][0] == WHOLE.index("Dune") + 1 and may_end(WHOLE)


@settings(deadline=None)  # the machine may be busy
@given(PHRASES)
def test_what_may_end_parses_and_what_parses_was_allowed(phrases):
    text = format_profile(Profile(tuple(phrases[:3]), tuple(phrases[3:])))
    try:
        parse_profile(text)
    except ProfileFormatError:
        assert not may_end(text)
    else:
        if all(len(phrase.split()) <= MAX_WORDS for phrase in phrases):
            assert may_end(text) and all(may_begin(text[:n]) for n in range(len(text) + 1))


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is",
        "User interests:",
        "User identity: golf fan, golf fan,",
        "User identity: golf fan, Golf  Fan;",
        "User identity: a, b;",
        "User identity: a, b, c, ",
        "User identity: a, , b",
        "User identity: a, b, c; Interests",
        "User identity: a, b, c; User interests: x, y, z, ",
        "User identity: a, b, c; User interests: x; ",
        "User identity: " + "long" * 20,
        "User identity: one two three four five six seven",
    ],
)
def test_what_no_profile_begins_with_is_refused(text):
    assert not may_begin(text)


def test_repeated_last_phrase_may_not_end_but_may_go_on():
    text = "User identity: a, b, c; User interests: x, y, x"
    assert not may_end(text) and may_begin(text) and may_begin(text + " ray")


def test_a_full_stop_behind_the_last_phrase_does_not_make_it_another():
    head = "User identity: a, b, c; User interests: x, y, "
    for last in ("x.", "x .", "X. ", "."):
        assert may_begin(head + last) and not may_end(head + last), last
        with pytest.raises(ProfileFormatError):
            parse_profile(head + last)
    for last in ("z.", "z. "):
        assert may_end(head + last) and parse_profile(head + last).interests[2] == "z"


@pytest.mark.parametrize("char", "\u202e\u2066\u200e\u200b\u2060\u00ad\ufeff\x07\x1b\x7f\x9b\ue000\U000e0041")
def test_characters_that_show_nothing_are_refused(char):
    assert not may_begin(f"User identity: a{char}")
    with pytest.raises(ProfileFormatError, match=f"U\\+{ord(char):04X} "):
        parse_profile(f"User identity: a, b, c; User interests: x, y{char}y, z")


PERSIAN = "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"


@pytest.mark.parametrize("phrase", [PERSIAN, "\U0001f469\u200d\U0001f373 cook", "a\u00a0b", "\u6771\u4eac"])
def test_characters_that_scripts_need_may_stand(phrase):
    text = f"User identity: a, b, c; User interests: x, y, {phrase}"
    assert may_end(text) and parse_profile(text).interests[2] == " ".join(phrase.split())


def test_fixed_words_are_named_where_nothing_else_can_come():
    def forced(text: str) -> str:
        return START.after(text).forced

    assert forced("") == HEAD and forced("User iden") == "tity:"
    assert forced("User identity: a, b, c;") == MIDDLE and forced("User identity: a, b, c; User") == " interests:"
    assert forced("User identity: a") == "" == forced(WHOLE)


IDS = [
    "N55528",
    "N5552",
    "u1374",
    "id:N5552",
    "user-1042",
    "U13740",
    "B000FQ9QVI",
    "user-10423",
    "8f14e45f-ceea-467f",
    "1234567",
]
FIGURES = [
    "1990s",
    "1990's",
    "covid-19",
    "2019-2020",
    "mp3",
    "Boeing 747",
    "10000 BC",
    "Windows 2000",
    "Area 51",
    "B2B",
]


@pytest.mark.parametrize("word", IDS)
def test_words_that_look_like_ids_are_refused_while_they_are_written(word):
    assert not may_begin(f"User identity: fan of {word}")
    assert not may_end(f"User identity: a, b, {word}; User interests: x, y, z")


@pytest.mark.parametrize("word", FIGURES)
def test_words_with_figures_are_no_ids(word):
    assert may_end(f"User identity: a, b, {word}; User interests: x, y, z")


@pytest.mark.parametrize(
    "sampling", [Sampling(guided=True), Sampling(0.9, 40, 2, guided=True)], ids=["greedy", "drawn"]
)
def test_even_a_model_of_noise_writes_the_form(tmp_path, sampling):
    path = write_tiny_llama(tmp_path / "noise.gguf", seed=3, n_ctx=512)
    prompts = [f"number {n}" for n in range(6)]
    with Engine(path, 1, 4) as engine:
        texts = [r.text for r in engine.generate(prompts, max_new_tokens=480, sampling=sampling)]
        free = [r.text for r in engine.generate(prompts, max_new_tokens=40, sampling=Sampling(0.9, 40, 2))]
    # Noise may paint itself into a corner (a phrase full to the last character, and no token that closes it).
    assert sum(map(may_end, texts)) >= 4
    assert not any(may_begin(text) for text in free if text)


def test_guided_and_free_answers_are_kept_apart(tmp_path):
    path = write_tiny_llama(tmp_path / "noise.gguf", seed=3)
    with make_workspace(tmp_path / "ws", {0: [0, 1], 1: [2, 3]}) as ws:
        free = profile(ws, "users", model=path, guided=False, n_retries=0)
        guided = profile(ws, "users", model=path, n_retries=0)
        assert free.n_ok == 0 and guided.n_generated == 2 and guided.n_from_cache == 0
