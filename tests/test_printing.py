"""What somebody else wrote reaches no terminal as a command, reorders no line, and is no markup; nothing can be printed
past that."""

import ast
import json
import logging
import os
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from pseudo_terminal import shown_on_a_terminal

import reclm_lite
from reclm_lite.cli import main
from reclm_lite.cli._out import LogFormatter
from reclm_lite.printable import json_text, printable

PACKAGE = Path(reclm_lite.__file__).parent
# What a terminal would obey or show in another order: a title of the window, a cleared screen, C1, bidi, a faked line,
# markup.
HOSTILE = (
    "\x1b]0;owned\x07 \x1b[2J\x9b31m \x7f\x08 \u202eevil\u202c \u2066\u200f \u2028 \r [/bold][red] :smile: <img src=x>"
)
SHOWN = (
    "\\x1b]0;owned\\x07 \\x1b[2J\\x9b31m \\x7f\\x08 \\u202eevil\\u202c \\u2066\\u200f \\u2028 \\r [/bold][red] "
    ":smile: <img src=x>"
)


def unsafe(text: str) -> list[str]:
    """Characters that a terminal obeys or that reorder a line; tab and line feed are the program's own."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        char
        for char in text
        if char not in "\t\n"
        and (
            unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(char) in bidi
            or char in "\u200e\u200f\u061c"
        )
    ]


# -- the function ------------------------------------------------------------------


def test_every_character_that_a_terminal_obeys_is_shown_and_no_other_is_changed():
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        shown = printable(char)
        assert not unsafe(shown) and printable(shown) == shown, hex(code)
        assert (
            (shown == char) or unsafe(char) or char in "\t\n\ufff9\ufffa\ufffb\u206a\u206b\u206c\u206d\u206e\u206f"
        ), hex(code)
    assert printable(HOSTILE) == SHOWN


@pytest.mark.parametrize(
    "text",
    [
        "ü e\u0301 ñ",
        "👩‍👩‍👧 🏴\U000e0067\U000e0062\U000e007f ❤️",
        "می\u200cخواهم",
        "日本語",
        "a\u00a0b",
        "C:\\x1b",
        "'\"[]",
    ],
)
def test_writing_of_every_script_stays_as_it_is(text):
    assert printable(text) == text


def test_line_breaks_stay_only_where_lines_are_meant():
    assert printable("a\tb\nc\r") == "a\\tb\\nc\\r" and printable("a\tb\nc\r", lines=True) == "a\tb\nc\\r"


def test_json_says_exactly_what_it_was_given_in_characters_that_are_safe():
    everything = "".join(map(chr, range(0x3000))) + "\ud800x\udfff 😀 日本"
    for indent in (None, 2):
        text = json_text({everything: [everything, 1.5]}, indent=indent)
        assert json.loads(text) == {everything: [everything, 1.5]} and not unsafe(text)
    assert json_text("日本 ü 😀 [/bold]") == '"日本 ü 😀 [/bold]"'
    with pytest.raises(ValueError):
        json_text(float("nan"))


# -- nothing goes another way --------------------------------------------------------

# Children of the benchmark print one JSON document (in ASCII), which their parent reads.
CHILDREN = {"bench/harness.py", "bench/tuning/trl_peer.py"}
# So do those in which a foreign chat template is rendered and a foreign model tried.
CHILDREN |= {"chat_template.py", "probe_child.py"}
WAY_OUT = "cli/_out.py"
FORBIDDEN = re.compile(
    r"print|(click\.)?(echo|secho|style|confirm|prompt|echo_via_pager|progressbar|get_(text|binary)_stream)|.*\.?(Console|basicConfig)|"
    r"rich\.print|sys\.(stdout|stderr|__stdout__|__stderr__)\..*|os\.write|.*\bescape_markup|pprint(\.\w+)?"
)


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def test_no_file_prints_but_the_one_that_makes_text_printable():
    found = []
    for path in sources():
        name = path.relative_to(PACKAGE).as_posix()
        if name == WAY_OUT or name in CHILDREN:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level and node.module in ("_out", "_options", "cli._out")
            for alias in node.names
        }
        for node in ast.walk(tree):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called and FORBIDDEN.fullmatch(called) and called not in ours:
                found.append(f"{name}:{node.lineno}: {called}(…)")
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "rich":
                found += [
                    f"{name}:{node.lineno}: rich's {alias.name}"
                    for alias in node.names
                    if alias.name in ("Console", "escape", "print", "Live", "Progress")
                ]
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not found, "to be printed by cli/_out.py:\n" + "\n".join(found)


# -- a workspace of somebody who means harm ------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a workspace `ws …` all of whose names are hostile, and with files to import."""
    folder = tmp_path_factory.mktemp("printing")
    ids = [f"u{n}{HOSTILE}" for n in range(5)]
    items = [f"i{n}{HOSTILE}" for n in range(6)]
    rows = [
        {
            "user": ids[user],
            "item": items[(user + turn) % 6],
            "when": 1_700_000_000 + turn,
            "title": f"Title{(user + turn) % 6} of soup and bread {HOSTILE}",
            "kind": f"news {HOSTILE}",
            "text": f"A longer text. {HOSTILE}",
        }
        for user in range(5)
        for turn in range(4)
    ]
    source = folder / "log \x1b[2J\u202e.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    profile = "User identity: cook, baker, parent; User interests: soup, bread, squash"
    rows = [{"side": "user", "id": ident, "profile": profile, "source": HOSTILE} for ident in ids[:2]]
    (folder / "profiles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bad.jsonl").write_text(
        json.dumps({"side": HOSTILE, "id": HOSTILE, "profile": HOSTILE}) + "\n" + HOSTILE + "\n",
        encoding="utf-8",
        newline="",
    )
    (folder / "bad.csv").write_text(f"{HOSTILE},id\n1,2\n", encoding="utf-8", newline="")
    return folder


def ws_of(place: Path) -> Path:
    return place / "ws \x1b[2J\u202e\x9b"


def commands(place: Path) -> list[list[object]]:
    """In their order; between them every verb that prints something of a workspace, and the errors that quote what was
    given."""
    w, source = ["-w", ws_of(place)], place / "log \x1b[2J\u202e.jsonl"
    user, item = f"u0{HOSTILE}", f"i0{HOSTILE}"
    columns = [
        "--user",
        "user",
        "--item",
        "item",
        "--time",
        "when",
        "--title",
        "title",
        "--category",
        "kind",
        "--description",
        "text",
    ]
    return [
        ["init", ws_of(place)],
        ["init", ws_of(place)],
        ["import", "table", source, *w, *columns, "--name", HOSTILE],
        ["import", "table", source, *w],
        ["info", *w],
        ["info", *w, "--json"],
        ["-v", "info"],
        ["recommend", *w, "--user", user],
        ["split", *w, "--method", "leave-last"],
        ["embed", "items", *w],
        ["fit", "popularity", *w],
        ["fit", "lightgcn", *w, "--epochs", "1", "--dim", "4"],
        ["neighbors", *w],
        ["profile", "users", *w, "--model", "rules", "--limit", "2"],
        ["profile", "items", *w, "--model", "rules"],
        ["profile", "import", place / "profiles.jsonl", *w],
        ["profile", "import", place / "profiles.jsonl", *w, "--overwrite", "--json"],
        ["profile", "show", *w, "--user", user],
        ["profile", "show", *w, "--user", user, "--json"],
        ["profile", "show", *w, "--item", item],
        ["profile", "edit", *w, "--item", item, "User identity: a, b, c; User interests: x, y, z"],
        ["profile", "edit", *w, "--user", user, HOSTILE],
        ["profile", "export", *w],
        ["profile", "export", *w, "-o", place / "out \x1b[2J.csv"],
        ["embed", "profiles", *w],
        ["fit", "lightgcn", *w, "--profiles", "users", "--epochs", "1", "--dim", "4"],
        ["dialogue", "build", "sft", *w, "--limit", "3"],
        ["dialogue", "build", "preference", *w, "--limit", "3", "--json"],
        ["dialogue", "build", "rl", *w, "--limit", "3"],
        *(["dialogue", "show", *w, "--kind", kind] for kind in ("sft", "preference", "rl")),
        ["evaluate", *w],
        ["evaluate", *w, "--json"],
        ["info", *w],
        ["info", *w, "--json"],
        ["report", *w, "-o", place / "page \x1b[2J.html"],
        *(
            ["recommend", *w, *what, *form]
            for what in (["--user", user], ["--history", item], ["--text", "soup and bread"])
            for form in ([], ["--json"])
        ),
        ["forget", user, *w, "--dry-run"],
        ["forget", user, *w, "--dry-run", "--json"],
        ["forget", user, *w, "--yes"],
        # errors
        ["profile", "import", place / "bad.jsonl", *w],
        ["profile", "import", place / "bad.jsonl", *w, "--side", "users"],
        ["profile", "import", place / "bad.csv", *w],
        *(["profile", "show", *w, f"--{side}", HOSTILE] for side in ("user", "item")),
        ["profile", "users", *w, "--model", HOSTILE],
        ["profile", "users", *w, "--deadline", HOSTILE],
        ["profile", "users", *w, "--model", "m", "--endpoint", HOSTILE],
        ["recommend", *w, "--user", HOSTILE],
        ["recommend", *w, "--user", user, "--model", HOSTILE],
        ["recommend", *w, "--history", HOSTILE],
        ["recommend", *w, "--text", HOSTILE],
        ["fit", "lightgcn", *w, "--set", HOSTILE],
        ["fit", HOSTILE, *w],
        ["forget", HOSTILE, *w, "--yes"],
        ["split", *w, "--method", HOSTILE],
        ["split", *w, "--seed", HOSTILE],
        ["embed", "items", *w, "--encoder", place / HOSTILE.replace("/", "")],
        ["dialogue", "build", "preference", *w, "--corruptions", HOSTILE],
        ["dialogue", "show", *w, "--file", place / "bad.jsonl"],
        ["dialogue", "build", "sft", *w, "--targets", place / "bad.jsonl"],
        ["dialogue", "build", "sft", *w, "--tokenizer", place / "page \x1b[2J.html"],
        ["export", "--base", place / "ws \x1b[2J", "-o", place / "gguf", "--quant", HOSTILE],
        ["bench", "quant", *w, "--model", place / "bad.csv", "--types", HOSTILE],
        ["import", "table", place / "bad.csv", *w, "--user", HOSTILE, "--item", "id", "--replace"],
        ["import", "table", place / HOSTILE.replace("/", ""), *w, "--replace"],
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["info", f"--{HOSTILE}"],
        ["info", *w, HOSTILE],
        ["info", "-w", HOSTILE],
        ["tune", "sft", "-w", HOSTILE, "--base", HOSTILE],
        ["info", "-w", place / "\udcff\x1b[2J"],
        ["recommend", *w, "--user", "\udcff\x1b[2J"],
        ["fit", "lightgcn", *w, "--epochs", "1", "--debug", "--set", HOSTILE],
    ]


def test_no_command_prints_a_control_character_of_others(place, caplog):
    caplog.set_level(logging.INFO)
    n_shown = 0
    for arguments in commands(place):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert not unsafe(result.output), f"{arguments[:4]}: {result.output!r}"
        assert result.exit_code in (0, 1, 2) and "Error: unexpected" not in result.output, (
            f"{arguments[:4]}: {result.output!r}"
        )
        n_shown += "\\x1b" in result.output
        if "--json" in arguments and result.exit_code == 0:
            json.loads(result.stdout)
    assert n_shown > 40, "the hostile texts did not get that far"
    page = (place / "page \x1b[2J.html").read_text(encoding="utf-8")
    assert "<img" not in page and "&lt;img src=x&gt;" in page


@pytest.fixture(scope="module")
def served(place) -> Path:
    """The workspace with everything in it; `forget` deletes dialogues."""
    steps = [] if ws_of(place).exists() else commands(place)[:31]
    for arguments in [*steps, ["dialogue", "build", "sft", "-w", ws_of(place), "--limit", "3"]]:
        CliRunner().invoke(main, [str(argument) for argument in arguments])
    return place


@pytest.mark.parametrize(
    "verb",
    ["info", "recommend", "profile show", "profile export", "evaluate", "dialogue show", "error", "debug", "log"],
)
def test_a_terminal_gets_no_command_but_those_of_colours_and_bars(served, verb):
    w, user = ["-w", str(ws_of(served))], f"u1{HOSTILE}"
    more = {"recommend": ["--user", user], "profile show": ["--user", user], "profile export": ["--format", "csv"]}
    arguments = [*verb.split(), *w, *more.get(verb, [])]
    if verb in ("error", "debug"):
        arguments = ["recommend", *w, "--user", HOSTILE, *(["--debug"] if verb == "debug" else [])]
    code = (
        f"from reclm_lite.cli import main; main({arguments!r}, standalone_mode=True)"
        if verb != "log"
        else f"""
import logging, click, sys
from reclm_lite.cli._options import common, progress_bar
@click.command()
@common
def one():
    logging.getLogger("reclm_lite.x").warning("of %s", {HOSTILE!r})
    with progress_bar({HOSTILE!r}) as update:
        update(1, 2, {HOSTILE!r})
one([])
"""
    )
    code = f"import os\ntry:\n    exec({code!r})\nexcept SystemExit: pass\n"
    raw = shown_on_a_terminal(code, n_columns=300)  # without the control sequences that colours and bars are made of
    assert not unsafe(raw.replace("\r", "")), raw
    if verb != "evaluate":
        assert "\\x1b" in raw and "owned" in raw
    if verb in ("recommend", "info", "log"):
        assert "[/bold][red]" in raw and ":smile:" in raw


def test_logs_are_one_line_each_and_printable():
    record = logging.LogRecord("reclm_lite.x", logging.WARNING, "f", 1, "of %s\nNext: rm", (HOSTILE,), None)
    assert LogFormatter().format(record) == f"WARNING: of {SHOWN}\\nNext: rm"


def test_a_closed_or_full_stdout_ends_with_a_sentence_or_in_silence(served):
    import subprocess

    code = f"from reclm_lite.cli import main; main(['info', '-w', {str(ws_of(served))!r}, '--json'])"
    for closing in (">&-", ">/dev/full", "| true"):
        run = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {closing}', sys.executable, code],
            capture_output=True,
            text=True,
            env={**os.environ},
        )
        assert "Traceback" not in run.stderr and "unexpected" not in run.stderr, run.stderr
