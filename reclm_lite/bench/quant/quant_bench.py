"""`reclm bench quant`: how small a profile model may be before the recommendations suffer.

From one unquantized GGUF file the requested types are made, with and without importance matrix, and each is measured
beside it: size and speed, next-token distributions, profiles, and recommendations of a backbone fitted with those
profiles. Every figure is kept (`resumable`), so that a stopped run continues, and a second one costs nothing.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...cf.models import TRAINED
from ...errors import InputError, ModelError
from ...files import atomic_path
from ...own_paths import make_folder, require_own_path
from ...profiles.sampling import Sampling
from ...profiles.sources import SourceSettings
from ...profiles.sources.gguf import Model
from ...text.encoder import TextEncoder
from ...text.item_vectors import Encoder, open_encoder
from .. import machine
from ..harness import Finished, run_in_child
from . import (
    encoder_variants,
    file_jobs,
    html_page,
    quant_summary,
    recommendations,
    text_and_csv,
    token_distributions,
    written_profiles,
)
from .paired_intervals import MIN_UNITS
from .quant_summary import Measured
from .resumable import Say, State, Steps, digest, digest_of_texts
from .variants import DEFAULT_TYPES, Asked, File, Maker, open_reference, parse_types, verdict_on

PACKAGES = ("llama-cpp-python", "gguf")
N_PROMPTS, N_CALIBRATION = 256, 192
N_ANSWER = 48  # tokens of the reference's answer that are compared
STATE, FILES = "quant-state", "files"
_SCRATCH = ("logits-", "fits-")  # folders beside the figures, for the time of a run


@dataclass(frozen=True)
class Settings:
    """root: the workspace. model: an unquantized GGUF. types: types to make, and GGUF files to take as they are.

    n_users: whose profiles are written, None for all. n_prompts: distinct prompts for speed, logits and unrestricted
    answers. n_seeds: of the fits, from 0. epochs: of a fit at most, None for the backbone's own. max_loss: of recall,
    relative, for the choice. encoder_model: an unquantized text encoder to quantize and compare as well.
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
            found = f"{self.max_loss:g}"
            hint = f": {found} without a per cent sign is a share; for {found} % write {found}%"
            raise InputError(
                f"expected a loss between 0 and 100 %, found {100 * self.max_loss:g} %"
                f"{hint if self.max_loss >= 1 else ''}; check --max-loss"
            )
        out, root = self.out.resolve(), self.root.resolve()
        if out == root or (root in out.parents and out.relative_to(root).parts[0] != "reports"):
            raise InputError(
                f"expected --out outside the workspace or under its reports/, found {self.out}: a copy of the "
                "workspace goes there; give another folder"
            )


def run(settings: Settings, say: Say = lambda _: None, *, encoder: Encoder | None = None) -> dict[str, Any]:
    """Measure; returns the document of `quant_summary.document`. encoder: of the profiles, None for the bundled one."""
    settings.check()
    return _Run(settings, say, encoder).all()


def write_results(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write quant.json, quant.csv and quant.html into the folder `out`, each whole or not at all; returns the paths."""
    texts = {
        "quant.json": json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
        "quant.csv": text_and_csv.csv_of(document),
        "quant.html": html_page.render(document),
    }
    make_folder(out)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in texts]


class _Run:
    """One run: its settings, its state, the files it compares."""

    def __init__(self, settings: Settings, say: Say, encoder: Encoder | None):
        self.settings, self.encoder = settings, encoder
        self.asked: list[Asked] = parse_types(settings.types, imatrix=settings.imatrix)
        self.reference = open_reference(settings.model)
        if settings.encoder_model is not None:
            open_reference(settings.encoder_model, option="--encoder")
            with TextEncoder(settings.encoder_model, n_threads=1):  # fail now if it is not an encoder, not after hours
                pass
        self.model = Model(settings.model, False, SourceSettings(n_threads=settings.n_threads))
        self.state = State(settings.out / STATE)
        self.steps, self.notes = Steps(say), list(self.model.notes)
        proved = verdict_on(self.reference)[0]
        self.notes.append(
            f"{settings.model.name} was compared with its checkpoint by reclm export; the files made from it are "
            "compared with it."
            if proved
            else f"Files are compared with {settings.model.name}; no manifest beside it says that it was compared with "
            "its checkpoint, as reclm export does."
        )

    def all(self) -> dict[str, Any]:
        with self.state.locked():
            return self._all()

    def _all(self) -> dict[str, Any]:
        settings = self.settings
        with written_profiles.open_copy(settings.root, self.state.folder / "workspace") as ws, ws.writing():
            if not ws.has("matrices/neighbors"):
                self.notes.append(
                    "The workspace has no neighbors, so every profile is of its user's own history alone."
                )
            for left in [path for kind in _SCRATCH for path in self.state.folder.glob(f"{kind}*")]:
                if left.is_dir():  # of a run that was killed
                    shutil.rmtree(left)
            self.split = written_profiles.load_split(ws)
            inputs = written_profiles.load_inputs(ws)
            self.users = written_profiles.choose_users(self.split, inputs, settings.n_users, settings.seed)
            self._draw_prompts()
            found = [Measured(self.reference), *(Measured(file) for file in self._files())]
            self._speeds(found)
            self._logits(found)
            keys = self._profiles(found, ws)
            plain = self._downstream(found, ws, keys)
            encoders = self._encoders()
        return quant_summary.document(
            asdict(settings),
            machine.facts(settings.n_threads, PACKAGES),
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

    def _draw_prompts(self) -> None:
        settings = self.settings
        drawn = written_profiles.draw_prompts(
            settings.root, settings.model, self.model, settings.n_prompts, N_CALIBRATION, settings.seed
        )
        self.prompts, self.tokens, self.calibration = drawn
        if self.calibration is self.prompts and settings.imatrix:
            self.notes.append(
                "The importance matrix was collected from the prompts that are measured with: there are too few for "
                "both."
            )

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
        """(file, figures) of files that are not excluded, in the order of `wanted`: (file, key of its figures). A file
        that cannot be measured is excluded from here on."""
        self.steps.left[kind] = sum(not each.file.excluded and not self.state.has(kind, key) for each, key in wanted)
        for each, key in wanted:
            if each.file.excluded:
                continue

            def made(each: Measured = each, key: dict[str, Any] = key) -> Any:
                with self.steps.step(kind, each.file.name):
                    return make(each, key)

            try:
                value = self.state.once(kind, key, made)
            except ModelError as error:
                if each.file is self.reference:
                    raise
                each.file = replace(each.file, excluded=str(error))
                continue
            yield each, value

    def _speeds(self, found: Sequence[Measured]) -> None:
        """In turns, each over a share of the prompts, so that other load of the machine affects all files alike."""
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
            job = {"model": each.file.path, "prompts": shares[key["turn"]], "chat": chat, **common}
            return self._in_child(file_jobs.speed, each.file, job).with_peak

        for each, value in self._each("speed", wanted, measure):
            each.turns.append(value)
        for each in found:
            each.speed = None if each.file.excluded else file_jobs.merged(each.turns)

    def _logits(self, found: Sequence[Measured]) -> None:
        n_answer = min(N_ANSWER, self.model.max_new_tokens)
        common = {"reference": self.reference.sha256, "tokens": digest(self.tokens), "n_answer": n_answer}
        with tempfile.TemporaryDirectory(dir=self.state.folder, prefix="logits-") as folder:

            def measure(each: Measured, _: dict[str, Any]) -> dict[str, Any]:
                def distributions(file: File, **more: Any) -> Any:
                    job = {"model": file.path, "folder": folder, "n_threads": self.settings.n_threads, **more}
                    return self._in_child(token_distributions.measure, file, job).result

                if not (Path(folder) / "sequences.npz").is_file():  # the reference's, which others are compared with
                    whole = distributions(self.reference, prompts=self.tokens, n_answer=n_answer)
                    if each.file is self.reference:
                        return whole
                return distributions(each.file)

            for each, value in self._each(
                "logits", [(each, {"file": each.file.sha256, **common}) for each in found], measure
            ):
                each.logits = value

    def _in_child(self, function: Callable[..., Any], file: File, job: dict[str, Any]) -> Finished:
        return run_in_child(function, job, what=f"measuring {file.path}", remedy="; leave it out of --types")

    def _profiles(self, found: Sequence[Measured], ws: Any) -> dict[str, str]:
        """`vectors_key` of each file's profile vectors, by the file's SHA-256."""
        with open_encoder(self.encoder) as encoder:
            encoder_identity = encoder.identity
        common = {
            "reference": self.reference.sha256,
            "users": digest(self.users),
            "split": self.split.fingerprint,
            "data": ws.fingerprint("matrices/interactions"),
            "neighbors": ws.fingerprint("matrices/neighbors"),
            "encoder": encoder_identity,
            "source": self.model.identity(Sampling(guided=True)),
            "version": __version__,
        }
        self.written: dict[str, written_profiles.Written] = {}

        def measure(each: Measured, _: dict[str, Any]) -> dict[str, Any]:
            ours, theirs = self._write(each.file, ws), self._write(self.reference, ws)
            return written_profiles.similarity(ours, theirs) | {
                "n_users": len(self.users),
                "n_written": len(ours.texts),
                "vectors": recommendations.vectors_key(ours.vectors),
            }

        keys = {}
        for each, value in self._each(
            "profiles", [(each, {"file": each.file.sha256, **common}) for each in found], measure
        ):
            each.profiles = value
            keys[each.file.sha256] = value["vectors"]
        return keys

    def _write(self, file: File, ws: Any) -> written_profiles.Written:
        if file.sha256 not in self.written:
            for other in self.written.keys() - {self.reference.sha256}:  # vectors of all users, so only two at a time
                del self.written[other]
            self.written[file.sha256] = written_profiles.write_profiles(
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
            fits = self.fits = recommendations.Fits(
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
            self.int8 = recommendations.int8_summary([seed["int8"] for seed in reference], recommendations.K)
            measured = [each for each in found if each.file.sha256 in keys]
            of_files = [reference if each.file is self.reference else figures(each.file) for each in measured]
            compared = [
                recommendations.compare(each, reference, self.split, self.users) for each in (*of_files, figures(None))
            ]
            *of_each, plain = recommendations.as_dicts(compared)
            for each, figures_of in zip(measured, of_each, strict=True):
                each.downstream = figures_of
            return plain

    def _encoders(self) -> list[dict[str, Any]] | None:
        settings = self.settings
        if settings.encoder_model is None:
            return None
        return encoder_variants.measure(
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
