"""The loop that SFT and the reward model share: steps, evaluations, checkpoints, and what stops it.

A `Task` knows its data, its loss and what it trains; the loop knows when. transformers' Trainer is not used: what is
wanted here (the same bits after a kill, a step's loss over packed rows of several processes, a stop that names the
batch) would override most of it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..errors import ModelError
from .optim import Optimizer, named_optimizer_state, restore_optimizer_state
from .run import Run, seed_step

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """Of one step's passes. loss: as it is logged. n_tokens: that went through the model. ids: of the dialogues, for
    messages."""

    loss: float
    n_tokens: int
    ids: Sequence[str]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What is trained. parameters: by name, all that changes. n_steps: of the whole run. start_serves: whether what it
    begins with is worth keeping where nothing is better.
    """

    parameters: dict[str, torch.nn.Parameter]
    n_steps: int
    start_serves: bool

    def backward(self, step: int) -> Outcome:
        """Add the step's gradients to the parameters, summed over processes."""

    def evaluate(self) -> Mapping[str, float]:
        """Figures of held-out dialogues; empty where there are none."""

    def is_better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether these figures make a better model than those."""


@dataclass(frozen=True)
class LoopSettings:
    """Steps between checkpoints and between evaluations (one comes at the end in any case), and the seed of all that is
    drawn."""

    save_every: int = 100
    eval_every: int = 100
    seed: int = 0


def train(
    run: Run, task: Task, optimizer: Optimizer, settings: LoopSettings, progress: Progress = lambda *_: None
) -> Mapping[str, float]:
    """Train to the end, from the newest checkpoint on; leaves the best evaluated parameters in place and returns their
    figures.

    Raises ModelError where a loss, a held-out figure or a parameter is not finite; nothing of that is saved.
    """
    start, best, best_step = _restore(run, task, optimizer)
    seconds, n_tokens = time.monotonic(), 0
    if start == 0 and not best and (figures := dict(task.evaluate())):
        run.log(0, **figures)
        _require_finite(run, figures, task, 0)
        if task.start_serves:
            best = figures
            run.save(0, _state(task, optimizer), is_best=True, best=best, best_step=0)
    for step in range(start, task.n_steps):
        seed_step(settings.seed, step, run.group.rank)
        outcome = task.backward(step)
        norm = optimizer.step(step) if math.isfinite(outcome.loss) else math.nan
        n_tokens += outcome.n_tokens
        done = step + 1
        if not (math.isfinite(outcome.loss) and math.isfinite(norm)):
            optimizer.clear()
            run.finish(f"stopped: the loss of step {done} is not finite")
            shown = ", ".join(outcome.ids[:8]) + (" …" if len(outcome.ids) > 8 else "")
            raise ModelError(
                f"expected a finite loss, found {outcome.loss} (gradient norm {norm}) in step {done}; stopped; what "
                "was saved "
                f"before is in {run.folder}/checkpoints. The batch: {shown}. Look at these dialogues, or begin again "
                "(--fresh) with a smaller learning rate"
            )
        now = time.monotonic()
        run.log(
            done,
            loss=outcome.loss,
            grad_norm=norm,
            lr=optimizer.parts[0].param_groups[0]["lr"],
            tokens_per_s=n_tokens / max(now - seconds, 1e-9),
            **outcome.metrics,
        )
        progress(done, task.n_steps, f"loss {outcome.loss:.3f}")
        is_best = False
        if done % settings.eval_every == 0 or done == task.n_steps:
            figures = dict(task.evaluate())
            if figures:
                run.log(done, **figures)
                _require_finite(run, figures, task, done)
                is_best = not best or task.is_better(figures, best)
            if is_best:
                best, best_step = figures, done
            seconds, n_tokens = time.monotonic(), 0  # an evaluation is not training
        if done % settings.save_every == 0 or done == task.n_steps or is_best:
            run.save(done, _state(task, optimizer), is_best=is_best, best=best, best_step=best_step)
    _require_finite(run, {}, task, task.n_steps)
    if best and best_step != task.n_steps and (checkpoint := run.best()) is not None:
        _load(task, checkpoint.tensors)
    return {**best, "best_step": best_step if best else task.n_steps}


def _require_finite(run: Run, figures: Mapping[str, float], task: Task, step: int) -> None:
    """Raises ModelError where training has diverged: such parameters are neither saved nor given out."""
    if all(map(math.isfinite, figures.values())) and all(
        bool(torch.isfinite(p).all()) for p in task.parameters.values()
    ):
        return
    run.finish(f"stopped: diverged by step {step}")
    raise diverged(run, step)


def diverged(run: Run, step: int) -> ModelError:
    """What is told of a training that has: its newest parameters are not saved."""
    return ModelError(
        f"expected finite parameters and figures after step {step}, found others: training has diverged; what was "
        "saved before is in "
        f"{run.folder}/checkpoints. Begin again (--fresh) with a smaller learning rate"
    )


def _state(task: Task, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    return {**task.parameters, **named_optimizer_state(optimizer.parts, optimizer.names)}


@torch.no_grad()
def _load(task: Task, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in task.parameters.items():
        parameter.copy_(tensors[name])


def _restore(run: Run, task: Task, optimizer: Optimizer) -> tuple[int, dict[str, float], int]:
    checkpoint = run.latest()
    if checkpoint is None:
        return 0, {}, 0
    _load(task, checkpoint.tensors)
    restore_optimizer_state(optimizer.parts, optimizer.names, checkpoint.tensors)
    best, best_step = checkpoint.state["best"], checkpoint.state["best_step"]
    marked = run.best()
    if best and best_step != checkpoint.step and (marked is None or marked.step != best_step):  # somebody removed it
        best, best_step = {}, 0
    if (
        best and best_step == checkpoint.step and (marked is None or marked.step != checkpoint.step)
    ):  # killed before it was marked
        run.save(checkpoint.step, _state(task, optimizer), is_best=True, best=best, best_step=best_step)
    return checkpoint.step, best, best_step
