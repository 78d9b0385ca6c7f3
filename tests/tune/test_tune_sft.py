"""Supervised fine-tuning: what it learns, what it leaves alone, and that neither cuts nor kills change the result."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chat_base import chat_base
from commands import reclm
from tiny_dialogues import sft_dialogues, tiny_base, write

from reclm_lite.errors import InputError, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from reclm_lite.tune.adapters import LoraSettings, add_adapter, parameters
from reclm_lite.tune.base import BaseSettings, load_base
from reclm_lite.tune.batches import Weights, micro_batches, render, spread, step_indices, steps_per_epoch
from reclm_lite.tune.loop import LoopSettings
from reclm_lite.tune.optim import Muon, Optimizer, OptimizerSettings, orthogonalised
from reclm_lite.tune.parallel import Group
from reclm_lite.tune.rendering import Renderer
from reclm_lite.tune.run import read_metrics
from reclm_lite.tune.sft import SftSettings, SftTask, read, train_sft

QUICK = SftSettings(
    max_steps=6,
    batch=8,
    lora=LoraSettings(r=2),
    loop=LoopSettings(save_every=2, eval_every=3),
    optimizer=OptimizerSettings(lr=1e-2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("dialogues") / "sft.jsonl", sft_dialogues(120))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def open_base(folder: Path, full: bool = False):
    return load_base(BaseSettings(str(folder), full=full))


def examples_of(base, n: int = 12, weights: Weights = Weights()):
    return render(sft_dialogues(n), Renderer(base.tokenizer, base.form), 256, weights)[0]


def task_of(base, settings: SftSettings, n: int = 12) -> SftTask:
    name = None if settings.full else "sft"
    if name and name not in getattr(base.model, "peft_config", {}):
        torch.manual_seed(0)
        add_adapter(base, name, settings.lora)
        with torch.no_grad():
            for parameter in parameters(base, name).values():
                parameter.normal_(std=0.05)
    return SftTask(base, name, examples_of(base, n, settings.weights), [], settings, Group())


def gradients(task: SftTask, step: int = 0) -> dict[str, torch.Tensor]:
    for p in task.parameters.values():
        p.grad = None
    task.base.model.eval()  # no dropout, which would differ in every pass
    train, task.base.model.train = task.base.model.train, lambda *_: None
    try:
        task.backward(step)
    finally:
        task.base.model.train = train
    return {n: p.grad.clone() for n, p in task.parameters.items()}


def adapter_bytes(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_loss_falls_and_the_second_answer_beats_chance_on_held_out_dialogues(tmp_path, folder):
    settings = SftSettings(
        epochs=100,
        max_steps=120,
        batch=32,
        full=True,
        weights=Weights(label=10),
        loop=LoopSettings(save_every=500, eval_every=40, seed=1),
        optimizer=OptimizerSettings(lr=5e-3, optimizer="muon"),
    )
    facts = train_sft(
        open_base(folder, full=True), write(tmp_path / "sft.jsonl", sft_dialogues(600)), tmp_path / "run", settings
    )
    measured = [m for m in read_metrics(tmp_path / "run") if "eval/loss" in m]
    assert measured[-1]["eval/loss"] < 0.1 * measured[0]["eval/loss"]
    assert facts["eval/majority"] < 0.65
    assert facts["eval/accuracy"] > 0.9
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_the_loss_is_transformers_own_of_the_same_labels(folder):
    base = open_base(folder)
    for label_weight in (1.0, 3.0):
        task = task_of(base, replace(QUICK, weights=Weights(label=label_weight), batch=4, packing=False), n=4)
        base.model.eval()
        total = weight = 0.0
        for example in task.examples:
            ids = torch.tensor(example.tokens.ids.astype(np.int64))[None]
            labels = torch.where(torch.tensor(example.tokens.is_answer)[None], ids, -100)
            n = int((labels[:, 1:] != -100).sum())
            total += float(base.model(input_ids=ids, labels=labels).loss) * n
            weight += n
        ours = sum(float(task._loss(m)[0]) for m in task._cut(task.examples))
        if label_weight == 1.0:
            assert ours == pytest.approx(total, rel=1e-5)
        else:
            assert ours > total * 1.01


@pytest.mark.parametrize("full", [False, True])
def test_accumulation_packing_and_padding_give_the_gradients_of_one_large_batch(folder, full):
    base = open_base(folder, full)
    settings = replace(QUICK, full=full, batch=12)
    whole = gradients(task_of(base, replace(settings, pass_tokens=100_000, packing=False)))
    scale = max(float(g.abs().max()) for g in whole.values())
    assert scale > 1e-3
    for change in (
        {"pass_tokens": 64, "packing": False},
        {"pass_tokens": 130, "packing": True},
        {"pass_tokens": 100_000, "packing": True},
    ):
        cut = gradients(task_of(base, replace(settings, **change)))
        for name, gradient in whole.items():
            torch.testing.assert_close(cut[name], gradient, rtol=1e-4, atol=2e-6 * scale)


def test_only_the_adapter_changes(tmp_path, folder, dialogues):
    base = open_base(folder)
    before = {n: p.detach().clone() for n, p in base.causal.named_parameters()}
    train_sft(base, dialogues, tmp_path / "run", QUICK)
    for name, parameter in base.causal.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in before:
            assert torch.equal(parameter, before[plain]), name
    assert any(float(p.abs().sum()) > 0 for n, p in parameters(base, "sft").items() if "lora_B" in n)


def test_a_run_stopped_at_any_checkpoint_ends_with_the_same_bits(tmp_path, folder, dialogues):
    train_sft(open_base(folder), dialogues, tmp_path / "whole", QUICK)

    class Stopped(Exception):
        pass

    for at in (3, 5):
        out = tmp_path / f"stopped{at}"

        def stop(done: int, *_: object, at: int = at) -> None:
            if done == at:
                raise Stopped

        with pytest.raises(Stopped):
            train_sft(open_base(folder), dialogues, out, QUICK, progress=stop)
        assert not (out / "adapter").exists()
        train_sft(open_base(folder), dialogues, out, QUICK)
        assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")
        whole, again = read_metrics(tmp_path / "whole"), read_metrics(out)
        assert [(m["step"], m.get("loss"), m.get("eval/loss")) for m in whole] == [
            (m["step"], m.get("loss"), m.get("eval/loss")) for m in again
        ]


def test_a_killed_process_goes_on_by_the_same_command(tmp_path, folder, dialogues):
    arguments = [
        "tune",
        "sft",
        "--base",
        str(folder),
        "--dialogues",
        str(dialogues),
        "--max-steps",
        "40",
        "--epochs",
        "50",
        "--batch",
        "8",
        "--save-every",
        "2",
        "--eval-every",
        "20",
        "--lora-r",
        "2",
        "--threads",
        "1",
        "--device",
        "cpu",
        "-o",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    reclm(*arguments, tmp_path / "whole")
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "reclm_lite.cli", *arguments, str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list((out / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((out / "checkpoints").glob("step-*")) and not (out / "adapter").exists()
    facts = json.loads(reclm(*arguments, out, "--json"))
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")
    assert facts["n_steps"] == 40


def test_a_finished_run_is_told_and_left_alone(tmp_path, folder, dialogues):
    train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    facts = train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    assert facts["already_done"] and facts["n_steps"] == 6
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_other_settings_do_not_go_on_with_a_run(tmp_path, folder, dialogues):
    train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    with pytest.raises(InputError, match="batch = 4 where that run has 8"):
        train_sft(open_base(folder), dialogues, tmp_path / "run", replace(QUICK, batch=4))
    with pytest.raises(InputError, match="dialogues_sha256"):
        train_sft(open_base(folder), write(tmp_path / "other.jsonl", sft_dialogues(60)), tmp_path / "run", QUICK)
    facts = train_sft(open_base(folder), dialogues, tmp_path / "run", replace(QUICK, batch=4), fresh=True)
    assert "already_done" not in facts


def test_a_folder_of_other_files_is_left_alone(tmp_path, folder, dialogues):
    (tmp_path / "thesis.txt").write_text("all I have")
    for fresh in (False, True):
        with pytest.raises(InputError, match="other files"):
            train_sft(open_base(folder), dialogues, tmp_path, QUICK, fresh=fresh)
    assert (tmp_path / "thesis.txt").read_text() == "all I have"


def test_a_loss_that_is_not_finite_stops_names_the_batch_and_keeps_the_last_good_step(
    tmp_path, folder, dialogues, monkeypatch
):
    ordinary = SftTask._loss
    calls = []

    def poisoned(self, micro):
        loss, logits = ordinary(self, micro)
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) > 3:
                loss = loss * math.nan
        return loss, logits

    monkeypatch.setattr(SftTask, "_loss", poisoned)
    base = open_base(folder)
    with pytest.raises(ModelError, match=r"step 4; .*The batch: user:\d+"):
        train_sft(base, dialogues, tmp_path / "run", replace(QUICK, pass_tokens=10_000))
    assert all(bool(torch.isfinite(p).all()) for p in base.model.parameters())
    monkeypatch.setattr(SftTask, "_loss", ordinary)
    train_sft(open_base(folder), dialogues, tmp_path / "run", replace(QUICK, pass_tokens=10_000))
    train_sft(open_base(folder), dialogues, tmp_path / "whole", replace(QUICK, pass_tokens=10_000))
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")


def test_an_epoch_shows_every_dialogue_once():
    for n, batch in ((10, 3), (12, 4), (5, 8)):
        steps = steps_per_epoch(n, batch)
        for epoch in (0, 1):
            seen = np.concatenate([step_indices(n, batch, 0, epoch * steps + s) for s in range(steps)])
            assert sorted(seen.tolist()) == list(range(n))
    assert not np.array_equal(step_indices(50, 50, 0, 0), step_indices(50, 50, 0, 1))


@pytest.mark.parametrize(
    "n, wanted", [(10, [0, 1, 2, 3, 4, 5, 6]), (7, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 4]), (1, [0])]
)
def test_a_part_of_the_held_out_is_spread_over_all(n, wanted):
    assert spread(range(7), n) == wanted


def test_both_sides_are_measured_where_the_file_has_users_before_items(tmp_path, folder):
    made = sft_dialogues(40)
    both = [*made, *(replace(d, id=d.id.replace("user", "item"), side="item") for d in made)]
    dialogues = write(tmp_path / "sft.jsonl", both)
    settings = replace(QUICK, n_eval=4)
    held_out = spread(read(dialogues, "held_out"), settings.n_eval)
    assert [d.side for d in held_out] == ["user", "user", "item", "item"]
    assert train_sft(open_base(folder), dialogues, tmp_path / "run", settings)["n_held_out"] == 4


def test_muon_leaves_rows_that_stand_for_tokens_to_adamw():
    names = (
        "transformer.wte.weight transformer.wpe.weight model.embed_tokens.weight gpt_neox.embed_out.weight "
        "lm_head.weight h.0.attn.c_attn.weight"
    ).split()
    parameters = {name: torch.nn.Parameter(torch.ones(3, 2)) for name in names}
    muon, adamw = Optimizer(parameters, OptimizerSettings(optimizer="muon"), 10).parts
    assert isinstance(muon, Muon) and [id(p) for p in muon.param_groups[0]["params"]] == [id(parameters[names[-1]])]
    assert len(adamw.param_groups[0]["params"]) == 5


def test_passes_keep_to_their_tokens_and_lose_nothing(folder):
    examples = examples_of(open_base(folder), 20)
    wanted = sorted(sum((e.tokens.ids[1:][e.tokens.is_answer[1:]].tolist() for e in examples), []))
    for packing in (False, True):
        passes = list(micro_batches(examples, max_tokens=120, packing=packing, pad_id=2))
        assert all(m.ids.numel() <= 120 for m in passes) and len(passes) > 1
        assert sorted(torch.cat([m.targets[m.weights > 0] for m in passes]).tolist()) == wanted


def test_one_round_leaves_the_second_out(tmp_path, folder, dialogues):
    facts = train_sft(open_base(folder), dialogues, tmp_path / "run", replace(QUICK, rounds=1))
    assert "eval/accuracy" not in facts and "eval/loss" in facts


def test_going_on_from_an_adapter_begins_with_it(tmp_path, folder, dialogues):
    train_sft(open_base(folder), dialogues, tmp_path / "first", QUICK)
    facts = train_sft(
        open_base(folder), dialogues, tmp_path / "second", QUICK, init_from=tmp_path / "first" / "adapter"
    )
    first, second = read_metrics(tmp_path / "first"), read_metrics(tmp_path / "second")
    assert second[0]["eval/loss"] == pytest.approx(min(m["eval/loss"] for m in first if "eval/loss" in m), rel=1e-5)
    assert facts["n_steps"] == 6


@pytest.mark.parametrize(
    "dialogues, message",
    [
        ([], "empty file"),
        ([replace(d, part="held_out") for d in sft_dialogues(5)], "none; build them with fewer held out"),
        (sft_dialogues(5, form="instruct"), "--form compact"),
    ],
)
def test_unusable_dialogues_are_told(tmp_path, folder, dialogues, message):
    with pytest.raises(InputError, match=message):
        train_sft(open_base(folder), write(tmp_path / "sft.jsonl", dialogues), tmp_path / "run", QUICK)
    assert not (tmp_path / "run").exists()


def test_dialogues_over_the_limit_are_left_out_and_counted(tmp_path, folder):
    long = [
        replace(d, messages=(replace(d.messages[0], spans=d.messages[0].spans * 8), *d.messages[1:]))
        for d in sft_dialogues(4)
    ]
    path = write(tmp_path / "sft.jsonl", [*sft_dialogues(40)[4:], *long])
    settings = replace(QUICK, max_length=60)
    assert train_sft(open_base(folder), path, tmp_path / "run", settings)["n_left_out_long"] == 4
    with pytest.raises(InputError, match="all longer; build them shorter, or give a larger --max-length"):
        train_sft(open_base(folder), write(tmp_path / "long.jsonl", long), tmp_path / "none", settings)


@pytest.mark.parametrize("line", ['{"kind": "sft"}', "not json", '{"kind": "rl"}', "[]"])
def test_a_line_that_is_no_dialogue_is_named(tmp_path, folder, line):
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(f"{text}\n" for text in (write(path, sft_dialogues(3)).read_text().rstrip(), line)))
    with pytest.raises(InputError, match="line 4 of"):
        train_sft(open_base(folder), path, tmp_path / "run", QUICK)


def test_a_span_of_the_test_split_is_refused(tmp_path, folder):
    path = write(tmp_path / "sft.jsonl", sft_dialogues(5))
    path.write_text(path.read_text().replace('"train"],["Profile', '"test"],["Profile'))
    with pytest.raises(InputError, match="'test' where one of"):
        train_sft(open_base(folder), path, tmp_path / "run", QUICK)


def test_schedules_rise_and_fall():
    parameter = {"w": torch.nn.Parameter(torch.zeros(2, 2))}
    for schedule, end in (("constant", 1.0), ("linear", 0.01), ("cosine", 0.0)):
        optimizer = Optimizer(parameter, OptimizerSettings(schedule=schedule, warmup=0.1), 100)
        scales = [optimizer.scale(s) for s in range(100)]
        assert scales[0] == pytest.approx(0.1) and 0.9 <= max(scales) <= 1.0 and scales.index(max(scales)) == 9
        assert scales[-1] == pytest.approx(end, abs=1e-3)
    late = Optimizer(parameter, OptimizerSettings(schedule="linear", warmup=0.0, decay=0.4), 100)
    assert late.scale(59) == 1.0 and late.scale(80) == pytest.approx(0.5)


def test_phrase_weight_raises_tokens_that_begin_a_phrase_and_half_of_it_those_that_end_one(folder):
    base = open_base(folder)
    example = examples_of(base, 1, Weights(phrase=6.0))[0]
    pieces = [base.tokenizer.decode([i]) for i in example.tokens.ids]
    weighed = [(piece.strip(), float(w)) for piece, w in zip(pieces, example.weights, strict=True) if w > 0]
    # "User identity: a fan, b fan, c fan; User interests: a, b, c</s>" and "Yes</s>"
    assert [piece for piece, w in weighed if w == 3.0] == [",", ",", ";", ",", ",", "</s>"]
    assert len([1 for _, w in weighed if w == 6.0]) == 6
    assert weighed[-2:] == [(sft_dialogues(1)[0].messages[3].text, 1.0), ("</s>", 1.0)]
    plain = examples_of(base, 1)[0]
    assert plain.weights.tolist() == plain.tokens.is_answer.astype(float).tolist()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_moves_matrices_by_orthogonal_steps(shape):
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
    assert bool((singular > 0.6).all()) and bool((singular < 1.3).all())
    w = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Muon([w], lr=0.1)
    w.grad = torch.randn(shape)
    optimizer.step()
    assert float((w.detach() * w.grad).sum()) < 0  # against the gradient
    assert float(torch.linalg.matrix_norm(w.detach(), 2)) == pytest.approx(
        0.1 * max(1.0, shape[0] / shape[1]) ** 0.5, rel=0.3
    )


def test_a_kill_between_a_checkpoint_and_its_mark_keeps_the_best(tmp_path, folder, dialogues, monkeypatch):
    from reclm_lite.tune import run

    class Stopped(Exception):
        pass

    ordinary = run._write

    def stop(path: Path, text: str) -> None:
        if path.name == "best" and text == "step-000003":
            raise Stopped
        ordinary(path, text)

    train_sft(open_base(folder), dialogues, tmp_path / "first", QUICK)
    beginning = read_metrics(tmp_path / "first")[0]["eval/loss"]
    monkeypatch.setattr(
        SftTask, "is_better", lambda _, new, old: old["eval/loss"] == beginning
    )  # nothing is better than step 3
    train_sft(open_base(folder), dialogues, tmp_path / "whole", QUICK)
    monkeypatch.setattr(run, "_write", stop)
    with pytest.raises(Stopped):
        train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    monkeypatch.setattr(run, "_write", ordinary)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "step-000003").is_dir() and (checkpoints / "best").read_text() == "step-000000"
    assert train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)["best_step"] == 3
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")


def test_what_only_gets_worse_is_given_back_as_it_was(tmp_path, folder, dialogues, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(SftTask, "is_better", lambda *_: False)
    facts = train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    assert facts["best_step"] == 0 and facts["eval/loss"] == read_metrics(tmp_path / "run")[0]["eval/loss"]
    written = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert not any(
        tensor.any() for name, tensor in written.items() if "lora_B" in name
    )  # an adapter that changes nothing


def test_a_damaged_checkpoint_can_be_removed_even_if_it_was_the_best(tmp_path, folder, dialogues):
    out = tmp_path / "run"
    whole = train_sft(open_base(folder), dialogues, out, QUICK)
    newest = out / "checkpoints" / "step-000006"
    assert whole["best_step"] == 6
    about = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**about, "state": "running"}))
    (newest / "tensors.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="remove it, and the run goes on"):
        train_sft(open_base(folder), dialogues, out, QUICK)
    shutil.rmtree(newest)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    (out / "metrics.jsonl").write_text("\n".join([*lines[:2], "{broken", *lines[2:]]) + "\n")
    before = adapter_bytes(out)
    facts = train_sft(open_base(folder), dialogues, out, QUICK)
    assert facts["best_step"] == 6 and adapter_bytes(out) == before
    assert [m["step"] for m in read_metrics(out)][-1] == 6


def test_fresh_removes_a_run_whose_settings_cannot_be_read(tmp_path, folder, dialogues):
    out = tmp_path / "run"
    train_sft(open_base(folder), dialogues, out, QUICK)
    (out / "run.json").write_text("{")
    with pytest.raises(InputError, match="--fresh"):
        train_sft(open_base(folder), dialogues, out, QUICK)
    assert train_sft(open_base(folder), dialogues, out, QUICK, fresh=True)["n_steps"] == 6


def test_metrics_stand_in_tensorboard_too(tmp_path, folder, dialogues):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    shutil.rmtree(
        max((tmp_path / "run" / "checkpoints").glob("step-*"))
    )  # as if it had been killed before step 6 was saved
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"state": "running"}))
    train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(m["step"], m["loss"]) for m in read_metrics(tmp_path / "run") if "loss" in m]
    assert [(e.step, pytest.approx(e.value, rel=1e-5)) for e in events.Scalars("loss")] == logged
    assert "eval/loss" in events.Tags()["scalars"]


# -- what --fresh may remove, and what makes another run ------------------------------------


def test_fresh_removes_a_run_of_its_stage_alone_and_nothing_that_it_reads(tmp_path, folder, dialogues):
    train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK)
    adapter = tmp_path / "run" / "adapter"
    with pytest.raises(InputError, match="which --fresh removes"):
        train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK, init_from=adapter, fresh=True)
    assert (adapter / "adapter_model.safetensors").is_file()
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**about, "stage": "reward"}))
    with pytest.raises(InputError, match="found one of reward"):
        train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK, fresh=True)
    assert (adapter / "adapter_model.safetensors").is_file()
    (tmp_path / "run" / "run.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="other files"):
        train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK, fresh=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    (tmp_path / "run" / "gguf").mkdir()
    (tmp_path / "run" / "gguf" / "model.gguf").write_text("exported")
    train_sft(open_base(folder), dialogues, tmp_path / "run", replace(QUICK, batch=4), fresh=True)
    assert (tmp_path / "run" / "gguf" / "model.gguf").read_text() == "exported"


def test_another_adapter_to_begin_with_is_another_run_though_its_folder_has_the_same_name(tmp_path, folder, dialogues):
    for seed in (1, 2):
        train_sft(
            open_base(folder),
            dialogues,
            tmp_path / f"first{seed}",
            replace(QUICK, max_steps=2, loop=LoopSettings(2, 2, seed)),
        )
    train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK, init_from=tmp_path / "first1" / "adapter")
    with pytest.raises(InputError, match="init_sha256"):
        train_sft(open_base(folder), dialogues, tmp_path / "run", QUICK, init_from=tmp_path / "first2" / "adapter")


def test_two_processes_do_not_tune_in_one_folder(tmp_path, folder, dialogues):
    from reclm_lite.tune.run import Run

    with Run.open(tmp_path / "run", "sft", {}), pytest.raises(InputError, match="another one tuning there"):
        Run.open(tmp_path / "run", "sft", {})
    Run.open(tmp_path / "run", "sft", {}).close()


def test_parameters_that_diverged_are_not_given_out(tmp_path, folder, dialogues):
    wild = replace(QUICK, max_steps=1, optimizer=OptimizerSettings(lr=1e30, warmup=0.0))
    with pytest.raises(ModelError, match="diverged"):
        train_sft(open_base(folder), dialogues, tmp_path / "run", wild)
    assert not (tmp_path / "run" / "adapter").exists() and [
        p.name for p in (tmp_path / "run").glob("checkpoints/step-*")
    ] == ["step-000000"]
    assert "diverged" in json.loads((tmp_path / "run" / "run.json").read_text())["state"]


def test_dialogues_longer_than_the_base_can_read_are_left_out(tmp_path, folder):
    long = [
        replace(d, messages=(replace(d.messages[0], spans=d.messages[0].spans * 30), *d.messages[1:]))
        for d in sft_dialogues(4)
    ]
    path = write(tmp_path / "sft.jsonl", [*sft_dialogues(40)[4:], *long])
    assert (
        train_sft(open_base(folder), path, tmp_path / "run", replace(QUICK, max_length=4096))["n_left_out_long"] == 4
    )  # of 256 positions


# -- other arithmetic, other bases ----------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_bfloat16_learns_what_float32_does(tmp_path, folder, dialogues, full):
    settings = replace(QUICK, full=full, max_steps=12, loop=LoopSettings(12, 6))
    losses = {}
    for dtype in ("float32", "bfloat16"):
        base = load_base(BaseSettings(str(folder), dtype=dtype, full=full))
        losses[dtype] = train_sft(base, dialogues, tmp_path / dtype, settings)["eval/loss"]
        trained = {p.dtype for p in base.model.parameters() if p.requires_grad}
        assert trained == {torch.float32}  # what is trained stays so, whatever is computed in
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05) and losses["bfloat16"] != losses["float32"]


def test_a_base_with_a_chat_template_is_tuned_on_dialogues_of_plain_words(tmp_path):
    base = load_base(BaseSettings(str(chat_base(tmp_path / "chat"))))
    path = write(tmp_path / "sft.jsonl", sft_dialogues(40, form="instruct"))
    facts = train_sft(base, path, tmp_path / "run", replace(QUICK, max_length=2048))
    first = read_metrics(tmp_path / "run")[0]["eval/loss"]
    assert facts["eval/loss"] < first and facts["n_dialogues"] == 32
