"""The tensors of a quantized file against those of the unquantized file that it was made from.

Rounding to a type is bounded whatever the weights are: an error much above that is another tensor, a row that was
damaged, or a quantizer gone wrong, however little of it the prompts would show. Rows are read by blocks; a model of
more weights than `_MAX_WEIGHTS` is sampled evenly by rows, and the report says so.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.families import Rename
from reclm_lite.convert.parity.bounds import ROUNDING
from reclm_lite.gguf_file import GgufSummary, TensorInfo, metadata_digests

_MAX_WEIGHTS = 1 << 28  # compared per file; about a minute of numpy at the slowest types
_BLOCK_WEIGHTS = 1 << 20
_N_SHOWN = 5
_UNKNOWN_ROUNDING = 0.98
_FAINT = 0.05  # of a tensor's root mean square
_GRAIN = 1e-5
_OTHER_ORDER = 1e-5  # float32 sums of another order, as two programs merge an adapter
# Metadata that quantization itself writes.
_OF_THE_TYPE = ("general.file_type", "general.quantization_version", "quantize.imatrix.")


@dataclass
class WeightReport:
    """Relative rounding errors by type: {type: {"n_tensors", "worst_tensor", "worst_row"}}, and what is out of bounds.

    noise: relative RMS error of all matrices together.
    """

    every_nth_row: int = 1
    noise: float = 0.0
    by_type: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "every_nth_row": self.every_nth_row,
            "relative_error": self.noise,
            "by_type": dict(sorted(self.by_type.items())),
            "problems": self.problems[:_N_SHOWN],
        }


def read_rows(path: Path, tensor: TensorInfo, chosen: slice) -> np.ndarray:
    """Rows of a tensor, dequantized: float32 (n_rows, tensor.shape[0])."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    n_rows = math.prod(tensor.shape[1:])
    row_bytes = tensor.size_bytes // max(n_rows, 1)
    kind = GGMLQuantizationType[tensor.type_name]
    data = np.memmap(path, np.uint8, "r", offset=tensor.offset_bytes, shape=(n_rows, row_bytes))
    rows = np.array(data[chosen])
    if kind == GGMLQuantizationType.F32:
        return rows.view(np.float32)
    if kind == GGMLQuantizationType.F16:
        return rows.view(np.float16).astype(np.float32)
    return dequantize(rows, kind).reshape(len(rows), tensor.shape[0])


def row_blocks(path: Path, tensor: TensorInfo, every: int = 1) -> Iterator[np.ndarray]:
    """Every n-th row of a tensor, dequantized: float32 (n_rows, tensor.shape[0]), by blocks of some 4 MB."""
    step = max(1, _BLOCK_WEIGHTS // max(tensor.shape[0], 1))
    for start in range(0, math.prod(tensor.shape[1:]), step * every):
        yield read_rows(path, tensor, slice(start, start + step * every, every))


def rounding_errors(
    source: Path, a: TensorInfo, path: Path, b: TensorInfo, every: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Per row: (sum of squares of `a`, sum of squares of `b` - `a`), both float64 (n_rows,)."""
    powers, errors = [], []
    for x, y in zip(row_blocks(source, a, every), row_blocks(path, b, every), strict=True):
        powers.append(np.square(x, dtype=np.float64).sum(axis=1))
        errors.append(np.square(y - x, dtype=np.float64).sum(axis=1))
    return np.concatenate(powers), np.concatenate(errors)


def compare_weights(source: GgufSummary, found: GgufSummary) -> WeightReport:
    """Every tensor of `found` against `source`, the unquantized file: names, shapes, and rounding within ROUNDING."""
    report = WeightReport()
    before = {tensor.name: tensor for tensor in source.tensors}
    after = {tensor.name: tensor for tensor in found.tensors}
    if {name: t.shape for name, t in before.items()} != {name: t.shape for name, t in after.items()}:
        odd = sorted(name for name in before.keys() | after.keys() if _shape(before, name) != _shape(after, name))
        report.problems.append(f"expected the tensors of the unquantized file, found others for {', '.join(odd[:3])}")
        return report
    n_weights = sum(math.prod(tensor.shape) for tensor in found.tensors)
    report.every_nth_row = -(-n_weights // _MAX_WEIGHTS)
    power = noise = 0.0
    for name, tensor in after.items():
        # The rows of a small tensor are all compared: sampling is for the few large ones.
        every = report.every_nth_row if math.prod(tensor.shape[1:]) > 1 else 1
        powers, errors = rounding_errors(source.path, before[name], found.path, tensor, every)
        worst_tensor, worst_row = _relative(tensor, powers, errors)
        if len(tensor.shape) > 1:
            power, noise = power + float(powers.sum()), noise + float(errors.sum())
        entry = report.by_type.setdefault(tensor.type_name, {"n_tensors": 0, "worst_tensor": 0.0, "worst_row": 0.0})
        entry["n_tensors"] += 1
        entry["worst_tensor"] = max(entry["worst_tensor"], worst_tensor)
        entry["worst_row"] = max(entry["worst_row"], worst_row)
        bound_tensor, bound_row = ROUNDING.get(tensor.type_name, (_UNKNOWN_ROUNDING, _UNKNOWN_ROUNDING))
        # Not `>`: a comparison with NaN must fail.
        if not (worst_tensor <= bound_tensor and worst_row <= bound_row):
            report.problems.append(
                f"expected {name} ({tensor.type_name}) within {bound_tensor:g} of the unquantized tensor and "
                f"{bound_row:g} "
                f"in every row, found {worst_tensor:.3g} and {worst_row:.3g}"
            )
    report.noise = math.sqrt(noise / power) if power > 0 else math.sqrt(noise)
    return report


def _shape(tensors: dict[str, TensorInfo], name: str) -> tuple[int, ...] | None:
    return tensors[name].shape if name in tensors else None


def _relative(tensor: TensorInfo, powers: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """(relative error of the tensor, largest of a row).

    A row much fainter than its tensor is held to the tensor's scale: the scales of blocks are float16, whose own grain
    shows in weights near 1e-5, and no product would.
    """
    total, n_columns = float(powers.sum()), tensor.shape[0]
    if total <= 0:
        return (0.0, 0.0) if float(errors.sum()) == 0 else (math.inf, math.inf)
    floor = (_FAINT**2) * total / len(powers) + n_columns * _GRAIN**2
    return math.sqrt(float(errors.sum()) / (total + len(powers) * n_columns * _GRAIN**2)), math.sqrt(
        float((errors / np.maximum(powers, floor)).max())
    )


def compare_metadata(source: Path, found: Path) -> list[str]:
    """Sentences about metadata (vocabulary, template, hyperparameters) that is not the unquantized file's, byte for
    byte."""
    a, b = metadata_digests(source), metadata_digests(found)
    odd = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and not key.startswith(_OF_THE_TYPE))
    return (
        [f"expected the metadata of the unquantized file, found different values of {', '.join(odd[:5])}"]
        if odd
        else []
    )


def compare_with_model(
    found: GgufSummary, renames: Sequence[Rename], blocks: Callable[[str], Iterable[np.ndarray]]
) -> list[str]:
    """Sentences about tensors of an unquantized file that are not the merged model's, row by row, up to rounding.

    blocks(name): the model's tensor by its checkpoint name, float, in blocks of rows; a KeyError where it has none.
    Logits do not show a module of small effect that was not merged, or a row that no prompt touches.
    """
    tensors, problems = {tensor.name: tensor for tensor in found.tensors}, []
    for rename in renames:
        tensor = tensors.get(rename.target)
        if tensor is None or tensor.shape != rename.shape[::-1]:
            shape = tensor.shape[::-1] if tensor else None
            problems.append(f"expected {rename.target} of shape {rename.shape}, found {shape}")
            continue
        try:
            made: Iterable[np.ndarray] = blocks(rename.source)
            if rename.transform:
                made = [rename.transform(np.concatenate(list(made)))]
        except KeyError:
            problems.append(f"expected {rename.source} in the reference, found none; it cannot be compared")
            continue
        powers, errors, at = [], [], 0
        for block in made:
            # A vector is one row.
            expected = (
                np.atleast_2d(np.asarray(block, np.float32))
                if len(rename.shape) > 1
                else np.asarray(block, np.float32)[None]
            )
            at, rows = at + len(expected), slice(at, at + len(expected))
            error = read_rows(found.path, tensor, rows) - expected
            powers.append(np.square(expected, dtype=np.float64).sum(axis=1))
            errors.append(np.square(error, dtype=np.float64).sum(axis=1))
        power, error = np.concatenate(powers), np.concatenate(errors)
        worst_tensor, worst_row = _relative(tensor, power, error)
        bound_tensor, bound_row = (max(bound, _OTHER_ORDER) for bound in ROUNDING[tensor.type_name])
        if not (worst_tensor <= bound_tensor and worst_row <= bound_row):
            row = int((error / np.maximum(power, 1e-12)).argmax())
            problems.append(
                f"expected {rename.target} within {bound_tensor:g} of {rename.source} of the merged model and "
                f"{bound_row:g} in "
                f"every row, found {worst_tensor:.3g} and {worst_row:.3g} (row {row})"
            )
    return problems
