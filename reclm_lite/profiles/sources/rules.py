"""The rule-based teacher in the place of a model."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

from ...errors import InputError
from ...prompts.answer import format_profile
from ...prompts.forms import COMPACT, prompt_form
from ...prompts.inputs import PromptInputs
from ..answers import Generation, Group, Spent, StopSignal, judge
from ..sampling import Sampling
from ..store import prompt_key
from ..teachers import RuleTeacher


class Rules:
    """A `Source` that reads the same inputs as the prompt; nothing is drawn, so nothing is tried again."""

    form = COMPACT  # which shows what the rules read
    tries_again = False

    def __init__(self, inputs: PromptInputs):
        digest = hashlib.sha256(repr(inputs.texts).encode()).hexdigest()[:12]
        self.inputs = inputs
        self.spent = Spent()
        self._identity = f"rules, template {prompt_form(COMPACT).version}, catalogue {digest}"

    @cached_property
    def teacher(self) -> RuleTeacher:
        return RuleTeacher(self.inputs.stats)

    def identity(self, sampling: Sampling) -> str:
        del sampling  # a rule has none
        return self._identity

    label = identity

    def has_room(self, prompt: str) -> bool:
        del prompt
        return True

    def text_for(self, side: str, idx: int) -> str:
        """The profile of a user or item by rule, or an empty text where the items have no words."""
        inputs = self.inputs
        try:
            if side == "user":
                near = [inputs.show(items) for items in inputs.neighbors_of(idx)]
                return format_profile(self.teacher.profile(inputs.show(inputs.items_of(idx)), near))
            return format_profile(self.teacher.item_profile(inputs.texts[idx], inputs.show(inputs.co_items_of(idx))))
        except InputError:
            return ""

    def answers(
        self, side: str, groups: Sequence[Group], sampling: Sampling, stop_signal: StopSignal
    ) -> Iterator[tuple[Group, Generation]]:
        source = self.identity(sampling)
        for group in groups:
            if stop_signal.drain.is_set():
                return
            self.spent.n_answers += 1
            text = self.text_for(side, group.idxs[0])
            yield group, judge(prompt_key(source, group.prompt), text, "stop", n_left_out=group.n_left_out)

    def close(self) -> None:
        """Nothing is held."""
