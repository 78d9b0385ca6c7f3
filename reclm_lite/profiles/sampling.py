"""How the next token is chosen: greedily or by a seeded draw, constrained by the answer grammar or not."""

from dataclasses import dataclass

from . import answer_grammar


@dataclass(frozen=True)
class Sampling:
    """The likeliest token (temperature 0), or a seeded draw among the `top_k` likeliest (0: among all).

    guided: choices that no valid profile could contain are passed over, see `answer_grammar`.
    """

    temperature: float = 0.0
    top_k: int = 40
    seed: int = 0
    guided: bool = False

    def identity(self) -> str:
        """A text that two settings share only if they choose alike."""
        how = "greedy" if self.temperature <= 0 else f"t={self.temperature} k={self.top_k} seed={self.seed}"
        return f"{how}, form {answer_grammar.GRAMMAR_VERSION}" if self.guided else how


GREEDY = Sampling()
