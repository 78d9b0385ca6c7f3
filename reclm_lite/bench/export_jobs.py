"""The work that `reclm bench export` times: each kind in a process of its own, which tells its peak memory at the end.

    python -m reclm_lite.bench.export_jobs '{"kind": "merge", "base": "…", "adapter": "…", "out": "…"}'

Peak memory is the kernel's own high-water mark of resident pages (VmHWM), mapped files included.
"""

import json
import resource
import runpy
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True)
class Spent:
    """What a job took: seconds from starting the process to its end, and its peak resident memory in bytes."""

    seconds: float
    peak_bytes: int


def run_job(kind: str, **arguments: Any) -> Spent:
    """Run a job in a fresh process. Raises ModelError with the last line it wrote where it fails."""
    job = json.dumps({"kind": kind, **{name: str(value) for name, value in arguments.items()}})
    started = time.perf_counter()
    # -P: the installed package, also where the working directory is the repository.
    run = subprocess.run([sys.executable, "-P", "-m", __name__, job], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if run.returncode:
        why = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(
            f"expected the job {kind!r} of the benchmark to end well, found exit code {run.returncode}: {why}"
        )
    return Spent(seconds, int(run.stdout.strip().splitlines()[-1]))


def main(job: dict[str, str]) -> int:
    """Do `job` and return this process's peak resident memory in bytes."""
    kind = job.pop("kind")
    _KINDS[kind](**job)
    return _peak_bytes()


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _nothing() -> None:
    """A bare interpreter that has loaded this file."""


def _export(base: str, adapter: str, out: str, quant: str) -> None:
    from ..convert.export import export

    export(Path(base), Path(out), [quant], adapter=Path(adapter), imatrix=None, parity="off", name="model")


def _merge(base: str, adapter: str, out: str, n_threads: str) -> None:
    """peft's merge_and_unload in the checkpoint's float16; saved at `out` unless that is empty."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(n_threads))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if out:
        merged.save_pretrained(out)


def _oracle(llama_cpp: str, checkpoint: str, out: str) -> None:
    """llama.cpp's convert_hf_to_gguf.py as it is, but for being told the pre-tokenizer, which it knows by a list."""
    sys.path[:0] = [llama_cpp, f"{llama_cpp}/gguf-py"]
    from conversion.base import TextModel

    def absent(self: object) -> None:
        raise FileNotFoundError

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    TextModel._set_vocab_sentencepiece = TextModel._set_vocab_llama_hf = absent
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outtype", "f16", "--outfile", out]
    runpy.run_path(f"{llama_cpp}/convert_hf_to_gguf.py", run_name="__main__")


_KINDS = {"nothing": _nothing, "export": _export, "merge": _merge, "oracle": _oracle}

if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
