"""`reclm bench quant`: how small a profile model may be before the recommendations suffer.

From one unquantized GGUF file the types asked for are made, with and without importance matrix, and each is measured
beside
it: size and speed (`quant_jobs`), next-token distributions (`quant_logits`), profiles (`quant_profiles`),
recommendations of a backbone fed with those profiles (`quant_downstream`). Every figure is kept (`quant_state`), so
that a run goes on where it was stopped, and a second one costs nothing. What comes of the figures: `quant_results`
(rows, the choice), `quant_tables`, `quant_page`. The text encoder has a part of its own (`quant_encoder`).
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..cf.fit import TRAINED
from ..errors import InputError, ModelError, WorkspaceError
from ..files import lock_file
from ..own_paths import require_own_path
from ..profiles.calibration import sample_prompts
from ..profiles.generate import Observer
from ..profiles.pace import in_words
from ..profiles.sampling import Sampling
from ..profiles.scheduler import Tokenizer
from ..profiles.sources import SourceSettings
from ..profiles.sources.gguf import Model
from ..text.encoder import TextEncoder
from ..text.vectors import Encoder, open_encoder
from . import machine, quant_downstream, quant_encoder, quant_int8, quant_profiles, quant_results
from .quant_files import DEFAULT_TYPES, Asked, File, Maker, open_reference, parse_types, verdict_on
from .quant_intervals import MIN_UNITS
from .quant_jobs import merged, run_job
from .quant_state import State, digest, digest_of_texts

PACKAGES = ("llama-cpp-python", "gguf")
N_PROMPTS, N_CALIBRATION = 256, 192
N_ANSWER = 48  # tokens of the reference's answer that are compared
STATE, FILES = "quant-state", "files"
_SCRATCH = ("logits-", "fits-")  # folders beside the figures, for the time of a run
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """root: the workspace. model: an unquantized GGUF. types: types to make, and GGUF files to take as they are.

    n_users: whose profiles are written, None for all. n_prompts: distinct prompts for speed, logits and free answers.
    seeds: of
    the fits, from 0. epochs: of a fit at most, None for the backbone's own. max_loss: of recall, relative, for the
    choice. encoder_model: an unquantized text encoder to quantize and compare as well.
    """

    root: Path
    model: Path
    out: Path
    n_threads: int
    types: tuple[str, ...] = DEFAULT_TYPES
    imatrix: bool = True
    n_users: int | None = None
    n_prompts: int = N_PROMPTS
    n_seeds: int = 5
    backbone: str = "lightgcn"
    epochs: int | None = None
    n_slots: int | None = None
    turns: int = 3
    seed: int = 0
    max_loss: float = 0.01
    encoder_model: Path | None = None

    def check(self) -> None:
        """Raises InputError if a setting is invalid, WorkspaceError if `out` lies behind a link in the workspace."""
        require_own_path(self.out, below=self.root)
        if self.backbone not in TRAINED:
            raise InputError(
                f"expected a backbone that takes profiles, one of {', '.join(TRAINED)}, found {self.backbone!r}; "
                "check --backbone"
            )
        if self.n_prompts < MIN_UNITS:
            raise InputError(
                f"expected at least {MIN_UNITS} prompts, as fewer give no interval, found --prompts {self.n_prompts}; "
                "ask for more"
            )
        if not 0 < self.max_loss < 1:
            hint = (
                f": {self.max_loss:g} without a per cent sign is a share; for {self.max_loss:g} % write "
                f"{self.max_loss:g}%"
                if self.max_loss >= 1
                else ""
            )
            raise InputError(
                f"expected a loss between 0 and 100 %, found {100 * self.max_loss:g} %{hint}; check --max-loss"
            )
        out, root = self.out.resolve(), self.root.resolve()
        if out == root or (root in out.parents and out.relative_to(root).parts[0] != "reports"):
            raise InputError(
                f"expected --out outside the workspace or under its reports/, found {self.out}: a copy of the "
                "workspace goes there; give another folder"
            )


@dataclass
class Measured:
    """What was found of one file; None where it was not measured. turns: of its speed."""

    file: File
    turns: list[dict[str, Any]] = field(default_factory=list)
    speed: dict[str, Any] | None = None
    logits: dict[str, Any] | None = None
    profiles: dict[str, Any] | None = None
    downstream: dict[str, Any] | None = None


def run(settings: Settings, say: Say = lambda _: None, *, encoder: Encoder | None = None) -> dict[str, Any]:
    """Measure; returns the document of `quant_results.document`. encoder: of the profiles, None for the bundled one."""
    settings.check()
    return _Run(settings, say, encoder).all()


class _Steps(Observer):
    """Tells what is being done, and how long the rest will take by what the like took so far."""

    def __init__(self, say: Say):
        self._say, self.left, self.seconds = say, Counter(), {}
        self._label, self._told_at = "", 0.0

    @contextmanager
    def step(self, kind: str, label: str) -> Iterator[None]:
        started = time.monotonic()
        self.begin(kind, label)
        self._say(self._label + self._rest())
        try:
            yield
        finally:
            self.left[kind] -= self.left[kind] > 0
            self.seconds.setdefault(kind, []).append(time.monotonic() - started)

    def _rest(self) -> str:
        known = [(n, self.seconds[kind]) for kind, n in self.left.items() if n and kind in self.seconds]
        total = sum(n * sum(spent) / len(spent) for n, spent in known)
        n_steps = sum(self.left.values())
        unknown = any(n and kind not in self.seconds for kind, n in self.left.items())
        if not n_steps:
            return ""
        about = f", {'at least' if unknown else 'about'} {in_words(total)}" if total >= 1 else ""
        return f" ({n_steps} step{'s'[: n_steps > 1]} to go{about})"

    def begin(self, kind: str, label: str) -> None:
        """What `progress` and `sequences` tell of from here on."""
        self._label, self._told_at = f"{label}: {kind}", time.monotonic()

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Of a run of profiles, every ten seconds."""
        if note:
            self._tell(f"{done:,} of {total:,} users, {note}")

    def sequences(self, done: int, total: int) -> None:
        """Of an importance matrix, every ten seconds."""
        self._tell(f"{done:,} of {total:,} prompts")

    def _tell(self, text: str) -> None:
        if time.monotonic() - self._told_at >= 10:
            self._told_at = time.monotonic()
            self._say(f"{self._label}: {text}")

    def say(self, sentence: str) -> None:
        self._say(sentence)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. Raises WorkspaceError where another one has it."""
    lock = lock_file(folder / ".lock")
    if lock is None:
        raise WorkspaceError(
            f"another reclm process is measuring into {folder.parent}: wait for it to end, or give another --out"
        )
    with lock:
        yield


class _Run:
    """One run: its settings, its state, the files it compares."""

    def __init__(self, settings: Settings, say: Say, encoder: Encoder | None):
        self.settings, self.encoder = settings, encoder
        self.asked: list[Asked] = parse_types(settings.types, imatrix=settings.imatrix)
        self.reference = open_reference(settings.model)
        if settings.encoder_model is not None:
            open_reference(settings.encoder_model, option="--encoder")
            with TextEncoder(settings.encoder_model, n_threads=1):  # one that is none is told now, not after hours
                pass
        self.model = Model(settings.model, False, SourceSettings(n_threads=settings.n_threads))
        try:
            self.state = State(settings.out / STATE)
        except OSError as error:
            raise InputError(
                f"expected a folder that can be written at {settings.out}, found: {error.strerror}; check --out"
            ) from error
        self.steps, self.notes = _Steps(say), list(self.model.notes)
        proved = verdict_on(self.reference)[0]
        self.notes.append(
            f"{settings.model.name} was proved against its checkpoint by reclm export; the files made of it are held "
            "to it."
            if proved
            else f"Files are held to {settings.model.name}; nothing beside it says that it was proved against its "
            "checkpoint, as reclm export does."
        )

    def all(self) -> dict[str, Any]:
        with _alone(self.state.folder):
            return self._all()

    def _all(self) -> dict[str, Any]:
        settings = self.settings
        with quant_profiles.open_copy(settings.root, self.state.folder / "workspace") as ws, ws.writing():
            if not ws.has("matrices/neighbors"):
                self.notes.append(
                    "The workspace has no neighbors, so every profile is of its user's own history alone."
                )
            for left in [path for kind in _SCRATCH for path in self.state.folder.glob(f"{kind}*")]:
                if left.is_dir():  # of a run that was killed
                    shutil.rmtree(left)
            self.split = quant_profiles.load_split(ws)
            inputs = quant_profiles.load_inputs(ws)
            self.users = quant_profiles.choose_users(self.split, inputs, settings.n_users, settings.seed)
            self._draw_prompts()
            found = [Measured(self.reference), *(Measured(file) for file in self._files())]
            self._speeds(found)
            self._logits(found)
            keys = self._profiles(found, ws)
            plain = self._downstream(found, ws, keys)
            encoders = self._encoders()
        return quant_results.document(
            asdict(settings),
            self._about(),
            found,
            plain,
            self.int8,
            encoders,
            split=self.split.fingerprint,
            notes=self.notes,
            n_users=len(self.users),
            n_all_users=self.split.n_users,
            max_loss=settings.max_loss,
            n_kept=self.state.n_found,
            n_made=self.state.n_made,
        )

    def _about(self) -> dict[str, Any]:
        about = machine.facts(self.settings.n_threads)
        about["versions"] |= {name: machine.version(name) for name in PACKAGES}
        return about

    def _draw_prompts(self) -> None:
        """Prompts to measure with, and others for the importance matrix where there are enough."""
        settings, model = self.settings, self.model
        with_tokens = Tokenizer(settings.model, model.wrap)
        try:
            drawn = sample_prompts(
                settings.root, n=2 * (settings.n_prompts + N_CALIBRATION), instruct=model.instruct, seed=settings.seed
            )
            tokens = {prompt: with_tokens(prompt).tolist() for prompt in drawn}
        finally:
            with_tokens.close()
        fitting = [prompt for prompt in drawn if len(tokens[prompt]) <= model.max_prompt_tokens]
        self.prompts = fitting[: settings.n_prompts]
        rest = fitting[settings.n_prompts :][:N_CALIBRATION]
        if len(self.prompts) < MIN_UNITS:
            raise InputError(
                f"expected at least {MIN_UNITS} distinct prompts that {settings.model.name} has room for, found "
                f"{len(self.prompts)}; "
                "use a workspace with more users, or a model with a larger context"
            )
        self.calibration = rest if len(rest) >= MIN_UNITS else self.prompts
        if self.calibration is self.prompts and settings.imatrix:
            self.notes.append(
                "The importance matrix was collected from the prompts that are measured with: there are too few for "
                "both."
            )
        self.tokens = [tokens[prompt] for prompt in self.prompts]

    def _files(self) -> list[File]:
        maker = Maker(self.reference, self.settings.out / FILES, self.state, self.settings.n_threads)
        imatrix = None
        if any(asked.imatrix for asked in self.asked):
            self.steps.begin("importance matrix", self.reference.name)
            imatrix = maker.imatrix(self.calibration, self.steps.sequences)
        files = []
        missing = [asked for asked in self.asked if not maker.is_there(asked, imatrix)]
        self.steps.left["making"] = len(missing)
        for asked in self.asked:
            with self.steps.step("making", asked.name) if asked in missing else nullcontext():
                files.append(maker.make(asked, imatrix, is_there=asked not in missing))
        return files

    def _each(
        self,
        kind: str,
        wanted: Sequence[tuple[Measured, dict[str, Any]]],
        make: Callable[[Measured, dict[str, Any]], Any],
    ) -> Iterator[tuple[Measured, Any]]:
        """(file, figures) by what they are kept under, of files that are not excluded; one that cannot be measured is
        excluded from here on."""
        self.steps.left[kind] = sum(not each.file.excluded and not self.state.has(kind, key) for each, key in wanted)
        for each, key in wanted:
            if each.file.excluded:
                continue

            def told(each: Measured = each, key: dict[str, Any] = key) -> Any:
                with self.steps.step(kind, each.file.name):
                    return make(each, key)

            try:
                value = self.state.once(kind, key, told)
            except ModelError as error:
                if each.file is self.reference:
                    raise
                each.file = replace(each.file, excluded=str(error))
                continue
            yield each, value

    def _speeds(self, found: Sequence[Measured]) -> None:
        """In turns, each over a share of the prompts, so that what else the machine does falls on all files alike."""
        settings, model, wrap = self.settings, self.model, self.model.wrap
        n_ctx = min(model.n_ctx, max(map(len, self.tokens)) + model.max_new_tokens)
        common = {
            "n_slots": settings.n_slots,
            "n_ctx": n_ctx,
            "max_new": model.max_new_tokens,
            "n_threads": settings.n_threads,
        }
        chat = [wrap.before, wrap.after, wrap.name] if wrap else None
        where = {
            "chat": wrap.name if wrap else None,
            "cpu": machine.cpu_name(),
            "llama": machine.version("llama-cpp-python"),
        }
        shares = [self.prompts[turn :: settings.turns] for turn in range(settings.turns)]
        digests = list(map(digest_of_texts, shares))
        wanted = [
            (each, {"file": each.file.sha256, "turn": turn, "prompts": digests[turn], **common, **where})
            for turn in range(settings.turns)
            for each in found
        ]

        def measure(each: Measured, key: dict[str, Any]) -> dict[str, Any]:
            return run_job("speed", model=each.file.path, prompts=shares[key["turn"]], chat=chat, **common)

        for each, value in self._each("speed", wanted, measure):
            each.turns.append(value)
        for each in found:
            each.speed = None if each.file.excluded else merged(each.turns)

    def _logits(self, found: Sequence[Measured]) -> None:
        n_answer = min(N_ANSWER, self.model.max_new_tokens)
        common = {"reference": self.reference.sha256, "tokens": digest(self.tokens), "n_answer": n_answer}
        with tempfile.TemporaryDirectory(dir=self.state.folder, prefix="logits-") as folder:

            def measure(each: Measured, _: dict[str, Any]) -> dict[str, Any]:
                threads = self.settings.n_threads
                whole = (
                    run_job(
                        "logits",
                        model=self.reference.path,
                        folder=folder,
                        n_threads=threads,
                        prompts=self.tokens,
                        n_answer=n_answer,
                    )
                    if not (Path(folder) / "sequences.npz").is_file()
                    else None
                )
                if each.file is self.reference and whole is not None:
                    return whole
                return run_job("logits", model=each.file.path, folder=folder, n_threads=threads)

            for each, value in self._each(
                "logits", [(each, {"file": each.file.sha256, **common}) for each in found], measure
            ):
                each.logits = value

    def _profiles(self, found: Sequence[Measured], ws: Any) -> dict[str, str]:
        """What the vectors of each file's profiles hash to, by the file's SHA-256."""
        common = {
            "reference": self.reference.sha256,
            "users": digest(self.users),
            "split": self.split.fingerprint,
            "data": ws.fingerprint("matrices/interactions"),
            "neighbors": ws.fingerprint("matrices/neighbors"),
            "encoder": self._encoder_identity(),
            "source": self.model.identity(Sampling(guided=True)),
            "version": __version__,
        }
        self.written: dict[str, quant_profiles.Written] = {}

        def measure(each: Measured, _: dict[str, Any]) -> dict[str, Any]:
            ours, theirs = self._write(each.file, ws), self._write(self.reference, ws)
            return quant_profiles.similarity(ours, theirs) | {
                "n_users": len(self.users),
                "n_written": len(ours.texts),
                "vectors": quant_downstream.vectors_key(ours.vectors),
            }

        keys = {}
        for each, value in self._each(
            "profiles", [(each, {"file": each.file.sha256, **common}) for each in found], measure
        ):
            each.profiles = value
            keys[each.file.sha256] = value["vectors"]
        return keys

    def _encoder_identity(self) -> Any:
        with open_encoder(self.encoder) as encoder:
            return encoder.identity

    def _write(self, file: File, ws: Any) -> quant_profiles.Written:
        if file.sha256 not in self.written:
            for other in self.written.keys() - {self.reference.sha256}:  # vectors of all users, so only two at a time
                del self.written[other]
            self.written[file.sha256] = quant_profiles.write_profiles(
                ws,
                file,
                self.users,
                n_threads=self.settings.n_threads,
                n_slots=self.settings.n_slots,
                encoder=self.encoder,
                observer=self.steps,
            )
        return self.written[file.sha256]

    def _downstream(self, found: Sequence[Measured], ws: Any, keys: dict[str, str]) -> dict[str, Any]:
        """Fills in every file's comparison; returns that of the backbone without profiles."""
        settings, seeds = self.settings, range(self.settings.n_seeds)
        with tempfile.TemporaryDirectory(dir=self.state.folder, prefix="fits-") as folder:
            fits = self.fits = quant_downstream.Fits(
                settings.root, Path(folder), self.state, settings.backbone, settings.epochs, settings.n_threads
            )
            with_int8 = keys[self.reference.sha256]
            wanted = {"none", *keys.values()}
            self.steps.left["fit"] = sum(
                not fits.has(key, seed, int8=key == with_int8) for key in wanted for seed in seeds
            )

            def figures(file: File | None) -> list[dict[str, Any]]:
                key = "none" if file is None else keys[file.sha256]
                int8 = key == with_int8
                if all(fits.has(key, seed, int8=int8) for seed in seeds):
                    return [fits.figures(None, key, seed, int8=int8) for seed in seeds]
                self.steps.begin("profiles from the store", "" if file is None else file.name)
                vectors = None if file is None else self._write(file, ws).vectors
                made = []
                for seed in seeds:
                    with self.steps.step(
                        "fit", f"{settings.backbone}, {file.name if file else 'no'} profiles, seed {seed}"
                    ):
                        made.append(fits.figures(vectors, key, seed, int8=int8))
                return made

            reference = figures(self.reference)
            self.int8 = quant_int8.summary([seed["int8"] for seed in reference], quant_downstream.K)
            measured = [each for each in found if each.file.sha256 in keys]
            of_files = [reference if each.file is self.reference else figures(each.file) for each in measured]
            compared = [
                quant_downstream.compare(each, reference, self.split, self.users) for each in (*of_files, figures(None))
            ]
            *of_each, plain = quant_downstream.told(compared)
            for each, told in zip(measured, of_each, strict=True):
                each.downstream = told
            return plain

    def _encoders(self) -> list[dict[str, Any]] | None:
        settings = self.settings
        if settings.encoder_model is None:
            return None
        return quant_encoder.measure(
            settings.root,
            settings.encoder_model,
            settings.out / FILES,
            self.state,
            n_threads=settings.n_threads,
            seed=settings.seed,
            fits=self.fits,
            seeds=range(settings.n_seeds),
            steps=self.steps,
        )
