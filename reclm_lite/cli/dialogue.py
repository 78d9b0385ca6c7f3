"""`reclm dialogue`: build and show the dialogues that `reclm tune` trains on."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from ..dialogue.records import KINDS
from ..errors import shell_word
from ..profiles.exchange_format import IMPORT_FORMATS
from ..prompts.forms import COMPACT, FORMS, forms_help
from ._options import (
    common,
    confirmed_at_terminal,
    echo,
    json_option,
    print_json,
    progress_bar,
    say,
    threads_option,
    workspace_option,
)

_SIDES = {"users": ("user",), "items": ("item",), "both": ("user", "item")}
_ONLY_FOR = {"rounds": "sft", "corruptions": "preference", "n_negatives": "rl"}
_STORED, _BUNDLED = "stored", "bundled"


@click.group("dialogue")
def command() -> None:
    """Build and show dialogues for tuning a language model. They use training interactions only.

    \b
    Example:
      reclm dialogue build sft -w shop
      reclm dialogue show -w shop --kind sft -n 2
    """


@command.command("build", short_help="Write the dialogues of one kind.")
@click.argument("kind", type=click.Choice(KINDS))
@workspace_option
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Output file [default: llm/dialogues/KIND.jsonl in the workspace].",
)
@click.option(
    "--side",
    type=click.Choice(tuple(_SIDES)),
    default="both",
    show_default=True,
    help="Dialogues about users, items or both.",
)
@click.option("--form", type=click.Choice(tuple(FORMS)), default=COMPACT, show_default=True, help=forms_help())
@click.option(
    "--teacher",
    default="rules",
    show_default=True,
    metavar="WHO",
    help="First-round answers: rules, bundled (the profile model), stored (the workspace's profiles), a GGUF file, "
    "or the endpoint's model.",
)
@click.option("--endpoint", metavar="URL", help="Ask this OpenAI-compatible server; its key comes from RECLM_API_KEY.")
@click.option(
    "--targets",
    type=click.Path(path_type=Path, dir_okay=False),
    help="First-round answers from this file of profiles (JSON lines or CSV).",
)
@click.option("--targets-format", type=click.Choice(IMPORT_FORMATS), help="[default: by the file's ending]")
@click.option(
    "--rounds",
    type=click.IntRange(1, 2),
    help="sft only: 1 omits the second round [default: 2; 1 with stored profiles or --targets].",
)
@click.option(
    "--variants",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Dialogues per user and item, each with different hidden items.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Use a random sample of at most this many users and this many items."
)
@click.option(
    "--negatives",
    "n_negatives",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="rl only: number of negative items (without interaction) per dialogue.",
)
@click.option(
    "--corruptions",
    metavar="KIND=SHARE,…",
    help="preference only: kinds of rejected profiles and their shares [default: all].",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of held-out dialogues, used for evaluation and never for training.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=64),
    default=1024,
    show_default=True,
    help="Maximum tokens per dialogue; the oldest items are dropped to fit.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, file_okay=False),
    help="Count tokens with this folder's tokenizer.json [default: an estimate].",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--yes", is_flag=True, help="Send prompts to an endpoint without asking.")
@threads_option
@json_option
@common
def build_command(
    kind: str,
    root: Path,
    path: Path | None,
    side: str,
    form: str,
    max_tokens: int,
    tokenizer: Path | None,
    corruptions: str | None,
    rounds: int | None,
    as_json: bool,
    **options,
) -> None:
    """Write the dialogues of KIND from training interactions: sft (two rounds), preference (a good profile and a bad
    one) or rl (a prompt and items to rank). Held-out interactions are never used; the build stops if one would be.

    \b
    Example:
      reclm dialogue build sft -w shop
      reclm dialogue build preference -w shop --side users --corruptions neighbor=3,merged=3,empty=1
      reclm dialogue build sft -w news --side users --targets mind_fine_tune.csv --targets-format reclm
    """
    from ..dialogue.budget import estimated, exact
    from ..dialogue.build import BuildSettings, build, default_path
    from ..dialogue.preferences import SHARES, parse_shares
    from ..prompts.inputs import load_inputs
    from ..workspace import Workspace

    _refuse_what_does_nothing(kind, options)
    budget = exact(max_tokens, tokenizer) if tokenizer else estimated(max_tokens, form)
    with Workspace.open(root) as ws, ws.writing():
        inputs = load_inputs(ws)
        with (
            _teacher(ws, inputs, kind, side, options) as teacher,
            progress_bar(f"writing {kind} dialogues", eta=False) as update,
        ):
            settings = BuildSettings(
                kind,
                _SIDES[side],
                form,
                options["seed"],
                options["limit"],
                options["variants"],
                rounds or (1 if teacher.is_whole else 2),
                options["n_negatives"],
                options["held_out"],
                SHARES if corruptions is None else parse_shares(corruptions),
            )
            summary = build(ws, inputs, teacher, settings, path=path, budget=budget, progress=update)
        elsewhere = f" --dialogues {shell_word(path)}" if path else ""
        path = path or default_path(ws, kind)
    if as_json:
        print_json(summary.manifest)
    for note in summary.notes:
        say(f"Note: {note}.")
    say(f"Wrote {summary.n_dialogues:,} {kind} dialogues to {path}: {_told(summary.counts)}.")
    if summary.left_out:
        say(f"Skipped: {_told(summary.left_out)}.")
    next_stage = {"sft": "sft", "preference": "reward", "rl": "ppo"}[kind]
    say(f"Next: reclm tune {next_stage} -w {shell_word(root)}{elsewhere}")


def _told(counts: dict) -> str:
    flat = {}
    for name, value in counts.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return "; ".join(f"{name} {n:,}" for name, n in flat.items() if n)


def _refuse_what_does_nothing(kind: str, options: dict) -> None:
    """Raises UsageError if an option has no effect on this kind of dialogues."""
    from ..profiles.sources import RULES

    given = click.get_current_context().get_parameter_source
    default = click.core.ParameterSource.DEFAULT
    for name, only in _ONLY_FOR.items():
        if kind != only and given(name) is not default:
            raise click.UsageError(f"--{name.removeprefix('n_')} applies only to {only} dialogues: leave it out")
    if options["targets"] is None and options["targets_format"] is not None:
        raise click.UsageError("--targets-format requires --targets: add it, or leave out --targets-format")
    if options["targets"] is not None and (given("teacher") is not default or options["endpoint"] is not None):
        raise click.UsageError("--targets replaces the teacher: leave out --teacher and --endpoint")
    if kind == "rl" and (
        given("teacher") is not default or options["endpoint"] is not None or options["targets"] is not None
    ):
        raise click.UsageError(
            "rl dialogues have no first-round answers: leave out --teacher, --endpoint and --targets"
        )
    if options["endpoint"] is None and given("yes") is not default:
        raise click.UsageError("--yes requires --endpoint: add it, or leave out --yes")
    if (
        options["endpoint"] is None
        and (options["targets"] is not None or options["teacher"] in (RULES, _STORED))
        and given("n_threads") is not default
    ):
        raise click.UsageError("--threads applies only to a model as teacher: leave it out")
    if options["endpoint"] is not None and given("teacher") is default:
        raise click.UsageError("--endpoint requires the name of its model: add --teacher NAME")


@contextlib.contextmanager
def _teacher(ws, inputs, kind: str, side: str, options: dict) -> Iterator:
    """The source of the first-round answers."""
    from ..dialogue.teacher import NoTeacher
    from ..profiles.dialogue_teachers import SourceTeacher, file_teacher, stored_teacher
    from ..profiles.run_settings import RunSettings
    from ..profiles.sources import RULES, SourceSettings, open_source
    from ..profiles.sources.rules import RulesTeacher

    name = options["teacher"]
    if kind == "rl":
        yield NoTeacher()
    elif options["targets"] is not None:
        yield file_teacher(ws, options["targets"], None if side == "both" else side, options["targets_format"])
    elif options["endpoint"] is None and name == RULES:
        yield RulesTeacher(inputs)
    elif options["endpoint"] is None and name == _STORED:
        yield stored_teacher(ws)
    else:
        model = None if name == _BUNDLED and options["endpoint"] is None else name
        settings = SourceSettings(model, options["endpoint"], n_threads=options["n_threads"])
        with open_source(settings, inputs) as source, progress_bar("asking the teacher") as update:

            def agree(source, groups) -> None:
                estimate = getattr(source, "estimate", None)
                if estimate is not None:
                    say(estimate(groups).sentence())
                    if not options["yes"] and not confirmed_at_terminal():
                        raise click.ClickException("cancelled; nothing was sent")

            yield SourceTeacher(ws, source, RunSettings(), agree=agree, progress=update)


@command.command("show", short_help="Print some dialogues in readable form.")
@workspace_option
@click.option("--kind", type=click.Choice(KINDS), default="sft", show_default=True)
@click.option(
    "--file", "path", type=click.Path(path_type=Path, dir_okay=False), help="Dialogue file [default: the workspace's]."
)
@click.option(
    "-n",
    "n_shown",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help=("Number of dialogues, spread evenly over the file."),
)
@common
def show_command(root: Path, kind: str, path: Path | None, n_shown: int) -> None:
    """Print some dialogues in readable form, spread evenly over the file.

    \b
    Example:
      reclm dialogue show -w shop --kind preference -n 5
    """
    from ..dialogue.build import default_path
    from ..dialogue.records import read_dialogues
    from ..workspace import Workspace

    with Workspace.open(root) as ws:
        path = path or default_path(ws, kind)
    total = sum(1 for _ in read_dialogues(path, kind))
    wanted = {n * total // min(n_shown, total) for n in range(min(n_shown, total))}
    for number, dialogue in enumerate(read_dialogues(path, kind)):
        if number in wanted:
            echo(_readable(dialogue))


def _readable(dialogue) -> str:
    parts = [f"== {dialogue.id} ({dialogue.kind}, {dialogue.form}, {dialogue.part})"]
    parts += [f"[{message.role}]\n{message.text.rstrip()}" for message in dialogue.messages]
    if dialogue.corruption:
        parts += [
            f"[chosen]\n{dialogue.chosen}",
            f"[rejected: {dialogue.corruption}]\n{dialogue.rejected or '(empty)'}",
        ]
    for name, texts in (("taken", dialogue.positives), ("never touched", dialogue.negatives)):
        parts += [f"[{name}]\n" + "\n".join(f"- {text[:100]}" for text in texts)] if texts else []
    return "\n".join(parts) + "\n"
