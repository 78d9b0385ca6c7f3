"""What a file of each type is held to, and why.

Rounding adds noise to the weights and, in llama.cpp's products, to the activations. How much of it reaches the logits
is the model's own property: `sensitivity`, the relative logit error for a given relative noise in every matrix,
measured on the float32 reference itself. So the logit error to expect is sensitivity * noise, and the bound is SLACK
times that. From it follow, for logits of standard deviation s in a position:

    mean KL      <= 2 * (r * s)^2 / 2        second order of KL for independent errors of variance (r * s)^2
    mean cosine  >= 1 - r^2 / 2
    min cosine   >= 1 - (TAIL * r)^2 / 2     errors of single positions are up to twelve times the mean, as measured
    top-1        >= the share of positions whose best token leads by more than such errors, less three standard errors

A model that noise destroys would make these empty, so they are capped: r <= 1, and the mean KL at half of what the
reference's own distributions have between positions that have nothing to do with each other.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from reclm_lite.convert.parity.divergence import Divergence, Stored, kl_of_strangers

SLACK = 3.0
TAIL = 20.0
# Of float32 files: no noise in the weights, but sums in another order, which a position where two places tie for a
# sharp head's attention makes much of (70 times the expected error in a model that copies; 1 - cosine of 1e-6).
TAIL_OF_SUMS = 40.0
# Where no reference model can be perturbed: the highest that random models have shown is 16, trained ones 3 to 11.
UNKNOWN_SENSITIVITY = 20.0
NOISE = 0.005  # put into the reference to measure its sensitivity: about that of q8_0
MAX_RELATIVE_ERROR = 1.0

# Relative root-mean-square rounding of weights and activations together, by the type of an unquantized file. Of float32
# files it is that of
# sums: 2e-6 in most models, up to 7e-6 where sharp heads copy; what is wrongly converted is off by a hundred times
# that.
UNQUANTIZED_NOISE = {"f32": 1e-5, "f16": 3e-4, "bf16": 2.4e-3}
# llama.cpp looks GELU up in a table of float16, whatever the weights are.
GELU_NOISE = 3e-4
# llama.cpp rounds activations to 8 bits by blocks of 32 or 256 wherever weights are quantized.
ACTIVATION_NOISE = 0.0055

# GGML type -> the largest relative RMS rounding error of (a tensor, one of its rows). Twice the worst of Gaussian,
# Student-t (3 degrees) and trained weights, with an importance matrix and without, but below 1 for a tensor. Two
# unrelated tensors of one scale differ by 1.41, and one that was lost by 1; single rows of two bits and less come near
# that.
ROUNDING = {
    "F32": (1e-6, 1e-6),
    "F16": (5e-4, 1e-3),
    "BF16": (2.4e-3, 4e-3),  # cutting bits off instead gives 3.1e-3
    "Q8_0": (0.02, 0.03),
    "Q6_K": (0.055, 0.085),
    "Q5_K": (0.10, 0.14),
    "Q5_1": (0.10, 0.14),
    "Q5_0": (0.14, 0.20),
    "Q4_K": (0.20, 0.26),
    "Q4_1": (0.21, 0.31),
    "IQ4_NL": (0.21, 0.30),
    "IQ4_XS": (0.21, 0.30),
    "Q4_0": (0.27, 0.38),
    "Q3_K": (0.40, 0.50),
    "IQ3_S": (0.55, 0.80),
    "IQ3_XXS": (0.60, 0.85),
    "Q2_K": (0.70, 0.95),
    "IQ2_S": (0.75, 1.20),
    "IQ2_XS": (0.80, 1.20),
    "IQ2_XXS": (0.90, 1.20),
    "IQ1_M": (0.95, 1.20),
    "IQ1_S": (0.95, 1.20),
}


@dataclass(frozen=True)
class Bounds:
    """What the logits of one file are held to; see the module's text."""

    relative_error: float
    mean_kl: float
    mean_cosine: float
    min_cosine: float
    top1_agreement: float

    def as_dict(self) -> dict[str, float]:
        return {name: float(f"{value:.6g}") for name, value in vars(self).items()}

    def broken(self, found: Divergence) -> list[str]:
        """Sentences about what is out of bounds."""
        problems = []
        for name, words, at_most in (
            ("relative_error", "a relative logit error", True),
            ("mean_kl", "a mean KL divergence (nats)", True),
            ("mean_cosine", "a mean cosine of logits", False),
            ("min_cosine", "a smallest cosine of logits", False),
            ("top1_agreement", "a top-1 agreement", False),
        ):
            value, bound = getattr(found, name), getattr(self, name)
            if not (value <= bound if at_most else value >= bound):
                problems.append(
                    f"expected {words} of at {'most' if at_most else 'least'} {bound:.6g}, found {value:.6g}"
                )
        return problems


def logit_bounds(noise: float, sensitivity: float | None, stored: Stored, found: Divergence) -> Bounds:
    """Bounds for a file whose weights and activations carry `noise` (relative RMS)."""
    scale = UNKNOWN_SENSITIVITY if sensitivity is None else sensitivity
    r = min(SLACK * scale * noise, MAX_RELATIVE_ERROR)
    tail = TAIL_OF_SUMS if noise <= UNQUANTIZED_NOISE["f32"] else TAIL
    return Bounds(
        relative_error=r,
        mean_kl=min((r * found.spread) ** 2, kl_of_strangers(stored) / 2),
        mean_cosine=1 - r**2 / 2,
        min_cosine=max(-1.0, 1 - (tail * r) ** 2 / 2),
        top1_agreement=_least_agreement(stored, r * found.spread),
    )


def _least_agreement(stored: Stored, error: float) -> float:
    """The share of positions whose most likely token must stay, were each logit off by a normal error of `error`."""
    shares = []
    for logits in stored.top_logits:
        gaps = (logits[:, :1] - logits[:, 1:]).astype(np.float64)
        overtaken = np.vectorize(math.erfc)(gaps / (2 * error)) / 2  # the difference of two errors
        shares.append(np.maximum(0.0, 1 - overtaken.sum(axis=1)))
    joined = np.concatenate(shares)
    least = float(joined.mean()) - 3 * math.sqrt(float((joined * (1 - joined)).mean()) / len(joined)) - 2 / len(joined)
    return max(0.0, least)


def near_ties(found: Divergence, bounds: Bounds) -> list[np.ndarray]:
    """The lead (in logits) below which rounding may turn two tokens round in each wanted position.

    Six standard deviations of such a lead: four would be met by chance among the 1,500 positions of greedy text and
    their few best tokens. The error is that of the position itself, as errors differ by an order of magnitude between
    positions, up to what the bound on the smallest cosine allows; the file's own mean where none was measured.
    """
    mean = found.spread * min(found.relative_error, bounds.relative_error)
    most = TAIL * bounds.relative_error * found.spread
    return [
        6 * math.sqrt(2) * np.where(np.isnan(own), mean, np.clip(own, min(mean, most), most)) for own in found.errors
    ]


def describe(sensitivity: float | None) -> dict[str, Any]:
    """How the bounds were scaled, for the verdict."""
    measured = sensitivity is not None
    return {
        "sensitivity": sensitivity if measured else UNKNOWN_SENSITIVITY,
        "sensitivity_measured": measured,
        "slack": SLACK,
    }
