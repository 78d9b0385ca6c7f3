"""Texts for calibrating and verifying an export: a sample of profile prompts, or a file.

A quantized model should be best at what it will be asked. So the importance matrix and the parity gate see prompts as
the profiler writes them: of a workspace, or of the bundled demo if there is none.
"""

import json
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..prompts.build import user_prompt_of
from ..prompts.forms import COMPACT
from ..prompts.inputs import N_NEIGHBORS, PromptInputs, load_inputs

N_PROMPTS = 192  # a third for the gate, the rest for the importance matrix


def sample_prompts(root: Path | None = None, *, n: int = N_PROMPTS, form: str = COMPACT, seed: int = 0) -> list[str]:
    """At most `n` distinct profile prompts of users drawn at random, of the workspace at `root` or of the bundled demo.

    form: the name of a prompt form. The same arguments give the same prompts. Raises InputError if no user has an item
    with text, and what opening the workspace raises.
    """
    inputs = _demo_inputs() if root is None else _workspace_inputs(root)
    prompts: dict[str, None] = {}
    for user in np.random.default_rng(seed).permutation(inputs.train.shape[0]).tolist():
        if not any(not text.is_empty() for text in inputs.show(inputs.items_of(user))):
            continue
        prompt = user_prompt_of(inputs, user, form=form)
        if prompt is None:
            continue
        prompts[prompt.text] = None
        if len(prompts) == n:
            break
    if not prompts:
        raise InputError(f"no user in {root} has an item with a text; give texts with --calibration FILE")
    return list(prompts)


def _workspace_inputs(root: Path) -> PromptInputs:
    from ..workspace import Workspace

    with Workspace.open(root) as ws:
        return load_inputs(ws)


def _demo_inputs() -> PromptInputs:
    """The demo's training interactions; who shares most items with a reader stands for a neighbor by vectors."""
    import scipy.sparse as sp

    from ..data.dataset import GIVEN_TRAIN
    from ..data.demo import generate_demo

    demo = generate_demo()
    train = demo.given == GIVEN_TRAIN
    users, items = demo.users[train], demo.items[train]
    shape = (len(demo.user_ids), len(demo.item_ids))
    matrix = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape)
    matrix.sort_indices()
    shared = (matrix @ matrix.T).toarray()
    np.fill_diagonal(shared, -1)
    near = np.argsort(-shared, axis=1, kind="stable")[:, :N_NEIGHBORS].astype(np.int32)
    return PromptInputs(matrix, demo.item_texts, near, "demo")


def read_texts(path: Path) -> list[str]:
    """The prompts of a file: `.jsonl` with a "text" or "prompt" on each line, or plain text, prompts apart by blank
    lines.

    Raises InputError, naming the line, if the file cannot be read or has no text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file of calibration texts at {path}; check the path")
    try:
        whole = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 text in {path}, found {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    texts = _jsonl(path, whole) if path.suffix.lower() == ".jsonl" else _blocks(whole)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"{path} contains no calibration texts; write prompts with a blank line between them")
    return texts


def _blocks(whole: str) -> list[str]:
    blocks, lines = [], []
    for line in [*whole.splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            blocks.append("\n".join(lines))
            lines = []
    return blocks


def _jsonl(path: Path, whole: str) -> list[str]:
    texts = []
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"expected JSON on line {number} of {path}, found: {error}; write one object per line"
            ) from error
        text = entry if isinstance(entry, str) else None
        if isinstance(entry, dict):
            text = entry.get("text", entry.get("prompt"))
        if not isinstance(text, str):
            raise InputError(
                f'expected {{"text": …}} on line {number} of {path}, found {line.strip()[:60]}; one object per line'
            )
        texts.append(text)
    return texts
