"""Collects an importance matrix: how large the inputs of every weight matrix are, column by column, on real prompts.

    collect_imatrix(Path("model-f16.gguf"), prompts, Path("imatrix.gguf"))
    quantize_gguf(source, out, "q4_k_m", imatrix=read_imatrix(Path("imatrix.gguf")))

A quantization that knows which columns meet large activations rounds those more finely. For every `blk.*` weight that
the model multiplies by, llama.cpp hands over what it is multiplied with, and the squares are added up. Left out, as
llama.cpp's own tool leaves them out by default: the output matrix and the token embedding. Left out as well: mixtures
of experts, which no family of this package has.

Method followed: llama.cpp's tools/imatrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.ggml_tensor import F32, Ggml, load_ggml
from reclm_lite.convert.imatrix_file import Imatrix, Importance, check_fits, read_imatrix, weights_of, write_imatrix
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Context, Model, last_errors, load_model, long_call

__all__ = ["Imatrix", "Importance", "check_fits", "collect_imatrix", "read_imatrix", "weights_of", "write_imatrix"]

_LOGITS_BYTES = 128 << 20  # the logits that one call of llama_decode may need
_MIN_BATCH = 32
_MIN_CTX = 16


@dataclass(frozen=True)
class ImatrixSummary:
    """What a collection was made of. A long text makes several sequences; `n_dropped` texts had no tokens."""

    out: str
    n_entries: int
    n_texts: int
    n_dropped: int
    n_sequences: int
    n_tokens: int
    chunk_count: int
    chunk_size: int

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict that JSON can hold."""
        return asdict(self)


class _Collector:
    """The callback of a context: adds up the squares of what every weight of `shapes` is multiplied by.

    shapes: {weight's name: (n_columns, n_rows)}. An exception in here is kept in `failure`, as C cannot carry it.
    """

    def __init__(self, ggml: Ggml, shapes: Mapping[str, tuple[int, ...]]):
        self.ggml, self.shapes = ggml, shapes
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        self.failure: BaseException | None = None
        self.signals: list[int] = []  # those that came during the call, see runtime.long_call

    def __call__(self, address: int, ask: bool) -> bool:
        if self.failure is None and not self.signals:
            try:
                return self._observe(address, ask)
            except BaseException as error:  # raised again by whoever called llama.cpp
                self.failure = error
        return ask  # asks for every node, so that the next call can end the computation

    def _observe(self, address: int, ask: bool) -> bool:
        tensor = self.ggml.tensor(address)
        if tensor.op != self.ggml.mul_mat_op:
            return False
        weight, activations = self.ggml.tensor(tensor.src[0]), self.ggml.tensor(tensor.src[1])
        name = weight.name.decode("utf-8", errors="replace")
        shape = self.shapes.get(name)
        if shape is None or activations.type != F32:
            return False
        if ask:
            return True
        if tuple(weight.ne)[:2] != shape or activations.ne[0] != shape[0]:
            raise ModelError(
                f"expected {name!r} of {shape} times rows of {shape[0]}, found {tuple(weight.ne)} times "
                f"{tuple(activations.ne)}: another layout of ggml's tensors"
            )
        rows = self.ggml.values(tensor.src[1]).reshape(-1, shape[0])
        sums = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise ModelError(
                f"expected finite activations before {name!r}, found NaN or infinity; train or convert again"
            )
        self.sums[name] = self.sums.get(name, 0.0) + sums
        self.counts[name] = self.counts.get(name, 0) + len(rows)
        return True


def cut_texts(model: Model, texts: Sequence[str], n_ctx: int) -> list[list[int]]:
    """Token ids of each text, one sequence per text, with the special tokens that the model adds.

    A text of more than `n_ctx` tokens makes several sequences, each with those special tokens; one of none makes none.
    """
    sequences = []
    for text in texts:
        bare, whole = (model.tokenize(text, add_special=special) for special in (False, True))
        n_added = len(whole) - len(bare)
        start = next((i for i in range(n_added + 1) if whole[i : i + len(bare)] == bare), 0)
        head, tail = whole[:start], whole[start + len(bare) :]
        room = n_ctx - n_added
        sequences += [head + bare[at : at + room] + tail for at in range(0, len(bare), room)]
    return sequences


class _Runner:
    """Runs sequences of tokens through a model, each on its own, in batches that bound the memory."""

    def __init__(self, context: Context, collector: _Collector, n_batch: int):
        self.context, self.lib, self.n_batch = context, context.lib, n_batch
        self.collector = collector
        self.memory = self.lib.llama_get_memory(context.handle)  # none in an encoder, which sees a text at once
        self.batch = self.lib.llama_batch_init(n_batch, 0, 1)

    def run(self, tokens: Sequence[int]) -> None:
        """Every position is an output: without that, the last block would see one row of each sequence."""
        if self.memory:
            self.lib.llama_memory_clear(self.memory, False)
        batch = self.batch
        for start in range(0, len(tokens), self.n_batch):
            piece = tokens[start : start + self.n_batch]
            batch.n_tokens = len(piece)
            for i, token in enumerate(piece):
                batch.token[i], batch.pos[i] = token, start + i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            call = self.lib.llama_decode if self.memory else self.lib.llama_encode
            with long_call() as self.collector.signals:
                status = call(self.context.handle, batch)
            if self.collector.failure is not None:
                raise self.collector.failure
            if status != 0:
                raise ModelError(f"llama.cpp could not run {len(piece)} tokens: {last_errors() or f'status {status}'}")

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)


def collect(
    model: Model,
    sequences: Sequence[Sequence[int]],
    *,
    n_ctx: int,
    n_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Importance]:
    """Runs sequences of at most `n_ctx` tokens through an open model: {weight's name: Importance}.

    progress: called as progress(done, total) in sequences. For one number of threads the result is always the same.
    """
    collector = _Collector(load_ggml(), weights_of(model.gguf))
    causal = model.gguf.metadata.get(f"{model.gguf.architecture}.attention.causal", True)
    n_batch = min(n_ctx, max(_MIN_BATCH, _LOGITS_BYTES // (4 * model.n_vocab))) if causal else n_ctx
    sizes = {"n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_batch, "n_seq_max": 1}
    on_cpu = {"op_offload": False, "offload_kqv": False}
    output = {} if causal else {"embeddings": True, "pooling_type": 0}  # every token's vector, not the text's
    with model.context(n_threads=n_threads, cb_eval=collector, **sizes, **on_cpu, **output) as context:
        runner = _Runner(context, collector, n_batch)
        try:
            for done, tokens in enumerate(sequences, start=1):
                runner.run(tokens)
                if progress is not None:
                    progress(done, len(sequences))
        finally:
            runner.close()
    return {
        name: Importance(sums.astype(np.float32)[None], np.array([collector.counts[name]]))
        for name, sums in collector.sums.items()
    }


def collect_imatrix(
    gguf: Path,
    texts: Sequence[str],
    out: Path,
    *,
    n_ctx: int = 512,
    n_threads: int | None = None,
    dataset: str = "calibration",
    progress: Callable[[int, int], None] | None = None,
) -> ImatrixSummary:
    """Runs the texts through an unquantized GGUF model and writes its importance matrix at `out`, whole or not at all.

    Each text is a sequence of its own, as it will be when the model is used; longer ones are cut every `n_ctx`
    tokens. As llama.cpp counts, a chunk is `n_ctx` tokens. dataset: a name for the texts, kept in the file.
    progress: called as progress(done, total) in sequences. Raises ModelError where the model or the texts are no use.
    """
    if not texts:
        raise ModelError("expected texts to collect an importance matrix from, found none")
    with load_model(gguf, use_extra_bufts=False) as model:
        quantized = sorted({t.type_name for t in model.gguf.tensors} - {"F32", "F16", "BF16"})
        if quantized:
            raise ModelError(f"expected {gguf} unquantized, found {quantized}; collect from the F16, BF16 or F32 file")
        n_ctx = min(n_ctx, model.n_ctx_train)
        if n_ctx < _MIN_CTX:
            raise ModelError(f"expected chunks of at least {_MIN_CTX} tokens, found {n_ctx}")
        sequences = cut_texts(model, texts, n_ctx)
        n_dropped = sum(not model.tokenize(text, add_special=False) for text in texts)
        if not sequences:
            raise ModelError(f"expected texts with at least one token, found {len(texts)} without any")
        entries = collect(model, sequences, n_ctx=n_ctx, n_threads=n_threads, progress=progress)
        missing = sorted(weights_of(model.gguf).keys() - entries.keys())
    if missing:
        raise ModelError(
            f"expected llama.cpp to multiply by every matrix of {gguf}, found that it did not by {len(missing)} "
            f"({missing[0]!r} is one); export with --imatrix none"
        )
    n_tokens = sum(map(len, sequences))
    chunk_count = int(max(entry.counts.max() for entry in entries.values())) // n_ctx
    write_imatrix(out, Imatrix(entries, (dataset,), chunk_count, n_ctx))
    return ImatrixSummary(str(out), len(entries), len(texts), n_dropped, len(sequences), n_tokens, chunk_count, n_ctx)
