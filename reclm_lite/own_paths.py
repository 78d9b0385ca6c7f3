"""Paths that must not lead elsewhere: below a workspace, and below a folder that a command fills and empties.

A workspace, or the folder of an earlier run, may come from somebody else. A symbolic link in it would make a command
read, overwrite or delete other files of this machine, and a pipe would make it wait for ever. One rule for all: between
the root and the path nothing is a link, unless the user sets RECLM_FOLLOW_LINKS=1.
"""

import os
import stat
from pathlib import Path

from .errors import WorkspaceError

WORKSPACE_FILE = "workspace.toml"  # a folder that holds it is the root of a workspace
FOLLOW_LINKS = "RECLM_FOLLOW_LINKS"


def follows_links() -> bool:
    """Whether the user declared that links in workspaces and output folders are the user's own."""
    return os.environ.get(FOLLOW_LINKS) == "1"


def require_own_path(path: Path, *, below: Path | None = None) -> None:
    """Raise WorkspaceError if a part of `path` is a link; it need not exist.

    The parts after the outermost folder that is a workspace are checked, or after `below` if that comes earlier. A path
    in neither is the user's own choice and passes.
    """
    if follows_links():
        return
    steps = _steps(path)
    roots = [n for n, step in enumerate(steps) if os.path.lexists(step / WORKSPACE_FILE)][:1]
    if below is not None and (base := _steps(below)[-1]) in steps:
        roots.append(steps.index(base))
    if roots:
        for step in steps[min(roots) + 1 :]:
            if os.path.islink(step):
                raise _is_link(step, steps[min(roots)])


def require_own_tree(path: Path) -> None:
    """Raise WorkspaceError if `path`, or anything in that folder, is a link, or is neither a file nor a folder.

    What is above `path` is held to `require_own_path`. A path that does not exist passes.
    """
    require_own_path(path, below=path.parent)
    left = [path]
    while left:
        one = left.pop()
        try:
            mode = one.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(mode):
            left += one.iterdir()
        elif stat.S_ISLNK(mode):
            if not follows_links():
                raise _is_link(one, path)
        elif not stat.S_ISREG(mode):
            raise WorkspaceError(f"{one} is a pipe, a socket or a device, expected a file or a folder: remove it")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises WorkspaceError as `require_own_path`."""
    require_own_path(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _steps(path: Path) -> list[Path]:
    """The folders that lead to `path`, outermost first, and `path`; absolute, without `..`."""
    found = Path(path.anchor) if path.is_absolute() else Path.cwd()
    for part in path.parts[bool(path.anchor) :]:
        # As the system sees it: `..` after a link is the parent of what the link leads to.
        found = Path(os.path.realpath(found)).parent if part == ".." else found / part
    return [*reversed(found.parents), found]


def _is_link(link: Path, root: Path) -> WorkspaceError:
    return WorkspaceError(
        f"{link} is a link to {os.readlink(link)}, and what is read or made there would lie outside of {root}: "
        f"put a file or folder in its place, or set {FOLLOW_LINKS}=1 if the link is yours"
    )
