"""`reclm bench`; `quant` is in `bench_quant`."""

from pathlib import Path

import click

from ..bench import KERNEL_PARTS, PROFILE_QUANTS
from ..cf.models import MODELS
from ._options import common, echo, say, threads_option
from .bench_quant import command as quant

REFERENCE = Path("benchmarks") / "torch_lightgcn.py"

quick_option = click.option(
    "--quick", is_flag=True, help="Small sizes and few repetitions, to check that it works; no targets."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print only the line of JSON.")


@click.group("bench")
def command() -> None:
    """Benchmark kernels, models, export, profiles and tuning against other libraries in the same run.

    Prints a table and, as the last line, JSON. A missed speed target does not fail the command; a wrong result does.
    """


command.add_command(quant)


@command.command("kernels")
@click.option(
    "--only", "parts", type=click.Choice(KERNEL_PARTS), multiple=True, help="One part; repeatable [default: all]."
)
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions per contender [default: 9].")
@threads_option
@quick_option
@json_option
@common
def kernels(parts: tuple[str, ...], repeats: int | None, n_threads: int | None, quick: bool, as_json: bool) -> None:
    """Time spmm, top-k, nearest neighbors and the training loops against scipy, torch, numba, implicit and numpy.

    Libraries that are missing are listed as not installed; `pip install "reclm-lite[bench]"` installs torch and
    implicit.

    \b
    Example:
      reclm bench kernels --threads 2
    """
    from ..bench.kernels import kernel_bench as bench
    from ..kernels import native

    n_threads = n_threads or native.default_threads()
    sizes, default = (bench.QUICK, 1) if quick else (bench.Sizes(), 9)
    _show(bench.run(bench.Settings(n_threads, repeats or default, parts or KERNEL_PARTS, sizes), _progress), as_json)


@command.command("fit")
@click.option(
    "-w",
    "--workspace",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Use this workspace's split and text vectors [default: a generated graph of 57,128 users].",
)
@click.option(
    "--model", "models", type=click.Choice(MODELS), multiple=True, help="One model; repeatable [default: all]."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Timed epochs, after one warm-up epoch [default: 3].")
@click.option(
    "--large", is_flag=True, help="Also LightGCN and gfcf on 30,000 users, 41,000 items, 810,000 interactions."
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"The torch implementation of LightGCN to compare with [default: {REFERENCE}, if it exists].",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@threads_option
@quick_option
@json_option
@common
def fit(
    root: Path | None,
    models: tuple[str, ...],
    epochs: int | None,
    large: bool,
    reference: Path | None,
    seed: int,
    n_threads: int | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Time one epoch of each trained model, the fit of each untrained model, and the evaluation of all users.

    \b
    Example:
      reclm bench fit --threads 2
      reclm bench fit -w shop --model lightgcn
    """
    from ..bench.fitting import fit_bench as bench
    from ..kernels import native

    if quick and (large or root):
        raise click.UsageError("--quick uses its own small graph: leave out --large and --workspace")
    if reference is None and REFERENCE.is_file():
        reference = REFERENCE
    settings = bench.Settings(
        n_threads or native.default_threads(),
        epochs or (1 if quick else 3),
        models or bench.ALL_MODELS,
        sizes=bench.QUICK if quick else bench.MIND,
        large=large,
        workspace=root,
        reference=reference,
        seed=seed,
    )
    _show(bench.run(settings, _progress), as_json)


@command.command("export")
@click.option(
    "--llama-cpp-src",
    "llama_cpp",
    envvar="LLAMA_CPP_SRC",
    type=click.Path(path_type=Path, file_okay=False),
    help="llama.cpp's source tree, for its converter (or set LLAMA_CPP_SRC).",
)
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions per contender [default: 3].")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@threads_option
@quick_option
@json_option
@common
def export(
    llama_cpp: Path | None, repeats: int | None, seed: int, n_threads: int | None, quick: bool, as_json: bool
) -> None:
    """Measure time and memory of merging an adapter and writing GGUF, against peft and llama.cpp's converter.

    The model has 1.1 billion random float16 weights; the folder for temporary files (TMPDIR) needs about 9 GB.

    \b
    Example:
      reclm bench export --llama-cpp-src llama.cpp --threads 2
    """
    from ..bench import random_llama
    from ..bench.exporting import export_bench as bench
    from ..kernels import native

    shape, default = (random_llama.QUICK, 1) if quick else (random_llama.Shape(), 3)
    settings = bench.Settings(n_threads or native.default_threads(), repeats or default, shape, llama_cpp, seed)
    _show(bench.run(settings, _progress), as_json)


@command.command("profile")
@click.option(
    "-w",
    "--workspace",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Use prompts of this workspace's users, then all its users [default: the bundled demo's prompts].",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="bundled|135m|1b|FILE.gguf",
    help="The bundled model, a random one of that size, or a file; repeatable [default: bundled, 135m, 1b].",
)
@click.option(
    "--quant",
    "quants",
    type=click.Choice(PROFILE_QUANTS),
    multiple=True,
    help="Quantization type of the random models; repeatable [default: both].",
)
@click.option(
    "--prompts",
    "n_prompts",
    type=click.IntRange(min=1),
    help="Number of distinct prompts [default: bundled 256, 135m 64, 1b 32].",
)
@click.option(
    "--slots", "n_slots", type=click.IntRange(1, 256), help="Sequences in parallel [default: chosen from the model]."
)
@click.option("--max-new", type=click.IntRange(min=1), help="Maximum new tokens [default: bundled 96, others 48].")
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions per contender [default: bundled 3, others 1].")
@click.option(
    "--encoder-checkpoint",
    "checkpoint",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the published all-MiniLM-L6-v2, for sentence-transformers.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@threads_option
@quick_option
@json_option
@common
def profile(
    root: Path | None,
    models: tuple[str, ...],
    quants: tuple[str, ...],
    n_prompts: int | None,
    n_slots: int | None,
    max_new: int | None,
    repeats: int | None,
    checkpoint: Path | None,
    seed: int,
    n_threads: int | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure profiles per second against a loop over llama-cpp-python's Llama on the same prompts, and embedding.

    The texts of both are compared, and differences explained. The random model of 1.1 billion weights needs 7 GB in the
    folder for temporary files (TMPDIR). Embedding is compared with sentence-transformers, if it is installed.

    \b
    Example:
      reclm bench profile --model bundled --threads 2
      reclm bench profile -w shop --model 1b --quant q4_k_m --encoder-checkpoint all-MiniLM-L6-v2
    """
    from ..bench.profile_engine import profile_bench as bench
    from ..kernels import native

    n_threads = n_threads or native.default_threads()
    if quick:
        sizes = {
            "models": models or (bench.BUNDLED, bench.TINY),
            "n_prompts": n_prompts or 8,
            "max_new": max_new or 16,
            "repeats": repeats or 1,
            "n_texts": 32,
            "targets": False,
        }
    else:
        sizes = {"models": models or bench.MODELS, "n_prompts": n_prompts, "max_new": max_new, "repeats": repeats}
    settings = bench.Settings(
        n_threads,
        quants=quants or PROFILE_QUANTS,
        workspace=root,
        n_slots=n_slots,
        checkpoint=checkpoint,
        seed=seed,
        **sizes,
    )
    _show(bench.run(settings, _progress), as_json)


@command.command("tune")
@click.option(
    "--trl-python",
    type=click.Path(path_type=Path, dir_okay=False),
    help=(
        "The Python interpreter of an environment with trl 1.12, the last release with PPO: `python -m venv trl; "
        "trl/bin/pip install trl==1.12.0 peft`."
    ),
)
@click.option("--batch", type=click.IntRange(min=4), help="Answers per step, a multiple of 4 [default: 16].")
@click.option("--steps", type=click.IntRange(min=2), help="Number of steps; the first one is not timed [default: 3].")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@threads_option
@quick_option
@json_option
@common
def tune(
    trl_python: Path | None,
    batch: int | None,
    steps: int | None,
    seed: int,
    n_threads: int | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Measure peak memory and answers per second of PPO against TRL's PPOTrainer, on a random model of 31 million
    weights.

    \b
    Example:
      reclm bench tune --trl-python trl/bin/python --threads 2
    """
    from ..bench.tuning import tune_bench as bench
    from ..kernels import native

    if batch is not None and batch % 4:
        raise click.UsageError(f"--batch: expected a multiple of 4 (the answers of one pass), found {batch}")
    sizes = (
        {
            "vocab": 400,
            "width": 64,
            "layers": 2,
            "ffn": 128,
            "heads": 4,
            "max_new_tokens": 8,
            "batch": 8,
            "steps": 2,
            "targets": False,
        }
        if quick
        else {}
    )
    sizes |= {name: value for name, value in (("batch", batch), ("steps", steps)) if value}
    _show(
        bench.run(
            bench.Settings(n_threads or native.default_threads(), trl_python=trl_python, seed=seed, **sizes), _progress
        ),
        as_json,
    )


def _progress(what: str) -> None:
    say(f"measuring: {what}")


def _show(result: tuple[list[str], str], as_json: bool) -> None:
    lines, line = result
    for text in [] if as_json else lines:
        echo(text)
    echo(line)
