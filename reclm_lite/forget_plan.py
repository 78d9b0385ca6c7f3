"""The plan of a `reclm forget`: renames and deletions of files, stored in the transaction that it belongs to.

forget.py writes the plan into the table `meta`; `Workspace.finish_forgetting` carries it out, even after a kill. A
workspace may come from somebody else, so paths outside the workspace are ignored.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import is_own_file, sync

log = logging.getLogger(__name__)

# The row of `meta` that holds the plan.
FORGETTING = "forget"
NOTHING_LEFT: Mapping[str, list] = {"rename": [], "empty": [], "delete": []}


def read_plan(text: str, db_path: Path) -> dict[str, list]:
    """A stored plan; an empty one, with a log message, if the text is not a valid plan."""
    try:
        plan = json.loads(text)
        pairs = all(len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in plan["rename"])
        if pairs and all(isinstance(name, str) for step in ("empty", "delete") for name in plan[step]):
            return plan
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    log.warning("%s holds a plan of renames that is none and is left out: make its models again", db_path)
    return dict(NOTHING_LEFT)


def carry_out(plan: Mapping[str, list], root: Path, folders: Iterable[str]) -> None:
    """Carry out the renames and deletions of a plan; idempotent. folders: of the workspace, to sync."""
    for source, target in plan["rename"]:
        pair = path_inside(root, source), path_inside(root, target)
        if all(pair) and is_own_file(pair[0]):
            os.replace(*pair)
    emptied = [
        folder
        for name in plan["empty"]
        if (folder := path_inside(root, name)) and folder.is_dir() and not folder.is_symlink()
    ]
    for path in [
        *(path for folder in emptied for path in folder.iterdir()),
        *(path_inside(root, name) for name in plan["delete"]),
    ]:
        if path is None:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in {root, *(root / name for name in folders)}:
        if folder.is_dir() and not folder.is_symlink():
            sync(folder)


def path_inside(root: Path, name: str) -> Path | None:
    """The path `name` of the workspace `root`, which may not exist; None (logged) if it leads outside (`..`, a link).

    A link as the last part counts as inside: the link itself is renamed or deleted, not its target.
    """
    try:
        parts = Path(name).parts if b"\0" not in os.fsencode(name) else ()
    except UnicodeEncodeError:
        parts = ()
    if (
        not parts
        or Path(name).is_absolute()
        or ".." in parts
        or any(root.joinpath(*parts[:n]).is_symlink() for n in range(1, len(parts)))
    ):
        log.warning("%r is not a path inside %s and is left as it is", name, root)
        return None
    return root.joinpath(*parts)
