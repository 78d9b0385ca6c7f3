"""Fixtures of `reclm bench quant`: a workspace with text vectors, a model, and one whole run."""

from types import SimpleNamespace

import pytest
from bench_quant_workspace import N_ITEMS, histories, job_in_this_process, settings
from profile_workspace import HashEncoder, make_workspace

from reclm_lite.assets import profile_model_path
from reclm_lite.bench.quant import quant_bench
from reclm_lite.runtime import quantize_file
from reclm_lite.text.item_vectors import embed_items


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("quant") / "ws"
    train, valid, test = histories(0)
    with make_workspace(root, train, valid=valid, test=test, n_items=N_ITEMS) as ws:
        embed_items(ws, HashEncoder())
    return root


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The bundled profile model as F16: it writes profiles in half a second."""
    path = tmp_path_factory.mktemp("model") / "profiles-f16.gguf"
    quantize_file(profile_model_path(), path, 1, n_threads=1, requantize=True)
    return path


@pytest.fixture(scope="session")
def whole(root, model, tmp_path_factory):
    """One whole run, and all that was said."""
    out, said = tmp_path_factory.mktemp("out"), []
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and ".db" not in path.name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant_bench, "run_in_child", job_in_this_process)
        document = quant_bench.run(settings(root, model, out), said.append, encoder=HashEncoder())
    after = {path: path.stat().st_mtime_ns for path in before}
    return SimpleNamespace(out=out, document=document, said=said, before=before, after=after)
