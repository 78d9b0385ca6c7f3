"""A run's folder: its settings, metrics, checkpoints, and how the same command goes on where a kill left it.

    run.json          stage, settings, versions, state ("running", "done" or "stopped: why")
    metrics.jsonl     an object for each logged step, appended; a resumed run cuts off what follows its checkpoint
    tensorboard/      the same, where the package tensorboard is installed
    checkpoints/      step-000100/: tensors.safetensors, state.json; the newest two, and the best where one is marked

A checkpoint gets its name when it is complete. Randomness is not stored: every step draws from the seed and its own
number (`seed_step`), so what follows a checkpoint is the same whether the run was interrupted or not.
"""

import json
import math
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, shell_word
from ..files import MAX_DOCUMENT_BYTES, atomic_folder, atomic_path, lock_file, open_to_append, read_document
from ..own_paths import make_folder, require_own_path, require_own_tree
from .parallel import Group

RUN, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
RUNNING, DONE = "running", "done"
_OWN = (
    RUN,
    METRICS,
    "samples.jsonl",
    "report.json",
    "value_head.safetensors",
    CHECKPOINTS,
    "tensorboard",
    "adapter",
    "model",
)
_LOCK = ".lock"
_KEPT = 2
_MAX_LOG_BYTES = 256 << 20  # of metrics or samples: a line for each step that is told of
_SHOWN = 4  # settings that differ, in a message


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make what torch draws from here on (dropout, sampling) a function of these numbers."""
    torch.manual_seed((seed * 1_000_003 + step) * 1_009 + rank)


@dataclass(frozen=True)
class Checkpoint:
    """step: steps done. tensors: by name, on the CPU. state: JSON-able, whatever the stage put there."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    folder: Path


class Run:
    """Close it, or use `with`. Of several processes the first one writes; the others only read."""

    def __init__(self, folder: Path, group: Group, about: dict[str, Any]):
        self.folder, self.group, self.about = Path(folder), group, about
        self._writer: Any = None
        self._metrics: Any = None
        self._lock: Any = None

    @classmethod
    def open(
        cls,
        folder: Path,
        stage: str,
        settings: Mapping[str, Any],
        *,
        group: Group | None = None,
        fresh: bool = False,
        inputs: Iterable[Path] = (),
    ) -> "Run":
        """A new run, or the one that lies in `folder`, if it is of the same stage and settings.

        settings: JSON-able, everything that decides the result. fresh: throw away the run of this stage that lies
        there, and nothing else; inputs: files and folders that it reads, which must not lie in it then. Raises
        InputError where another run, or anything else, lies there, or where another process is at work; WorkspaceError
        where what a run reads, writes or removes there is a link.
        """
        folder, group = Path(folder), group or Group()
        _require_own(folder)
        about = {
            "stage": stage,
            "settings": json.loads(json.dumps(dict(settings))),
            "state": RUNNING,
            "versions": _versions(),
        }
        if fresh:
            _refuse_to_remove(folder, stage, inputs)
        found = None if fresh else _read(folder / RUN)
        if found is None and not fresh and _holds_files(folder):
            raise InputError(
                f"expected an empty folder, or one of `reclm tune`, at {folder}, found other files; give another --out"
            )
        if found is not None:
            _compare(found, about, folder)
            about = {
                **found,
                **about,
                "state": found["state"] if found["state"] == DONE else RUNNING,
            }  # what `finish` recorded stays
        group.barrier()  # all have read before the first one writes
        run = cls(folder, group, about)
        if group.rank == 0:
            make_folder(folder)
            run._lock = _lock(folder)
            if fresh:
                _remove(folder)
            if not run.is_done:
                run._write_about()
        group.barrier()
        return run

    @property
    def is_done(self) -> bool:
        return self.about["state"] == DONE

    @property
    def state(self) -> str:
        return self.about["state"]

    def finish(self, state: str = DONE, **facts: Any) -> None:
        """Record how the run ended and what it found (JSON-able)."""
        self.about |= {"state": state, **facts}
        if self.group.rank == 0:
            self._write_about()

    def log(self, step: int, **metrics: float) -> None:
        """Append a line of metrics. Names with a slash are groups of TensorBoard; a value that is not finite becomes
        null."""
        if self.group.rank:
            return
        if self._metrics is None:
            self._metrics = open_to_append(self.folder / METRICS)
            self._writer = _tensorboard(self.folder / "tensorboard", step)
        numbers = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        self._metrics.flush()
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], *, is_best: bool = False, **state: Any) -> None:
        """Write a checkpoint; older ones but the newest and the best go. Tensors may lie anywhere and share memory."""
        from safetensors.torch import save_file

        if self.group.rank == 0:
            top, name = self.folder / CHECKPOINTS, f"step-{step:06d}"
            top.mkdir(exist_ok=True)
            with atomic_folder(top / name) as folder:
                folder.mkdir()
                save_file(
                    {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()},
                    folder / "tensors.safetensors",
                )
                (folder / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
            if is_best:
                _write(top / "best", name)
            self._tidy(top)
        self.group.barrier()

    def _tidy(self, top: Path) -> None:
        best = _text_of(top / "best") if (top / "best").is_file() else ""
        old = [path for path in sorted(top.glob("step-*"))[:-_KEPT] if path.name != best]
        for path in (*old, *top.glob(".step-*")):  # the latter: what a kill left of one
            shutil.rmtree(path)
        for path in top.glob(".best.*"):
            path.unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint; metrics after it are cut off, for they will be made again."""
        found = max((self.folder / CHECKPOINTS).glob("step-*"), default=None)
        checkpoint = None if found is None else _load(found)
        self.group.barrier()
        if self.group.rank == 0:
            self._cut(checkpoint.step if checkpoint else -1)
        return checkpoint

    def best(self) -> Checkpoint | None:
        """The checkpoint that was marked best, or None where none is marked or the marked one is gone."""
        mark = self.folder / CHECKPOINTS / "best"
        name = _text_of(mark).strip() if mark.is_file() else ""
        return _load(mark.with_name(name)) if name and mark.with_name(name).is_dir() else None

    def _cut(self, step: int) -> None:
        for name in (METRICS, "samples.jsonl"):
            path = self.folder / name
            if path.is_file():
                lines = _text_of(path, _MAX_LOG_BYTES).splitlines(keepends=True)
                kept = [line for line in lines if _step_of(line) <= step]
                if len(kept) < len(lines):
                    _write(path, "".join(kept))

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder, which gets its name in the run's folder when it is complete; one that was there
        goes."""
        if self.group.rank == 0:
            with atomic_folder(self.folder / name) as folder:
                write(folder)
        self.group.barrier()

    def close(self) -> None:
        for file in (self._metrics, self._writer, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._writer = self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_about(self) -> None:
        _write(self.folder / RUN, json.dumps(self.about, indent=1) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    path = Path(folder) / METRICS
    return [json.loads(line) for line in _text_of(path, _MAX_LOG_BYTES).splitlines()] if path.is_file() else []


def _text_of(path: Path, max_bytes: int = MAX_DOCUMENT_BYTES) -> str:
    try:
        return read_document(path, max_bytes)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a file of a run in {path}, found: {error}; remove it, or begin again with --fresh"
        ) from error


def _step_of(line: str) -> float:
    """The step of a line of metrics; endless where a kill, or somebody, left it broken, so that it is cut off."""
    try:
        return float(json.loads(line).get("step", 0)) if line.endswith("\n") else math.inf
    except (ValueError, AttributeError, TypeError, RecursionError):
        return math.inf


def _load(folder: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads(read_document(folder / "state.json"))
        return Checkpoint(state.pop("step"), load_file(folder / "tensors.safetensors"), state, folder)
    except (OSError, ValueError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(
            f"expected a checkpoint in {folder}, found one that cannot be read ({error}); remove it, and the run goes "
            "on from the one before"
        ) from error


def _compare(found: dict[str, Any], about: dict[str, Any], folder: Path) -> None:
    if found.get("stage") != about["stage"]:
        raise InputError(
            f"expected a run of {about['stage']} in {folder}, found one of {found.get('stage')}; give another --out"
        )
    old, new = found.get("settings", {}), about["settings"]
    if different := [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]:
        shown = "; ".join(
            f"{name} = {new.get(name)!r} where that run has {old.get(name)!r}" for name in different[:_SHOWN]
        )
        more = f"; and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
        raise InputError(
            f"expected the settings of the run in {folder}, found {shown}{more}. Give the same settings to go on with "
            "it, another --out, "
            f"or --fresh to begin again (removes {shell_word(folder)})"
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_document(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected the settings of a run in {path}, found: {error}; give another --out, or --fresh"
        ) from error
    return found if isinstance(found, dict) and "settings" in found and "state" in found else None


def _holds_files(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(path.name != _LOCK for path in folder.iterdir()))


def _require_own(folder: Path) -> None:
    """Raises WorkspaceError where something of a run is a link, or neither a file nor a folder."""
    require_own_path(folder)
    for path in [*(folder / name for name in (*_OWN, _LOCK)), *folder.glob(".*.partial")]:
        require_own_tree(path)


def _refuse_to_remove(folder: Path, stage: str, inputs: Iterable[Path]) -> None:
    """Raises InputError unless `folder` is a run of this stage, or nothing, and none of the inputs lies in it."""
    if not _holds_files(folder):
        return
    try:
        found = _read(folder / RUN)
    except InputError:  # a damaged one, whose stage nobody knows: what is removed has a run's names
        found = {"stage": stage} if (folder / CHECKPOINTS).is_dir() or (folder / METRICS).is_file() else None
    if found is None:
        raise InputError(
            f"expected a run of `reclm tune` in {folder} for --fresh, found other files; give another --out"
        )
    if found.get("stage") != stage:
        raise InputError(
            f"expected a run of {stage} in {folder} for --fresh, found one of {found.get('stage')}; give another --out"
        )
    for path in inputs:
        if path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"expected what the run reads outside of {folder}, which --fresh removes, found {path}; give another "
                "--out"
            )


def _remove(folder: Path) -> None:
    """What a run writes, and nothing else."""
    for path in [*(folder / name for name in _OWN), *folder.glob(".*.partial")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lock(folder: Path) -> Any:
    """An open file that no other process can lock, so that two do not write one run."""
    file = lock_file(folder / _LOCK)
    if file is None:
        raise InputError(
            f"expected {folder} for this process alone, found another one tuning there; wait for it, or give another "
            "--out"
        )
    return file


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    import peft
    import transformers

    from .. import __version__

    return {
        "reclm-lite": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }


def _tensorboard(folder: Path, step: int) -> Any:
    """What writes the same figures there from `step` on; what a kill left of later steps than its checkpoint is
    hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)
