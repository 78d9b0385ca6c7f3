"""What an answer is worth: the parts that the reward of PPO is mixed of.

A signal is a plain callable, `signal(dialogues, answers) -> float32 (n,)`, one number for each answer beside its
dialogue; any function of that form can be one. Those here: the reward model's score, whether the profile parses, and
how well its vector ranks items of the dialogue that its prompt did not show. An answer that was cut off reaches a
signal as an empty text. `PARTS` is the registry that `reclm tune ppo --weight` and its help are made from: a new part
is a signal here and a row there. This module loads no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..dialogue.records import Dialogue, Message
from ..errors import InputError, ProfileFormatError
from ..prompts.answer import format_profile, parse_profile

Signal = Callable[[Sequence[Dialogue], Sequence[str]], np.ndarray]
MODEL, PARSE, RANK = "model", "parse", "rank"
_LEAST_STD = 1e-6  # of float32 rewards: below it they are all the same


class Scorer(Protocol):
    """What `ModelScore` asks of a reward model (reward_model.RewardModel)."""

    def scores(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, pass_tokens: int) -> list[float]:
        """One number for each answer to its prompt."""
        ...


class Encoder(Protocol):
    """What `Rank` asks of a text encoder."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Normalized vectors, float32 (n_texts, dim)."""
        ...


def parses(dialogues: Sequence[Dialogue], answers: Sequence[str]) -> np.ndarray:
    """1 where an answer is a profile of the published form, else 0."""
    return np.array([_profile_text(answer) is not None for answer in answers], dtype=np.float32)


class ModelScore:
    """The reward model's score, which has no unit of its own (see `Mixture.normalize`). pass_tokens: in one pass of the
    model."""

    def __init__(self, reward: Scorer, pass_tokens: int = 1024):
        self.reward, self.pass_tokens = reward, pass_tokens

    def __call__(self, dialogues: Sequence[Dialogue], answers: Sequence[str]) -> np.ndarray:
        scores = self.reward.scores(
            [dialogue.messages for dialogue in dialogues], answers, pass_tokens=self.pass_tokens
        )
        return np.array(scores, dtype=np.float32)


class Rank:
    """The share of pairs (an item the person took, one the person never touched) that the profile's vector ranks right.

    A tie is half a pair, so that a vector that says nothing gets 0.5; an answer that is no profile gets 0. Both lists
    are those of the dialogue, from training interactions that its prompt does not show. Raises InputError for a
    dialogue that lacks either.

    Items' vectors are kept. An item is encoded alone: in company its vector would depend, in the last bits, on which
    others happened to be new, and a run that was resumed would part from one that was not.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._items: dict[str, np.ndarray] = {}

    def __call__(self, dialogues: Sequence[Dialogue], answers: Sequence[str]) -> np.ndarray:
        texts = [_profile_text(answer) for answer in answers]
        vectors = self.encoder.encode([text or "" for text in texts])
        found = np.zeros(len(answers), dtype=np.float32)
        for row, (dialogue, text) in enumerate(zip(dialogues, texts)):
            if not dialogue.positives or not dialogue.negatives:
                raise InputError(
                    f"expected items taken and items never touched in dialogue {dialogue.id!r} for the part {RANK!r} "
                    "of the reward, "
                    "found none; make the dialogues anew with `reclm dialogue build rl`, or leave that part out"
                )
            if text is not None:
                taken, untouched = (
                    self._scores(vectors[row], items) for items in (dialogue.positives, dialogue.negatives)
                )
                gaps = taken[:, None] - untouched[None, :]
                found[row] = ((gaps > 0) + 0.5 * (gaps == 0)).mean()
        return found

    def _scores(self, vector: np.ndarray, items: Sequence[str]) -> np.ndarray:
        for item in items:
            if item not in self._items:
                self._items[item] = self.encoder.encode([item])[0]
        # float32 products of few hundred terms; rounded, so that equal texts tie whatever the order of summation
        return np.round(np.stack([self._items[item] for item in items]) @ vector, 6)


@dataclass(frozen=True)
class Part:
    """A row of the registry: a part of the reward that `reclm tune ppo --weight` can name.

    help: a few words for the help page, may be empty. make: returns the signal; called with what `needs` names.
    needs: REWARD_MODEL (a `Scorer`), ENCODER (an `Encoder`), or empty for a signal that needs nothing.
    """

    name: str
    help: str
    make: Callable[..., Signal]
    needs: str = ""


REWARD_MODEL, ENCODER = "reward model", "encoder"
PARTS = {
    part.name: part
    for part in (
        Part(MODEL, "", ModelScore, REWARD_MODEL),
        Part(PARSE, "is it a profile", lambda: parses),
        Part(RANK, "does it rank hidden training items above others", Rank, ENCODER),
    )
}


def ask(signals: Mapping[str, Signal], dialogues: Sequence[Dialogue], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Every signal's numbers, float32 (n,) by name. Raises InputError where one gives another shape or what is not
    finite."""
    found = {}
    for name, signal in signals.items():
        values = np.asarray(signal(dialogues, answers), dtype=np.float32)
        if values.shape != (len(answers),):
            raise InputError(
                f"expected {len(answers)} numbers from the part {name!r} of the reward, found shape {values.shape}; "
                "one for each answer"
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(
                f"expected finite numbers from the part {name!r} of the reward, found {values[row]} for the answer "
                f"{answers[row][:60]!r} to dialogue {dialogues[row].id!r}; fix that signal, or leave it out"
            )
        found[name] = values
    return found


@dataclass
class Mixture:
    """The reward: a weighted sum of parts, in units that answers of the SFT policy set.

        total = sum_k w_k part_k - penalty (1 - ended)        reward = (total - mean) / std of the SFT policy's totals

    A part named in `normalize` (the reward model's score has no unit of its own) becomes (part - mean) / std of the SFT
    policy's answers before it is weighted. `fit` measures both once, at the start; they stay as they are, or the reward
    of a step could not be compared with that of another.
    """

    signals: Mapping[str, Signal]
    weights: Mapping[str, float]
    unfinished_penalty: float = 1.0
    normalize: tuple[str, ...] = (MODEL,)
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights or set(self.weights) - set(self.signals):
            missing = ", ".join(sorted(set(self.weights) - set(self.signals))) or "no part at all"
            have = ", ".join(sorted(self.signals)) or "none"
            raise InputError(
                f"expected weights of parts of the reward that are there ({have}), found {missing}; give a reward "
                "model, or other weights"
            )

    def parts(self, dialogues: Sequence[Dialogue], answers: Sequence[str]) -> dict[str, np.ndarray]:
        """The parts that have a weight, float32 (n,) by name, normalized where they are to be."""
        found = ask({name: self.signals[name] for name in sorted(self.weights)}, dialogues, answers)
        for name in set(found) & set(self.normalize) & set(self.scales):
            mean, std = self.scales[name]
            found[name] = ((found[name] - mean) / std).astype(np.float32)
        return found

    def total(self, parts: Mapping[str, np.ndarray], ended: np.ndarray) -> np.ndarray:
        """The weighted sum: float32 (n,). ended: bool (n,)."""
        total = sum(self.weights[name] * parts[name].astype(np.float64) for name in sorted(self.weights))
        return np.asarray(total - self.unfinished_penalty * ~ended, dtype=np.float32)

    def reward(self, total: np.ndarray) -> np.ndarray:
        """Totals in standard deviations of the SFT policy's, from its mean: float32 (n,)."""
        mean, std = self.scales["total"]
        return ((total - mean) / std).astype(np.float32)

    def fit(self, parts: Mapping[str, np.ndarray], ended: np.ndarray) -> bool:
        """Set the scales by parts of the SFT policy's answers as the signals gave them. Returns whether their rewards
        differ."""
        self.scales = {name: _scale(values) for name, values in parts.items() if name in self.normalize}
        scaled = {
            name: (values - self.scales[name][0]) / self.scales[name][1] if name in self.scales else values
            for name, values in parts.items()
        }
        total = self.total(scaled, ended)
        self.scales["total"] = _scale(total)
        return _std(total) > _LEAST_STD

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint."""
        return {name: list(scale) for name, scale in self.scales.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """The inverse of `state`."""
        self.scales = {name: (float(mean), float(std)) for name, (mean, std) in state.items()}


def _scale(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; 1 for the latter where all are equal, for then there is no unit."""
    std = _std(values)
    return float(np.mean(values.astype(np.float64))), std if std > _LEAST_STD else 1.0


def _std(values: np.ndarray) -> float:
    return float(np.std(values.astype(np.float64)))


def _profile_text(answer: str) -> str | None:
    """The profile as it is stored and embedded, or None where the answer is none."""
    try:
        return format_profile(parse_profile(answer))
    except ProfileFormatError:
        return None
