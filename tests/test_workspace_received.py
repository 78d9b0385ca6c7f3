"""A database, artefacts and settings that somebody else made are refused or left out with a sentence."""

import json
import os
import sqlite3
import stat
import struct
import subprocess

import numpy as np
import pytest
from bounds_workspace import IDS, N_ITEMS, bring, files_in, fill, reclm, ws  # noqa: F401  (a fixture)
from click.testing import CliRunner
from profile_workspace import HashEncoder

from reclm_lite.artefacts import read_arrays, row_bounds, whole_numbers, write_arrays
from reclm_lite.cf import checkpoint
from reclm_lite.cf.fit import fit
from reclm_lite.cf.store import load
from reclm_lite.cli import main
from reclm_lite.data.dataset import load_split, user_ids
from reclm_lite.errors import WorkspaceError
from reclm_lite.files import MAX_DOCUMENT_BYTES, atomic_path, read_document
from reclm_lite.forget import forget_users
from reclm_lite.serve.recommend import recommend
from reclm_lite.status import workspace_status
from reclm_lite.workspace import Workspace

# -- a database that somebody else made ----------------------------------------------------


@pytest.mark.parametrize(
    "statements",
    [
        "ALTER TABLE meta RENAME TO m2; CREATE VIEW meta AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + "
        "1 FROM c) "
        "SELECT 'schema_version' AS key, '2' AS value FROM c WHERE x < 0",
        "CREATE TRIGGER t BEFORE DELETE ON users BEGIN INSERT INTO jobs (kind, state, started) VALUES "
        "(OLD.user_id, '', ''); END",
        "CREATE TABLE shadow (x)",
        "CREATE INDEX mine ON users (hex(zeroblob(1000)))",
        "ALTER TABLE users ADD COLUMN twice AS (hex(user_id))",
        "CREATE VIRTUAL TABLE words USING fts5(word)",
        "PRAGMA writable_schema=ON; INSERT INTO sqlite_master VALUES ('trigger', 'sqlite_x', 'users', 0, 'CREATE "
        "TRIGGER sqlite_x AFTER DELETE ON "
        "users BEGIN INSERT INTO jobs (kind, state, started) VALUES (old.user_id, '', ''); END')".replace("\\'", "''"),
        "ALTER TABLE meta RENAME TO m2; CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, CHECK "
        "(length(randomblob(900000)) > 0)); "
        "INSERT INTO meta SELECT * FROM m2; DROP TABLE m2",
        "ALTER TABLE meta RENAME TO m2; CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL DEFAULT "
        "(hex(randomblob(9)))); "
        "INSERT INTO meta SELECT * FROM m2; DROP TABLE m2",
        "DROP INDEX uses_by_key; CREATE INDEX uses_by_key ON uses (hex(prompt_key))",
    ],
    ids=[
        "endless view",
        "trigger",
        "table",
        "index",
        "computed column",
        "virtual table",
        "trigger of a reserved name",
        "check",
        "default",
        "index of the same name",
    ],
)
def test_views_triggers_and_foreign_tables_are_refused_before_a_table_is_read(ws, statements):
    ws.close()
    with sqlite3.connect(ws.db_path) as db:
        db.executescript(statements)
    db.close()
    with pytest.raises(WorkspaceError, match="which is not as this software makes it"):
        Workspace.open(ws.root)


def test_a_journal_that_names_a_file_for_sqlite_to_delete_is_refused(ws, tmp_path):
    """SQLite plays back a hot journal, then deletes the super-journal that it names, wherever that is."""
    ws.db.execute("PRAGMA journal_mode=DELETE")
    ws.close()
    victim = tmp_path / "letters.txt"
    victim.write_text("mine")
    page = struct.unpack(">H", ws.db_path.read_bytes()[16:18])[0]
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(victim).encode()
    header = magic + struct.pack(">5I", 0, 1, ws.db_path.stat().st_size // page, 512, page)
    journal = (
        header.ljust(512, b"\0")
        + struct.pack(">I", 2**30 // page + 1)
        + name
        + struct.pack(">II", len(name), sum(name))
        + magic
    )
    (ws.root / "workspace.db-journal").write_bytes(journal)
    assert "workspace.db-journal is not of this software" in reclm("info", "-w", ws.root, code=1)
    assert victim.read_text() == "mine"


def test_an_index_of_ids_that_leads_to_somebody_else_is_damage(ws):
    with ws.db:
        ws.db.execute("PRAGMA writable_schema=ON")
        root = ws.db.execute("SELECT rootpage FROM sqlite_master WHERE name='sqlite_autoindex_users_1'").fetchone()[0]
        ws.db.execute("CREATE TABLE other (user_idx INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE)")
        ws.db.execute(
            "INSERT INTO other SELECT CASE user_idx WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE user_idx END, user_id FROM users"
        )
        other = ws.db.execute("SELECT rootpage FROM sqlite_master WHERE name='sqlite_autoindex_other_1'").fetchone()[0]
        ws.db.execute("UPDATE sqlite_master SET rootpage=? WHERE name='sqlite_autoindex_users_1'", (other,))
        ws.db.execute("UPDATE sqlite_master SET rootpage=? WHERE name='sqlite_autoindex_other_1'", (root,))
        ws.db.execute("DELETE FROM sqlite_master WHERE tbl_name='other'")
    ws.close()
    with Workspace.open(ws.root) as again:
        assert recommend(again, IDS[0], k=1).items
        for ask in (lambda: recommend(again, IDS[1]), lambda: forget_users(again, [IDS[1]])):
            with pytest.raises(WorkspaceError, match="its index of users leads to another user"):
                ask()


def test_values_of_other_types_in_the_database_are_sentences(ws):
    with ws.db:
        ws.db.execute("UPDATE items SET title=x'ff00' WHERE item_idx=1")
    assert "of a wrong type" in reclm("recommend", "-w", ws.root, "--user", IDS[0], code=1)
    with ws.db:
        ws.db.execute("UPDATE meta SET value=3.5 WHERE key='schema_version'")
    assert "expected schema version" in reclm("info", "-w", ws.root, code=1)


# -- files of a model that somebody else made ------------------------------------------------


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("itemknn", lambda arrays: arrays["scorer.indices"].__iadd__(10**6)),
        ("itemknn", lambda arrays: arrays["scorer.indices"].__isub__(70)),
        ("gfcf", lambda arrays: arrays["scorer.indices"].__iadd__(N_ITEMS)),
        ("gfcf", lambda arrays: arrays.update({"scorer.root_degree": arrays["scorer.root_degree"][:3]})),
        ("gfcf", lambda arrays: arrays.update({"scorer.factors": arrays["scorer.factors"][1:]})),
        ("ease", lambda arrays: arrays.update({"scorer.weights": arrays["scorer.weights"][:, :3].copy()})),
        ("ease", lambda arrays: arrays["scorer.weights"].fill(np.nan)),
        ("lightgcn", lambda arrays: arrays["fold.pool"].__iadd__(1000)),
        ("lightgcn", lambda arrays: arrays["fold.pool"][:4].__setitem__(slice(4), [0, 2**31 - 1, -(2**31), -1])),
        ("lightgcn", lambda arrays: arrays.update({"fold.item_degree": arrays["fold.item_degree"][1:]})),
        ("lightgcn", lambda arrays: arrays.update({"user_vectors": arrays["user_vectors"].astype(np.float64)})),
        ("lightgcn", lambda arrays: arrays["user_vectors"].fill(np.inf)),
    ],
)
def test_arrays_that_kernels_would_follow_out_of_bounds_are_refused(ws, model, change):
    fit(ws, model, assignments=["epochs=1", "dim=8"] if model == "lightgcn" else [])
    path = ws.path(f"models/{model}")
    arrays = {name: array.copy() for name, array in read_arrays(path).items()}
    change(arrays)
    write_arrays(path, arrays, {"reclm": json.dumps(ws.provenance(f"models/{model}", made_by=""))})
    told = reclm("recommend", "-w", ws.root, "--user", IDS[0], "--model", model, code=1)
    assert f"models/{model} is" in told and "unexpected" not in told


def spoil_bounds(arrays: dict[str, np.ndarray], name: str, dtype: type) -> None:
    """Row bounds that begin and end as they did, and point far behind the arrays between."""
    bounds = arrays[name].astype(dtype)
    bounds[1:-1:2] = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1 << 29
    arrays[name] = bounds


@pytest.mark.parametrize("dtype", [np.uint64, np.uint32, np.int64])
@pytest.mark.parametrize(
    ("artefact", "array"),
    [
        ("matrices/split", "train_indptr"),
        ("matrices/split", "valid_indptr"),
        ("matrices/split", "test_indptr"),
        ("matrices/split", "unseen_indptr"),
        ("models/ease", "histories.indptr"),
        ("models/itemknn", "scorer.indptr"),
    ],
)
def test_row_bounds_that_do_not_ascend_are_refused_and_forgotten_whatever_their_type(ws, artefact, array, dtype):
    for model in ("ease", "itemknn"):
        fit(ws, model)
    path = ws.path(artefact)
    arrays = dict(read_arrays(path))
    spoil_bounds(arrays, array, dtype)
    write_arrays(path, arrays, {"reclm": json.dumps(ws.provenance(artefact, made_by=""))})
    with pytest.raises(WorkspaceError, match=f"{artefact} is damaged"):
        load_split(ws) if artefact == "matrices/split" else load(ws, artefact)
    if array != "scorer.indptr":  # of items alone
        assert artefact in [deleted.path.removesuffix(".safetensors") for deleted in forget_users(ws, [IDS[3]]).deleted]


def test_row_bounds_and_numbers_of_a_file_are_compared_without_wrapping():
    near_end, top = np.iinfo(np.int64).max, np.iinfo(np.uint64).max
    for bounds in (
        np.array([0, near_end, -near_end - 1, -1, 3], np.int64),
        np.array([0, top, 1, 2, 3], np.uint64),
        np.array([0, 2, 1, 2, 3], np.uint8),
        np.array([0.0, 1, 2, 3, 3]),
    ):
        with pytest.raises(ValueError, match="row bounds of 4 rows"):
            row_bounds(bounds, 4, 3)
    assert row_bounds(np.array([0, 1, 1, 2, 3], np.uint8), 4, 3).dtype == np.int64
    with pytest.raises(ValueError, match="whole numbers from 0 to 9"):
        whole_numbers("items", np.array([1, top], np.uint64), 10)
    assert whole_numbers("items", np.array([1, 9], np.uint64), 10).dtype == np.int32


@pytest.mark.parametrize("name", ["vectors/items", "vectors/user_profiles"])
@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"vectors": np.zeros((3, 2), np.float32)},
        {"vectors": np.zeros((12, 4), np.int8)},
        {"vectors": np.full((12, 4), np.nan, np.float32), "text_hash": np.zeros(12, np.uint64)},
    ],
)
def test_vectors_of_another_shape_or_kind_are_not_used(ws, name, arrays):
    with ws.writing():
        ws.save(name, arrays, inputs={}, params={"encoder": HashEncoder.identity})
    for command in (
        ["recommend", "--user", IDS[0]],
        ["recommend", "--text", "goal"],
        ["neighbors"],
        ["fit", "biasmf", "--set", "epochs=1"],
    ):
        result = CliRunner().invoke(main, [*command, "-w", str(ws.root)])
        assert result.exit_code in (0, 1) and "unexpected" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "params",
    [
        {"relu_dim": 100},
        {"relu_dim": "x"},
        {"relu_dim": -5},
        {"metrics": [1]},
        {"metrics": {"ndcg@20": "high"}},
        {"scorer": 5},
        {"fold": {"surprise": 1}},
        {"fold": 7},
        {"hash_seed": "x"},
    ],
)
def test_settings_of_other_types_are_sentences(ws, params):
    path = ws.path("models/lightgcn")
    provenance = ws.provenance("models/lightgcn", made_by="")
    provenance["params"] |= params
    write_arrays(path, read_arrays(path), {"reclm": json.dumps(provenance)})
    for command in (
        ["recommend", "--user", IDS[0]],
        ["recommend", "--user", IDS[0], "--model", "lightgcn"],
        ["info"],
        ["evaluate"],
    ):
        result = CliRunner().invoke(main, [*command, "-w", str(ws.root)])
        assert result.exit_code in (0, 1) and "unexpected" not in result.stderr, result.stderr


def test_artefacts_that_name_one_another_by_the_dozen_are_walked_once_each(ws):
    """Sixteen layers of two, each made of both of the next layer: 2^16 ways, 32 artefacts."""
    for layer in range(15, -1, -1):
        inputs = (
            {f"models/l{layer + 1}{side}": ws.fingerprint(f"models/l{layer + 1}{side}") for side in "ab"}
            if layer < 15
            else {}
        )
        for side in "ab":
            ws.save(f"models/l{layer}{side}", {}, inputs=inputs, params={})
    read, provenance = [], ws.provenance
    ws.provenance = lambda name, **options: read.append(name) or provenance(name, **options)
    assert ws.stale_inputs("models/l0a") == []
    assert len(read) == 31
    read.clear()
    told = {}
    for name in [f"models/l{layer}{side}" for layer in range(16) for side in "ab"]:
        ws.stale_inputs(name, told)
    assert len(read) == 32


def header_alone(ws: Workspace, name: str, inputs: dict[str, str]) -> None:
    """An artefact without arrays, whose fingerprint is its name."""
    provenance = {"fingerprint": name, "inputs": inputs, "params": {}, "created": "2026-01-01T00:00:00+00:00"}
    write_arrays(ws.path(name), {}, {"reclm": json.dumps(provenance)})


def test_models_that_all_name_each_other_are_read_once_each_by_info(ws):
    names = [f"models/m{n}" for n in range(60)]
    for name in names:
        header_alone(ws, name, {other: other for other in names if other != name})
    read, provenance = [], ws.provenance
    ws.provenance = lambda name, **options: read.append(name) or provenance(name, **options)
    assert len(workspace_status(ws).stages) > 60
    assert len(read) < 4 * len(names)


def test_an_artefact_of_too_many_inputs_is_none(ws):
    header_alone(ws, "models/m", {f"models/m{n}": "x" for n in range(65)})
    with pytest.raises(WorkspaceError, match="expected at most 64 inputs, found 65"):
        ws.provenance("models/m", made_by="")


@pytest.mark.parametrize("inputs", [{"a": "b", "b": "a"}, {"a": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_who_is_in_models_that_name_each_other_is_forgotten_and_the_models_are_deleted(ws, inputs):
    for name, of in inputs.items():
        header_alone(ws, f"models/{name}", {f"models/{of}": f"models/{of}"})
    told = reclm("forget", IDS[3], "-w", ws.root, "--yes")
    assert IDS[3] not in user_ids(ws) and "made of what is made of it" in told
    assert not any(ws.has(f"models/{name}") for name in inputs) and ws.has("models/lightgcn")


def test_results_of_holes_or_in_a_pipe_are_left_out_of_the_report(ws):
    """A file of holes takes no disk; reading it whole took twice its size in memory."""
    path = ws.root / "reports" / "quant" / "quant.json"
    path.parent.mkdir()
    with open(path, "wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    reclm("report", "-w", ws.root)
    with pytest.raises(ValueError, match="expected at most 8,388,608 bytes"):
        read_document(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="regular file"):
        read_document(path)


@pytest.mark.parametrize(
    "detail",
    ["[]", "7", "{", '{"seconds": 1}', '{"source": 5, "seconds": "x"}', '{"seconds": 1e999, "source": ""}', "[" * 5000],
)
def test_a_job_that_tells_something_else_is_left_out_of_the_report(ws, detail):
    with ws.db:
        ws.db.execute(
            "INSERT INTO jobs (kind, state, started, detail) VALUES ('profile users', 'done', '', ?)", (detail,)
        )
    assert "unexpected" not in reclm("report", "-w", ws.root)


@pytest.mark.parametrize("change", ["first", "second", "shape", "history", "epochs", "unknown", "best"])
def test_a_checkpoint_that_lacks_something_is_begun_anew(tmp_path, change):
    state = checkpoint.State.start({"user_vectors": np.zeros((4, 2), np.float32)})
    path = tmp_path / "select.safetensors"
    checkpoint.write(path, "this", state)
    assert checkpoint.read(path, "this", state, 3) is not None
    if change in ("first", "second"):
        setattr(state, change, {})
    elif change == "shape":
        state.first["user_vectors"] = np.zeros((1, 2), np.float32)
    elif change == "history":
        state.history = [[1, 2]]
    elif change == "epochs":  # training would never come to its last one
        state.history = [[n, 3, 0.5, 0.1, 0.1, 1.0, "select"] for n in range(1, 5)]
    elif change == "unknown":
        state.params["other"] = np.zeros(3, np.float32)
    else:
        state.best_epoch = 3
    checkpoint.write(path, "this", state)
    start = checkpoint.State.start({"user_vectors": np.zeros((4, 2), np.float32)})
    assert checkpoint.read(path, "this", start, 3) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users SET user_idx = user_idx + 1000000",
        "UPDATE users SET user_idx = -1 WHERE user_idx = 3",
        "INSERT INTO profiles (side, idx, status, text, source, created) VALUES ('user', 0, 'ok', x'ff00', '', '')",
    ],
)
def test_rows_with_other_numbers_or_without_texts_are_sentences(ws, statement):
    with ws.db:
        ws.db.execute(statement)
    for command in (
        ["info"],
        ["recommend", "--user", IDS[0]],
        ["embed", "profiles"],
        ["forget", IDS[0], "--yes"],
        ["profile", "show", "--user", IDS[0]],
    ):
        result = CliRunner().invoke(main, [*command, "-w", str(ws.root)])
        assert result.exit_code in (0, 1) and "unexpected" not in result.stderr, (command, result.stderr)


def test_a_device_gets_what_was_written_and_stays_a_device(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    with atomic_path(pipe, named_by_user=True) as temporary:
        temporary.write_text("told")
    assert reader.communicate(timeout=10)[0] == b"told" and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_to_a_pipe_in_a_workspace_is_replaced_and_not_written_through(ws, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for name in ("models/popularity.safetensors", "reports/report.html"):
        (ws.root / name).unlink(missing_ok=True)
        (ws.root / name).symlink_to(pipe)
    ws.close()
    reclm("fit", "popularity", "-w", ws.root)
    reclm("report", "-w", ws.root)
    assert os.read(reader, 1) == b"" and (ws.root / "reports" / "report.html").is_file()
    os.close(reader)


@pytest.mark.parametrize("name", ["identity.json", "select.safetensors"])
def test_a_checkpoint_that_is_a_pipe_or_a_link_is_not_read(ws, tmp_path, name):
    folder = ws.root / "models" / ".lightgcn.checkpoint"
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        folder.mkdir()
        make(folder / name)
        reclm("fit", "lightgcn", "-w", ws.root, "--set", "epochs=1", "--set", "dim=8")
        assert not folder.exists()


def test_a_lock_of_another_name_too_is_locked_and_not_written(ws, tmp_path):
    (ws.root / ".lock").unlink(missing_ok=True)
    (tmp_path / "notes").write_text("mine")
    os.link(tmp_path / "notes", ws.root / ".lock")
    with ws.writing():
        pass
    assert (tmp_path / "notes").read_text() == "mine"


def test_commands_that_are_named_quote_what_stands_in_a_file(ws):
    path = ws.path("models/lightgcn")
    provenance = ws.provenance("models/lightgcn", made_by="")
    provenance["params"] |= {"preset": "x; touch /tmp/PWNED #", "overridden": ["a=$(id)"], "seed": "1; id"}
    write_arrays(path, read_arrays(path), {"reclm": json.dumps(provenance)})
    (ws.root / "llm" / "$(id)").mkdir()
    (ws.root / "llm" / "$(id)" / "run.json").write_text("{}")
    told = reclm("forget", IDS[1], "-w", ws.root, "--dry-run")
    for word in ("'x; touch /tmp/PWNED #'", "'a=$(id)'", "'1; id'", "'$(id)'"):
        assert word in told


def test_forget_removes_what_a_killed_import_left_and_names_it(ws, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    (scratch / "reclm-import-abcdefgh").mkdir(parents=True)
    (scratch / "reclm-import-abcdefgh" / "lock").touch()
    (scratch / "reclm-import-abcdefgh" / "staging.duckdb").write_text(IDS[3])
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert str(scratch / "reclm-import-abcdefgh") in {
        deleted.path for deleted in forget_users(ws, [IDS[3]], dry_run=True).deleted
    }
    assert list(scratch.iterdir())
    forget_users(ws, [IDS[3]])
    assert list(scratch.iterdir()) == []
