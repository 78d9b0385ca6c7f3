"""`reclm bench tune`: peak memory and answers per second of PPO, beside TRL's PPOTrainer on the same small model.

A random Llama is made on the spot, its tokenizer trained on the prompts, which are those of the bundled demo. Both
sides sample answers of the same length to the same prompts, score them with a random reward model of the same size, and
learn in the same number of passes of the same size. Every contender is a process of its own; memory is its peak of
resident pages, libraries included. Steps after the first are timed.

TRL dropped PPO after 1.12, which needs an environment of its own: `--trl-python` names its interpreter. Both sides'
allocators give freed blocks of 4 MB and more back at once; ours does so by itself, the peer is given glibc's variable.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .. import machine
from ..comparison import NOT_INSTALLED, Group, Target, lines_of, to_json
from ..harness import Timing, run_command, run_in_child
from . import tune_job

OURS, GRPO = "reclm tune ppo", "reclm tune ppo --algorithm grpo"
PEERS = {"trl PPOTrainer, LoRA policy": "adapter", "trl PPOTrainer, as it comes": "full"}
PACKAGES = ("torch", "transformers", "peft")
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The model's sizes, and the work: `batch` answers a step of at most max_new_tokens, `steps` of them, learned in
    `epochs` passes.

    trl_python: the interpreter of an environment with trl, or None. targets: whether to report them.
    """

    n_threads: int
    vocab: int = 8000
    width: int = 512
    layers: int = 8
    ffn: int = 1536
    heads: int = 8
    batch: int = 16
    steps: int = 3
    epochs: int = 2
    n_mini_batches: int = 2
    micro_batch: int = 4
    group_size: int = 4
    lora_r: int = 4
    max_new_tokens: int = 48
    trl_python: Path | None = None
    seed: int = 0
    targets: bool = True


def run(settings: Settings, say: Say = lambda _: None) -> tuple[list[str], str]:
    """Measure; returns the lines of the table and the JSON line. Raises ModelError if a contender fails."""
    if settings.trl_python is not None and not settings.trl_python.is_file():
        raise InputError(
            f"expected the Python of an environment with trl at {settings.trl_python}, found none; check --trl-python"
        )
    about = machine.facts(settings.n_threads, PACKAGES)
    with tempfile.TemporaryDirectory(prefix="reclm-bench-") as folder:
        group = _measure(Path(folder), settings, say, about)
    shown = {**asdict(settings), "trl_python": settings.trl_python is not None}
    return [machine.sentence(about), *lines_of([group])], to_json("tune", about, shown, [group])


def _measure(folder: Path, settings: Settings, say: Say, about: dict[str, Any]) -> Group:
    from ...profiles.calibration_texts import sample_prompts
    from ...tune.base import BaseSettings, load_base
    from ...tune.memory import count_parameters
    from ...tune.rendering import Renderer
    from ...tune.scratch import ScratchSettings, make_base

    say("making the model")
    texts = sample_prompts(None, n=settings.batch * settings.steps + 2, seed=settings.seed)
    sizes = ScratchSettings(
        settings.vocab, settings.layers, settings.width, settings.ffn, settings.heads, 1024, settings.seed
    )
    made = make_base(folder / "base", texts, sizes)
    base = load_base(BaseSettings(str(made), device="cpu"))
    renderer = Renderer(base.tokenizer, base.form)
    prompts = [renderer.prompt(dialogue.messages) for dialogue in tune_job.dialogues_of(texts)][:-2]
    n_tokens = sum(map(len, prompts)) / len(prompts)
    group = Group(
        "PPO",
        f"a Llama of {count_parameters(made) / 1e6:.0f} M weights, {settings.batch} answers of at most "
        f"{settings.max_new_tokens} tokens to prompts of "
        f"{n_tokens:.0f}, {settings.epochs} passes in {settings.n_mini_batches} mini-batches, "
        f"{settings.micro_batch} at a time",
        "answers",
        settings.batch,
    )
    job = {**asdict(settings), "base": str(made), "trl_python": None}
    peaks: dict[str, int] = {}
    for name, algorithm in ((OURS, "ppo"), (GRPO, "grpo")):
        say(name)
        batch = settings.batch // settings.group_size if algorithm == "grpo" else settings.batch
        ours = {**job, "texts": texts, "algorithm": algorithm, "batch": batch}
        peaks[name] = _add(group, name, run_in_child(tune_job.train, {"job": ours}, what=name).with_peak)
    for name, copies in PEERS.items():
        if settings.trl_python is None:
            group.add_missing(name, f"{NOT_INSTALLED}: give --trl-python")
            continue
        say(name)
        peer = [str(settings.trl_python), "-P", str(Path(__file__).with_name("trl_peer.py"))]
        found = run_command(peer, {**job, "prompts": prompts, "copies": copies}, name, environment=_MALLOC)
        about["versions"]["trl"] = found["version"]
        peaks[name] = _add(group, name, found)
    if settings.targets:
        for name in PEERS:
            ratio = peaks[OURS] / peaks[name] if name in peaks else None
            group.targets.append(Target(f"peak memory of {OURS} beside {name}", 0.5, ratio, at_least=False))
    return group


def _add(group: Group, name: str, found: dict[str, Any]) -> int:
    note = (
        f"{found['peak_bytes'] / 1e6:,.0f} MB at the peak, {found['loaded_bytes'] / 1e6:,.0f} MB before the first step"
    )
    group.add(
        name,
        Timing.of(found["seconds"]),
        note,
        peak_bytes=found["peak_bytes"],
        loaded_bytes=found["loaded_bytes"],
        seconds=found["seconds"],
    )
    return found["peak_bytes"]
