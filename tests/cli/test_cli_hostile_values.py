"""Whatever stands on the command line: an answer, a sentence or a usage error, never an `unexpected …`, never a wait
for ever.

Every option and argument of every verb gets values that its type does not expect, on a small workspace. Left out by
name is what runs for long with values that are fine, see TOO_LONG.
"""

import os
import resource
import signal
import stat
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import ITEMS, reclm, verbs

from reclm_lite.cli import main
from reclm_lite.threads import most_threads

SECONDS = 60  # a command that takes longer waits for something
MORE_BYTES = 4 << 30  # of address space: what wants more reads something without an end

# verb -> why it is not run here
TOO_LONG = {
    "quickstart": "fits and profiles the demo, minutes",
    "bench kernels": "times kernels",
    "bench fit": "fits every model",
    "bench export": "writes gigabytes",
    "bench profile": "asks models",
    "bench tune": "tunes a model",
}
INTEGERS = ("-1", "0", "7", str(2**63), str(2**70), str(10**30), "1e3", "nan", "", " ", "0x10", "9" * 5000, "\u0663")
FLOATS = ("nan", "inf", "-inf", "1e400", "-1", "0", "-0.0", "1e-320", "1e308", "", "1e3", "9" * 5000, "0.5")
TEXTS = (
    "",
    " ",
    "\x1b[2J",
    "a\udcffb",
    "\ud800",
    "\u202eabc",
    "[/bold]",
    "a\x00b",
    "=",
    "a=",
    "=b",
    "dim=1e999",
    "x" * 100_000,
    "-",
    "../..",
    "http://[",
    "http://127.0.0.1:99999999",
    "%s%n{0}",
    "1" * 400,
    "\n",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a workspace that has a model and profiles, and with things that are no files to read."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        f"u{user},{ITEMS[(user + turn) % 6][0]},2024-01-{10 + turn},{ITEMS[(user + turn) % 6][1]}"
        for user in range(7)
        for turn in range(4)
    ]
    (folder / "log.csv").write_text("user,item,when,title\n" + "\n".join(rows) + "\n", encoding="utf-8")
    ws = folder / "ws"
    reclm("init", ws)
    reclm("import", "table", folder / "log.csv", "-w", ws, "--time", "when", "--title", "title")
    reclm("split", "-w", ws, "--method", "leave-last")
    reclm("embed", "items", "-w", ws)
    for model in ("popularity", "itemknn"):
        reclm("fit", model, "-w", ws)
    reclm("fit", "lightgcn", "-w", ws, "--epochs", 1, "--dim", 4)
    reclm("neighbors", "-w", ws)
    reclm("profile", "users", "-w", ws, "--model", "rules")
    reclm("dialogue", "build", "sft", "-w", ws, "--limit", 2)
    reclm("profile", "export", "-w", ws, "-o", folder / "profiles.jsonl")
    os.mkfifo(folder / "fifo")
    for name, minor in DEVICES.items():
        try:
            os.mknod(folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        except PermissionError:  # only root may
            pass
    (folder / "folder").mkdir()
    (folder / "empty").write_bytes(b"")
    (folder / "noise").write_bytes(bytes(range(256)))
    (folder / "closed").write_bytes(b"closed")
    (folder / "closed").chmod(0)
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / os.fsdecode(b"caf\xe9 \x1b[2J.csv")).write_bytes(b"user,item\n1,2\n")
    return folder


DEVICES = {"null": 3, "zero": 5, "full": 7}


def paths(place: Path) -> tuple[str, ...]:
    # Devices are made here: a fault must not cost the machine its own.
    files = (
        "fifo",
        *DEVICES,
        "folder",
        "empty",
        "noise",
        "closed",
        "dangling",
        "loop",
        "empty/under",
        "nowhere/under",
        os.fsdecode(b"caf\xe9 \x1b[2J.csv"),
    )
    return ("", ".", "-", "x" * 5000, "\x00", "a\x00b", "\ud800", *(str(place / name) for name in files))


def fine(place: Path) -> dict[str, list[str]]:
    """verb -> arguments that it takes, without what its options add."""
    w = ["-w", str(place / "ws")]
    return {
        "init": [str(place / "new")],
        "import": ["table", str(place / "log.csv"), "--title", "title", *w, "--update"],
        "split": [*w, "--method", "leave-last"],
        "info": w,
        "embed": ["items", *w],
        "fit": ["popularity", *w],
        "neighbors": w,
        "profile users": [*w, "--model", "rules"],
        "profile items": [*w, "--model", "rules"],
        "profile export": w,
        "profile import": [str(place / "profiles.jsonl"), *w],
        "profile show": [*w, "--user", "u1"],
        "profile edit": [*w, "--user", "u1", "User identity: a, b, c; User interests: x, y, z"],
        "dialogue build": ["sft", *w, "--limit", "2"],
        "dialogue show": w,
        "tune sft": [*w, "--base", str(place / "folder"), "-o", str(place / "tuned")],
        "tune reward": [*w, "--base", str(place / "folder"), "-o", str(place / "tuned")],
        "tune ppo": [*w, "--base", str(place / "folder"), "-o", str(place / "tuned")],
        "evaluate": w,
        "recommend": [*w, "--user", "u1"],
        "forget": ["u1", *w, "--dry-run"],
        "report": [*w, "-o", str(place / "report.html")],
        "export": ["--base", str(place / "folder"), "-o", str(place / "out"), "--parity", "off", "--imatrix", "none"],
        "bench quant": [*w, "--model", str(place / "noise"), "--out", str(place / "quant")],
    }


def values(kind: click.ParamType, place: Path) -> tuple[str, ...]:
    if isinstance(kind, click.Path):
        return paths(place)
    if isinstance(kind, click.types.IntParamType):
        return INTEGERS
    if isinstance(kind, click.types.FloatParamType):
        return FLOATS
    return ("", "\x1b[2J", "\ud800") if isinstance(kind, click.Choice) else TEXTS


def told(arguments: list[str]) -> str:
    """What a command says; fails where it takes too long, ends in another way than the three, or calls an error
    unexpected."""

    def too_long(*_):
        raise TimeoutError(f"{SECONDS} seconds")

    before, limits = signal.signal(signal.SIGALRM, too_long), resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (min(mapped + MORE_BYTES, limits[1]) if limits[1] > 0 else mapped + MORE_BYTES, limits[1])
    )
    signal.alarm(SECONDS)
    try:
        result = CliRunner().invoke(main, arguments)
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
    shown = [argument[:80] for argument in arguments]
    assert "Error: unexpected" not in result.output and "not enough memory" not in result.output, (
        f"{shown}: {result.output[-2000:]}"
    )
    assert result.exit_code in (0, 1, 2), f"{shown}: {result.exit_code} {result.exception!r}"
    assert result.exit_code == 0 or "rror: " in result.output or "Usage" in result.output, (
        f"{shown}: nothing said: {result.output!r}"
    )
    return result.output


VERBS = [(path, command) for path, command in verbs() if " ".join(path) not in TOO_LONG]


@pytest.mark.parametrize(("path", "command"), VERBS, ids=[" ".join(path) for path, _ in VERBS])
def test_no_value_of_an_option_ends_unexpectedly(place, monkeypatch, path, command):
    monkeypatch.chdir(place)
    given, failed = fine(place)[" ".join(path)], []
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.is_flag:
            continue
        option = parameter.opts[-1]
        for value in values(parameter.type, place):
            try:
                told([*path, *given, f"{option}={value}" if option.startswith("--") else f"{option}{value}"])
            except AssertionError as error:
                failed.append(str(error).splitlines()[0][:600])
    assert not failed, f"{len(failed)}:\n" + "\n".join(failed)


ARGUMENTS = {  # verb -> what comes before and after an argument that is a path or an id
    "init": ([], []),
    "import table": ([], ["--update"]),
    "import reclm": ([], ["--update"]),
    "import movielens": ([], ["--update"]),
    "profile import": ([], []),
    "forget": ([], ["--yes"]),
    "fit": ([], []),
}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_no_argument_ends_unexpectedly(place, monkeypatch, verb):
    monkeypatch.chdir(place)
    before, after = ARGUMENTS[verb]
    for value in (*paths(place), *TEXTS):
        w = [] if verb == "init" else ["-w", str(place / "ws")]
        told([*verb.split(), *before, *after, *w, "--", value])


def test_more_threads_than_a_machine_may_be_asked_for_are_refused(place):
    result = CliRunner().invoke(main, ["embed", "items", "-w", str(place / "ws"), "--threads", str(most_threads() + 1)])
    assert result.exit_code == 1 and "--threads" in result.stderr


def test_a_text_of_ten_megabytes_is_served(place):
    told(["recommend", "-w", str(place / "ws"), "--text", "goal " * 2_000_000])
    told(["recommend", "-w", str(place / "ws"), "--text", " " * 10_000_000])
    told(["recommend", "-w", str(place / "ws"), "--history", "," * 10_000_000])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "data = 1",
        "[data]\nname = 5",
        "[data]\nname = [[1]]",
        "[workspace]\nschema_version = 'x'",
        "[quickstart]",
        "data = []",
        "[[data]]",
        "\ud800",
        "a = nan",
        "[data]\ncounts = 1\noptions = 2\nsources = 3\ndropped = 4\nlicence = 5",
        "x = " + "[" * 100_000,
        '[data]\nname = "\\u001b[2J"',
    ],
    ids=lambda content: repr(content[:30]),
)
@pytest.mark.parametrize("verb", ["info", "split", "evaluate", "report", "recommend", "import", "quickstart"])
def test_a_configuration_of_other_types_is_told_or_passed_over(place, tmp_path, verb, content):
    import shutil

    ws = shutil.copytree(place / "ws", tmp_path / "ws")
    (ws / "workspace.toml").write_bytes(content.encode("utf-8", "surrogatepass"))
    more = {
        "report": ["-o", str(tmp_path / "page.html")],
        "recommend": ["--user", "u1"],
        "import": ["table", str(place / "log.csv"), "--replace"],
        "split": ["--method", "ratio"],
    }
    if verb == "quickstart" and "quickstart" in content:
        return  # would be made anew
    told([verb, *more.get(verb, []), "-w", str(ws)])


def test_an_empty_or_wrong_workspace_variable_is_told(place, monkeypatch):
    monkeypatch.chdir(place / "folder")
    for value in ("", " ", "/dev/null", str(place / "empty"), "\udcff", "x" * 5000):
        monkeypatch.setenv("RECLM_WORKSPACE", value)
        told(["info"])
