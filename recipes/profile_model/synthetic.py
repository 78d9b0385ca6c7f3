"""Made-up histories: news-like, film-like and shop-like items out of WordNet's words, and words of no language.

Example i of seed s is always the same. A share of the words is invented (syllables, letters of other scripts, pieces
of the tokenizer in random order), so that a model cannot rely on knowing a word in order to copy it.
"""

import random
from dataclasses import dataclass

from wordnet_text import WordNetText

from reclm_lite.profiles.sources.rules import RuleTeacher
from reclm_lite.prompts.answer import format_profile
from reclm_lite.prompts.compact import render
from reclm_lite.prompts.entries import clean, leading_phrase
from reclm_lite.prompts.spans import text_of
from reclm_lite.prompts.view import PromptView, item_view, prompt_view
from reclm_lite.types import ItemText

TOPICS = (
    "sports football soccer basketball baseball hockey tennis golf boxing cricket racing cycling swimming "
    "rugby olympics news "
    "politics elections government world finance markets business economy money jobs companies banking "
    "insurance retirement "
    "weather storms crime law courts science technology tech computers phones space nature animals environment "
    "health fitness "
    "wellness nutrition medicine lifestyle food drink recipes cooking restaurants wine travel hotels flights "
    "beaches style beauty "
    "fashion makeup home garden decor cleaning autos cars trucks motorcycles outdoors hiking camping "
    "photography art design music "
    "songs audio radio podcasts jazz rock pop opera books literature fiction novels poetry comics magazines "
    "history philosophy "
    "religion education games gaming puzzles toys tv television movies video entertainment celebrity "
    "celebrities royals shopping "
    "deals electronics clothing shoes jewelry grocery tools kitchen office pets dogs cats baby kids parenting "
    "family weddings "
    "crafts knitting sewing local national opinion culture society video viral voices trends tips reviews guides"
).split()
GENRES = (
    "Action Adventure Animation Children Comedy Crime Documentary Drama Fantasy Film-Noir Horror IMAX Musical "
    "Mystery Romance "
    "Sci-Fi Thriller War Western Family Biography History Sport Music Short"
).split()
_SUBS = (
    "us world world-politics nfl nba mlb ncaa college international local videos top-stories tips news people "
    "companies pro"
).split()
SHARE_BARE = 0.5
_PREPS = "in of for with after from over to at on by against during before under without".split()
_OTHER_LETTERS = (
    "абвгдежзиклмнопрстуфхцчшыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "éèüößçñåøæêîôûáíóúãõaeiounrstlm",
    "日本東京新聞映画音楽中国電車学生山川田村大小",
    "أبتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "가나다라마바사아자차카타파하영화음악",
)


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Story:
    """What a prompt shows, of whom ("user" or "item"), and, but for bare slots, what it was made from.

    history, near: the items, and those of each neighbor. more: further items of the same theme; others: of another.
    """

    view: PromptView
    side: str
    history: tuple[ItemText, ...] = ()
    near: tuple[tuple[ItemText, ...], ...] = ()
    more: tuple[ItemText, ...] = ()
    others: tuple[ItemText, ...] = ()

    @property
    def answer(self) -> str:
        """The rule-based teacher's."""
        return format_profile(RuleTeacher.from_view(self.view))


class Histories:
    """Draws stories: `story(seed, i)`."""

    def __init__(self, pools: WordNetText, pieces: list[str] | None = None):
        self.pools = pools
        self.pieces = pieces or []

    def example(self, seed: int, index: int) -> Example:
        """A story's first round in words."""
        story = self.story(seed, index)
        subject = (
            ("Films" if story.view.film else "History")
            if story.side == "user"
            else "Film"
            if story.view.film
            else "Item"
        )
        return Example(text_of(render(story.view, subject)), story.answer)

    def story(self, seed: int, index: int, *, n_more: int = 0, bare: float = SHARE_BARE) -> Story:
        """n_more: further items and others to draw. bare: the share of stories that are slots of a word or two."""
        rng = random.Random(f"{seed}/{index}")
        if rng.random() < bare:
            return self._bare(rng)
        style = rng.choices((self._news, self._film, self._product), (6, 2, 2))[0]
        invented = rng.choice((0.0, 0.05, 0.05, 0.3, 0.9))
        theme = _Theme(self, rng, style == self._film, invented)
        n_items = rng.choices((1, 2, 3, 4, 6, 9, 12), (46, 14, 12, 12, 8, 4, 4))[0]
        history = [style(rng, theme) for _ in range(n_items)]
        near_theme = theme if rng.random() < 0.6 else _Theme(self, rng, style == self._film, invented)
        near = []
        for _ in range(rng.choice((0, 0, 1, 2, 3, 5))):
            own = [rng.choice(history)] if rng.random() < 0.4 else []
            near.append(tuple(own + [style(rng, near_theme) for _ in range(rng.choice((1, 1, 2, 3)))]))
        if rng.random() < 0.15:
            side, view = "item", item_view(history[0], [item for items in near for item in items])
            history = history[:1]
        else:
            side, view = "user", prompt_view(history, near)
        other = _Theme(self, rng, style == self._film, invented)
        more, others = ([style(rng, t) for _ in range(n_more)] for t in (theme, other))
        return Story(view, side, tuple(history), tuple(near), tuple(more), tuple(others))

    def _bare(self, rng: random.Random) -> Story:
        """Six slots of a word or two and nothing around them: what is to be said where, without the copying of long
        runs."""
        invented = rng.choice((0.0, 0.3, 0.9))
        slots: dict[str, str] = {}
        while len(slots) < 6:
            text = " ".join(clean(self._word(rng, invented)).replace(",", " ").split()[: rng.choice((1, 1, 2))])
            phrase = leading_phrase(text)
            if phrase == text and not text.isdigit():
                slots.setdefault(text.casefold(), text)
        topics, lines = list(slots.values())[:3], list(slots.values())[3:]
        if rng.random() < 0.25:
            topics = [topics[0].split()[0] + rng.choice(("", " ")) + sub for sub in rng.sample(_SUBS, 3)]
        if rng.random() < 0.2:
            first = rng.choice(("Three", "Big", "Star", "Man", rng.choice(self.pools.names).split()[0]))
            lines = [f"{first} {line.split()[0]}" for line in lines]
        film = rng.random() < 0.4
        if film:
            lines = [f"{line} ({rng.randint(1920, 2024)})" for line in lines]
        elif rng.random() < 0.5:
            lines = [f"{line} {rng.choice(_PREPS)} {rng.choice(self.pools.nouns)}" for line in lines]
        view = PromptView(tuple(topic.lower() for topic in topics), tuple(lines), film)
        return Story(view, "user")

    def _word(self, rng: random.Random, invented: float) -> str:
        if rng.random() >= invented:
            draw = rng.random()
            pool = (
                self.pools.nouns
                if draw < 0.5
                else self.pools.names
                if draw < 0.8
                else self.pools.adjectives
                if draw < 0.9
                else self.pools.verbs
            )
            return rng.choice(pool)
        draw = rng.random()
        if draw < 0.35:
            return "".join(
                rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiouy") for _ in range(rng.randint(1, 4))
            ).title()
        if draw < 0.75 and self.pieces:
            return "".join(rng.choice(self.pieces) for _ in range(rng.randint(1, 3)))
        if draw < 0.85:
            letters = rng.choice(_OTHER_LETTERS)
            return "".join(rng.choice(letters) for _ in range(rng.randint(2, 7)))
        if draw < 0.95:
            return (
                rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
                + "".join(rng.choice("ABCDEFGHXZ0123456789-") for _ in range(rng.randint(1, 5)))
                + "7"
            )
        return str(rng.randint(1, 3000))

    def _phrase(self, rng: random.Random, theme: "_Theme") -> str:
        if theme.favourites and rng.random() < 0.25:
            return rng.choice(theme.favourites)
        return " ".join(self._word(rng, theme.invented) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))

    def _headline(self, rng: random.Random, theme: "_Theme") -> str:
        draw = rng.random()
        if draw < 0.2:
            text = rng.choice(self.pools.sentences)
        elif draw < 0.4:
            text = " ".join(rng.choice(self.pools.glosses).split()[: rng.randint(3, 12)])
        else:
            text = self._phrase(rng, theme)
            for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
                link = rng.choice(
                    (rng.choice(_PREPS), rng.choice(_PREPS), "and the", "is", ":", ",", "-", "?", "'s", "will", "are")
                )
                text += (link if link in ":,?'s" else f" {link}") + " " + self._phrase(rng, theme)
        if theme.case == "title":
            return " ".join(w[:1].upper() + w[1:] for w in text.split())
        return {"lower": text.lower(), "upper": text.upper(), "sentence": text[:1].upper() + text[1:]}.get(
            theme.case, text
        )

    def _news(self, rng: random.Random, theme: "_Theme") -> ItemText:
        description = ""
        if theme.described and rng.random() < 0.8:
            parts = [rng.choice(rng.choice((self.pools.glosses, self.pools.sentences))), self._headline(rng, theme)]
            description = ". ".join(p[:1].upper() + p[1:] for p in rng.sample(parts, rng.randint(1, 2)))
        return ItemText(self._headline(rng, theme), *theme.pick(rng), description)

    def _film(self, rng: random.Random, theme: "_Theme") -> ItemText:
        title = " ".join(w[:1].upper() + w[1:] for w in self._phrase(rng, theme).split())
        draw = rng.random()
        if draw < 0.3:
            title += (
                f"{rng.choice((':', ' of', ' of the', ' and', ' in', ' -', ' vs.'))} {self._phrase(rng, theme).title()}"
            )
        elif draw < 0.4:
            title += f" {rng.randint(2, 5)}"
        elif draw < 0.45:
            title = rng.choice(
                ("Up", "It", "Once", "Her", "Them!", "Now and Then", "300", "1917", "What's Up", "Only You")
            )
        title += rng.choice(("", "", "", ", The", ", A"))
        return ItemText(f"{title} ({rng.randint(1920, 2024)})", *theme.pick(rng))

    def _product(self, rng: random.Random, theme: "_Theme") -> ItemText:
        parts = [
            self._word(rng, max(0.3, theme.invented)).title(),
            *(self._phrase(rng, theme) for _ in range(rng.randint(1, 3))),
        ]
        title = rng.choice((" ", " ", ", ", " - ", " for ")).join(parts)
        if rng.random() < 0.4:
            title += f", {rng.randint(1, 500)} {rng.choice(('oz', 'ml', 'Pack', 'cm', 'Count', 'GB'))}"
        return ItemText(
            title, *theme.pick(rng), rng.choice(self.pools.glosses) if theme.described and rng.random() < 0.5 else ""
        )


class _Theme:
    """What the items of one history have in common: a few topics, a few phrases, a way of writing."""

    def __init__(self, source: Histories, rng: random.Random, film: bool, invented: float):
        self.invented = invented
        self.film = film
        self.case = rng.choice(("title", "title", "sentence", "sentence", "as-is", "lower", "upper"))
        self.described = rng.random() < 0.6
        self.favourites: list[str] = []
        self.favourites = [source._phrase(rng, self) for _ in range(rng.choice((0, 0, 1, 2)))]
        style = rng.choices(("none", "main", "pair", "many"), (1, 2, 6, 1 if not film else 12))[0]
        own = list(GENRES) if film else [self._topic(source, rng) for _ in range(6)]
        self.topics = [] if style == "none" else rng.sample(own, min(len(own), rng.randint(1, 5 if film else 3)))
        self.style = style

    def _topic(self, source: Histories, rng: random.Random) -> str:
        if rng.random() < 0.6:
            topic = rng.choice(TOPICS)
        else:
            topic = source._word(rng, self.invented)
        draw = rng.random()
        if draw < 0.25:
            topic += rng.choice("_ -") + rng.choice(_SUBS)
        elif draw < 0.4:  # `finance-real-estate`, `foodanddrink`: words within which a copy may lose its place
            topic = rng.choice(("-", "-", "and", "")).join([topic, *rng.sample(TOPICS, rng.choice((1, 1, 2)))])
        return topic.title() if rng.random() < 0.3 else topic

    def pick(self, rng: random.Random) -> tuple[str, str]:
        if not self.topics:
            return "", ""
        if self.style == "main":
            return rng.choice(self.topics), ""
        if self.style == "many":
            return "|".join(rng.sample(self.topics, rng.randint(1, len(self.topics)))), ""
        main = self.topics[0] if rng.random() < 0.7 else rng.choice(self.topics)
        sub = rng.choice(self.topics[1:] or [""])
        return main, rng.choice((sub, sub, sub, f"{main}_{rng.choice(_SUBS)}", f"{main}{rng.choice(_SUBS)}"))
