"""Feed hostile inputs to every target, each in a process of its own: `make fuzz`, or

    python tests/fuzz/run.py                          # all targets with Atheris, five minutes each; goes on where it
    was stopped python tests/fuzz/run.py --seconds 60 pickles     # one target python tests/fuzz/run.py --mutated
    10000000 pickles   # without Atheris: so many mutated inputs, in blocks that are kept when done python
    tests/fuzz/run.py --once FILE pickles      # one input again, such as a finding

What was reached is kept in build/fuzz: a folder of each target with its corpus, its findings (`crash-…`, `timeout-…`,
`oom-…`) and counts, so a run goes on where the last one was stopped. The exit code is 1 if there is a finding.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the suite's helper modules
from harness import bound_memory, load_targets, run_mutated

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
BLOCK = 20_000  # mutated inputs between two savings of the counts
SECONDS_PER_INPUT = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="names of targets [default: all]")
    parser.add_argument("--seconds", type=int, default=300, help="per target, with Atheris [default: 300]")
    parser.add_argument(
        "--mutated", type=int, help="run this many mutated inputs per target instead, in all runs together"
    )
    parser.add_argument("--once", type=Path, help="run one input and show its outcome")
    parser.add_argument("--child", choices=("atheris", "block", "once"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    known = load_targets()
    unknown = sorted(set(arguments.targets) - set(known))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
    failed = 0
    for name in arguments.targets or known:
        if arguments.once is not None:
            failed |= subprocess.call([*this(name), "--child", "once", "--once", str(arguments.once)])
        elif arguments.mutated is not None:
            failed |= run_blocks(name, arguments.mutated)
        else:
            failed |= run_atheris(name, arguments.seconds)
    return int(bool(failed))


def this(name: str) -> list[str]:
    return [sys.executable, __file__, name]


def folder_of(name: str) -> Path:
    folder = BUILD / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    return folder


def counts_of(folder: Path) -> dict:
    try:
        return json.loads((folder / "counts.json").read_text())
    except (OSError, ValueError):
        return {"atheris": 0, "mutated": 0, "seconds": 0.0, "outcomes": {}, "findings": []}


def save_counts(folder: Path, counts: dict) -> None:
    temporary = folder / ".counts.tmp"
    temporary.write_text(json.dumps(counts, indent=1))
    os.replace(temporary, folder / "counts.json")


def report(name: str, counts: dict, found: str) -> int:
    print(
        f"{name}: {counts['atheris'] + counts['mutated']:,} inputs in all, {counts['seconds']:,.0f} s; "
        f"{found or 'no finding'}",
        flush=True,
    )
    return int(bool(found))


# -- mutated inputs, by the block ---------------------------------------------------


def run_blocks(name: str, n: int) -> int:
    """Blocks differ by their seed; a block that ends badly keeps its last input as a finding."""
    folder = folder_of(name)
    counts = counts_of(folder)
    while counts["mutated"] < n:
        started = time.monotonic()
        current = folder / ".current"
        run = subprocess.run(
            [*this(name), "--child", "block", "--seed", str(counts["mutated"] // BLOCK)],
            stdout=subprocess.PIPE,
            text=True,
        )
        counts["seconds"] += time.monotonic() - started
        if run.returncode:
            finding = folder / f"crash-block-{counts['mutated'] // BLOCK}"
            finding.write_bytes(current.read_bytes() if current.exists() else b"")
            counts["findings"].append(finding.name)
            save_counts(folder, counts)
            return report(name, counts, f"exit code {run.returncode}: {finding}")
        for outcome, count in json.loads(run.stdout.splitlines()[-1]).items():
            counts["outcomes"][outcome] = counts["outcomes"].get(outcome, 0) + count
        counts["mutated"] += BLOCK
        save_counts(folder, counts)
    return report(name, counts, "")


# -- Atheris -----------------------------------------------------------------------


def run_atheris(name: str, seconds: int) -> int:
    target, folder = load_targets()[name], folder_of(name)
    for number, seed in enumerate(target.seeds()):
        (folder / "corpus" / f"seed-{number:03d}").write_bytes(seed[: target.max_bytes])
    words = folder / "dictionary"
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.dictionary if word)
    )
    counts = counts_of(folder)
    before = {path.name for path in folder.iterdir()}
    log = folder / "log.txt"
    started = time.monotonic()
    with open(log, "w") as output:
        code = subprocess.call(
            [*this(name), "--child", "atheris", "--seconds", str(seconds)], stdout=output, stderr=subprocess.STDOUT
        )
    counts["seconds"] += time.monotonic() - started
    text = log.read_text(errors="replace")
    done = [line for line in text.splitlines() if line.startswith(("stat::number_of_executed_units", "Done "))]
    executed = max((int(word) for line in done for word in line.replace(":", " ").split() if word.isdigit()), default=0)
    if not executed:  # ended by a finding: the last line that counts
        executed = max(
            (
                int(line[1:].split()[0])
                for line in text.splitlines()
                if line.startswith("#") and line[1:].split()[0].isdigit()
            ),
            default=0,
        )
    counts["atheris"] += executed
    found = sorted(
        {path.name for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))} - before
    )
    counts["findings"] += found
    save_counts(folder, counts)
    return report(
        name, counts, ", ".join(str(folder / one) for one in found) or (f"exit code {code}: see {log}" if code else "")
    )


# -- one process of one target --------------------------------------------------------


def child(arguments: argparse.Namespace) -> int:
    name = arguments.targets[0]
    if arguments.child == "atheris":
        return child_atheris(name, arguments.seconds)
    target = load_targets()[name]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if arguments.child == "once":
        print(target.run(arguments.once.read_bytes()))
        return 0
    bound_memory(0 if "ASAN_OPTIONS" in os.environ else target.memory_bytes)
    current = open(folder_of(name) / ".current", "wb", buffering=0)

    def before(data: bytes) -> None:
        current.seek(0)
        current.truncate()
        current.write(data)

    outcomes = run_mutated(target, n=BLOCK, seed=arguments.seed, before=before)
    print(json.dumps(outcomes))
    return 0


def child_atheris(name: str, seconds: int) -> int:
    try:
        import atheris
    except ImportError:
        print("Atheris is missing: install it with `pip install -c constraints.txt '.[fuzz]'`", file=sys.stderr)
        return 2
    # Numba compiles the kernels, and cannot compile what Atheris puts into them.
    with atheris.instrument_imports(
        include=["reclm_lite", "pickletools", "json", "gguf"], exclude=["reclm_lite.kernels"]
    ):
        target = load_targets()[name]
        target.run(target.seeds()[0])  # what is imported inside functions is instrumented too
    folder = folder_of(name)

    def one(data: bytes) -> None:
        target.run(data)

    atheris.Setup(
        [
            name,
            str(folder / "corpus"),
            f"-artifact_prefix={folder}/",
            f"-max_total_time={seconds}",
            f"-max_len={target.max_bytes}",
            f"-timeout={SECONDS_PER_INPUT}",
            "-rss_limit_mb=3072",
            "-malloc_limit_mb=1024",
            "-print_final_stats=1",
            "-verbosity=1",
            *([f"-dict={folder / 'dictionary'}"] if target.dictionary else []),  # an empty one is an error
        ],
        one,
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
