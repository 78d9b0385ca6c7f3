"""Prompts to measure with, and the profiles that each file writes for the same users, in a copy of the workspace.

A file writes as in `reclm profile users`: with the profile grammar and one retry. Its answers stay in the copy's store
of generations, by model and prompt, so that a stopped run, or one with more files, generates only what is missing. The
copy is made anew if the workspace's data, split or neighbors have changed. The workspace itself is never written to.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.dataset import Split, load_split, user_ids
from ...errors import InputError
from ...files import atomic_folder, read_document
from ...profiles import store
from ...profiles.calibration_texts import sample_prompts
from ...profiles.generate import run_profiles
from ...profiles.profile_vectors import embed_profiles
from ...profiles.run_progress import Observer
from ...profiles.run_settings import RunSettings
from ...profiles.scheduler import Tokenizer
from ...profiles.sources import SourceSettings
from ...profiles.sources.gguf import Model
from ...prompts.inputs import PromptInputs, load_inputs
from ...text.item_vectors import Encoder
from ...workspace import Workspace
from ..profile_engine.bench_prompts import scratch_copy
from .paired_intervals import MIN_UNITS
from .variants import File

VECTORS = "vectors/user_profiles"
_MADE_OF = ("matrices/interactions", "matrices/split", "matrices/neighbors", "vectors/items")
_NOTE = "copied-from.json"


@dataclass(frozen=True)
class Written:
    """texts: the usable profiles by user. keys: by user, the hash of prompt and model.
    vectors: float32 (n_users, dim), zero for users without a profile.
    """

    texts: dict[int, str]
    keys: dict[int, str]
    vectors: np.ndarray


def draw_prompts(
    root: Path, path: Path, model: Model, n: int, n_calibration: int, seed: int
) -> tuple[list[str], list[list[int]], list[str]]:
    """(distinct prompts to measure with, their tokens, others for the importance matrix) that fit the model at `path`.

    The third is the first if there are too few for both. Raises InputError if there are too few to measure with.
    """
    tokenizer = Tokenizer(path, model.wrap)
    try:
        drawn = sample_prompts(root, n=2 * (n + n_calibration), form=model.form, seed=seed)
        tokens = {prompt: tokenizer(prompt).tolist() for prompt in drawn}
    finally:
        tokenizer.close()
    fitting = [prompt for prompt in drawn if len(tokens[prompt]) <= model.max_prompt_tokens]
    prompts, rest = fitting[:n], fitting[n:][:n_calibration]
    if len(prompts) < MIN_UNITS:
        raise InputError(
            f"expected at least {MIN_UNITS} distinct prompts that fit the context of {path.name}, found "
            f"{len(prompts)}; use a workspace with more users, or a model with a larger context"
        )
    return prompts, [tokens[prompt] for prompt in prompts], rest if len(rest) >= MIN_UNITS else prompts


def _is_text(path: Path, expected: str) -> bool:
    try:
        return read_document(path) == expected
    except (OSError, ValueError):
        return False


def open_copy(root: Path, target: Path) -> Workspace:
    """The copy of the workspace `root` at `target`, up to date and without profiles of its own."""
    with Workspace.open(root) as ws:
        load_split(ws)
        ws.require_fresh("vectors/items", made_by=f"reclm embed items -w {ws.argument}")
        load_inputs(ws)  # refuses stale neighbors and names the command that updates them
        made_of = json.dumps({name: ws.fingerprint(name) for name in _MADE_OF}, sort_keys=True)
    note = target / _NOTE
    if not _is_text(note, made_of):
        shutil.rmtree(target, ignore_errors=True)
        with atomic_folder(target) as partial:
            scratch_copy(root, partial)
            (partial / _NOTE).write_text(made_of, encoding="utf-8")
    return Workspace.open(target)


def choose_users(split: Split, inputs: PromptInputs, n: int | None, seed: int) -> list[int]:
    """The users to profile, ascending: `n` drawn among those who get a prompt and have something held out, or all who
    get one.

    Raises InputError if `n` is too small for an interval.
    """
    if n is not None and n < MIN_UNITS:
        raise InputError(
            f"expected at least {MIN_UNITS} users, as fewer give no interval, found --users {n}; ask for more"
        )
    has_prompt = np.array([bool(inputs.items_of(user) or inputs.neighbors_of(user)) for user in range(split.n_users)])
    held_out = (np.diff(split.test.indptr) > 0) | (np.diff(split.unseen.indptr) > 0)
    found = np.flatnonzero(has_prompt & held_out)
    if len(found) < MIN_UNITS:
        raise InputError(
            f"expected at least {MIN_UNITS} users with a history or neighbors and something held out, found "
            f"{len(found)}; "
            "use a workspace with more users, or another split"
        )
    if n is None or n >= len(found):
        return np.flatnonzero(has_prompt).tolist()
    return sorted(np.random.default_rng(seed).choice(found, n, replace=False).tolist())


def write_profiles(
    ws: Workspace,
    file: File,
    users: Sequence[int],
    *,
    n_threads: int,
    n_slots: int | None,
    encoder: Encoder | None,
    observer: Observer,
) -> Written:
    """Let a file write the profiles of `users` in the copy `ws`; what it wrote before comes from the store."""
    ids = user_ids(ws)
    with ws.writing(), ws.db:  # a profile of another file must not stay if this one fails
        ws.db.execute("DELETE FROM profiles")
    source = SourceSettings(str(file.path.absolute()), n_threads=n_threads, n_slots=n_slots, model_sha256=file.sha256)
    run_profiles(
        ws, "users", source=source, settings=RunSettings(), users=[ids[user] for user in users], observer=observer
    )
    embed_profiles(ws, encoder)
    vectors = ws.load(VECTORS, made_by="reclm embed profiles").arrays["vectors"]
    keys = dict(ws.db.execute("SELECT idx, prompt_key FROM profiles WHERE side='user'").fetchall())
    return Written(dict(store.usable_profiles(ws, "user")), keys, vectors)


def similarity(found: Written, reference: Written) -> dict:
    """Profiles beside the reference's, once for each distinct prompt of it: {"n_prompts", "n_exact", "cosines",
    "n_missing"}.

    A prompt whose profile one of the two lacks counts as another text with cosine 0; prompts that both lack are left
    out.
    """
    one_of = {key: user for user, key in sorted(reference.keys.items(), reverse=True)}
    cosines, n_exact, n_missing = [], 0, 0
    for user in sorted(one_of.values()):
        ours, theirs = found.texts.get(user), reference.texts.get(user)
        if ours is None and theirs is None:
            continue
        n_missing += ours is None
        n_exact += ours == theirs
        cosines.append(1.0 if ours == theirs else round(float(np.dot(found.vectors[user], reference.vectors[user])), 6))
    return {"n_prompts": len(cosines), "n_exact": n_exact, "cosines": cosines, "n_missing": n_missing}
