"""Bad input: a one-sentence error names the file and, if possible, the row and column."""

import os

import pytest

from reclm_lite.data.importers import import_dataset
from reclm_lite.errors import ReclmError

GOOD = b"user,item,time,rating\nu1,a,1,2.5\nu2,b,2,3\n"
OPTIONS = {"time_column": "time", "rating_column": "rating"}


def refusal(format_name, source, **options):
    """The one sentence with which an import is refused."""
    with pytest.raises(ReclmError) as caught:
        import_dataset(format_name, source, **options)
    message = str(caught.value)
    assert "\n" not in message and "source-" not in message and "reclm-import" not in message
    return message


BAD_TABLES = {
    "missing column": (b"user,sku,time,rating\nu,a,1,2\n", "no column 'item': found 'user', 'sku', 'time', 'rating'"),
    "empty file": (b"", "is empty: expected at least one row"),
    "only white space": (b"\n \n", "contains only white space"),
    "header alone": (b"user,item,time,rating\n", "expected at least one interaction, found none"),
    "byte that is not UTF-8": (GOOD + b"u3,caf\xe9,3,3\n", "line 4: byte 0xe9 is not UTF-8"),
    "cut UTF-8 sequence at the end": (GOOD + b"u3,c,3,3\xc3", "line 4: byte 0xc3 is not UTF-8"),
    "UTF-16": ("user,item,time,rating\nu,a,1,2\n".encode("utf-16"), "is not UTF-8|NUL byte"),
    "NUL byte": (GOOD + b"u3,c\0,3,3\n", "line 4: found a NUL byte"),
    "NaN rating": (GOOD + b"u3,c,3,NaN\n", "row 3: column 'rating' contains 'NaN', expected a finite number"),
    "infinite rating": (GOOD + b"u3,c,3,inf\n", "row 3: column 'rating' contains 'inf'"),
    "unparsable rating": (GOOD + b"u3,c,3,good\n", "row 3: column 'rating' contains 'good'"),
    "no rating": (GOOD + b"u3,c,3,\n", "row 3: column 'rating' contains nothing"),
    "unparsable time": (GOOD + b"u3,c,yesterday,3\n", "row 3: column 'time' contains 'yesterday', expected seconds"),
    "milliseconds for seconds": (GOOD + b"u3,c,1714564800000,3\n", "row 3: column 'time' contains '1714564800000'"),
    "NaN time": (GOOD + b"u3,c,nan,3\n", "row 3: column 'time' contains 'nan'"),
    "no user": (GOOD + b",c,3,3\n", "row 3: column 'user' is empty"),
    "no item": (GOOD + b"u3,,3,3\n", "row 3: column 'item' is empty"),
    "too many fields": (GOOD + b"u3,c,3,3,4\n", "line 4: too many fields: expected 4, found 5"),
    "too few fields": (GOOD + b"u3,c,3\n", "line 4: too few fields: expected 4, found 3"),
    "quotation mark never closed": (
        GOOD + b'u3,"c,3,3\nu4,d,4,4\n',
        "line 4: a quotation mark opens a field and is not closed",
    ),
    "text after a closed quotation mark": (GOOD + b'u3,"c"d,3,3\n', "line 4: a quotation mark"),
    "column twice": (b"user,item,item\nu,a,b\n", "line 1: the column 'item' comes twice"),
    "mixed line ends": (b"user,item,time,rating\nu,a,1,2\r\nv,b,1,2\n", "lines end in different ways"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table_is_refused_with_a_sentence(tmp_path, case):
    content, said = BAD_TABLES[case]
    source = tmp_path / "log.csv"
    source.write_bytes(content)
    message = refusal("table", source, **OPTIONS)
    assert str(source) in message
    assert any(part in message for part in said.split("|")), message


def test_bad_byte_far_into_a_file_is_named_by_its_line(tmp_path):
    source = tmp_path / "log.csv"
    # The bad byte is the first of a chunk: the line must come out right across chunks.
    body = b"user,item\n" + b"u,a\n" * ((1 << 20) // 4 + 10)
    source.write_bytes(body + b"u,\xff\n")
    assert f"line {body.count(10) + 1}: byte 0xff" in refusal("table", source)


def test_missing_file_folder_and_unknown_ending_are_told_apart(tmp_path):
    assert "does not exist" in refusal("table", tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder: expected a file" in refusal("table", tmp_path / "folder.csv")
    (tmp_path / "log.xlsx").write_text("x")
    assert "expected a name that ends in .csv" in refusal("table", tmp_path / "log.xlsx")
    for name in ("reclm", "movielens", "mind", "lightgcn"):
        assert "does not exist" in refusal(name, tmp_path / "none")
        assert "is a file" in refusal(name, tmp_path / "log.xlsx")
    assert "expected one .inter file, found none" in refusal("recbole", tmp_path)


def test_a_fifo_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "log.csv")
    assert "is not a regular file" in refusal("table", tmp_path / "log.csv")


def test_duplicate_item_id_names_both_rows(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\nu,a\n")
    (tmp_path / "items.csv").write_text("item,title\na,One\nb,Two\na,Three\n")
    message = refusal("table", tmp_path / "log.csv", items_source=tmp_path / "items.csv", title_column="title")
    assert "items.csv, row 3: the item id 'a' in column 'item' was in row 1 already" in message


def test_missing_column_of_the_items_table_lists_the_columns_found(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\nu,a\n")
    (tmp_path / "items.csv").write_text("item,name\na,One\n")
    message = refusal("table", tmp_path / "log.csv", items_source=tmp_path / "items.csv", title_column="title")
    assert "items.csv has no column 'title': found 'item', 'name'" in message


def test_limits_that_leave_nothing_are_named(tmp_path):
    (tmp_path / "log.csv").write_bytes(GOOD)
    message = refusal("table", tmp_path / "log.csv", rating_column="rating", min_user=5)
    assert "no interaction is left of 2 rows (min_user 5)" in message
    assert "requires ratings, but the data have none" in refusal("table", tmp_path / "log.csv", min_rating=3)


def test_damaged_parquet_json_and_gzip_are_named(tmp_path):
    (tmp_path / "log.parquet").write_bytes(b"PAR1 not really")
    assert "is not a whole Parquet file" in refusal("table", tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text('{"user": "u", "item": "a"}\n{"user": "u", "item":\n')
    assert "log.jsonl, line" in refusal("table", tmp_path / "log.jsonl")
    (tmp_path / "log.ndjson").write_text('["u", "a"]\n')
    assert "line 1: expected a JSON object, found list" in refusal("table", tmp_path / "log.ndjson")
    (tmp_path / "log.csv.gz").write_bytes(b"\x1f\x8b\x08\x00 not really")
    assert "is not a whole gzip file" in refusal("table", tmp_path / "log.csv.gz")


def test_mind_names_bad_times_and_the_unlabelled_part(tmp_path):
    (tmp_path / "news.tsv").write_text("N1\tnews\tworld\tTitle\tText\thttp\t[]\t[]\n")
    assert "has no behaviors.tsv" in refusal("mind", tmp_path)
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/11/2019 9:05:58 AM\t\tN1-1\n2\tU1\tnoon\t\tN1-1\n")
    assert "behaviors.tsv, row 2: the third field, the time, holds 'noon'" in refusal("mind", tmp_path)
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/11/2019 9:05:58 AM\t\tN1 N2\n")
    assert "without a label -0 or -1" in refusal("mind", tmp_path)
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t11/11/2019 9:05:58 AM\n")
    assert "line 1: too few fields: expected 5, found 3" in refusal("mind", tmp_path)


def test_lightgcn_line_of_another_layout_is_named(tmp_path):
    (tmp_path / "test.txt").write_text("0 1\n")
    (tmp_path / "train.txt").write_text("0 1 2\n1:3 4\n")
    assert "train.txt, row 2: expected '0 12 7 99' (layout list), found '1:3 4'" in refusal("lightgcn", tmp_path)
    (tmp_path / "train.txt").write_text("0:1 2\n")
    assert "train.txt reads as layout colon and test.txt as list" in refusal("lightgcn", tmp_path)
    assert "expected one of the layouts" in refusal("lightgcn", tmp_path, layout="matrix")
    (tmp_path / "test.txt").unlink()
    assert "test.txt does not exist" in refusal("lightgcn", tmp_path)


def test_recbole_header_without_types_is_refused(tmp_path):
    (tmp_path / "toy.inter").write_text("user_id\titem_id\nu\ta\n")
    assert "expected columns as name:type" in refusal("recbole", tmp_path)


def test_movielens_folder_without_ratings_says_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    assert "found notes.md" in refusal("movielens", tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4,1\n")
    assert "movies.csv does not exist" in refusal("movielens", tmp_path)


def test_temporary_files_are_gone_after_success_and_refusal(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (tmp_path / "log.csv").write_bytes(GOOD)
    import_dataset("table", tmp_path / "log.csv")
    refusal("table", tmp_path / "log.csv", item_column="nothing")
    assert list(scratch.iterdir()) == []
