"""The reward model's training: of two profiles of one person, the good one must score above the corrupted one.

    loss = mean over pairs of -log sigmoid(score(chosen) - score(rejected))

Held-out pairs give the accuracy, in all and for every kind of corruption; the least of these chooses the best step, for
a policy will find whatever the reward model overlooks. Paper: RecLM, arXiv 2412.19302, section 3.4; Ouyang et al.,
arXiv 2203.02155.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..dialogue.records import PARTS, PREFERENCE, Dialogue, read_dialogues
from ..errors import InputError
from ..files import file_sha256
from .adapters import LoraSettings
from .base import Base
from .batches import by_length, check_form, pad_right, spread, step_indices, steps_per_epoch
from .loop import LoopSettings, Outcome, Progress, train
from .losses import ranking_loss
from .memory import require_longest
from .optim import Optimizer, OptimizerSettings
from .parallel import Group
from .rendering import Renderer
from .reward_model import STAGE, RewardModel, ids_of
from .stage import open_run


@dataclass(frozen=True)
class RewardSettings:
    """As in `SftSettings`; batch counts pairs, max_length the tokens of a prompt with one of its answers."""

    epochs: float = 1.0
    max_steps: int | None = None
    batch: int = 32
    max_length: int = 1024
    pass_tokens: int = 4096
    n_eval: int = 512
    lora: LoraSettings = LoraSettings(r=4, alpha=8)
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-4)
    loop: LoopSettings = LoopSettings()

    def check(self) -> None:
        """Raises InputError if a setting is invalid."""
        self.optimizer.check()
        if self.epochs <= 0 or self.batch < 1:
            raise InputError(f"expected epochs above 0 and a batch of at least 1, found {self.epochs} and {self.batch}")


@dataclass(frozen=True)
class Pair:
    """Tokens of prompt and answer, twice."""

    id: str
    corruption: str
    chosen: list[int]
    rejected: list[int]

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


class RewardTask:
    """A `loop.Task`. A head of random numbers is no reward model, however it does on few pairs."""

    start_serves = False

    def __init__(
        self,
        model: RewardModel,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
        settings: RewardSettings,
        group: Group,
    ):
        self.model, self.pairs, self.held_out, self.settings, self.group = model, pairs, held_out, settings, group
        self.parameters = model.parameters
        n = round(settings.epochs * steps_per_epoch(len(pairs), settings.batch))
        self.n_steps = max(1, n if settings.max_steps is None else min(n, settings.max_steps))

    def backward(self, step: int) -> Outcome:
        whole = [
            self.pairs[i] for i in step_indices(len(self.pairs), self.settings.batch, self.settings.loop.seed, step)
        ]
        mine = self.group.share(whole)
        self.model.base.model.train()
        total, right = 0.0, 0
        for chosen in self._passes(mine):
            difference = self._scores(mine, chosen)
            loss = ranking_loss(difference[:, 0], difference[:, 1]) * len(chosen) / len(whole)
            loss.backward()
            total += float(loss.detach())
            right += int((difference[:, 0] > difference[:, 1]).sum())
        self.group.sum_gradients(self.parameters.values())
        loss, n_right = self.group.sum(torch.tensor([total, right], dtype=torch.float64)).tolist()
        n_tokens = sum(len(p.chosen) + len(p.rejected) for p in whole)
        return Outcome(loss, n_tokens, [p.id for p in whole], {"accuracy": n_right / len(whole)})

    def _passes(self, pairs: Sequence[Pair]) -> list[list[int]]:
        return by_length([p.longest for p in pairs], self.settings.pass_tokens // 2)

    def _scores(self, pairs: Sequence[Pair], chosen: Sequence[int]) -> torch.Tensor:
        """float32 (n, 2): of the chosen and the rejected answers, which went through the model together."""
        base = self.model.base
        ids, mask = pad_right(
            [s for i in chosen for s in (pairs[i].chosen, pairs[i].rejected)], base.pad_id, base.device
        )
        return self.model.score(ids, mask).reshape(-1, 2)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """`eval/loss`, `eval/accuracy`, `eval/accuracy/<corruption>` and the least of these. Ties count half."""
        if not self.held_out:
            return {}
        self.model.base.model.eval()
        mine = self.group.share(self.held_out)
        won: list[tuple[str, float, float]] = []
        for chosen in self._passes(mine):
            for i, (good, bad) in zip(chosen, self._scores(mine, chosen).double().tolist(), strict=True):
                loss = float(torch.nn.functional.softplus(torch.tensor(bad - good)))
                won.append((mine[i].corruption, 1.0 if good > bad else 0.5 if good == bad else 0.0, loss))
        self.model.base.model.train()
        kinds: dict[str, list[float]] = defaultdict(list)
        everyone = self.group.gather(won)
        for kind, share, _ in everyone:
            kinds[kind].append(share)
        by_kind = {kind: sum(shares) / len(shares) for kind, shares in sorted(kinds.items())}
        n = len(everyone)
        return {
            "eval/loss": sum(loss for *_, loss in everyone) / n,
            "eval/accuracy": sum(share for _, share, _ in everyone) / n,
            "eval/least_accuracy": min(by_kind.values()),
            **{f"eval/accuracy/{kind}": share for kind, share in by_kind.items()},
        }

    def is_better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        def rank(figures: Mapping[str, float]) -> tuple[float, float]:
            return figures["eval/least_accuracy"], -figures["eval/loss"]

        return rank(new) > rank(old)


def _pairs(dialogues: Sequence[Dialogue], renderer: Renderer, max_length: int) -> tuple[list[Pair], int]:
    found, n_long = [], 0
    for d in dialogues:
        check_form(d, renderer)
        pair = Pair(
            d.id, d.corruption, ids_of(renderer, d.messages, d.chosen), ids_of(renderer, d.messages, d.rejected)
        )
        if pair.longest > max_length:
            n_long += 1
        else:
            found.append(pair)
    if not found and n_long:
        raise InputError(
            f"expected pairs of at most {max_length} tokens, found {n_long}, all longer; build them shorter, or give "
            "a larger --max-length, up to the base's context"
        )
    return found, n_long


def train_reward(
    base: Base,
    dialogues: Path,
    out: Path,
    settings: RewardSettings = RewardSettings(),
    *,
    init_from: Path | None = None,
    group: Group | None = None,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Train a reward model on a file of preference pairs; writes `out/adapter` with its head and returns the run's
    facts.

    init_from: an adapter (that of SFT) to begin with. Resumes and raises as `sft.train_sft` does.
    """
    settings.check()
    group = group or Group()
    renderer = Renderer(base.tokenizer, base.form)
    parts = {part: list(read_dialogues(dialogues, PREFERENCE, part=part)) for part in PARTS}
    max_length = min(settings.max_length, base.n_ctx)
    pairs, n_long = _pairs(parts["train"], renderer, max_length)
    held_out, _ = _pairs(spread(parts["held_out"], settings.n_eval), renderer, max_length)
    if not pairs:
        raise InputError(f"expected pairs of part 'train' in {dialogues}, found none; build them with fewer held out")
    if (
        longest := max(pair.longest for pair in (*pairs, *held_out))
    ) > settings.pass_tokens // 2:  # then it has a pass of its own
        require_longest(
            base, longest, "a smaller --max-length", lora_r=settings.lora.r, pass_tokens=2 * longest, logits=0
        )
    with open_run(STAGE, base, dialogues, out, settings, init_from=init_from, group=group, fresh=fresh) as run:
        if run.is_done:
            return {**run.about["facts"], "already_done": True}
        torch.manual_seed(settings.loop.seed)
        model = RewardModel.new(base, settings.lora, init_from=init_from)
        task = RewardTask(model, pairs, held_out, settings, group)
        best = train(run, task, Optimizer(task.parameters, settings.optimizer, task.n_steps), settings.loop, progress)
        facts = {
            "n_pairs": len(pairs),
            "n_left_out_long": n_long,
            "n_held_out": len(held_out),
            "n_steps": task.n_steps,
            "n_parameters": sum(p.numel() for p in task.parameters.values()),
            **best,
        }
        figures = {k: v for k, v in best.items() if k.startswith("eval/")}
        run.publish("adapter", lambda folder: model.save(folder, dialogues_sha256=file_sha256(dialogues), eval=figures))
        run.finish(facts=facts)
        group.barrier()
        return facts
