"""Estimates the peak memory of a fit before it starts.

An estimate sums the arrays that live at the peak, from shapes and settings; a test compares it with measured peaks.
Data that is already loaded (the split, text and profile vectors) does not count: available memory excludes it too.
"""

from dataclasses import dataclass

from ..memory import available_bytes, in_units, require
from .encoders import ENCODERS
from .settings import ContrastSettings, GraphSettings, TrainedSettings

__all__ = ["Shape", "available_bytes", "in_units", "require", "trained_bytes"]

FLOAT = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of the data.

    nnz: training interactions. n_text, n_user_profile, n_item_profile: widths of the vectors, 0 for none.
    n_validated: users with validation interactions.
    """

    n_users: int
    n_items: int
    nnz: int
    n_text: int = 0
    n_user_profile: int = 0
    n_item_profile: int = 0
    n_validated: int = 0


def trained_bytes(shape: Shape, settings: TrainedSettings, *, relu_width: int = 0, view_bytes: int = 0) -> int:
    """Peak bytes of training.

    The arrays that live throughout, plus the largest temporary: a step of the model, a step of the profile tower, or
    writing a checkpoint. view_bytes: what the views of a contrastive step take in addition to their vectors.
    """
    n, dim = shape.n_users + shape.n_items, settings.dim
    hidden = settings.text_hidden or dim
    id_items = 0 if ENCODERS[settings.encoder].text_replaces_ids and shape.n_text else shape.n_items
    parameters = (shape.n_users + id_items) * dim * FLOAT
    parameters += (shape.n_text + shape.n_user_profile + shape.n_item_profile + dim) * hidden * FLOAT
    # Parameters, two moments, a copy of the best epoch; users, items and order of the interactions.
    stays = 4 * parameters + shape.nnz * (4 + 4 + 8)
    vectors = n * (dim + relu_width) * FLOAT
    batch = min(settings.batch_size, shape.nnz)
    sampled = batch * (settings.n_negatives * 3 + 4 + 2 * (dim + relu_width)) * FLOAT
    if isinstance(settings, GraphSettings):
        # Weights, indices and dropped-out weights of both directions; the permutation to transposed order.
        stays += shape.nnz * (16 + 8 + 8)
        step = _graph_step(shape, settings, batch) + view_bytes
    else:
        step = _row_step(shape, settings, batch, relu_width, parameters)
    validation = vectors + shape.n_validated * (dim + relu_width + 60) * FLOAT
    transients = [sampled + step, 4 * parameters, validation]
    if ENCODERS[settings.encoder].profiles_beside and (shape.n_user_profile or shape.n_item_profile):
        transients.append(2 * vectors + _tower_step(shape, settings, batch))
    return stays + max(transients)


def _graph_step(shape: Shape, settings: GraphSettings, batch: int) -> int:
    """One step on the graph.

    Arrays of (n, dim): first vectors, sum of layers, two layers in work, gradients of the outputs and of the first.
    """
    copies, blocks = 8, 0
    if isinstance(settings, ContrastSettings):
        # Two views, normalized, and their gradients.
        copies += 8
        others = max(shape.n_users, shape.n_items) if settings.contrast_with == "all" else batch
        blocks = min(4_000_000, batch * others) * FLOAT + 6 * batch * settings.dim * FLOAT
    vectors = (shape.n_users + shape.n_items) * settings.dim * FLOAT * copies
    return vectors + blocks + _encoder_step(shape, settings, shape.n_users, shape.n_items)


def _row_step(shape: Shape, settings: TrainedSettings, batch: int, relu_width: int, parameters: int) -> int:
    """The rows of a batch's users and items, and gradients of whole tables unless Adam updates only those rows."""
    users, items = min(batch, shape.n_users), min(batch * (settings.n_negatives + 1), shape.n_items)
    rows = (users + items) * (settings.dim + relu_width) * FLOAT * 3 + items * shape.n_text * FLOAT
    full = 0 if getattr(settings, "sparse_updates", False) else parameters
    return rows + full + _encoder_step(shape, settings, users, items)


def _encoder_step(shape: Shape, settings: TrainedSettings, users: int, items: int) -> int:
    """Hidden layers over text and (encoder "published") over profiles, with their gradients."""
    hidden, dim = settings.text_hidden or settings.dim, settings.dim
    total = items * (2 * hidden + dim) * FLOAT if shape.n_text else 0
    if not ENCODERS[settings.encoder].profiles_beside:
        total += items * (2 * hidden + 7 * dim) * FLOAT if shape.n_item_profile else 0
        total += users * (2 * hidden + 7 * dim) * FLOAT if shape.n_user_profile else 0
    return total


def _tower_step(shape: Shape, settings: TrainedSettings, batch: int) -> int:
    """A step of the profile tower, or validation: all of its vectors, joined with the base for each pair of gates."""
    dim = settings.dim
    users, items = min(batch, shape.n_users), min(batch * (settings.n_negatives + 1), shape.n_items)
    step = users * (shape.n_user_profile + 8 * dim) + items * (shape.n_text + shape.n_item_profile + 12 * dim)
    joined = (shape.n_users + shape.n_items) * 5 * dim
    return max(step, joined) * FLOAT
