"""The parity gate: no file leaves an export before it is shown to say what the checkpoint says.

    with Gate(source, unquantized, scratch=..., prompts=..., reference="auto", adapter=None) as gate:
        verdict = gate.judge(path, "q4_k_m")

On opening, the unquantized file is judged: token ids, chat template, embedding rows, logits, and greedy text against
the merged model in transformers where it can be had. Every other file is then held to the unquantized one in what must
be the same (metadata, tensors up to rounding) and to the reference in its logits.

Greedy text is proved by one forward of the reference over the text that llama.cpp decoded: if each token is the
reference's most likely one after all before it, then by induction the reference, decoding greedily, says the same.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from reclm_lite.convert.families import family_of
from reclm_lite.convert.parity import encoders
from reclm_lite.convert.parity.bounds import (
    ACTIVATION_NOISE,
    GELU_NOISE,
    MAX_RELATIVE_ERROR,
    NOISE,
    UNQUANTIZED_NOISE,
    describe,
    logit_bounds,
    near_ties,
)
from reclm_lite.convert.parity.divergence import Stored, measure, store
from reclm_lite.convert.parity.hyperparameters import compare_hyperparameters
from reclm_lite.convert.parity.logits import sequence_logits
from reclm_lite.convert.parity.plan import Plan, make_plan, stored_positions
from reclm_lite.convert.parity.reference import TransformersReference, why_not
from reclm_lite.convert.parity.strings import texts
from reclm_lite.convert.parity.templates import compare_templates
from reclm_lite.convert.parity.tokens import compare_token_ids, reference_tokenizer
from reclm_lite.convert.parity.verdict import Verdict
from reclm_lite.convert.parity.vocabulary import compare_vocabulary, words
from reclm_lite.convert.parity.weights import compare_metadata, compare_weights, compare_with_model
from reclm_lite.errors import ModelError
from reclm_lite.runtime import Model, check_gguf, load_model, pick_threads

logger = logging.getLogger(__name__)

REFERENCES = ("auto", "transformers", "gguf")
_EVERY_NTH_FOR_SENSITIVITY = 8
_SLACK_BYTES = 16 << 20


class Gate:
    """Judges the files of one export. A context manager: entering computes the reference, leaving frees the disk."""

    def __init__(
        self,
        source: Any,
        unquantized: Path,
        *,
        scratch: Path,
        prompts: Sequence[str] = (),
        reference: str = "auto",
        adapter: Path | None = None,
        n_threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        """source: the merged model (`Source`); unquantized: its GGUF file. scratch: a folder for the reference's
        logits.

        reference: "transformers" demands the merged model in transformers and raises ModelError where torch,
        transformers or memory is lacking; "gguf" compares with the unquantized file only; "auto" takes the first where
        it can. progress(done, total) is told of sequences read by the reference.
        """
        if reference not in REFERENCES:
            raise ModelError(f"expected a reference among {', '.join(REFERENCES)}, found {reference!r}")
        obstacle = why_not(source) if reference != "gguf" else "asked for"
        if reference == "transformers" and obstacle:
            raise ModelError(
                f"expected transformers as the reference, found: {obstacle}; install it, or use another reference"
            )
        self.source, self.unquantized, self.scratch = source, Path(unquantized), Path(scratch)
        self._demanded, self._obstacle, self._adapter = reference == "transformers", obstacle, adapter
        self._prompts, self._n_threads, self._progress = list(prompts), pick_threads(n_threads), progress
        self.reference = "the unquantized GGUF file"
        self._sensitivity: float | None = None
        self._plan: Plan | None = None
        self._stored: Stored | None = None
        self._vectors: encoders.Vectors | None = None
        self._base = Verdict("", "")

    @staticmethod
    def scratch_bytes(config: dict[str, Any]) -> int:
        """Bytes that a gate writes under `scratch` at most, for a model of this config.json."""
        n_vocab = int(config.get("vocab_size") or 0)
        return _SLACK_BYTES + (4 * n_vocab * stored_positions(n_vocab) if n_vocab else 0)

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes what the gate put on disk. Safe to call twice."""
        self._stored = None
        self._logits_file.unlink(missing_ok=True)

    @property
    def _logits_file(self) -> Path:
        return self.scratch / "reference-logits.f32"

    # -- opening -----------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        with load_model(self.unquantized) as model:
            self._judge_text(model)
            encoder = encoders.is_encoder(model)
            if encoder:
                self._vectors = encoders.plan(model, self._prompts, self.source.directory)
            else:
                n_parameters = sum(int(np.prod(tensor.shape)) for tensor in model.gguf.tensors)
                self._plan = make_plan(model, self._prompts, n_parameters, n_threads=self._n_threads)
                self._n_vocab = model.n_vocab
        if self._obstacle is None:
            try:
                made = TransformersReference(self.source, self._adapter, encoder=encoder, n_threads=self._n_threads)
            except ModelError as error:
                if self._demanded:
                    raise
                self._obstacle = str(error)
            else:
                with made as reference:
                    self._read_transformers(reference)
        if self._obstacle is not None:
            logger.warning(
                "logits are compared with the unquantized GGUF file, not with transformers: %s", self._obstacle
            )
            self.reference += f" (transformers: {self._obstacle})"
            self._judge_model(self.source.config, {name: name for name in self.source.tensors}, self.source.blocks)
            self._read_gguf()
        self._judge_unquantized()

    def _judge_text(self, model: Model) -> None:
        """Token ids and chat template of the unquantized file, into the base verdict."""
        directory = self.source.tokenizer_directory
        tokenizer = reference_tokenizer(directory)
        base = self._base
        if tokenizer is None:
            base.details["token_ids"] = {
                "reference": None,
                "note": "not proved: no installed package reads this tokenizer",
            }
            logger.warning("token ids are not proved: install transformers, or tokenizers for a tokenizer.json")
        else:
            report = compare_token_ids(model, tokenizer, list(dict.fromkeys([*texts(), *words(model)])))
            problems = compare_vocabulary(model, tokenizer, self.source.config)
            base.details["token_ids"] = report.as_dict() | {
                "vocabulary": {"n_tokens": model.n_vocab, "problems": problems}
            }
            base.reasons += problems
            if not report.identical:
                odd = report.mismatches[0]
                base.reasons.append(
                    f"expected the token ids of {tokenizer.name}, found others for {report.n_mismatches} of "
                    f"{report.n_texts} "
                    f"texts: {odd['text'][:60]!r} ({odd['mode']}) gave {odd['found'][:12]}, not {odd['expected'][:12]}"
                )
        template = compare_templates(model, tokenizer, directory)
        base.details["chat_template"] = template.as_dict()
        base.reasons += template.problems[:3]

    def _judge_model(self, config: dict[str, Any], tensors: dict[str, Any], blocks: Callable[[Any], Any]) -> None:
        """Hyperparameters and every tensor of the unquantized file against the merged model's, into the base verdict.

        blocks(tensor): the rows of one of `tensors`, which go by their checkpoint names.
        """
        found, family = check_gguf(self.unquantized), family_of(self.source.config)
        known = {family.canonical_name(name): tensor for name, tensor in tensors.items()}
        stored = {str(family.canonical_name(name)) for name in self.source.tensors}
        renames = family.renames(self.source.config, stored)
        reasons = compare_hyperparameters(found.metadata, found.architecture, config)
        problems = compare_with_model(found, renames, lambda name: blocks(known[name]))
        named = {rename.target for rename in renames} | set(family.extra_tensors(self.source.config))
        if others := sorted({tensor.name for tensor in found.tensors} - named):
            problems.append(f"expected no tensors beyond the merged model's, found {', '.join(others[:3])}")
        self._base.details["hyperparameters"] = {"problems": reasons}
        self._base.details["tensors"] = {
            "n_compared": len(renames),
            "n_different": len(problems),
            "problems": problems[:5],
        }
        self._base.reasons += [*reasons[:3], *problems[:3]]

    def _read_transformers(self, reference: TransformersReference) -> None:
        self.reference = reference.name
        self._judge_model(reference.config, reference.tensors(), lambda tensor: [tensor.float().numpy()])
        if self._vectors is not None:
            self._vectors.read(reference)
            return
        assert self._plan is not None
        pieces = self._counted(reference.sequence_logits(self._plan.sequences, self._plan.wanted))
        self._stored = store(self._plan, pieces, self._logits_file, self._n_vocab)
        reference.perturb(NOISE)
        chosen = [*range(0, self._plan.n_greedy, _EVERY_NTH_FOR_SENSITIVITY), self._plan.n_greedy]
        parts = [self._plan.sequences[i] for i in chosen], [self._plan.wanted[i] for i in chosen]
        shaken = ((chosen[j], rows) for j, rows in reference.sequence_logits(*parts))
        self._sensitivity = round(measure(self._plan, self._stored, shaken).relative_error / NOISE, 3)

    def _read_gguf(self) -> None:
        with load_model(self.unquantized) as model:
            if self._vectors is not None:
                self._vectors.read_gguf(model, n_threads=self._n_threads)
            else:
                pieces = self._counted(self._pieces(model))
                self._stored = store(self._plan, pieces, self._logits_file, model.n_vocab)

    def _pieces(self, model: Model) -> Iterator[tuple[int, np.ndarray]]:
        assert self._plan is not None
        return sequence_logits(model, self._plan.sequences, self._plan.wanted, n_threads=self._n_threads)

    def _counted(self, pieces: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        total = len(self._plan.sequences) if self._plan else 0
        for done, piece in enumerate(pieces, 1):
            yield piece
            if self._progress:
                self._progress(done, total)

    def _judge_unquantized(self) -> None:
        """Logits and greedy text of the unquantized file, if the reference is another."""
        base, noise = self._base, self._noise(_unquantized_type(self.unquantized))
        if self._obstacle is not None:
            base.details["logits"] = {"note": "not proved: this file is the reference itself"}
            return
        with load_model(self.unquantized) as model:
            if self._vectors is not None:
                self._vectors.judge(model, noise, base.reasons, base.details, n_threads=self._n_threads)
            else:
                ties = self._judge_logits(model, noise, base, greedy=True)
                self._judge_decoded(base, ties)

    # -- judging -----------------------------------------------------------------------------------------------

    def judge(self, gguf: Path, ftype: str) -> Verdict:
        """The verdict on one file of type `ftype`, made from the unquantized one (or that one itself)."""
        gguf, base = Path(gguf), self._base
        verdict = Verdict(ftype, self.reference, details={"bounds_from": describe(self._sensitivity)})
        if gguf.exists() and self.unquantized.exists() and gguf.samefile(self.unquantized):
            verdict.reasons += base.reasons
            verdict.details |= base.details
            return verdict
        if base.reasons:
            verdict.reasons.append(f"the unquantized file that it was made from is not equal: {base.reasons[0]}")
        for part in ("token_ids", "chat_template"):
            verdict.details[part] = base.details[part]
        metadata_problems = compare_metadata(self.unquantized, gguf)
        verdict.details["metadata"] = {"identical": not metadata_problems}
        weights = compare_weights(check_gguf(self.unquantized), check_gguf(gguf))
        verdict.details["weights"] = weights.as_dict()
        verdict.reasons += [*metadata_problems, *weights.problems[:3]]
        noise = self._noise(ftype, weights.noise)
        with load_model(gguf) as model:
            if self._vectors is not None:
                self._vectors.judge(model, noise, verdict.reasons, verdict.details, n_threads=self._n_threads)
            elif model.n_vocab != self._n_vocab:
                verdict.reasons.append(f"expected a vocabulary of {self._n_vocab} tokens, found {model.n_vocab}")
            else:
                self._judge_logits(model, noise, verdict, greedy=ftype in UNQUANTIZED_NOISE)
        return verdict

    def _noise(self, ftype: str, measured: float = 0.0) -> float:
        """Relative rounding noise of a file: of its weights as measured, of activations, of the unquantized file."""
        kind = _unquantized_type(self.unquantized)
        parts = [UNQUANTIZED_NOISE[kind]]
        if ftype not in UNQUANTIZED_NOISE:
            parts += [measured, ACTIVATION_NOISE]
        elif ftype != kind:
            parts.append(UNQUANTIZED_NOISE[ftype])
        activation = self.source.config.get("hidden_activation") or self.source.config.get("hidden_act") or ""
        if "gelu" in str(activation):
            parts.append(GELU_NOISE)
        return math.hypot(*parts)

    def _judge_logits(self, model: Model, noise: float, verdict: Verdict, *, greedy: bool) -> list[np.ndarray]:
        """Adds the logits and the greedy texts to a verdict; returns the leads that count as near-ties."""
        assert self._plan is not None
        assert self._stored is not None
        found = measure(self._plan, self._stored, self._pieces(model))
        bounds = logit_bounds(noise, self._sensitivity, self._stored, found)
        verdict.details["logits"] = {**found.as_dict(), "noise": noise, "bounds": bounds.as_dict()}
        broken = bounds.broken(found)
        if broken and self._sensitivity is not None and self._sensitivity * noise > MAX_RELATIVE_ERROR / 2:
            broken.append(
                f"rounding to {verdict.ftype} destroys this model: noise of {noise:.2g} in its weights is multiplied "
                "by "
                f"{self._sensitivity:.3g} on its way to the logits; take a type of more bits"
            )
        verdict.reasons += broken
        ties = near_ties(found, bounds)
        counts = self._greedy(found.argmax, ties)
        verdict.details["greedy"] = counts
        if greedy and counts["n_different"]:
            verdict.reasons.append(
                f"expected the reference's greedy text for {counts['n_prompts']} prompts, found "
                f"{counts['n_different']} "
                f"that differ by more than a near-tie ({counts['worst']})"
            )
        return ties

    def _greedy(self, argmax: list[np.ndarray], ties: list[np.ndarray]) -> dict[str, Any]:
        """Greedy texts by teacher forcing: equal, equal but for near-ties of the reference, and different."""
        plan, stored = self._plan, self._stored
        assert plan is not None
        assert stored is not None
        counts = {"n_prompts": plan.n_greedy, "n_equal": 0, "n_near_ties": 0, "n_different": 0}
        worst, worst_lead, worst_tie = 0.0, 0.0, 0.0
        for i in range(plan.n_greedy):
            excess = 0.0  # of the text's worst position: lead over near-tie
            for row in np.flatnonzero(plan.wanted[i] >= plan.n_prompt[i] - 1):
                lead, tie = _lead(stored, i, row, int(argmax[i][row])), float(ties[i][row])
                ratio = 0.0 if lead == 0 else lead / tie if tie > 0 else math.inf
                excess = max(excess, ratio)
                if ratio > worst:
                    worst, worst_lead, worst_tie = ratio, lead, tie
            counts["n_equal" if excess == 0 else "n_near_ties" if excess <= 1 else "n_different"] += 1
        told = f"a lead of {worst_lead:.2g}, a near-tie being {worst_tie:.2g}" if worst else None
        return {**counts, "worst": told, "decoded_by": "one forward over the unquantized file's greedy text"}

    def _judge_decoded(self, verdict: Verdict, ties: list[np.ndarray]) -> None:
        """The text that llama.cpp decoded token by token, against the reference's most likely tokens."""
        assert self._plan is not None
        plan = self._plan
        decoded = [
            np.array([*sequence[1:], -1])[wanted] for sequence, wanted in zip(plan.sequences, plan.wanted, strict=True)
        ]
        counts = self._greedy(decoded, ties)
        counts["decoded_by"] = "llama.cpp, token by token"
        verdict.details["greedy"] = counts
        if counts["n_different"]:
            verdict.reasons.append(
                f"expected the reference's greedy text for {counts['n_prompts']} prompts, decoded "
                f"{counts['n_different']} "
                f"that differ by more than a near-tie ({counts['worst']})"
            )


def _lead(stored: Stored, i: int, row: int, token: int) -> float:
    """By how much the reference's best token leads `token` in logits; 0 if it is the best, infinite if not in its
    top."""
    ids, logits = stored.top_ids[i][row], stored.top_logits[i][row]
    places = np.flatnonzero(ids == token)
    return float(logits[0] - logits[places[0]]) if len(places) else float("inf")


def _unquantized_type(path: Path) -> str:
    """f32, f16 or bf16: the type of most matrices of an unquantized file."""
    kinds = [tensor.type_name for tensor in check_gguf(path).tensors if len(tensor.shape) > 1]
    commonest = max(sorted(set(kinds)), key=kinds.count).lower()
    if commonest not in UNQUANTIZED_NOISE:
        raise ModelError(f"expected {path} in F32, F16 or BF16, found {commonest}")
    return commonest
