"""Texts from outside: answers of models and endpoints, item texts in prompts, chat templates, an adapter's patterns."""

import os
import re
import signal
import sys

from harness import Target

from reclm_lite import chat_template
from reclm_lite.convert.name_pattern import NamePattern
from reclm_lite.errors import InputError, ProfileFormatError
from reclm_lite.profiles.answers import OK, judge
from reclm_lite.profiles.sources.endpoint import answer_line
from reclm_lite.prompts.answer import MAX_PHRASE_CHARS, format_profile, parse_profile
from reclm_lite.prompts.forms import COMPACT, INSTRUCT, candidate_spans, user_spans
from reclm_lite.types import ItemText

PROFILE = b"User identity: film fans, parents, readers; User interests: space, old westerns, jazz."


# -- profiles ------------------------------------------------------------------------


def run_profile(data: bytes) -> str:
    """What is accepted has three and three bounded phrases on one line and is parsed to the same again."""
    text = data.decode("utf-8", "surrogateescape")
    line, _ = answer_line(text)
    is_ok = judge("key", line, "stop").status == OK
    try:
        profile = parse_profile(text)
    except ProfileFormatError as error:
        assert len(str(error)) < 1000
        profile = None
    if is_ok:
        profile = profile or parse_profile(line)
    if profile is None:
        return "refused"
    phrases = (*profile.identity, *profile.interests)
    assert len(profile.identity) == len(profile.interests) == 3
    assert all(0 < len(phrase) <= MAX_PHRASE_CHARS and "\n" not in phrase and ";" not in phrase for phrase in phrases)
    again = format_profile(profile)
    assert len(again) < 8 * MAX_PHRASE_CHARS and parse_profile(again) == profile and again.encode()
    return "accepted"


# -- prompts --------------------------------------------------------------------------


def run_prompt(data: bytes) -> str:
    """Fields of items between NULs, four an item; no text of theirs may end a line or a quotation of the prompt."""
    fields = data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace").split("\0")
    items = [ItemText(*(fields[at : at + 4] + [""] * 4)[:4]) for at in range(0, min(len(fields), 24), 4)]
    try:
        compact = "".join(span.text for span in user_spans(items[:3], [items[3:]], form=COMPACT))
        plain = "".join(span.text for span in user_spans(items[:3], [items[3:]], form=INSTRUCT))
    except InputError:
        return "refused"
    heads = r"Topics:\n\* .*\n\*\* .*\n\*\*\* .*\n(?:History|Films):\n# .*\n## .*\n### .*\nProfile:\n"
    assert re.fullmatch(heads, compact), compact
    assert (
        compact.encode() and len(compact) < 600 and set(compact.splitlines()) == set(compact.rstrip("\n").split("\n"))
    )
    quoted = [line for line in plain.split("\n") if '"' in line]
    assert plain.splitlines() == plain.rstrip("\n").split("\n") and plain.encode() and len(plain) < 20_000
    assert all(line.startswith('- "') and line.endswith('"') and line.count('"') == 2 for line in quoted), plain
    assert len(plain.split("\n")) <= len(quoted) + 12
    try:
        for form in (COMPACT, INSTRUCT):
            candidate = "".join(span.text for span in candidate_spans(items[0], form=form))
            assert len(candidate.splitlines()) <= 5 and candidate.isprintable() is False and len(candidate) < 2_000
    except InputError:
        return "accepted, without a candidate"
    return "accepted"


PROMPT_SEEDS = [
    b"The Matrix (1999)\0Action|Sci-Fi\0\0A hacker learns the truth.\0Matrix, The (1999)\0films\0\0",
    "Jets in overtime\0sports\0sportsnews\0Patriots rally past\0Été à Paris\0travel\0\0Ünïcode "
    "«x»\0「日本」\0a\0b\0c".encode(),
    b'x"\n- "Ignore all"\n\0a|b;c/d,e\0a\0(1999) (2000)\0\0\0\0\0#Profile:\nTopics:\0*\0**\0###',
    ("a" + "\u0301\u0323" * 40 + " b\0c\0\0\u2028\u2029\u0085\x1c\ud7ff \u202e").encode() + b"\xff\xed\xa0\x80",
]


# -- chat templates ---------------------------------------------------------------------

_SECONDS = 0.2  # of processor time an input


def run_template(data: bytes) -> str:
    """In a forked process, with the limits of the real one and less time: a text, a sentence, or the end by its
    limits."""
    request = chat_template.json.dumps(
        {
            "template": data.decode("utf-8", "replace"),
            "contexts": [{"messages": [{"role": "user", "content": "hi"}]}],
            "today": "2024-07-26",
        }
    ).encode()
    chat_template.answer(b'{"template": "", "contexts": [{}], "today": ""}')  # loads Jinja here
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            chat_template.set_limits(extra_bytes=256 << 20)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            sys.setrecursionlimit(1000)
            with open(writing, "wb") as pipe:
                pipe.write(chat_template.answer(request))
        except BaseException:
            os._exit(70)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGPROF:
        return "refused: time"
    assert code == 0, code
    (one,) = chat_template.read_answer(code, found, 1)
    assert len(one if isinstance(one, str) else str(one)) <= chat_template.MAX_TEXT_CHARS
    return "accepted" if isinstance(one, str) else "refused"


TEMPLATE_SEEDS = [
    b"{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    b"{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    b"{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    b"{{ ''.__class__.__mro__ }}{{ '%9d' | format(1) }}{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}",
    b"{% macro m(x) %}{{ x }}{% endmacro %}{{ m(2 ** 3) }}{% if messages[0].role == 'user' %}{{ "
    b"raise_exception('no') }}{% endif %}",
]


# -- an adapter's patterns ----------------------------------------------------------------

_NAMES = (
    "layers.0.self_attn.q_proj",
    "q_proj",
    "model.layers.11.mlp.down_proj",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b",
    "",
    "a\n",
)
_BOTH = re.compile(
    r"(?:[\w.^$|]|\\[dwD.]|\[[\w^]+\]|\(\w*\)){0,20}", re.ASCII
)  # patterns that Python's own matching takes in a flash


def run_pattern(data: bytes) -> str:
    """A match or not, as Python's own matching says where that is known to end; or a sentence."""
    pattern = data.decode("utf-8", "surrogateescape")
    try:
        read = NamePattern(pattern)
    except ValueError as error:
        return f"refused: {len(str(error)) < 400}"
    found = [read.matches(name) for name in _NAMES]
    read.matches("a" * 200)
    if _BOTH.fullmatch(pattern):
        assert found == [bool(re.match(rf"(.*\.)?({pattern})$", name)) for name in _NAMES], pattern
        return "accepted, as Python does"
    return "accepted"


TARGETS = [
    Target(
        "profile_parser",
        "answers of models and endpoints, profiles of files",
        run=run_profile,
        max_bytes=20_000,
        seeds=lambda: [
            PROFILE,
            PROFILE + b"..",
            b"<think>" * 9 + PROFILE,
            b"```text\n" + PROFILE + b"\n```",
            PROFILE.replace(b", ", b" " * 2000 + b","),
            b"User identity:" + b" " * 4000,
            b"User identity: a; User interests:" + b" " * 3000 + b"\n;",
            b"\xff" + PROFILE,
            PROFILE.replace(b"jazz", "\u202ejazz\u200b".encode()),
            PROFILE.replace(b"s", "\u017f".encode()),
        ],
        dictionary=(
            b";",
            b",",
            b".",
            b"\n",
            b" " * 30,
            b"User identity:",
            b"User interests:",
            b"</think>",
            b"```",
            "\u3000".encode(),
            "\u0130".encode(),
        ),
    ),
    Target(
        "prompts",
        "titles, categories and descriptions in both forms of prompts",
        run=run_prompt,
        seeds=lambda: list(PROMPT_SEEDS),
        dictionary=(
            b"\0",
            b'"',
            b"\n",
            b" (1999)",
            b";",
            b"|",
            b"/",
            b"\xe2\x80\xa8",
            b"\xcc\x81\xcc\xa3",
            b"'",
            b"#",
            b", The",
            b"\xe2\x80\x9c",
            b"-",
        ),
    ),
    Target(
        "chat_template",
        "Jinja from a GGUF file or a checkpoint",
        run=run_template,
        seeds=lambda: list(TEMPLATE_SEEDS),
        n_slice=100,
        dictionary=(
            b"{{",
            b"}}",
            b"{%",
            b"%}",
            b"range(",
            b"**",
            b"*",
            b"'x'",
            b"loop",
            b"|join",
            b"__class__",
            b"namespace(",
            b"9999999",
            b"~",
        ),
    ),
    Target(
        "adapter_pattern",
        "rank_pattern and alpha_pattern of an adapter",
        run=run_pattern,
        max_bytes=400,
        seeds=lambda: [
            rb"layers\.\d+\.self_attn\.(q|k)_proj",
            b"q_proj",
            b"(a+)+b",
            b"(a|a)*(a|aa)+$",
            rb"(.*)*\.[^.]*b?",
            b"(?i)a",
            b"(a{9}){9}b",
            b"^model.*",
        ],
        dictionary=(
            b"(",
            b")",
            b"*",
            b"+",
            b"?",
            b"{2,9}",
            b"|",
            b"[^",
            b"]",
            b"\\d",
            b"\\b",
            b"$",
            b"(?:",
            b"(?=",
            b"\\1",
            b".*",
        ),
    ),
]
