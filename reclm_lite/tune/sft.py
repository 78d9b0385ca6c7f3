"""Supervised fine-tuning on two-round dialogues: loss on both answers, none on the questions.

    loss = sum_t w_t · -log p(x_t | x_<t) / sum_t w_t      w_t = 1 on tokens of answers (and what ends them), 0
    elsewhere

The sums run over all dialogues of a step, whatever passes or processes they were cut into. `batches.Weights` may raise
w of second-round answers (Yes and No are two tokens beside the forty of a profile) and of tokens where a phrase begins
or ends.

Held-out dialogues give the loss that chooses the best step, and `accuracy`: how often Yes or No is told right when the
profile of the first round is the teacher's. Paper: RecLM, arXiv 2412.19302, section 3.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..dialogue.records import PARTS, SFT, Dialogue, read_dialogues
from ..errors import InputError
from ..files import file_sha256
from ..prompts.forms import NO, YES
from .adapters import LoraSettings, add_adapter, parameters, save_adapter, use
from .base import Base, keeps_apart
from .batches import Example, Micro, Weights, micro_batches, render, spread, step_indices, steps_per_epoch
from .loop import LoopSettings, Outcome, Progress, train
from .losses import weighted_cross_entropy
from .memory import require_longest
from .optim import Optimizer, OptimizerSettings
from .parallel import Group
from .rendering import Renderer
from .stage import open_run

STAGE, ADAPTER = "sft", "sft"


@dataclass(frozen=True)
class SftSettings:
    """epochs: passes over the training dialogues (may be a fraction); max_steps: an earlier end. batch: dialogues per
    step, over all processes.

    max_length: the most tokens of a dialogue; longer ones are left out and counted. pass_tokens: tokens of one forward
    pass, which decides the memory. packing: several dialogues in one row (None: on a GPU, if the base can keep them
    apart). rounds: 1 leaves the second round out. full: train all weights instead of LoRA. n_eval: held-out dialogues
    to measure with.
    """

    epochs: float = 3.0
    max_steps: int | None = None
    batch: int = 32
    max_length: int = 1024
    pass_tokens: int = 2048
    packing: bool | None = None
    rounds: int = 2
    weights: Weights = Weights()
    full: bool = False
    n_eval: int = 256
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    loop: LoopSettings = LoopSettings()

    def check(self) -> None:
        """Raises InputError if a setting is invalid."""
        self.optimizer.check()
        if self.rounds not in (1, 2):
            raise InputError(f"expected 1 or 2 rounds, found {self.rounds}")
        if self.epochs <= 0 or self.batch < 1 or self.weights.label < 0 or self.weights.phrase <= 0:
            raise InputError(
                f"expected epochs, weights and a batch above 0, found {self.epochs}, {self.weights} and {self.batch}"
            )


def read(path: Path, part: str, rounds: int = 2) -> list[Dialogue]:
    """The dialogues of a part, with as many rounds as asked for."""
    found = list(read_dialogues(path, SFT, part=part))
    return [replace(d, messages=d.messages[: 2 * rounds]) for d in found]


class SftTask:
    """A `loop.Task`. Answers' logits alone are computed."""

    start_serves = True

    def __init__(
        self,
        base: Base,
        adapter: str | None,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        settings: SftSettings,
        group: Group,
    ):
        self.base, self.adapter, self.examples, self.held_out, self.settings, self.group = (
            base,
            adapter,
            examples,
            held_out,
            settings,
            group,
        )
        whole = dict(sorted(base.causal.named_parameters()))
        self.parameters = whole if adapter is None else parameters(base, adapter)
        if adapter is None:
            self.parameters = {name: p for name, p in whole.items() if p.requires_grad}
        n = round(settings.epochs * steps_per_epoch(len(examples), settings.batch))
        self.n_steps = max(1, n if settings.max_steps is None else min(n, settings.max_steps))
        renderer = Renderer(base.tokenizer, base.form)
        self._yes, self._no = renderer.answer(YES)[0], renderer.answer(NO)[0]
        self.packing = (
            base.device.type == "cuda" and keeps_apart(base) if settings.packing is None else settings.packing
        )

    def backward(self, step: int) -> Outcome:
        chosen = step_indices(len(self.examples), self.settings.batch, self.settings.loop.seed, step)
        whole = [self.examples[i] for i in chosen]
        mine = self.group.share(whole)
        passes = [micro.to(self.base.device) for micro in self._cut(mine)]
        weight = float(self.group.sum(sum((float(m.weights.sum()) for m in passes), 0.0)))
        self.base.model.train()
        total = 0.0
        with use(self.base, self.adapter):
            for micro in passes:
                loss = self._loss(micro)[0] / weight
                loss.backward()
                total += float(loss.detach())
        self.group.sum_gradients(self.parameters.values())
        return Outcome(float(self.group.sum(total)), sum(len(e.tokens) for e in whole), [e.id for e in whole])

    def _cut(self, examples: Sequence[Example]) -> list[Micro]:
        return list(
            micro_batches(examples, max_tokens=self.settings.pass_tokens, packing=self.packing, pad_id=self.base.pad_id)
        )

    def _loss(self, micro: Micro) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the weighted losses, and float32 (n, vocabulary) logits of the places that have weight."""
        hidden = self.base.hidden(micro.ids, micro.mask, micro.positions)
        counted = micro.weights > 0
        logits = self.base.logits(hidden[counted])
        return weighted_cross_entropy(logits, micro.targets[counted], micro.weights[counted]), logits

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """`eval/loss`; and, where there are second rounds, `eval/accuracy` beside what the commoner answer alone would
        have."""
        if not self.held_out:
            return {}
        self.base.model.eval()
        sums = torch.zeros(5, dtype=torch.float64)  # loss, weight, second rounds, right ones, those whose answer is Yes
        with use(self.base, self.adapter):
            for micro in self._cut(self.group.share(self.held_out)):
                micro = micro.to(self.base.device)
                loss, logits = self._loss(micro)
                label = micro.is_label[micro.weights > 0]
                truth = micro.targets[micro.weights > 0][label] == self._yes
                said = logits[label][:, self._yes] > logits[label][:, self._no]
                sums += torch.tensor(
                    [float(loss), float(micro.weights.sum()), len(truth), int((truth == said).sum()), int(truth.sum())],
                    dtype=torch.float64,
                )
        self.base.model.train()
        loss, weight, n, right, yes = self.group.sum(sums).tolist()
        figures = {"eval/loss": loss / max(weight, 1e-9)}
        if n:
            figures |= {"eval/accuracy": right / n, "eval/majority": max(yes, n - yes) / n, "eval/n_second_rounds": n}
        return figures

    def is_better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        return new["eval/loss"] < old["eval/loss"]


def train_sft(
    base: Base,
    dialogues: Path,
    out: Path,
    settings: SftSettings = SftSettings(),
    *,
    init_from: Path | None = None,
    group: Group | None = None,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Tune `base` on a file of dialogues; writes `out/adapter` (LoRA) or `out/model` (full) and returns the run's
    facts.

    init_from: an adapter to go on from. The same call again goes on where a kill left it, or, when all is done, does
    nothing. Raises InputError on unusable dialogues, folders or settings; ModelError where a loss is not finite.
    """
    settings.check()
    group = group or Group()
    if settings.full and init_from is not None:
        raise InputError(
            "expected LoRA to go on from an adapter, found --full; merge the adapter with `reclm export`, or leave "
            "out --full"
        )
    if settings.packing and not keeps_apart(base):
        raise InputError(
            f"expected a base that keeps packed dialogues apart, found one of type {base.causal.config.model_type}, "
            "whose dialogues would see one another; give --no-packing"
        )
    renderer = Renderer(base.tokenizer, base.form)
    by_part = {part: read(dialogues, part, settings.rounds) for part in PARTS}
    max_length = min(settings.max_length, base.n_ctx)
    examples, n_long = render(by_part["train"], renderer, max_length, settings.weights)
    if not examples:
        raise InputError(
            f"expected dialogues of part 'train' in {dialogues}, found none; build them with fewer held out"
        )
    held_out, _ = render(spread(by_part["held_out"], settings.n_eval), renderer, max_length)
    if (
        longest := max(len(e.tokens) for e in (*examples, *held_out))
    ) > settings.pass_tokens:  # then it has a pass of its own
        require_longest(base, longest, "a smaller --max-length", lora_r=settings.lora.r, pass_tokens=longest)
    with open_run(STAGE, base, dialogues, out, settings, init_from=init_from, group=group, fresh=fresh) as run:
        if run.is_done:
            return {**run.about["facts"], "already_done": True}
        torch.manual_seed(settings.loop.seed)
        name = None if settings.full else ADAPTER
        if name:
            add_adapter(base, name, settings.lora, load=init_from)
        task = SftTask(base, name, examples, held_out, settings, group)
        best = train(run, task, Optimizer(task.parameters, settings.optimizer, task.n_steps), settings.loop, progress)
        facts = {
            "n_dialogues": len(examples),
            "n_left_out_long": n_long,
            "n_held_out": len(held_out),
            "n_steps": task.n_steps,
            "n_parameters": sum(p.numel() for p in task.parameters.values()),
            **best,
        }
        if name:
            run.publish(
                "adapter",
                lambda folder: save_adapter(base, name, folder, stage=STAGE, dialogues_sha256=file_sha256(dialogues)),
            )
        else:
            run.publish("model", lambda folder: save_model(base, folder))
        run.finish(facts=facts)
        group.barrier()
        return facts


def save_model(base: Base, folder: Path) -> None:
    """All weights and the tokenizer as transformers saves them."""
    base.causal.config.use_cache = True
    base.causal.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    base.causal.config.use_cache = False
