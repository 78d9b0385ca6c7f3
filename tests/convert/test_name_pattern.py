"""An adapter's patterns match as Python's `re` does, in steps that are bounded by name and states."""

import re

import pytest

from reclm_lite.convert.name_pattern import MAX_STATES, NamePattern

NAMES = ("layers.0.self_attn.q_proj", "q_proj", "xq_proj", "model.layers.11.mlp.down_proj", "", "q_proj\n", ".q_proj")


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        r"layers\.0\.self_attn\.q_proj",
        "layers.0.self_attn.q_proj",
        r".*\.(q|k)_proj",
        r"layers\.\d+\..*_proj",
        "^model.*",
        "^q_proj",
        "(q|xq)_proj",
        r"[^.]+",
        r"\w*?_proj$",
        "",
        r"layers\.(?:0|1{2})\.(?P<part>mlp|self_attn)\.\w+",
        r"\bq_proj\b",
        "a{2,3}|q_proj",
    ],
)
def test_a_pattern_matches_the_names_that_peft_matches(pattern):
    assert [NamePattern(pattern).matches(name) for name in NAMES] == [
        bool(re.match(rf"(.*\.)?({pattern})$", name)) for name in NAMES
    ]


def test_a_pattern_that_backtracking_never_ends_takes_a_step_a_character_and_state(monkeypatch):
    from reclm_lite.convert import name_pattern

    n = [0]
    monkeypatch.setattr(
        name_pattern,
        "takes",
        lambda kind, value, char, takes=name_pattern.takes: n.__setitem__(0, n[0] + 1) or takes(kind, value, char),
    )
    pattern = NamePattern(r"(a+)+b|(a|a)*c|(.*)*(.*)*d")
    assert not pattern.matches("a" * 1000) and n[0] <= 1000 * len(pattern._states)


@pytest.mark.parametrize(
    "pattern, why",
    [
        ("(?=a)", "assert"),
        (r"(a)\1", "groupref"),
        ("(?i)a", "flags|global"),
        ("(?>a)", "atomic"),
        ("a*+", "possessive"),
        ("a" * 3000, "2,000 characters"),
        ("((a{60}){60}){60}", f"{MAX_STATES:,} states"),
        ("(){5000}", "states"),
        ("(" * 900 + "a" + ")" * 900, "recursion"),
        ("a{99999999999}", "too large"),
    ],
)
def test_a_pattern_that_cannot_be_bounded_is_refused_with_a_reason(pattern, why):
    with pytest.raises(ValueError, match=why):
        NamePattern(pattern)
