"""The settings of PPO and GRPO, and which values they may have."""

from dataclasses import dataclass, field

from ..errors import InputError
from .adapters import LoraSettings
from .rollout import Sampling

PPO, GRPO = "ppo", "grpo"


@dataclass(frozen=True)
class PpoSettings:
    """batch: prompts a step, over all processes. group_size: answers to each prompt, GRPO only. epochs: passes over a
    step's answers, in n_mini_batches each. micro_batch: answers in one pass through the model; it decides the memory.

    lr: of the adapter, falling linearly to 0; value_lr: of the value head. value_gradient: share of the value loss's
    gradient that reaches the adapter. kl_coef, kl_target, kl_rate: losses.AdaptiveKl; KL in nats per answer. The
    rate is ten times the source's, for a run has hundreds of steps, and the coefficient falls to a tenth at most.

    The run stops if KL is over kl_ceiling, or entropy under entropy_floor times the SFT policy's, for `patience` steps
    in a row.
    n_eval: held-out answers that an evaluation draws. weights: of the reward's parts; None for 1 each.
    """

    algorithm: str = PPO
    steps: int = 200
    batch: int = 32
    group_size: int = 4
    epochs: int = 4
    n_mini_batches: int = 2
    micro_batch: int = 4
    lr: float = 1e-5
    value_lr: float = 1e-3
    max_grad_norm: float = 1.0
    clip_range: float = 0.2
    value_clip: float = 0.2
    value_gradient: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_rewards: bool = False
    kl_coef: float = 0.05
    kl_target: float = 6.0
    kl_rate: float = 1.0
    kl_ceiling: float = 20.0
    entropy_floor: float = 0.1
    patience: int = 3
    unfinished_penalty: float = 1.0
    weights: dict[str, float] | None = None
    normalize: tuple[str, ...] = ("model",)
    max_prompt: int = 1024
    n_eval: int = 128
    eval_every: int = 20
    save_every: int = 20
    sample_every: int = 10
    n_samples: int = 4
    seed: int = 0
    lora: LoraSettings = LoraSettings(r=4, alpha=8)
    sampling: Sampling = field(default_factory=Sampling)

    def check(self) -> None:
        """Raises InputError if a setting is invalid."""
        if self.algorithm not in (PPO, GRPO):
            raise InputError(f"expected the algorithm {PPO} or {GRPO}, found {self.algorithm!r}")
        least = {
            "steps": 1,
            "batch": 1,
            "epochs": 1,
            "n_mini_batches": 1,
            "micro_batch": 1,
            "patience": 1,
            "n_eval": 2,
            "eval_every": 1,
            "save_every": 1,
            "sample_every": 1,
        }
        least |= {"group_size": 2} if self.algorithm == GRPO else {}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"expected {name} of at least {bound}, found {getattr(self, name)}")
        for name in ("lr", "value_lr", "clip_range", "value_clip", "kl_target", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} above 0, found {getattr(self, name)}")
        if not (0 < self.sampling.top_p <= 1 and self.sampling.temperature > 0 and self.sampling.max_new_tokens > 0):
            raise InputError(
                "expected top_p above 0 and at most 1, and temperature and max_new_tokens above 0, found "
                f"{self.sampling}"
            )
        if not (0 <= self.gamma <= 1 and 0 <= self.gae_lambda <= 1):
            raise InputError(f"expected gamma and gae_lambda from 0 to 1, found {self.gamma} and {self.gae_lambda}")
        if not self.kl_ceiling > self.kl_target:
            raise InputError(f"expected a KL ceiling above the target of {self.kl_target}, found {self.kl_ceiling}")

    @property
    def n_answers(self) -> int:
        """To each prompt."""
        return self.group_size if self.algorithm == GRPO else 1
