"""What a run of `reclm profile` does, apart from its source; and the settings of the last run, for `--resume`."""

from dataclasses import dataclass, replace

from ..errors import InputError, WorkspaceError
from ..workspace import Workspace
from . import store
from .sampling import Sampling
from .sources import RULES, SourceSettings
from .stored_settings import check_stored

RETRY_TEMPERATURE = 0.7
REUSE = ("history", "prompt")
MAX_RETRIES = 1000  # each is a setting in a list; the command line takes ten


@dataclass(frozen=True)
class RunSettings:
    """What a run does, apart from its source.

    limit: at most this many users (or items), those whose surroundings most users share first, then the most active.
    deadline_seconds: end by then, the most valuable prompts having gone first. sampling: of the first try. n_retries:
    further tries of an answer that does not parse, drawn with seeds of their own. fallback: "rules" or None. reuse:
    "history" keeps, after a new import, the profiles of users whose own history did not change; "prompt" keeps a
    profile only where the whole prompt is the same. fresh: generate anew what was in the store when the run began;
    fresh_after: the last generation of that time, which a run that goes on with this one takes over.
    """

    limit: int | None = None
    deadline_seconds: float | None = None
    sampling: Sampling = Sampling(guided=True)
    n_retries: int = 1
    fallback: str | None = None
    reuse: str = "history"
    fresh: bool = False
    fresh_after: int | None = None

    def check(self) -> None:
        """Raises InputError if a setting is invalid."""
        if self.fallback not in (None, RULES):
            raise InputError(f"expected fallback 'rules' or none, found {self.fallback!r}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"expected a limit of at least 1, found {self.limit}")
        if self.reuse not in REUSE:
            raise InputError(f"expected reuse {' or '.join(map(repr, REUSE))}, found {self.reuse!r}")
        if self.n_retries < 0:
            raise InputError(f"expected 0 retries or more, found {self.n_retries}")
        if self.n_retries > MAX_RETRIES:
            raise InputError(f"expected at most {MAX_RETRIES} retries, found {self.n_retries}")

    def tries(self) -> list[Sampling]:
        """The first way to choose tokens, then those of the retries."""
        drawn = replace(self.sampling, temperature=max(self.sampling.temperature, RETRY_TEMPERATURE))
        return [self.sampling, *(replace(drawn, seed=self.sampling.seed + n) for n in range(1, self.n_retries + 1))]


def job_kind(side: str) -> str:
    return f"profile {store.one_side(side)}s"


def settings_of_last(ws: Workspace, side: str) -> tuple[SourceSettings, RunSettings] | None:
    """The settings of the last run if it is unfinished; without its deadline, which has passed."""
    detail = store.unfinished_job(ws, job_kind(side))
    if detail is None or "settings" not in detail:
        return None
    try:
        run, source = detail["settings"]["run"], detail["settings"]["source"]
        for part in (source, run, run["sampling"]):
            check_stored(part)
        run["sampling"], run["deadline_seconds"] = Sampling(**run["sampling"]), None
        return SourceSettings(**source), RunSettings(**run)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:  # of another version, or damaged
        raise WorkspaceError(
            f"the settings of the last run of {side} in {ws.root} cannot be read ({error}): start a new run with its "
            "options, without --resume"
        ) from error
