"""Profiles out of a workspace and into another one: the same texts, all or none, and what a person wrote stays."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from profile_workspace import make_workspace

from reclm_lite.cli import main
from reclm_lite.csv_cells import is_formula, marked, unmarked
from reclm_lite.data.dataset import Imported, save_imported
from reclm_lite.errors import InputError, WorkspaceError
from reclm_lite.profiles import store
from reclm_lite.profiles.answers import Generation
from reclm_lite.profiles.exchange import export_profiles, export_to_file, import_profiles
from reclm_lite.profiles.exchange_format import COLUMNS, format_of
from reclm_lite.profiles.store import Origin
from reclm_lite.workspace import Workspace

TRAIN = {0: [0, 1], 1: [1], 2: [2], 3: [3], 4: [4]}
TEXT = "User identity: cook, gardener, parent; User interests: herbs, soups, tools"
OTHER = "User identity: pilot, reader, walker; User interests: jets, rivers, bread"
ITEM = "User identity: fan, coach, player; User interests: cups, goals, derbies"


@pytest.fixture
def ws(tmp_path):
    with make_workspace(tmp_path / "ws", TRAIN) as ws:
        yield ws


@pytest.fixture
def full(ws):
    """u0 made by a model, u1 invalid, u2 edited, i3 made by a model, i4 imported."""
    with ws.db:
        store.put_profiles(ws, "user", [0], Generation("k0", TEXT, "ok"), TEXT, "some model", origin=Origin("history"))
        store.put_profiles(ws, "user", [1], Generation("k1", "no", "invalid", "expected, found"), "", "some model")
        store.put_profiles(
            ws, "item", [3], Generation("k3", ITEM, "ok"), ITEM, 'a "model", quoted', origin=Origin("text")
        )
        ws.db.execute(
            "INSERT INTO profiles (side, idx, status, text, source, created) VALUES ('item', 4, 'imported', ?, "
            "'elsewhere', '2024-01-01')",
            (ITEM,),
        )
    store.set_profile(ws, "user", 2, OTHER)
    return ws


def written(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def row(ident: object, text: object = TEXT, **more) -> dict:
    return {"side": "user", "id": ident, "profile": text, **more}


def profiles(ws: Workspace) -> dict[tuple[str, int], tuple]:
    rows = ws.db.execute("SELECT side, idx, status, text, source, basis, created FROM profiles")
    return {(side, idx): tuple(rest) for side, idx, *rest in rows}


# -- out ------------------------------------------------------------------------


def test_export_has_every_profile_in_order_with_ids_and_reasons(full):
    out = io.BytesIO()
    assert export_profiles(full, out) == 5
    rows = [json.loads(line) for line in out.getvalue().decode().splitlines()]
    assert [(one["side"], one["id"], one["status"]) for one in rows] == [
        ("user", "u0", "ok"),
        ("user", "u1", "invalid"),
        ("user", "u2", "edited"),
        ("item", "i3", "ok"),
        ("item", "i4", "imported"),
    ]
    assert all(tuple(one) == COLUMNS for one in rows)
    assert rows[0]["basis"] == "history" and rows[1]["reason"] == "expected, found" and rows[1]["profile"] == ""
    only = io.BytesIO()
    assert export_profiles(full, only, ("item",)) == 2 and b'"u0"' not in only.getvalue()


def test_csv_and_json_lines_say_the_same(full, tmp_path):
    lines, table = tmp_path / "p.jsonl", tmp_path / "p.csv"
    export_to_file(full, lines)
    export_to_file(full, table, form="csv")
    with open(table, encoding="utf-8", newline="") as handle:
        assert list(csv.DictReader(handle)) == [json.loads(line) for line in lines.read_text().splitlines()]


def test_export_replaces_no_file_unasked_and_leaves_none_half_written(full, tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    path.write_text("precious")
    with pytest.raises(InputError, match="--force"):
        export_to_file(full, path)
    assert path.read_text() == "precious"
    with monkeypatch.context() as patch:
        patch.setattr("reclm_lite.profiles.exchange.json_text", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_to_file(full, path, force=True)
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 2
    assert export_to_file(full, path, force=True) == 5 and "u0" in path.read_text()
    with pytest.raises(InputError, match="does not exist"):
        export_to_file(full, tmp_path / "nowhere" / "p.jsonl")


def test_format_goes_by_the_ending(tmp_path):
    assert [format_of(Path(name), None) for name in ("a.jsonl", "a.ndjson", "a.CSV")] == ["jsonl", "jsonl", "csv"]
    assert format_of(None, None) == "jsonl" and format_of(Path("a.txt"), "csv") == "csv"
    with pytest.raises(InputError, match="--format"):
        format_of(Path("a.txt"), None)


# -- out and in -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_fresh_workspace_of_the_same_data_gets_the_same_usable_texts(full, tmp_path, form):
    path = tmp_path / f"p.{form}"
    export_to_file(full, path, form=form)
    with make_workspace(tmp_path / "fresh", TRAIN) as fresh:
        summary = import_profiles(fresh, path)
        assert (summary.n_imported, summary.n_invalid, summary.n_bad) == (4, 1, 0)
        for side in store.SIDES:
            assert store.usable_profiles(fresh, side) == store.usable_profiles(full, side)
        before, after = profiles(full), profiles(fresh)
        assert after[("user", 0)] == ("imported", *before[("user", 0)][1:])
        assert after[("user", 2)] == before[("user", 2)] and after[("item", 4)] == before[("item", 4)]
        again = import_profiles(fresh, path)
        assert (again.n_imported, again.n_unchanged) == (0, 4) and profiles(fresh) == after


def test_ids_of_any_spelling_come_back(tmp_path):
    ids = ["007", "7", "a,b", 'q"q', "two\nlines", "c\rr", "ü\u2028", " padded ", "=1+1"]
    for form in ("jsonl", "csv"):
        with Workspace.create(tmp_path / form) as ws:
            import numpy as np

            none = np.zeros(0, np.int32)
            save_imported(ws, Imported("ids", ids, [], [], none, none))
            with ws.db:
                for idx in range(len(ids)):
                    text = TEXT.replace("cook", f"cook {idx}")
                    store.put_profiles(ws, "user", [idx], Generation(f"k{idx}", text, "ok"), text, "m")
            before = store.usable_profiles(ws, "user")
            export_to_file(ws, tmp_path / f"ids.{form}", form=form)
            ws.db.execute("DELETE FROM profiles")
            ws.db.commit()
            assert import_profiles(ws, tmp_path / f"ids.{form}").n_imported == len(ids)
            assert store.usable_profiles(ws, "user") == before


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\ufeff=1",
    "\u200b +1",
    "\uff1d1",
    "\uff0b1",
    "\uff0d1",
    "\uff20x",
    "\u22121",
    "\x00=1",
    "'=1",
    "''@x",
    "' =1",
    "\tx",
]
NO_FORMULAS = ["a=1", "", "'", "''", "'a", "it's", "1-1", "7", " padded ", "'7", "(=1)", "ü", "日本=1"]


@pytest.mark.parametrize("cell", FORMULAS + NO_FORMULAS, ids=ascii)
def test_a_cell_is_marked_where_a_spreadsheet_would_run_it_and_comes_back_the_same(cell):
    assert (marked(cell) != cell) == (cell in FORMULAS)
    assert not is_formula(marked(cell)) and unmarked(marked(cell)) == cell
    assert (
        unmarked(cell) == cell or cell in FORMULAS
    )  # of a file that somebody else wrote only what looks like a mark is taken off


def test_numbers_are_not_marked():
    assert marked(-1.5) == -1.5


def test_no_cell_of_an_exported_csv_is_a_formula_and_every_text_comes_back(tmp_path):
    import numpy as np

    ids, none = [text for text in FORMULAS + NO_FORMULAS if text and "\0" not in text], np.zeros(0, np.int32)
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, Imported("ids", ids, [], [], none, none))
        with ws.db:
            for idx, source in enumerate(ids):
                text = f"User identity: =cook {idx}, -b, @c; User interests: +x, y, z"
                store.put_profiles(
                    ws, "user", [idx], Generation(f"k{idx}", text, "ok"), text, source, origin=Origin("history")
                )
        before = profiles(ws)
        for form in ("csv", "jsonl"):
            path = tmp_path / f"p.{form}"
            export_to_file(ws, path, form=form, force=True)
            if form == "csv":
                with open(path, encoding="utf-8", newline="") as handle:
                    assert not [cell for row in csv.reader(handle) for cell in row if is_formula(cell)]
            else:
                assert [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()] == ids
            with ws.db:
                ws.db.execute("DELETE FROM profiles")
            assert import_profiles(ws, path).n_imported == len(ids)
            # A source is kept on one line without spaces around it; all else as it was.
            assert [one[1:] for one in profiles(ws).values()] == [
                (text, " ".join(source.split()), *rest) for _, text, source, *rest in before.values()
            ]


def test_json_lines_hold_what_a_terminal_would_obey_as_escapes(tmp_path):
    import numpy as np

    ident, none = "\x1b[2J\x9b31m\u202e\u2028é", np.zeros(0, np.int32)
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, Imported("ids", [ident], [], [], none, none))
        with ws.db:
            store.put_profiles(ws, "user", [0], Generation("k", TEXT, "ok"), TEXT, "m")
        out = io.BytesIO()
        export_profiles(ws, out)
    assert (
        json.loads(out.getvalue())["id"] == ident and "\\u001b[2J\\u009b31m\\u202e\\u2028é" in out.getvalue().decode()
    )


# -- in --------------------------------------------------------------------------


def test_texts_are_brought_into_the_usual_form(ws, tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        {
            "id": "u0",
            "profile": f"  {TEXT.replace(': cook', ':  cook').replace('User interests', 'user INTERESTS')}.\n",
        },
    )
    import_profiles(ws, path, side="users")
    assert profiles(ws)[("user", 0)][:3] == ("imported", TEXT, "imported from p.jsonl")


def test_an_import_replaces_what_a_model_made_or_an_import_brought_but_not_what_was_written_here(full, tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        row("u0", OTHER, source="my model"),
        row("u1"),
        row("u2"),
        {"side": "items", "id": "i4", "profile": TEXT},
    )
    summary = import_profiles(full, path)
    assert (summary.n_imported, summary.n_kept) == (3, 1) and "--overwrite" in summary.sentence()
    assert profiles(full)[("user", 0)][:3] == ("imported", OTHER, "my model")
    assert profiles(full)[("user", 2)][:2] == ("edited", OTHER)
    assert profiles(full)[("item", 4)][1] == TEXT
    assert import_profiles(full, path, overwrite=True).n_imported == 1
    assert profiles(full)[("user", 2)][:2] == ("imported", TEXT)
    assert store.protected_idxs(full, "user") == {0, 1, 2}


def test_a_file_that_comes_home_changes_nothing(full, tmp_path):
    before, path = profiles(full), tmp_path / "p.jsonl"
    export_to_file(full, path)
    summary = import_profiles(full, path)
    assert (summary.n_imported, summary.n_unchanged, summary.n_invalid) == (0, 4, 1)
    assert profiles(full) == before and store.protected_idxs(full, "user") == {2}


def test_edited_stays_edited_and_every_other_status_becomes_imported(ws, tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        row("u0", status="edited"),
        row("u1", status="ok"),
        row("u2", status="odd"),
        row("u3", "", status="invalid"),
    )
    assert import_profiles(ws, path).n_invalid == 1
    assert {idx: rest[0] for (_, idx), rest in profiles(ws).items()} == {0: "edited", 1: "imported", 2: "imported"}


def test_one_bad_row_stops_all_and_the_first_five_are_named_with_their_lines(ws, tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        row("u0"),
        "",
        row("nobody"),
        row("u1", "a nice person"),
        "{not json",
        "[1]",
        {"side": "user", "profile": TEXT},
        row("u2"),
        row("u2", OTHER),
        {"id": "u3", "profile": TEXT},
        row("u4", 7),
        {**row("u4"), "side": "shop"},
    )
    with pytest.raises(InputError) as raised:
        import_profiles(ws, path)
    told = str(raised.value)
    assert "9 of 11 rows" in told and "and 4 more" in told and "nothing was imported" in told
    for part in (
        "line 3: the workspace has no user 'nobody'",
        "line 4: expected 'User identity",
        "line 5: not JSON",
        "line 6: expected an object",
        "line 7: expected an id",
    ):
        assert part in told
    assert not profiles(ws) and not ws.db.in_transaction
    summary = import_profiles(ws, path, skip_invalid=True)
    assert (summary.n_imported, summary.n_bad, len(summary.bad)) == (
        2,
        9,
        5,
    ) and "9 skipped (line 3" in summary.sentence()
    assert {idx: rest[1] for (_, idx), rest in profiles(ws).items()} == {0: TEXT, 2: TEXT}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"side": "user", "id": "u0", "profile": 5}, "expected a text"),
        ({"side": "user", "id": "u0"}, "expected a text"),
        ({"id": "u0", "profile": TEXT}, "--side users"),
        (row("u0", TEXT.replace("cook, ", "")), "expected 3 identities"),
        (row("u0", TEXT.replace("cook", "parent")), "3 different identities"),
        (row(True), "expected an id"),
        (row("\ud800"), "no user"),
        ('{"side": "user", "id": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_kind_of_bad_row_is_told(ws, tmp_path, bad, told):
    with pytest.raises(InputError, match="line 2") as raised:
        import_profiles(ws, written(tmp_path / "p.jsonl", row("u1"), bad))
    assert told in str(raised.value) and not profiles(ws)


def test_nothing_to_import_is_an_error_even_if_bad_rows_may_be_left_out(ws, tmp_path):
    with pytest.raises(InputError, match="none of its 1 row"):
        import_profiles(ws, written(tmp_path / "p.jsonl", row("nobody")), skip_invalid=True)
    with pytest.raises(InputError, match="at least one row"):
        import_profiles(ws, written(tmp_path / "header.csv", "id,profile"), side="users")
    with pytest.raises(InputError, match="does not exist"):
        import_profiles(ws, tmp_path / "none.csv")


def test_side_picks_rows_and_fills_in_where_they_say_nothing(full, tmp_path):
    with make_workspace(tmp_path / "fresh", TRAIN) as fresh:
        export_to_file(full, tmp_path / "both.csv", form="csv")
        summary = import_profiles(fresh, tmp_path / "both.csv", side="items")
        assert (summary.n_imported, summary.n_other_side) == (2, 3) and {side for side, _ in profiles(fresh)} == {
            "item"
        }
        import_profiles(fresh, written(tmp_path / "p.csv", "id,profile", f'u3,"{TEXT}"'), side="users")
        assert ("user", 3) in profiles(fresh)


def test_whole_numbers_may_be_ids_in_json(tmp_path):
    import numpy as np

    none = np.zeros(0, np.int32)
    with Workspace.create(tmp_path / "ws") as ws:
        save_imported(ws, Imported("ids", ["7", "007"], [], [], none, none))
        import_profiles(ws, written(tmp_path / "p.jsonl", row(7)))
        assert list(profiles(ws)) == [("user", 0)]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["id,text", f'u0,"{TEXT}"'], "expected the columns id and profile, found id, text"),
        (["id,profile,id", f'u0,"{TEXT}",u1'], "id twice"),
        (["id,profile", 'u0,"never closed'], "not CSV"),
        (["id,profile", f'u0,"{TEXT}"', "u1"], "line 3: expected 2 columns, found 1"),
        (["id,profile", 'u0,"two', 'lines"', "u1,x"], "line 2: expected 'User identity.*line 4: "),
    ],
)
def test_bad_tables_are_told_with_their_lines(ws, tmp_path, lines, told):
    with pytest.raises(InputError, match=told):
        import_profiles(ws, written(tmp_path / "p.csv", *lines), side="users")
    assert not profiles(ws) and not ws.db.in_transaction


def test_bytes_that_are_no_text_are_told_with_their_line(ws, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(row("u0")).encode() + b"\n\xff\xfe\n")
    with pytest.raises(InputError, match="line 2"):
        import_profiles(ws, path)


def test_byte_order_mark_is_no_part_of_the_first_column(ws, tmp_path):
    for name, text in (("p.csv", f'id,profile\nu0,"{TEXT}"\n'), ("p.jsonl", json.dumps(row("u1")) + "\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert import_profiles(ws, tmp_path / name, side="users").n_imported == 1


def test_published_files_are_read_by_their_own_columns(ws, tmp_path):
    path = written(
        tmp_path / "mind_fine_tune.csv",
        "UID,Input,Response",
        f'u0,"many\n""lines""",{json.dumps(TEXT + ".")}',
        'u1,x,"User identity: a, b; User interests: c, d, e"',
    )
    with pytest.raises(InputError, match="--side users"):
        import_profiles(ws, path, form="reclm")
    with pytest.raises(InputError, match="line 4: expected 3 identities"):
        import_profiles(ws, path, form="reclm", side="users")
    assert import_profiles(ws, path, form="reclm", side="users", skip_invalid=True).n_imported == 1
    assert profiles(ws)[("user", 0)][:3] == ("imported", TEXT, "imported from mind_fine_tune.csv")
    with pytest.raises(InputError, match="expected the columns UID and Response"):
        import_profiles(ws, written(tmp_path / "p.csv", "id,profile", "u0,x"), form="reclm", side="users")


def test_sources_and_times_of_a_file_are_taken_with_care(ws, tmp_path):
    path = written(
        tmp_path / "p.jsonl",
        row("u0", source="x" * 9999, created="2024-05-01T00:00:00+00:00", basis="history"),
        row("u1", source="\ud800\n a", created="soon", basis="magic"),
    )
    import_profiles(ws, path)
    found = profiles(ws)
    assert len(found[("user", 0)][2]) == 500 and found[("user", 0)][3:] == ("history", "2024-05-01T00:00:00+00:00")
    assert found[("user", 1)][2] == "? a" and found[("user", 1)][3] == "" and found[("user", 1)][4].startswith("20")


def test_an_import_waits_for_nobody_and_leaves_all_as_it_was(ws, tmp_path):
    import subprocess

    code = (
        "from pathlib import Path; from reclm_lite.workspace import Workspace\nwith "
        f"Workspace.open(Path({str(ws.root)!r})) as ws, ws.writing(): print('held', flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceError, match="another reclm process"):
            import_profiles(ws, written(tmp_path / "p.jsonl", row("u0")))
    finally:
        holder.communicate("\n", timeout=30)
    assert not profiles(ws)


# -- the command line --------------------------------------------------------------


def reclm(*arguments: object, expect: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == expect, f"{arguments}: {result.output}\n{result.exception!r}"
    return result


def test_commands_write_to_stdout_and_to_files_and_read_them_back(full, tmp_path):
    out = reclm("profile", "export", "-w", full.root)
    assert (
        len(out.stdout.splitlines()) == 5
        and json.loads(out.stdout.splitlines()[0])["id"] == "u0"
        and "Wrote 5 profiles" in out.stderr
    )
    assert reclm(
        "profile", "export", "-w", full.root, "-o", "-", "--format", "csv", "--side", "users"
    ).stdout.splitlines()[0] == ",".join(COLUMNS)
    path = tmp_path / "p.csv"
    reclm("profile", "export", "-w", full.root, "-o", path)
    assert "--force" in reclm("profile", "export", "-w", full.root, "-o", path, expect=1).stderr
    reclm("profile", "export", "-w", full.root, "-o", path, "--force")
    with make_workspace(tmp_path / "fresh", TRAIN) as fresh:
        result = reclm("profile", "import", path, "-w", fresh.root, "--json")
        assert json.loads(result.stdout)["n_imported"] == 4 and "reclm embed profiles" in result.stderr


def test_commands_end_with_one_sentence_where_they_cannot(ws, tmp_path):
    path = written(tmp_path / "p.jsonl", row("nobody"))
    assert "nothing was imported" in reclm("profile", "import", path, "-w", ws.root, expect=1).stderr
    reclm("profile", "import", "-w", ws.root, expect=2)
    reclm("profile", "import", path, "-w", ws.root, "--side", "both", expect=2)
    reclm("profile", "export", "-w", ws.root, "--side", "nobody", expect=2)
    assert "--format" in reclm("profile", "export", "-w", ws.root, "-o", tmp_path / "p.txt", expect=1).stderr
