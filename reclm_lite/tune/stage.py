"""How a stage on dialogues opens its run: what decides the result, what is read, and the adapter it may begin with."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import file_sha256
from .adapters import WEIGHTS, check_base
from .base import Base
from .parallel import Group
from .run import Run


def open_run(
    stage: str,
    base: Base,
    dialogues: Path,
    out: Path,
    settings: Any,
    *,
    init_from: Path | None,
    group: Group,
    fresh: bool,
) -> Run:
    """The run of a stage in `out`: another value of anything that decides its result is another run, see `Run.open`.

    settings: the stage's dataclass. init_from: an adapter to begin with; raises InputError where it is none of this
    base's.
    """
    if init_from is not None:
        check_base(init_from, base, writes=True)
    about = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "dtype": base.dtype_name,
        "dialogues_sha256": file_sha256(dialogues),
        "n_processes": group.world,
        **asdict(settings),
        "init_sha256": file_sha256(init_from / WEIGHTS) if init_from else "",
    }
    inputs = [path for path in (base.path, dialogues, init_from) if path is not None]
    return Run.open(out, stage, about, group=group, fresh=fresh, inputs=inputs)
