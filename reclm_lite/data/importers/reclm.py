"""The format `reclm`: the MIND split that the authors of RecLM published, as a folder of pickles.

The matrices' columns are local. Column j of the training matrix is the j-th key of
item_id_map_train.pkl; the test and mask matrices use item_id_map_test.pkl, the zero-shot matrix
item_id_map_zero.pkl. The keys, global item ids, are kept as item ids; users are rows, "0" to "57127".

The zero-shot pairs are among the test pairs too: full-shot ranking has unseen items among its
candidates. Both labels are kept, so such a pair comes twice in `Imported`.

The profiles that came with the data (the CSV files) are left out here.
"""

from pathlib import Path

import numpy as np

from ...errors import InputError
from ...types import ItemText
from ..dataset import GIVEN_TEST, GIVEN_TRAIN, GIVEN_UNSEEN, Imported
from .files import find_folder, read_source
from .pickles import CooMatrix, load_pickle

_MATRICES = {
    "train": ("trnMat_zero.pkl", "item_id_map_train.pkl"),
    "test": ("tstMat_zero_.pkl", "item_id_map_test.pkl"),
    "mask": ("maskMat_zero.pkl", "item_id_map_test.pkl"),
    "unseen": ("tstMat_zero_shot.pkl", "item_id_map_zero.pkl"),
}
_TEXTS = "item_info_dict.pkl"


def import_reclm(source: Path, *, name: str | None = None) -> Imported:
    """Read the published pickles; the split they bring is the given one.

    Only NumPy arrays and SciPy's coo_matrix are unpickled; a file that names anything else is refused.
    """
    folder = find_folder(Path(source), "reclm", ", ".join(sorted({file for pair in _MATRICES.values() for file in pair} | {_TEXTS})))
    sources, loaded = [], {}
    for file in sorted({file for pair in _MATRICES.values() for file in pair} | {_TEXTS}):
        if not (folder / file).exists():
            raise InputError(f"{folder} has no {file}: the format reclm needs it; copy the whole published folder")
        sources.append(read_source(folder / file, text=False).manifest())
        loaded[file] = load_pickle(folder / file)
    pairs, columns = {}, {}
    n_users = None
    for part, (matrix, item_map) in _MATRICES.items():
        columns[part] = _columns(folder / item_map, loaded[item_map])
        n_rows, users, local = _pairs(folder / matrix, loaded[matrix], len(columns[part]))
        if n_users is not None and n_rows != n_users:
            raise InputError(f"{folder / matrix}: expected {n_users} rows as in {_MATRICES['train'][0]}, found {n_rows}")
        n_users = n_rows
        pairs[part] = (users, columns[part][local])
    infos = _infos(folder / _TEXTS, loaded[_TEXTS])

    global_ids = np.unique(np.concatenate([*columns.values(), np.fromiter(infos, np.int64, len(infos))]))
    indexed = {part: (users, np.searchsorted(global_ids, items)) for part, (users, items) in pairs.items()}
    _check_mask(folder, indexed, np.isin(global_ids, columns["test"]), len(global_ids))
    texts = [ItemText(*infos.get(int(global_id), ("", "", "", ""))) for global_id in global_ids]
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
                "users": n_users, "items": len(global_ids), **n_of,
                "items_in_training": len(columns["train"]), "items_in_test": len(columns["test"]),
                "items_unseen": len(columns["unseen"]), "users_without_history": int((~trained).sum()),
                "items_without_text": sum(text.is_empty() for text in texts),
            },
            "notes": [f"the mask matrix equals the training interactions with items of the test matrix ({len(indexed['mask'][0])}): checked"],
        },
    )  # fmt: skip


def _columns(path: Path, item_map: object) -> np.ndarray:
    """Global item id of each local column, int64 (n_columns,)."""
    if not isinstance(item_map, dict) or not all(type(key) is int and type(value) is int for key, value in item_map.items()):
        raise InputError(f"{path}: expected a dictionary from item ids to columns, found {type(item_map).__name__}")
    if list(item_map.values()) != list(range(len(item_map))):
        raise InputError(f"{path}: expected the columns 0 to {len(item_map) - 1} in order; the file is not of this format")
    return np.fromiter(item_map, np.int64, len(item_map))


def _pairs(path: Path, matrix: object, n_columns: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, rows and columns of the distinct entries that are not zero, in row order."""
    if not isinstance(matrix, CooMatrix):
        raise InputError(f"{path}: expected a scipy coo_matrix, found {type(matrix).__name__}")
    state = matrix.state
    shape = state.get("_shape", state.get("shape"))
    rows, cols = state.get("coords", (state.get("row"), state.get("col")))
    data = state.get("data")
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(part, np.ndarray) for part in (rows, cols, data))):
        raise InputError(f"{path}: expected a two-dimensional coo_matrix with row, col and data")
    if not (len(rows) == len(cols) == len(data)) or rows.dtype.kind not in "iu" or cols.dtype.kind not in "iu":
        raise InputError(f"{path}: expected as many rows as columns and values, all whole numbers; the file is damaged")
    n_rows = int(shape[0])
    if shape[1] != n_columns:
        raise InputError(f"{path}: expected {n_columns} columns as in its item map, found {shape[1]}")
    if len(rows) and (rows.min() < 0 or rows.max() >= n_rows or cols.min() < 0 or cols.max() >= n_columns):
        raise InputError(f"{path}: holds a row or column outside its shape {tuple(shape)}; the file is damaged")
    keys = np.unique(rows[data != 0].astype(np.int64) * n_columns + cols[data != 0])
    return n_rows, keys // n_columns, keys % n_columns


def _infos(path: Path, infos: object) -> dict[int, tuple[str, str, str, str]]:
    """Global item id -> (title, category, subcategory, description)."""
    if not isinstance(infos, dict):
        raise InputError(f"{path}: expected a dictionary of items, found {type(infos).__name__}")
    texts = {}
    for key, info in infos.items():
        if type(key) is not int or not isinstance(info, dict):
            raise InputError(f"{path}: expected whole-number ids with a dictionary each, found {key!r}: {type(info).__name__}")
        texts[key] = tuple(str(info.get(field) or "").strip() for field in ("title", "cate", "sub_cate", "abstract"))
    return texts


def _check_mask(folder: Path, indexed: dict, in_test: np.ndarray, n_items: int) -> None:
    """The mask matrix must be the training interactions with items that the test matrix has."""
    users, items = indexed["train"]
    expected = np.sort((users * n_items + items)[in_test[items]])
    found = np.sort(indexed["mask"][0] * n_items + indexed["mask"][1])
    if not np.array_equal(expected, found):
        raise InputError(
            f"{folder / _MATRICES['mask'][0]}: expected the {len(expected)} training interactions with items of the test matrix, "
            f"found {len(found)} others; the files are not of one split"
        )
