"""A workspace from somebody else, in which one folder or file after the other is a link: no command changes what the
link leads to, and none copies it into the workspace.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from profile_workspace import HashEncoder, text_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from reclm_lite.bench.profile_engine.bench_prompts import scratch_copy
from reclm_lite.bench.quant.quant_bench import Settings
from reclm_lite.bench.quant.resumable import State
from reclm_lite.bench.quant.written_profiles import open_copy
from reclm_lite.cli import main
from reclm_lite.cli._tune_run import dialogues_and_out
from reclm_lite.data.importers import import_dataset
from reclm_lite.dialogue.records import read_dialogues
from reclm_lite.errors import InputError, ReclmError, WorkspaceError
from reclm_lite.files import atomic_folder, atomic_path, file_sha256, open_to_append, remove_folder
from reclm_lite.own_paths import make_folder, require_own_path, require_own_tree
from reclm_lite.text.item_vectors import embed_items
from reclm_lite.workspace import Workspace

MARKER = "of-somebody-else-7f3a"
PROFILE = "User identity: a, b, c; User interests: x, y, z"
N_USERS, N_ITEMS = 8, 9


def reclm(*arguments: object) -> str:
    """What a command printed, whether it succeeded or refused; any other exception is a failure of the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"RECLM_FOLLOW_LINKS": None})
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    return result.stdout + result.stderr


# -- the commands that write ---------------------------------------------------------


def embed(root: Path) -> None:
    with Workspace.open(root) as ws:
        embed_items(ws, HashEncoder())


def prepare_quant(root: Path) -> None:
    """What `reclm bench quant` does with its folder before it measures."""
    out = root / "reports" / "quant"
    state = State(out / "quant-state")
    state.put("file", {"a": 1}, 3)
    open_copy(root, state.folder / "workspace").close()


def prepare_tuning(root: Path) -> None:
    """What `reclm tune sft --fresh` does with its folders, with one small tensor for a model."""
    torch = pytest.importorskip("torch")
    from reclm_lite.tune.run import Run

    dialogues, out = dialogues_and_out("sft", {"root": root, "dialogues": None, "out_dir": None}, "sft")
    settings = {"dialogues": file_sha256(dialogues)}
    list(read_dialogues(dialogues, "sft"))
    for fresh in (False, True):
        with suppress(InputError), Run.open(out, "sft", settings, fresh=fresh) as run:
            run.log(1, loss=1.0)
            run.save(1, {"weight": torch.ones(2)}, is_best=True)
            run.save(2, {"weight": torch.ones(2)})
            run.latest()
            run.log(3, loss=1.0)
            run.publish("adapter", fill_adapter)
            run.finish()


def fill_adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


def commands(place: Path, root: Path) -> dict[str, Callable[[], object]]:
    w = ("-w", root)
    table = ("table", place / "log.csv", "--time", "when", "--title", "title", "--update")
    export = ("export", "--base", place / "none", "--parity", "off", "--imatrix", "none")
    return {
        "evaluate": lambda: reclm("evaluate", *w),
        "report": lambda: reclm("report", *w),
        "import": lambda: reclm("import", *table, *w),
        "split": lambda: reclm("split", *w, "--method", "leave-last"),
        "embed": lambda: embed(root),
        "fit": lambda: reclm("fit", "popularity", *w),
        "fit, with checkpoints": lambda: reclm("fit", "lightgcn", *w, "--epochs", 1, "--dim", 4),
        "neighbors": lambda: reclm("neighbors", *w),
        "profile users": lambda: reclm("profile", "users", *w, "--model", "rules"),
        "profile edit": lambda: reclm("profile", "edit", *w, "--user", "u1", PROFILE),
        "profile import": lambda: reclm("profile", "import", place / "profiles.jsonl", *w),
        "dialogue build": lambda: reclm("dialogue", "build", "sft", *w, "--limit", 2),
        "tune sft": lambda: prepare_tuning(root),
        "bench quant": lambda: prepare_quant(root),
        "export": lambda: reclm(*export, "-o", root / "llm" / "sft" / "gguf"),
        "forget": lambda: reclm("forget", "u2", *w, "--yes"),
    }


def run_all(place: Path, root: Path) -> None:
    for command in commands(place, root).values():
        with suppress(ReclmError):
            command()


# -- workspaces ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with files to import, and a workspace `ws` in which every command has run."""
    place = tmp_path_factory.mktemp("links")
    titles = [f'"{text_of(n).title}"' for n in range(N_ITEMS)]
    rows = [
        f"u{user},i{item},2024-01-{10 + turn},{titles[item]}"
        for user in range(N_USERS)
        for turn, item in enumerate(np.random.default_rng(user).permutation(N_ITEMS)[:5])
    ]
    (place / "log.csv").write_text("user,item,when,title\n" + "\n".join(rows) + "\n")
    root = place / "ws"
    reclm("init", root)
    (place / "profiles.jsonl").write_text("")
    for name, command in commands(place, root).items():
        if name != "forget":
            command()
        if name == "profile edit":
            reclm("profile", "export", "-w", root, "-o", place / "profiles.jsonl")
    (root / "models" / ".lightgcn.checkpoint").mkdir()
    (root / "models" / ".lightgcn.checkpoint" / "identity.json").write_text("{}")
    (root / "reports" / "quant" / "quant.json").write_text("{}")
    (root / "reports" / "quant" / "files").mkdir()
    return place


# Names that are there, folders first, and names that commands would make.
FOLDERS = [
    *("matrices", "vectors", "models", "llm", "reports", "models/.lightgcn.checkpoint", "reports/quant"),
    *("llm/dialogues", "llm/sft", "llm/sft/checkpoints", "llm/sft/checkpoints/step-000001", "llm/sft/adapter"),
    *("reports/quant/quant-state", "reports/quant/files", "reports/quant/quant-state/workspace"),
    *("reports/quant/quant-state/workspace/models", "llm/sft/tensorboard", "llm/sft/gguf"),
    *("llm/sft/.adapter.partial", "llm/sft/checkpoints/.step-000001.partial", "models/.popularity.checkpoint"),
]
FILES = [
    *("workspace.toml", "workspace.db", "workspace.db-wal", "workspace.db-shm", ".lock"),
    *("matrices/interactions.safetensors", "matrices/interactions.next.safetensors", "matrices/split.safetensors"),
    *("matrices/neighbors.safetensors", "vectors/items.safetensors", "models/popularity.safetensors"),
    *("models/lightgcn.safetensors", "models/.lightgcn.checkpoint/identity.json", "reports/report.html"),
    *("llm/dialogues/sft.jsonl", "llm/dialogues/sft.jsonl.manifest.json", "llm/sft/run.json", "llm/sft/.lock"),
    *("llm/sft/metrics.jsonl", "llm/sft/samples.jsonl", "llm/sft/checkpoints/best", "reports/quant/quant.json"),
    *("llm/sft/checkpoints/step-000002/state.json", "llm/sft/checkpoints/step-000002/tensors.safetensors"),
    *("reports/quant/quant-state/.lock", "reports/quant/quant-state/workspace/workspace.toml"),
    *("reports/quant/quant-state/workspace/copied-from.json", "reports/quant/quant-state/workspace/workspace.db"),
    *("reports/quant/quant-state/workspace/matrices/split.safetensors", "reports/quant/quant-state/STATE"),
]


def link_out(path: Path, elsewhere: Path, *, is_folder: bool) -> None:
    """Put a link in the place of `path`, to what was there with a marker in it."""
    if path.exists() or path.is_symlink():
        shutil.move(path, elsewhere)
    elif is_folder:
        elsewhere.mkdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere)
    if is_folder:
        (elsewhere / "letters.txt").write_text(MARKER)
    elif path.suffix == ".safetensors":
        metadata = metadata_of(elsewhere) if elsewhere.exists() else {}
        arrays = load_file(elsewhere) if elsewhere.exists() else {"a": np.zeros(1)}
        save_file(arrays, elsewhere, metadata=metadata | {"note": MARKER})
    elif path.suffix == ".toml":
        elsewhere.write_text(f'{elsewhere.read_text()}\n[note]\nnote = "{MARKER}"\n')
    elif path.name == "run.json":
        elsewhere.write_text(json.dumps(json.loads(elsewhere.read_text()) | {"note": MARKER}))
    elif path.name in ("metrics.jsonl", "samples.jsonl"):
        lines = "".join(json.dumps({"step": n, "note": MARKER}) + "\n" for n in range(4))
        elsewhere.write_text(lines)
    elif not path.name.startswith("workspace.db"):
        elsewhere.write_text(MARKER)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def snapshot(folder: Path) -> dict[str, tuple]:
    """Names, times and bytes of all that lies in a folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (facts.st_mtime_ns, facts.st_mode, facts.st_size if content else 0, content)
    return found


def holders_of_marker(root: Path) -> list[str]:
    """Files of the workspace itself that hold the marker; links are not followed."""
    found = []
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            if not path.is_symlink() and path.is_file() and MARKER.encode() in path.read_bytes():
                found.append(str(path.relative_to(root)))
    return found


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_no_command_writes_through_a_link_or_copies_what_it_leads_to(place, tmp_path, monkeypatch, name):
    pytest.importorskip("torch")
    monkeypatch.delenv("RECLM_FOLLOW_LINKS", raising=False)
    root, outside = tmp_path / "ws", tmp_path / "outside"
    shutil.copytree(place / "ws", root)
    outside.mkdir()
    if name.endswith("STATE"):  # the name of a measurement hashes what it is of
        name = str(next((root / "reports/quant/quant-state").glob("file-*.json")).relative_to(root))
    link_out(root / name, outside / "target", is_folder=name in FOLDERS)
    before = snapshot(outside)
    run_all(place, root)
    assert snapshot(outside) == before
    assert holders_of_marker(root) == []


# -- the rule ------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path) -> Path:
    """A workspace `ws` whose folder llm leads to `outside`, which is itself a workspace."""
    for name in ("ws", "outside", "outside/sft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "workspace.toml").write_text("")
    (tmp_path / "ws" / "llm").symlink_to(tmp_path / "outside")
    (tmp_path / "mine").symlink_to(tmp_path / "ws")
    return tmp_path


def test_links_count_from_the_outermost_workspace_on(linked, monkeypatch):
    monkeypatch.chdir(linked)
    for path in (linked / "ws/llm", linked / "ws/llm/sft/run.json", Path("ws/llm/new/file"), Path("mine/llm/sft")):
        with pytest.raises(WorkspaceError, match=f"llm is a link to {linked}/outside.* RECLM_FOLLOW_LINKS=1 if"):
            require_own_path(path)
    for path in (linked, linked / "mine", linked / "outside/sft", Path("ws/new"), Path("ws/llm/.."), Path("\0")):
        require_own_path(path)
    monkeypatch.setenv("RECLM_FOLLOW_LINKS", "1")
    require_own_path(linked / "ws/llm/sft")
    require_own_tree(linked / "ws")


def test_links_count_below_a_folder_that_is_no_workspace(linked):
    (linked / "ws" / "workspace.toml").unlink()
    require_own_path(linked / "ws/llm/new")
    for path in ("ws/llm/new", "mine/llm"):
        with pytest.raises(WorkspaceError, match="llm is a link"):
            require_own_path(linked / path, below=linked / path.split("/")[0])
    require_own_path(linked / "ws/llm/new", below=linked / "outside")


def test_whatever_makes_or_removes_a_file_refuses_a_link_above_it(linked):
    path, before = linked / "ws" / "llm" / "sft" / "x", snapshot(linked / "outside")
    attempts = (
        *(lambda: make_folder(path), lambda: remove_folder(path.parent), lambda: open_to_append(path)),
        *(lambda: atomic_path(path).__enter__(), lambda: atomic_path(path, named_by_user=True).__enter__()),
        lambda: atomic_folder(path).__enter__(),
    )
    for attempt in attempts:
        with pytest.raises(WorkspaceError, match="llm is a link"):
            attempt()
    assert snapshot(linked / "outside") == before


@pytest.mark.parametrize("is_workspace", [True, False])
@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
def test_tuning_refuses_a_link_in_the_place_of_its_folder(place, tmp_path, name, is_workspace):
    pytest.importorskip("torch")
    shutil.copytree(place / "ws", tmp_path / "ws")
    if not is_workspace:
        (tmp_path / "ws" / "workspace.toml").unlink()
    link_out(tmp_path / "ws" / "llm" / name, tmp_path / "outside", is_folder=True)
    before = snapshot(tmp_path / "outside")
    base = ("--base", place / "none", *(("--weight", "parse=1") if name == "ppo" else ()))
    for fresh in ((), ("--fresh",)):
        assert f"{name} is a link to " in reclm("tune", name, "-w", tmp_path / "ws", *base, *fresh)
    assert snapshot(tmp_path / "outside") == before


def test_the_base_beside_a_run_is_not_taken_from_a_link(place, tmp_path):
    pytest.importorskip("torch")
    from reclm_lite.tune.scratch import ScratchSettings, base_for

    (tmp_path / "sft-base").symlink_to(place)
    with pytest.raises(WorkspaceError, match="sft-base is a link"):
        base_for(place / "ws/llm/dialogues/sft.jsonl", tmp_path / "sft-base", ScratchSettings())


@pytest.mark.parametrize("name", ["workspace.toml", "matrices", "models/popularity.safetensors", "vectors/x"])
def test_a_copy_of_a_workspace_holds_nothing_from_elsewhere(place, tmp_path, name):
    shutil.copytree(place / "ws", tmp_path / "ws")
    link_out(tmp_path / "ws" / name, tmp_path / "outside", is_folder=name == "matrices")
    with pytest.raises(WorkspaceError, match=f"{name} is a link"):
        scratch_copy(tmp_path / "ws", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_bench_quant_refuses_a_link_in_its_folder_before_anything_is_made(linked):
    for out in (linked / "ws" / "llm" / "quant", linked / "mine" / "llm"):
        with pytest.raises(WorkspaceError, match="llm is a link"):
            Settings(out.parents[len(out.parts) - 1 - out.parts.index("llm")], linked / "f16.gguf", out, 1).check()
    with pytest.raises(WorkspaceError, match="llm is a link"):
        State(linked / "ws" / "llm" / "quant-state")
    assert sorted(path.name for path in (linked / "outside").iterdir()) == ["sft", "workspace.toml"]


# -- pipes ---------------------------------------------------------------------------


class WaitedError(BaseException):
    """Not among the errors that commands turn into sentences."""


@contextmanager
def without_waiting() -> Iterator[None]:
    """Whoever waits for a pipe is woken after a while by an error."""

    def wake(*_: object) -> None:
        raise WaitedError

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "name",
    [
        *("llm/sft/run.json", "llm/sft/metrics.jsonl", "llm/sft/.lock", "llm/sft/checkpoints/best", "llm/sft"),
        *("llm/sft/checkpoints/step-000002/state.json", "llm/dialogues/sft.jsonl", "workspace.toml", ".lock"),
        *("workspace.db", "workspace.db-wal", "workspace.db-shm", "reports/quant/quant.json", "reports/x"),
        *("reports/quant/quant-state/.lock", "reports/quant/quant-state/workspace/copied-from.json", "models/x"),
        *("matrices/split.safetensors", "matrices/interactions.next.safetensors", "models/.lightgcn.checkpoint"),
    ],
)
def test_no_command_waits_for_a_pipe_in_a_workspace(place, tmp_path, monkeypatch, name):
    pytest.importorskip("torch")
    monkeypatch.delenv("RECLM_FOLLOW_LINKS", raising=False)
    root = tmp_path / "ws"
    shutil.copytree(place / "ws", root)
    path = root / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with without_waiting():
        run_all(place, root)


def test_a_pipe_is_neither_hashed_nor_appended_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with without_waiting():
        with pytest.raises(InputError, match="expected a file at .*pipe, found a folder, pipe or device"):
            file_sha256(tmp_path / "pipe")
        with pytest.raises(WorkspaceError, match="is a pipe, a socket or a device"):
            open_to_append(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(WorkspaceError, match="is a pipe, a socket or a device"):
            open_to_append(tmp_path / "pipe")
        os.close(reader)


# -- folders to import ---------------------------------------------------------------

DATA = {
    "mind": {
        "behaviors.tsv": "1\tU1\t11/11/2019 9:05:58 AM\tN1\tN2-1\n",
        "news.tsv": "".join(f"N{n}\tnews\tworld\tTitle {n}\tText\t\t[]\t[]\n" for n in (1, 2)),
    },
    "recbole": {
        "x.inter": "user_id:token\titem_id:token\nu\ti\n",
        "x.item": "item_id:token\ttitle:token_seq\ni\tLamp\n",
        "x.user": "user_id:token\nu\n",
    },
    "lightgcn": {"train.txt": "0 1 2\n", "test.txt": "0 3\n"},
    "movielens": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,2,4.0,1000\n",
        "movies.csv": "movieId,title,genres\n2,Lamp,Drama\n",
    },
}
OF_FORMATS = [(format, name) for format, files in DATA.items() for name in files]


@pytest.mark.parametrize(("format", "name"), OF_FORMATS)
def test_an_import_reads_no_file_outside_of_the_folder_that_was_named(tmp_path, monkeypatch, format, name):
    monkeypatch.delenv("RECLM_FOLLOW_LINKS", raising=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    for file, text in DATA[format].items():
        (folder / file).write_text(text)
    shutil.move(folder / name, folder / "inside")
    (folder / name).symlink_to("inside")
    assert import_dataset(format, folder).user_ids
    (tmp_path / "mine").symlink_to(folder)
    assert import_dataset(format, tmp_path / "mine").user_ids
    shutil.move(folder / "inside", tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=f"{name} is a link to {tmp_path}/outside, which is outside of the folder"):
        import_dataset(format, folder)
    monkeypatch.setenv("RECLM_FOLLOW_LINKS", "1")
    assert import_dataset(format, folder).user_ids


@pytest.mark.parametrize(("format", "name"), OF_FORMATS)
def test_an_import_does_not_wait_for_a_pipe_in_the_folder(tmp_path, format, name):
    for file, text in DATA[format].items():
        (tmp_path / file).write_text(text)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with without_waiting(), pytest.raises(InputError, match="is not a regular file"):
        import_dataset(format, tmp_path)
