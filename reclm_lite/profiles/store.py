"""Profiles and generations in `workspace.db`, and the jobs that made them.

A generation is content-addressed: its key hashes what made it (`source`: model, template, sampling) and the prompt, so
equal prompts are generated once and a rerun finds what is there. A profile is what a user or an item has now: the text
of a valid generation (`ok`), an empty text with a reason (`invalid`; the raw text stays in `generations`), a text that
a person wrote (`edited`), which nothing but another edit replaces, or one that was made elsewhere (`imported`), which
only an edit or another import replaces. `uses` remembers for whom each generation was made, so that it can be
forgotten.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..data.dataset import index_of
from ..errors import InputError, ProfileFormatError, WorkspaceError
from ..workspace import Workspace, now
from .answers import Generation

SIDES = ("user", "item")
USABLE = ("ok", "edited", "imported")
PROTECTED = ("edited", "imported")  # no model writes over these


@dataclass(frozen=True)
class StoredProfile:
    """The profile of one user or item. `text` is empty if status is 'invalid'; `reason` says why.

    basis: "history", "neighbors" or "text", what it was made from (empty: not by this software).
    """

    side: str
    idx: int
    status: str
    text: str
    reason: str
    source: str
    prompt_key: str
    created: str
    basis: str = ""


def prompt_key(source: str, prompt: str) -> str:
    """The address of a generation: SHA-256 over what generates and over the prompt."""
    return hashlib.sha256(f"{source}\n{prompt}".encode()).hexdigest()


def one_side(side: str) -> str:
    """`users` and `user` → `user`; `items` and `item` → `item`."""
    name = side.removesuffix("s")
    if name not in SIDES:
        raise InputError(f"expected side 'users' or 'items', found {side!r}")
    return name


# -- profiles ------------------------------------------------------------------

_PROFILE = "side, idx, status, text, reason, source, prompt_key, created, basis"


def get_profile(ws: Workspace, side: str, idx: int) -> StoredProfile | None:
    """The profile of a user or item by index, or None if there is none."""
    row = ws.db.execute(
        f"SELECT {_PROFILE} FROM profiles WHERE side=? AND idx=?", (one_side(side), int(idx))
    ).fetchone()
    if row and not all(isinstance(value, str) for value in (row[0], *row[2:])):
        raise WorkspaceError(f"{ws.db_path} holds profiles that are no text: it is damaged; take a copy back")
    return StoredProfile(*row) if row else None


def find_profile(ws: Workspace, side: str, ident: str) -> StoredProfile:
    """The profile of a user or item by id. Raises InputError if the id is unknown or has no profile."""
    side = one_side(side)
    profile = get_profile(ws, side, find_idx(ws, side, ident))
    if profile is None:
        raise InputError(f"{side} {ident!r} has no profile yet: run `reclm profile {side}s -w {ws.argument}`")
    return profile


def find_idx(ws: Workspace, side: str, ident: str) -> int:
    """The index of a user or item. Raises InputError if the workspace does not know the id."""
    side = one_side(side)
    index = index_of(ws, side, str(ident))
    if index is None:
        raise InputError(
            f"expected the id of a {side} in {ws.root}, found {ident!r}; check the id, or import the data again"
        )
    return index


def set_profile(ws: Workspace, side: str, idx: int, text: str) -> StoredProfile:
    """Give a user or item a profile written by hand. Raises ProfileFormatError if `text` is not a profile."""
    from ..prompts.answer import format_profile, parse_profile

    side = one_side(side)
    try:
        text = format_profile(parse_profile(text))
    except ProfileFormatError as error:
        found = str(error).removesuffix("; generate the profile again")
        raise ProfileFormatError(f"{found}; give three identities and three interests, separated by commas") from error
    if ws.db.execute(f"SELECT 1 FROM {side}s WHERE {side}_idx=?", (int(idx),)).fetchone() is None:
        raise InputError(f"expected the index of a {side} in {ws.root}, found {idx}")
    profile = StoredProfile(side, int(idx), "edited", text, "", "edited by hand", "", now())
    with ws.writing(), ws.db:
        ws.db.execute(
            f"INSERT OR REPLACE INTO profiles ({_PROFILE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (side, profile.idx, profile.status, text, "", profile.source, "", profile.created, ""),
        )
    return profile


def edit_profile(ws: Workspace, side: str, ident: str, text: str) -> StoredProfile:
    """`set_profile` by id."""
    return set_profile(ws, side, find_idx(ws, side, ident), text)


@dataclass(frozen=True)
class Origin:
    """What profiles are made from. basis: see `StoredProfile`. history_key: of each index, see `plan.history_key`.

    data_key: the fingerprint of the interactions.
    """

    basis: str = ""
    history_key: Callable[[int], str] = lambda idx: ""
    data_key: str = ""


def put_profiles(
    ws: Workspace,
    side: str,
    idxs: Iterable[int],
    generation: Generation,
    text: str,
    source: str,
    *,
    keep_key: str = "",
    origin: Origin = Origin(),
) -> None:
    """Give every index the profile that `generation` made, inside the caller's transaction.

    Edited and imported profiles stay, and so do rows that say the same already, rows made under `keep_key`, and, where
    the generation is no profile, those that another model or prompt made of the same interactions.
    """
    status, made, idxs = "ok" if text else "invalid", now(), [int(idx) for idx in idxs]
    key = generation.prompt_key
    ws.db.executemany(
        f"INSERT INTO profiles ({_PROFILE}, history_key, data_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (side, idx) DO UPDATE SET status=excluded.status, text=excluded.text, reason=excluded.reason, "
        "source=excluded.source, prompt_key=excluded.prompt_key, created=excluded.created, basis=excluded.basis, "
        "history_key=excluded.history_key, data_key=excluded.data_key "
        "WHERE profiles.status NOT IN ('edited', 'imported') AND profiles.prompt_key != ? "
        "AND NOT (excluded.status = 'invalid' AND profiles.status = 'ok' AND profiles.data_key = "
        "excluded.data_key) AND "
        "(profiles.prompt_key, profiles.status, profiles.text, profiles.history_key, profiles.data_key) IS NOT "
        "(excluded.prompt_key, excluded.status, excluded.text, excluded.history_key, excluded.data_key)",
        (
            (
                side,
                idx,
                status,
                text,
                generation.reason,
                source,
                key,
                made,
                origin.basis,
                origin.history_key(idx),
                origin.data_key,
                keep_key or "-",
            )
            for idx in idxs
        ),
    )
    put_uses(ws, side, idxs, key)


def put_uses(ws: Workspace, side: str, idxs: Iterable[int], key: str) -> None:
    """Remember for whom a generation was made, inside the caller's transaction."""
    rows = ((key, side, int(idx)) for idx in idxs)
    ws.db.executemany("INSERT OR IGNORE INTO uses (prompt_key, side, idx) VALUES (?, ?, ?)", rows)


def protected_idxs(ws: Workspace, side: str) -> set[int]:
    """The indices whose profile a person wrote, or that was imported."""
    rows = ws.db.execute("SELECT idx FROM profiles WHERE side=? AND status IN (?, ?)", (one_side(side), *PROTECTED))
    return {row[0] for row in rows}


def profiles_of_other_data(ws: Workspace, side: str, data_key: str) -> list[tuple[int, str, str, str]]:
    """(idx, status, history_key, source) of the profiles that were generated before the present interactions came."""
    rows = ws.db.execute(
        "SELECT idx, status, history_key, source FROM profiles WHERE side=? AND status NOT IN (?, ?) AND data_key "
        "NOT IN (?, '') ORDER BY idx",
        (one_side(side), *PROTECTED, data_key),
    )
    return rows.fetchall()


def drop_profiles(ws: Workspace, side: str, idxs: Iterable[int]) -> None:
    """Remove generated profiles; their generations stay."""
    with ws.db:
        ws.db.executemany(
            "DELETE FROM profiles WHERE side=? AND idx=? AND status NOT IN ('edited', 'imported')",
            ((one_side(side), int(idx)) for idx in idxs),
        )


def usable_profiles(ws: Workspace, side: str) -> list[tuple[int, str]]:
    """(idx, text) of every profile with a text to use, by ascending index."""
    rows = ws.db.execute(
        "SELECT idx, text FROM profiles WHERE side=? AND status IN (?, ?, ?) ORDER BY idx", (one_side(side), *USABLE)
    )
    found = rows.fetchall()
    if not all(isinstance(text, str) for _, text in found):
        raise WorkspaceError(f"{ws.db_path} holds profiles that are no text: it is damaged; take a copy back")
    return found


def profile_counts(ws: Workspace, side: str) -> dict[str, int]:
    """How many profiles of a side have each status."""
    return dict(
        ws.db.execute(
            "SELECT status, COUNT(*) FROM profiles WHERE side=? GROUP BY status ORDER BY status", (one_side(side),)
        )
    )


def forget_other_splits(ws: Workspace, side: str, split_fingerprint: str, data_key: str = "") -> int:
    """Drop the profiles that were made from another split of the same interactions: they may tell what is held out now.

    Those from before the last import stay for `plan` to judge. Edited and imported profiles and all generations stay,
    so that nothing has to be generated twice. Returns how many were dropped.
    """
    key = _split_key(side)
    if ws.get_meta(key) == split_fingerprint:
        return 0
    with ws.db:
        n = ws.db.execute(
            "DELETE FROM profiles WHERE side=? AND status NOT IN ('edited', 'imported') AND data_key IN (?, '')",
            (side, data_key),
        ).rowcount
        ws.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, split_fingerprint))
    return n


def profiles_split(ws: Workspace, side: str) -> str | None:
    """The fingerprint of the split that the side's profiles were made from, or None if none were made."""
    return ws.get_meta(_split_key(side))


def _split_key(side: str) -> str:
    return f"profiles_split:{one_side(side)}"


# -- generations ---------------------------------------------------------------

_GENERATION = "prompt_key, raw, status, reason, n_prompt_tokens, n_new_tokens, n_left_out, min_gap"


def put_generation(ws: Workspace, generation: Generation, *, replace: bool = False) -> None:
    """Store a generation, inside the caller's transaction. One that is there already stays as it is, unless
    `replace`."""
    ws.db.execute(
        f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO generations ({_GENERATION}, created) VALUES (?, ?, "
        "?, ?, ?, ?, ?, ?, ?)",
        (
            generation.prompt_key,
            generation.raw,
            generation.status,
            generation.reason,
            generation.n_prompt_tokens,
            generation.n_new_tokens,
            generation.n_left_out,
            generation.min_gap,
            now(),
        ),
    )


def get_generation(ws: Workspace, key: str) -> Generation | None:
    row = ws.db.execute(f"SELECT {_GENERATION} FROM generations WHERE prompt_key=?", (key,)).fetchone()
    return Generation(*row) if row else None


def has_generation(ws: Workspace, key: str, *, after: int | None = None) -> bool:
    """Whether a generation is in the store. after: and came after that one, see `last_generation`."""
    row = ws.db.execute("SELECT rowid FROM generations WHERE prompt_key=?", (key,)).fetchone()
    return row is not None and (after is None or row[0] > after)


def last_generation(ws: Workspace) -> int:
    """The number of the generation that came last; later ones have higher numbers."""
    return ws.db.execute("SELECT coalesce(max(rowid), 0) FROM generations").fetchone()[0]


# -- jobs ----------------------------------------------------------------------


def start_job(ws: Workspace, kind: str, detail: dict) -> int:
    """Record that a job began; one of the same kind that never ended was killed, and is marked so. Returns its id."""
    with ws.db:
        ws.db.execute("UPDATE jobs SET state='killed' WHERE kind=? AND state='running'", (kind,))
        cursor = ws.db.execute(
            "INSERT INTO jobs (kind, state, started, detail) VALUES (?, 'running', ?, ?)",
            (kind, now(), json.dumps(detail)),
        )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def end_job(ws: Workspace, job_id: int, state: str, detail: dict) -> None:
    """Record how a job ended ('done', 'deadline', 'incomplete', 'interrupted' or 'failed') beside what it was started
    with."""
    (started_with,) = ws.db.execute("SELECT detail FROM jobs WHERE job_id=?", (job_id,)).fetchone()
    with ws.db:
        ws.db.execute(
            "UPDATE jobs SET state=?, finished=?, detail=? WHERE job_id=?",
            (state, now(), json.dumps({**json.loads(started_with), **detail}), job_id),
        )


def unfinished_job(ws: Workspace, kind: str) -> dict | None:
    """The detail of the last job of a kind, where it did not end as 'done'; else None."""
    row = _last_job(ws, kind)
    return _detail(row) if row and row[0] != "done" else None


def last_job(ws: Workspace, kind: str) -> dict | None:
    """The detail of the last job of a kind, however it ended, or None if there was none."""
    row = _last_job(ws, kind)
    return _detail(row) if row else None


def last_state(ws: Workspace, kind: str) -> str | None:
    """How the last job of a kind ended, or None if there was none."""
    row = _last_job(ws, kind)
    return row[0] if row else None


def _detail(row: tuple[str, str]) -> dict | None:
    """The detail of a job; None if it cannot be read."""
    try:
        detail = json.loads(row[1])
    except (ValueError, TypeError, RecursionError):
        return None
    return detail if isinstance(detail, dict) else None


def _last_job(ws: Workspace, kind: str) -> tuple[str, str] | None:
    """State and detail of the last job of a kind."""
    return ws.db.execute("SELECT state, detail FROM jobs WHERE kind=? ORDER BY job_id DESC LIMIT 1", (kind,)).fetchone()
