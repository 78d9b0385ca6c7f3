"""`reclm bench profile`: profiles per second beside llama-cpp-python's `Llama`, and the vectors made of them.

For each model the same distinct prompts go through the scheduler, through a loop of `Llama.create_completion`, and
through the scheduler as the product uses it (answers restricted to the profile grammar). Both unrestricted runs are
greedy, end at a line break, and their texts are compared; where they differ, the gap between the two tokens is measured
(`text_differences`). Each contender runs in a child process of its own (`engine_jobs`), in turns. Models without
training are random (`random_models`).

With a workspace, the prompts are those of its users: consecutive ones of the sorted prompts, so that they have as much
in common as those of a whole run, in random order. And `users as they are` shows what deduplication and prefix sharing
give: measured by a whole run of `reclm profile users` for the bundled model, extrapolated from the sample for others.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, ReclmError
from .. import PROFILE_QUANTS, machine
from ..comparison import Group, Target, lines_of, to_json
from ..harness import Timing, run_in_child
from . import encoder_bench, engine_jobs, random_models, text_differences
from .bench_prompts import PromptSet, prompt_set, scratch_copy

ENGINE, LOOP, HELD = "scheduler", "llama_cpp.Llama, one by one", "scheduler, form held"
PACKAGES = ("llama-cpp-python", "gguf", "tokenizers", "sentence-transformers", "torch")
BUNDLED, TINY = "bundled", "tiny"
MODELS = (BUNDLED, "135m", "1b")
TARGET_MODEL = "1b"
_MAX_CTX = 2048
# Defaults by model: prompts, new tokens (the bundled model ends its answers itself), turns.
_PROMPTS = {BUNDLED: 256, "135m": 64, "1b": 32, TINY: 12}
_NEW_TOKENS = {BUNDLED: 96, TINY: 16}
_REPEATS = {BUNDLED: 3}
_N_NOISE = 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """models: names of MODELS, "tiny", or paths of GGUF files. None: the model's own default.

    workspace: whose users' prompts; None: those of the bundled demo. checkpoint: all-MiniLM-L6-v2 as published, for the
    encoder's peer. n_texts: that are embedded. targets: whether to report them; small sizes have none.
    """

    n_threads: int
    models: tuple[str, ...] = MODELS
    quants: tuple[str, ...] = PROFILE_QUANTS
    workspace: Path | None = None
    n_prompts: int | None = None
    n_slots: int | None = None
    max_new: int | None = None
    repeats: int | None = None
    n_texts: int = 512
    checkpoint: Path | None = None
    seed: int = 0
    targets: bool = True


@dataclass(frozen=True)
class _Model:
    """A file to measure. instruct: whether it takes instruction prompts rather than compact ones."""

    name: str
    quant: str
    path: Path
    instruct: bool

    @property
    def title(self) -> str:
        return f"{self.name} {self.quant}".strip()


def run(settings: Settings, say: Say = lambda _: None) -> tuple[list[str], str]:
    """Measure; returns the lines of the table and the JSON line. Raises InputError if a setting is invalid."""
    _check(settings)
    about = machine.facts(settings.n_threads, PACKAGES)
    with tempfile.TemporaryDirectory(prefix="reclm-bench-") as folder:
        groups, notes = _Run(settings, Path(folder), say).all()
    if not settings.targets:
        for group in groups:
            group.targets.clear()
    shown = {
        **asdict(settings),
        **{name: str(value) if (value := getattr(settings, name)) else None for name in ("workspace", "checkpoint")},
    }
    lines = [machine.sentence(about), *lines_of(groups), *([""] if notes else []), *notes]
    return lines, to_json("profile", about, shown, groups, notes=notes)


def _check(settings: Settings) -> None:
    for name in settings.models:
        if name not in (*MODELS, TINY) and not Path(name).is_file():
            raise InputError(
                f"expected a model among {', '.join(MODELS)}, or a GGUF file, found {name!r}; check --model"
            )
    folder = settings.checkpoint
    if folder is not None and not (folder / "config.json").is_file():
        raise InputError(
            f"expected the checkpoint of all-MiniLM-L6-v2 in {folder}, found no config.json; check --encoder-checkpoint"
        )


class _Run:
    """One run of the benchmark: its settings, its scratch folder, the prompts that were made."""

    def __init__(self, settings: Settings, folder: Path, say: Say):
        self.settings, self.folder, self.say = settings, folder, say
        self.prompts: dict[bool, PromptSet] = {}
        self.notes: list[str] = []

    def all(self) -> tuple[list[Group], list[str]]:
        groups, texts = [], []
        for name in self.settings.models:
            for model in self._models(name):
                found, made = self._measure(model)
                groups += found
                texts = texts or (made if name == BUNDLED else [])
                if name in random_models.SHAPES:
                    model.path.unlink()
        scratch = self.folder / "workspace"
        settings = self.settings
        groups += encoder_bench.EncoderBench(
            settings.n_threads, settings.n_texts, settings.repeats, settings.checkpoint, settings.seed, self.say
        ).groups(texts, scratch if scratch.is_dir() else None, self.folder)
        return groups, self.notes

    def _models(self, name: str) -> list[_Model]:
        if name == BUNDLED:
            from ...assets import profile_model_path

            return [_Model(name, "", profile_model_path(), instruct=False)]
        if name not in random_models.SHAPES:
            vocabulary = self._vocabulary(Path(name), [], chat=True)
            return [_Model(Path(name).name, "", Path(name), instruct=vocabulary["chat"] is not None)]
        shape = random_models.SHAPES[name]
        needed, free = random_models.n_bytes_needed(shape), shutil.disk_usage(self.folder).free
        if free < needed:
            raise InputError(
                f"expected {needed / 1e9:.1f} GB free in {self.folder.parent}, found {free / 1e9:.1f}; free some "
                f"space, leave out {name} (--model), or set TMPDIR to a folder on another disk"
            )
        self.say(f"making a random model of {shape.n_params:,} weights")
        made = random_models.make_models(
            self.folder / name,
            shape,
            self.settings.quants,
            self._prompt_set(True).texts,
            self.settings.seed,
            self.settings.n_threads,
        )
        return [_Model(name, quant, path, instruct=True) for quant, path in made.items()]

    def _prompt_set(self, instruct: bool) -> PromptSet:
        if instruct not in self.prompts:
            self.say(f"prompts of {self.settings.workspace or 'the demo'}")
            self.prompts[instruct] = prompt_set(
                self.settings.workspace,
                2 * max(map(self._n_wanted, self.settings.models)),
                instruct=instruct,
                seed=self.settings.seed,
            )
        return self.prompts[instruct]

    def _measure(self, model: _Model) -> tuple[list[Group], list[str]]:
        """The groups of a model, and the profiles that it wrote with the grammar on."""
        settings = self.settings
        max_new = settings.max_new or _NEW_TOKENS.get(model.name, 48)
        vocabulary, prompts, n_ctx, left_out = self._fitting(model, max_new)
        chat = vocabulary["chat"]
        common = {"model": model.path, "prompts": prompts, "n_threads": settings.n_threads, "max_new": max_new}
        ours = {**common, "n_slots": settings.n_slots, "n_ctx": n_ctx, "chat": chat}
        runs: dict[str, list[dict[str, Any]]] = {ENGINE: [], LOOP: []}
        if model.name not in random_models.SHAPES or model.name == TINY:  # a random model says nothing of the grammar
            runs[HELD] = []
        n_turns = settings.repeats or _REPEATS.get(model.name, 1)
        wrapped = [chat[0] + prompt + chat[1] for prompt in prompts] if chat else prompts
        for turn in range(n_turns):
            for name, made in runs.items():
                self.say(f"{model.title}: {name}, {len(prompts)} prompts, turn {turn + 1} of {n_turns}")
                if name == LOOP:
                    done = run_in_child(engine_jobs.loop, {**common, "prompts": wrapped, "n_ctx": n_ctx})
                else:
                    done = run_in_child(engine_jobs.engine, {**ours, "guided": name == HELD})
                made.append(done.with_peak)
        first = {name: made[0] for name, made in runs.items()}
        lengths = first[ENGINE]["n_prompt_tokens"]
        group = Group(
            model.title,
            f"{len(prompts)} distinct prompts of {sum(lengths) / len(prompts):.0f} tokens, "
            f"{first[LOOP]['n_new_tokens'] / len(prompts):.0f} new ones at most {max_new}, "
            f"{vocabulary['size_bytes'] / 1e6:,.0f} MB",
            "profiles",
            len(prompts),
        )
        for name, made in runs.items():
            group.add(name, Timing.of([one["seconds"] for one in made]), _note(made[0]), **_facts(made))
        if left_out:
            self.notes.append(
                f"{model.title}: {left_out} prompts of the sample were left out, too long for {_MAX_CTX} tokens of "
                "context."
            )
        equal = self._compare(model, wrapped, first[ENGINE], first[LOOP], vocabulary["n_ctx"])
        group.rows[0].facts["equality"] = equal
        _expect(group, model.name, first[ENGINE], equal)
        return [group, *self._users(model, group)], first[HELD]["texts"] if HELD in first else []

    def _n_wanted(self, name: str) -> int:
        return self.settings.n_prompts or _PROMPTS.get(name, _PROMPTS["1b"])

    def _fitting(self, model: _Model, max_new: int) -> tuple[dict[str, Any], list[str], int, int]:
        """(the vocabulary's facts, the first prompts of the sample that fit the context, tokens of the longest with its
        answer, how many prompts among them did not fit).
        """
        wanted = self._n_wanted(model.name)
        sample = self._prompt_set(model.instruct).sample[: 2 * wanted]
        with_chat = model.instruct and model.name not in random_models.SHAPES
        vocabulary = self._vocabulary(model.path, sample, chat=with_chat)
        limit = min(vocabulary["n_ctx"] or _MAX_CTX, _MAX_CTX) - max_new
        fits = [length <= limit for length in vocabulary["lengths"]]
        kept = [
            (prompt, length) for prompt, length, fit in zip(sample, vocabulary["lengths"], fits, strict=True) if fit
        ][:wanted]
        prompts, n_ctx = [prompt for prompt, _ in kept], max((length for _, length in kept), default=0) + max_new
        if not prompts:
            raise InputError(
                f"expected prompts of at most {limit} tokens for {model.path}, found none; use a model with a larger "
                "context"
            )
        n_left_out = fits[: sample.index(prompts[-1])].count(False)
        # The scheduler sorts by common beginnings itself; a loop takes its prompts as users come.
        order = np.random.default_rng(self.settings.seed).permutation(len(prompts)).tolist()
        return vocabulary, [prompts[at] for at in order], n_ctx, n_left_out

    def _vocabulary(self, model: Path, prompts: Sequence[str], *, chat: bool) -> dict[str, Any]:
        return run_in_child(engine_jobs.vocabulary, {"model": model, "prompts": prompts, "chat": chat}).result

    def _compare(self, model: _Model, prompts: Sequence[str], ours: dict, theirs: dict, n_ctx: int) -> dict[str, Any]:
        """Which prompts got the same text from both contenders, and why the others did not."""
        differ = [i for i, pair in enumerate(zip(ours["texts"], theirs["texts"], strict=True)) if pair[0] != pair[1]]
        self.say(f"{model.title}: {len(differ)} of {len(prompts)} texts differ; measuring where they diverge")
        cases = [{"prompt": prompts[i], "ours": ours["texts"][i], "theirs": theirs["texts"][i]} for i in differ]
        job = {
            "model": model.path,
            "n_threads": self.settings.n_threads,
            "n_ctx": min(n_ctx or _MAX_CTX, _MAX_CTX),
            "cases": cases,
            "noise": prompts[:_N_NOISE],
        }
        probed = run_in_child(text_differences.measure, job).result
        found = []
        for i, case, part in zip(differ, cases, probed["cases"], strict=True):
            if ours["n_prompt_tokens"][i] != theirs["n_prompt_tokens"][i]:
                part = {"why": "the prompt has other tokens"}
            found.append({"prompt": i, **part, "texts": [case["ours"], case["theirs"]]})
        unexplained = [part for part in found if not part.get("near_tie")]
        for part in unexplained:
            why = part.get("why") or f"a gap of {part['gap']:.4f}, noise {part['noise']:.4f}"
            ours_text, their_text = (text[:70] for text in part["texts"])
            self.notes.append(
                f"{model.title}, prompt {part['prompt']}: unexplained ({why}): {ours_text!r} | {their_text!r}"
            )
        return {
            "n_prompts": len(prompts),
            "n_equal": len(prompts) - len(differ),
            "n_near_ties": len(found) - len(unexplained),
            "n_unexplained": len(unexplained),
            "n_distinct_texts": len(set(theirs["texts"])),
            "relative_noise": probed["noise"],
            "differences": found,
        }

    def _users(self, model: _Model, group: Group) -> list[Group]:
        """All users of the workspace: one generation for each by the loop, beside what the product does."""
        if self.settings.workspace is None:
            return []
        whole = self._prompt_set(model.instruct)
        loop_seconds = whole.n_users * group.median(LOOP) / 1e3 / group.count
        name, extrapolated = "reclm profile users", "extrapolated"
        users = Group(
            f"{model.title}, users as they are",
            f"{whole.n_users:,} users with {whole.n_distinct:,} distinct prompts",
            "users",
            whole.n_users,
        )
        if model.name == BUNDLED:
            self.say(f"profiles of {whole.n_users:,} users in a copy of {self.settings.workspace}")
            try:
                job = {"root": scratch_copy(self.settings.workspace, self.folder / "workspace")}
                job |= {"n_threads": self.settings.n_threads, "n_slots": self.settings.n_slots}
                made = run_in_child(engine_jobs.users, job).with_peak
            except ReclmError as error:  # keep what was measured before
                shutil.rmtree(self.folder / "workspace", ignore_errors=True)
                self.notes.append(f"{model.title}, users as they are: not measured: {error}")
                return []
            seconds, extrapolated = made["seconds"], ""
            facts = {"summary": made["summary"], "peak_bytes": made["peak_bytes"]}
        else:
            seconds, facts = whole.n_distinct * group.median(ENGINE) / 1e3 / group.count, {}
        users.add(name, Timing.once(seconds), extrapolated, extrapolated=bool(extrapolated), **facts)
        users.add(LOOP, Timing.once(loop_seconds), "extrapolated", extrapolated=True)
        users.expect(name, 8.0, LOOP)
        return [users]


def _facts(made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a contender's runs for the JSON, without its texts."""
    left_out = ("texts", "finishes", "n_prompt_tokens")
    first = {name: value for name, value in made[0].items() if name not in left_out}
    finishes = made[0]["finishes"]
    return {
        **first,
        "seconds": [one["seconds"] for one in made],
        "peak_bytes": max(one["peak_bytes"] for one in made),
        "n_prompt_tokens": sum(made[0]["n_prompt_tokens"]),
        "finishes": {name: finishes.count(name) for name in sorted(set(finishes))},
        "same_every_time": all(one["texts"] == made[0]["texts"] for one in made),
    }


def _note(made: dict[str, Any]) -> str:
    note = f"{made['peak_bytes'] / 1e6:,.0f} MB"
    if "n_slots" in made:
        note += f", {made['n_slots']} slots, {made['n_workers']} worker{'s'[: made['n_workers'] > 1]}"
        note += (
            f", {100 * made['n_reused_tokens'] / max(1, sum(made['n_prompt_tokens'])):.0f} % of prompt tokens reused"
        )
    outside = overhead_of(made)
    return note if outside is None else f"{note}, {100 * outside:.1f} % outside llama.cpp"


def overhead_of(made: dict[str, Any]) -> float | None:
    """Time outside llama.cpp as a share of the workers' time; None if the contender does not measure it."""
    running, inside = made.get("seconds_running"), made.get("seconds_in_llama")
    return None if not running or inside is None else 1 - inside / running


def _expect(group: Group, name: str, engine: dict[str, Any], equal: dict[str, Any]) -> None:
    if name == TARGET_MODEL:
        group.expect(ENGINE, 1.8, LOOP)
    overhead, announced = overhead_of(engine), engine["announced_bytes"]
    beside = abs(engine["peak_bytes"] / announced - 1) if announced else None
    group.targets += [
        Target("share of equal texts", 0.99, equal["n_equal"] / equal["n_prompts"], unit=""),
        Target("texts that differ by more than a near-tie", 0, equal["n_unexplained"], at_least=False, unit=""),
        Target("time outside llama.cpp", 3.0, None if overhead is None else 100 * overhead, at_least=False, unit=" %"),
        Target(
            "memory beside what was announced",
            10.0,
            None if beside is None else 100 * beside,
            at_least=False,
            unit=" %",
        ),
    ]
