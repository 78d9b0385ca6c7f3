"""The merged model in transformers, float32: what a GGUF file's logits and vectors are held against.

An adapter is merged by peft's own code where peft is installed, which shares nothing with this package's merge but the
names, ranks and alphas of modules (`plain_copies`: the file's patterns are not shown to peft); else the model is built
from this package's merged tensors, and the reference says so. torch, transformers and peft are
imported here only, when they are used.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from reclm_lite.convert.parity.plain_copies import copy_of_adapter, copy_of_checkpoint, nobody_to_ask, peft_settings
from reclm_lite.convert.parity.tokens import has, quiet
from reclm_lite.errors import ModelError

_BYTES_PER_PARAMETER = 4 * 1.2
_WORK_BYTES = 600 << 20  # torch itself, activations and a piece of logits
_NO_CODE = {"local_files_only": True, "trust_remote_code": False}
_NOISE_WEIGHTS = 1 << 24  # made at a time
_LOADING_ERRORS = (OSError, ValueError, LookupError, RuntimeError, ImportError, TypeError, AttributeError, EOFError)


def available_bytes() -> int:
    """Memory that a new allocation may take, as the operating system estimates it."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 62  # unknown: let the allocation itself decide


def why_not(source: Any) -> str | None:
    """Why transformers cannot be the reference for `source` on this machine, or None where it can."""
    missing = [package for package in ("torch", "transformers") if not has(package)]
    if missing:
        return f"{' and '.join(missing)} not installed"
    n_parameters = sum(int(np.prod(tensor.shape)) for tensor in source.tensors.values())
    needed, free = int(n_parameters * _BYTES_PER_PARAMETER) + _WORK_BYTES, available_bytes()
    if needed > free:
        return f"{needed / 1e9:.1f} GB of memory needed, {free / 1e9:.1f} GB free"
    return None


@contextmanager
def _without_bars(settings: Any) -> Iterator[None]:
    """Keeps transformers' own progress bars off stderr within the block; the caller shows one."""
    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


class TransformersReference:
    """A float32 model in transformers. Free it with `close()`. `name` says what was merged by whom."""

    def __init__(self, source: Any, adapter: Path | None, *, encoder: bool, n_threads: int):
        """Raises ModelError where transformers cannot load the checkpoint, or would invent a tensor it lacks."""
        import torch
        import transformers

        self._torch = torch
        self._n_threads_before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"
        make = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
        try:
            with quiet("transformers", "peft"), _without_bars(transformers.utils.logging), nobody_to_ask():
                self._model: Any = self._load(make, source, adapter).eval()
        except _LOADING_ERRORS as error:
            self.close()
            raise ModelError(f"transformers could not load {source.directory}: {error}") from error

    def _load(self, make: Any, source: Any, adapter: Path | None) -> Any:
        settings = None
        if adapter is not None:
            settings = peft_settings(source.adapter)
            why = None
            if not has("peft"):
                why = "peft is not installed"
            elif getattr(source, "peft_adds_twice", False):
                why = "peft adds a tied LoRA twice"
            elif settings is None:
                why = "it has too many different ranks, alphas or saved modules for peft"
            if why:
                return self._from_source(make, source, why)
        options = {"dtype": self._torch.float32, "attn_implementation": "eager", **_NO_CODE}
        with copy_of_checkpoint(source) as copy:
            model, loading = make.from_pretrained(copy, output_loading_info=True, **options)
        missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
        if missing:
            raise ValueError(f"the checkpoint lacks {missing[:3]}")
        if settings is not None:
            import peft

            if not set(settings["target_modules"]) <= {name for name, _ in model.named_modules()}:
                return self._from_source(make, source, "its modules have other names here")
            n_vocab = source.config.get("vocab_size")
            if n_vocab and n_vocab != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(n_vocab, mean_resizing=False)
            if model.config.tie_word_embeddings and source.config.get("tie_word_embeddings") is False:
                # The adapter trained one of the two embeddings; peft would add that to the matrix that they share.
                head = model.get_output_embeddings()
                head.weight = self._torch.nn.Parameter(head.weight.detach().clone())
                model.config.tie_word_embeddings = False
            with copy_of_adapter(source.adapter, settings) as copy:
                model = peft.PeftModel.from_pretrained(model, str(copy)).merge_and_unload()
            self.name += f"; adapter merged by peft {peft.__version__}"
        return model

    def _from_source(self, make: Any, source: Any, why: str) -> Any:
        import transformers

        torch = self._torch
        self.name += f"; adapter merged by this package ({why})"
        with copy_of_checkpoint(source) as copy:
            config = transformers.AutoConfig.from_pretrained(copy, **_NO_CODE)
        config.vocab_size = source.config.get("vocab_size", config.vocab_size)
        config.tie_word_embeddings = source.config.get("tie_word_embeddings", config.tie_word_embeddings)
        model = make.from_config(config, dtype=torch.float32, attn_implementation="eager")
        state = model.state_dict()
        pointers = {}
        with torch.no_grad():
            for name in source.tensors:
                if name in state:
                    state[name].copy_(torch.from_numpy(np.asarray(source.tensor(name), dtype=np.float32)))
                    pointers[state[name].data_ptr()] = name
        missing = sorted(name for name, tensor in state.items() if tensor.data_ptr() not in pointers)
        if missing:
            raise ValueError(f"the merged model lacks {missing[:3]}")
        return model

    def sequence_logits(
        self, sequences: Sequence[Sequence[int]], wanted: Sequence[np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """As `logits.sequence_logits`: yields (i, float32 (len(wanted[i]), n_vocab)) for each sequence, in order.

        One sequence at a time, through the model's own forward: nothing is padded, nothing masked, nothing repeated
        here.
        """
        torch = self._torch
        for i, sequence in enumerate(sequences):
            positions = torch.as_tensor(np.asarray(wanted[i]), dtype=torch.long)
            with torch.inference_mode():
                made = self._model(input_ids=torch.tensor([list(sequence)]), use_cache=False, logits_to_keep=positions)
            yield i, made.logits[0].float().numpy()

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration as transformers read it, defaults included."""
        return self._model.config.to_dict()

    def tensors(self) -> dict[str, Any]:
        """The model's parameters and buffers by name, as torch tensors that share its memory; a tied one by both
        names."""
        return self._model.state_dict()

    def vectors(self, sequences: Sequence[Sequence[int]], pooling: str) -> np.ndarray:
        """Pooled vectors of an encoder: float32 (n_sequences, n_embd). pooling: "mean", "cls" or "lasttoken"; not
        normalized."""
        torch = self._torch
        vectors = []
        with torch.inference_mode():
            for sequence in sequences:  # one at a time: nothing to mask, nothing that a mask could hide
                hidden = self._model(input_ids=torch.tensor([list(sequence)])).last_hidden_state[0]
                at = {"cls": 0, "lasttoken": -1}.get(pooling)
                vectors.append((hidden.mean(dim=0) if at is None else hidden[at]).numpy())
        return np.stack(vectors)

    def perturb(self, relative_error: float) -> None:
        """Adds Gaussian noise to every matrix, row by row in proportion to the row's own root mean square.

        That is what rounding to a quantized type does. The model is of no other use afterwards.
        """
        torch = self._torch
        generator = torch.Generator().manual_seed(0)
        seen = set()
        with torch.no_grad():
            for parameter in self._model.parameters():
                if parameter.dim() < 2 or parameter.data_ptr() in seen:
                    continue
                seen.add(parameter.data_ptr())
                for rows in parameter.data.split(max(1, _NOISE_WEIGHTS // parameter[0].numel())):
                    scale = rows.square().mean(dim=-1, keepdim=True).sqrt() * relative_error
                    rows.add_(torch.randn(rows.shape, generator=generator) * scale)

    def close(self) -> None:
        """Frees the model and gives torch its threads back. Safe to call twice."""
        self._model = None
        gc.collect()
        self._torch.set_num_threads(self._n_threads_before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
