"""The token budget of a dialogue: estimated without a tokenizer, exact with one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import file_sha256
from ..prompts.forms import COMPACT, prompt_form

ESTIMATE = "estimate"
AROUND = 4  # the beginning of a text, and what ends each of its messages
ANSWER_TOKENS = 100  # what is kept free for a first answer while a prompt is shortened: the published length of answers


@dataclass(frozen=True)
class Budget:
    """At most so many tokens a dialogue, and how they are counted. name: "estimate", or the tokenizer's SHA-256."""

    max_tokens: int
    count: Callable[[str], int]
    name: str

    def has_room(self, *texts: str, reserve: int = 0) -> bool:
        """Whether texts fit, each on its own, beside `reserve` tokens for others and the few around them."""
        return AROUND + reserve + sum(map(self.count, texts)) <= self.max_tokens


def estimated(max_tokens: int, form: str = COMPACT) -> Budget:
    """Counted by the form's own estimate."""
    return Budget(max_tokens, prompt_form(form).n_tokens, ESTIMATE)


def exact(max_tokens: int, folder: Path) -> Budget:
    """Counted by the `tokenizer.json` of a folder. Raises InputError if there is none that can be read."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"expected a folder with a tokenizer.json, found {folder}: give the base model's folder, or leave "
            "--tokenizer out"
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(
            'counting tokens exactly needs the package tokenizers: run `pip install "reclm-lite[tune]"`, or leave '
            "--tokenizer out"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise InputError(
            f"expected a tokenizer in {path}, found what cannot be read as one ({error}); give another --tokenizer"
        ) from error
    return Budget(
        max_tokens,
        lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
        f"sha256:{file_sha256(path)}",
    )
