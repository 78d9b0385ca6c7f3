"""Bad input: each kind gets one sentence that names the file and, where it can, the row and column."""

import collections
import os
import pickle
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from reclm_lite.data.importers import import_dataset
from reclm_lite.data.importers.pickles import CooMatrix, load_pickle
from reclm_lite.errors import InputError, ReclmError

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
    "only white space": (b"\n \n", "holds only white space"),
    "header alone": (b"user,item,time,rating\n", "expected at least one interaction, found none"),
    "byte that is not UTF-8": (GOOD + b"u3,caf\xe9,3,3\n", "line 4: byte 0xe9 is not UTF-8"),
    "cut UTF-8 sequence at the end": (GOOD + b"u3,c,3,3\xc3", "line 4: byte 0xc3 is not UTF-8"),
    "UTF-16": ("user,item,time,rating\nu,a,1,2\n".encode("utf-16"), "is not UTF-8|NUL byte"),
    "NUL byte": (GOOD + b"u3,c\0,3,3\n", "line 4: found a NUL byte"),
    "NaN rating": (GOOD + b"u3,c,3,NaN\n", "row 3: column 'rating' holds 'NaN', expected a finite number"),
    "infinite rating": (GOOD + b"u3,c,3,inf\n", "row 3: column 'rating' holds 'inf'"),
    "unparsable rating": (GOOD + b"u3,c,3,good\n", "row 3: column 'rating' holds 'good'"),
    "no rating": (GOOD + b"u3,c,3,\n", "row 3: column 'rating' holds nothing"),
    "unparsable time": (GOOD + b"u3,c,yesterday,3\n", "row 3: column 'time' holds 'yesterday', expected seconds"),
    "milliseconds for seconds": (GOOD + b"u3,c,1714564800000,3\n", "row 3: column 'time' holds '1714564800000'"),
    "NaN time": (GOOD + b"u3,c,nan,3\n", "row 3: column 'time' holds 'nan'"),
    "no user": (GOOD + b",c,3,3\n", "row 3: column 'user' is empty"),
    "no item": (GOOD + b"u3,,3,3\n", "row 3: column 'item' is empty"),
    "too many fields": (GOOD + b"u3,c,3,3,4\n", "line 4: too many fields: expected 4, found 5"),
    "too few fields": (GOOD + b"u3,c,3\n", "line 4: too few fields: expected 4, found 3"),
    "quotation mark never closed": (GOOD + b'u3,"c,3,3\nu4,d,4,4\n', "line 4: a quotation mark opens a field and is not closed"),
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
    assert "needs ratings, and these data have none" in refusal("table", tmp_path / "log.csv", min_rating=3)


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
    assert "expected a layout among" in refusal("lightgcn", tmp_path, layout="matrix")
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


# -- pickles -------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["RECLM_TEST_EVIL"],)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_names_a_foreign_class_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    target = tmp_path / "made-by-pickle"
    monkeypatch.setenv("RECLM_TEST_EVIL", str(target))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"a": Evil()}, protocol))
    with pytest.raises(InputError, match=r"evil\.pkl names the class (posix|os)\.mkdir.*nothing in it was run"):
        load_pickle(tmp_path / "evil.pkl")
    assert not target.exists()


@pytest.mark.parametrize(
    "value",
    [collections.OrderedDict(a=1), np.array([{}, None], dtype=object), np.random.default_rng(0), sp.csr_matrix((2, 2)), np.dtype("O"), complex(1, 2)],
    ids=["OrderedDict", "object array", "generator", "csr", "object dtype", "complex"],
)
def test_what_the_format_does_not_need_is_refused(tmp_path, value):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=r"x\.pkl"):
        load_pickle(tmp_path / "x.pkl")


def test_dotted_names_do_not_reach_around_the_allowed_classes(tmp_path):
    # Protocol 4 may name attributes of a class: ndarray.tofile would write a file.
    code = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    (tmp_path / "x.pkl").write_bytes(code)
    with pytest.raises(InputError, match="names the class numpy.ndarray.tofile"):
        load_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_a_damaged_pickle_is_refused(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pkl is not a whole pickle"):
        load_pickle(tmp_path / "x.pkl")


# The published files are of protocol 4. Older and newer ones name helpers that are not allowed.
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_scalars_and_matrices_are_read(tmp_path, protocol):
    matrix = sp.coo_matrix(np.array([[0, 2.0], [3, 0]]))
    value = {"a": np.arange(3, dtype=np.int64), "s": np.float64(2.5), "f": np.asfortranarray(np.eye(2)), "m": matrix}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
    loaded = load_pickle(tmp_path / "x.pkl")
    np.testing.assert_array_equal(loaded["a"], value["a"])
    np.testing.assert_array_equal(loaded["f"], value["f"])
    assert loaded["s"] == 2.5 and isinstance(loaded["m"], CooMatrix)


def test_module_names_of_numpy_1_and_old_scipy_are_read(tmp_path):
    text = pickle.dumps({"a": np.arange(3), "s": np.int64(4), "m": sp.coo_matrix(np.eye(2))}, 3)
    text = text.replace(b"numpy._core", b"numpy.core").replace(b"scipy.sparse._coo", b"scipy.sparse.coo")
    assert b"numpy.core.multiarray" in text and b"scipy.sparse.coo\n" in text
    (tmp_path / "x.pkl").write_bytes(text)
    loaded = load_pickle(tmp_path / "x.pkl")
    assert loaded["a"].tolist() == [0, 1, 2] and loaded["s"] == 4


@pytest.fixture
def small_reclm(tmp_path):
    """A folder of the format reclm: 2 users; global items 3, 5, 8; 8 is unseen; 9 has only a text."""
    folder = tmp_path / "small"
    folder.mkdir()

    def write(name, value):
        (folder / name).write_bytes(pickle.dumps(value))

    write("item_id_map_train.pkl", {3: 0, 5: 1})
    write("item_id_map_test.pkl", {3: 0, 8: 1})
    write("item_id_map_zero.pkl", {8: 0})
    write("trnMat_zero.pkl", sp.coo_matrix([[1.0, 1.0], [0.0, 1.0]]))
    write("tstMat_zero_.pkl", sp.coo_matrix([[0.0, 1.0], [1.0, 0.0]]))
    write("maskMat_zero.pkl", sp.coo_matrix([[1.0, 0.0], [0.0, 0.0]]))
    write("tstMat_zero_shot.pkl", sp.coo_matrix([[1.0], [0.0]]))
    write("item_info_dict.pkl", {key: {"cate": "c", "sub_cate": "s", "title": f"T{key}", "abstract": ""} for key in (9, 8, 3)})
    return folder, write


def test_small_reclm_folder_maps_local_columns_to_global_items(small_reclm):
    folder, _ = small_reclm
    data = import_dataset("reclm", folder)
    assert data.item_ids == ["3", "5", "8", "9"] and [text.title for text in data.item_texts] == ["T3", "", "T8", "T9"]
    labelled = list(zip(data.users.tolist(), [data.item_ids[item] for item in data.items], data.given.tolist(), strict=True))
    assert labelled == [(0, "3", 0), (0, "5", 0), (1, "5", 0), (0, "8", 2), (1, "3", 2), (0, "8", 3)]
    assert data.full_candidates.tolist() == [0, 2] and data.unseen_candidates.tolist() == [2]
    assert data.manifest["counts"]["items_without_text"] == 1


def test_reclm_mask_that_disagrees_with_training_is_refused(small_reclm):
    folder, write = small_reclm
    write("maskMat_zero.pkl", sp.coo_matrix([[0.0, 1.0], [0.0, 0.0]]))
    assert "maskMat_zero.pkl: expected the 1 training interactions" in refusal("reclm", folder)


def test_reclm_files_that_do_not_fit_together_are_named(small_reclm):
    folder, write = small_reclm
    write("tstMat_zero_.pkl", sp.coo_matrix((3, 2)))
    assert "tstMat_zero_.pkl: expected 2 rows" in refusal("reclm", folder)
    write("tstMat_zero_.pkl", sp.coo_matrix((2, 7)))
    assert "tstMat_zero_.pkl: expected 2 columns as in its item map, found 7" in refusal("reclm", folder)
    write("tstMat_zero_.pkl", [1, 2])
    assert "expected a scipy coo_matrix, found list" in refusal("reclm", folder)
    write("tstMat_zero_.pkl", sp.coo_matrix([[0.0, 1.0], [1.0, 0.0]]))
    write("item_id_map_test.pkl", {3: 0, 8: 5})
    assert "item_id_map_test.pkl: expected the columns 0 to 1 in order" in refusal("reclm", folder)
    shutil.copy(folder / "item_id_map_zero.pkl", folder / "item_info_dict.pkl")
    write("item_id_map_test.pkl", {3: 0, 8: 1})
    assert "item_info_dict.pkl: expected whole-number ids with a dictionary each" in refusal("reclm", folder)
    (folder / "maskMat_zero.pkl").unlink()
    assert "has no maskMat_zero.pkl" in refusal("reclm", folder)
