"""The summary of a `reclm forget`: what it removed, what may still reveal the people, and commands to fix that."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from .errors import shell_word
from .workspace import Workspace


@dataclass(frozen=True)
class Deleted:
    """A file that is deleted, not rewritten. command: the command that makes it again, or empty."""

    path: str
    reason: str
    command: str = ""


@dataclass(frozen=True)
class Remains:
    """A sentence on something that may still reveal a forgotten person, and commands that make it without them."""

    text: str
    commands: list[str] = field(default_factory=list)


@dataclass
class ForgetSummary:
    """What was removed or, with dry_run, would be removed.

    users: ids that were in the data. not_in_data: requested ids that are, if anywhere, in earlier data only.
    n_interactions, n_profiles: of these users. n_generations: made for them alone. n_unknown_generations: generations
    without a record of whom they were made for. n_neighbor_lists: lists of other users that contained them.
    """

    users: list[str]
    dry_run: bool
    n_users_left: int
    n_interactions: int = 0
    n_profiles: int = 0
    n_generations: int = 0
    n_unknown_generations: int = 0
    n_neighbor_lists: int = 0
    rewritten: list[str] = field(default_factory=list)
    deleted: list[Deleted] = field(default_factory=list)
    remains: list[Remains] = field(default_factory=list)
    not_in_data: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


def add_remains(ws: Workspace, summary: ForgetSummary, fit_commands: Mapping[str, str]) -> None:
    """Add to `summary` what a pass could not remove. fit_commands: model artefact -> the command that fits it again."""
    w = f"-w {ws.argument}"
    plain = [command for name, command in fit_commands.items() if "+" not in name]
    with_profiles = [command for name, command in fit_commands.items() if "+" in name]
    sides = [row[0] for row in ws.db.execute("SELECT DISTINCT side FROM profiles ORDER BY side DESC")]
    again = []
    if fit_commands:
        summary.remains.append(
            Remains(
                "What models learned from everybody (item vectors, weights, counts of items) still has them in "
                "it: "
                f"{', '.join(name.removeprefix('models/') for name in fit_commands)}.",
                plain if sides else plain + with_profiles,
            )
        )
    if summary.n_neighbor_lists:
        again.append(f"reclm neighbors {w}")
    again += [f"reclm profile {side}s {w}" for side in sides]
    again += [f"reclm embed profiles {w}", *with_profiles] if sides else []
    sentences = []
    if summary.n_neighbor_lists:
        sentences.append(
            f"{summary.n_neighbor_lists:,} others had them among their neighbors, and have a shorter list now."
        )
    if sides:
        sentences.append("Profiles of others may have been written with what they had in the prompt.")
    if sentences:
        summary.remains.append(Remains(" ".join(sentences), again))
    summary.remains.append(
        Remains(
            "The files that were imported, reports and dialogues written elsewhere and copies of the workspace "
            "are not touched: "
            "take the person out of them as well, or the next import brings them back."
        )
    )


def fit_command(ws: Workspace, name: str, params: dict) -> str:
    """The command that fits a model again with the same settings."""
    preset = str(params.get("preset", "default")).rstrip("*")
    overridden = params.get("overridden")
    words = [ws.command_for(name)] + [f"--preset {shell_word(preset)}"] * (preset != "default")
    words += [f"--set {shell_word(assignment)}" for assignment in (overridden if isinstance(overridden, list) else [])]
    words += [f"--seed {shell_word(params['seed'])}"] if params.get("seed") else []
    return " ".join(words)
