"""A workspace that holds something of a person in every place, and searches for what is left of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from profile_workspace import HashEncoder, text_of

from reclm_lite.cf.fit import fit
from reclm_lite.cf.models import MODELS, TRAINED
from reclm_lite.cf.neighbors import neighbors
from reclm_lite.data.dataset import Imported, save_imported
from reclm_lite.data.split import run_split
from reclm_lite.profiles.profile_vectors import embed_profiles
from reclm_lite.report.page import write_report
from reclm_lite.status import workspace_status
from reclm_lite.text.item_vectors import embed_items
from reclm_lite.workspace import Workspace

N_USERS, N_ITEMS, PERSON = 16, 24, 5
ID = "person-zq7-unique"
IDS = [ID if user == PERSON else f"other-{user:02d}" for user in range(N_USERS)]
PROFILE = "User identity: zq7identity, watcher, walker; User interests: zq7interest, comets, bread"
RAW, EARLIER, ORPHAN, SHARED = (
    "zq7 raw answer",
    "zq7 earlier answer",
    "zq7 answer for nobody knows whom",
    "an answer for two",
)


def profile_of(user: int) -> str:
    return (
        PROFILE
        if user == PERSON
        else f"User identity: reader{user}, watcher, walker; User interests: rivers{user}, comets, bread"
    )


def fill_profiles(ws: Workspace) -> None:
    """A profile and a generation for each user, by SQL; the person has an older generation too, and one shared with the
    next."""
    with ws.writing(), ws.db:
        put = (
            "INSERT INTO generations (prompt_key, raw, status, n_prompt_tokens, n_new_tokens, created) VALUES (?, "
            "?, 'ok', 1, 1, '')"
        )
        used = "INSERT INTO uses VALUES (?, ?, ?)"
        for user in range(N_USERS):
            ws.db.execute(put, (f"key{user}", RAW if user == PERSON else f"raw {user}"))
            ws.db.execute(used, (f"key{user}", "user", user))
            ws.db.execute(
                "INSERT INTO profiles (side, idx, status, text, source, prompt_key, created, data_key) "
                "VALUES ('user', ?, 'ok', ?, 'by hand', ?, '', ?)",
                (user, profile_of(user), f"key{user}", ws.fingerprint("matrices/interactions")),
            )
        for key, raw, users in (
            ("old", EARLIER, [PERSON]),
            ("nobody", ORPHAN, []),
            ("two", SHARED, [PERSON, PERSON + 1]),
        ):
            ws.db.execute(put, (key, raw))
            ws.db.executemany(used, [(key, "user", user) for user in users])
        ws.db.execute(put, ("item", "of an item"))
        ws.db.execute(used, ("item", "item", PERSON))  # an item of the same number is not the person
        ws.db.execute(
            "INSERT OR REPLACE INTO meta VALUES ('profiles_split:user', ?)", (ws.fingerprint("matrices/split"),)
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A workspace that has everything: each model, neighbors, profiles, vectors, reports, what interrupted commands
    leave."""
    root = tmp_path_factory.mktemp("forget") / "ws"
    rng = np.random.default_rng(0)
    pairs = [(user, int(item)) for user in range(N_USERS) for item in rng.choice(N_ITEMS, 8, replace=False)]
    users, items = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    with Workspace.create(root) as ws:
        manifest = {"format": "demo", "options": {}, "users_to_show": [IDS[0], ID]}
        ids, texts = [f"i{item}" for item in range(N_ITEMS)], [text_of(item) for item in range(N_ITEMS)]
        times, ratings = np.arange(len(users), dtype=np.int64), rng.random(len(users)).astype(np.float32)
        save_imported(ws, Imported("small", IDS, ids, texts, users, items, times, ratings, manifest=manifest))
        run_split(ws, "ratio", seed=0)
        embed_items(ws, HashEncoder())
        for model in MODELS:
            fit(ws, model, assignments=["epochs=2", "dim=8"] if model in TRAINED else [])
        neighbors(ws, 4)
        fill_profiles(ws)
        embed_profiles(ws, HashEncoder())
        fit(ws, "lightgcn", profiles="users", assignments=["epochs=2", "dim=8"])
        fit(ws, "biasmf", profiles="users", preset="paper", assignments=["epochs=2", "dim=8"])
        write_report(ws)
        (root / "reports" / f"{ID}.html").write_text(f"<p>{ID}: {PROFILE}")
        checkpoint = root / "models" / ".ncf.checkpoint"
        checkpoint.mkdir()
        (checkpoint / "select.safetensors").write_bytes(ID.encode())
        (root / "matrices" / ".split.safetensors.99.tmp").write_bytes(ID.encode())
    return root


@pytest.fixture
def root(built, tmp_path) -> Path:
    shutil.copytree(built, tmp_path / "ws")
    return tmp_path / "ws"


def arrays_of(ws: Workspace) -> dict[str, dict[str, np.ndarray]]:
    names = [f"{path.parent.name}/{path.stem}" for path in sorted(ws.root.glob("*/*.safetensors"))]
    return {name: ws.load(name, made_by="").arrays for name in names}


def needles_of(ws: Workspace) -> dict[str, bytes]:
    """What must be in no file: words, and the bytes of every row of vectors that is the person's alone."""
    needles = {"id": ID, "profile": "zq7interest", "raw": RAW, "earlier": EARLIER, "orphan": ORPHAN}
    needles = {name: text.encode() for name, text in needles.items()}
    for name, arrays in arrays_of(ws).items():
        for key in ("user_vectors", "train_user_vectors", "vectors"):
            if name not in ("vectors/items", "vectors/item_profiles") and key in arrays and arrays[key].shape[1]:
                needles[f"{name} {key}"] = arrays[key][PERSON].tobytes()
    return needles


def found_in(root: Path, needles: dict[str, bytes]) -> dict[str, list[str]]:
    """needle -> the files (or names of files) that hold it."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    found = {
        what: [n for n, content in files.items() if needle in content or needle in n.encode()]
        for what, needle in needles.items()
    }
    return {what: names for what, names in found.items() if names}


def freshness(ws: Workspace) -> list[tuple[str, str]]:
    return [(stage.name, stage.state) for stage in workspace_status(ws).stages]


def files_of(root: Path) -> dict[str, bytes]:
    """Every file's content, less the lock and SQLite's own shared memory."""
    return {
        str(path): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in (".lock", "workspace.db-shm")
    }
