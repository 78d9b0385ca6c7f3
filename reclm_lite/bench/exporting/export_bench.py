"""`reclm bench export`: merging an adapter and writing GGUF, beside peft and llama.cpp's own converter.

A random F16 Llama of 1.1 billion parameters and a rank-16 adapter are made on the spot (`--quick`: tiny ones). Every
contender is a fresh process; time is from its start to its end, memory its peak of resident pages beyond those of a
bare interpreter. Turns are taken, with what was written flushed to the disk in between. The gate is off on our side,
as the peers have none. What came out is compared before anything is reported.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, ModelError
from .. import machine
from ..comparison import Group, Target, lines_of, to_json
from ..harness import Finished, Timing, run_in_child
from ..random_llama import Shape, write_adapter, write_checkpoint
from . import export_jobs

OURS, MERGE, BOTH = "reclm export", "peft merge_and_unload, nothing saved", "peft merge, save, convert_hf_to_gguf.py"
PACKAGES = ("torch", "transformers", "peft", "gguf", "safetensors")
_PEERS = ("torch", "transformers", "peft")
_BYTES_PER_PARAM = 8  # the checkpoint, peft's, its GGUF and ours, 2 bytes each
# peft merges in float32 and rounds once, as we do; products that are summed in another order may tip that rounding.
_RELATIVE, _ABSOLUTE = 2.0**-10, 2.0**-24  # one step of float16, normal and subnormal
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """n_threads: of the peers' torch. repeats: runs of each contender. llama_cpp: its source tree, or None."""

    n_threads: int
    repeats: int = 3
    shape: Shape = Shape()
    llama_cpp: Path | None = None
    seed: int = 0


def run(settings: Settings, say: Say = lambda _: None) -> tuple[list[str], str]:
    """Measure; returns the lines of the table and the JSON line. Raises InputError, and ModelError if results
    differ."""
    llama_cpp = settings.llama_cpp
    if llama_cpp is not None and not (llama_cpp / "convert_hf_to_gguf.py").is_file():
        raise InputError(
            f"expected llama.cpp's source (convert_hf_to_gguf.py) at {llama_cpp}, found none; check --llama-cpp-src"
        )
    about = machine.facts(settings.n_threads, PACKAGES)
    with tempfile.TemporaryDirectory(prefix="reclm-bench-") as folder:
        group = _measure(Path(folder), settings, say)
    if settings.shape != Shape():  # the targets are those of the full size
        group.targets.clear()
    shown = {**asdict(settings), "llama_cpp": str(llama_cpp) if llama_cpp else None}
    return [machine.sentence(about), *lines_of([group])], to_json("export", about, shown, [group])


def _measure(folder: Path, settings: Settings, say: Say) -> Group:
    shape = settings.shape
    group = Group(
        "export", f"an F16 Llama of {shape.n_params:,} weights, rank-{shape.rank} LoRA", "weights", shape.n_params
    )
    free = shutil.disk_usage(folder).free
    if free < _BYTES_PER_PARAM * shape.n_params:
        raise InputError(
            f"expected {_BYTES_PER_PARAM * shape.n_params / 1e9:.1f} GB free in {folder.parent}, found "
            f"{free / 1e9:.1f}; "
            "make room, or set TMPDIR to a folder on another disk"
        )
    say("making the checkpoint and its adapter")
    base = write_checkpoint(folder / "base", shape, settings.seed)
    adapter = write_adapter(folder / "adapter", shape, base, settings.seed + 1)
    contenders, missing = _contenders(base, adapter, settings)
    bare = run_in_child(export_jobs.nothing, {}).peak_bytes
    spent: dict[str, list[Finished]] = {name: [] for name in contenders}
    difference = None
    for turn in range(settings.repeats):
        made = {}
        for name, contend in contenders.items():
            say(f"{name}, run {turn + 1} of {settings.repeats}")
            os.sync()
            out = folder / f"made-{len(made)}"
            spent[name].append(contend(out))
            made[name] = out
            if turn:  # those of the first turn are compared
                shutil.rmtree(out, ignore_errors=True)
        if not turn and BOTH in made:
            say("comparing what came out")
            difference = _largest_difference(made[OURS] / "model-f16.gguf", made[BOTH] / "model-f16.gguf")
        for out in made.values():
            shutil.rmtree(out, ignore_errors=True)
    for name, runs in spent.items():
        beyond = [run.peak_bytes - bare for run in runs]
        facts = {"beyond_bytes": beyond, "bare_bytes": bare}
        if name == OURS and difference is not None:
            facts["largest_difference"] = difference
        group.add(name, Timing.of([run.seconds for run in runs]), f"{statistics.median(beyond) / 1e9:.2f} GB", **facts)
    for name, why in missing.items():
        group.add_missing(name, why)
    _expect(group)
    return group


def _contenders(
    base: Path, adapter: Path, settings: Settings
) -> tuple[dict[str, Callable[[Path], Finished]], dict[str, str]]:
    """({name: run it, writing into a folder}, {name: why it is not run})."""
    model = {"base": base, "adapter": adapter}

    def merge(out: Path) -> Finished:
        return run_in_child(export_jobs.merge, {**model, "out": "", "n_threads": settings.n_threads})

    def both(out: Path) -> Finished:
        merging = {**model, "out": out / "merged", "n_threads": settings.n_threads}
        merged = run_in_child(export_jobs.merge, merging)
        # peft saves no tokenizer; the converter wants one beside the weights.
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / name, out / "merged" / name)
        converting = {"llama_cpp": settings.llama_cpp, "checkpoint": out / "merged", "out": out / "model-f16.gguf"}
        converted = run_in_child(export_jobs.oracle, converting)
        return Finished(None, max(merged.peak_bytes, converted.peak_bytes), merged.seconds + converted.seconds)

    contenders: dict[str, Callable[[Path], Finished]] = {
        OURS: lambda out: run_in_child(export_jobs.export, {**model, "out": out, "quant": "f16"})
    }
    absent = [name for name in _PEERS if not machine.installed(name)]
    if absent:
        why = f"{', '.join(absent)} not installed"
        return contenders, {MERGE: why, BOTH: why}
    contenders[MERGE] = merge
    if settings.llama_cpp is None:
        return contenders, {BOTH: "no source of llama.cpp: give --llama-cpp-src"}
    return contenders | {BOTH: both}, {}


def _largest_difference(ours: Path, theirs: Path) -> float:
    """Between two F16 files of one model; ModelError if they hold other tensors, or differ by more than rounding."""
    from gguf import GGUFReader

    left, right = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in (ours, theirs))
    odd = sorted(left.keys() ^ right.keys())
    if odd:
        raise ModelError(f"expected the same tensors from every contender, found {odd[:3]} in one only")
    largest = 0.0
    for name, tensor in left.items():
        a, b = tensor.data, right[name].data
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ModelError(f"expected {name!r} alike, found {a.shape} {a.dtype} and {b.shape} {b.dtype}")
        for start in range(0, len(a), 1024):
            x, y = a[start : start + 1024].astype(np.float32), b[start : start + 1024].astype(np.float32)
            largest = max(largest, float(np.abs(x - y).max()))
            if not np.allclose(x, y, rtol=_RELATIVE, atol=_ABSOLUTE):
                raise ModelError(f"expected {name!r} of both to differ by rounding only, found {np.abs(x - y).max():g}")
    return largest


def _expect(group: Group) -> None:
    group.expect(OURS, 2.0, BOTH)
    memory = {row.name: statistics.median(row.facts["beyond_bytes"]) for row in group.rows if row.facts}
    ratio = memory[OURS] / memory[BOTH] if BOTH in memory else None
    group.targets.append(Target(f"memory of {OURS} against {BOTH}", round(1 / 3, 4), ratio, at_least=False))
    group.targets.append(Target(f"memory of {OURS}", 1.0, memory[OURS] / 1e9, at_least=False, unit=" GB"))
