"""From draws to dialogues: one user or item at a time, three kinds.

Everything is decided by ids and a seed, so `asked` can tell beforehand what `make` will ask of the teacher. Each
interaction behind a dialogue goes through the leak guard. Left out: files, and who is in them (`build`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from ..errors import InputError
from ..prompts.entries import MAX_LINE
from ..prompts.forms import COMPACT, NO, YES, candidate_spans, person_spans
from ..prompts.interface import ITEM, USER
from ..prompts.spans import CATALOGUE, LABEL, TEACHER, TRAIN, Span, text_of
from ..prompts.view import N_SLOTS
from ..text.bounds import bounded
from ..types import ItemText
from .budget import ANSWER_TOKENS, Budget
from .draws import Draw, Known, Question
from .first_round import Shown, Writer
from .item_rounds import ItemRounds
from .leakguard import LeakGuard
from .preferences import ASKED, OF_OTHERS, asked_instead, corrupted, draw_kind, possible_kinds
from .records import PREFERENCE, RL, SFT, Dialogue, Message
from .teacher import Teacher
from .user_rounds import UserRounds

NO_TEXT, NO_HISTORY, TOO_LONG = "no text in the items", "no history and no neighbors", "longer than --max-tokens"
SAME, NO_OTHER = "the rejected profile is the chosen one", "no profile of a similar user"


@dataclass(frozen=True)
class MakeSettings:
    """What is made. form: name of a prompt form. rounds: 1 (nothing hidden) or 2. n_negatives: items of an rl dialogue
    that nobody concerned has. corruptions: kind -> share.
    """

    kind: str
    form: str = COMPACT
    rounds: int = 2
    n_negatives: int = 10
    corruptions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """Dialogues that are written together or not at all: a Yes and its No, or a single one. counts: what they count
    as."""

    dialogues: tuple[Dialogue, ...]
    counts: Counter


class Maker:
    """Makes the dialogues of one kind. left_out: counts of those that could not be made, by reason."""

    def __init__(self, known: Known, guard: LeakGuard, teacher: Teacher, budget: Budget, settings: MakeSettings):
        self.known, self.guard, self.teacher, self.budget, self.settings = known, guard, teacher, budget, settings
        self.writer = Writer(known.inputs)
        self.draws = {USER: UserRounds(known), ITEM: ItemRounds(known)}
        self.left_out: Counter = Counter()
        self.first = lru_cache(maxsize=1 << 12)(self._first)  # a neighbor's is asked for again and again

    # -- first round ---------------------------------------------------------------

    def _first(self, side: str, idx: int, variant: int) -> tuple[Draw, Shown, bool] | str:
        """(draw, what has room of it, whether that is less); the reason if there is no first round."""
        hide = self.settings.kind != SFT or self.settings.rounds == 2
        hide = hide and not (self.teacher.is_whole and self.settings.kind == PREFERENCE)
        draw = self.draws[side].draw(idx, variant, hide=hide)
        if draw is None:
            return NO_HISTORY if side == USER else NO_TEXT
        try:
            shown = self.writer.shortened(
                draw.shown, self.settings.form, lambda text: self.budget.has_room(text, reserve=self._reserve)
            )
        except InputError:
            return NO_TEXT
        return (draw, shown, shown != draw.shown) if shown is not None else TOO_LONG

    @cached_property
    def _reserve(self) -> int:
        """Tokens that a first question must leave free: for an answer, and for a second round of the longest titles."""
        if self.settings.kind == RL:
            return 0
        if self.settings.kind == PREFERENCE or self.settings.rounds == 1:
            return ANSWER_TOKENS
        shortest = text_of(person_spans([ItemText("x")], form=self.settings.form))
        return ANSWER_TOKENS + self.budget.count(shortest) + N_SLOTS * MAX_LINE // 2

    def _other(self, side: str, shown: Shown, variant: int) -> Shown | None:
        """The first round of somebody similar that shows other items: of a neighbor, or of an item that the item's
        users have too."""
        rng = self.known.lots("other", side, shown.idx, variant)
        near = list(shown.near_users) if side == USER else [items[0] for items in shown.near]
        for idx in rng.sample(near, len(near)):
            found = self.first(side, idx, variant)
            if not isinstance(found, str) and found[1].own != shown.own:
                return found[1]
        return None

    def _rejected(self, side: str, shown: Shown, variant: int) -> tuple[str, Shown | None] | None:
        """(kind, the first round to ask for it); None if no kind is possible."""
        other = self._other(side, shown, variant)
        kinds = possible_kinds(
            shown,
            has_others=other is not None,
            writes=self.teacher.writes,
            has_times=self.known.inputs.times is not None,
        )
        kind = draw_kind(self.settings.corruptions, kinds, self.known.lots("corruption", side, shown.idx, variant))
        if kind is None:
            return None
        return kind, other if kind in OF_OTHERS else asked_instead(kind, shown) if kind in ASKED else None

    def asked(self, side: str, idx: int, variant: int) -> Iterator[Shown]:
        """What `make` will ask the teacher for."""
        found = self.first(side, idx, variant)
        if isinstance(found, str) or self.settings.kind == RL:
            return
        yield found[1]
        if (
            self.settings.kind == PREFERENCE
            and (rejected := self._rejected(side, found[1], variant))
            and rejected[1] is not None
        ):
            yield rejected[1]

    # -- dialogues -----------------------------------------------------------------

    def make(self, side: str, idx: int, variant: int) -> Made | None:
        """The dialogues about one user or item; if there are none, that is counted."""
        found = self.first(side, idx, variant)
        if isinstance(found, str):
            self.left_out[found] += 1
            return None
        draw, shown, is_less = found
        self.guard.check(shown.pairs(self.known.inputs))
        question = Message("user", self.writer.spans(shown, self.settings.form))
        made = {SFT: self._sft, PREFERENCE: self._preference, RL: self._rl}[self.settings.kind](draw, shown, question)
        if made is not None and is_less:
            made.counts["shortened"] += len(made.dialogues)
        return made

    def _base(self, draw: Draw, name: str = "") -> dict:
        shown = draw.shown
        ident = f"{shown.side}:{self.known.ident(shown.side, shown.idx)}:{draw.variant}{name}"
        return {
            "id": ident,
            "side": shown.side,
            "form": self.settings.form,
            "part": self.known.part(shown.side, shown.idx),
        }

    def _sft(self, draw: Draw, shown: Shown, question: Message) -> Made | None:
        target = self.teacher.answer(shown, self.writer)
        if not target:
            return None
        first = (question, Message("assistant", (Span(target, TEACHER),)))
        pair = (
            self.draws[shown.side].pair(draw, question.text, self.settings.form)
            if self.settings.rounds == 2
            else "asked for one round"
        )
        if isinstance(pair, str):
            if self.budget.has_room(question.text, target):
                return Made(
                    (Dialogue(SFT, messages=first, **self._base(draw)),), Counter({f"first round alone: {pair}": 1})
                )
            self.left_out[TOO_LONG] += 1
            return None
        made = tuple(filter(None, (self._asked(draw, first, one) for one in pair)))
        if len(made) < len(pair):  # as many Yes as No
            self.left_out[TOO_LONG] += 2
            return None
        counts: Counter = Counter()
        for one in pair:
            self.guard.check(one.pairs)
            label = YES if one.answer else NO
            counts += Counter({label: 1, f"{label}, words of it shown": int(one.is_shown), f"{label}, {one.found}": 1})
        return Made(made, counts)

    def _asked(self, draw: Draw, first: tuple[Message, Message], one: Question) -> Dialogue | None:
        if draw.shown.side == USER:
            spans = candidate_spans(
                self.known.inputs.texts[one.about], form=self.settings.form, origin=TRAIN if one.answer else CATALOGUE
            )
        else:
            items = self.draws[ITEM].person(one.about, draw.shown.idx)
            spans = person_spans(self.known.inputs.show(items), form=self.settings.form)
        label = YES if one.answer else NO
        messages = (*first, Message("user", spans), Message("assistant", (Span(label, LABEL),)))
        if not self.budget.has_room(*(message.text for message in messages)):
            return None
        return Dialogue(SFT, messages=messages, **self._base(draw, f":{label.lower()}"))

    def _preference(self, draw: Draw, shown: Shown, question: Message) -> Made | None:
        chosen = self.teacher.answer(shown, self.writer)
        if not chosen:
            return None
        drawn = self._rejected(shown.side, shown, draw.variant)
        if drawn is None:
            self.left_out["none of the corruptions is possible"] += 1
            return None
        kind, asked = drawn
        other = ""
        if asked is not None:
            self.guard.check(asked.pairs(self.known.inputs))
            other = self.teacher.answer(asked, self.writer)
        rng = self.known.lots("merge", shown.side, shown.idx, draw.variant)
        rejected = corrupted(kind, chosen, other, rng)
        if rejected is None or rejected == chosen:
            self.left_out[f"{kind}: {SAME if rejected == chosen else NO_OTHER}"] += 1
        elif not (self.budget.has_room(question.text, chosen) and self.budget.has_room(question.text, rejected)):
            self.left_out[TOO_LONG] += 1
        else:
            dialogue = Dialogue(
                PREFERENCE, messages=(question,), chosen=chosen, rejected=rejected, corruption=kind, **self._base(draw)
            )
            return Made((dialogue,), Counter({kind: 1}))
        return None

    def _rl(self, draw: Draw, shown: Shown, question: Message) -> Made | None:
        lists = self.draws[shown.side].lists(draw, self.settings.n_negatives)
        if isinstance(lists, str):
            self.left_out[lists] += 1
            return None
        self.guard.check(lists.pairs)
        texts = self.known.inputs.texts
        dialogue = Dialogue(
            RL,
            messages=(question,),
            positives=tuple(bounded(texts[item].joined()) for item in lists.positives),
            negatives=tuple(bounded(texts[item].joined()) for item in lists.negatives),
            **self._base(draw),
        )
        return Made((dialogue,), Counter(positives=len(lists.positives), negatives=len(lists.negatives)))
