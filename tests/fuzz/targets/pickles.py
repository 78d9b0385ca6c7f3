"""Pickles: one alone, and one among the sound files of a folder of the format reclm."""

import pickle
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from crafted_pickles import OPCODES, good_pickles, hostile_pickles
from harness import Target

from reclm_lite.data.importers.pickles import CooMatrix, PickledDict, parse_pickle
from reclm_lite.data.importers.reclm import import_reclm
from reclm_lite.errors import InputError

HERE = Path("x.pkl")
LEAVES = {int, bool, float, str, bytes, type(None)}
TOKENS = (
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.multiarray\nscalar\n",
    b"cscipy.sparse._coo\ncoo_matrix\n",
    b"X\2\0\0\0f8",
    b"X\5\0\0\0f8,f8",
    b"X\1\0\0\0O",
    b"X\2\0\0\0i1",
    b"X\1\0\0\0<",
    b"X\1\0\0\0>",
    b"B\x10\0\0\0AAAAAAAAAAAAAAAA",
    b"I1073741824\n",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08\0\0\0\0\0\0\0\x40",
    b"K\1",
    b"\x89\x88t",
    b"])}(tRb",
    b"q\0h\0",
    b"\x94h\0",
    *(opcode.code.encode("latin-1") for opcode in OPCODES.values()),
)


def check(message: str) -> str:
    """The outcome of a refusal, whose message must be one short sentence."""
    if not message.isprintable() or len(message) > 600:
        raise AssertionError(f"the message is no sentence: {message!r}")
    if "names the class" in message:
        return "refused: class"
    return "refused: damaged" if "not a whole pickle" in message else "refused: content"


def check_values(value: object, n_bytes: int) -> None:
    """Nothing but plain values and arrays of numbers whose memory can be read and is the file's own."""
    level, depth, arrays = [value], 0, {}
    while level:
        below = []
        for one in level:
            if isinstance(one, np.ndarray):
                if (
                    type(one) is not np.ndarray
                    or one.dtype.kind not in "biuf"
                    or not one.dtype.isnative
                    or one.dtype.fields is not None
                ):
                    raise AssertionError(f"an array of {one.dtype}")
                arrays[id(one)] = len(one.tobytes())
            elif type(one) is CooMatrix:
                below += one.state.values()
            elif type(one) in (list, tuple, PickledDict):
                below += one
            elif type(one) not in LEAVES:
                raise AssertionError(f"a value of the type {type(one)}")
        level, depth = below, depth + 1
        if depth > 10:
            raise AssertionError("too deep")
    if sum(arrays.values()) > n_bytes:
        raise AssertionError("the arrays have more bytes than the file")


def parse(data: bytes) -> str:
    try:
        value = parse_pickle(data, HERE)
    except InputError as error:
        return check(str(error))
    check_values(value, len(data))
    return "accepted"


def pickle_seeds() -> list[bytes]:
    """As many good ones as hostile ones, so that half of the mutated ones begin as good ones."""
    hostile = [data for _, data in hostile_pickles() if len(data) <= 1000]
    good = [data for _, data, _ in good_pickles()]
    return good * (len(hostile) // len(good)) + hostile


# -- a folder ----------------------------------------------------------------------

FILES = (
    "item_id_map_train.pkl",
    "item_id_map_test.pkl",
    "item_id_map_zero.pkl",
    "trnMat_zero.pkl",
    "tstMat_zero_.pkl",
    "maskMat_zero.pkl",
    "tstMat_zero_shot.pkl",
    "item_info_dict.pkl",
)


def sound_files(protocol: int) -> list[bytes]:
    values = (
        {3: 0, 5: 1},
        {3: 0, 8: 1},
        {8: 0},
        sp.coo_matrix([[1.0, 1.0], [0.0, 1.0]]),
        sp.coo_matrix([[0.0, 1.0], [1.0, 0.0]]),
        sp.coo_matrix([[1.0, 0.0], [0.0, 0.0]]),
        sp.coo_matrix([[1.0], [0.0]]),
        {key: {"cate": "c", "sub_cate": "s", "title": f"T{key}", "abstract": ""} for key in (9, 8, 3)},
    )
    return [pickle.dumps(value, protocol) for value in values]


@cache
def sound_folder() -> tuple[Path, tempfile.TemporaryDirectory]:
    held = tempfile.TemporaryDirectory(prefix="reclm-fuzz-")
    for name, data in zip(FILES, sound_files(4), strict=True):
        (Path(held.name) / name).write_bytes(data)
    return Path(held.name), held


def import_folder(data: bytes) -> str:
    """The first byte says which file the rest stands in for."""
    if not data:
        return "refused: nothing"
    folder, _ = sound_folder()
    path = folder / FILES[data[0] % len(FILES)]
    sound = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        imported = import_reclm(folder)
    except InputError as error:
        check(str(error))
        return "refused"
    finally:
        path.write_bytes(sound)
    if (
        imported.users.max() >= len(imported.user_ids)
        or imported.items.max() >= len(imported.item_ids)
        or imported.items.min() < 0
    ):
        raise AssertionError("an interaction of no user or item")
    if len(imported.item_texts) != len(imported.item_ids) or len(set(imported.item_ids)) != len(imported.item_ids):
        raise AssertionError("items and texts do not fit")
    if not all(
        type(part) is str
        for text in imported.item_texts
        for part in (text.title, text.category, text.subcategory, text.description)
    ):
        raise AssertionError("a text that is none")
    return "accepted"


def folder_seeds() -> list[bytes]:
    return [bytes([number]) + data for protocol in (3, 4) for number, data in enumerate(sound_files(protocol))]


TARGETS = (
    Target(
        "pickles",
        "pickles of NumPy arrays, COO matrices, dictionaries",
        pickle_seeds,
        parse,
        TOKENS,
        max_bytes=2048,
        n_slice=5000,
    ),
    Target(
        "reclm_folder",
        "the format reclm with one strange file",
        folder_seeds,
        import_folder,
        TOKENS,
        max_bytes=2048,
        n_slice=300,
    ),
)
