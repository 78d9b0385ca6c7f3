"""`reclm export` from the user's side: files that are proved, a manifest that is true, nothing made twice, nothing
lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from reclm_lite.bench.random_llama import Shape, write_adapter, write_checkpoint
from reclm_lite.cli import main
from reclm_lite.convert import export as export_module
from reclm_lite.convert import target
from reclm_lite.convert import unquantized as unquantized_module
from reclm_lite.convert.merge import open_source
from reclm_lite.files import file_sha256
from reclm_lite.runtime import check_gguf

TINY = Shape(hidden=64, feed_forward=96, n_layers=1, n_heads=4, n_kv_heads=2, n_vocab=300, rank=2)
UP = "model.layers.0.mlp.up_proj.weight"
OFF = ("--parity", "off", "--threads", "1")
PLAIN = ("--imatrix", "none", *OFF)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", TINY)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", TINY, base)


def export(*arguments: object, expect: int = 0) -> tuple[str, str]:
    """Run the verb; (stdout, stderr)."""
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
    return result.stdout, result.stderr


def refusal(*arguments: object) -> str:
    """The one sentence of an export that is refused."""
    _, err = export(*arguments, expect=1)
    lines = [line for line in err.splitlines() if line and not line.startswith("WARNING")]
    assert len(lines) == 1 and lines[0].startswith("Error: "), err
    return lines[0]


def manifest_of(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def listing(out: Path) -> dict[str, int]:
    """{name: modification time} of everything in a folder."""
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def edit(base: Path, change) -> None:
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors")


def test_checkpoint_and_adapter_become_files_with_a_true_manifest(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stdout, _ = export("--base", base, "--adapter", adapter, "--quant", "f16,q8_0", "-o", out, "--name", "mine", *PLAIN)
    assert "mine-f16.gguf" in stdout and "mine-q8_0.gguf" in stdout
    assert sorted(listing(out)) == ["manifest.json", "mine-f16.gguf", "mine-q8_0.gguf"]
    manifest = manifest_of(out)
    assert [entry["ftype"] for entry in manifest["files"]] == ["f16", "q8_0"]
    for entry in manifest["files"]:
        path = out / entry["file"]
        assert (file_sha256(path), path.stat().st_size) == (entry["sha256"], entry["size_bytes"])
    seen = {(entry["role"], entry["file"]) for entry in manifest["inputs"]}
    assert {("base", "model.safetensors"), ("base", "tokenizer.json"), ("adapter", "adapter_model.safetensors")} <= seen
    folders = {"base": base, "adapter": adapter}
    assert all(file_sha256(folders[entry["role"]] / entry["file"]) == entry["sha256"] for entry in manifest["inputs"])
    assert str(tmp_path) not in (out / "manifest.json").read_text()  # it is published with the model
    assert 8.4 < manifest["files"][1]["bits_per_weight"] < 9 and manifest["n_params"] == TINY.n_params
    written = {tensor.name: tensor.data for tensor in GGUFReader(out / "mine-f16.gguf").tensors}
    merged = open_source(base, adapter).tensor(UP)
    np.testing.assert_array_equal(written["blk.0.ffn_up.weight"], merged.astype(np.float16))
    assert (merged != load_file(base / "model.safetensors")[UP]).mean() > 0.9


def test_json_is_the_only_thing_on_stdout(base: Path, tmp_path: Path) -> None:
    stdout, _ = export("--base", base, "-o", tmp_path / "out", "--json", *PLAIN)
    assert json.loads(stdout) == manifest_of(tmp_path / "out")


def test_a_second_run_touches_nothing(base: Path, tmp_path: Path) -> None:
    first = export("--base", base, "--quant", "q8_0,q4_0", "-o", tmp_path / "out", *PLAIN)[0]
    before = listing(tmp_path / "out")
    assert export("--base", base, "--quant", "q8_0,q4_0", "-o", tmp_path / "out", *PLAIN)[0] == first
    assert listing(tmp_path / "out") == before


def test_further_types_are_added_and_the_others_kept(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export("--base", base, "--quant", "f16,q8_0", "-o", out, *PLAIN)
    before = listing(out)
    export("--base", base, "--quant", "q4_0", "-o", out, *PLAIN)
    after = listing(out)
    assert {
        name: time for name, time in after.items() if name in before and name != "manifest.json"
    }.items() <= before.items()
    assert {entry["ftype"] for entry in manifest_of(out)["files"]} == {"f16", "q8_0", "q4_0"}


def test_another_input_makes_everything_anew_and_says_so(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export("--base", base, "--quant", "f16,q8_0", "-o", out, *PLAIN)
    before = {entry["ftype"]: entry["sha256"] for entry in manifest_of(out)["files"]}
    edit(base, lambda tensors: tensors[UP].__setitem__((0, 0), 1.0))
    export("--base", base, "--quant", "q8_0", "-o", out, *PLAIN)
    (entry,) = manifest_of(out)["files"]  # the float16 file is of the earlier model, so it left the manifest
    assert entry["sha256"] != before["q8_0"] and (out / "base-f16.gguf").exists()


def test_the_user_is_told_that_files_are_made_anew(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export("--base", base, "--quant", "f16,q8_0", "-o", tmp_path / "out", *PLAIN)
    edit(base, lambda tensors: tensors[UP].__setitem__((0, 0), 1.0))
    export("--base", base, "--quant", "q8_0", "-o", tmp_path / "out", *PLAIN)
    assert "made anew" in caplog.text and "base-f16.gguf is of an earlier export" in caplog.text


def test_a_copied_input_with_the_same_bytes_is_the_same_input(base: Path, tmp_path: Path) -> None:
    export("--base", base, "-o", tmp_path / "out", "--name", "m", *PLAIN)
    before = listing(tmp_path / "out")
    shutil.copytree(base, tmp_path / "copy")  # another path, other times
    os.utime(tmp_path / "copy" / "model.safetensors", (1, 1))
    export("--base", tmp_path / "copy", "-o", tmp_path / "out", "--name", "m", *PLAIN)
    assert listing(tmp_path / "out") == before


def test_an_input_with_another_byte_is_another_input_whatever_its_times_say(base: Path, tmp_path: Path) -> None:
    export("--base", base, "-o", tmp_path / "out", *PLAIN)
    before, weights = (tmp_path / "out" / "base-q8_0.gguf").read_bytes(), base / "model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-200] ^= 0x10
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    export("--base", base, "-o", tmp_path / "out", *PLAIN)
    assert (tmp_path / "out" / "base-q8_0.gguf").read_bytes() != before


def test_a_snapshot_of_the_hub_cache_is_named_after_its_repository(base: Path, tmp_path: Path) -> None:
    """Its files are links to blobs that are named by their hash, its folder by a commit."""
    repository = tmp_path / "models--some-org--tiny-llama"
    snapshot = repository / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, path in enumerate(sorted(base.iterdir())):
        shutil.copy(path, repository / "blobs" / f"{i:040}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{i:040}"))
    export("--base", snapshot, "-o", tmp_path / "out", *PLAIN)
    manifest = manifest_of(tmp_path / "out")
    assert (manifest["base"], manifest["files"][0]["file"]) == ("tiny-llama", "tiny-llama-q8_0.gguf")
    assert "model.safetensors" in {entry["file"] for entry in manifest["inputs"]}
    # The same bytes in a plain folder are the same inputs.
    before = listing(tmp_path / "out")
    export("--base", base, "-o", tmp_path / "out", "--name", "tiny-llama", *PLAIN)
    assert listing(tmp_path / "out") == before


def test_a_damaged_output_is_made_again(base: Path, tmp_path: Path) -> None:
    export("--base", base, "-o", tmp_path / "out", *PLAIN)
    path = tmp_path / "out" / "base-q8_0.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    export("--base", base, "-o", tmp_path / "out", *PLAIN)
    assert path.read_bytes() == whole


def texts_file(path: Path, n: int = 5) -> Path:
    path.write_text("\n\n".join(f"History:\n# the {word}\nProfile:" for word in "night train salt road".split()[:n]))
    return path


def test_an_importance_matrix_is_computed_for_the_types_that_gain_by_it(base: Path, tmp_path: Path) -> None:
    out, texts = tmp_path / "out", texts_file(tmp_path / "texts.txt")
    export("--base", base, "--quant", "q8_0,q4_0", "-o", out, "--calibration", texts, *OFF)
    manifest = manifest_of(out)
    assert [entry["imatrix"] for entry in manifest["files"]] == [False, True]
    assert manifest["imatrix"]["n_texts"] == 4 and manifest["imatrix"]["sha256"] == file_sha256(out / "imatrix.gguf")
    weighted = (out / "base-q4_0.gguf").read_bytes()
    export("--base", base, "--quant", "q4_0", "-o", tmp_path / "plain", *PLAIN)
    assert (tmp_path / "plain" / "base-q4_0.gguf").read_bytes() != weighted
    # The file that was kept gives the same weights, and other texts another matrix.
    export("--base", base, "--quant", "q4_0", "-o", tmp_path / "given", "--imatrix", out / "imatrix.gguf", *OFF)
    assert (tmp_path / "given" / "base-q4_0.gguf").read_bytes() == weighted
    before = listing(out)
    export("--base", base, "--quant", "q8_0,q4_0", "-o", out, "--calibration", texts_file(texts, 2), *OFF)
    changed = {name for name, time in listing(out).items() if time != before[name]}
    assert changed == {"imatrix.gguf", "base-q4_0.gguf", "manifest.json"}


def test_a_matrix_of_another_format_is_refused_before_any_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (export_module, unquantized_module):
        monkeypatch.setattr(module, "write_gguf", None)
    texts = texts_file(tmp_path / "texts.txt")
    message = refusal("--base", base, "--quant", "q4_0", "-o", tmp_path / "out", "--imatrix", texts, *OFF)
    assert f"expected an importance matrix at {texts}" in message


def test_a_full_disk_is_told_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda path: usage)
    message = refusal("--base", base, "--quant", "q8_0,q4_0", "-o", tmp_path / "out", *PLAIN)
    assert "found 3 MiB" in message and "base-q8_0.gguf" in message and "the unquantized f16 file" in message
    assert listing(tmp_path / "out") == {}


def test_the_disk_is_looked_at_again_where_merged_weights_need_float32(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_torch(base / "model.safetensors").items()}
    tensors[UP][0, 0] = 1e5  # beyond float16
    save_torch(tensors, base / "model.safetensors")
    monkeypatch.setattr(target, "_SPARE_BYTES", 0)
    arguments = ("--base", base, "--adapter", adapter, "-o", tmp_path / "out", *PLAIN)
    full = shutil.disk_usage(tmp_path)
    n_weights = sum(tensor.numel() for tensor in tensors.values())
    # Room for the float16 file beside the one asked for, not for the float32 one.
    monkeypatch.setattr(target.shutil, "disk_usage", lambda path: full._replace(free=int(3.5 * n_weights)))
    assert "the unquantized f32 file" in refusal(*arguments)
    assert listing(tmp_path / "out") == {}
    monkeypatch.setattr(target.shutil, "disk_usage", lambda path: full)
    export(*arguments)


def test_a_disk_that_fills_up_meanwhile_leaves_what_was_there(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export("--base", base, "-o", out, *PLAIN)
    before = listing(out)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from reclm_lite.cli import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "export", "--base", base, "--quant", "q8_0,q4_0", "-o", out, *PLAIN],
        capture_output=True,
        text=True,
    )
    said = run.stderr.strip()  # older rich ends a progress bar with a blank line
    assert run.returncode == 1 and said.startswith("Error: expected to write") and len(said.splitlines()) == 1
    assert listing(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "{base}", "-o", "{base}"], "expected a target other than what is exported"),
        (["--base", "{base}", "-o", "{file}"], "expected a folder to write to"),
        (["--base", "{base}", "-o", "{file}/sub"], "expected a folder that can be written to"),
        (
            ["--base", "{base}", "-o", "{out}", "--quant", "q8_0,q9_9"],
            "expected a type among f32, f16.*iq4_xs.*found 'q9_9'",
        ),
        (["--base", "{base}", "-o", "{out}", "--quant", "q8_0,Q8_0"], "expected each type once.*q8_0"),
        (["--base", "{base}", "-o", "{out}", "--quant", ","], "at least one type"),
        (["--base", "{out}", "-o", "{out}"], "expected the folder of a checkpoint"),
        (["--base", "{adapter}", "-o", "{out}"], "give this folder as the adapter"),
        (["--base", "{adapter}", "--adapter", "{base}", "-o", "{out}"], "found an adapter|the wrong way round"),
        (["--base", "{base}", "--adapter", "{base}", "-o", "{out}"], "the wrong way round"),
        (["--base", "{base}", "--adapter", "{out}", "-o", "{out}"], "expected the folder of an adapter"),
        (["--base", "{base}", "-o", "{out}", "--name", "a/b"], "expected a name that can begin a file's name"),
        (["--base", "{base}", "-o", "{out}", "--quant", "iq2_xs"], "expected an importance matrix for iq2_xs"),
        (
            ["--base", "{base}", "-o", "{out}", "--quant", "q4_0", "--imatrix", "{out}/none.gguf"],
            "expected an importance matrix at",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(
    base: Path, adapter: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    import re

    (tmp_path / "file").write_text("mine")
    places = {"base": base, "adapter": adapter, "file": tmp_path / "file", "out": tmp_path / "out"}
    plain = OFF if "--imatrix" in arguments else PLAIN
    assert re.search(message, refusal(*[each.format(**places) for each in arguments], *plain))
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.glob("out/*"))


def test_a_reward_models_adapter_is_told_from_one_that_writes(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "head.safetensors").write_bytes(b"")
    message = refusal("--base", base, "--adapter", adapter, "-o", tmp_path / "out", *PLAIN)
    assert "found a reward model's (head.safetensors)" in message and "reclm tune ppo" in message


def test_pickled_weights_and_bad_values_are_refused(base: Path, tmp_path: Path) -> None:
    edit(base, lambda tensors: tensors[UP].__setitem__((3, 3), np.nan))
    assert f"NaN or infinity in tensor {UP!r}" in refusal("--base", base, "-o", tmp_path / "out", *PLAIN)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal("--base", base, "-o", tmp_path / "out", *PLAIN)
    assert listing(tmp_path / "out") == {}


def test_a_foreign_manifest_is_left_alone(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    damaged = [
        {"files": 7},
        {"files": [{}]},
        {"files": [7]},
        {"imatrix": 5},
        {"imatrix": {"computed": True}},
        {"identity": None},
        {"imatrix": {"file": "imatrix.gguf", "computed": True, "made_from": "x"}},
    ]
    own = {"format": 1, "identity": "x", "imatrix": None, "files": []}
    foreign = [
        '{"name": "an extension"}',
        "[]",
        "no json",
        '{"format": 1}',
        '{"format": 99, "files": []}',
        "[" * 100_000,
    ]
    for content in foreign + [json.dumps(own | each) for each in damaged]:
        (out / "manifest.json").write_text(content)
        assert "choose another folder" in refusal("--base", base, "-o", out, *PLAIN)
        assert (out / "manifest.json").read_text() == content and list(listing(out)) == ["manifest.json"]


def test_two_exports_do_not_share_a_target(base: Path, tmp_path: Path) -> None:
    with target.scratch_folder(tmp_path / "out"):
        assert "another export is writing to" in refusal("--base", base, "-o", tmp_path / "out", *PLAIN)
    export("--base", base, "-o", tmp_path / "out", *PLAIN)


def test_an_input_that_changes_meanwhile_is_noticed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = unquantized_module.write_gguf

    def and_someone_saves(*arguments, **options):
        result = write(*arguments, **options)
        os.utime(base / "model.safetensors", (1, 1))
        return result

    monkeypatch.setattr(unquantized_module, "write_gguf", and_someone_saves)
    assert "model.safetensors changed" in refusal("--base", base, "-o", tmp_path / "out", *PLAIN)
    assert listing(tmp_path / "out") == {}


KILLED = """
import sys, time
from pathlib import Path
from reclm_lite.convert.export import export

def progress(what, done, total):
    if what == sys.argv[3]:
        print("there", flush=True)
        time.sleep(60)

model, out = map(Path, sys.argv[1:3])
export(model, out, ["q8_0", "q4_0"], imatrix=None, parity="off", n_threads=1, progress=progress)
"""


@pytest.mark.parametrize(
    ("moment", "n_made"), [("writing tensors", 0), ("q8_0: quantizing", 0), ("q4_0: quantizing", 1)]
)
def test_a_kill_leaves_only_what_is_whole_and_the_next_run_goes_on(
    base: Path, tmp_path: Path, moment: str, n_made: int
) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", KILLED, base, out, moment], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = listing(out)
    assert sorted(before) == [".export", "base-q8_0.gguf", "manifest.json"][: 1 + 2 * n_made]
    export("--base", base, "--quant", "q8_0,q4_0", "-o", out, *PLAIN)
    after = listing(out)
    assert sorted(after) == ["base-q4_0.gguf", "base-q8_0.gguf", "manifest.json"]
    if n_made:
        assert after["base-q8_0.gguf"] == before["base-q8_0.gguf"]
        assert [entry["ftype"] for entry in manifest_of(out)["files"]] == ["q8_0", "q4_0"]


# The gate

GATED = ("--imatrix", "none", "--parity", "gguf", "--threads", "1")


def spoil(path: Path) -> None:
    """Zeroes the rows of one matrix: a file that is whole, loads, and says something else."""
    (tensor,) = [tensor for tensor in check_gguf(path).tensors if tensor.name == "blk.0.ffn_down.weight"]
    with path.open("rb+") as stream:
        stream.seek(tensor.offset_bytes)
        stream.write(bytes(tensor.size_bytes))


def test_a_file_that_is_not_equal_is_kept_aside_and_the_others_are_made(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, texts = tmp_path / "out", texts_file(tmp_path / "texts.txt")
    quantize = export_module.quantize_gguf

    def badly(source, path, ftype, **options):
        report = quantize(source, path, ftype, **options)
        if ftype == "q8_0":
            spoil(path)
        return report

    monkeypatch.setattr(export_module, "quantize_gguf", badly)
    command = ("--base", base, "--quant", "q8_0,q5_0", "-o", out, "--calibration", texts, *GATED)
    stdout, stderr = export(*command, expect=1)
    assert "FAILED" in stdout and "base-q8_0.failed-parity.gguf differs" in stderr
    assert sorted(listing(out)) == ["base-q5_0.gguf", "base-q8_0.failed-parity.gguf", "manifest.json"]
    bad, good = manifest_of(out)["files"]
    assert not bad["passed"] and any("blk.0.ffn_down.weight" in reason for reason in bad["parity"]["reasons"])
    assert good["passed"] and good["parity"]["reasons"] == [] and good["parity"]["logits"]["mean_kl"] < 1
    before = listing(out)
    monkeypatch.undo()
    export(*command)
    assert sorted(listing(out)) == ["base-q5_0.gguf", "base-q8_0.gguf", "manifest.json"]
    assert listing(out)["base-q5_0.gguf"] == before["base-q5_0.gguf"]
    assert all(entry["passed"] for entry in manifest_of(out)["files"])


def test_a_file_that_was_not_compared_is_proved_when_asked_for(base: Path, tmp_path: Path) -> None:
    out, texts = tmp_path / "out", texts_file(tmp_path / "texts.txt")
    export("--base", base, "-o", out, *PLAIN)
    assert manifest_of(out)["files"][0]["parity"] is None
    export("--base", base, "-o", out, "--calibration", texts, *GATED)
    assert manifest_of(out)["files"][0]["parity"]["passed"] is True


def test_a_spoilt_successor_leaves_the_proved_file_of_an_earlier_export(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, texts = tmp_path / "out", texts_file(tmp_path / "texts.txt")
    command = ("--base", base, "--quant", "q8_0", "-o", out, "--calibration", texts, *GATED)
    export(*command)
    earlier = (out / "base-q8_0.gguf").read_bytes()
    edit(base, lambda tensors: tensors[UP].__setitem__((0, 0), 1.0))
    quantize = export_module.quantize_gguf
    monkeypatch.setattr(
        export_module, "quantize_gguf", lambda source, path, *a, **o: (quantize(source, path, *a, **o), spoil(path))[0]
    )
    _, stderr = export(*command, expect=1)
    assert (out / "base-q8_0.gguf").read_bytes() == earlier
    assert [entry["file"] for entry in manifest_of(out)["files"]] == ["base-q8_0.failed-parity.gguf"]


def test_an_export_needs_neither_torch_nor_transformers(base: Path, adapter: Path, tmp_path: Path) -> None:
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft')))\nfrom reclm_lite.cli "
        "import main; main()"
    )
    texts = texts_file(tmp_path / "texts.txt")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            blocked,
            "export",
            "--base",
            base,
            "--adapter",
            adapter,
            "--quant",
            "q8_0,q4_0",
            "-o",
            tmp_path / "out",
            "--calibration",
            texts,
            "--threads",
            "1",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    manifest = manifest_of(tmp_path / "out")
    assert [entry["imatrix"] for entry in manifest["files"]] == [False, True] and all(
        entry["passed"] for entry in manifest["files"]
    )
    assert "unquantized GGUF" in manifest["reference"]


def test_an_adapter_is_proved_against_peft_in_transformers(base: Path, adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    texts = texts_file(tmp_path / "texts.txt")
    export(
        "--base",
        base,
        "--adapter",
        adapter,
        "--quant",
        "f16",
        "-o",
        tmp_path / "out",
        "--calibration",
        texts,
        "--parity",
        "transformers",
        "--threads",
        "1",
    )
    manifest = manifest_of(tmp_path / "out")
    (entry,) = manifest["files"]
    assert "transformers" in manifest["reference"] and entry["parity"]["token_ids"]["n_mismatches"] == 0
    assert entry["parity"]["token_ids"]["n_texts"] >= 1000 and entry["parity"]["greedy"]["n_prompts"] >= 64
    assert entry["parity"]["greedy"]["n_different"] == 0
