"""The top-level group: commands are loaded on demand, and library errors become one-sentence messages."""

import errno
import importlib
import os
import re
import sqlite3
import sys
import traceback

import click

from .. import __version__
from ..errors import ReclmError
from ..printable import printable
from ._out import echo, printable_errors, ready_streams, say

# verb -> (module in this package, one line for `reclm --help`), in the order of a user's work.
VERBS = {
    "quickstart": ("quickstart", "Run the whole pipeline on the bundled demo data."),
    "init": ("init", "Create a workspace."),
    "import": ("import_", "Import interactions and item texts."),
    "split": ("split", "Split interactions into training, validation and test sets."),
    "info": ("info", "Show what a workspace contains, what is stale, and the next command."),
    "embed": ("embed", "Turn item texts or profiles into vectors."),
    "fit": ("fit", "Fit a recommender."),
    "neighbors": ("neighbors", "Find similar users."),
    "profile": ("profile", "Write, show or edit profiles of users and items."),
    "dialogue": ("dialogue", "Build training dialogues for a language model."),
    "tune": ("tune", "Fine-tune a language model that writes profiles."),
    "evaluate": ("evaluate", "Measure Recall and NDCG of the fitted models."),
    "recommend": ("recommend", "Recommend items to a user."),
    "forget": ("forget", "Remove a person from the workspace."),
    "report": ("report", "Write a self-contained report page."),
    "export": ("export", "Convert a checkpoint to verified GGUF files."),
    "bench": ("bench", "Benchmark this machine against other libraries."),
}

# No system hands these to a program; a byte that is no UTF-8 comes as one of U+DC80 to U+DCFF.
_UNSENDABLE = re.compile("[\x00\ud800-\udc7f\udd00-\udfff]")


class LazyGroup(click.Group):
    """Lists the commands in VERBS without importing them; turns library errors into one-sentence messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return importlib.import_module(f"{__package__}.{VERBS[name][0]}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in VERBS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in VERBS:
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for arg in args:
            if _UNSENDABLE.search(arg):
                ctx.fail(
                    f"expected a valid text argument, found {arg[:40]!r}: it contains a NUL byte or an incomplete "
                    "character"
                )
        return super().parse_args(ctx, args)

    def make_context(self, *args, **options) -> click.Context:
        with printable_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context):
        with printable_errors():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context):
        ready_streams()
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            say("Interrupted. Finished work is saved; run the same command again to continue.")
            ctx.exit(1)
        except BrokenPipeError:
            raise
        except Exception as error:  # the boundary: anything else is a bug, still told in one sentence
            if _debug_asked_for():
                echo(traceback.format_exc().rstrip("\n"), err=True)
                ctx.exit(1)
            raise click.ClickException(printable(_sentence(error))) from error


def _debug_asked_for() -> bool:
    context = click.get_current_context(silent=True)
    return "--debug" in sys.argv or bool(context and context.find_root().meta.get("reclm.debug"))


def _sentence(error: Exception) -> str:
    if isinstance(error, ReclmError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; incomplete files are not used. Free some space and run the command again"
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return (
            "no space left on the disk for workspace.db; incomplete data is not used. Free some space and run the "
            "command again"
        )
    if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
        return "another process is writing to workspace.db: wait for it to end, then run the command again"
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, (sqlite3.ProgrammingError, sqlite3.IntegrityError)
    ):
        return (
            f"workspace.db is damaged or was not written by reclm-lite ({error}): restore a backup, or create a new "
            "workspace with `reclm init`"
        )
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}; use a smaller data set, or a machine with more memory"
    if isinstance(error, OSError) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return f"operating system error: {error.strerror}"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"expected names in UTF-8, found {error.object[:200]!r}: rename the file or folder, or give another name"
    return f"unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="reclm-lite")
def main() -> None:
    """Language-model-enhanced recommendation on the hardware you already have.

    \b
    Example:
      reclm init shop
      reclm import table orders.csv -w shop --user customer --item sku
      reclm info -w shop
    """
