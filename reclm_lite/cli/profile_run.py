"""`reclm profile users` and `reclm profile items`."""

from dataclasses import replace
from pathlib import Path

import click

from ..errors import shell_word
from ..prompts.forms import answer_lengths
from ._options import (
    common,
    confirmed_at_terminal,
    json_option,
    print_json,
    progress_bar,
    say,
    threads_option,
    workspace_option,
)


def run_command(side: str):
    @click.command(side, short_help=f"Write the profiles of {side}.")
    @workspace_option
    @click.option(
        "--model", type=str, help="A GGUF file, `rules`, or the endpoint's model [default: the bundled profile model]."
    )
    @click.option(
        "--endpoint", metavar="URL", help="Ask this OpenAI-compatible server; its key comes from RECLM_API_KEY."
    )
    @click.option(
        "--deadline",
        metavar="TIME",
        help=("Stop after this time (6h, 90m, …); the prompts that serve most users come first."),
    )
    @click.option(
        "--limit",
        type=click.IntRange(min=1),
        help="At most this many profiles; prompts shared by most users come first.",
    )
    @click.option(
        "--resume", is_flag=True, help="Continue the last unfinished run with its options; give --deadline again."
    )
    @click.option("--fresh", is_flag=True, help="Generate again even if a stored generation exists.")
    @click.option(
        "--reuse",
        type=click.Choice(("history", "prompt")),
        default="history",
        show_default=True,
        help=(
            "After `import --update`, keep a profile if its own history (history) or its whole prompt (prompt) is "
            "unchanged."
        ),
    )
    @click.option(
        "--slots",
        "n_slots",
        type=click.IntRange(1, 256),
        help="Sequences (or requests) in parallel [default: chosen from the model and free memory].",
    )
    @click.option(
        "--guided/--free",
        default=True,
        show_default=True,
        help="Constrain decoding to the answer format, or decode freely.",
    )
    @click.option(
        "--temperature",
        type=click.FloatRange(0.0, 5.0),
        default=0.0,
        show_default=True,
        help="0: greedy decoding; above 0: sampling temperature.",
    )
    @click.option(
        "--top-k",
        type=click.IntRange(min=0),
        default=40,
        show_default=True,
        help="Sample among the k most likely tokens (0: all).",
    )
    @click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed for sampling.")
    @click.option(
        "--retries",
        type=click.IntRange(0, 10),
        default=1,
        show_default=True,
        help="How often an answer that does not parse is sampled again.",
    )
    @click.option(
        "--fallback",
        type=click.Choice(("rules",)),
        help="Replace profiles that stay invalid with rule-based ones, and mark them.",
    )
    @click.option(
        "--engine",
        type=click.Choice(("local", "ray")),
        default="local",
        show_default=True,
        help='This machine, or a Ray cluster (`pip install "reclm-lite[ray]"`).',
    )
    @click.option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Address of a running cluster [default: the one found, or a new one].",
    )
    @click.option(
        "--requests-per-minute", type=click.FloatRange(min=0, min_open=True), help="Rate limit for an endpoint."
    )
    @click.option(
        "--price-in",
        type=click.FloatRange(min=0),
        help="Price of an endpoint per million prompt tokens, for the estimate.",
    )
    @click.option("--price-out", type=click.FloatRange(min=0), help="Price of an endpoint per million new tokens.")
    @click.option(
        "--max-new-tokens",
        type=click.IntRange(16, 4096),
        help=f"Maximum length of an answer [default: {answer_lengths()}].",
    )
    @click.option("--yes", is_flag=True, help="Send prompts to an endpoint without asking.")
    @threads_option
    @json_option
    @common
    def verb(root: Path, as_json: bool, resume: bool, yes: bool, deadline: str | None, **options) -> None:
        from ..profiles.eta import parse_duration
        from ..profiles.generate import run_profiles
        from ..profiles.summary import Summary
        from ..workspace import Workspace

        # An empty text is refused as an invalid duration: an unset shell variable must not mean "no deadline".
        seconds = None if deadline is None else parse_duration(deadline)
        with Workspace.open(root) as ws, ws.writing():
            if resume and _is_over(ws, side, options):
                if as_json:
                    print_json(Summary(side).as_dict())
                say(
                    f"The last run of {side} is complete; there is nothing to resume. Start a new run without --resume."
                )
                return
            source, settings = _settings(ws, side, options, resume)
            _refuse_what_does_nothing(source)
            _refuse_addresses_of_the_workspace(source, yes)
            settings = replace(settings, deadline_seconds=seconds)
            with progress_bar(f"profiling {side}", eta=False) as update:
                summary = run_profiles(ws, side, source=source, settings=settings, observer=_observer(update, yes))
            n_usable = _n_usable(ws)
        if as_json:
            print_json(summary.as_dict())
        say(summary.sentence())
        if summary.n_not_reached:
            say(f"To continue: reclm profile {side} -w {shell_word(root)} --resume")
        if n_usable:
            say(f"Next: reclm embed profiles -w {shell_word(root)}")
        elif not summary.n_not_reached:
            say(
                "No profile could be made, so there is nothing to embed. Models without profiles still work with "
                "this data."
            )

    verb.help = (
        f"Write the profiles of {side} with a language model on this machine. An interrupted run can be resumed "
        f"(--resume).\n\n\b\nExample:\n  reclm profile {side} -w shop --limit 2000\n  reclm profile {side} -w shop "
        "--model my-q4_k_m.gguf --deadline 6h"
    )
    return verb


# Options of the command -> fields of the settings.
_SOURCE = (
    "model",
    "endpoint",
    "n_threads",
    "n_slots",
    "engine",
    "ray_address",
    "requests_per_minute",
    "price_in",
    "price_out",
    "max_new_tokens",
)
_RUN = {"limit": "limit", "fallback": "fallback", "reuse": "reuse", "fresh": "fresh", "retries": "n_retries"}
_SAMPLING = ("temperature", "top_k", "seed", "guided")


# Options that only one kind of source heeds: elsewhere they would be passed over in silence.
_OF_ENDPOINTS = ("price_in", "price_out", "requests_per_minute")
_NOT_OF_ENDPOINTS = ("guided", "top_k", "n_threads")
_NOT_OF_RULES = (
    "temperature",
    "top_k",
    "seed",
    "guided",
    "n_slots",
    "n_threads",
    "max_new_tokens",
    "retries",
    "fallback",
)


def _is_given(name: str) -> bool:
    """Whether this parameter was given on the command line."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _refuse_addresses_of_the_workspace(source, yes: bool) -> None:
    """Only the command line may choose where prompts are sent: a workspace may come from somebody else, and its last
    run may name any host."""
    if yes and source.endpoint is not None and not _is_given("endpoint"):
        raise click.UsageError(
            f"the endpoint {source.endpoint} comes from the workspace's last run, but --yes only covers an endpoint "
            "on the command line: add --endpoint URL, or leave out --yes to be asked"
        )
    if source.ray_address is not None and not _is_given("ray_address"):
        raise click.UsageError(
            f"the Ray cluster {source.ray_address} comes from the workspace's last run: give it with --ray-address "
            "to send prompts there"
        )


def _is_over(ws, side: str, options: dict) -> bool:
    """Whether the last run is complete and no other option is given. Otherwise --resume would start a new run with the
    default model."""
    from ..profiles.run_settings import job_kind
    from ..profiles.store import last_state

    return last_state(ws, job_kind(side)) == "done" and not any(_is_given(name) for name in options)


def _settings(ws, side: str, options: dict, resume: bool):
    """Settings of a run: with `resume` those of the last unfinished run, overridden by the options given."""
    from ..profiles.run_settings import RunSettings, settings_of_last
    from ..profiles.sampling import Sampling
    from ..profiles.sources import SourceSettings

    source, run = SourceSettings(), RunSettings(sampling=Sampling(guided=True))
    if resume:
        last = settings_of_last(ws, side)
        if last is None:
            say(f"There is no unfinished run of {side}; starting a new one with the given options.")
        else:
            source, run = last
            options = {name: value for name, value in options.items() if _is_given(name)}
            source = _without_what_was_replaced(source, options)
    source = replace(source, **{name: options[name] for name in _SOURCE if name in options})
    if options.get("model") and source.endpoint is None:
        source = replace(source, model=_model_here(options["model"]))
    sampling = replace(run.sampling, **{name: options[name] for name in _SAMPLING if name in options})
    return source, replace(run, sampling=sampling, **{_RUN[name]: options[name] for name in _RUN if name in options})


def _without_what_was_replaced(last, given: dict):
    """The last run's source without the settings that belong to an endpoint, model or engine that was replaced by an
    option."""
    if "model" in given or "endpoint" in given:
        last = replace(last, model_sha256=None)
    if "model" in given and "endpoint" not in given and last.endpoint is not None:
        of_endpoint = dict.fromkeys((*_OF_ENDPOINTS, "endpoint", "n_ctx", "timeout_seconds"))
        return replace(last, **of_endpoint)
    if "endpoint" in given and "model" not in given and last.endpoint is None:
        return replace(last, model=None)
    return replace(last, ray_address=None) if given.get("engine") == "local" else last


def _model_here(name: str) -> str:
    """The absolute path of a local model, so that `--resume` finds it from any folder."""
    from ..profiles.sources import RULES

    return name if name == RULES else str(Path(name).absolute())


def _refuse_what_does_nothing(source) -> None:
    """Raises UsageError if an option has no effect with this source."""
    from ..profiles.sources import RULES

    if source.endpoint is None:
        _refuse(_OF_ENDPOINTS, "applies only to an endpoint: add --endpoint URL, or leave it out")
    else:
        _refuse(_NOT_OF_ENDPOINTS, "has no effect on an endpoint: leave it out")
    if source.engine != "ray":
        _refuse(("ray_address",), "applies only to a Ray cluster: add --engine ray, or leave it out")
    if source.model == RULES and source.endpoint is None:
        _refuse(_NOT_OF_RULES, "has no effect with --model rules: leave it out")


def _refuse(names: tuple[str, ...], why: str) -> None:
    for parameter in click.get_current_context().command.params:
        if parameter.name in names and _is_given(parameter.name):
            raise click.UsageError(f"{'/'.join((*parameter.opts, *parameter.secondary_opts))} {why}")


def _n_usable(ws) -> int:
    """Number of stored profiles of users and items that can be embedded."""
    from ..profiles.store import SIDES, USABLE, profile_counts

    return sum(profile_counts(ws, side).get(status, 0) for side in SIDES for status in USABLE)


def _observer(update, yes: bool):
    from ..profiles.run_progress import Observer

    class Terminal(Observer):
        def progress(self, done: int, total: int, note: str = "") -> None:
            update(done, total, note)

        def say(self, sentence: str) -> None:
            say(sentence)

        def agree(self, source, groups, users: int) -> None:
            estimate = getattr(source, "estimate", None)
            if estimate is None:
                return
            say(estimate(groups).sentence())
            if not yes and not confirmed_at_terminal():
                raise click.ClickException("cancelled; nothing was sent")

    return Terminal()
