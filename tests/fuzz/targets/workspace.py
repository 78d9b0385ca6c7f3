"""A workspace that somebody else made: one of its files is mutated, then it is opened, described, split into stages and
served from."""

import functools
import logging
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))
from harness import Target

from reclm_lite.errors import ReclmError

FILES = (
    "workspace.toml",
    "matrices/interactions.safetensors",
    "matrices/split.safetensors",
    "matrices/neighbors.safetensors",
    "models/ease.safetensors",
    "models/biasmf.safetensors",
    "models/itemknn.safetensors",
    "models/gfcf.safetensors",
    "models/lightgcn.safetensors",
    "vectors/items.safetensors",
    "vectors/user_profiles.safetensors",
    "workspace.db-journal",
    "models/.biasmf.checkpoint/select.safetensors",
    "workspace.db",
)
CHECKPOINT = "models/.biasmf.checkpoint/select.safetensors"


@functools.cache
def template() -> Path:
    """A small workspace with a file of each kind, made once for each process."""
    import atexit
    import os

    logging.getLogger("reclm_lite").setLevel(logging.CRITICAL)  # each input would be told of on stderr

    import numpy as np

    from reclm_lite.cf import checkpoint
    from reclm_lite.cf.fit import fit
    from reclm_lite.cf.fitted import FittedModel
    from reclm_lite.cf.neighbors import NAME
    from reclm_lite.cf.store import save
    from reclm_lite.data.dataset import Imported, load_split, save_imported
    from reclm_lite.data.split import run_split
    from reclm_lite.types import ItemText
    from reclm_lite.workspace import Workspace

    folder = Path(
        tempfile.mkdtemp(prefix="fuzz-workspace-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with Workspace.create(folder / "template") as ws:
        users, items = np.repeat(np.arange(4, dtype=np.int32), 4), np.tile(np.arange(4, dtype=np.int32), 4)
        items = (items + users) % 5
        texts = [ItemText(f"Title {n}", "", "", "") for n in range(5)]
        save_imported(ws, Imported("x", [f"u{n}" for n in range(4)], [f"i{n}" for n in range(5)], texts, users, items))
        run_split(ws, "ratio", seed=0)
        for model in ("ease", "itemknn", "gfcf"):
            fit(ws, model)
        for side, n in (("items", 5), ("user_profiles", 4)):
            arrays = {"vectors": np.eye(n, 5, dtype=np.float32), "text_hash": np.arange(n, dtype=np.uint64)}
            ws.save(f"vectors/{side}", arrays, inputs={}, params={"encoder": {"name": "x"}})
        fit(ws, "lightgcn", assignments=["epochs=1", "dim=4"])
        inputs = {"matrices/split": load_split(ws).fingerprint}
        save(
            FittedModel.of_vectors(
                "biasmf", np.eye(4, 3, dtype=np.float32), np.eye(5, 3, dtype=np.float32), None, np.ones(4, bool)
            ),
            ws,
            inputs=inputs,
        )
        ws.save(NAME, {"indices": np.array([[1], [2], [3], [0]], np.int32)}, inputs=inputs, params={})
        ws.db.execute("PRAGMA journal_mode=DELETE")  # all of it in one file
        ws.db.execute("VACUUM")
    (folder / "template/models/.biasmf.checkpoint").mkdir()
    state = checkpoint.State.start({"user_vectors": np.zeros((4, 2), np.float32)})
    checkpoint.write(folder / "template" / CHECKPOINT, "made of this", state)
    return folder / "template"


def run(data: bytes) -> str:
    """The first byte chooses the file; the rest is its content."""
    from reclm_lite.cf import checkpoint
    from reclm_lite.serve.recommend import recommend
    from reclm_lite.status import workspace_status
    from reclm_lite.workspace import Workspace

    if not data:
        return "refused"
    root = template().with_name("copy")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template(), root)
    name = FILES[data[0] % len(FILES)]
    (root / name).write_bytes(data[1:])
    outside = root.with_name("outside")
    outside.write_text("mine")
    import numpy as np

    start = checkpoint.State.start({"user_vectors": np.zeros((4, 2), np.float32)})
    checkpoint.read(root / CHECKPOINT, "made of this", start, 5)
    try:
        with Workspace.open(root) as ws:
            workspace_status(ws)
            ws.config  # noqa: B018
            answers = [
                recommend(ws, "u1", k=3, model=model, allow_stale=True)
                for model in (None, "ease", "biasmf", "itemknn", "gfcf", "lightgcn")
            ]
            recommend(ws, None, k=3, model="lightgcn", history=["i1", "i3"], allow_stale=True)
    except ReclmError:
        return "refused"
    except sqlite3.DatabaseError:  # the command line makes a sentence of it
        return "refused: database"
    assert outside.read_text() == "mine"
    for answer in answers:
        assert all(item.item in {f"i{n}" for n in range(5)} or name == "workspace.db" for item in answer.items)
    return "accepted"


def seeds() -> list[bytes]:
    """Each file as it is; of the journal, which there is none of, one that names another file for SQLite to delete; row
    bounds that do not ascend, as unsigned numbers; and a database of a page that is its own child."""
    header = bytes.fromhex("d9d505f920a163d7").ljust(512, b"\0")
    journal = header + b"\x00\x04\x00\x01" + b"outside" + b"\x00\x00\x00\x07\x00\x00\x03\x0a" + header[:8]
    files = {name: template() / name for name in FILES}
    whole = [
        bytes([number]) + (path.read_bytes() if path.exists() else journal)
        for number, path in enumerate(files.values())
    ]
    return [*whole, *map(_unsigned, whole[2:8]), _endless(whole[FILES.index("workspace.db")])]


def _unsigned(seed: bytes) -> bytes:
    """A safetensors file whose whole numbers of 64 bits are called unsigned, and whose ones are the largest of them."""
    return seed.replace(b'"I64"', b'"U64"').replace((1).to_bytes(8, "little"), b"\xff" * 8)


def _endless(seed: bytes) -> bytes:
    """A database whose second page has itself as its only child."""
    content = bytearray(seed)
    start = 1 + int.from_bytes(content[17:19], "big")
    content[start : start + 12] = b"\5\0\0\0\0\0\0\0" + (2).to_bytes(4, "big")
    return bytes(content)


TARGETS = (
    Target(
        "workspace_files",
        "a workspace of somebody else",
        seeds,
        run,
        max_bytes=200_000,
        n_slice=250,
        dictionary=(
            b'"fingerprint"',
            b'"inputs"',
            b'"ids"',
            b'{"reclm"',
            b"null",
            b"[[[[",
            b"1e999",
            b"-1",
            b"F64",
            b"BF16",
            b"BOOL",
            b"../../outside",
            b'"data_offsets"',
            b'"shape"',
            b"[data]\n",
            b"data = 1\n",
            b"SQLite format 3\x00",
        ),
    ),
)
