"""The reward model: an adapter of its own on the one base, and a head that reads the state of the last token.

    score = w · h_last          h_last: the last layer's state where the answer's end token stands

Prompt and answer are rendered as the policy sees them (rendering.py). The head lies beside the adapter as
`head.safetensors` with one tensor, `weight` float32 (1, width); it is read back by that name or not at all.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..dialogue.records import Message
from ..errors import InputError
from .adapters import REWARD, LoraSettings, add_adapter, check_base, parameters, read_note, save_adapter, use
from .base import Base
from .batches import by_length, pad_right
from .rendering import Renderer

ADAPTER, HEAD = "reward", "head.safetensors"
STAGE = REWARD


def ids_of(renderer: Renderer, messages: Sequence[Message], answer: str) -> list[int]:
    """Tokens of a prompt and an answer to it, its end included."""
    return [*renderer.prompt(messages), *renderer.answer(answer)]


class RewardModel:
    """base: with the adapter on it. head: float32 (1, width), no bias: only differences of scores mean anything."""

    def __init__(self, base: Base, head: torch.nn.Linear, adapter: str = ADAPTER):
        self.base, self.head, self.adapter = base, head, adapter
        self.renderer = Renderer(base.tokenizer, base.form)

    @classmethod
    def new(cls, base: Base, lora: LoraSettings, *, init_from: Path | None = None) -> "RewardModel":
        """Untrained: the head is small random numbers of torch's generator. init_from: an adapter to begin with."""
        add_adapter(base, ADAPTER, lora, load=init_from)
        head = torch.nn.Linear(base.width, 1, bias=False, dtype=torch.float32)
        torch.nn.init.normal_(head.weight, std=base.width**-0.5)
        return cls(base, head.to(base.device))

    @classmethod
    def load(cls, base: Base, folder: Path) -> "RewardModel":
        """Frozen, from a folder that `save` wrote. Raises InputError where it is another kind of adapter, or another
        base's."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        check_base(folder, base)
        if (stage := read_note(folder).get("stage")) != STAGE or not (folder / HEAD).is_file():
            found = f"no {HEAD}" if stage == STAGE else stage or "an adapter without a note"
            raise InputError(
                f"expected a reward model in {folder}, found {found}; give the adapter folder of `reclm tune reward`"
            )
        try:
            weight = load_file(folder / HEAD)["weight"]
        except (SafetensorError, KeyError) as error:
            raise InputError(
                f"expected the tensor 'weight' in {folder / HEAD}, found: {error}; tune the reward model anew"
            ) from error
        if weight.shape != (1, base.width):
            raise InputError(
                f"expected a head of shape (1, {base.width}) in {folder / HEAD}, found {tuple(weight.shape)}; give "
                "the base it was trained on"
            )
        add_adapter(base, ADAPTER, LoraSettings(), trainable=False, load=folder)
        head = torch.nn.Linear(base.width, 1, bias=False, dtype=torch.float32)
        head.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
        return cls(base, head.to(base.device))

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's and the head's, by name."""
        return {**parameters(self.base, self.adapter), "head.weight": self.head.weight}

    def score(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """float32 (batch,) of ids, mask int64 (batch, length), padded on the right or on the left."""
        with use(self.base, self.adapter):
            hidden = self.base.hidden(
                ids, mask, positions=(mask.cumsum(1) - 1).clamp(min=0) if bool((mask[:, 0] == 0).any()) else None
            )
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return self.head(hidden[torch.arange(len(ids), device=ids.device), last].float())[:, 0]

    @torch.no_grad()
    def scores(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, pass_tokens: int = 4096
    ) -> list[float]:
        """Scores of answers to prompts, in passes of at most `pass_tokens` tokens, without gradients and dropout."""
        sequences = [ids_of(self.renderer, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        found = [0.0] * len(sequences)
        was_training = self.base.model.training
        self.base.model.eval()
        for chosen in by_length([len(sequence) for sequence in sequences], pass_tokens):
            ids, mask = pad_right([sequences[i] for i in chosen], self.base.pad_id, self.base.device)
            for i, score in zip(chosen, self.score(ids, mask).tolist(), strict=True):
                found[i] = score
        self.base.model.train(was_training)
        return found

    def save(self, folder: Path, **note: object) -> None:
        """peft's files, the note and the head."""
        from safetensors.torch import save_file

        save_adapter(self.base, self.adapter, folder, stage=STAGE, **note)
        save_file({"weight": self.head.weight.detach().float().cpu().contiguous()}, folder / HEAD)
