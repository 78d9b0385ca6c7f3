"""`reclm export`"""

from pathlib import Path
from typing import Any

import click

from ._options import common, echo, json_option, print_json, progress_bar, say, threads_option

PARITY_MODES = ("auto", "transformers", "gguf", "off")


@click.command("export")
@click.option(
    "--base",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint's folder (config.json, *.safetensors, tokenizer).",
)
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA adapter's folder, merged into the checkpoint.")
@click.option(
    "--quant",
    "quants",
    default="q8_0",
    show_default=True,
    metavar="TYPE,…",
    help="Quantization types, such as q8_0,q6_k,q5_k_m,q4_k_m,q4_0,q3_k_m,q2_k,iq4_xs,f16.",
)
@click.option("-o", "--out", "out_dir", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option(
    "--imatrix",
    default="auto",
    show_default=True,
    metavar="auto|FILE|none",
    help="Importance matrix: computed if a type benefits from it (auto), read from FILE, or none.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help='Texts for the importance matrix and for verification: .jsonl with "text" or "prompt", or plain text with '
    "blank lines between prompts [default: a sample of the profile prompts].",
)
@click.option(
    "--parity",
    type=click.Choice(PARITY_MODES),
    default="auto",
    show_default=True,
    help="Reference for verification: transformers (if installed), the unquantized GGUF, or nothing.",
)
@click.option("--name", help="Model name, the first part of the file names [default: the folder's name].")
@click.option(
    "-w",
    "--workspace",
    "root",
    envvar="RECLM_WORKSPACE",
    type=click.Path(path_type=Path, file_okay=False),
    help="Use profile prompts of this workspace for calibration [default: the bundled demo].",
)
@threads_option
@json_option
@common
def command(
    base: Path,
    adapter: Path | None,
    quants: str,
    out_dir: Path,
    imatrix: str,
    calibration: Path | None,
    parity: str,
    name: str | None,
    root: Path | None,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Convert a checkpoint, with or without a LoRA adapter, to verified GGUF files. Each file is compared with the
    model it was made from: token ids, chat template, logits, greedy text. A file that differs is kept as
    NAME-TYPE.failed-parity.gguf, and the command exits with code 1. A rerun makes only the missing files.

    \b
    Example:
      reclm export --base checkpoint --adapter adapter --quant q8_0,q4_k_m -o model
    """
    from ..convert.export import export
    from ..convert.request import needs_texts
    from ..own_paths import require_own_path

    require_own_path(out_dir)
    types = [quant.strip() for quant in quants.split(",") if quant.strip()]
    matrix = imatrix if imatrix == "auto" else None if imatrix == "none" else Path(imatrix)
    texts = _texts(calibration, root, [base, adapter]) if needs_texts(types, matrix, parity) else []
    with progress_bar("export") as update:
        manifest = export(
            base,
            out_dir,
            types,
            adapter=adapter,
            imatrix=matrix,
            calibration=texts,
            parity=parity,
            name=name,
            n_threads=n_threads,
            progress=lambda what, done, total: update(done, total or None, what),
        )
    if as_json:
        print_json(manifest)
    else:
        _table(manifest)
    failed = [entry for entry in manifest["files"] if not entry["passed"]]
    for entry in failed:
        say(f"{entry['file']} differs from the model it was made from: {'; '.join(entry['parity']['reasons'])}")
    if failed:
        click.get_current_context().exit(1)
    say(
        f"Verified and written to {out_dir}"
        if parity != "off"
        else f"Written to {out_dir}, not verified (--parity off)"
    )


def _texts(path: Path | None, root: Path | None, folders: list[Path | None]) -> list[str]:
    from ..profiles.calibration_texts import read_texts, sample_prompts
    from ..prompts.forms import form_for

    if path:
        return read_texts(path)
    return sample_prompts(root, form=form_for(any(map(_has_chat_template, filter(None, folders)))))


def _has_chat_template(folder: Path) -> bool:
    from ..convert.bounded_files import MAX_TOKENIZER_BYTES, read_bounded

    settings = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and b'"chat_template"' in read_bounded(settings, MAX_TOKENIZER_BYTES)
    )


def _table(manifest: dict[str, Any]) -> None:
    """The table of files. Language models show KL divergence and top-1 agreement, encoders the cosine of their
    vectors."""
    files = manifest["files"]
    encoder = any("vectors" in (entry["parity"] or {}) for entry in files)
    part, columns = ("vectors", ("mean_cosine", "min_cosine")) if encoder else ("logits", ("mean_kl", "top1_agreement"))
    titles = ("mean cosine", "least") if encoder else ("mean KL", "top-1")
    width = max((len(entry["file"]) for entry in files), default=0)
    echo(f"{'file':<{width}} {'MiB':>9} {'bits/weight':>12} {titles[0]:>12} {titles[1]:>8}  parity")
    for entry in files:
        measured = (entry["parity"] or {}).get(part, {})
        first, second = (measured.get(column) for column in columns)
        told = "off" if entry["parity"] is None else "proved" if entry["passed"] else "FAILED"
        echo(
            f"{entry['file']:<{width}} {entry['size_bytes'] / (1 << 20):>9,.1f} {entry['bits_per_weight']:>12.2f} "
            f"{'-' if first is None else f'{first:.5f}':>12} {'-' if second is None else f'{second:.4f}':>8}  {told}"
        )
