"""A small filled workspace, and the command line in the test process, for the tests of what a workspace may hold."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from profile_workspace import HashEncoder, text_of

from reclm_lite.cf.fit import fit
from reclm_lite.cf.neighbors import neighbors
from reclm_lite.cli import main
from reclm_lite.data.dataset import Imported, save_imported
from reclm_lite.data.split import run_split
from reclm_lite.text.item_vectors import embed_items
from reclm_lite.workspace import Workspace

IDS = [f"reader-{n}" for n in range(10)]
N_ITEMS = 12


def bring(ws: Workspace, ids: list[str], **options) -> None:
    rng = np.random.default_rng(len(ids))
    pairs = [(user, int(item)) for user in range(len(ids)) for item in rng.choice(N_ITEMS, 5, replace=False)]
    columns = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    items = [f"i{n}" for n in range(N_ITEMS)]
    save_imported(
        ws,
        Imported("shop", ids, items, [text_of(n) for n in range(N_ITEMS)], *columns, manifest={"format": "table"}),
        **options,
    )


def fill(ws: Workspace) -> None:
    run_split(ws, "ratio", seed=0)
    embed_items(ws, HashEncoder())
    fit(ws, "lightgcn", assignments=["epochs=1", "dim=8"])
    neighbors(ws, 2)
    (ws.root / "reports" / "report.html").write_text(f"about {IDS[3]}")
    (ws.root / "llm" / "dialogues").mkdir()
    (ws.root / "llm" / "dialogues" / "sft.jsonl").write_text(f'{{"about": "{IDS[3]}"}}\n')


@pytest.fixture
def ws(tmp_path):
    with Workspace.create(tmp_path / "ws") as ws:
        bring(ws, IDS)
        fill(ws)
        yield ws


def reclm(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}: {result.output} {result.stderr} {result.exception!r}"
    return result.stdout + result.stderr


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
