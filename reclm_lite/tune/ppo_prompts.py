"""The prompts of PPO and GRPO: dialogues read from a file, without those that are too long."""

from dataclasses import dataclass
from pathlib import Path

from ..dialogue.records import PARTS, RL, Dialogue, read_dialogues
from ..errors import InputError
from .base import Base
from .batches import check_form
from .ppo_settings import PpoSettings
from .rendering import Renderer


@dataclass(frozen=True)
class Prompts:
    """Dialogues of both parts, how many were left out since their prompt is too long, and the longest prompt's
    tokens."""

    training: list[Dialogue]
    held_out: list[Dialogue]
    n_left_out: int
    longest: int


def read_prompts(path: Path, renderer: Renderer, settings: PpoSettings, base: Base) -> Prompts:
    """Without those that are too long for the settings or the base.

    Raises InputError where they are of another form, or too few are left.
    """
    limit = min(settings.max_prompt, base.n_ctx - settings.sampling.max_new_tokens)
    if limit < 1:
        raise InputError(
            f"expected room for prompts beside answers of {settings.sampling.max_new_tokens} tokens, found a base "
            f"with a context of {base.n_ctx}; give fewer --max-new-tokens"
        )
    found: dict[str, list[Dialogue]] = {part: [] for part in PARTS}
    n_long, longest = 0, 0
    for dialogue in read_dialogues(path, RL):
        check_form(dialogue, renderer)
        if (length := len(renderer.prompt(dialogue.messages))) > limit:
            n_long += 1
        else:
            found[dialogue.part].append(dialogue)
            longest = max(longest, length)
    for part, least in zip(PARTS, (1, 2), strict=True):
        if len(found[part]) < least:
            raise InputError(
                f"expected at least {least} dialogues of part {part!r} with prompts of at most {limit} tokens in "
                f"{path}, found {len(found[part])} "
                f"({n_long} are longer); build them with more held out, or shorter, or give a larger --max-length or "
                "fewer --max-new-tokens"
            )
    return Prompts(found["train"], found["held_out"], n_long, longest)
