"""Pickles and the format reclm: good files are read, and whatever else a file holds ends in one sentence and in little
memory."""

import collections
import os
import pickle
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from crafted_pickles import (
    array,
    full_dtype,
    good_pickles,
    group,
    hostile_pickles,
    large_pickles,
    mapping,
    raw,
    text,
    whole,
)

from reclm_lite.data.importers import import_dataset, reclm
from reclm_lite.data.importers.pickle_reader import LIMITS
from reclm_lite.data.importers.pickles import CooMatrix, PickledDict, load_pickle, parse_pickle
from reclm_lite.errors import InputError, ReclmError

HERE = Path("x.pkl")


def refusal(data, limits=LIMITS):
    """The one sentence with which a pickle is refused."""
    with pytest.raises(InputError) as caught:
        parse_pickle(data, HERE, limits)
    message = str(caught.value)
    assert message.isprintable() and message.startswith("x.pkl ") and len(message) < 500
    return message


def plain(value):
    """A loaded value as Python's own: dictionaries as such, arrays as lists."""
    if type(value) is PickledDict:
        return {key: plain(held) for key, held in value.items()}
    if type(value) is CooMatrix:
        return {key: plain(held) for key, held in value.state.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return type(value)(plain(one) for one in value) if type(value) in (list, tuple) else value


# -- what is read ---------------------------------------------------------------


def python_plain(value):
    """The value that was pickled, in the same terms."""
    if sp.issparse(value):
        return python_plain(vars(value))
    if isinstance(value, dict):
        return {key: python_plain(held) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(python_plain(one) for one in value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("title, data, value", good_pickles(), ids=[title for title, *_ in good_pickles()])
def test_good_pickles_hold_what_was_pickled(title, data, value):
    assert repr(plain(parse_pickle(data, HERE))) == repr(python_plain(value))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
def test_every_number_type_is_read_in_both_byte_orders(code, order):
    values = np.array([0, 1, 1], np.dtype(order + code))
    loaded = parse_pickle(pickle.dumps({"a": values, "s": values[1]}, 4), HERE).fields()
    assert (
        loaded["a"].tolist() == values.tolist() and loaded["a"].dtype == np.dtype(code) and loaded["a"].dtype.isnative
    )
    assert loaded["s"] == 1 and type(loaded["s"]) in (bool, int, float)


def test_a_dictionary_keeps_its_order_and_names_that_come_twice_are_no_fields():
    assert list(parse_pickle(mapping(whole(5), whole(0), whole(3), whole(1)) + b".", HERE).items()) == [(5, 0), (3, 1)]
    assert parse_pickle(mapping(text("a"), whole(0), text("b"), whole(1)) + b".", HERE).fields() == {"a": 0, "b": 1}
    assert parse_pickle(mapping(text("a"), whole(0), text("a"), whole(1)) + b".", HERE).fields() is None
    assert parse_pickle(mapping(text("a"), whole(0), whole(1), whole(1)) + b".", HERE).fields() is None


# -- what is refused --------------------------------------------------------------


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
    [
        collections.OrderedDict(a=1),
        np.array([{}, None], dtype=object),
        np.random.default_rng(0),
        sp.csr_matrix((2, 2)),
        np.dtype("O"),
        complex(1, 2),
        {1},
    ],
    ids=["OrderedDict", "object array", "generator", "csr", "object dtype", "complex", "set"],
)
def test_what_the_format_does_not_need_is_refused(value):
    assert "nothing in it was run" in refusal(pickle.dumps(value, 4))


def test_dotted_names_do_not_reach_around_the_allowed_classes():
    # Protocol 4 may name attributes of a class: ndarray.tofile would write a file.
    assert "names the class numpy.ndarray.tofile" in refusal(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_a_damaged_pickle_is_refused(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pkl is not a whole pickle"):
        load_pickle(tmp_path / "x.pkl")


def test_every_crafted_pickle_is_refused_with_a_sentence():
    crafted = hostile_pickles()
    assert len({title for title, _ in crafted}) == len(crafted) >= 200
    for title, data in crafted:
        with pytest.raises(InputError) as caught:
            print(title, "was read as", parse_pickle(data, HERE))
        message = str(caught.value)
        assert message.startswith("x.pkl ") and message.isprintable() and len(message) < 500, f"{title}: {message!r}"


def test_opcodes_that_are_left_out_are_refused_by_name():
    for data, said in (
        (b"Pid\n.", "PERSID at byte 0"),
        (b"N2\x86.", "DUP at byte 1"),
        (b"\x82\x01.", "EXT1"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"(o.", "OBJ"),
    ):
        assert f"contains the opcode {said}" in refusal(data)
    assert "byte 0, 0xff, is no opcode" in refusal(b"\xff")


def test_numpy_gets_bytes_of_the_right_size_and_number_types_alone(monkeypatch):
    seen = []
    frombuffer = np.frombuffer

    def spy(data, dtype, count):
        seen.append(dtype)
        assert type(data) is bytes and dtype[0] in "<>=" and dtype[1] in "biuf" and dtype[2:] in ("1", "2", "4", "8")
        assert len(data) == count * int(dtype[2:])
        return frombuffer(data, dtype, count)

    monkeypatch.setattr("reclm_lite.data.importers.pickle_values.np.frombuffer", spy)
    for _, data in hostile_pickles():
        with pytest.raises(InputError):
            parse_pickle(data, HERE)
    assert set(seen) == {"<i4"}  # the sound array in some of them


# -- bounds ------------------------------------------------------------------------


@pytest.mark.parametrize("title, data", large_pickles(100_000), ids=[title for title, _ in large_pickles(100)])
def test_memory_stays_within_a_multiple_of_the_file(title, data):
    limits = replace(LIMITS, max_values=50_000)
    parse_pickle(b"N.", HERE)
    tracemalloc.start()
    try:
        parse_pickle(data, HERE, limits)
    except InputError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # 64 bytes are the smallest container, 16 of them Python's own for finding cycles, and 8 its place on the stack.
    assert peak < 100 * len(data) + 100_000


def test_limits_are_named_in_the_sentence():
    small = replace(LIMITS, max_file_bytes=100, max_opcodes=10, max_values=5, max_depth=2)
    assert "has more than 100 bytes" in refusal(b"X\x70\0\0\0" + b"x" * 112 + b".", small)
    assert "has more than 10 opcodes" in refusal(b"N" * 11 + b".", small)
    assert "has more than 5 values" in refusal(b"](NNNNNe.", small)
    assert "nested deeper than 2 levels" in refusal(b"]]]aa.", small)
    parse_pickle(b"](NNNNe.", HERE, small)
    parse_pickle(b"]]a.", HERE, small)


def test_a_file_beyond_the_bound_is_not_read(tmp_path):
    (tmp_path / "x.pkl").touch()
    os.truncate(tmp_path / "x.pkl", 1 << 40)  # a sparse file: no space is taken
    with pytest.raises(InputError, match="has more than 1,000 bytes"):
        load_pickle(tmp_path / "x.pkl", replace(LIMITS, max_file_bytes=1000))


def test_a_shared_value_counts_wherever_it_is_used():
    # Seven lists, each with the one before ten times: 10^7 values in 200 bytes, which any walk through them would
    # visit.
    lists = b"](" + b"N" * 10 + b"e\x94" + b"".join(b"](" + b"h%c" % n * 10 + b"e\x94" for n in range(6))
    data = b"](" + lists + b"e."
    assert f"has more than {1000 + 16 * len(data):,} values" in refusal(data)
    parse_pickle(b"](](NNNNe\x94" + b"h\0" * 200 + b"e.", HERE)


def test_arrays_have_no_more_bytes_than_the_file():
    shared = (
        b"("
        + array(data=raw(bytes(800)) + b"\x94", shape=group(whole(200)))
        + array(data=b"h\0", shape=group(whole(200)))
    )
    assert len(parse_pickle(shared[: shared.index(b"cnumpy.core", 20)] + b"t.", HERE)) == 1
    assert "arrays with more bytes than the file" in refusal(shared + b"t.")


def test_quoted_text_has_a_bound():
    assert len(parse_pickle(b"S'" + b"\\n" * 500_000 + b"'\n.", HERE)) == 500_000
    assert "does not end within 1048576 bytes" in refusal(b"S'" + b"\\n" * 600_000 + b"'\n.")


def test_memo_places_are_taken_one_by_one():
    assert "keeps value 2147483648 where 0 comes next" in refusal(b"Nr\0\0\0\x80.")


# -- the format reclm ----------------------------------------------------------------


@pytest.fixture
def small_reclm(tmp_path):
    """A folder of the format reclm: 2 users; global items 3, 5, 8; 8 is unseen; 9 has only a text."""
    folder = tmp_path / "small"
    folder.mkdir()

    def write(name, value):
        (folder / name).write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, 4))

    write("item_id_map_train.pkl", {3: 0, 5: 1})
    write("item_id_map_test.pkl", {3: 0, 8: 1})
    write("item_id_map_zero.pkl", {8: 0})
    write("trnMat_zero.pkl", sp.coo_matrix([[1.0, 1.0], [0.0, 1.0]]))
    write("tstMat_zero_.pkl", sp.coo_matrix([[0.0, 1.0], [1.0, 0.0]]))
    write("maskMat_zero.pkl", sp.coo_matrix([[1.0, 0.0], [0.0, 0.0]]))
    write("tstMat_zero_shot.pkl", sp.coo_matrix([[1.0], [0.0]]))
    write(
        "item_info_dict.pkl",
        {key: {"cate": "c", "sub_cate": "s", "title": f"T{key}", "abstract": ""} for key in (9, 8, 3)},
    )
    return folder, write


def folder_refusal(folder):
    with pytest.raises(ReclmError) as caught:
        import_dataset("reclm", folder)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


def test_small_reclm_folder_maps_local_columns_to_global_items(small_reclm):
    folder, _ = small_reclm
    data = import_dataset("reclm", folder)
    assert data.item_ids == ["3", "5", "8", "9"] and [item.title for item in data.item_texts] == ["T3", "", "T8", "T9"]
    labelled = list(
        zip(data.users.tolist(), [data.item_ids[item] for item in data.items], data.given.tolist(), strict=True)
    )
    assert labelled == [(0, "3", 0), (0, "5", 0), (1, "5", 0), (0, "8", 2), (1, "3", 2), (0, "8", 3)]
    assert data.full_candidates.tolist() == [0, 2] and data.unseen_candidates.tolist() == [2]
    assert data.manifest["counts"]["items_without_text"] == 1


def test_reclm_mask_that_disagrees_with_training_is_refused(small_reclm):
    folder, write = small_reclm
    write("maskMat_zero.pkl", sp.coo_matrix([[0.0, 1.0], [0.0, 0.0]]))
    assert "maskMat_zero.pkl: expected the 1 training interactions" in folder_refusal(folder)


def test_reclm_files_that_do_not_fit_together_are_named(small_reclm):
    folder, write = small_reclm
    write("tstMat_zero_.pkl", sp.coo_matrix((3, 2)))
    assert "tstMat_zero_.pkl: expected 2 rows" in folder_refusal(folder)
    write("tstMat_zero_.pkl", sp.coo_matrix((2, 7)))
    assert "tstMat_zero_.pkl: expected 2 columns as in its item map, found 7" in folder_refusal(folder)
    write("tstMat_zero_.pkl", [1, 2])
    assert "expected a scipy coo_matrix, found list" in folder_refusal(folder)
    write("tstMat_zero_.pkl", sp.coo_matrix([[0.0, 1.0], [1.0, 0.0]]))
    write("item_id_map_test.pkl", {3: 0, 8: 5})
    assert "item_id_map_test.pkl: expected the columns 0 to 1 in order" in folder_refusal(folder)
    shutil.copy(folder / "item_id_map_zero.pkl", folder / "item_info_dict.pkl")
    write("item_id_map_test.pkl", {3: 0, 8: 1})
    assert "item_info_dict.pkl: expected whole-number ids with a dictionary each" in folder_refusal(folder)
    (folder / "maskMat_zero.pkl").unlink()
    assert "has no maskMat_zero.pkl" in folder_refusal(folder)


def matrix(**changes):
    """A pickled coo_matrix of 2 x 2 with the state of a good one, changed."""
    state = {"_shape": group(whole(2), whole(2)), "row": array(), "col": array(), "data": array()} | changes
    pairs = (part for key, value in state.items() if value for part in (text(key), value))
    return b"cscipy.sparse.coo\ncoo_matrix\n)\x81" + mapping(*pairs) + b"b."


def ints(*values, code="i4"):
    return array(
        shape=group(whole(len(values))), kind=full_dtype(code=code), data=raw(np.array(values, code).tobytes())
    )


BAD_MATRICES = {
    "no shape": (matrix(_shape=None), "expected a two-dimensional coo_matrix"),
    "no rows": (matrix(row=None), "expected a two-dimensional coo_matrix"),
    "rows as text": (matrix(row=text("rows")), "expected a two-dimensional coo_matrix"),
    "rows as a list": (matrix(row=b"]"), "expected a two-dimensional coo_matrix"),
    "rows of two axes": (matrix(row=array(shape=group(whole(2), whole(1)))), "expected a two-dimensional coo_matrix"),
    "rows of no axis": (matrix(row=array(shape=b")", data=raw(bytes(4)))), "expected a two-dimensional coo_matrix"),
    "three coordinates": (matrix(coords=group(array(), array(), array())), "expected a two-dimensional coo_matrix"),
    "coordinates as a number": (matrix(coords=whole(1)), "expected a two-dimensional coo_matrix"),
    "a shape of three": (matrix(_shape=group(whole(2), whole(2), whole(2))), "expected a two-dimensional coo_matrix"),
    "a shape of booleans": (matrix(_shape=group(b"\x88", whole(2))), "expected a two-dimensional coo_matrix"),
    "a shape of floats": (matrix(_shape=group(b"F2.0\n", whole(2))), "expected a two-dimensional coo_matrix"),
    "a negative shape": (matrix(_shape=group(whole(-1), whole(2))), "expected a two-dimensional coo_matrix"),
    "a shape of 10^30": (matrix(_shape=group(whole(10**30), whole(2))), "a whole number 10000000000000000000"),
    "2^62 rows": (matrix(_shape=group(whole(1 << 62), whole(2))), "expected at most 2147483647 rows"),
    "3 * 10^7 rows": (matrix(_shape=group(whole(3 * 10**7), whole(2)), data=ints(1, 1)), "claims 30,000,000 rows"),
    "rows as floats": (matrix(row=ints(0, 1, code="f8")), "all whole numbers"),
    "rows as booleans": (matrix(row=ints(0, 1, code="b1")), "all whole numbers"),
    "rows of 64 bits unsigned": (matrix(row=ints(0, 1, code="u8")), "all whole numbers"),
    "fewer rows than columns": (matrix(row=ints(0)), "expected as many rows as columns"),
    "a row below 0": (matrix(row=ints(0, -1)), "a row or column outside its shape (2, 2)"),
    "a row beyond the shape": (matrix(row=ints(0, 2)), "a row or column outside its shape (2, 2)"),
    "a column beyond the shape": (matrix(col=ints(0, 1 << 62, code="i8")), "a row or column outside its shape (2, 2)"),
    "a value that is NaN": (matrix(data=ints(0, np.nan, code="f8")), "NaN or infinite"),
    "no entries": (matrix(row=ints(), col=ints(), data=ints()), "expected at least one interaction, found none"),
}


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_a_bad_matrix_is_refused_with_a_sentence(small_reclm, case):
    folder, write = small_reclm
    content, said = BAD_MATRICES[case]
    # All four, so that it is the first one read that is refused, and rows are the same in all.
    for name in ("trnMat_zero.pkl", "tstMat_zero_.pkl", "maskMat_zero.pkl", "tstMat_zero_shot.pkl"):
        write(name, content)
    write("item_id_map_zero.pkl", {8: 0, 9: 1})
    message = folder_refusal(folder)
    assert "trnMat_zero.pkl" in message or "maskMat_zero.pkl" in message
    assert said in message


def test_rows_may_be_many_only_beside_many_entries(small_reclm, monkeypatch):
    folder, _ = small_reclm
    monkeypatch.setattr(reclm, "ROWS_PER_ENTRY", 0)
    monkeypatch.setattr(reclm, "ROWS_ALWAYS_ALLOWED", 1)
    assert (
        "trnMat_zero.pkl: claims 2 rows, and all four matrices hold 7 entries: expected at most 1 rows"
        in folder_refusal(folder)
    )
    monkeypatch.setattr(reclm, "ROWS_ALWAYS_ALLOWED", 2)
    assert len(import_dataset("reclm", folder).user_ids) == 2


BAD_MAPS = {
    "a list": ([3, 5], "found list"),
    "an array": (np.arange(2), "found array"),
    "text ids": ({"3": 0, "5": 1}, "the key 3 with whole number"),
    "text columns": ({3: "0", 5: "1"}, "the key 3 with text"),
    "columns as booleans": ({3: False, 5: True}, "the key 3 with bool"),
    "columns as floats": ({3: 0.0, 5: 1.0}, "the key 3 with float"),
    "ids of 10^30": ({10**30: 0, 5: 1}, "of 13 bytes, beyond 64 bits"),
    "ids of 2^63": ({1 << 63: 0, 5: 1}, "expected item ids below 2^63, found 9223372036854775808"),
    "an id twice": (mapping(whole(3), whole(0), whole(3), whole(1)) + b".", "holds the item id 3 twice"),
    "ids as booleans": ({True: 0}, "a dictionary whose key is a bool"),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_a_bad_item_map_is_refused_with_a_sentence(small_reclm, case):
    folder, write = small_reclm
    content, said = BAD_MAPS[case]
    write("item_id_map_train.pkl", content)
    message = folder_refusal(folder)
    assert "item_id_map_train.pkl" in message and said in message


BAD_TEXTS = {
    "a list": ([1], "expected a dictionary of items, found list"),
    "a title that is an array": ({3: {"title": np.arange(3)}}, "expected text as 'title' of item 3, found array"),
    "a title that is a list": ({3: {"title": ["a"]}}, "expected text as 'title' of item 3, found list"),
    "a title that is a number": ({3: {"title": 12}}, "expected text as 'title' of item 3, found whole number"),
    "a category that is bytes": ({3: {"cate": b"x"}}, "expected text as 'cate' of item 3, found bytes"),
    "an abstract that is NaN": ({3: {"abstract": float("nan")}}, "expected text as 'abstract' of item 3, found float"),
    "an item that is text": ({3: "title"}, "found 3 with text"),
    "an id that is text": ({"3\x1b[2J": {}}, "found '3\\x1b[2J' with dictionary"),
    "an id of 10^30": ({10**30: {}}, "of 13 bytes, beyond 64 bits"),
    "an id of 2^63": ({1 << 63: {}}, "expected item ids below 2^63"),
    "an item twice": (mapping(whole(3), b"}", whole(3), b"}") + b".", "holds the item id 3 twice"),
    "a field twice": (
        mapping(whole(3), mapping(text("title"), text("a"), text("title"), text("b"))) + b".",
        "whose keys are names, found 3",
    ),
    "a thousand fields": ({3: {f"k{n}": "" for n in range(1000)}}, "whose keys are names, found 3"),
    "shared titles": (
        mapping(
            *(
                part
                for n in range(200)
                for part in (whole(n), mapping(text("title"), b"h\0" if n else text("x" * 100_000) + b"\x94"))
            )
        )
        + b".",
        "more than 16 characters for each byte",
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_item_texts_are_refused_with_a_sentence(small_reclm, case):
    folder, write = small_reclm
    content, said = BAD_TEXTS[case]
    write("item_info_dict.pkl", content)
    message = folder_refusal(folder)
    assert "item_info_dict.pkl" in message and said in message


def test_missing_and_empty_texts_are_empty(small_reclm):
    folder, write = small_reclm
    write("item_info_dict.pkl", {3: {"title": None, "cate": " c "}, 8: {}, -4: {"title": "T"}})
    data = import_dataset("reclm", folder)
    assert data.item_ids == ["-4", "3", "5", "8"]
    assert [(item.title, item.category) for item in data.item_texts] == [("T", ""), ("", "c"), ("", ""), ("", "")]
