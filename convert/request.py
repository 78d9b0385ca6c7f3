"""What an export is asked for, checked before any work: types, names, folders, prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reclm_lite.convert.quantize import NEEDS_IMATRIX, UNQUANTIZED_FTYPES, parse_ftype
from reclm_lite.errors import ModelError

PARITY_MODES = ("auto", "transformers", "gguf", "off")
N_GATE_PROMPTS = 64
_NOT_IMPROVED = (*UNQUANTIZED_FTYPES, "q8_0")  # types that an importance matrix does not change


@dataclass(frozen=True)
class Request:
    """imatrix: "auto", a file, or None. calibration: texts for the importance matrix; prompts: texts for the gate."""

    base: Path
    adapter: Path | None
    out_dir: Path
    ftypes: tuple[str, ...]
    name: str
    imatrix: str | Path | None
    calibration: tuple[str, ...]
    prompts: tuple[str, ...]
    prompts_held_out: bool
    parity: str
    metadata: dict[str, Any] = field(default_factory=dict)
    n_threads: int | None = None

    def file(self, ftype: str, *, failed: bool = False) -> str:
        """The name that a file of type `ftype` gets."""
        return f"{self.name}-{ftype}{'.failed-parity' if failed else ''}.gguf"

    def uses_imatrix(self, ftype: str) -> bool:
        return self.imatrix is not None and ftype not in _NOT_IMPROVED


def check_request(
    base: Path,
    out_dir: Path,
    quants: Sequence[str],
    *,
    adapter: Path | None,
    imatrix: str | Path | None,
    calibration: Sequence[str],
    parity: str,
    name: str | None,
    metadata: Mapping[str, Any] | None,
    n_threads: int | None,
) -> Request:
    """The request as the export uses it. Raises ModelError, saying what was expected."""
    base, out_dir = Path(base), Path(out_dir)
    adapter = None if adapter is None else Path(adapter)
    ftypes = tuple(parse_ftype(quant) for quant in quants)
    doubled = sorted({ftype for ftype in ftypes if ftypes.count(ftype) > 1})
    if doubled or not ftypes:
        raise ModelError(f"expected each type once and at least one type, found {', '.join(doubled) or 'none'}")
    if parity not in PARITY_MODES:
        raise ModelError(f"expected parity among {', '.join(PARITY_MODES)}, found {parity!r}")
    _check_folders(base, adapter, out_dir)
    if isinstance(imatrix, Path) and not imatrix.is_file():
        raise ModelError(f"expected an importance matrix at {imatrix}, found no file; check the path, or use auto")
    calibration, prompts, held_out = _hold_out(calibration)
    request = Request(
        base,
        adapter,
        out_dir,
        ftypes,
        _file_stem(name or folder_name(adapter or base)),
        imatrix,
        calibration,
        prompts,
        held_out,
        parity,
        dict(metadata or {}),
        n_threads,
    )
    needing = [ftype for ftype in ftypes if ftype in NEEDS_IMATRIX]
    if imatrix is None and needing:
        raise ModelError(
            f"expected an importance matrix for {', '.join(needing)}, found none asked for; use auto or a file"
        )
    if imatrix == "auto" and not calibration and any(map(request.uses_imatrix, ftypes)):
        raise ModelError(
            "expected calibration texts for the importance matrix, found none; give some, or no importance matrix"
        )
    if parity != "off" and not prompts:
        raise ModelError("expected prompts for the parity gate, found none; give calibration texts")
    return request


def needs_texts(quants: Sequence[str], imatrix: str | Path | None, parity: str) -> bool:
    """Whether an export has use for calibration texts."""
    return parity != "off" or (imatrix == "auto" and any(parse_ftype(quant) not in _NOT_IMPROVED for quant in quants))


def _check_folders(base: Path, adapter: Path | None, out_dir: Path) -> None:
    if not base.is_dir():
        found = "a file" if base.exists() else "nothing"
        raise ModelError(f"expected the folder of a checkpoint at {base}, found {found}; check the path")
    if adapter is not None and not adapter.is_dir():
        found = "a file" if adapter.exists() else "nothing"
        raise ModelError(f"expected the folder of an adapter at {adapter}, found {found}; check the path")
    has_config, is_adapter = (base / "config.json").is_file(), (base / "adapter_config.json").is_file()
    if is_adapter and not has_config:
        raise ModelError(
            f"expected a base checkpoint at {base}, found an adapter (adapter_config.json): "
            "give this folder as the adapter, and the model that it was trained on as the base"
        )
    if adapter is not None and not (adapter / "adapter_config.json").is_file() and (adapter / "config.json").is_file():
        raise ModelError(
            f"expected an adapter (adapter_config.json) at {adapter}, found a checkpoint (config.json): "
            "base and adapter may have been given the wrong way round"
        )
    if adapter is not None and (adapter / "head.safetensors").is_file():
        raise ModelError(
            f"expected an adapter that writes profiles at {adapter}, found a reward model's (head.safetensors), which "
            "scores them: "
            "give the adapter of `reclm tune sft` or `reclm tune ppo`"
        )
    if out_dir.exists() and not out_dir.is_dir():
        raise ModelError(f"expected a folder to write to at {out_dir}, found a file; choose another path")
    for folder in filter(None, (base, adapter)):
        if out_dir.resolve() == folder.resolve():
            raise ModelError(
                f"expected a target other than what is exported, found {out_dir} for both; choose another folder"
            )


def folder_name(folder: Path) -> str:
    """The name of a checkpoint's or an adapter's folder; of a snapshot in the Hugging Face cache, the repository's."""
    folder = folder.resolve()
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.rpartition("--")[2]
    return folder.name


def _file_stem(name: str) -> str:
    if not name or name in (".", "..") or set(name) & set("/\\:\0\n"):
        raise ModelError(f"expected a name that can begin a file's name, found {name!r}; give another")
    return name


def _hold_out(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """(for the importance matrix, for the gate, whether they are apart): every text serves both where there are few."""
    texts = tuple(texts)
    if len(texts) < 2 * N_GATE_PROMPTS:
        return texts, texts[:N_GATE_PROMPTS], False
    held = {i * len(texts) // N_GATE_PROMPTS for i in range(N_GATE_PROMPTS)}
    return tuple(t for i, t in enumerate(texts) if i not in held), tuple(texts[i] for i in sorted(held)), True
