"""No text from outside takes more than linear time, however it is made.

Patterns are counted, not timed: `pattern_steps` walks Python's own syntax tree of each pattern as backtracking does and
counts. For texts made against the pattern, twice the length may cost 2.7 times the steps at most (a quadratic pattern
costs 4 times as many, and a constant share is lost at the ends). That is the same on every machine; the counter knows
fewer shortcuts than `re`, so it is never too kind. What is made of several patterns and loops gets a megabyte in a
process with a limit of processor time
and memory, which no machine comes near: there a hang is a failure and not a hang.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from pattern_steps import Steps, TooMany, patterns_of, texts_against

import reclm_lite

# Patterns that are made when the program runs -> why a text cannot make them slow.
MADE = {
    "convert/vocab/differences.py": "one of fixed texts, escaped, against texts of the package's own",
    "data/importers/sentences.py": "the name of a temporary folder, escaped, then a fixed text and digits",
    "convert/name_pattern.py": "compiled where the pattern has a fixed length and neither branches nor repetitions",
}
PATTERNS = list(patterns_of(Path(reclm_lite.__file__).parent, "reclm_lite"))
LENGTH = 128
CHEAP = 12  # steps a character that need no second look
MOST = 300_000
GROWTH = 2.7


def worst_growth(pattern, mode):
    """(growth of steps from LENGTH to twice the length, text) of the worst text that costs more than CHEAP steps a
    character; of the first one that grows too much."""
    worst = (0.0, "")
    for text, longer in zip(texts_against(pattern, LENGTH), texts_against(pattern, 2 * LENGTH), strict=True):
        try:
            n = Steps(pattern, text, MOST).count(mode)
            if n > CHEAP * len(text):
                worst = max(worst, (Steps(pattern, longer, MOST).count(mode) / n * 2 * len(text) / len(longer), text))
        except TooMany:
            return float("inf"), text
        if worst[0] > GROWTH:
            break
    return worst


def test_every_pattern_is_found():
    assert len(PATTERNS) > 25 and {"match", "fullmatch", "search", "sub", "findall"} <= {
        mode for _, _, mode in PATTERNS
    }
    assert {where.split(":")[0] for where, pattern, _ in PATTERNS if pattern is None} <= MADE.keys()


@pytest.mark.parametrize(
    "where, pattern, mode", [one for one in PATTERNS if one[1] is not None], ids=lambda value: str(value)[:40]
)
def test_twice_the_text_costs_a_pattern_twice_the_steps(where, pattern, mode):
    growth, text = worst_growth(pattern, mode)
    assert growth <= GROWTH, (
        f"{where}: {pattern.pattern!r} takes {growth:.1f} times the steps for twice of {text[:60]!r}"
    )


@pytest.mark.parametrize(
    "pattern, mode",
    [
        (r"\s*\(([0-9]{4})\)\s*$", "search"),
        (r"\s+$", "sub"),
        (r"(a+)+b", "match"),
        (r"(a|a)*b", "fullmatch"),
        (r"a.*?b.*?c", "search"),
        (r"User identity: *([^;\n]*); *User interests: *([^;\n]*?)\.?", "fullmatch"),
        (r"([\w ]*?) buffer size = *([\d.]+) MiB", "search"),
        (r"""["']?[^\s"']*source-\d+[^\s"',]*["']?""", "sub"),
        (r"[Dd]isk.*full", "search"),
        (r"[\d.]+[smhd]", "findall"),
        (r"(.*\.)?(.*a.*b)$", "match"),
    ],
)
def test_a_pattern_that_is_not_linear_is_seen(pattern, mode):
    import re

    assert worst_growth(re.compile(pattern), mode)[0] > GROWTH


HELPERS = str(Path(__file__).parents[1] / "helpers")
LONG_TEXTS = """
import re, resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pattern_steps import patterns_of, texts_against
import reclm_lite
from reclm_lite.prompts.answer import MAX_ANSWER_CHARS, parse_profile
from reclm_lite.prompts.entries import clean, cut, film_name, leading_phrase, title_key, units
from reclm_lite.prompts.forms import candidate_spans, person_spans, user_prompt
from reclm_lite.errors import InputError, ProfileFormatError
from reclm_lite.profiles.answers import judge
from reclm_lite.profiles.answer_grammar import may_begin, may_end
from reclm_lite.profiles.exchange import _is_time
from reclm_lite.profiles.eta import parse_duration
from reclm_lite.profiles.sources.endpoint import answer_line
from reclm_lite.serve.reasons import quoted, words_of
from reclm_lite.text.keyphrases import PhraseStats, closing_year, topics_of
from reclm_lite.types import ItemText

N = 1 << 18
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]), int(sys.argv[2])))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30),) * 2)

def try_(call, *arguments):
    try:
        return call(*arguments)
    except (InputError, ProfileFormatError) as error:
        assert len(str(error)) < 2000, call

units_ = [" ", ";", ",", ", ", "User identity:", "User identity: a; User interests:", "(", "(1999) ", "1", "a", "a ",
          "\\u0301\\u0323", "e\\u0301\\u0323",
          "x|", "<think>", "</think>", "```\\n", "\\n", "'", "\\u4e2d", "The, ", "a_b "]
if sys.argv[3] == "patterns":
    for where, pattern, mode in patterns_of(Path(reclm_lite.__file__).parent, "reclm_lite"):
        if pattern is not None:
            own = pattern.pattern.decode() if isinstance(pattern.pattern, bytes) else pattern.pattern
            for unit in (" ", "a", "1", own):
                text = (unit * N)[:N] + "\\x01"
                text = text.encode("latin-1", "ignore") if isinstance(pattern.pattern, bytes) else text
                arguments = (b"" if isinstance(text, bytes) else "", text) if mode.startswith("sub") else (text,)
                found = getattr(pattern, mode)(*arguments)
                if mode == "finditer":
                    sum(1 for _ in found)
else:
    for unit in units_:
        for head in ("", "User identity:", "Matrix "):
            text = head + unit * (N // len(unit))
            calls = [parse_profile, answer_line]
            if not head or unit == " ":
                calls += [may_begin, may_end, parse_duration, clean, film_name, title_key_of, units, leading_phrase]
                calls += [quoted, words_of, closing_year, _is_time]
            for call in calls:
                try_(call, text)
        assert len(judge("k", answer_line(text)[0], "stop").raw) <= MAX_ANSWER_CHARS
        text = unit * (N // len(unit))
        assert len(cut(text, 70)) <= 70
        items = [ItemText(text, text, text, text), ItemText("", "", "", text), ItemText("a", text, "b", text)]
        items.append(ItemText("The Matrix (1999)", "films"))
        stats = PhraseStats.from_items(items)
        for form in ("compact", "instruct"):
            made = try_(lambda: user_prompt(items[:3], [items[1:]], form=form))
            assert made is None or len(made) < 10_000
        try_(lambda: candidate_spans(items[0], form="compact")), try_(lambda: person_spans(items, form="instruct"))
        user_prompt(items, [items], stats=stats)
"""
LONG_TEXTS = LONG_TEXTS.replace("title_key_of", "lambda text: title_key(ItemText(text))")


@pytest.mark.parametrize("what, seconds", [("patterns", 40), ("functions", 60)])
def test_a_quarter_of_a_megabyte_of_hostile_text_is_worked_through(what, seconds):
    """Of CPU time, an order of magnitude less than what takes time by the square of the length."""
    run = subprocess.run(
        [sys.executable, "-c", LONG_TEXTS, HELPERS, str(seconds), what], capture_output=True, text=True
    )
    assert run.returncode == 0, f"exit code {run.returncode} : {run.stderr[-3000:]}"


def test_a_text_within_the_bounds_stays_as_it_is_and_a_long_one_keeps_its_words():
    from reclm_lite.text.bounds import MAX_FIELD_CHARS, MAX_MARKS, bounded, few_marks

    long = "a  b " * (MAX_FIELD_CHARS // 5)
    assert bounded(long) is long and bounded(" " * 900_000 + "The Matrix (1999)") == "The Matrix (1999)"
    assert len(bounded("a b " * 900_000)) == MAX_FIELD_CHARS
    marks = "e" + "\u0301\u0323" * (MAX_MARKS // 2)
    assert few_marks(marks) is marks and few_marks(marks + "\u0301" * 1000 + "x") == marks + "x"
