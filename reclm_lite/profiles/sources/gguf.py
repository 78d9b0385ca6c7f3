"""A GGUF model behind the scheduler: the compact prompt, or the plain-words prompt in the model's own chat template."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import ModelError
from ...files import file_sha256
from ...probe import encodes
from ...prompts.forms import form_for, prompt_form
from ...runtime import load_model
from ..answer_grammar import HEAD, MIDDLE
from ..answers import Generation, Group, Spent, StopSignal, judge
from ..chat import chat_wrap
from ..sampling import Sampling
from ..scheduler import Engine, Tokenizer
from ..slots import GenerationResult
from ..store import prompt_key
from .source_settings import SourceSettings

_TOKEN_BYTES, _PROMPT_BYTES = 8, 400  # of the prompts that the engine sorts: tokens and their key, and what Python adds
MAX_N_CTX = 4096  # tokens of a prompt and its answer, where the model was trained on so many
SHORTEST = f"{HEAD} a, b, c;{MIDDLE} a, b, c"


class Model:
    """What is known of a model before its weights are loaded: whether it writes, its prompt, its identity, its room.

    Raises ModelError if the file is not a whole GGUF of a model that writes text.
    """

    def __init__(self, path: Path, is_bundled: bool, settings: SourceSettings):
        self.path = Path(path)
        max_new_tokens, expected = settings.max_new_tokens, settings.model_sha256
        self.wrap = None
        with load_model(path, vocab_only=True) as model:
            architecture = model.gguf.architecture
            # llama.cpp aborts the process where an encoder is asked for the next token.
            if encodes(model.gguf):
                raise ModelError(
                    f"expected a model that writes text, found {path}, an encoder ({architecture}); give a GGUF file "
                    "of a causal language model"
                )
            if not is_bundled:
                self.wrap = chat_wrap(model)
            self.sha256 = model.sha256
            if expected not in (None, self.sha256):
                raise ModelError(
                    f"{path} has changed since the run began (SHA-256 {expected[:12]}…, now {self.sha256[:12]}…): "
                    "restore the file, or start without --resume to profile all users with this model"
                )
            self.n_ctx = min(model.n_ctx_train, MAX_N_CTX)
            n_least = len(model.tokenize(SHORTEST, add_special=False, parse_special=False))
        self.form = form_for(has_chat_template=self.wrap is not None)
        self.max_new_tokens = max_new_tokens or prompt_form(self.form).max_new_tokens
        if self.max_new_tokens >= self.n_ctx:
            raise ModelError(
                f"expected answers shorter than the context of {self.n_ctx} tokens, found {self.max_new_tokens} new "
                "tokens; "
                "ask for fewer with --max-new-tokens"
            )
        if self.max_new_tokens < n_least:
            raise ModelError(
                f"expected room for the shortest profile, which {self.path.name} writes in {n_least} tokens, found "
                f"{self.max_new_tokens} new tokens; ask for more with --max-new-tokens"
            )
        self.notes = []
        if self.wrap is None and not is_bundled:
            self.notes.append(
                f"{self.path.name} has no chat template, so it gets the compact prompt of the bundled model"
            )

    def identity(self, sampling: Sampling) -> str:
        template = f"{prompt_form(self.form).version} {self.wrap.name if self.wrap else self.form}"
        return f"sha256:{self.sha256}, template {template}, max {self.max_new_tokens}, {sampling.identity()}"

    def label(self, sampling: Sampling) -> str:
        return f"{self.path.name}, {self.identity(sampling)}"

    @property
    def max_prompt_tokens(self) -> int:
        return self.n_ctx - self.max_new_tokens


class Gguf:
    """A `Source`: one model on this machine."""

    tries_again = True

    def __init__(self, path: Path, is_bundled: bool, settings: SourceSettings):
        self.about = Model(path, is_bundled, settings)
        self.form = self.about.form
        self.spent = Spent(notes=list(self.about.notes))
        self._settings = settings
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None

    @property
    def model_sha256(self) -> str:
        return self.about.sha256

    def identity(self, sampling: Sampling) -> str:
        return self.about.identity(sampling)

    def label(self, sampling: Sampling) -> str:
        return self.about.label(sampling)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the vocabulary alone; the weights are not loaded for it."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self.about.path, self.about.wrap)
        return self._tokenizer

    def has_room(self, prompt: str) -> bool:
        # No token is shorter than a byte, but for the few around the prompt: most prompts need not be tokenized to be
        # known to fit.
        room = self.about.max_prompt_tokens
        return (
            len(prompt.encode("utf-8", errors="replace")) + self.tokenizer.n_around <= room
            or len(self.tokenizer(prompt)) <= room
        )

    def answers(
        self, side: str, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal
    ) -> Iterator[tuple[Group, Generation]]:
        del side
        source, spent = self.identity(sampling), self.spent
        prompts = [group.prompt for group in groups]
        engine = self._open(prompts)
        # All at once share most; with a deadline the most valuable must come first.
        window = None if stop_signal.has_deadline else len(prompts)
        stop_signal.begun = time.monotonic()
        for result in engine.generate(
            prompts, max_new_tokens=self.about.max_new_tokens, sampling=sampling, stop_signal=stop_signal, window=window
        ):
            yield take_answer(spent, source, groups[result.index], result, self.about.n_ctx)

    def _open(self, prompts: Sequence[str]) -> Engine:
        """The engine, with room for these prompts and no more. A rerun with nothing to do never comes here."""
        lengths = [len(self.tokenizer(prompt)) for prompt in prompts]
        n_ctx = min(self.about.n_ctx, max(lengths) + self.about.max_new_tokens)
        if self._engine is not None and self._engine.n_ctx < n_ctx:
            self._engine.close()
            self._engine = None
        if self._engine is None:
            self._engine = Engine(
                self.about.path, self._settings.n_threads, self._settings.n_slots, n_ctx=n_ctx, chat=self.about.wrap
            )
            if self.about.sha256 != file_sha256(self.about.path):
                raise ModelError(
                    f"{self.about.path} has changed since the run began: answers would be stored under the wrong "
                    "model; start the run again"
                )
            waiting = _TOKEN_BYTES * sum(lengths) + _PROMPT_BYTES * len(lengths)
            self.spent.announced_bytes = max(self.spent.announced_bytes, self._engine.announced_bytes + waiting)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._tokenizer is not None:
            self._tokenizer.close()


def take_answer(
    spent: Spent, source: str, group: Group, result: GenerationResult, n_ctx: int
) -> tuple[Group, Generation]:
    """Count a result of the engine in `spent`, and judge it. source: `Source.identity`. n_ctx: of the context."""
    spent.n_answers += 1
    spent.n_prompt_tokens += result.n_prompt_tokens if result.finish != "too_long" else 0
    spent.n_shared_tokens += result.n_shared_tokens
    spent.n_new_tokens += result.n_new_tokens
    generation = judge(
        prompt_key(source, group.prompt),
        result.text,
        result.finish,
        n_ctx=n_ctx,
        n_prompt_tokens=result.n_prompt_tokens,
        n_new_tokens=result.n_new_tokens,
        n_left_out=group.n_left_out,
        min_gap=result.min_gap,
    )
    return group, generation
