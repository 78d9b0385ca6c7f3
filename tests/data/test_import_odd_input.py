"""Unusual input: it is imported, or refused with a clear error, never with an unexpected one."""

import json
import os

import pytest

from reclm_lite.data.importers import import_dataset
from reclm_lite.errors import ReclmError


def refusal(source, format_name="table", **options):
    with pytest.raises(ReclmError) as caught:
        import_dataset(format_name, source, **options)
    message = str(caught.value)
    assert "\n" not in message and "reclm-import" not in message and len(message) < 3000
    return message


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\nu,a\n")
    return path


@pytest.mark.parametrize("delimiter", ["ab", "", "\n", "\r", "\0", "é", "::", "\ud800"])
def test_a_delimiter_or_quote_that_csv_cannot_have_is_refused(log, delimiter):
    assert "delimiter: expected one ASCII character" in refusal(log, delimiter=delimiter)
    if delimiter:
        assert "quote: expected one ASCII character" in refusal(log, quote=delimiter)


def test_delimiter_and_quote_differ_and_a_delimiter_has_a_file(log, tmp_path):
    assert "are both '\"'" in refusal(log, delimiter='"')
    assert "are both ';'" in refusal(log, delimiter=";", quote=";")
    (tmp_path / "log.jsonl").write_text('{"user": 1, "item": 2}\n')
    assert "the delimiter applies to CSV and TSV files" in refusal(tmp_path / "log.jsonl", delimiter=",")


@pytest.mark.parametrize("delimiter", [*";|^~ \\'$x0\x01\x1f", "\t"])
def test_every_other_ascii_character_delimits(tmp_path, delimiter):
    names, values = ("user", "item"), ("8", "9")
    (tmp_path / "log.csv").write_text(delimiter.join(names) + "\n" + delimiter.join(values) + "\n")
    data = import_dataset("table", tmp_path / "log.csv", delimiter=delimiter)
    assert (data.user_ids, data.item_ids) == (["8"], ["9"])


def test_names_that_differ_only_in_case_are_told_apart_in_no_kind_of_table(tmp_path):
    import duckdb

    said = "'user' and 'USER' differ only in upper and lower case"
    (tmp_path / "log.csv").write_text("user,USER,item\n1,2,3\n")
    (tmp_path / "log.jsonl").write_text('{"user": 1, "USER": 2, "item": 3}\n')
    (tmp_path / "log.inter").write_text("user_id:token\titem_id:token\tuser:a\tUSER:b\n1\t2\t3\t4\n")
    with duckdb.connect() as db:  # a name of the same length takes its place in the file
        db.execute(f"COPY (SELECT 1 AS user, 2 AS ABCD, 3 AS item) TO '{tmp_path}/log.parquet' (FORMAT parquet)")
    content = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(content.replace(b"ABCD", b"USER"))
    for name in ("log.csv", "log.jsonl", "log.parquet"):
        assert said in refusal(tmp_path / name), name
    assert said in refusal(tmp_path / "log.inter", "recbole")
    (tmp_path / "log.inter").write_text("user_id:token\titem_id:token\tage:a\tage:b\n1\t2\t3\t4\n")
    assert "the column 'age' comes twice" in refusal(tmp_path / "log.inter", "recbole")
    (tmp_path / "log.inter").write_text("user_id:token\titem_id:token\t:float\n1\t2\t3\n")
    assert "the column name '' is empty" in refusal(tmp_path / "log.inter", "recbole")


@pytest.mark.parametrize("key", ["", "\0", "a\0b", "\ud800"])
def test_json_keys_that_no_column_can_have_are_refused(tmp_path, key):
    (tmp_path / "log.jsonl").write_text(json.dumps({"user": 1, "item": 2, key: 3}) + "\n")
    assert "is empty or contains a NUL" in refusal(tmp_path / "log.jsonl")


JSON_LINES = {
    "lone surrogate": ('{"user": "\\ud800", "item": 1}', "line 2|not valid JSON lines"),
    "NUL in an id": ('{"user": "a\\u0000b", "item": 1}', "row 2: column 'user' contains an id with a NUL"),
    "array": ("[1, 2]", "line 2: expected a JSON object"),
    "number of 5000 digits, then nonsense": (
        '{"user": ' + "9" * 5000 + ', "item": }',
        "line 2: not a valid JSON object",
    ),
    "the same key twice": ('{"user": 1, "user": 2, "item": 3}', "line 2"),
}


@pytest.mark.parametrize("case", JSON_LINES)
def test_a_bad_json_line_is_named(tmp_path, case):
    line, said = JSON_LINES[case]
    (tmp_path / "log.jsonl").write_text('{"user": "u", "item": "i"}\n' + line + "\n")
    message = refusal(tmp_path / "log.jsonl")
    assert any(part in message for part in said.split("|")), message


@pytest.mark.parametrize("file", ["train.txt", "test.txt"])
@pytest.mark.parametrize("content", [b"\x01", b"\x01\x01\n0 1\n", b"0 \x01\n"])
def test_a_lightgcn_file_of_control_characters_is_refused(tmp_path, file, content):
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_bytes(content if name == file else b"0 1\n")
    assert f"{file}, line 1: found the control character 0x01" in refusal(tmp_path, "lightgcn")


def test_a_lightgcn_file_without_a_line_of_text_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("\N{NO-BREAK SPACE}\n")
    (tmp_path / "test.txt").write_text("0 1\n")
    refusal(tmp_path, "lightgcn")


@pytest.mark.parametrize(
    "word",
    [
        "interrupt",
        "No space left",
        "Out of Memory",
        "Malformed JSON",
        "Line: 99",
        "unterminated quote",
        "source-1 magic bytes",
    ],
)
def test_words_of_the_file_do_not_change_what_is_said_of_it(tmp_path, word):
    (tmp_path / "log.csv").write_text(f"user,item\nu,a\n{word},b,c\n")
    assert "line 3: too many fields: expected 2, found 3" in refusal(tmp_path / "log.csv")


def test_ids_of_any_number_are_text_and_their_order_is_kept(tmp_path):
    ids = ["7", "010", "99999999999999999999999999999999", "-" + "9" * 400, "1e400", "1_000", "nan", "0x10", "1e5"]
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"{one},{one}\n" for one in ids))
    data = import_dataset("table", tmp_path / "log.csv")
    assert sorted(data.user_ids) == sorted(data.item_ids) == sorted(ids) and data.user_ids[:2] == ["7", "010"]


@pytest.mark.parametrize(
    "time", ["1000000000-01-01", "infinity", "-infinity", "1e400", "9" * 400, "290000-01-01 (BC)x"]
)
def test_a_time_beyond_all_calendars_is_refused(tmp_path, time):
    (tmp_path / "log.csv").write_text(f"user,item,time\nu,a,{time}\n")
    assert "row 1: column 'time' contains" in refusal(tmp_path / "log.csv", time_column="time")


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_least_rating_that_is_no_rating_is_refused(tmp_path, limit):
    (tmp_path / "log.csv").write_text("user,item,rating\nu,a,3\n")
    assert "min_rating: expected a finite number" in refusal(
        tmp_path / "log.csv", rating_column="rating", min_rating=limit
    )


def test_least_counts_beyond_all_integers_leave_nothing(log):
    assert "no interaction is left" in refusal(log, min_user=10**40, min_item=10**40)


def test_a_file_whose_name_is_not_utf_8_is_imported_under_a_name_that_is(tmp_path):
    source = os.fsencode(tmp_path) + b"/caf\xe9.csv"
    with open(source, "w") as out:
        out.write("user,item\nu,a\n")
    data = import_dataset("table", os.fsdecode(source))
    json.dumps([data.name, data.manifest], ensure_ascii=False).encode()
