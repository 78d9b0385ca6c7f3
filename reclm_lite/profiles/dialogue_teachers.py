"""Teachers of first rounds (`dialogue.teacher.Teacher`): a source of profiles, the workspace's own profiles, or a file.

A model's answers are kept where `reclm profile` keeps its own, addressed by model and prompt: what was answered once is
not asked again, and `reclm forget` knows for whom each was made. Profiles of the workspace or of a file were made from
whole histories; one that quotes what its person has in validation or test alone is left out. The teacher by rule is in
`sources.rules`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ..dialogue.first_round import Shown, Writer
from ..dialogue.leakguard import Quotes
from ..dialogue.teacher import NO_FORM, NO_PROFILE, QUOTES_HELD_OUT
from ..errors import InputError, ProfileFormatError, ReclmError
from ..files import file_sha256
from ..prompts.answer import format_profile, parse_profile
from ..types import Profile
from ..workspace import Workspace
from . import store
from .answers import OK, Group, Source, StopSignal
from .exchange import read_profiles
from .leaked_ids import LeakedIds
from .run_settings import RunSettings

CUT = "first-round answer of more than three and three"


class SourceTeacher:
    """Answers of a source (`sources`): a GGUF model or an endpoint, many prompts at once. Used under the writer's lock.

    agree: called with the source and the groups that it will be asked, before it is; raises to call that off. progress:
    called with answers that came, and of all.
    """

    writes, is_whole = True, False

    def __init__(
        self,
        ws: Workspace,
        source: Source,
        run: RunSettings,
        *,
        agree: Callable[[Source, list[Group]], None] = lambda source, groups: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.ws, self.source, self.tries, self.agree, self.progress = ws, source, run.tries(), agree, progress
        if not source.tries_again:
            self.tries = self.tries[:1]
        self.identity = source.identity(self.tries[0])
        self.left_out: Counter = Counter()
        self._form = source.form
        self._ids = LeakedIds(ws)

    def _prompt(self, shown: Shown, writer: Writer) -> str | None:
        """The prompt that the source gets, in its own form; None if nothing can be shown, or has room."""
        try:
            shorter = writer.shortened(shown, self._form, self.source.has_room)
        except InputError:
            return None
        return None if shorter is None else writer.text(shorter, self._form)

    def prepare(self, asked: Iterable[Shown], writer: Writer) -> None:
        """Ask for everything that is not in the store, each prompt once; a second time where an answer has not the
        form."""
        whose: dict[tuple[str, str], set[int]] = {}
        for shown in asked:
            if (prompt := self._prompt(shown, writer)) is not None:
                whose.setdefault((shown.side, prompt), set()).add(shown.idx)
        groups = {
            side: [Group(prompt, tuple(sorted(idxs))) for (one, prompt), idxs in whose.items() if one == side]
            for side in store.SIDES
        }
        with self.ws.writing():
            for side, pending in groups.items():
                self._ask(side, pending)

    def _ask(self, side: str, groups: list[Group]) -> None:
        pending = groups
        for number, sampling in enumerate(self.tries):
            identity = self.source.identity(sampling)
            keys = {id(group): store.prompt_key(identity, group.prompt) for group in pending}
            missing = [group for group in pending if not store.has_generation(self.ws, keys[id(group)])]
            with self.ws.db:
                for group in pending:
                    store.put_uses(self.ws, side, group.idxs, keys[id(group)])
            if missing and not number:
                self.agree(self.source, missing)
            n = 0
            for n, (_, generation) in enumerate(
                self.source.answers(side, missing, sampling, StopSignal()) if missing else (), 1
            ):
                with self.ws.db:
                    store.put_generation(self.ws, self._ids.judged(generation))
                self.progress(n, len(missing))
            if n < len(missing):
                raise ReclmError(
                    f"the teacher answered {n:,} of {len(missing):,} prompts and then stopped answering; its answers "
                    "are stored: check that it works, then run the same command again to continue"
                )
            pending = [group for group in pending if not self._is_ok(keys[id(group)])]
            if not pending:
                return

    def _is_ok(self, key: str) -> bool:
        found = store.get_generation(self.ws, key)
        return found is not None and found.status == OK

    def answer(self, shown: Shown, writer: Writer) -> str:
        prompt = self._prompt(shown, writer)
        if prompt is not None:
            for sampling in self.tries:
                found = store.get_generation(self.ws, store.prompt_key(self.source.identity(sampling), prompt))
                if found is not None and found.status == OK:
                    return format_profile(parse_profile(found.raw))
        self.left_out[NO_PROFILE if prompt is None else NO_FORM] += 1
        return ""


class StoredTeacher:
    """Profiles that are there already, by side and index: they know whole histories, and only people's own are known.

    texts: (side, idx) -> text. cut: take the first three and three where a text has more, counted.
    """

    writes, is_whole = False, True

    def __init__(self, ws: Workspace, texts: dict[tuple[str, int], str], identity: str, *, cut: bool = False):
        self.identity = identity
        self.left_out: Counter = Counter()
        quotes, self._texts = Quotes(ws), {}
        for (side, idx), text in texts.items():
            try:
                profile = self._parsed(text, cut)
            except ProfileFormatError:
                self.left_out[NO_FORM] += 1
                continue
            if quotes.of_held_out(side, idx, (*profile.identity, *profile.interests)):
                self.left_out[QUOTES_HELD_OUT] += 1
            else:
                self._texts[side, idx] = format_profile(profile)

    def _parsed(self, text: str, cut: bool) -> Profile:
        try:
            return parse_profile(text)
        except ProfileFormatError:
            shorter = cut_to_three(text) if cut else None
            if shorter is None:
                raise
            return parse_profile(shorter)

    def prepare(self, asked: Iterable[Shown], writer: Writer) -> None:
        """Nothing to prepare."""

    def answer(self, shown: Shown, writer: Writer) -> str:
        found = self._texts.get((shown.side, shown.idx), "")
        if not found:
            self.left_out[NO_PROFILE] += 1
        return found


def cut_to_three(text: str) -> str | None:
    """A profile of more than three identities or interests as one of the first three each; None if it has another
    form."""
    parts = text.strip().rstrip(".").split(";")
    heads = ("User identity:", "User interests:")
    if len(parts) != 2 or not all(part.strip().startswith(head) for part, head in zip(parts, heads, strict=True)):
        return None
    lists = []
    for part, head in zip(parts, heads, strict=True):
        different: dict[str, str] = {}
        for phrase in map(str.strip, part.strip().removeprefix(head).split(",")):
            if phrase:
                different.setdefault(phrase.casefold(), phrase)
        lists.append(", ".join([*different.values()][:3]))
    return f"{heads[0]} {lists[0]}; {heads[1]} {lists[1]}"


def stored_teacher(ws: Workspace) -> StoredTeacher:
    """The profiles of the workspace, those written by hand or imported included."""
    texts = {(side, idx): text for side in store.SIDES for idx, text in store.usable_profiles(ws, side)}
    if not texts:
        raise InputError(
            f"there are no profiles in {ws.root}; run `reclm profile users -w {ws.argument}`, or give another --teacher"
        )
    return StoredTeacher(ws, texts, "the workspace's profiles")


def file_teacher(ws: Workspace, path: Path, side: str | None, form: str | None) -> StoredTeacher:
    """The profiles of a file that `reclm profile import` would take; longer ones of the published files are cut.

    side: whose, where the file does not say. Rows of unknown people and without a text are counted.
    """
    texts, bad = read_profiles(ws, path, side=side, form=form)
    if not texts:
        raise InputError(
            f"{path} contains no profiles of this workspace's users or items; check that its ids are those of the "
            "imported data"
        )
    found = StoredTeacher(ws, texts, f"{path.name}, sha256:{file_sha256(path)}", cut=True)
    if bad:
        found.left_out["rows that are of nobody here, or have no text"] = bad
    return found
