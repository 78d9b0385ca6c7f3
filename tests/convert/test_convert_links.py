"""An export's folder, a checkpoint and an adapter may come from somebody else: links and pipes in them do no harm."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_llama

from reclm_lite.convert.bounded_files import open_regular, read_bounded, whole_or_nothing
from reclm_lite.convert.checkpoint import Checkpoint
from reclm_lite.convert.export import export
from reclm_lite.convert.manifest import save_manifest
from reclm_lite.convert.target import SCRATCH, scratch_folder
from reclm_lite.errors import ModelError

PLAIN = {"imatrix": None, "parity": "off", "n_threads": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("links") / "base")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's, which nothing may touch."""
    folder = tmp_path / "outside"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "a.jpg").write_text("a photo")
    (folder / "lock").write_text("a text")
    return folder


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_link_in_the_place_of_the_scratch_folder_is_not_emptied(base: Path, outside: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", files_of(outside)
    out.mkdir()
    (out / SCRATCH).symlink_to(outside)
    with pytest.raises(ModelError, match=r"\.export.* to be its own, found a link"):
        export(base, out, ["f16"], **PLAIN)
    assert files_of(outside) == before


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_lock_is_a_file_of_its_own(base: Path, outside: Path, tmp_path: Path, kind: str) -> None:
    out, before = tmp_path / "out", files_of(outside)
    (out / SCRATCH).mkdir(parents=True)
    lock = out / SCRATCH / "lock"
    lock.symlink_to(outside / "made") if kind == "link" else os.mkfifo(lock)
    with pytest.raises(ModelError, match="to be its own"), scratch_folder(out):
        pass
    assert files_of(outside) == before


def test_links_within_the_scratch_folder_are_removed_alone(outside: Path, tmp_path: Path) -> None:
    scratch, before = tmp_path / "out" / SCRATCH, files_of(outside)
    (scratch / "parity").mkdir(parents=True)
    (scratch / "folder").symlink_to(outside)
    (scratch / "parity" / "deeper").symlink_to(outside)
    (scratch / "unquantized.gguf").symlink_to(outside / "lock")
    with scratch_folder(tmp_path / "out") as folder:
        assert os.listdir(folder) == ["lock"]
    assert files_of(outside) == before


def test_names_known_in_advance_are_not_written_through(base: Path, outside: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", files_of(outside)
    out.mkdir()
    for name in (f".manifest.json.{os.getpid()}.partial", f".x.gguf.{os.getpid()}.partial"):
        (out / name).symlink_to(outside / "lock")
    save_manifest(out, {"format": 1})
    with whole_or_nothing(out / "x.gguf") as partial:
        partial.write_text("made")
    assert files_of(outside) == before
    assert (out / "x.gguf").read_text() == "made"


def test_what_an_earlier_manifest_names_elsewhere_is_not_taken_for_made(
    base: Path, outside: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(base, out, ["f16"], **PLAIN)
    shutil.move(out / "base-f16.gguf", outside / "f16.gguf")
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("../outside/f16.gguf", "base-f16.gguf"):
        if name == "base-f16.gguf":
            (out / name).symlink_to(outside / "f16.gguf")
        manifest["files"][0]["file"] = name
        (out / "manifest.json").write_text(json.dumps(manifest))
        made = export(base, out, ["f16"], **PLAIN)
        assert made["files"][0]["file"] == "base-f16.gguf"
        assert not (out / "base-f16.gguf").is_symlink()
        (out / "base-f16.gguf").unlink()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model-00002-of-00002.safetensors", "config.json", "tokenizer.json", "x/y.jinja"]
)
def test_a_pipe_in_a_checkpoint_is_refused_and_not_waited_for(base: Path, tmp_path: Path, name: str) -> None:
    checkpoint = tmp_path / "base"
    shutil.copytree(base, checkpoint)
    if name.startswith("model-"):
        (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    name = name.replace("x/", "additional_chat_templates/")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).parent.mkdir(exist_ok=True)
    os.mkfifo(checkpoint / name)
    program = (
        "import sys; from pathlib import Path; from reclm_lite.convert.export import export\n"
        "export(Path(sys.argv[1]), Path(sys.argv[2]), ['f16'], imatrix=None, parity='off', n_threads=1)"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, checkpoint, tmp_path / "out"], capture_output=True, text=True, timeout=120
    )
    assert "ModelError: expected" in child.stderr


def test_only_regular_files_are_opened_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"12"
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="in the place of a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(ModelError, match="a folder, pipe or device"):
        read_bounded(tmp_path / "pipe", 10)


def test_a_checkpoint_of_links_converts_as_one_of_files(base: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in base.iterdir():
        (linked / path.name).symlink_to(path)
    a, b = Checkpoint(base), Checkpoint(linked)
    assert list(a.tensors) == list(b.tensors)
    name = next(iter(a.tensors))
    assert np.array_equal(a.tensor(name), b.tensor(name))
