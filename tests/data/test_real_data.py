"""The whole path on real data that the models never saw: a sample of the MIND split, and films from plain CSV.

Whole runs, with their commands, are in docs/results.md.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from commands import reclm

from reclm_lite.data.dataset import Imported, load_split, save_imported
from reclm_lite.data.importers import import_dataset
from reclm_lite.workspace import Workspace

QUALITY = Path(__file__).parents[2] / "benchmarks" / "profile_quality.py"


def sample(data: Imported, n_users: int) -> Imported:
    """The interactions of every k-th user, with the items and candidates that are left."""
    chosen = np.arange(0, len(data.user_ids), max(1, len(data.user_ids) // n_users))
    keep = np.isin(data.users, chosen)
    item_index = np.unique(data.items[keep])

    def listed(candidates: np.ndarray | None) -> np.ndarray | None:
        if candidates is None:
            return None
        return np.searchsorted(item_index, np.intersect1d(candidates, item_index)).astype(np.int32)

    part = lambda array: None if array is None else array[keep]  # noqa: E731
    return Imported(
        name=f"{data.name} (sample)",
        user_ids=[data.user_ids[u] for u in chosen],
        item_ids=[data.item_ids[i] for i in item_index],
        item_texts=[data.item_texts[i] for i in item_index],
        users=np.searchsorted(chosen, data.users[keep]).astype(np.int32),
        items=np.searchsorted(item_index, data.items[keep]).astype(np.int32),
        timestamps=part(data.timestamps),
        ratings=part(data.ratings),
        given=part(data.given),
        full_candidates=listed(data.full_candidates),
        unseen_candidates=listed(data.unseen_candidates),
        manifest={},
    )


# Enough to be far from chance, for a suite that is run often.
FEW = ("--epochs", "4")


def whole_path(ws: Path) -> dict:
    """Every stage after the split, by command; returns what `evaluate --json` prints."""
    reclm("embed", "items", "-w", ws)
    for model in ("popularity", "random"):
        reclm("fit", model, "-w", ws)
    reclm("fit", "lightgcn", "-w", ws, *FEW)
    reclm("neighbors", "-w", ws)
    reclm("profile", "users", "-w", ws)
    reclm("embed", "profiles", "-w", ws)
    reclm("fit", "lightgcn", "-w", ws, "--profiles", "users", *FEW)
    return json.loads(reclm("evaluate", "-w", ws, "--json"))


def check(ws: Path, result: dict) -> None:
    rows = {(row["model"], row["profiles"], row["setting"]): row for row in result["rows"]}
    assert {(m, p) for m, p, s in rows if s == "full"} == {
        ("random", "none"),
        ("popularity", "none"),
        ("lightgcn", "none"),
        ("lightgcn", "users"),
    }
    assert rows["lightgcn", "users", "full"]["recall@20"] > rows["random", "none", "full"]["recall@20"]
    with Workspace.open(ws) as workspace:
        counts = dict(workspace.db.execute("SELECT status, COUNT(*) FROM profiles WHERE side='user' GROUP BY status"))
    assert counts["ok"] >= 0.95 * sum(counts.values()), counts
    output = subprocess.run(
        [sys.executable, QUALITY, "-w", ws, "--users", "400"], capture_output=True, text=True, timeout=300
    )
    quality = json.loads(output.stdout.splitlines()[-1])
    assert quality["model_plain"] >= 0.8 and quality["model_centered"] >= 0.8, quality
    assert abs(quality["shuffled_plain"] - 0.5) < 0.12, quality


def test_news_of_the_published_split(tmp_path, shared_data):
    ws = tmp_path / "mind"
    with Workspace.create(ws) as workspace:
        save_imported(workspace, sample(import_dataset("reclm", shared_data / "reclm-mind"), 600))
    reclm("split", "-w", ws)
    check(ws, whole_path(ws))
    with Workspace.open(ws) as workspace:
        assert load_split(workspace).params["method"] == "given"


def test_films_from_plain_csv(tmp_path, shared_data):
    ws = tmp_path / "films"
    reclm("init", ws)
    reclm("import", "movielens", shared_data / "ml-latest-small", "-w", ws, "--min-item", "20")
    reclm("split", "-w", ws, "--method", "ratio")
    check(ws, whole_path(ws))
    answer = json.loads(reclm("recommend", "-w", ws, "--user", "1", "-k", "5", "--json"))
    assert len(answer["items"]) == 5 and answer["basis"] == "model"


def test_imports_of_interactions_without_text(tmp_path, shared_data):
    for name, layout in (("amazon-beauty", "colon"), ("lastfm", "triples")):
        ws = tmp_path / name
        reclm("init", ws)
        reclm("import", "lightgcn", shared_data / name, "-w", ws, "--layout", layout)
        reclm("split", "-w", ws)
        reclm("fit", "popularity", "-w", ws)
        assert json.loads(reclm("evaluate", "-w", ws, "--json"))["rows"]
