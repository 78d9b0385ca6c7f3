"""The layers of the trained models, each with its hand-derived backward pass.

Plain functions over float32 arrays: `forward` returns the output and what `backward` needs.
Gradients are checked against torch autograd in tests/cf/test_cf_gradients.py. Left out: models and optimizers.
"""

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np

from ..artefacts import checked

Params = dict[str, np.ndarray]
MLP_PARTS = ("w1", "b1", "w2", "b2")


def init_linear(rng: np.random.Generator, n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (n_in, n_out) and bias (n_out,), uniform within 1/sqrt(n_in): torch's default for Linear."""
    bound = 1.0 / np.sqrt(n_in)
    weight = rng.uniform(-bound, bound, (n_in, n_out)).astype(np.float32)
    return weight, rng.uniform(-bound, bound, n_out).astype(np.float32)


def init_table(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """An ID table (n, dim), Xavier uniform."""
    bound = np.sqrt(6.0 / (n + dim))
    return rng.uniform(-bound, bound, (n, dim)).astype(np.float32)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y = x @ weight + bias: (n, n_in) -> (n, n_out)."""
    return x @ weight + bias


@overload
def linear_backward(
    x: np.ndarray, weight: np.ndarray, dy: np.ndarray, *, need_dx: Literal[True] = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
@overload
def linear_backward(
    x: np.ndarray, weight: np.ndarray, dy: np.ndarray, *, need_dx: Literal[False]
) -> tuple[np.ndarray, np.ndarray, None]: ...
def linear_backward(
    x: np.ndarray, weight: np.ndarray, dy: np.ndarray, *, need_dx: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dweight = x.T @ dy, dbias = column sums of dy, dx = dy @ weight.T."""
    return x.T @ dy, dy.sum(axis=0), dy @ weight.T if need_dx else None


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def relu_backward(y: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dx = dy where the output y was positive."""
    return np.where(y > 0, dy, np.float32(0))


def normalize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L2-normalized rows; returns y and the norms (n, 1). Norms below 1e-12 are replaced by 1e-12."""
    length = np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), np.float32(1e-12))
    return x / length, length


def normalize_backward(y: np.ndarray, length: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """dx = (dy - y (y . dy)) / length."""
    return (dy - y * (y * dy).sum(axis=1, keepdims=True)) / length


class TextMLP:
    """text (n, n_in) -> ReLU(linear) -> linear -> (n, dim). Its parameters are the model's `<name>.{w1,b1,w2,b2}`."""

    def __init__(self, name: str, text: np.ndarray):
        self.name, self.text = name, text

    def init(self, rng: np.random.Generator, dim: int, n_hidden: int | None = None) -> Params:
        n_hidden = n_hidden or dim
        w1, b1 = init_linear(rng, self.text.shape[1], n_hidden)
        w2, b2 = init_linear(rng, n_hidden, dim)
        return {f"{self.name}.w1": w1, f"{self.name}.b1": b1, f"{self.name}.w2": w2, f"{self.name}.b2": b2}

    def of_rows(self, rows: np.ndarray | None) -> "TextMLP":
        """The same layers over some rows of the text, or over all (None)."""
        return self if rows is None else TextMLP(self.name, self.text[rows])

    def forward(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """Returns the output (n, dim) and the hidden layer, which `backward` needs."""
        hidden = relu(linear(self.text, params[f"{self.name}.w1"], params[f"{self.name}.b1"]))
        return linear(hidden, params[f"{self.name}.w2"], params[f"{self.name}.b2"]), hidden

    def backward(self, params: Params, hidden: np.ndarray, dy: np.ndarray, grads: dict[str, Any]) -> None:
        """Adds this layer's gradients to `grads`; the text vectors get none."""
        name = self.name
        grads[f"{name}.w2"], grads[f"{name}.b2"], dhidden = linear_backward(hidden, params[f"{name}.w2"], dy)
        dhidden = relu_backward(hidden, dhidden)
        grads[f"{name}.w1"], grads[f"{name}.b1"], _ = linear_backward(
            self.text, params[f"{name}.w1"], dhidden, need_dx=False
        )


def take_rows(array: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """array[rows], or all of it (None)."""
    return array if rows is None else array[rows]


def mlp_rows(mlp: Params, x: np.ndarray) -> np.ndarray:
    """ReLU(x @ w1 + b1) @ w2 + b2, float32 (n, dim). mlp: arrays by the names of `MLP_PARTS`.

    Computed row by row, because the last bits of a matrix product depend on its number of rows.
    """
    rows = [np.maximum(row @ mlp["w1"] + mlp["b1"], 0) @ mlp["w2"] + mlp["b2"] for row in x]
    return np.array(rows, np.float32).reshape(len(x), len(mlp["b2"]))


def checked_mlp(arrays: Mapping[str, np.ndarray], name: str) -> Params:
    """The MLP stored as `<name>.w1` to `<name>.b2`. Raises ValueError if the shapes do not fit together."""
    w1 = checked(arrays, f"{name}.w1", np.float32, None, None)
    if not w1.size:  # an array without values could claim any width
        raise ValueError(f"{name}.w1: expected at least one row and one column, found {w1.shape}")
    w2 = checked(arrays, f"{name}.w2", np.float32, w1.shape[1], None)
    b1 = checked(arrays, f"{name}.b1", np.float32, w1.shape[1])
    return {"w1": w1, "b1": b1, "w2": w2, "b2": checked(arrays, f"{name}.b2", np.float32, w2.shape[1])}
