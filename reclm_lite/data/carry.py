"""Carries profiles over an import: `update` brings a newer state of the same data, otherwise ids mean other people.

Users and items get new indices with every import; profiles, and the record of whom a generation was made for, follow
their ids. For users and items that are gone, profiles are deleted, and so are generations made for nobody else. If a
user is gone, generations without a record of whom they were made for are deleted too, as in `reclm forget`. Left out:
whether a profile still fits its history, which the next run of `reclm profile` decides.
"""

import json
import sqlite3
from dataclasses import asdict, dataclass

from ..errors import InputError
from ..forget_plan import FORGETTING

_GONE = "(side, idx) NOT IN (SELECT side, old FROM moved)"


@dataclass(frozen=True)
class Carried:
    """Counts of an update. n_profiles_kept, n_profiles_gone: of users and items.

    n_by_hand_gone: the deleted profiles that were imported or written by hand. n_generations_gone: deleted generations.
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
    """Record the index of every id before users and items are replaced, in the caller's transaction."""
    db.execute(
        "CREATE TEMP TABLE before AS SELECT 'user' AS side, user_idx AS idx, user_id AS id FROM users "
        "UNION ALL SELECT 'item', item_idx, item_id FROM items"
    )


def count_gone(db: sqlite3.Connection) -> int:
    """The number of earlier users whose ids are not among the present ones. Same transaction as `remember_ids`."""
    query = "SELECT COUNT(*) FROM before WHERE side='user' AND id NOT IN (SELECT user_id FROM users)"
    return db.execute(query).fetchone()[0]


def carry_over(db: sqlite3.Connection, *, update: bool) -> Carried | None:
    """Renumber profiles and uses after users and items were replaced, in the same transaction.

    Without `update` all of them are deleted. `Workspace.finish_forgetting` then wipes deleted rows from the file.
    Raises InputError if an update contains no user of before.
    """
    carried = _carry(db) if update else None
    if db.execute("SELECT 1 FROM before LIMIT 1").fetchone() and (carried is None or _lost_something(carried)):
        # A plan without renames and deletions: only the database has to be wiped.
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
        # Via negative numbers, so that no new index collides with one that has not moved yet.
        new = f"(SELECT -1 - new FROM moved WHERE moved.side = {table}.side AND old = idx)"
        db.execute(
            f"UPDATE {table} SET idx = {new} WHERE (side, idx) IN (SELECT side, old FROM moved WHERE old != new)"
        )
        db.execute(f"UPDATE {table} SET idx = -1 - idx WHERE idx < 0")
    db.execute("DROP TABLE moved")
    return carried
