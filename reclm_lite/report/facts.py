"""Collects all facts of the report from a workspace before HTML is written.

Left out: judgement on the figures, which is the page's (`page.headline`), and any computation that a stage
owns: evaluation comes from `evaluate_workspace`, recommendations from `Recommender`.
"""

import importlib.metadata
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .. import __version__
from ..data.dataset import load_interactions, load_split
from ..errors import MissingArtefactError, ReclmError, shell_word
from ..profiles.run_settings import job_kind
from ..profiles.store import get_profile, last_job
from ..serve.recommend import Recommendation, Recommender
from ..workspace import Workspace, now
from . import frontier

log = logging.getLogger(__name__)

N_EXAMPLES = 3
EXAMPLE_K = 10
QUANTIZATION = "reports/quant/quant.json"  # where `reclm bench quant` leaves its results unless told otherwise
# Catalogue coverage is measured on at most this many users, evenly spaced over all who have a history.
COVERAGE_USERS = 400
COVERAGE_K = 20
_MAX_TITLES = 10
_SOFTWARE = ("numpy", "scipy", "numba", "llama-cpp-python", "gguf", "safetensors", "duckdb")


@dataclass(frozen=True)
class Person:
    """One example: what the user took, the profile as stored, and what is recommended."""

    user: str
    n_history: int
    titles: list[str]
    profile: str
    profile_source: str
    recommendation: Recommendation


@dataclass(frozen=True)
class ArtefactLine:
    """One stored artefact and what it was made from. seconds: that it took to make, None where that was not noted."""

    name: str
    fingerprint: str
    created: str
    params: dict
    stale: list[str]
    seconds: float | None = None


@dataclass(frozen=True)
class GenerationLine:
    """The last run that wrote profiles of one side; rates are in profiles and tokens a second."""

    side: str
    source: str
    n_generated: int
    seconds: float
    profiles_per_s: float
    ended_by: str


@dataclass(frozen=True)
class Facts:
    """history_lengths: int64 (n_users,). item_counts: int64 (n_items,). Shares are from 0 to 1."""

    name: str
    created: str
    n_users: int
    n_items: int
    n_interactions: int
    history_lengths: np.ndarray
    item_counts: np.ndarray
    manifest: dict
    split_params: dict
    split_sizes: dict[str, int]
    evaluation: dict | None
    evaluation_missing: str
    people: list[Person]
    n_user_profiles: int
    n_item_profiles: int
    n_coverage_users: int
    n_covered_items: int
    coverage_basis: str
    artefacts: list[ArtefactLine]
    software: list[tuple[str, str]]
    commands: list[str] = field(default_factory=list)
    generations: list[GenerationLine] = field(default_factory=list)
    quantization: dict | None = None
    quantization_is_current: bool = False


def gather(ws: Workspace, *, evaluation: Mapping | None = None) -> Facts:
    """Collect the facts for the page. `evaluation`: the result of `evaluate_workspace`, computed (with intervals) where
    None."""
    interactions = load_interactions(ws)
    recommender = Recommender(ws)
    known = recommender.known
    lengths = np.diff(known.indptr).astype(np.int64)
    split_params, split_sizes, missing, split_is = {}, {}, "", None
    try:
        split = load_split(ws)
        split_params, split_is = split.params, split.fingerprint
        for part in ("train", "valid", "test", "unseen"):
            split_sizes[part] = int(getattr(split, part).nnz)
        split_sizes["full_candidates"] = len(split.full_candidates)
        split_sizes["unseen_candidates"] = len(split.unseen_candidates)
        if evaluation is None:
            from ..evaluate.protocol import evaluate_workspace

            evaluation = evaluate_workspace(ws, ci95=True)
    except MissingArtefactError as error:
        missing = str(error)
    n_coverage, n_covered = _coverage(recommender, lengths)
    quantization = frontier.read(ws.root / QUANTIZATION)
    return Facts(
        name=interactions.name or ws.root.name,
        created=now(),
        n_users=interactions.n_users,
        n_items=interactions.n_items,
        n_interactions=int(known.nnz),
        history_lengths=lengths,
        item_counts=recommender.counts,
        manifest=interactions.manifest,
        split_params=split_params,
        split_sizes=split_sizes,
        evaluation=dict(evaluation) if evaluation is not None else None,
        evaluation_missing=missing,
        people=[_person(ws, recommender, user) for user in _examples(ws, lengths)],
        n_user_profiles=_n_profiles(ws, "user"),
        n_item_profiles=_n_profiles(ws, "item"),
        n_coverage_users=n_coverage,
        n_covered_items=n_covered,
        coverage_basis=recommender.model_name or "popularity",
        artefacts=_artefacts(ws),
        software=_software(),
        commands=_commands(ws, interactions.manifest),
        generations=_generations(ws),
        quantization=quantization,
        quantization_is_current=quantization is not None and quantization.get("split") == split_is,
    )


def _n_profiles(ws: Workspace, side: str) -> int:
    query = "SELECT COUNT(*) FROM profiles WHERE side=? AND status IN ('ok', 'edited')"
    return ws.db.execute(query, (side,)).fetchone()[0]


def _examples(ws: Workspace, lengths: np.ndarray) -> list[int]:
    """Three users, chosen by rule: with a profile before without, histories of 4 to 12 before others, evenly spaced."""
    rows = ws.db.execute("SELECT idx FROM profiles WHERE side='user' AND status IN ('ok', 'edited')")
    profiled = np.zeros(len(lengths), bool)
    profiled[[row[0] for row in rows if row[0] < len(lengths)]] = True
    telling = (lengths >= 4) & (lengths <= 12)
    chosen: list[int] = []
    for group in (profiled & telling, profiled & (lengths > 0), telling, lengths > 0, lengths >= 0):
        users = [int(user) for user in np.flatnonzero(group) if int(user) not in chosen]
        wanted = N_EXAMPLES - len(chosen)
        if wanted and users:
            chosen += [
                users[i] for i in dict.fromkeys(np.linspace(0, len(users) - 1, wanted).round().astype(int).tolist())
            ]
    return sorted(chosen)


def _person(ws: Workspace, recommender: Recommender, user: int) -> Person:
    user_id = ws.db.execute("SELECT user_id FROM users WHERE user_idx=?", (user,)).fetchone()[0]
    history = recommender.history(user)
    # The least popular titles say most about a person.
    telling = sorted(history.tolist(), key=lambda item: (recommender.counts[item], item))[:_MAX_TITLES]
    titles = [recommender.texts[item].title or recommender.item_ids[item] for item in telling]
    profile = get_profile(ws, "user", user)
    return Person(
        user=user_id,
        n_history=len(history),
        titles=titles,
        profile=profile.text if profile else "",
        profile_source=profile.source if profile else "",
        recommendation=recommender.recommend(user_id, k=EXAMPLE_K),
    )


def _coverage(recommender: Recommender, lengths: np.ndarray) -> tuple[int, int]:
    """(users asked, distinct items in their top lists)."""
    users = np.flatnonzero(lengths > 0)
    if len(users) > COVERAGE_USERS:
        users = users[np.linspace(0, len(users) - 1, COVERAGE_USERS).round().astype(np.int64)]
    lists = recommender.top_items(users, COVERAGE_K)
    covered = np.unique(np.concatenate(lists)) if lists else []
    return len(users), len(covered)


def _artefacts(ws: Workspace) -> list[ArtefactLine]:
    lines, told = [], {}
    for folder in ("matrices", "vectors", "models"):
        for path in sorted((ws.root / folder).glob("*.safetensors")):
            name = f"{folder}/{path.name.removesuffix('.safetensors')}"
            try:
                provenance = ws.provenance(name, made_by=ws.command_for(name))
                stale = ws.stale_inputs(name, told)
            except ReclmError as error:
                log.warning("%s is left out of the report: %s", name, error)
                continue
            lines.append(
                ArtefactLine(
                    name,
                    provenance["fingerprint"],
                    provenance["created"],
                    provenance["params"],
                    stale,
                    provenance.get("seconds"),
                )
            )
    return lines


_OF_JOB = ("source", "n_generated", "seconds", "profiles_per_s", "ended_by")


def _is_figure(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def _generations(ws: Workspace) -> list[GenerationLine]:
    found = []
    for side in ("users", "items"):
        job = last_job(ws, job_kind(side)) or {}
        source, *figures, ended_by = (job.get(name) for name in _OF_JOB)
        if isinstance(source, str) and isinstance(ended_by, str) and all(map(_is_figure, figures)):
            found.append(GenerationLine(side, source.split(",")[0], *figures, ended_by))
        elif "seconds" in job:
            log.warning("the last run of %s is left out of the report: the workspace tells something else of it", side)
    return found


def _software() -> list[tuple[str, str]]:
    versions = [("reclm-lite", __version__), ("Python", platform.python_version())]
    for name in _SOFTWARE:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            versions.append((name, "not installed"))
    return [*versions, ("System", f"{platform.system()} {platform.release()}, {platform.machine()}")]


def _commands(ws: Workspace, manifest: Mapping) -> list[str]:
    """The commands that lead to this state, read off the artefacts that are there; every name in them is one word of a
    shell."""
    root = shell_word(ws.root.name)
    where = f"-w {root}"
    if manifest.get("format") == "demo":
        return [f"reclm quickstart {where}"]
    given = manifest.get("options")
    options = "".join(_option(name, value) for name, value in (given.items() if isinstance(given, dict) else ()))
    commands = [
        f"reclm init {root}",
        f"reclm import {shell_word(str(manifest.get('format', 'FORMAT')))} SOURCE {where}{options}",
    ]
    if ws.has("matrices/split"):
        params = ws.provenance("matrices/split", made_by="reclm split")["params"]
        method = params.get("method")
        seed = f" --seed {shell_word(str(params['seed']))}" if "seed" in params else ""
        commands.append(f"reclm split{f' --method {shell_word(str(method))}' if method else ''}{seed} {where}")
    if ws.has("vectors/items"):
        commands.append(f"reclm embed items {where}")
    names = [path.name.removesuffix(".safetensors") for path in sorted((ws.root / "models").glob("*.safetensors"))]
    models = [[shell_word(part) for part in name.split("+")] for name in names]
    commands += [f"reclm fit {parts[0]} {where}" for parts in models if len(parts) == 1]
    if ws.has("matrices/neighbors"):
        commands.append(f"reclm neighbors {where}")
    for side in ("user", "item"):
        if _n_profiles(ws, side):
            commands.append(f"reclm profile {side}s {where}")
    if any(ws.has(f"vectors/{side}_profiles") for side in ("user", "item")):
        commands.append(f"reclm embed profiles {where}")
    commands += [f"reclm fit {parts[0]} --profiles {parts[1]} {where}" for parts in models if len(parts) > 1]
    return [*commands, f"reclm evaluate {where}", f"reclm report {where}"]


def _option(name: str, value: object) -> str:
    """` --user customer` for `user_column: customer`; a list gives the option once for each value."""
    flag = "--" + name.removesuffix("_columns").removesuffix("_column").removesuffix("_source").replace("_", "-")
    values = value if isinstance(value, list) else [value]
    return "".join(f" {shell_word(flag)} {shell_word(str(each))}" for each in values)
