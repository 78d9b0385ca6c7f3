"""From staging tables of text to a data set of integers: filters, duplicates, k-cores, indices of users and items."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ... import memory
from ...errors import InputError, WorkspaceError
from ...types import ItemText
from ..dataset import Imported
from .limits import cut
from .sql import quoted, seconds
from .staging import Staging

_FETCH_ROWS = 50_000
# Real data reach their core in a few rounds. A round in SQL can spill to disk; the in-memory rest cannot.
_SQL_ROUNDS = 20
# Bytes that Python needs for a string beyond its characters, and for an item's record of texts.
_TEXT_BYTES, _RECORD_BYTES = 64, 120
_FIELDS = ("title", "category", "subcategory", "description")


def number_all(
    staging: Staging,
    *,
    name: str,
    format: str,
    options: dict,
    min_rating: float | None = None,
    min_user: int | None = None,
    min_item: int | None = None,
) -> Imported:
    """Filter, drop duplicates, number users and items, and return the data set.

    Users and items are numbered in order of ids: integers first, by value, then the rest as text. Of duplicate pairs
    the earliest is kept; without times, the one with the highest rating.
    """
    if min_rating is not None and not (math.isfinite(min_rating) and abs(min_rating) < 3e38):
        raise InputError(f"min_rating: expected a finite number, found {min_rating}")
    # The number of pairs stays far below 2^31.
    min_user, min_item = min(min_user or 0, 2**31), min(min_item or 0, 2**31)
    db = staging.db
    with staging.reading():
        counts = _pairs(db, min_rating)
        _check_ids(staging)
        counts |= _core(staging, min_user, min_item)
        if counts["interactions"] == 0:
            sources = ", ".join(str(source.path) for source in staging.sources)
            if not counts["rows"]:
                raise InputError(
                    f"{sources}: expected at least one interaction, found none; check that the file is complete"
                )
            limits = {"min_rating": min_rating, "min_user": min_user or None, "min_item": min_item or None}
            told = ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
            raise InputError(
                f"{sources}: no interaction is left of {counts['rows']:,} rows ({told}): lower these limits"
            )
        _require_memory(staging)
        user_ids = _number(db, "user", f"SELECT user FROM listed_users WHERE {min_user} = 0")
        item_ids = _number(db, "item", f"SELECT item FROM texts WHERE {min_item} = 0")
        has_time, has_rating, has_part = db.execute(
            "SELECT count(time) > 0, count(rating) > 0, count(part) > 0 FROM pairs"
        ).fetchone()
        arrays = db.execute(
            "SELECT CAST(un.idx AS INTEGER) AS users, CAST(tn.idx AS INTEGER) AS items"
            + (", p.time AS timestamps" if has_time else "")
            + (", p.rating AS ratings" if has_rating else "")
            + (", p.part AS given" if has_part else "")
            + " FROM pairs p JOIN user_numbers un ON p.u = un.old JOIN item_numbers tn ON p.i = tn.old ORDER BY 1, 2"
        ).fetchnumpy()
        texts, missing, empty = _item_texts(staging, len(item_ids))
        used_users, used_items = db.execute("SELECT count(DISTINCT u), count(DISTINCT i) FROM pairs").fetchone()
    dropped = {
        "rated below min_rating": counts["below"],
        "repeated pairs": counts["repeated"],
        "pairs of users or items below min_user or min_item": counts["outside_core"],
    }
    return Imported(
        name=_text(name),
        user_ids=user_ids,
        item_ids=item_ids,
        item_texts=texts,
        **{key: np.ascontiguousarray(value) for key, value in arrays.items()},
        manifest={
            "format": format,
            "sources": [source.manifest() for source in staging.sources],
            "options": plain(options | {"min_rating": min_rating, "min_user": min_user, "min_item": min_item}),
            "dropped": dropped,
            "counts": {
                "rows": counts["rows"],
                "users": len(user_ids),
                "items": len(item_ids),
                "interactions": counts["interactions"],
                "users_without_history": len(user_ids) - used_users,
                "items_without_interactions": len(item_ids) - used_items,
                "items_without_text": empty,
                "items_not_in_items_table": missing,
            },
            "notes": staging.notes,
        },
    )


def _pairs(db, min_rating: float | None) -> dict[str, int]:
    """Table `pairs` (u, i, time, rating, part): distinct pairs by provisional integers."""
    keep = (
        "true" if min_rating is None else f"(rating IS NULL OR CAST(rating AS FLOAT) >= {float(min_rating)!r}::FLOAT)"
    )
    rows, kept, rated = db.execute(f"SELECT count(*), count(*) FILTER ({keep}), count(rating) FROM raw").fetchone()
    if min_rating is not None and not rated and rows:
        raise InputError(f"min_rating {min_rating} requires ratings, but the data have none: leave it out")
    for side in ("user", "item"):
        listed = f"SELECT {side} AS id FROM {'listed_users' if side == 'user' else 'texts'}"
        db.execute(
            f"CREATE TABLE {side}s AS SELECT id, CAST(row_number() OVER (ORDER BY try_cast(id AS BIGINT) NULLS LAST, "
            "id) - 1 "
            f"AS INTEGER) AS old FROM (SELECT DISTINCT {side} AS id FROM raw UNION {listed})"
        )
    db.execute(
        f"""CREATE TABLE pairs AS
        SELECT u, i, min(time) AS time, part,
               CASE WHEN count(time) > 0 THEN min_by(rating, (time, -rating)) ELSE max(rating) END AS rating
        FROM (SELECT users.old AS u, items.old AS i, {seconds("time")} AS time, CAST(rating AS FLOAT) AS rating, part
              FROM raw JOIN users ON raw.user = users.id JOIN items ON raw.item = items.id WHERE {keep})
        GROUP BY u, i, part"""
    )
    db.execute("DROP TABLE raw")
    n_pairs = db.execute("SELECT count(*) FROM pairs").fetchone()[0]
    return {"rows": rows, "below": rows - kept, "repeated": kept - n_pairs}


def _check_ids(staging: Staging) -> None:
    """Raise InputError for an id that is too long; importers do not see every id in its own column."""
    for side in ("user", "item"):
        long = staging.db.execute(
            f"SELECT left(id, 100) FROM {side}s WHERE strlen(id) > {staging.limits.id_bytes} LIMIT 1"
        ).fetchone()
        if long is not None:
            raise InputError(
                f"{', '.join(str(source.path) for source in staging.sources)}: the {side} id {cut(long[0])!r} is "
                "longer than "
                f"{staging.limits.id_bytes:,} bytes; check the format, or raise the limit with --limit id-bytes=N"
            )


def _core(staging: Staging, min_user: int, min_item: int) -> dict[str, int]:
    """Drop users and items with too few pairs, repeatedly until all remaining have enough."""
    db = staging.db

    def count() -> int:
        return db.execute("SELECT count(*) FROM pairs").fetchone()[0]

    before = now = count()
    n_pairs = -1
    for _ in range(_SQL_ROUNDS):
        if now == n_pairs:
            break
        n_pairs = now
        for side, least in (("u", min_user), ("i", min_item)):
            if least > 1:
                db.execute(
                    f"DELETE FROM pairs WHERE {side} IN (SELECT {side} FROM pairs GROUP BY {side} "
                    f"HAVING count(DISTINCT {'i' if side == 'u' else 'u'}) < {int(least)})"
                )
        now = count()
    else:
        _drop_chains(staging, min_user, min_item)
        n_pairs = count()
    return {"interactions": n_pairs, "outside_core": before - n_pairs}


def _drop_chains(staging: Staging, min_user: int, min_item: int) -> None:
    """Finish the core in memory: a chain of pairs loses two per round, and a round in SQL reads all pairs."""
    found = staging.db.execute("SELECT DISTINCT u, i FROM pairs").fetchnumpy()
    for side, gone in zip("ui", outside_core(found["u"], found["i"], min_user, min_item), strict=True):
        if len(gone):
            path = staging.folder / f"gone-{side}"
            path.write_text("\n".join(map(str, gone.tolist())) + "\n", encoding="ascii")
            columns = "columns={'n': 'INTEGER'}, header=false, auto_detect=false, delim=','"
            staging.db.execute(
                f"DELETE FROM pairs WHERE {side} IN (SELECT n FROM read_csv({quoted(str(path))}, {columns}))"
            )
            path.unlink()


def outside_core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> tuple[np.ndarray, np.ndarray]:
    """Users and items outside the core of distinct pairs. Visits every pair twice, for any number of rounds.

    users, items: int (n,). The core is the largest set of pairs in which each user has at least min_user pairs and each
    item at least min_item.
    """
    by_user = sp.csr_matrix((np.ones(len(users), np.int8), (users, items)))
    of = (by_user, by_user.T.tocsr())
    least = (min(min_user, 2**31), min(min_item, 2**31))
    degree = [np.diff(matrix.indptr).astype(np.int64) for matrix in of]
    gone = [np.zeros(len(one), bool) for one in degree]
    leaving = [np.flatnonzero((one > 0) & (one < few)) for one, few in zip(degree, least, strict=True)]
    while any(len(one) for one in leaving):
        for side, other in ((0, 1), (1, 0)):
            now = leaving[side]
            gone[side][now] = True
            starts, counts = of[side].indptr[now], of[side].indptr[now + 1] - of[side].indptr[now]
            where = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
            touched = of[side].indices[where]
            np.subtract.at(degree[other], touched, 1)
            touched = touched[(degree[other][touched] < least[other]) & ~gone[other][touched]]
            leaving[side] = now[:0]
            leaving[other] = np.unique(np.concatenate((leaving[other], touched)))
    return np.flatnonzero(gone[0]), np.flatnonzero(gone[1])


def _number(db, side: str, listed: str) -> list[str]:
    """Table `{side}_numbers` (old, idx) of the users or items that stay; returns their ids in order."""
    db.execute(
        f"CREATE TABLE {side}_numbers AS SELECT old, id, row_number() OVER (ORDER BY old) - 1 AS idx FROM {side}s "
        f"WHERE old IN (SELECT {side[0]} FROM pairs) OR id IN ({listed})"
    )
    return [row[0] for row in _rows(db, f"SELECT id FROM {side}_numbers ORDER BY idx")]


def _require_memory(staging: Staging) -> None:
    """Raise WorkspaceError if the ids, texts and pairs would not fit in memory: from here on Python holds them."""
    most = staging.limits.text_chars
    # A letter takes one byte, or up to four in a text that is not ASCII.
    letters = " + ".join(
        f"CASE WHEN strlen({field}) = length({field}) THEN least(strlen({field}), {most}) ELSE 4 * "
        f"least(length({field}), {most}) END"
        for field in (f"coalesce({field}, '')" for field in _FIELDS)
    )
    queries = (
        f"SELECT sum(strlen(id) + {_TEXT_BYTES}) FROM users",
        f"SELECT sum(strlen(id) + {_TEXT_BYTES + _RECORD_BYTES}) FROM items",
        f"SELECT sum({letters} + {4 * _TEXT_BYTES}) FROM texts",
        "SELECT 2 * 24 * count(*) FROM pairs",  # DuckDB's columns, and the same in the caller's order
    )
    need = sum(int(staging.db.execute(query).fetchone()[0] or 0) for query in queries)
    have = memory.available_bytes()
    if need > have:
        raise WorkspaceError(
            f"{', '.join(str(source.path) for source in staging.sources)}: ids, texts and interactions take about "
            f"{memory.in_units(need)} of memory and {memory.in_units(have)} are available; import part of the data, "
            "or shorten the texts with --limit text-chars=N"
        )


def _item_texts(staging: Staging, n_items: int) -> tuple[list[ItemText], int, int]:
    most = staging.limits.text_chars
    texts: list[ItemText] = []
    missing = empty = n_cut = 0
    fields = ", ".join(f"left(coalesce({field}, ''), {most})" for field in _FIELDS)
    is_cut = " OR ".join(f"coalesce(length({field}) > {most}, false)" for field in _FIELDS)
    for known, was_cut, *found in _rows(
        staging.db,
        f"SELECT t.item IS NOT NULL, {is_cut}, {fields} FROM item_numbers n LEFT JOIN texts t ON n.id = t.item "
        "ORDER BY n.idx",
    ):
        text = ItemText(*(field.strip() for field in found))
        texts.append(text)
        missing += not known
        empty += text.is_empty()
        n_cut += was_cut
    assert len(texts) == n_items
    if n_cut:
        staging.notes.append(f"{n_cut} items have a text of more than {most:,} characters; it was cut there")
    return texts, missing, empty


def _rows(db, query: str) -> Iterator[tuple]:
    cursor = db.execute(query)
    while rows := cursor.fetchmany(_FETCH_ROWS):
        yield from rows


def _text(name: str) -> str:
    """A file's name as text, with question marks for bytes that are not UTF-8."""
    return name.encode("utf-8", "replace").decode()


def plain(options: dict) -> dict:
    """Options for the manifest: without unset ones, paths by name, sequences as lists."""
    kept = {key: value for key, value in options.items() if value not in (None, (), [], 0)}
    return {
        key: _text(value.name) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in kept.items()
    }
