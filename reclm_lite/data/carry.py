"""Carries profiles over an import. With `--update`, an id means the same person or item as before; otherwise it does
not.

Every import numbers users and items anew; profiles and the records of whom a generation was made for follow by id.
Nothing is kept of users and items that are gone: neither profiles nor generations used by nobody else. As with `reclm
forget`, generations with no record of whom they were made for are removed if a person is gone. Left out: whether a
profile still fits its history, which the next run of `reclm profile` decides.
"""

import json
import sqlite3
from dataclasses import asdict, dataclass

from ..errors import InputError
from ..forget_plan import FORGETTING

_GONE = "(side, idx) NOT IN (SELECT side, old FROM moved)"


@dataclass(frozen=True)
class Carried:
    """Counts. n_profiles_kept, n_profiles_gone: of users and items together; n_by_hand_gone: those of the latter that
    were edited by hand or imported; n_generations_gone: used by nobody who is left.
    """

    n_users_gone: int
    n_items_gone: int
    n_users_new: int
    n_items_new: int
    n_profiles_kept: int
    n_profiles_gone: int
    n_by_hand_gone: int
    n_generations_gone: int

    def as_dict(self) -> dict:
        return asdict(self)


def remember_ids(db: sqlite3.Connection) -> None:
    """Record the index of every id, within the caller's transaction, before users and items are replaced."""
    db.execute(
        "CREATE TEMP TABLE before AS SELECT 'user' AS side, user_idx AS idx, user_id AS id FROM users "
        "UNION ALL SELECT 'item', item_idx, item_id FROM items"
    )


def count_gone(db: sqlite3.Connection) -> int:
    """Number of earlier users whose ids are not in the new data, within the same transaction."""
    query = "SELECT COUNT(*) FROM before WHERE side='user' AND id NOT IN (SELECT user_id FROM users)"
    return db.execute(query).fetchone()[0]


def carry_over(db: sqlite3.Connection, *, update: bool) -> Carried | None:
    """Renumber profiles and uses, within the same transaction, after users and items were replaced; without `update`
    there are none left. `Workspace.finish_forgetting` then wipes what went from the file. Raises InputError if an
    update contains none of the earlier users.
    """
    carried = _carry(db) if update else None
    if db.execute("SELECT 1 FROM before LIMIT 1").fetchone() and (carried is None or _lost_something(carried)):
        # Nothing to rename or to delete, but the database to wipe.
        db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)",
            (FORGETTING, json.dumps({"rename": [], "empty": [], "delete": []})),
        )
    db.execute("DROP TABLE before")
    return carried


def _lost_something(carried: Carried) -> bool:
    return bool(carried.n_users_gone or carried.n_profiles_gone or carried.n_generations_gone)


def _carry(db: sqlite3.Connection) -> Carried:

    def count(rows: str) -> int:
        return db.execute(f"SELECT COUNT(*) FROM {rows}").fetchone()[0]

    db.execute("CREATE TEMP TABLE moved (side TEXT, old INTEGER, new INTEGER, PRIMARY KEY (side, old)) WITHOUT ROWID")
    for side in ("user", "item"):
        db.execute(
            f"INSERT INTO moved SELECT side, idx, {side}_idx FROM before JOIN {side}s ON {side}_id = id WHERE side=?",
            (side,),
        )
    n_before = {side: count(f"before WHERE side='{side}'") for side in ("user", "item")}
    n_stay = {side: count(f"moved WHERE side='{side}'") for side in ("user", "item")}
    if n_before["user"] and not n_stay["user"]:
        example = db.execute("SELECT id FROM before WHERE side='user' LIMIT 1").fetchone()[0]
        raise InputError(
            f"expected a newer version of the same data, but it contains none of the earlier {n_before['user']:,} "
            f"users (such as {example!r}): check the id column, or import with --replace, which removes all profiles"
        )
    n_users_gone = n_before["user"] - n_stay["user"]
    alone = f"generations WHERE prompt_key NOT IN (SELECT prompt_key FROM uses WHERE NOT {_GONE})"
    if not n_users_gone:
        alone += f" AND prompt_key IN (SELECT prompt_key FROM uses WHERE {_GONE})"
    n_profiles = count("profiles")
    carried = Carried(
        n_users_gone,
        n_before["item"] - n_stay["item"],
        count("users") - n_stay["user"],
        count("items") - n_stay["item"],
        n_profiles - (n_gone := count(f"profiles WHERE {_GONE}")),
        n_gone,
        count(f"profiles WHERE {_GONE} AND status IN ('edited', 'imported')"),
        count(alone),
    )
    db.execute(f"DELETE FROM {alone}")
    for table in ("profiles", "uses"):
        db.execute(f"DELETE FROM {table} WHERE {_GONE}")
        # By way of negative numbers, so that no new place is taken by one who has yet to move.
        new = f"(SELECT -1 - new FROM moved WHERE moved.side = {table}.side AND old = idx)"
        db.execute(
            f"UPDATE {table} SET idx = {new} WHERE (side, idx) IN (SELECT side, old FROM moved WHERE old != new)"
        )
        db.execute(f"UPDATE {table} SET idx = -1 - idx WHERE idx < 0")
    db.execute("DROP TABLE moved")
    return carried
