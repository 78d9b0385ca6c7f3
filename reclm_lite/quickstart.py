"""`reclm quickstart`: every stage, in order, on the bundled demo data.

It calls the same functions as the commands and prints each command, so that a reader can repeat them by hand. Only the
data and the three users shown are special to the demo.
"""

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from .errors import WorkspaceError, shell_word
from .printable import printable
from .workspace import Workspace

MARK = "quickstart"
N_SHOWN_HISTORY, N_RECOMMENDED = 6, 10


def run_quickstart(root: Path, *, n_threads: int | None = None) -> Path:
    """Run the whole pipeline in the workspace `root`, which is recreated; return the path of the report.

    Raises WorkspaceError if `root` contains anything but an earlier quickstart.
    """
    from rich.text import Text

    from .cli._out import console as open_console

    console = open_console()
    started = time.perf_counter()
    with _fresh(Path(root)) as ws, ws.writing():
        seconds = _build(ws, n_threads)
        _show_users(ws, console)
        result = _evaluate(ws, console)
        console.print(_verdict(result))
        from .report import write_report

        page = write_report(ws, evaluation=result)
    total = time.perf_counter() - started
    spent = ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())
    console.print(Text(f"\n{total:.0f} s in total ({spent})", "dim"))
    console.print(Text.assemble("Report: ", (printable(str(page)), "bold")), soft_wrap=True)
    console.print(f"Next:  reclm info -w {shell_word(root)}", soft_wrap=True, highlight=False)
    return page


@contextmanager
def _fresh(root: Path):
    if (root / "workspace.toml").is_file():
        with Workspace.open(root) as old:
            if MARK not in old.config:
                raise WorkspaceError(
                    f"{root} is not the workspace of an earlier quickstart, so it is not replaced: choose another "
                    "folder with -w"
                )
            with old.writing():  # nobody else is in it
                pass
        shutil.rmtree(root)
    ws = Workspace.create(root)
    try:
        ws.set_config(MARK, {"made_by": "reclm quickstart"})
        yield ws
    finally:
        ws.close()


def _build(ws: Workspace, n_threads: int | None) -> dict[str, float]:
    """Run all stages up to the fitted models; return the seconds of each."""
    from .cf.fit import fit
    from .cf.neighbors import neighbors
    from .cli._out import progress_bar, say
    from .data.dataset import save_imported
    from .data.demo import generate_demo
    from .data.split import run_split
    from .profiles.generate import run_profiles
    from .profiles.profile_vectors import embed_profiles
    from .profiles.run_progress import Observer
    from .profiles.sources import SourceSettings
    from .text.encoder import TextEncoder
    from .text.item_vectors import embed_items

    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, command: str):
        say(f"$ {command} -w {ws.argument}")
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with stage("data", "reclm import (the bundled demo) && reclm split"):
        save_imported(ws, generate_demo())
        run_split(ws, "given")
    with TextEncoder(n_threads=n_threads) as encoder:
        with stage("item vectors", "reclm embed items"), progress_bar("embedding items") as update:
            embed_items(ws, encoder, progress=update)
        for model in ("popularity", "random"):
            fit(ws, model)
        with stage("lightgcn", "reclm fit lightgcn"), progress_bar("fitting lightgcn") as update:
            fit(ws, "lightgcn", n_threads=n_threads, progress=update)
        with stage("neighbors", "reclm neighbors"):
            neighbors(ws)
        with stage("profiles", "reclm profile users"), progress_bar("profiling users") as update:
            observer = Observer()
            observer.progress = update
            summary = run_profiles(ws, "users", source=SourceSettings(n_threads=n_threads), observer=observer)
        say(summary.sentence())
        with stage("profile vectors", "reclm embed profiles"), progress_bar("embedding profiles") as update:
            embed_profiles(ws, encoder, progress=update)
    with (
        stage("lightgcn + profiles", "reclm fit lightgcn --profiles users"),
        progress_bar("fitting lightgcn+users") as update,
    ):
        fit(ws, "lightgcn", profiles="users", n_threads=n_threads, progress=update)
    return seconds


def _show_users(ws: Workspace, console) -> None:
    """Print three users: history, profile, and ten recommendations with reasons."""
    from rich.table import Table
    from rich.text import Text

    from .data.dataset import item_texts, load_split, user_index
    from .data.demo import demo_user_ids_to_show
    from .profiles.store import find_profile
    from .serve.recommend import recommend

    texts = item_texts(ws)
    known = load_split(ws).known()
    for user_id in demo_user_ids_to_show():
        history = known[user_index(ws, user_id)].indices
        console.rule(Text(printable(user_id), "bold"))
        console.print(Text("Took", "bold"))
        for item in history[:N_SHOWN_HISTORY]:
            topic = printable(f"{texts[item].category} / {texts[item].subcategory}")
            console.print(Text.assemble(f"  {printable(texts[item].title)}  ", (topic, "dim")))
        if len(history) > N_SHOWN_HISTORY:
            console.print(Text(f"  and {len(history) - N_SHOWN_HISTORY} more", "dim"))
        profile = find_profile(ws, "user", user_id)
        origin = printable(f"({profile.status}, {profile.source.partition(',')[0]})")
        console.print(Text.assemble(("Profile", "bold"), " ", (origin, "dim"), f"\n  {printable(profile.text)}"))
        answer = recommend(ws, user_id, k=N_RECOMMENDED)
        table = Table(title=f"Top {N_RECOMMENDED} ({answer.basis})", title_justify="left", box=None, pad_edge=False)
        table.add_column("title", ratio=3)
        table.add_column("why", ratio=2, style="dim")
        for item in answer.items:
            table.add_row(printable(item.title), printable(item.reason))
        console.print(table)
        if answer.note:
            console.print(Text(printable(answer.note), "dim"))


def _evaluate(ws: Workspace, console) -> dict:
    from .evaluate.protocol import evaluate_workspace
    from .report.tables import models_table

    result = evaluate_workspace(ws, ci95=True)
    for table in models_table(result):
        console.print(table)
        console.print()
    return result


def _verdict(result: dict) -> str:
    """One sentence on the effect of profiles, for the settings full and unseen."""
    parts = []
    for setting in ("full", "unseen"):
        recall = {
            row["profiles"]: row["recall@20"]
            for row in result["rows"]
            if row["model"] == "lightgcn" and row["setting"] == setting
        }
        if "none" in recall and "users" in recall:
            parts.append(f"{setting}: R@20 {recall['none']:.4f} without profiles, {recall['users']:.4f} with")
    return "LightGCN, " + "; ".join(parts) + "."
