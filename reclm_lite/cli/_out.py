"""All output of the commands: text from outside is made printable before it is printed.

Results go to stdout, progress and messages to stderr. No other file of the package writes to either; a test checks it.
"""

import codecs
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..errors import InputError
from ..printable import json_text, printable

if TYPE_CHECKING:
    from rich.console import Console

BAR_WIDTH = 24  # characters, where there is room


def ready_streams() -> None:
    """Call this before anything is opened or printed. It opens closed standard descriptors, so that the next opened
    file does not receive the output, and replaces characters that the terminal's encoding lacks by "?".
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def echo(text: object = "", *, err: bool = False) -> None:
    """Print text, possibly several lines, on stdout (or stderr)."""
    click.echo(printable(str(text), lines=True), err=err)


def say(message: str) -> None:
    """Print one line on stderr. Line breaks inside `message` are escaped, because they come from outside data."""
    click.echo(printable(message), err=True)


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Print `document` as the only thing on stdout."""
    click.echo(json_text(document, indent=indent))


def agreed(question: str) -> bool:
    """Ask a yes/no question on the terminal."""
    return click.confirm(printable(question), err=True)


@contextmanager
def data_on_stdout() -> Iterator[BinaryIO]:
    """stdout for the bytes of a file: exact into a pipe or file, escaped on a terminal."""
    if sys.stdout is None:
        raise InputError("stdout is closed: write to a file with -o")
    yield _ForEyes() if sys.stdout.isatty() else sys.stdout.buffer
    sys.stdout.flush()


class _ForEyes(io.RawIOBase):
    """Decodes UTF-8 bytes and prints them escaped."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        click.echo(printable(self._decoder.decode(bytes(data)), lines=True), nl=False)
        return len(data)


def console(*, stderr: bool = False) -> "Console":
    """A rich console for tables. Square brackets and :names: are not treated as markup, and all text is made printable.

    Use a `rich.text.Text` with a style for bold or dim text.
    """
    from rich.console import Console
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # before widths are measured
            return super().render_str(printable(text, lines=True), **options)

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text, style, control) if control else Segment(printable(text, lines=True), style)

    return PrintableConsole(stderr=stderr, markup=False, emoji=False)


@contextmanager
def progress_bar(description: str, total: int | None = None, *, eta: bool = True) -> Iterator[Callable]:
    """A rich progress bar on stderr; yields `update(done, total=None, note="")`. eta: False if the note already shows
    the remaining time."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    terminal, whole = console(stderr=True), partial(Column, no_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None, table_column=Column(max_width=BAR_WIDTH)),  # alone gives way where the line is narrow
        MofNCompleteColumn(table_column=whole()),
        TimeElapsedColumn(table_column=whole()),
        *([TimeRemainingColumn(table_column=whole())] if eta else []),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(printable(description), total=total, note="")

        def update(done: int, total: int | None = None, note: str | None = None) -> None:
            fields = {} if note is None else {"note": printable(note)}
            if total is not None:
                fields["total"] = total
            progress.update(task, completed=done, **fields)

        yield update


class LogFormatter(logging.Formatter):
    """Formats `WARNING: what happened` on one line; a traceback after it keeps its line breaks."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def set_up_logging(level: int) -> None:
    """Log to stderr: this package from `level` up, everything else (including Python's warnings) from WARNING up."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("reclm_lite").setLevel(level)


@contextmanager
def printable_errors() -> Iterator[None]:
    """Make the messages of click errors printable, whatever they quote."""
    try:
        yield
    except click.ClickException as error:
        told = printable(error.format_message(), lines=True)
        error.format_message = lambda: told
        raise
