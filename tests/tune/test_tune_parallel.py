"""Two processes that tune one adapter, launched as accelerate launches them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import tune_toy

from reclm_lite.tune.parallel import Group

WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from reclm_lite.tune.base import BaseSettings, load_base
from reclm_lite.tune.parallel import Group
from reclm_lite.tune.ppo_settings import PpoSettings
from reclm_lite.tune.ppo_run import train_ppo
from reclm_lite.tune.rollout import Sampling
from tune_toy import likes_blue

model, dialogues, out = map(Path, sys.argv[1:])
group = Group.open("cpu")
assert group.world == 2 and group.is_main == (group.rank == 0)
assert list(group.share("abcde")) == list(["ace", "bd"][group.rank])
assert group.gather(group.share("abcde")) == list("abcde")
assert float(group.sum(group.rank + 1.0)) == 3.0
weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
weights[0].grad = torch.tensor([1.0, 2.0]) * (group.rank + 1)
if group.rank:
    weights[1].grad = torch.ones(2)  # the other process has none
group.sum_gradients(weights)
assert weights[0].grad.tolist() == [3.0, 6.0] and weights[1].grad.tolist() == [1.0, 1.0]

base = load_base(BaseSettings(str(model), device="cpu"))
settings = PpoSettings(
    steps=2, batch=5, epochs=1, lr=5e-3, micro_batch=4, n_eval=5, eval_every=2, save_every=2, sample_every=2,
    sampling=Sampling(max_new_tokens=4), kl_ceiling=1e6,
)
report = train_ppo(base, dialogues, out, settings, signals={"blue": likes_blue}, group=group)
mine = torch.cat([p.detach().flatten() for name, p in sorted(base.model.named_parameters()) if ".policy." in name])
assert torch.equal(group.sum(mine), 2 * mine), "the processes hold other adapters"
assert group.gather([report["gain_in_sft_std"]])[0] == report["gain_in_sft_std"]
print("equal")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_one_process_does_nothing():
    group, weight = Group(), torch.nn.Parameter(torch.zeros(2))
    group.sum_gradients([weight])
    group.barrier()
    assert (
        weight.grad is None and group.share([1, 2]) == group.gather([1, 2]) == [1, 2] and float(group.sum(2.5)) == 2.5
    )
    assert Group.open() == group


def test_two_processes_hold_equal_adapters_and_one_of_them_writes(tmp_path: Path):
    torch.set_num_threads(1)
    model, dialogues = tune_toy.make_toy(tmp_path, n_steps=0)
    paths = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {
        **os.environ,
        "PYTHONPATH": paths,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", WORKER, str(model), str(dialogues), str(tmp_path / "run")]
    processes = [
        subprocess.Popen(
            command,
            env={**env, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=180)
            assert process.returncode == 0 and "equal" in out, err[-3000:]
    finally:
        for process in processes:
            process.kill()
    assert (
        len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2 + 2
    )  # two steps; evaluations before and after
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
