"""Runs `reclm` commands inside the test process, and lists them all."""

import click
from click.testing import CliRunner

from reclm_lite.cli import main
from reclm_lite.cli._group import VERBS

ITEMS = [
    ("007", "Goal feast in the derby", "sport"),
    ("a b", "Late goal wins the cup", "sport"),
    ("ü", "Soup of roasted squash", "food"),
    ("i4", "Bread with a sour crust", "food"),
    ("i5", "Comet seen from the southern sky", "science"),
    ("i6", "Probe lands on a small moon", "science"),
]


def reclm(*arguments: object, expect: int = 0) -> str:
    """Run a verb in this process; returns stdout. Progress and logs go to stderr."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == expect, f"{arguments}: {result.output}\n{result.stderr}\n{result.exception!r}"
    return result.stdout if expect == 0 else result.stderr


def verbs() -> list[tuple[list[str], click.Command]]:
    found = []
    context = click.Context(main)
    for name in VERBS:
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            found += [([name, sub], command.commands[sub]) for sub in command.commands]
        else:
            found.append(([name], command))
    return found
