"""Opens what is converted: a checkpoint, with or without an adapter merged in.

The merged model exists only as recipes (deltas.py): each tensor is computed when it is asked for, block by block.

The reference is the model that was trained: the base with its adapter attached. peft's `merge_and_unload` gives the
same, except where an adapter changes one of two tied embeddings only: it then adds the change to the matrix that both
share, so that the model it returns is another one. Here the two are untied instead (`tie_word_embeddings` false).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reclm_lite.convert.adapter import CHANGES, CONFIG, AdaptedModule, Adapter, Part
from reclm_lite.convert.checkpoint import Checkpoint, Source, files_beside
from reclm_lite.convert.deltas import Factors, Recipe
from reclm_lite.convert.stored import BLOCK_BYTES, StoredTensor, gather, read_blocks
from reclm_lite.errors import ModelError

_HEAD = "lm_head.weight"
_MAX_PREFIXES = 64  # first parts of the names in a base, each tried before an adapter's names; models have two or three
_EMBEDDINGS = ("embed_tokens.weight", "embeddings.word_embeddings.weight")


def open_source(base: Path, adapter: Path | None = None) -> Source:
    """The model to convert: `base`, a checkpoint directory, with the LoRA of the directory `adapter` merged in.

    Raises ModelError for a checkpoint or an adapter that cannot be used, and for an adapter of another base, naming
    the module and the shapes.
    """
    checkpoint = Checkpoint(base)
    return checkpoint if adapter is None else MergedCheckpoint(checkpoint, Adapter(adapter))


class MergedCheckpoint:
    """A checkpoint with an adapter merged in, a `Source`. What is changed is float32, all else as stored.

    peft_adds_twice: one LoRA changes both of two tied embeddings. peft's `merge_and_unload` adds it twice to the matrix
    that they share, so its result is no reference here.
    """

    merged = True
    peft_adds_twice = False

    def __init__(self, base: Checkpoint, adapter: Adapter):
        self.base, self.adapter = base, adapter
        self.directory = base.directory
        has_own = any((adapter.directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
        self.tokenizer_directory = adapter.directory if has_own else base.directory
        self.config: dict[str, Any] = dict(base.config)
        self._recipes = {name: Recipe(Part(name, stored)) for name, stored in base.tensors.items()}
        self._embedding = next((name for name in base.tensors if name.endswith(_EMBEDDINGS)), None)
        self._tied = self._is_tied()
        if self._tied:  # until it is known what the adapter does to the two, the head has a recipe of its own
            self._recipes[_HEAD] = self._recipes[self._embedding]
        rename = self._renaming()
        self._save_whole(rename)
        self._check_modules_to_save(rename)
        for module in adapter.modules.values():
            self._change(module, rename(module.name))
        if self._tied:
            self._settle_tie()
        self._settle_vocabulary()
        self.tensors: Mapping[str, StoredTensor] = {
            name: recipe.weight.stored for name, recipe in self._recipes.items()
        }

    def _is_tied(self) -> bool:
        """Whether the output layer is the embedding; a configuration that does not say so leaves it to the tensors."""
        if self._embedding is None or not self._embedding.endswith(_EMBEDDINGS[0]):
            return False
        return bool(self.config.get("tie_word_embeddings", _HEAD not in self.base.tensors))

    # --- the adapter's modules and the base's tensors ---

    def _renaming(self) -> Callable[[str], str]:
        """From a module's name in the adapter to its name in the base: the same, or with one prefix more or less.

        A BERT that was trained as `BertForMaskedLM` has its modules under `bert.`, one stored by `BertModel` has not.
        """
        names = list(self.adapter.modules)
        known = {name.rpartition(".")[0] for name in self._recipes}
        if all(name in known for name in names):
            return lambda name: name
        prefixes = {name.partition(".")[0] + "." for name in known if "." in name}
        fitting: list[tuple[str, Callable[[str], str]]] = []
        for prefix in sorted(prefixes) if len(prefixes) <= _MAX_PREFIXES else ():
            if all(prefix + name in known for name in names):
                fitting.append((f"with {prefix!r} before them", lambda name, prefix=prefix: prefix + name))
        first = names[0].partition(".")[0] + "."
        if all(name.startswith(first) and name.removeprefix(first) in known for name in names):
            fitting.append((f"without {first!r}", lambda name: name.removeprefix(first)))
        if len(fitting) == 1:
            return fitting[0][1]
        if fitting:
            ways = " and ".join(way for way, _ in fitting)
            raise self._misfit("modules of the base", f"several ways to name them: {ways}")
        missing = next(name for name in names if name not in known)
        raise self._misfit("modules of the base", f"module {missing!r}, which the base does not have")

    def _misfit(self, expected: str, found: str) -> ModelError:
        of = self.adapter.config.get("base_model_name_or_path")
        return ModelError(
            f"the adapter {self.adapter.directory} does not fit the base {self.directory}: expected {expected}, found "
            f"{found}; give the base that it was trained on" + (f" ({of})" if of else "")
        )

    def _found(self, name: str, what: Part) -> Recipe:
        if name not in self._recipes:
            raise self._misfit("tensors of the base", f"{what.name!r}, for which the base has no {name!r}")
        return self._recipes[name]

    def _check_shape(self, name: str, part: Part, expected: tuple[int, ...]) -> None:
        if part.stored.shape != expected:
            raise self._misfit(
                f"{part.name!r} of shape {expected} for {name!r} of shape {self._recipes[name].shape}",
                f"shape {part.stored.shape}",
            )

    def _save_whole(self, rename: Callable[[str], str]) -> None:
        """Tensors that the adapter holds whole take the place of the base's."""
        own: list[tuple[str, Part]] = []
        shared: list[tuple[str, Part]] = []
        for module in self.adapter.modules.values():
            for kind, part in module.parts.items():
                name = f"{rename(module.name)}.{kind}"
                if kind in CHANGES:
                    continue
                old = self._found(name, part).shape
                resized = name == self._embedding or name == _HEAD  # a vocabulary may have grown
                self._check_shape(name, part, (part.stored.shape[:1] + old[1:]) if resized else old)
                # What both of two tied embeddings lie on: peft copies a module only where modules_to_save lists it.
                is_shared = self._tied and resized and not self.adapter.is_saved_whole(module.name)
                (shared if is_shared else own).append((name, part))
        for _, part in shared:
            if not _same_values(part, shared[0][1]):
                raise self.adapter.error(
                    "equal values for the two tied embeddings", f"other ones in {part.name!r}", "save it again"
                )
            self._recipes[self._embedding] = self._recipes[_HEAD] = Recipe(part)
        for name, part in own:
            self._recipes[name] = Recipe(part)

    def _check_modules_to_save(self, rename: Callable[[str], str]) -> None:
        """peft refuses an adapter that lacks a module which its configuration lists; so does this."""
        saved = {f"{rename(module.name)}.{kind}" for module in self.adapter.modules.values() for kind in module.parts}
        for name in self._recipes:
            if self.adapter.is_saved_whole(name.rpartition(".")[0]) and name not in saved:
                what = f"tensor {name!r}, as modules_to_save lists its module"
                raise self.adapter.error(what, "none", "save it again")

    def _change(self, module: AdaptedModule, base_name: str) -> None:
        """Adds to the recipes what the adapter adds to one module's weight and bias."""
        parts, weight, bias = module.parts, f"{base_name}.weight", f"{base_name}.bias"
        of_embedding = "lora_embedding_A" in parts
        if of_embedding or "lora_A" in parts:
            a, b = (parts[f"lora_embedding_{x}" if of_embedding else f"lora_{x}"] for x in "AB")
            shape, rank = self._found(weight, a).shape, a.stored.shape[0]
            if len(shape) != 2:
                raise self._misfit(f"a matrix for {a.name!r}", f"{weight!r} of shape {shape}")
            n_rows, n_columns = shape
            self._check_shape(weight, a, (rank, n_rows if of_embedding else n_columns))
            self._check_shape(weight, b, (n_columns if of_embedding else n_rows, rank))
            magnitude = parts.get("magnitude")
            if magnitude:
                self._check_shape(weight, magnitude, (n_columns if of_embedding else n_rows,))
            factors = Factors(a, b, self.adapter.scale(module.name), of_embedding, magnitude)
            self._recipes[weight] = replace(self._recipes[weight], factors=factors)
        if "lora_bias" in parts:
            part = parts["lora_bias"]
            if bias not in self._recipes:
                found = f"{part.name!r} for a module without one in the base"
                raise self.adapter.error(f"a bias {bias!r}", found, "it cannot be merged: train with lora_bias=False")
            self._check_shape(bias, part, self._found(bias, part).shape)
            self._recipes[bias] = replace(self._recipes[bias], added=(part, self.adapter.scale(module.name)))
        if "tokens" in parts:
            part = parts["tokens"]
            n_rows, *columns = self._found(weight, part).shape
            indices = self.adapter.token_indices(module.name, n_rows)
            self._check_shape(weight, part, (len(indices), *columns))
            self._recipes[weight] = replace(self._recipes[weight], rows=(indices, part))

    # --- tied embeddings, and a vocabulary that has grown ---

    def _settle_tie(self) -> None:
        """Keeps the two embeddings tied if the adapter leaves them equal; else the head becomes a tensor of its own."""
        embedding, head = self._recipes[self._embedding], self._recipes[_HEAD]
        if embedding.rows and (head.factors or not _same_values(embedding.weight, head.weight)):
            raise self.adapter.error(
                "trained tokens of tied embeddings alone", f"changes of {_HEAD!r} too", "this combination is not merged"
            )
        # Trained tokens of the embedding are tied to the head by peft, unless the head has some of its own.
        if (embedding.rows and not head.rows) or _equal(embedding, head):
            self.peft_adds_twice = embedding.factors is not None
            if _HEAD in self.base.tensors:
                self._recipes[_HEAD] = embedding
            else:
                del self._recipes[_HEAD]
        else:
            self.config["tie_word_embeddings"] = False

    def _settle_vocabulary(self) -> None:
        if self._embedding is None:
            return
        n_rows, n_before = self._recipes[self._embedding].shape[0], self.base.tensors[self._embedding].shape[0]
        head = self._recipes.get(_HEAD)
        resized = n_rows != n_before or (head is not None and head.weight.stored.file == self.adapter.weights)
        if resized and head is not None and head.shape[0] != n_rows:
            raise self._misfit(
                f"as many rows in {_HEAD!r} as in {self._embedding!r}, {n_rows}",
                f"{head.shape[0]}: the vocabulary was resized, and only one of the two was saved (peft: "
                "save_embedding_layers=True)",
            )
        if n_rows != n_before:
            self.config["vocab_size"] = n_rows
            if isinstance(self.config.get("text_config"), dict):
                self.config["text_config"] = {**self.config["text_config"], "vocab_size": n_rows}

    # --- a Source ---

    @property
    def dtype(self) -> str:
        """The commonest dtype among the base's matrices, as safetensors names it."""
        return self.base.dtype

    def files(self) -> list[Path]:
        """The base's files, then the adapter's: its configuration, weights and tokenizer."""
        own = [self.adapter.directory / CONFIG, self.adapter.weights]
        return self.base.files() + own + files_beside(self.adapter.directory)

    def origin(self, name: str) -> str:
        """The tensor, of the base or of the adapter, that brings NaN or infinity into a merged one, in words."""
        parts = self._recipes[name].parts()
        for part in parts:
            if not all(np.isfinite(block).all() for block in read_blocks(part.name, part.stored)):
                return str(part)
        return f"{name!r}, merged of {' and '.join(str(part) for part in parts)}"

    def blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """A merged tensor by blocks of whole rows: float32, or float16 if stored so and not changed.

        Blocks have shape (n_rows, *shape[1:]) and are of at most `max_bytes` unless one row is larger; beside them an
        adapter's A is held whole. Raises ModelError as `Checkpoint.blocks` does, and for NaN in the adapter.
        """
        return self._recipes[name].blocks(max_bytes)

    def tensor(self, name: str) -> np.ndarray:
        """A whole merged tensor, row-major: float32, or float16 if stored so and not changed."""
        return gather(self._recipes[name].shape, self.blocks(name))


def _same_values(a: Part, b: Part, *, transposed: bool = False) -> bool:
    """Whether two tensors hold the same numbers; `transposed` reads both whole, so it is for an adapter's factors."""
    if a == b:
        return True
    if transposed:
        return a.stored.shape == b.stored.shape[::-1] and np.array_equal(a.read(), b.read().T)
    if a.stored.shape != b.stored.shape or a.stored.dtype != b.stored.dtype:
        return False
    pairs = zip(read_blocks(a.name, a.stored), read_blocks(b.name, b.stored), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def _equal(embedding: Recipe, head: Recipe) -> bool:
    """Whether an embedding and a head come out equal: unchanged, or changed by the same rows or the same factors.

    The factors of one are those of the other, transposed.
    """
    if not _same_values(embedding.weight, head.weight):
        return False
    if embedding.rows and head.rows:
        same = np.array_equal(embedding.rows[0], head.rows[0])
        return same and _same_values(embedding.rows[1], head.rows[1])
    if embedding.rows or head.rows:
        return False
    mine, other = embedding.factors, head.factors
    if mine is None or other is None:
        return mine is other
    return (
        mine.magnitude is None
        and other.magnitude is None
        and mine.scale == other.scale
        and _same_values(mine.a, other.b, transposed=True)
        and _same_values(mine.b, other.a, transposed=True)
    )
