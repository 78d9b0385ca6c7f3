"""Options and helpers that every verb shares."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path

import click

from ..errors import InputError
from ..threads import check_threads

BAR_WIDTH = 24  # characters, where there is room


def common(function: Callable) -> Callable:
    """Add `-v` and `--debug` to a verb."""

    @click.option("-v", "--verbose", is_flag=True, help="Log what is being done to stderr.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @wraps(function)
    def wrapper(*args, verbose: bool, debug: bool, **kwargs):
        import logging

        level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        logging.getLogger("reclm_lite").setLevel(level)
        click.get_current_context().find_root().meta["reclm.debug"] = debug
        return function(*args, **kwargs)

    return wrapper


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

threads_option = click.option(
    "--threads", "n_threads", type=click.IntRange(min=1), default=None, help="CPU threads [default: all usable cores].",
    callback=lambda context, option, value: value if value is None else check_threads(value, InputError, "--threads"),
)  # fmt: skip


def print_json(document: object) -> None:
    """Print `document` as the only thing on stdout."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def say(message: str) -> None:
    """A line about what was done, on stderr."""
    click.echo(message, err=True)


@contextmanager
def progress_bar(description: str, total: int | None = None, *, eta: bool = True) -> Iterator[Callable]:
    """A rich progress bar on stderr; yields `update(done, total=None, note="")`. eta: off where the note tells of the time."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    console, whole = Console(stderr=True), partial(Column, no_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None, table_column=Column(max_width=BAR_WIDTH)),  # alone gives way where the line is narrow
        MofNCompleteColumn(table_column=whole()),
        TimeElapsedColumn(table_column=whole()),
        *([TimeRemainingColumn(table_column=whole())] if eta else []),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, note="")

        def update(done: int, total: int | None = None, note: str | None = None) -> None:
            fields = {} if note is None else {"note": note}
            if total is not None:
                fields["total"] = total
            progress.update(task, completed=done, **fields)

        yield update
