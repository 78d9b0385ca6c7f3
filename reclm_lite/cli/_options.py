"""Options and helpers shared by all commands."""

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from ..threads import check_threads
from ._out import agreed, console, echo, print_json, progress_bar, say, set_up_logging  # noqa: F401  (the verbs take them from here)

_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of the command line that are no UTF-8 come as these


def common(function: Callable) -> Callable:
    """Add `-v` and `--debug` to a command."""

    @click.option("-v", "--verbose", is_flag=True, help="Log each step to stderr.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(function)
    def wrapper(*args, verbose: bool, debug: bool, **kwargs):
        import logging

        level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
        set_up_logging(level)
        click.get_current_context().find_root().meta["reclm.debug"] = debug
        _refuse_no_names(kwargs)
        return function(*args, **kwargs)

    return wrapper


def _refuse_no_names(values: dict[str, Any]) -> None:
    """Raises BadParameter if a text (not a path) is not valid UTF-8, which no database or file accepts, or if a file
    name is empty (usually an unset shell variable).
    """
    context = click.get_current_context()
    parameters = {parameter.name: parameter for parameter in context.command.params}
    for name, value in values.items():
        texts = value if isinstance(value, tuple) else (value,)
        for text in texts:
            if isinstance(text, str) and _NO_TEXT.search(text):
                raise click.BadParameter(
                    f"expected UTF-8, found {text[:80]!r}", ctx=context, param=parameters.get(name)
                )
            if isinstance(text, Path) and not text.name and not getattr(parameters[name].type, "dir_okay", True):
                raise click.BadParameter(
                    f"expected the name of a file, found {str(text)!r}", ctx=context, param=parameters[name]
                )


workspace_option = click.option(
    "-w",
    "--workspace",
    "root",
    required=True,
    envvar="RECLM_WORKSPACE",
    type=click.Path(path_type=Path, file_okay=False),
    help="The workspace folder (or set RECLM_WORKSPACE).",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def threads_within_bounds(context: click.Context, option: click.Parameter, value: int | None) -> int | None:
    """Click callback of every `--threads` option: checks the bounds."""
    return value if value is None else check_threads(value, InputError, "--threads")


threads_option = click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(min=1),
    default=None,
    help="CPU threads [default: all usable cores].",
    callback=threads_within_bounds,
)


def confirmed_at_terminal() -> bool:
    """Ask on the terminal whether to continue. Raises UsageError if there is no terminal."""
    import sys

    if not sys.stdin.isatty():
        raise click.UsageError("stdin is not a terminal, so you cannot be asked: add --yes to send the prompts")
    return agreed("Continue?")
