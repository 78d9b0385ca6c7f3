"""Removes people from a workspace and keeps everything else usable.

Their rows are deleted from the database and from every artefact (user_rows.py lists where they are); users with higher
indices move down. Up-to-date artefacts stay up to date: they are rewritten in order of dependency, and the new
fingerprint replaces the old one wherever it is recorded. An artefact is deleted, and the command that makes it again is
named, if its kind is unknown, if it is damaged, or if its rows belong to another list of users than the present one. So
people whom an import has already removed can be forgotten as well: everything made from earlier data is deleted.

Atomic, even if the process is killed: new files get temporary names, one transaction changes the database and stores
the plan of renames and deletions, then `Workspace.finish_forgetting` carries it out. The next process that opens the
workspace finishes what is left. Finally the database is rewritten, so that no free page contains deleted rows.

Left out: what a fit has learned from people (weights, counts), which only another fit removes; the imported source
file, which lies outside; and the targets of symbolic links, since nothing outside the workspace is changed. The summary
names them.
"""

import contextlib
import json
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

from .artefacts import COMMITTED, INTERACTIONS, artefact_fingerprint, ids_digest, numbered_by, write_arrays
from .data.dataset import LEFT_BEHIND, count_side, load_interactions, user_index
from .data.importers.leftovers import remove_leftover_staging
from .errors import InputError, WorkspaceError
from .files import atomic_path
from .forget_files import ARRAY_FOLDERS, other_files
from .forget_plan import FORGETTING
from .forget_summary import Deleted, ForgetSummary, add_remains, fit_command
from .profiles.profile_vectors import profiles_digest
from .profiles.store import find_idx, usable_profiles
from .user_rows import NAMES_USERS, Remaining, UnknownLayout, has_rows_of_users, remove_users
from .workspace import REPLACEMENTS, Workspace
from .workspace_toml import write_toml

NEIGHBORS = "matrices/neighbors"
# What a killed import leaves behind (data/dataset.py).
_LEFT_OVER = ("matrices/interactions-next",)


def forget_user(ws: Workspace, user_id: str, *, dry_run: bool = False) -> ForgetSummary:
    """`forget_users` for one user."""
    return forget_users(ws, [user_id], dry_run=dry_run)


def forget_users(ws: Workspace, user_ids: Iterable[str], *, gone: bool = False, dry_run: bool = False) -> ForgetSummary:
    """Remove people, in one pass, from interactions, profiles, vectors, models and everything else in a workspace.

    gone: also remove everybody who was in earlier data but is not in the present data. dry_run: only report what would
    be removed. Raises InputError, and removes nothing, if no user would be left, or for an id that is not in the data
    (unless files of earlier data exist).
    """
    ids = list(dict.fromkeys(str(user_id) for user_id in user_ids))
    if not ids and not gone:
        raise InputError("expected the id of a user, found none: name whom to forget")
    with ws.writing(own_folders=False):  # it follows no links, and reports those it left
        return _Forgetting(ws, ids, dry_run).run()


def of_earlier_data(ws: Workspace) -> list[Deleted]:
    """Files that may reveal people who are no longer in the data: what `forget_users(ws, [], gone=True)` would delete.

    Empty unless an import has dropped somebody since the last such call.
    """
    if ws.get_meta(LEFT_BEHIND) is None:
        return []
    return _Forgetting(ws, [], True).run().deleted


class _Forgetting:
    """One pass, under the writer's lock."""

    def __init__(self, ws: Workspace, ids: list[str], dry_run: bool):
        not_in_data = [user_id for user_id in ids if user_index(ws, user_id) is None]
        if not_in_data and not _has_earlier_data(ws):
            try:
                find_idx(ws, "user", not_in_data[0])
            except InputError as error:
                raise InputError(
                    f"{error}. If an earlier import had the person: `reclm forget --gone -w {ws.argument}` removes "
                    "all that was made of it"
                ) from error
        gone = sorted({find_idx(ws, "user", user_id) for user_id in ids if user_id not in not_in_data})
        n_users = count_side(ws, "user")
        if gone and len(gone) == n_users:
            found = "this is its only user" if n_users == 1 else "these are all its users"
            raise InputError(
                f"expected somebody to be left in {ws.root}, found that {found}: delete the folder instead (rm -r "
                f"{ws.argument})"
            )
        self.ws, self.gone = ws, gone
        self.remaining = Remaining.without(gone, n_users)
        here = [user_id for user_id in ids if user_id not in not_in_data]
        self.summary = ForgetSummary(here, dry_run, n_users - len(gone), not_in_data=not_in_data)
        leaving = set(gone)
        ids_left = (
            row
            for row in ws.db.execute("SELECT user_idx, user_id FROM users ORDER BY user_idx")
            if row[0] not in leaving
        )
        digest = ids_digest(
            ws.get_meta(REPLACEMENTS) or "0", (f"{idx} {ident}" for idx, (_, ident) in enumerate(ids_left))
        )
        self.ids = ws.ids() | {"users": digest}
        self.renamed: dict[Path, Path] = {}  # temporary file -> the file it becomes
        self.renewed: dict[str, str] = {}  # fingerprint -> its successor
        self.fit_commands: dict[str, str] = {}  # model artefact -> the command that fits it again

    def run(self) -> ForgetSummary:
        ws, summary = self.ws, self.summary
        try:
            self._artefacts()
            self._manifest()
            deleted, remains = other_files(ws, self.renamed)
            summary.deleted += deleted
            summary.remains += remains
            self._count_rows()
            add_remains(ws, summary, self.fit_commands)
            if summary.dry_run:
                return summary
            self._change_database()
        except BaseException:
            if ws.get_meta(FORGETTING) is None:  # otherwise the committed plan needs them
                for temporary in self.renamed:
                    temporary.unlink(missing_ok=True)
            raise
        remove_leftover_staging()
        if not ws.finish_forgetting():
            raise WorkspaceError(
                f"they are gone from every file that is used, but {ws.db_path} could not be wiped of deleted rows: "
                "another process "
                "reads it, or the disk is full; end that, then run any command on the workspace, such as "
                f"`reclm info -w {ws.argument}`, which wipes it"
            )
        return summary

    # -- artefacts -----------------------------------------------------------------

    def _artefacts(self) -> None:
        """Rewrite every artefact, inputs before what was made from them."""
        ws = self.ws
        try:
            load_interactions(ws)  # finishes a killed import
        except WorkspaceError:
            pass  # missing or damaged: handled like any other file below
        found = {}
        for folder in ARRAY_FOLDERS:
            if (ws.root / folder).is_symlink():
                continue
            for path in sorted((ws.root / folder).glob("*.safetensors")):
                name = f"{folder}/{path.stem}"
                if path.is_symlink():
                    continue
                if name in _LEFT_OVER:
                    self._delete(path, "left over from an import that was interrupted")
                    continue
                try:
                    found[name] = ws.provenance(name, made_by=ws.command_for(name))
                except WorkspaceError:
                    self._delete(path, "damaged", ws.command_for(name))
        current = {name: provenance["fingerprint"] for name, provenance in found.items()}
        depends = {
            name: [key for key, value in provenance["inputs"].items() if current.get(key) == value]
            for name, provenance in found.items()
        }
        of_these_users: set[str] = set()
        order = _inputs_first(depends)
        for name in sorted(found.keys() - set(order)):
            self._delete(ws.path(name), "made of what is made of it", ws.command_for(name))
        for name in order:
            if self._is_of_these_users(name, found, depends[name], of_these_users):
                of_these_users.add(name)
            elif has_rows_of_users(name):
                reason = "made of earlier data, which may have numbered its users in another way"
                self._delete(ws.path(name), reason, ws.command_for(name))
                continue
            try:
                self._artefact(name, found[name])
            except (UnknownLayout, WorkspaceError) as error:
                reason = str(error) if isinstance(error, UnknownLayout) else "damaged"
                self._delete(ws.path(name), reason, ws.command_for(name))

    def _is_of_these_users(self, name: str, found: dict[str, dict], fresh: list[str], of_these_users: set[str]) -> bool:
        """Whether an artefact's rows belong to the users in the database.

        An artefact of an older version does not record its list of ids; then its inputs or its date decide.
        """
        if name == INTERACTIONS:
            return found[name]["fingerprint"] == self.ws.get_meta(COMMITTED)
        if "ids" in found[name]:
            return not self.ws.has_rows_of_others(name)
        if of_these_users.intersection(fresh):
            return True
        return INTERACTIONS in of_these_users and found[name].get("created", "") >= found[INTERACTIONS]["created"]

    def _artefact(self, name: str, provenance: dict) -> None:
        ws, params = self.ws, provenance["params"]
        inputs = {key: self.renewed.get(value, value) for key, value in provenance["inputs"].items()}
        if not self.gone or (not has_rows_of_users(name) and inputs == provenance["inputs"]):
            return
        before = ws.load(
            name, made_by=ws.command_for(name), any_ids=True
        ).arrays  # whose rows these are is already known
        arrays, params = remove_users(name, before, params, self.remaining)
        if name == "vectors/user_profiles":
            params = self._profile_params(params)
        if name == INTERACTIONS:
            self.summary.n_interactions = len(before["users"]) - len(arrays["users"])
        if name == NEIGHBORS:
            named = np.isin(before["indices"], self.gone).any(axis=1)
            self.summary.n_neighbor_lists = int((named & self.remaining.mask).sum())
        if name.startswith("models/") and not name.startswith("models/random"):
            self.fit_commands[name] = fit_command(ws, name, params)
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        ids = {side: self.ids[side] for side in numbered_by(name)} | provenance.get("ids", {})
        if "users" in ids:
            ids["users"] = self.ids["users"]
        fingerprint = artefact_fingerprint(arrays, inputs, params, ids)
        self.renewed[provenance["fingerprint"]] = fingerprint
        self.summary.rewritten.append(name)
        if not self.summary.dry_run:
            after = {**provenance, "fingerprint": fingerprint, "inputs": inputs, "ids": ids, "params": params}
            with atomic_path(self._temporary(ws.path(name))) as path:
                write_arrays(path, arrays, {"reclm": json.dumps(after)})

    def _profile_params(self, params: dict) -> dict:
        """The params with the digest of the remaining profiles; unchanged, hence still stale, if they were stale."""
        rows = usable_profiles(self.ws, "user")
        if params.get("profiles_digest") != profiles_digest(rows):
            return params
        left = [(int(self.remaining.new_index[idx]), text) for idx, text in rows if self.remaining.mask[idx]]
        return {**params, "profiles_digest": profiles_digest(left), "n_profiles": len(left)}

    # -- other files ---------------------------------------------------------------

    def _temporary(self, path: Path) -> Path:
        temporary = path.with_name(f".{path.name}.forget.tmp")
        self.renamed[temporary] = path
        return temporary

    def _delete(self, path: Path, reason: str, command: str = "") -> None:
        self.summary.deleted.append(Deleted(path.relative_to(self.ws.root).as_posix(), reason, command))

    def _manifest(self) -> None:
        """Update workspace.toml: the users that the demo shows, and the fingerprint of the interactions."""
        config = self.ws.config
        data = config.get("data", {})
        named = data["manifest"].pop(NAMES_USERS, None) if isinstance(data.get("manifest"), dict) else None
        renewed = self.renewed.get(data.get("interactions"))
        if renewed is not None:
            data["interactions"] = renewed
        if named is None and renewed is None:
            return
        if named is not None:
            self.summary.rewritten.append("workspace.toml")
        if not self.summary.dry_run:
            write_toml(self._temporary(self.ws.toml_path), config)

    # -- database --------------------------------------------------------------------

    def _count_rows(self) -> None:
        def count(rows: str) -> int:
            return self.ws.db.execute(f"SELECT COUNT(*) FROM {rows}", {"gone": json.dumps(self.gone)}).fetchone()[0]

        self.summary.n_profiles = count(f"profiles WHERE {_OF_GONE}")
        self.summary.n_unknown_generations = count("generations WHERE prompt_key NOT IN (SELECT prompt_key FROM uses)")
        self.summary.n_generations = count(
            f"generations WHERE prompt_key IN (SELECT prompt_key FROM uses WHERE {_OF_GONE}) "
            f"AND prompt_key NOT IN (SELECT prompt_key FROM uses WHERE NOT ({_OF_GONE}))"
        )

    def _change_database(self) -> None:
        """Change the database and store the plan for the files, in one transaction."""
        db, gone = self.ws.db, {"gone": json.dumps(self.gone)}
        plan = {
            "rename": [[path.relative_to(self.ws.root).as_posix() for path in pair] for pair in self.renamed.items()],
            "empty": ["reports"],  # the whole folder: a report's name may be a user's
            "delete": [
                deleted.path
                for deleted in self.summary.deleted
                if deleted.path != "reports" and not Path(deleted.path).is_absolute()
            ],
        }
        above = np.flatnonzero(self.remaining.mask & (self.remaining.new_index != np.arange(self.remaining.n_users)))
        moved = list(zip(self.remaining.new_index[above].tolist(), above.tolist(), strict=True))
        db.execute("PRAGMA secure_delete=ON")
        db.execute(
            "PRAGMA synchronous=FULL"
        )  # after a power failure, the renames must not exist without the transaction
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM users WHERE user_idx IN (SELECT value FROM json_each(:gone))", gone)
            db.execute(f"DELETE FROM profiles WHERE {_OF_GONE}", gone)
            db.execute(f"DELETE FROM uses WHERE {_OF_GONE}", gone)
            db.execute("DELETE FROM generations WHERE prompt_key NOT IN (SELECT prompt_key FROM uses)")
            # In ascending order, so that the new index is always free.
            db.executemany("UPDATE users SET user_idx=? WHERE user_idx=?", moved)
            db.executemany("UPDATE profiles SET idx=? WHERE side='user' AND idx=?", moved)
            db.executemany("UPDATE uses SET idx=? WHERE side='user' AND idx=?", moved)
            renewed = [(new, old) for old, new in self.renewed.items()]
            db.executemany("UPDATE meta SET value=? WHERE value=?", renewed)
            db.executemany("UPDATE profiles SET data_key=? WHERE data_key=?", renewed)
            db.execute("DELETE FROM meta WHERE key=?", (LEFT_BEHIND,))
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (FORGETTING, json.dumps(plan)))
            db.commit()
        except BaseException:
            db.rollback()
            raise


def _inputs_first(depends: dict[str, list[str]]) -> list[str]:
    """The artefacts in an order in which their inputs precede them; without those that a circle of inputs precedes,
    which no artefact of this software has: a fingerprint is made of those of the inputs."""
    sorter = TopologicalSorter(depends)
    with contextlib.suppress(CycleError):  # it goes on with what no circle blocks
        sorter.prepare()
    order: list[str] = []
    while ready := sorter.get_ready():
        order += ready
        sorter.done(*ready)
    return order


def _has_earlier_data(ws: Workspace) -> bool:
    """Whether files of people who left the data may exist: an import records it, or an artefact has rows of others."""
    if ws.get_meta(LEFT_BEHIND) is not None:
        return True
    told: dict = {}
    for folder in ARRAY_FOLDERS:
        for path in (ws.root / folder).glob("*.safetensors"):
            try:
                name = f"{folder}/{path.stem}"
                if ws.has_rows_of_others(name):
                    return True
                # An older version did not note who left, nor whose rows an artefact has.
                if "ids" not in ws.provenance(name, made_by="") and ws.stale_inputs(name, told):
                    return True
            except WorkspaceError:
                return True  # damaged: whose rows it has is unknown
    return False


_OF_GONE = "side='user' AND idx IN (SELECT value FROM json_each(:gone))"
