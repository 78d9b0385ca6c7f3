"""The prompts that `reclm bench profile` measures with: those of a workspace's users, or of the bundled demo."""

import shutil
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...own_paths import require_own_tree
from ...profiles.calibration_texts import sample_prompts
from ...prompts.build import build_prompts
from ...prompts.forms import form_for
from ...prompts.inputs import load_inputs
from ...types import ItemText
from ...workspace import Workspace


@dataclass(frozen=True)
class PromptSet:
    """sample: distinct prompts; those of a workspace are sorted and start at a random one, so that neighbors have as
    much in common as in a whole run. texts: of the catalog, to train a tokenizer on."""

    sample: list[str]
    texts: list[str]
    n_users: int
    n_distinct: int


def prompt_set(root: Path | None, n: int, *, instruct: bool, seed: int) -> PromptSet:
    """All distinct prompts of the workspace at `root`, or `n` of the demo's. Raises InputError if there are none."""
    if root is None:
        from ...data.demo import generate_demo

        sample = sample_prompts(None, n=n, form=form_for(instruct), seed=seed)
        return PromptSet(sample, _texts(generate_demo().item_texts), len(sample), len(sample))
    with Workspace.open(root) as ws:
        inputs = load_inputs(ws)
    alike: dict[tuple, list[int]] = {}  # users with equal histories and neighbors share one prompt
    for user in range(inputs.train.shape[0]):
        alike.setdefault((inputs.items_of(user), inputs.neighbors_of(user)), []).append(user)
    n_alike = {users[0]: len(users) for users in alike.values()}
    prompts: Counter[str] = Counter()
    for user, prompt in build_prompts(inputs, "user", list(n_alike), form=form_for(instruct), skipped=Counter()):
        prompts[prompt] += n_alike[user]
    distinct = list(prompts)
    if not distinct:
        raise InputError(f"expected users with items that have texts in {root}, found none; use another workspace")
    distinct.sort()
    start = int(np.random.default_rng(seed).integers(len(distinct)))
    return PromptSet([*distinct[start:], *distinct[:start]], _texts(inputs.texts), prompts.total(), len(distinct))


def _texts(items: list[ItemText]) -> list[str]:
    return [" ".join((item.category, item.subcategory, item.title, item.description)) for item in items]


def scratch_copy(root: Path, target: Path) -> Path:
    """A copy of a workspace at `target`, without profiles and what was made of them; returns `target`."""
    for name in ("workspace.toml", "matrices", "vectors", "models"):
        require_own_tree(root / name)  # a link would have other files of this machine copied
    target.mkdir()
    shutil.copy(root / "workspace.toml", target)
    for folder in ("matrices", "vectors", "models"):  # neighbors are fresh only beside the files that they were made of
        shutil.copytree(root / folder, target / folder, ignore=shutil.ignore_patterns("*profile*"))
    with sqlite3.connect(root / "workspace.db") as source, sqlite3.connect(target / "workspace.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    for folder in ("llm", "reports"):
        (target / folder).mkdir()
    with Workspace.open(target) as ws:
        for table in ("profiles", "generations", "uses"):
            ws.db.execute(f"DELETE FROM {table}")
        ws.db.commit()
    return target
