"""The optimizers and learning rates of SFT and the reward model, chosen by name.

AdamW is torch's own. Muon is not: torch's orthogonalizes in bfloat16, which took 11 s a step on a CPU without bfloat16
arithmetic (4.5 million weights), and 0.4 s in float32.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError

NAMES = ("adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class OptimizerSettings:
    """optimizer: "adamw", or "muon" for the layers' matrices and AdamW for the rest, which suits training all weights
    from scratch. lr: of AdamW; lr_muon: of Muon.

    warmup: share of the steps in which the rate rises. schedule: the rate afterwards, "constant", or falling to zero as
    "linear" or "cosine". decay: the last share of the steps, in which it falls. max_grad_norm: the norm that gradients
    are scaled down to.
    """

    lr: float = 2e-4
    optimizer: str = "adamw"
    lr_muon: float = 0.02
    weight_decay: float = 0.0
    warmup: float = 0.03
    schedule: str = "cosine"
    decay: float = 1.0
    max_grad_norm: float = 1.0

    def check(self) -> None:
        """Raises InputError if a setting is invalid."""
        if self.optimizer not in NAMES:
            raise InputError(f"expected an optimizer among {', '.join(NAMES)}, found {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"expected a schedule among {', '.join(SCHEDULES)}, found {self.schedule!r}")
        for name in ("lr", "lr_muon", "max_grad_norm", "decay"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} above 0, found {getattr(self, name)}")
        if not 0 <= self.warmup < 1 or self.decay > 1:
            raise InputError(
                f"expected warmup from 0 to below 1 and decay of at most 1, found {self.warmup} and {self.decay}"
            )


def orthogonalised(update: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: five Newton-Schulz steps of a quintic, in the dtype of
    `update`."""
    x = update / (update.norm() + 1e-7)
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if flipped else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for matrices: https://kellerjordan.github.io/posts/muon/.

    m <- 0.95 m + 0.05 g;   W <- (1 - 0.01 lr) W - lr sqrt(max(1, rows / columns)) orthogonalised(0.05 g + 0.95 m)
    """

    def __init__(
        self, params: Sequence[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Change every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                average = state.setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(average, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


class Optimizer:
    """One or two optimizers as one. `parameters`: by name; only these are changed."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], settings: OptimizerSettings, n_steps: int):
        settings.check()
        self.parameters, self.settings, self.n_steps = dict(parameters), settings, n_steps
        self.names = {p: name for name, p in self.parameters.items()}
        matrices = (
            [p for name, p in self.parameters.items() if _is_matrix(name, p)] if settings.optimizer == "muon" else []
        )
        theirs = set(map(id, matrices))
        rest = [p for p in self.parameters.values() if id(p) not in theirs]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=settings.lr_muon, weight_decay=0.01))
        if rest:
            self.parts.append(
                torch.optim.AdamW(
                    rest, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.98 if matrices else 0.999)
                )
            )
        self._rates = [part.param_groups[0]["lr"] for part in self.parts]

    def scale(self, step: int) -> float:
        """What the learning rates are multiplied by in step `step` (from 0)."""
        settings, n = self.settings, self.n_steps
        up = min(1.0, (step + 1) / max(1.0, settings.warmup * n))
        left = min(1.0, (n - step) / max(1.0, settings.decay * n))
        down = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[settings.schedule]
        return min(up, down)

    def step(self, step: int) -> float:
        """Change the parameters by their gradients, which are cleared; returns the gradients' norm before it was cut.

        Where it is not finite, nothing is changed.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm))
        if math.isfinite(norm):
            for part, rate in zip(self.parts, self._rates, strict=True):
                for group in part.param_groups:
                    group["lr"] = rate * self.scale(step)
                part.step()
        self.clear()
        return norm

    def clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Of a layer; rows of embeddings (GPT-2's are wte and wpe) and of the output layer stand for tokens, each for
    itself."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte.", "wpe."))


def named_optimizer_state(
    optimizers: Iterable[torch.optim.Optimizer], names: Mapping[torch.nn.Parameter, str]
) -> dict[str, torch.Tensor]:
    """What optimizers remember of each parameter, as tensors by name."""
    found = {}
    for n, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                found[f"optimizer{n}/{key}/{names[parameter]}"] = (
                    value if torch.is_tensor(value) else torch.tensor(value)
                )
    return found


def restore_optimizer_state(
    optimizers: Iterable[torch.optim.Optimizer],
    names: Mapping[torch.nn.Parameter, str],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """The inverse of `named_optimizer_state`."""
    for n, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                ending = f"/{names[parameter]}"
                for name, value in tensors.items():
                    if name.startswith(f"optimizer{n}/") and name.endswith(ending):
                        key = name[len(f"optimizer{n}/") : -len(ending)]
                        if "/" in key:
                            continue
                        place = "cpu" if key == "step" else parameter.device
                        optimizer.state[parameter][key] = value.to(place, copy=True)
