"""The work that `reclm bench export` times, each function in a child process (`harness.run_in_child`).

Light: what is imported here counts as the memory of a bare interpreter.
"""

import runpy
import sys
from pathlib import Path


def nothing() -> None:
    """Only what every child loads: the memory that the other jobs are compared with."""


def export(base: str, adapter: str, out: str, quant: str) -> None:
    from ...convert.export import export as export_checkpoint

    export_checkpoint(Path(base), Path(out), [quant], adapter=Path(adapter), imatrix=None, parity="off", name="model")


def merge(base: str, adapter: str, out: str, n_threads: int) -> None:
    """peft's merge_and_unload in the checkpoint's float16; saved at `out` unless that is empty."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(n_threads)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if out:
        merged.save_pretrained(out)


def oracle(llama_cpp: str, checkpoint: str, out: str) -> None:
    """llama.cpp's convert_hf_to_gguf.py unchanged, but with the pre-tokenizer given: it looks that up in a list."""
    sys.path[:0] = [llama_cpp, f"{llama_cpp}/gguf-py"]
    from conversion.base import TextModel

    def absent(self: object) -> None:
        raise FileNotFoundError

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    TextModel._set_vocab_sentencepiece = TextModel._set_vocab_llama_hf = absent
    sys.argv = ["convert_hf_to_gguf.py", checkpoint, "--outtype", "f16", "--outfile", out]
    runpy.run_path(f"{llama_cpp}/convert_hf_to_gguf.py", run_name="__main__")
