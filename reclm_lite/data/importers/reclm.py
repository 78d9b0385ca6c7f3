"""The format `reclm`: the MIND split that the authors of RecLM published, as a folder of pickles.

The matrices' columns are local. Column j of the training matrix is the j-th key of
item_id_map_train.pkl; the test and mask matrices use item_id_map_test.pkl, the zero-shot matrix
item_id_map_zero.pkl. The keys, global item ids, are kept as item ids; users are rows, "0" to "57127".

The zero-shot pairs are test pairs too, since the candidates of full-shot ranking include unseen items. Both labels are
kept, so such a pair occurs twice in `Imported`.

The profiles that came with the data (the CSV files) are left out here.
"""

from pathlib import Path

import numpy as np

from ...errors import InputError
from ...types import ItemText
from ..dataset import GIVEN_TEST, GIVEN_TRAIN, GIVEN_UNSEEN, Imported
from .files import find_folder, read_source, within_folder
from .pickle_values import kind, shown
from .pickles import CooMatrix, PickledDict, load_pickle

_MATRICES = {
    "train": ("trnMat_zero.pkl", "item_id_map_train.pkl"),
    "test": ("tstMat_zero_.pkl", "item_id_map_test.pkl"),
    "mask": ("maskMat_zero.pkl", "item_id_map_test.pkl"),
    "unseen": ("tstMat_zero_shot.pkl", "item_id_map_zero.pkl"),
}
_TEXTS = "item_info_dict.pkl"
# Every row becomes a user, so a small file could claim millions of them. The published data has 57,128 rows and 115,000
# entries.
ROWS_ALWAYS_ALLOWED = 100_000
ROWS_PER_ENTRY = 10
# User indices are int32.
MAX_ROWS = 2**31 - 1
# A pickle can share one text among many items, each of which gets a copy. The published files have 0.9 characters of
# text per byte.
CHARACTERS_ALWAYS_ALLOWED = 1_000_000
CHARACTERS_PER_BYTE = 16


def import_reclm(source: Path, *, name: str | None = None) -> Imported:
    """Read the published pickles; their split becomes the given split.

    Nothing in a pickle is executed, and each is validated before use.
    """
    folder = find_folder(
        Path(source), "reclm", ", ".join(sorted({file for pair in _MATRICES.values() for file in pair} | {_TEXTS}))
    )
    sources, loaded = [], {}
    for file in sorted({file for pair in _MATRICES.values() for file in pair} | {_TEXTS}):
        if not (folder / file).exists():
            raise InputError(f"{folder} has no {file}: the format reclm needs it; copy the whole published folder")
        [path] = within_folder(folder, file)
        sources.append(read_source(path, text=False).manifest())
        loaded[file] = load_pickle(path)
    pairs, columns = {}, {}
    n_users = None
    n_entries = 0
    for part, (matrix, item_map) in _MATRICES.items():
        columns[part] = _columns(folder / item_map, loaded[item_map])
        n_rows, users, local = _pairs(folder / matrix, loaded[matrix], len(columns[part]))
        if n_users is not None and n_rows != n_users:
            raise InputError(
                f"{folder / matrix}: expected {n_users} rows as in {_MATRICES['train'][0]}, found {n_rows}"
            )
        n_users = n_rows
        n_entries += len(users)
        pairs[part] = (users, columns[part][local])
    _check_rows(folder, n_users, n_entries, len(pairs["train"][0]))
    text_ids, texts_given = _infos(folder / _TEXTS, loaded[_TEXTS])

    global_ids = np.unique(np.concatenate([*columns.values(), text_ids]))
    indexed = {part: (users, np.searchsorted(global_ids, items)) for part, (users, items) in pairs.items()}
    _check_mask(folder, indexed, np.isin(global_ids, columns["test"]), len(global_ids))
    texts = [ItemText("", "", "", "")] * len(global_ids)
    for index, text in zip(np.searchsorted(global_ids, text_ids).tolist(), texts_given, strict=True):
        texts[index] = text
    labels = (("train", GIVEN_TRAIN), ("test", GIVEN_TEST), ("unseen", GIVEN_UNSEEN))
    n_of = {part: len(indexed[part][0]) for part, _ in labels}
    trained = np.zeros(n_users, bool)
    trained[indexed["train"][0]] = True
    return Imported(
        name=name or folder.resolve().name,
        user_ids=[str(user) for user in range(n_users)],
        item_ids=[str(global_id) for global_id in global_ids],
        item_texts=texts,
        users=np.concatenate([indexed[part][0] for part, _ in labels]).astype(np.int32),
        items=np.concatenate([indexed[part][1] for part, _ in labels]).astype(np.int32),
        given=np.concatenate([np.full(n_of[part], label, np.uint8) for part, label in labels]),
        full_candidates=np.searchsorted(global_ids, np.sort(columns["test"])).astype(np.int32),
        unseen_candidates=np.searchsorted(global_ids, np.sort(columns["unseen"])).astype(np.int32),
        manifest={
            "format": "reclm",
            "sources": sources,
            "options": {},
            "dropped": {},
            "counts": {
                "users": n_users,
                "items": len(global_ids),
                **n_of,
                "items_in_training": len(columns["train"]),
                "items_in_test": len(columns["test"]),
                "items_unseen": len(columns["unseen"]),
                "users_without_history": int((~trained).sum()),
                "items_without_text": sum(text.is_empty() for text in texts),
            },
            "notes": [
                "the mask matrix equals the training interactions with items of the test matrix "
                f"({len(indexed['mask'][0])}): checked"
            ],
        },
    )


def _columns(path: Path, item_map: object) -> np.ndarray:
    """Global item id of each local column, int64 (n_columns,)."""
    if type(item_map) is not PickledDict or not set(map(type, item_map)) <= {int}:
        raise InputError(
            f"{path}: expected a dictionary from item ids to columns, both whole numbers, found {_found(item_map, int)}"
        )
    columns = item_map.values()
    if columns != list(range(len(columns))):
        raise InputError(
            f"{path}: expected the columns 0 to {len(columns) - 1} in order; the file is not of this format"
        )
    return _ids(path, item_map.keys())


def _ids(path: Path, ids: list[int]) -> np.ndarray:
    """Item ids as int64 (n,), none of them twice."""
    if ids and max(ids) >= 1 << 63:
        raise InputError(f"{path}: expected item ids below 2^63, found {max(ids)}; the file is not of this format")
    found = np.array(ids, np.int64)
    ordered = np.sort(found)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise InputError(f"{path}: holds the item id {twice[0]} twice; the file is damaged")
    return found


def _found(value: object, key_type: type) -> str:
    """A description of unexpected content, for a message."""
    if type(value) is not PickledDict:
        return kind(value)
    for key, held in value.items():
        if type(key) is not key_type or type(held) is not int:
            return f"the key {shown(str(key))} with {kind(held)}"
    return kind(value)


def _pairs(path: Path, matrix: object, n_columns: int) -> tuple[int, np.ndarray, np.ndarray]:
    """(number of rows, rows, columns) of the distinct non-zero entries, in row order."""
    if not isinstance(matrix, CooMatrix):
        raise InputError(f"{path}: expected a scipy coo_matrix, found {kind(matrix)}")
    state = matrix.state
    shape = state.get("_shape", state.get("shape"))
    coords = state.get("coords", (state.get("row"), state.get("col")))
    data = state.get("data")
    arrays = (*coords, data) if type(coords) is tuple else (coords, data)
    if not (
        type(shape) is tuple
        and [type(length) for length in shape] == [int, int]
        and min(shape) >= 0
        and len(arrays) == 3
        and all(isinstance(array, np.ndarray) and array.ndim == 1 for array in arrays)
    ):
        raise InputError(
            f"{path}: expected a two-dimensional coo_matrix with its shape and the vectors row, col and data"
        )
    rows, cols, data = arrays
    # SciPy writes indices of 32 or 64 bits.
    whole = {array.dtype.str[1:] for array in (rows, cols)} <= {"i4", "i8"}
    if not (len(rows) == len(cols) == len(data)) or not whole:
        raise InputError(f"{path}: expected as many rows as columns and values, all whole numbers; the file is damaged")
    n_rows = shape[0]
    if n_rows > MAX_ROWS:
        raise InputError(f"{path}: expected at most {MAX_ROWS} rows, found {n_rows}; the file is not of this format")
    if shape[1] != n_columns:
        raise InputError(f"{path}: expected {n_columns} columns as in its item map, found {shape[1]}")
    if len(rows) and (rows.min() < 0 or rows.max() >= n_rows or cols.min() < 0 or cols.max() >= n_columns):
        raise InputError(f"{path}: holds a row or column outside its shape {shape}; the file is damaged")
    if not np.isfinite(data).all():
        raise InputError(f"{path}: holds a value that is NaN or infinite, expected finite numbers; the file is damaged")
    # Below MAX_ROWS times the number of opcodes that a pickle may have: far from 2**63.
    keys = np.unique(rows[data != 0].astype(np.int64) * n_columns + cols[data != 0])
    return n_rows, keys // n_columns, keys % n_columns


def _check_rows(folder: Path, n_rows: int, n_entries: int, n_train: int) -> None:
    """Raise InputError without training interactions, or with too many empty rows to be plausible users."""
    path = folder / _MATRICES["train"][0]
    if not n_train:
        raise InputError(f"{path}: expected at least one interaction, found none")
    allowed = ROWS_ALWAYS_ALLOWED + ROWS_PER_ENTRY * n_entries
    if n_rows > allowed:
        raise InputError(
            f"{path}: claims {n_rows:,} rows, and all four matrices hold {n_entries:,} entries: expected at most "
            f"{allowed:,} rows "
            f"({ROWS_ALWAYS_ALLOWED:,} and {ROWS_PER_ENTRY} for each entry); leave out users without interactions"
        )


def _infos(path: Path, infos: object) -> tuple[np.ndarray, list[ItemText]]:
    """Global item ids, int64 (n,), and the title, category, subcategory and description of each."""
    if type(infos) is not PickledDict:
        raise InputError(f"{path}: expected a dictionary of items, found {kind(infos)}")
    texts = []
    n_left = CHARACTERS_ALWAYS_ALLOWED + CHARACTERS_PER_BYTE * path.stat().st_size
    for key, info in infos.items():
        fields = info.fields() if type(info) is PickledDict else None
        if type(key) is not int or fields is None:
            raise InputError(
                f"{path}: expected whole-number ids with a dictionary each, whose keys are names, "
                f"found {shown(str(key))} with {kind(info)}; the file is not of this format"
            )
        parts = []
        for name in ("title", "cate", "sub_cate", "abstract"):
            part = fields.get(name)
            if part is not None and type(part) is not str:
                raise InputError(
                    f"{path}: expected text as {name!r} of item {key}, found {kind(part)}; the file is not of this "
                    "format"
                )
            n_left -= len(part or "")
            if n_left < 0:
                raise InputError(
                    f"{path}: its items have more than {CHARACTERS_PER_BYTE} characters for each byte of the file, "
                    "because they share "
                    "long texts; the file is not of this format"
                )
            parts.append((part or "").strip())
        texts.append(ItemText(*parts))
    return _ids(path, infos.keys()), texts


def _check_mask(folder: Path, indexed: dict, in_test: np.ndarray, n_items: int) -> None:
    """Raise InputError unless the mask matrix equals the training interactions with items of the test matrix."""
    users, items = indexed["train"]
    expected = np.sort((users * n_items + items)[in_test[items]])
    found = np.sort(indexed["mask"][0] * n_items + indexed["mask"][1])
    if not np.array_equal(expected, found):
        raise InputError(
            f"{folder / _MATRICES['mask'][0]}: expected the {len(expected)} training interactions with items of the "
            "test matrix, "
            f"found {len(found)} others; the files are not of one split"
        )
