"""The summary of a run of `reclm profile`, as numbers and as a sentence."""

from dataclasses import asdict, dataclass, field

from .eta import counted, format_duration


@dataclass
class Summary:
    """Counts of users (or items) but for prompts and generations.

    n_kept: profiles from before the last import, of users whose own history did not change. n_not_reached: left for the
    next run, because the deadline came or the source did not answer. n_near_ties: greedy answers of this run with a
    step where the two likeliest tokens were closer than NEAR_TIE: the rounding of another processor, or of another
    build of llama.cpp, might decide otherwise. profiles_per_s: valid answers. Rates are over the whole time of
    generation, the model being loaded, prefill and decode taking turns in the same batches. shared_prompt_share: part
    of the generated prompts' tokens that another prompt had decoded already; saved_prompt_share: part of the tokens of
    one prompt for each user that was not decoded, sharing of prompts and of beginnings together. announced_bytes: the
    memory that the run said it would take; peak_bytes: what it took.
    """

    side: str
    source: str = ""
    n_requested: int = 0
    n_distinct_prompts: int = 0
    n_generated: int = 0
    n_from_cache: int = 0
    n_ok: int = 0
    n_invalid: int = 0
    n_edited: int = 0
    n_kept: int = 0
    n_not_reached: int = 0
    n_skipped: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    n_from_neighbors: int = 0
    n_from_text: int = 0
    n_shortened: int = 0
    n_retried: int = 0
    n_fallback: int = 0
    n_near_ties: int = 0
    invalid_share: float = 0.0
    seconds: float = 0.0
    seconds_generating: float = 0.0
    profiles_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    shared_prompt_share: float = 0.0
    saved_prompt_share: float = 0.0
    announced_bytes: int = 0
    peak_bytes: int = 0
    ended_by: str = "done"
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)

    def sentence(self) -> str:
        """The result in words."""
        by = self.source.split(",")[0]
        parts = [
            f"{counted(self.n_ok + self.n_invalid, self.side.removesuffix('s'))} profiled by {by}: {self.n_ok:,} ok, "
            f"{self.n_invalid:,} invalid "
            f"({self.invalid_share:.1%}); {counted(self.n_distinct_prompts, 'distinct prompt')}, {self.n_generated:,} "
            "generated, "
            f"{self.n_from_cache:,} from earlier runs, in {format_duration(self.seconds)}"
        ]
        if self.n_generated and self.seconds_generating > 0:
            parts.append(
                f"{self.profiles_per_s:,.1f} profiles/s, {self.prefill_tokens_per_s:,.0f} prompt tokens/s and "
                f"{self.decode_tokens_per_s:,.0f} new tokens/s, {self.saved_prompt_share:.0%} of the prompt tokens "
                "saved"
            )
        for count, what in (
            (self.n_edited, "kept because they were edited by hand or imported"),
            (self.n_kept, "kept from before the last import because their history is unchanged"),
            (self.n_from_neighbors, "made from neighbors only (no history)"),
            (self.n_from_text, "made from the text only (no interactions)"),
            (self.n_shortened, "prompts without the oldest items (no room)"),
            (self.n_near_ties, "answers with a near-tie (another processor may give other text)"),
            (self.n_fallback, "written by rules instead"),
            (
                self.n_not_reached,
                "not reached before the deadline"
                if self.ended_by == "deadline"
                else "not answered; left for the next run",
            ),
        ):
            if count:
                parts.append(f"{count:,} {what}")
        parts += [f"{count:,} skipped ({reason})" for reason, count in self.skipped.items()]
        if self.announced_bytes and self.peak_bytes:
            parts.append(f"memory {self.peak_bytes / 1e9:.2f} GB ({self.announced_bytes / 1e9:.2f} GB planned)")
        return "; ".join([*parts, *self.notes]) + "."
