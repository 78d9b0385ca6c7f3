"""`reclm evaluate`"""

from pathlib import Path

import click

from ..errors import shell_word
from ._options import common, console, json_option, print_json, progress_bar, say, workspace_option


@click.command("evaluate")
@workspace_option
@click.option("--ci95", is_flag=True, help="Add 95 % intervals (bootstrap over users).")
@json_option
@common
def command(root: Path, as_json: bool, ci95: bool) -> None:
    """Measure Recall and NDCG at 20 and 40 of every fitted model, with random and popularity as baselines. Setting
    `full`: the candidates are all items with training interactions, except those the user already has. Setting
    `unseen`: the candidates are items without training interactions.

    \b
    Example:
      reclm evaluate -w shop --json
    """
    from ..errors import MissingArtefactError
    from ..evaluate.protocol import evaluate_workspace
    from ..workspace import Workspace

    with Workspace.open(root) as ws, progress_bar("evaluating") as update:
        result = evaluate_workspace(ws, ci95=ci95, progress=update)
    for model in result.get("stale", []):
        say(f"skipped: {model['model']} ({model['reason']})")
    if not any(row["n_users"] for row in result["rows"]):
        raise MissingArtefactError(
            f"the split of {root} (method {result['split'].get('method', '?')}) has no test interactions, so there "
            f"is nothing to evaluate: make one that has, such as `reclm split -w {shell_word(root)} --method ratio`"
        )
    if as_json:
        print_json(result)
        return
    from ..report.tables import models_table

    terminal = console()
    for table in models_table(result):
        terminal.print(table)
        terminal.print()
