"""Errors that new users meet: the message is true, and the command it names works."""

import json
import shlex
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from profile_workspace import profile

from reclm_lite.assets import encoder_path
from reclm_lite.cli import main
from reclm_lite.data.importers import import_dataset
from reclm_lite.errors import InputError, ModelError, ProfileFormatError
from reclm_lite.profiles.store import edit_profile
from reclm_lite.workspace import Workspace

TITLES = {"a": "Soup of [/squash]", "b": "Bread [bold]", "c": "Late goal", "d": "Comet seen"}


def reclm(*arguments: object, expect: int = 0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == expect, f"{arguments}: {result.output}\n{result.stderr}\n{result.exception!r}"
    return result


def table(path: Path, titles: dict[str, str]) -> Path:
    rows = [f"{user},{item},{titles[item]}" for user in range(6) for item in "abcd" if (user + ord(item)) % 4]
    path.write_text("user,item,title\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def imported(folder: Path, titles: dict[str, str] = TITLES, *, split: str = "ratio") -> Path:
    ws = folder / "my shop"
    reclm("init", ws)
    reclm("import", "table", table(folder / "log.csv", titles), "-w", ws, "--title", "title")
    reclm("split", "-w", ws, "--method", split)
    return ws


def test_the_bad_line_of_json_lines_is_counted_from_one(tmp_path):
    source = tmp_path / "log.jsonl"
    source.write_text('{"user": 1, "item": "a"}\n{bad\n{"user": 1, "item": "b"}\n')
    with pytest.raises(InputError, match="line 2: not a valid JSON object"):
        import_dataset("table", source)


def test_one_column_cannot_be_users_and_items(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text("user,item\n1,a\n")
    with pytest.raises(InputError, match="'item' is given for both users and items"):
        import_dataset("table", source, user_column="item")


def test_limits_are_named_only_where_they_were_given(tmp_path):
    source = tmp_path / "log.csv"
    source.write_text("user,item\n1,a\n")
    with pytest.raises(InputError, match=r"\(min_user 5\): lower these limits"):
        import_dataset("table", source, min_user=5)


def test_an_option_of_another_format_is_named_as_it_was_typed(tmp_path):
    ws = tmp_path / "ws"
    reclm("init", ws)
    said = reclm("import", "table", table(tmp_path / "log.csv", TITLES), "-w", ws, "--layout", "list", expect=1).stderr
    assert "--layout" in said and "user_column" not in said


def test_an_encoder_cannot_write_profiles(tmp_path):
    with Workspace.open(imported(tmp_path)) as ws, pytest.raises(ModelError, match=r"an encoder \(bert\)"):
        profile(ws, "users", model=encoder_path())


def test_an_edit_that_is_no_profile_says_how_to_write_one(tmp_path):
    with Workspace.open(imported(tmp_path)) as ws, pytest.raises(ProfileFormatError) as caught:
        edit_profile(ws, "user", "1", "hello")
    assert "generate" not in str(caught.value) and "give three" in str(caught.value)


def test_evaluating_a_split_without_test_is_a_failure_with_a_sentence(tmp_path):
    ws = imported(tmp_path, split="none")
    for option in ((), ("--json",)):
        result = reclm("evaluate", "-w", ws, *option, expect=1)
        assert "has no test interactions" in result.stderr and not result.stdout


def test_data_without_texts_lead_to_no_dead_end(tmp_path):
    ws = imported(tmp_path, dict.fromkeys(TITLES, ""))
    for model in ("popularity", "lightgcn"):
        reclm("fit", model, "-w", ws, *(("--epochs", 1) if model == "lightgcn" else ()))
    reclm("embed", "items", "-w", ws)
    assert "no item" in reclm("recommend", "-w", ws, "--text", "soup", expect=1).stderr
    reclm("neighbors", "-w", ws)
    assert "embed profiles" not in reclm("profile", "users", "-w", ws, "--model", "rules").stderr
    status = json.loads(reclm("info", "-w", ws, "--json").stdout)
    assert status["next"].startswith("reclm evaluate")
    assert {stage["name"]: stage["state"] for stage in status["stages"]}["user profiles"] == "not possible"


def test_titles_with_square_brackets_are_shown_as_they_are(tmp_path):
    ws = imported(tmp_path)
    assert TITLES["a"] in reclm("recommend", "-w", ws, "--user", 3).stdout
    reclm("info", "-w", ws)


@pytest.mark.parametrize("damage", ["emptied", "cut"])
def test_damaged_vectors_are_made_anew_by_the_command_that_the_error_names(tmp_path, damage):
    ws = imported(tmp_path)
    reclm("embed", "items", "-w", ws)
    vectors = ws / "vectors" / "items.safetensors"
    whole = vectors.read_bytes()
    vectors.write_bytes(b"" if damage == "emptied" else whole[:-7])
    said = reclm("fit", "lightgcn", "-w", ws, "--epochs", 1, expect=1).stderr
    command = said.split("`")[1]
    words = shlex.split(command)
    assert words == ["reclm", "embed", "items", "-w", str(ws)]
    reclm(*words[1:])
    reclm("fit", "lightgcn", "-w", ws, "--epochs", 1)


def test_every_artefact_that_cannot_be_read_names_its_command(tmp_path):
    with Workspace.open(imported(tmp_path)) as ws:
        w = f"-w {shlex.quote(str(ws.root))}"
        expected = {
            "matrices/split": f"reclm split {w}",
            "matrices/neighbors": f"reclm neighbors {w}",
            "vectors/user_profiles": f"reclm embed profiles {w}",
            "models/biasmf": f"reclm fit biasmf {w}",
            "models/lightgcn+users": f"reclm fit lightgcn {w} --profiles users",
        }
        for name, command in expected.items():
            assert ws.command_for(name) == command


def test_an_unreadable_configuration_stops_an_import_before_anything_is_replaced(tmp_path):
    ws = imported(tmp_path)
    (ws / "workspace.toml").write_bytes(b"\xff")
    other = tmp_path / "other.csv"
    other.write_text("user,item\nnew,x\n")
    assert "cannot be used" in reclm("import", "table", other, "-w", ws, "--replace", expect=1).stderr
    with Workspace.open(ws) as opened:
        assert opened.db.execute("SELECT COUNT(*) FROM users").fetchone() == (6,)


def test_a_model_that_does_not_exist_is_not_said_to_be_fittable(tmp_path):
    ws = imported(tmp_path)
    reclm("fit", "popularity", "-w", ws)
    said = reclm("recommend", "-w", ws, "--user", 1, "--model", "foo", expect=1).stderr
    assert "one of the fitted models popularity" in said and "reclm fit foo" not in said


def test_a_database_that_cannot_be_opened_for_work_is_not_called_damaged(tmp_path, monkeypatch):
    ws = imported(tmp_path)

    def full(*arguments, **options):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite3, "connect", full)
    said = reclm("info", "-w", ws, expect=1).stderr
    assert "disk has space" in said and "make a new workspace" not in said
