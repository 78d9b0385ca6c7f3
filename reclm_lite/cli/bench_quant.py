"""`reclm bench quant`"""

from pathlib import Path

import click

from ._options import common, echo, print_json, say, threads_option, workspace_option


class Percent(click.ParamType):
    """A click type for shares: `1%`, `0.5 %` or `0.01`."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"expected a share such as 1% or 0.01, found {value!r}", param, ctx)


@click.command("quant")
@workspace_option
@click.option(
    "--model",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The profile model as GGUF in F16, BF16 or F32.",
)
@click.option(
    "--types",
    "types",
    metavar="TYPE[,TYPE]|FILE.gguf",
    multiple=True,
    help=(
        "Types to make, or existing GGUF files to compare; repeatable [default: "
        "q8_0,q6_k,q5_k_m,q4_k_m,q4_0,q3_k_m,q2_k]."
    ),
)
@click.option(
    "--imatrix",
    type=click.Choice(("auto", "none")),
    default="auto",
    show_default=True,
    help="auto: also make each type with an importance matrix if it benefits from one.",
)
@click.option(
    "--encoder",
    "encoder_model",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Also compare a text encoder (GGUF, F16) with its Q8_0 and Q4_0 versions, on the catalog's texts.",
)
@click.option(
    "--users",
    "n_users",
    type=click.IntRange(min=1),
    help="Number of users, sampled at random, whose profiles are written [default: all].",
)
@click.option(
    "--prompts",
    "n_prompts",
    type=click.IntRange(min=1),
    help="Number of distinct prompts for speed, perplexity and KL divergence [default: 256].",
)
@click.option(
    "--seeds",
    "n_seeds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help=("Fits per file, each with another seed."),
)
@click.option("--backbone", default="lightgcn", show_default=True, help="The model fitted with the profiles.")
@click.option("--epochs", type=click.IntRange(min=1), help="Maximum epochs per fit [default: the backbone's].")
@click.option(
    "--slots", "n_slots", type=click.IntRange(1, 256), help="Sequences in parallel [default: chosen from the model]."
)
@click.option(
    "--auto",
    is_flag=True,
    help=("Choose the smallest file that loses less than --max-loss, or explain why none can be chosen."),
)
@click.option(
    "--max-loss",
    type=Percent(),
    default="1%",
    show_default=True,
    help=("Largest acceptable loss of Recall@20, at 95 % confidence."),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for files and results [default: reports/quant of the workspace].",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed for sampling users and prompts."
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print quant.json on one line instead of tables.")
@common
def command(
    root: Path,
    model: Path,
    types: tuple[str, ...],
    imatrix: str,
    encoder_model: Path | None,
    n_users: int | None,
    n_prompts: int | None,
    n_seeds: int,
    backbone: str,
    epochs: int | None,
    n_slots: int | None,
    auto: bool,
    max_loss: float,
    out: Path | None,
    seed: int,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Measure how far the profile model can be quantized before recommendations get worse.

    Quantizes an unquantized GGUF to the given types, with and without importance matrix, and compares each file with
    it: size, speed, perplexity and KL divergence, profiles, and Recall and NDCG of a backbone fitted with those
    profiles, with 95 % intervals. Results are kept in --out: an interrupted run resumes, and a second run computes
    nothing again. Writes quant.json, quant.csv and quant.html there. The workspace is not changed; --out contains a
    copy of it, with the answers of every file.

    \b
    Example:
      reclm bench quant -w shop --model profiles-f16.gguf --auto --max-loss 1%
      reclm bench quant -w shop --model profiles-f16.gguf --types q8_0,q4_k_m --users 500 --seeds 3 --out quant
    """
    from ..bench.quant import quant_bench, text_and_csv
    from ..kernels import native

    wanted = tuple(part.strip() for text in types for part in text.split(",") if part.strip())
    settings = quant_bench.Settings(
        root,
        model,
        out or root / "reports" / "quant",
        n_threads or native.default_threads(),
        wanted if types else quant_bench.DEFAULT_TYPES,
        imatrix=imatrix == "auto",
        n_users=n_users,
        n_prompts=n_prompts or quant_bench.N_PROMPTS,
        n_seeds=n_seeds,
        backbone=backbone,
        epochs=epochs,
        n_slots=n_slots,
        seed=seed,
        max_loss=max_loss,
        encoder_model=encoder_model,
    )
    document = quant_bench.run(settings, say)
    written = quant_bench.write_results(document, settings.out)
    for line in [] if as_json else text_and_csv.lines_of(document, auto=auto):
        echo(line)
    say(f"Written: {', '.join(map(str, written))}")
    if as_json:
        print_json(document, indent=None)
