"""The checkpoint folder of an interrupted fit: hidden, beside the models, with the identity of its fit.

    models/.<model>[+profiles].checkpoint/   identity.json, and a file for each phase that has begun (training.py writes
    them)

The folder is deleted when the fit has been stored, or has failed for a reason of its own (a full disk is not one). A
fit with other settings or inputs does not continue from it.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ReclmError, WorkspaceError
from ..files import atomic_path, is_own_file, remove_folder
from ..own_paths import make_folder
from ..workspace import Workspace
from .names import artefact_name

# Increase when the content of a checkpoint changes, or when training changes for equal settings.
FORMAT = 1
_MAX_IDENTITY_BYTES = 1 << 20  # settings and fingerprints are some kilobytes


@contextlib.contextmanager
def checkpoint_folder(
    ws: Workspace, model: str, profiles: str, settings: Any, more: dict, *, restart: bool, notice: Callable[[str], None]
) -> Iterator[Path]:
    """The checkpoint folder of one fit, deleted when the block succeeds.

    settings, more: the identity of the fit, which must be equal for the fit to continue. restart: discard what is
    there. notice: called with a line on what happens to an earlier checkpoint.
    """
    folder = ws.root / "models" / f".{Path(artefact_name(model, profiles)).name}.checkpoint"
    identity = {"format": FORMAT, "settings": dataclasses.asdict(settings), **more}
    identity = json.loads(json.dumps(identity))
    if not folder.is_dir() or folder.is_symlink():
        remove_folder(folder)
    if folder.exists():
        if restart or _identity(folder) != identity:
            if not restart:
                notice(f"An interrupted fit of {model} had other settings or data: starting anew.")
            remove_folder(folder)
        elif any(folder.glob("*.safetensors")):
            notice(f"Going on with the interrupted fit of {model} (--restart would begin it again).")
    if not folder.exists():
        make_folder(folder)
        with atomic_path(folder / "identity.json") as temporary:
            temporary.write_text(json.dumps(identity), encoding="utf-8")
    try:
        yield folder
    except WorkspaceError:  # such as a full disk: once that is fixed, the fit can continue
        raise
    except ReclmError:  # the fit itself failed and would fail again, so discard it
        remove_folder(folder)
        raise
    remove_folder(folder)


def _identity(folder: Path) -> dict | None:
    path = folder / "identity.json"
    try:
        if not is_own_file(path) or path.stat().st_size > _MAX_IDENTITY_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
