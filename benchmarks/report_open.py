"""How long `reclm report` takes for many users, and how long a browser takes to open its page.

    python benchmarks/report_open.py --users 100000 --chromium chromium

A generated table (each user about 8 of 5,000 items, the popular ones more often) is imported, split, evaluated and
reported. The browser, headless, loads and lays out the page and prints its text once, and a blank page in the same way;
the difference of the medians of five turns is what the page takes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_ITEMS = 5000


def write_table(path: Path, n_users: int) -> None:
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, N_ITEMS + 1)
    lengths = 2 + rng.poisson(6, n_users)
    items = rng.choice(N_ITEMS, lengths.sum(), p=weights / weights.sum())
    users = np.repeat(np.arange(n_users), lengths)
    with path.open("w") as file:
        file.write("user,item,title,category\n")
        file.writelines(
            f"u{user},i{item},The {item}th thing,kind {item % 40}\n"
            for user, item in zip(users.tolist(), items.tolist(), strict=True)
        )


def timed(command: list) -> float:
    started = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    reclm = [sys.executable, "-m", "reclm_lite.cli"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ws, blank = folder / "ws", folder / "blank.html"
        blank.write_text("<!doctype html><title>blank</title>")
        write_table(folder / "table.csv", options.users)
        subprocess.run([*reclm, "init", ws], check=True, stdout=subprocess.DEVNULL)
        columns = ["--user", "user", "--item", "item", "--title", "title", "--category", "category"]
        for command in (["import", "table", folder / "table.csv", *columns], ["split"]):
            print(f"{command[0]}: {timed([*reclm, *command, '-w', ws]):.1f} s")
        print(f"report: {timed([*reclm, 'report', '-w', ws]):.1f} s")
        page = ws / "reports" / "report.html"
        opening = [
            options.chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
        ]
        spent: dict[Path, list[float]] = {page: [], blank: []}
        for _ in range(5):
            for path, seconds in spent.items():
                seconds.append(timed([*opening, path.as_uri()]))
        of_page, of_blank = (statistics.median(spent[path]) for path in (page, blank))
        print(
            f"{page.stat().st_size / 1e3:.0f} kB; the browser took {of_page:.2f} s with it, {of_blank:.2f} s with a "
            f"blank page: {of_page - of_blank:.2f} s"
        )


if __name__ == "__main__":
    main()
