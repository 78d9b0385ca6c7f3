"""A workspace keeps to itself: links are not followed out of it, plans name nothing elsewhere, people who left can
still be forgotten, files have one mode, and a full disk does not hinder reading.
"""

import json
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from profile_workspace import HashEncoder, text_of

from reclm_lite.artefacts import ids_digest, read_arrays, read_provenance, row_bounds, whole_numbers, write_arrays
from reclm_lite.cf import checkpoint
from reclm_lite.cf.fit import fit
from reclm_lite.cf.neighbors import neighbors
from reclm_lite.cf.store import load
from reclm_lite.cli import main
from reclm_lite.data.dataset import LEFT_BEHIND, Imported, load_interactions, load_split, save_imported, user_ids
from reclm_lite.data.split import run_split
from reclm_lite.errors import InputError, WorkspaceError
from reclm_lite.files import MAX_DOCUMENT_BYTES, atomic_folder, atomic_path, lock_file, read_document
from reclm_lite.forget import forget_users, of_earlier_data
from reclm_lite.forget_plan import FORGETTING
from reclm_lite.serve.recommend import recommend
from reclm_lite.status import workspace_status
from reclm_lite.text.item_vectors import embed_items
from reclm_lite.workspace import FORGETTING, Workspace

IDS = [f"reader-{n}" for n in range(10)]
N_ITEMS = 12


def bring(ws: Workspace, ids: list[str], **options) -> None:
    rng = np.random.default_rng(len(ids))
    pairs = [(user, int(item)) for user in range(len(ids)) for item in rng.choice(N_ITEMS, 5, replace=False)]
    columns = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    items = [f"i{n}" for n in range(N_ITEMS)]
    save_imported(
        ws,
        Imported("shop", ids, items, [text_of(n) for n in range(N_ITEMS)], *columns, manifest={"format": "table"}),
        **options,
    )


def fill(ws: Workspace) -> None:
    run_split(ws, "ratio", seed=0)
    embed_items(ws, HashEncoder())
    fit(ws, "lightgcn", assignments=["epochs=1", "dim=8"])
    neighbors(ws, 2)
    (ws.root / "reports" / "report.html").write_text(f"about {IDS[3]}")
    (ws.root / "llm" / "dialogues").mkdir()
    (ws.root / "llm" / "dialogues" / "sft.jsonl").write_text(f'{{"about": "{IDS[3]}"}}\n')


@pytest.fixture
def ws(tmp_path):
    with Workspace.create(tmp_path / "ws") as ws:
        bring(ws, IDS)
        fill(ws)
        yield ws


def reclm(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}: {result.output} {result.stderr} {result.exception!r}"
    return result.stdout + result.stderr


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- links -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reports", "llm/dialogues", "llm", "models", "matrices"])
def test_forget_touches_nothing_that_a_link_leads_to_and_names_it(ws, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(ws.root / name, elsewhere)
    (elsewhere / "letters.txt").write_text("not of this software")
    (ws.root / name).symlink_to(elsewhere, target_is_directory=True)
    before = files_in(elsewhere)
    summary = forget_users(ws, [IDS[3]])
    assert files_in(elsewhere) == before
    assert any(
        "Links are not followed" in remains.text and f"{name} -> {elsewhere}" in remains.text
        for remains in summary.remains
    )
    assert IDS[3] not in user_ids(ws)


def test_links_to_files_are_left_and_their_rows_are_opened_no_more(ws, tmp_path):
    model, elsewhere = ws.path("models/lightgcn"), tmp_path / "lightgcn.safetensors"
    shutil.move(model, elsewhere)
    model.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    summary = forget_users(ws, [IDS[3]])
    assert elsewhere.read_bytes() == before and model.is_symlink()
    assert any("models/lightgcn.safetensors -> " in remains.text for remains in summary.remains)
    assert ws.has_rows_of_others("models/lightgcn") and "the list of users" in ws.stale_inputs("models/lightgcn")


def test_a_link_among_the_reports_is_deleted_but_not_what_it_leads_to(ws, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "letters.txt").write_text("kept")
    (ws.root / "reports" / "link").symlink_to(tmp_path / "kept", target_is_directory=True)
    forget_users(ws, [IDS[3]])
    assert (tmp_path / "kept" / "letters.txt").read_text() == "kept" and not list((ws.root / "reports").iterdir())


@pytest.mark.parametrize("where", ["../victim", "{absolute}", "reports/../../victim", "llm/out/victim"])
@pytest.mark.parametrize("step", ["rename", "delete", "empty"])
def test_a_plan_that_names_a_file_elsewhere_is_not_carried_out(ws, tmp_path, where, step):
    """A workspace that somebody else made may hold any plan; opening it must not delete or overwrite files of this
    machine."""
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "inner" / "file").write_text("mine")
    (ws.root / "llm" / "out").symlink_to(tmp_path, target_is_directory=True)
    (ws.root / "bait").write_text("theirs")
    name = where.format(absolute=victim)
    plan = {"rename": [], "delete": [], "empty": []}
    plan[step] = (
        [["bait", f"{name}/inner/file"], [f"{name}/inner/file", "models/stolen"]]
        if step == "rename"
        else [f"{name}/inner", name]
    )
    with ws.db:
        ws.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (FORGETTING, json.dumps(plan)))
    ws.close()
    with Workspace.open(ws.root) as again:
        assert again.get_meta(FORGETTING) is None
    assert (victim / "inner" / "file").read_text() == "mine" and not (ws.root / "models" / "stolen").exists()


@pytest.mark.parametrize(
    "name",
    [
        ".lock",
        "workspace.toml",
        "models/popularity.safetensors",
        "matrices/split.safetensors",
        "models/.lightgcn.checkpoint",
    ],
)
def test_links_of_names_known_in_advance_are_not_written_through(ws, tmp_path, name):
    """A received workspace may hold a link to any file or folder of the machine under a name that a command will
    write."""
    victim = tmp_path / "victim"
    if name.endswith("checkpoint"):
        victim.mkdir()
        (victim / "letters.txt").write_text("mine")
    else:
        victim.write_text("mine")
    path = ws.root / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    before = files_in(victim) if victim.is_dir() else victim.read_bytes()
    ws.close()
    for command in (
        ["split", "--method", "ratio"],
        ["fit", "popularity"],
        ["fit", "lightgcn", "--set", "epochs=1"],
        ["report"],
    ):
        CliRunner().invoke(main, [*command, "-w", str(ws.root)])
    assert (files_in(victim) if victim.is_dir() else victim.read_bytes()) == before


def test_a_database_that_is_a_link_is_refused(ws, tmp_path):
    ws.close()
    shutil.move(ws.root / "workspace.db", tmp_path / "other.db")
    (ws.root / "workspace.db").symlink_to(tmp_path / "other.db")
    with pytest.raises(WorkspaceError, match="is a link to .*other.db, expected the file itself"):
        Workspace.open(ws.root)


def test_temporary_names_that_are_links_are_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "letters.txt").write_text("mine")
    (tmp_path / f".x.toml.{os.getpid()}.tmp").symlink_to(victim / "letters.txt")
    with atomic_path(tmp_path / "x.toml") as temporary:
        temporary.write_text("ours")
    (tmp_path / ".out.partial").symlink_to(victim)
    (tmp_path / "out").symlink_to(victim)
    with atomic_folder(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "letters.txt").write_text("ours")
    (tmp_path / "log").symlink_to(victim / "letters.txt")
    with pytest.raises(WorkspaceError, match="is a link"):
        lock_file(tmp_path / "log")
    assert (victim / "letters.txt").read_text() == "mine" and len(list(victim.iterdir())) == 1
    assert (tmp_path / "x.toml").read_text() == "ours" == (tmp_path / "out" / "letters.txt").read_text()


@pytest.mark.parametrize("name", ["reports", "matrices", "models", "llm/dialogues"])
def test_nothing_is_made_in_a_folder_that_is_a_link_unless_the_user_says_so(ws, tmp_path, monkeypatch, name):
    shutil.move(ws.root / name, tmp_path / "elsewhere")
    (ws.root / name).symlink_to(tmp_path / "elsewhere")
    before = files_in(tmp_path / "elsewhere")
    ws.close()
    for command in (
        ["split", "--method", "ratio"],
        ["fit", "popularity"],
        ["report"],
        ["dialogue", "build", "sft", "--limit", "2"],
    ):
        assert f"{name} is a link to {tmp_path / 'elsewhere'}" in reclm(*command, "-w", ws.root, code=1)
    assert files_in(tmp_path / "elsewhere") == before
    monkeypatch.setenv("RECLM_FOLLOW_LINKS", "1")
    reclm("fit", "popularity", "-w", ws.root)


@pytest.mark.parametrize(
    "plan",
    [
        "[]",
        "{",
        "5",
        '{"rename": [["a", "b", "c"]], "empty": [], "delete": []}',
        '{"rename": [], "empty": [3], "delete": []}',
        '{"rename": [], "empty": [], "delete": ["a\\u0000b"]}',
        "[" * 100_000,
    ],
)
def test_a_plan_that_is_none_is_left_out(ws, plan):
    with ws.db:
        ws.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (FORGETTING, plan))
    ws.close()
    with Workspace.open(ws.root) as again:
        assert again.get_meta(FORGETTING) is None and user_ids(again) == IDS


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


# -- people who left ---------------------------------------------------------------------


@pytest.mark.parametrize("update", [True, False])
def test_who_left_with_an_import_is_named_to_remain_and_can_be_forgotten_by_id(ws, update):
    bring(ws, [ident for ident in IDS if ident != IDS[3]], update=update)
    assert ws.get_meta(LEFT_BEHIND) == "1"
    told = {deleted.path for deleted in of_earlier_data(ws)}
    assert {
        "reports",
        "llm/dialogues/sft.jsonl",
        "models/lightgcn.safetensors",
        "matrices/neighbors.safetensors",
    } <= told
    assert (ws.root / "reports" / "report.html").exists(), "looking deletes nothing"
    summary = forget_users(ws, [IDS[3]])
    assert summary.not_in_data == [IDS[3]] and summary.users == []
    assert not any(IDS[3].encode() in content for content in files_in(ws.root).values())
    assert user_ids(ws) == [ident for ident in IDS if ident != IDS[3]] and load_interactions(ws).n_users == 9
    assert of_earlier_data(ws) == [] and ws.get_meta(LEFT_BEHIND) is None
    assert ws.has("vectors/items"), "item vectors tell of nobody"
    with pytest.raises(InputError, match="expected the id of a user"):
        forget_users(ws, [IDS[3]])


def test_who_is_there_and_who_left_go_in_one_pass(ws):
    bring(ws, IDS[1:], update=True)
    run_split(ws, "ratio", seed=0)
    fit(ws, "popularity")
    summary = forget_users(ws, [IDS[0], IDS[5]])
    assert (summary.users, summary.not_in_data) == ([IDS[5]], [IDS[0]])
    assert user_ids(ws) == [ident for ident in IDS[1:] if ident != IDS[5]]
    assert ws.stale_inputs("models/popularity") == [] and not ws.has("models/lightgcn")


def test_an_update_without_loss_leaves_nobody_behind(ws):
    bring(ws, [*IDS, "new"], update=True)
    assert ws.get_meta(LEFT_BEHIND) is None and of_earlier_data(ws) == []


def test_replaced_people_are_wiped_from_the_free_pages_of_the_database(ws):
    bring(ws, [f"somebody-else-{n}" for n in range(10)])
    ws.close()
    assert b"reader-3" not in (ws.root / "workspace.db").read_bytes()
    assert not (ws.root / "workspace.db-wal").exists() or b"reader-3" not in (ws.root / "workspace.db-wal").read_bytes()


def test_command_for_all_who_left(ws):
    reclm("forget", "-w", ws.root, "--yes", code=2)
    assert "Would delete reports" in reclm("forget", "--gone", "-w", ws.root, "--dry-run"), "they may tell of anybody"
    bring(ws, IDS[:-2], update=True)
    assert "Would delete models/lightgcn.safetensors: made of earlier data" in reclm(
        "forget", "--gone", "-w", ws.root, "--dry-run"
    )
    assert (ws.root / "models" / "lightgcn.safetensors").exists()
    told = reclm("forget", IDS[-1], "-w", ws.root, "--yes")
    assert f"Not among the present users: {IDS[-1]}" in told and "Deleted reports" in told
    assert not (ws.root / "models" / "lightgcn.safetensors").exists()


def test_what_the_library_leaves_of_a_killed_write_is_deleted(ws):
    left = ws.root / "models" / ".tmpAb12Cd"
    left.write_text(IDS[3])
    forget_users(ws, [IDS[3]])
    assert not left.exists()


# -- files ---------------------------------------------------------------------------------


def test_artefacts_have_the_mode_that_the_umask_gives_like_the_database(tmp_path):
    before = os.umask(0o027)
    try:
        with Workspace.create(tmp_path / "ws") as ws:
            bring(ws, IDS)
            fill(ws)
            modes = {stat.S_IMODE(path.stat().st_mode) for path in ws.root.rglob("*") if path.is_file()}
    finally:
        os.umask(before)
    assert modes == {0o640}


def test_a_header_that_is_no_header_is_refused_with_a_reason(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (
        b"",
        b"\xff" * 8,
        b"\x00" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="header"):
            read_provenance(path)


def test_digests_of_ids_tell_apart_what_joins_to_the_same_text():
    assert len({ids_digest("0", ids) for ids in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["c", "ab"], [])}) == 6
    assert ids_digest("0", ["a"]) != ids_digest("1", ["a"])


def test_the_digest_follows_the_table_also_when_another_process_changes_it(ws):
    before = ws.ids()
    assert ws.ids() is before
    with sqlite3.connect(ws.db_path) as other:
        other.execute("UPDATE users SET user_id='x' WHERE user_idx=0")
    other.close()
    assert ws.ids()["users"] != before["users"] and ws.ids()["items"] == before["items"]


def test_a_configuration_that_is_no_table_is_a_sentence(ws):
    ws.toml_path.write_text("data = 5\n")
    with pytest.raises(WorkspaceError, match=r"expected a section \[data\]"):
        ws.config  # noqa: B018
    ws.toml_path.write_text("a = " + "[" * 100_000)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        ws.config  # noqa: B018


def test_the_manifest_is_restored_from_the_interactions(ws):
    ws.toml_path.write_text("")
    load_interactions(ws)
    assert ws.config["data"] == {
        "name": "shop",
        "interactions": load_interactions(ws).fingerprint,
        "manifest": {"format": "table"},
    }


# -- a full disk -----------------------------------------------------------------------------


@pytest.fixture
def full(ws, tmp_path):
    """A copy of the workspace on a file system of its own that has not a byte left."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def fill_up(folder: Path) -> None:
    with open(folder / "filler", "ab", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))


@pytest.mark.parametrize("has_log", [False, True])
def test_a_full_disk_does_not_hinder_info_and_recommend(ws, full, has_log):
    root = full / "ws"
    if has_log:  # as a killed process leaves it: rows that are in the log alone
        ws.db.execute("PRAGMA wal_autocheckpoint=0")
        with ws.db:
            ws.db.execute("UPDATE items SET title='A new title' WHERE item_idx=0")
        shutil.copytree(ws.root, root)
        (root / "workspace.db-shm").unlink()
        assert (root / "workspace.db-wal").stat().st_size
    else:
        ws.close()
        shutil.copytree(ws.root, root)
    fill_up(full)
    assert shutil.disk_usage(full).free == 0
    assert "model lightgcn" in reclm("info", "-w", root)
    assert json.loads(reclm("recommend", "-w", root, "--user", IDS[2], "--json"))["basis"] == "model"
    fill_up(full)  # the log has become part of the database, which freed some
    told = reclm("fit", "popularity", "-w", root, code=1)
    assert "no space left" in told
    with Workspace.open(root) as opened:
        title = opened.db.execute("SELECT title FROM items WHERE item_idx=0").fetchone()[0]
    assert (title == "A new title") == has_log


@pytest.mark.parametrize(
    "line",
    [
        "a." * 40 + "b = 1",
        "a . " * 40 + "b = 1",
        '"a\\"".' * 40 + "b = 1",
        "'a'." * 40 + "b = 1",
        "[" + "a." * 40 + "b]",
        "c = {" + "a." * 40 + "b = 1}",
        "c = " + "[" * 40 + "]" * 40,
    ],
)
def test_a_configuration_of_deep_keys_is_a_sentence(ws, line):
    """tomllib takes time and memory by the square of a key's parts: 40 kB took 27 s and 7 GB."""
    ws.toml_path.write_text(f"[data]\n{line}\n")
    with pytest.raises(WorkspaceError, match="expected .*at most 32"):
        ws.config  # noqa: B018


def test_a_configuration_with_dots_in_texts_is_read(ws):
    text = "1.2.3 www.a-shop.example.com/a.b.c " * 50
    ws.set_config("data", {"name": text, "manifest": {"of": [{"x.y": text}] * 40}})
    assert ws.config["data"]["name"] == text
