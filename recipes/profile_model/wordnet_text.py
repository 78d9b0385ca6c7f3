"""Words, names and sentences from WordNet 3.0, read from Debian's `wordnet-base` (`/usr/share/wordnet/data.*`).

WordNet's licence lets anyone use, copy, modify and distribute it with its notice; docs/profile-model.md quotes it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")


@dataclass(frozen=True)
class WordNetText:
    """Pools of text; every list is in WordNet's own order, so that a seed draws the same from it everywhere."""

    nouns: tuple[str, ...]
    names: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]
    glosses: tuple[str, ...]
    sentences: tuple[str, ...]


def read_wordnet(folder: Path = WORDNET) -> WordNetText:
    """All pools, each text once."""
    pools: dict[str, dict[str, None]] = {kind: {} for kind in ("noun", "name", "adj", "verb")}
    glosses: dict[str, None] = {}
    sentences: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{part}"
        if not path.exists():
            raise SystemExit(
                f"expected WordNet's {path}, found nothing; install Debian's wordnet-base or give --wordnet FOLDER"
            )
        for line in path.read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            for lemma in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
                lemma = re.sub(r"\((a|p|ip)\)$", "", lemma).replace("_", " ")
                if re.fullmatch(r"[A-Za-z][\w' .-]{1,28}", lemma):
                    kind = "name" if part == "noun" and lemma[0].isupper() else part
                    if kind in pools:
                        pools[kind].setdefault(lemma)
            for quoted in re.findall(r'"([^"]+)"', gloss):
                if 4 <= len(quoted.split()) <= 16:
                    sentences.setdefault(quoted)
            for definition in re.sub(r'"[^"]*"?', "", gloss).split(";"):
                definition = re.sub(r"\s+", " ", re.sub(r"\([^)]*\)?", "", definition)).strip(" :,.-")
                if 3 <= len(definition.split()) <= 24:
                    glosses.setdefault(definition)
    return WordNetText(
        *(tuple(pools[kind]) for kind in ("noun", "name", "adj", "verb")), tuple(glosses), tuple(sentences)
    )
