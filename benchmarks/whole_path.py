"""The whole path on one data set, by the commands a user types, each with its time and peak memory.

    python benchmarks/whole_path.py reclm ../shared/data/reclm-mind -w mind-ws
    python benchmarks/whole_path.py movielens ../shared/data/ml-latest-small -w films-ws --method ratio

Prints a Markdown table of the commands, the table of `reclm evaluate --json`, and one JSON line last.
The workspace must not exist yet.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

RECLM = str(Path(sysconfig.get_path("scripts")) / "reclm")


def run(arguments: list[str], log: list[dict]) -> str:
    """Run one command; returns its stdout. Peak memory is the operating system's figure for that process."""
    start = time.perf_counter()
    process = subprocess.Popen([RECLM, *arguments], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"failed: reclm {' '.join(arguments)}")
    log.append(
        {"command": "reclm " + " ".join(arguments), "seconds": round(seconds, 1), "peak_mib": usage.ru_maxrss // 1024}
    )
    print(f"{seconds:7.1f} s  {usage.ru_maxrss // 1024:5d} MiB  reclm {' '.join(arguments)}", file=sys.stderr)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format")
    parser.add_argument("source")
    parser.add_argument("-w", "--workspace", required=True)
    parser.add_argument("--profiles", type=int, default=None, help="profile at most this many users [all]")
    parser.add_argument("--presets", nargs="+", default=["default"])
    parser.add_argument("--method", default=None, help="split method")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    ws = ["-w", options.workspace]
    log: list[dict] = []
    tables: dict[str, dict] = {}

    run(["init", options.workspace], log)
    run(["import", options.format, options.source, *ws], log)
    run(["split", *ws, *(["--method", options.method] if options.method else [])], log)
    run(["embed", "items", *ws], log)
    for model in ("popularity", "random"):
        run(["fit", model, *ws], log)
    run(["fit", "lightgcn", *ws], log)
    run(["neighbors", *ws], log)
    limit = ["--limit", str(options.profiles)] if options.profiles else []
    run(["profile", "users", *ws, *limit], log)
    run(["embed", "profiles", *ws], log)
    for preset in options.presets:
        for seed in range(options.seeds):
            for model in ("biasmf", "lightgcn"):
                for profiles in ("none", "users"):
                    run(["fit", model, *ws, "--profiles", profiles, "--preset", preset, "--seed", str(seed)], log)
            tables[f"{preset}-{seed}"] = json.loads(run(["evaluate", *ws, "--json", "--ci95"], log))
    run(["report", *ws], log)

    print("| command | seconds | peak MiB |\n| --- | ---: | ---: |")
    for line in log:
        print(f"| `{line['command']}` | {line['seconds']} | {line['peak_mib']} |")
    for name, table in tables.items():
        print(
            f"\n{name}\n\n| model | profiles | setting | users | R@20 | R@40 | N@20 | N@40 |\n| --- | --- | --- | "
            "---: | ---: | ---: | ---: | ---: |"
        )
        for row in table["rows"]:
            figures = " | ".join(f"{row[key]:.4f}" for key in ("recall@20", "recall@40", "ndcg@20", "ndcg@40"))
            print(f"| {row['model']} | {row['profiles']} | {row['setting']} | {row['n_users']} | {figures} |")
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps({"commands": log, "tables": tables, **machine}))


if __name__ == "__main__":
    main()
