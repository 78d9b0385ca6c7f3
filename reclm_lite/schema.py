"""The tables of `workspace.db`, and what brings those of an older version up to date.

Left out: opening the database, and what the rows mean: `workspace` and the stages know.
"""

import sqlite3
from pathlib import Path

from .errors import WorkspaceError

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE users (user_idx INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE);
CREATE TABLE items (
    item_idx INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL, category TEXT NOT NULL, subcategory TEXT NOT NULL, description TEXT NOT NULL);
-- One row per user or item that has been profiled; `status` is 'ok', 'invalid', 'edited' or 'imported'.
-- basis: what it was made from ('history', 'neighbors', 'text'); history_key: a hash of the own history (or text) that
-- it was made from; data_key: the fingerprint of the interactions at that time.
CREATE TABLE profiles (
    side TEXT NOT NULL CHECK (side IN ('user', 'item')), idx INTEGER NOT NULL,
    status TEXT NOT NULL, text TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    source TEXT NOT NULL, prompt_key TEXT NOT NULL DEFAULT '', created TEXT NOT NULL,
    basis TEXT NOT NULL DEFAULT '', history_key TEXT NOT NULL DEFAULT '', data_key TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (side, idx));
-- Content-addressed: the key hashes model, template, sampling settings and prompt.
-- n_left_out: the oldest items that did not fit into the prompt.
-- min_gap: the least distance between the two likeliest tokens of any step (NULL: not measured).
CREATE TABLE generations (
    prompt_key TEXT PRIMARY KEY, raw TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    n_prompt_tokens INTEGER NOT NULL, n_new_tokens INTEGER NOT NULL, created TEXT NOT NULL,
    n_left_out INTEGER NOT NULL DEFAULT 0, min_gap REAL);
-- Whom a generation was made for, now or before: what `reclm forget` has to look through.
CREATE TABLE uses (
    prompt_key TEXT NOT NULL, side TEXT NOT NULL, idx INTEGER NOT NULL,
    PRIMARY KEY (side, idx, prompt_key)) WITHOUT ROWID;
CREATE INDEX uses_by_key ON uses (prompt_key);
CREATE TABLE jobs (
    job_id INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL,
    started TEXT NOT NULL, finished TEXT, detail TEXT NOT NULL DEFAULT '{}');
CREATE TABLE runs (
    run_id INTEGER PRIMARY KEY, model TEXT NOT NULL, profiles TEXT NOT NULL,
    created TEXT NOT NULL, params TEXT NOT NULL, metrics TEXT NOT NULL);
"""

# What brings a database of an older version to the next one.
TO_VERSION = {
    2: """
ALTER TABLE profiles ADD COLUMN basis TEXT NOT NULL DEFAULT '';
ALTER TABLE profiles ADD COLUMN history_key TEXT NOT NULL DEFAULT '';
ALTER TABLE profiles ADD COLUMN data_key TEXT NOT NULL DEFAULT '';
ALTER TABLE generations ADD COLUMN n_left_out INTEGER NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN min_gap REAL;
CREATE TABLE uses (
    prompt_key TEXT NOT NULL, side TEXT NOT NULL, idx INTEGER NOT NULL,
    PRIMARY KEY (side, idx, prompt_key)) WITHOUT ROWID;
CREATE INDEX uses_by_key ON uses (prompt_key);
INSERT INTO uses SELECT prompt_key, side, idx FROM profiles WHERE prompt_key != '';
"""
}


def upgrade(db: sqlite3.Connection, root: Path, found: int) -> None:
    """Bring a database to SCHEMA_VERSION, all or nothing; a second process that comes in between finds it done."""
    try:
        db.execute("BEGIN IMMEDIATE")
        (now_found,) = db.execute("SELECT value FROM meta WHERE key='schema_version'").fetchone()
        for version in range(max(found, int(now_found)) + 1, SCHEMA_VERSION + 1):
            for statement in TO_VERSION[version].split(";\n"):
                if statement.strip():
                    db.execute(statement)
        db.execute("UPDATE meta SET value=? WHERE key='schema_version'", (str(SCHEMA_VERSION),))
        db.commit()
    except sqlite3.OperationalError as error:
        db.rollback()
        raise WorkspaceError(
            f"{root} is of schema version {found} and could not be brought to {SCHEMA_VERSION} ({error}): "
            "nothing was changed; see that it may be written and that no other process holds it"
        ) from error
