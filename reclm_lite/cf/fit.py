"""`fit`: from a workspace's split and vectors to a stored model, selected on validation and nothing else.

Epochs (and the gates of profiles) are chosen on the validation set; then the model is fitted again on training
and validation together for as many epochs. The test set is not read. Left out: evaluation (evaluate/).

Presets: `paper` is the published architecture and settings (arXiv 2412.19302). `default` is this project's:
text-projected items with ID residuals and a popularity bias, sampled softmax, a graph that hides the edge it
is asked about, profiles through gates.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ..data.dataset import Split, load_split
from ..errors import InputError, ModelError, shell_word
from ..kernels import native
from ..workspace import Workspace, now
from . import interface
from .fusion import PublishedEncoder, ResidualEncoder
from .graph import Graph
from .interface import FittedModel
from .models.biasmf import BiasMF
from .models.lightgcn import LightGCN
from .closed import fit_closed
from .profile_tower import ProfileTower, has_profile
from .training import EpochReport, TrainConfig, Validate, train
from .validation import validator
from .vectors import Vectors

log = logging.getLogger(__name__)

MODELS = ("popularity", "random", "biasmf", "lightgcn")
TRAINED = ("biasmf", "lightgcn")
PRESETS = ("default", "paper")
DIM = 32
TOWER_EPOCHS = 6
STEPS_PER_EPOCH = 20

# progress(done, total, note)
Progress = Callable[..., None]


@dataclass(frozen=True)
class Preset:
    """config: how to train. layer_weights, items_propagated, min_id_interactions: see LightGCN and ResidualEncoder."""

    config: TrainConfig
    layer_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    items_propagated: bool = False
    min_id_interactions: int = 5


PRESET_SETTINGS: dict[tuple[str, str], Preset] = {
    ("paper", "biasmf"): Preset(TrainConfig(patience=10)),
    ("paper", "lightgcn"): Preset(TrainConfig(patience=10)),
    ("default", "biasmf"): Preset(
        TrainConfig(rate=5e-3, loss="ssm", n_negatives=32, epochs=30, patience=3, l2_tables=1e-5), min_id_interactions=1
    ),
    ("default", "lightgcn"): Preset(
        TrainConfig(rate=1e-2, loss="ssm", n_negatives=32, epochs=30, patience=3), (1 / 3, 1 / 3, 1 / 3), items_propagated=True
    ),
}


@dataclass(frozen=True)
class Inputs:
    """What a model is made of. text, user_profiles, item_profiles: float32 (n, n_in) or None, zero rows for none."""

    split: Split
    text: np.ndarray | None = None
    user_profiles: np.ndarray | None = None
    item_profiles: np.ndarray | None = None


def fit(
    ws: Workspace,
    model: str,
    *,
    profiles: str = "none",
    preset: str = "default",
    seed: int = 0,
    epochs: int | None = None,
    refit: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> FittedModel:
    """Fit `model` on the workspace's split and store it as `models/<model>[+profiles]`.

    profiles: "none", "users", "items" or "both". epochs: at most so many, None: the preset's.
    refit: fit again on training and validation together; without it the model of the best epoch is kept.
    progress: called as progress(done, total, note) after each epoch.
    Raises MissingArtefactError, naming the command, where an input has not been made or is stale.
    """
    if model not in MODELS:
        raise InputError(f"model: expected one of {', '.join(MODELS)}, found {model!r}")
    if preset not in PRESETS:
        raise InputError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
    if profiles not in interface.PROFILE_CHOICES:
        raise InputError(f"profiles: expected one of {', '.join(interface.PROFILE_CHOICES)}, found {profiles!r}")
    if profiles != "none" and model not in TRAINED:
        raise InputError(f"{model} takes no profiles: leave out --profiles, or fit one of {', '.join(TRAINED)}")
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs: expected at least 1, found {epochs}")
    with ws.writing():
        split = load_split(ws)
        used = {"matrices/split": split.fingerprint}
        if model in TRAINED:
            inputs = load_inputs(ws, split, profiles, used)
            fitted = fit_arrays(
                inputs, model, preset=preset, seed=seed, epochs=epochs, refit=refit, n_threads=n_threads, progress=progress
            )
        else:
            fitted = fit_untrained(split, model, seed)
        fitted = dataclasses.replace(fitted, profiles=profiles)
        fingerprint = interface.save(fitted, ws, inputs=used)
        with ws.db:
            ws.db.execute(
                "INSERT INTO runs (model, profiles, created, params, metrics) VALUES (?, ?, ?, ?, ?)",
                (model, profiles, now(), json.dumps(fitted.params), json.dumps(fitted.metrics)),
            )
    return dataclasses.replace(fitted, fingerprint=fingerprint)


def fit_untrained(split: Split, model: str, seed: int = 0) -> FittedModel:
    """A model that needs no training, with validation figures from training alone."""
    return fit_closed(split, model, seed=seed)


def load_inputs(ws: Workspace, split: Split, profiles: str, used: dict[str, str]) -> Inputs:
    """Read the vectors that a fit needs; adds their fingerprints to `used`."""

    def read(name: str, made_by: str, n_rows: int, what: str) -> np.ndarray:
        ws.require_fresh(name, made_by=made_by)
        artefact = ws.load(name, made_by=made_by)
        vectors = artefact.arrays["vectors"]
        if vectors.ndim != 2 or len(vectors) != n_rows or not np.isfinite(vectors).all():
            raise InputError(
                f"{name}: expected finite vectors of {n_rows} {what}, found {vectors.shape}; run `{made_by}` again"
            )
        used[name] = artefact.fingerprint
        return np.ascontiguousarray(vectors, dtype=np.float32)

    root = ws.root
    embed_profiles = f"reclm embed profiles -w {shell_word(root)}"
    has_text = ws.db.execute(
        "SELECT 1 FROM items WHERE title || category || subcategory || description <> '' LIMIT 1"
    ).fetchone()
    text = user_profiles = item_profiles = None
    if has_text:
        text = read("vectors/items", f"reclm embed items -w {shell_word(root)}", split.n_items, "items")
    for side, n_rows in (("user", split.n_users), ("item", split.n_items)):
        if profiles not in (f"{side}s", "both"):
            continue
        name = f"vectors/{side}_profiles"
        made_by = embed_profiles
        if not _has_profiles(ws, side):
            made_by = f"reclm profile {side}s -w {shell_word(root)}` and then `{embed_profiles}"
        vectors = read(name, made_by, n_rows, f"{side}s")
        if side == "user":
            user_profiles = vectors
        else:
            item_profiles = vectors
    return Inputs(split, text, user_profiles, item_profiles)


def _has_profiles(ws: Workspace, side: str) -> bool:
    return ws.db.execute("SELECT 1 FROM profiles WHERE side=? LIMIT 1", (side,)).fetchone() is not None


def fit_arrays(
    inputs: Inputs,
    model: str,
    *,
    preset: str = "default",
    seed: int = 0,
    epochs: int | None = None,
    refit: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> FittedModel:
    """Train `biasmf` or `lightgcn` on arrays alone: select on validation, then fit on all that is known.

    BLAS gets one thread: the products are small, and on a busy machine its threads wait for each other (measured on the
    demo: 32 s of processor time with two, 6 s with one). The propagation keeps `n_threads`.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _fit_arrays(inputs, model, preset, seed, epochs, refit, n_threads, progress)


def _fit_arrays(
    inputs: Inputs, model: str, preset: str, seed: int, epochs: int | None, refit: bool, n_threads: int | None,
    progress: Progress | None,
) -> FittedModel:  # fmt: skip
    settings = PRESET_SETTINGS[preset, model]
    config = dataclasses.replace(settings.config, seed=seed)
    if epochs is not None:
        config = dataclasses.replace(config, epochs=epochs)
    split = inputs.split
    if preset == "default":
        # A small data set needs as many steps as a large one.
        config = dataclasses.replace(config, batch_size=int(np.clip(split.train.nnz // STEPS_PER_EPOCH, 64, config.batch_size)))
    validate = validator(split)
    report = _Reporter(progress, config.epochs)
    build = _Builder(inputs, model, preset, settings, n_threads)

    def base(interactions: sp.csr_matrix, config: TrainConfig, validate: Validate | None) -> tuple[Vectors, int, tuple]:
        module = build.module(interactions)
        trained = train(module, interactions, config, validate=validate, progress=report, phase=report.phase)
        return module.vectors(trained.params), trained.best_epoch, (trained.recall_20, trained.ndcg_20)

    vectors, n_epochs, figures = base(split.train, config, validate)
    gates, tower_epochs = (0.0, 0.0), 0
    with_tower = preset == "default" and (inputs.user_profiles is not None or inputs.item_profiles is not None)
    if with_tower:
        vectors, gates, tower_epochs, figures = _select_tower(inputs, vectors, config, validate, report, figures)
    train_user_vectors = None
    if refit and split.valid.nnz:
        train_user_vectors, known = vectors[0], split.known()
        report.begin("refit", n_epochs + tower_epochs)
        vectors, _, _ = base(known, dataclasses.replace(config, epochs=n_epochs, patience=None), None)
        if tower_epochs:
            vectors = _fit_tower(inputs, vectors, known, _tower_config(config, tower_epochs), gates, report)
    for name, array in zip(("user vectors", "item vectors", "item bias"), vectors[:3], strict=True):
        if not np.isfinite(array).all():
            raise ModelError(f"{model}: expected finite {name}, found NaN or infinity: training diverged; nothing was stored")
    user_ready = np.diff((split.known() if refit else split.train).indptr) > 0
    if inputs.user_profiles is not None and (not with_tower or gates[0] > 0):
        user_ready |= has_profile(inputs.user_profiles)
    recall, ndcg = figures
    metrics = {} if validate is None else {"recall@20": recall, "ndcg@20": ndcg}
    params = {
        "preset": preset, "seed": seed, "dim": DIM, "epochs": n_epochs, "refit": refit, "text": inputs.text is not None,
        **dataclasses.asdict(config),
    }  # fmt: skip
    params["epochs"] = n_epochs
    if with_tower:
        params |= {"gate_users": gates[0], "gate_items": gates[1], "tower_epochs": tower_epochs}
        log.info("profiles: gates %.2f (users), %.2f (items), chosen on validation", *gates)
    users, items, bias, _ = vectors
    return FittedModel(
        model, users, items, bias if len(bias) else None, user_ready,
        train_user_vectors=train_user_vectors, params=params, metrics=metrics,
    )  # fmt: skip


class _Builder:
    """Makes the trainable model for a set of interactions."""

    def __init__(self, inputs: Inputs, model: str, preset: str, settings: Preset, n_threads: int | None):
        self.inputs, self.model, self.preset, self.settings = inputs, model, preset, settings
        self.n_threads = n_threads if n_threads is not None else native.default_threads()

    def module(self, interactions: sp.csr_matrix) -> BiasMF | LightGCN:
        inputs, settings = self.inputs, self.settings
        n_users, n_items = interactions.shape
        if self.preset == "paper":
            encoder = PublishedEncoder(
                n_users, n_items, DIM,
                text=inputs.text, user_profiles=inputs.user_profiles, item_profiles=inputs.item_profiles,
            )  # fmt: skip
        else:
            encoder = ResidualEncoder(
                n_users, n_items, DIM, text=inputs.text, min_id_interactions=settings.min_id_interactions,
                user_counts=np.diff(interactions.indptr), item_counts=np.bincount(interactions.indices, minlength=n_items),
            )  # fmt: skip
        if self.model == "biasmf":
            return BiasMF(encoder)
        graph = Graph(interactions, self_loops=self.preset == "paper", n_threads=self.n_threads)
        return LightGCN(
            encoder, graph, layer_weights=settings.layer_weights, items_propagated=settings.items_propagated,
            drops_targets=self.preset == "default",
        )  # fmt: skip


def _tower_config(config: TrainConfig, epochs: int) -> TrainConfig:
    return dataclasses.replace(config, rate=5e-3, epochs=epochs, patience=None, l2_tables=0.0)


def _make_tower(inputs: Inputs, base: Vectors) -> ProfileTower:
    return ProfileTower(
        base, DIM, user_profiles=inputs.user_profiles, item_profiles=inputs.item_profiles, text=inputs.text
    )


def _select_tower(
    inputs: Inputs, base: Vectors, config: TrainConfig, validate: Validate | None, report: "_Reporter", figures: tuple
) -> tuple[Vectors, tuple[float, float], int, tuple]:
    """(vectors, gates, epochs, (recall, ndcg)) of the best epoch and gates; gates 0 where nothing beats the base."""
    if validate is None:
        log.warning("no validation interactions: profiles are left out, since nothing could show that they help")
        return base, (0.0, 0.0), 0, figures
    tower = _make_tower(inputs, base)
    report.begin("profiles", TOWER_EPOCHS)
    best = (base, (0.0, 0.0), 0, figures)
    epoch = 0

    def validate_parts(parts: Vectors) -> tuple[float, float]:
        nonlocal best, epoch
        epoch += 1
        gates, recall, ndcg = tower.best_gates(parts, validate)
        if ndcg > best[3][1]:
            best = (tower.joined(parts, gates), gates, epoch, (recall, ndcg))
        return recall, ndcg

    train(
        tower, inputs.split.train, _tower_config(config, TOWER_EPOCHS),
        validate=validate_parts, progress=report, phase="profiles",
    )  # fmt: skip
    return best


def _fit_tower(
    inputs: Inputs, base: Vectors, interactions: sp.csr_matrix, config: TrainConfig, gates: tuple[float, float], report: "_Reporter"
) -> Vectors:
    tower = _make_tower(inputs, base)
    trained = train(tower, interactions, config, progress=report, phase="refit")
    return tower.joined(tower.vectors(trained.params), gates)


class _Reporter:
    """Turns epoch reports of several phases into one line of progress."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.done, self.total, self.phase = progress, 0, total, "select"

    def begin(self, phase: str, n_epochs: int) -> None:
        self.phase, self.total = phase, self.done + n_epochs

    def __call__(self, report: EpochReport) -> None:
        self.done += 1
        note = f"{self.phase}: loss {report.loss:.4f}"
        if np.isfinite(report.ndcg_20):
            note += f", valid R@20 {report.recall_20:.4f} N@20 {report.ndcg_20:.4f}"
        note += f", {report.interactions_per_second:,.0f} interactions/s"
        log.debug("%s", note)
        if self.progress is not None:
            self.progress(self.done, self.total, note)


__all__ = ["MODELS", "PRESETS", "TRAINED", "Inputs", "fit", "fit_arrays", "fit_untrained"]
