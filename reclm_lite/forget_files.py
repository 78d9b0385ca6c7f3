"""Files of a workspace that are not artefacts: which of them `reclm forget` deletes, and which it only lists."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .data.importers.leftovers import leftover_staging
from .errors import shell_word
from .forget_summary import Deleted, Remains
from .workspace import DIALOGUES, Workspace

ARRAY_FOLDERS = ("matrices", "vectors", "models")
_TUNE_RUN, _TUNE_SAMPLES = "run.json", "samples.jsonl"  # of a run of `reclm tune`
_DIALOGUES = ("sft.jsonl", "preference.jsonl", "rl.jsonl")
_LIBRARY_TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # temporary file of safetensors, left by a kill
_OWN_FILES = ("workspace.db", "workspace.db-wal", "workspace.db-shm", "workspace.toml", ".lock")


def other_files(ws: Workspace, rewritten: Iterable[Path]) -> tuple[list[Deleted], list[Remains]]:
    """(files to delete, sentences on links and foreign files that stay).

    Reports, dialogues, checkpoints and temporary files are deleted. rewritten: temporary files of this pass, to keep.
    """
    deleted: list[Deleted] = []
    remains: list[Remains] = []
    foreign: list[str] = []

    def delete(path: Path, reason: str, command: str = "") -> None:
        deleted.append(Deleted(path.relative_to(ws.root).as_posix(), reason, command))

    known = {ws.root / name for name in _OWN_FILES} | set(rewritten)
    links = [path for path in sorted(ws.root.rglob("*")) if path.is_symlink()]
    if not (ws.root / "reports").is_symlink() and any((ws.root / "reports").glob("*")):
        delete(ws.root / "reports", "reports may show anybody", f"reclm report -w {ws.argument}")
    tuned = {path.parent for path in ws.root.glob(f"llm/*/{_TUNE_RUN}")}
    tuned_files = tuned | {folder.with_name(f"{folder.name}-base") for folder in tuned}  # of models from scratch
    for path in sorted(ws.root.rglob("*")):
        relative = path.relative_to(ws.root)
        if path.is_symlink() and relative.parts[0] != "reports":  # there links are deleted, but not their targets
            continue
        if relative.is_relative_to(DIALOGUES):
            if not path.is_dir():
                again = f"reclm dialogue build {path.stem} -w {ws.argument}" if path.name in _DIALOGUES else ""
                delete(path, "dialogues hold the histories of many, and of neighbors", again)
            continue
        if any(path.is_relative_to(folder) for folder in tuned_files):
            if path.name == _TUNE_SAMPLES:
                delete(path, "samples of a tuning show what people have")
            continue
        if path in known or (path.is_dir() and not path.name.endswith(".checkpoint")) or relative.parts[0] == "reports":
            continue
        if any(part.startswith(".") and part.endswith(".checkpoint") for part in relative.parts):
            if path.is_dir():
                delete(path, "an interrupted fit: it begins anew", ws.command_for(f"models/{path.stem[1:]}"))
        elif (path.name.startswith(".") and path.name.endswith(".tmp")) or _LIBRARY_TEMPORARY.fullmatch(path.name):
            delete(path, "left over from a command that was interrupted")
        elif relative.parent.as_posix() not in ARRAY_FOLDERS or path.suffix != ".safetensors":
            foreign.append(relative.as_posix())
    if tuned:
        again = [f"reclm tune {shell_word(folder.name)} -w {ws.argument} --fresh …" for folder in sorted(tuned)]
        remains.append(
            Remains(
                "Language models that were tuned here (and files exported from them) have learned from dialogues "
                "with everybody's histories: build the "
                f"dialogues and tune again, with the options in each {_TUNE_RUN}.",
                again,
            )
        )
    if links:
        shown = [f"{path.relative_to(ws.root)} -> {os.readlink(path)}" for path in links[:5]]
        more = f" and {len(links) - 5:,} more" if len(links) > 5 else ""
        again = [ws.command_for(f"{path.parent.name}/{path.stem}") for path in links if path.suffix == ".safetensors"]
        summary = "Links are not followed, so what they lead to is as it was and may tell of people: remove it by hand."
        remains.append(Remains(f"{summary} They are: {', '.join(shown)}{more}.", again))
    for folder in leftover_staging():
        deleted.append(Deleted(str(folder), "all ids of an import that was killed"))
    if foreign:
        more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
        names = f"{', '.join(foreign[:5])}{more}"
        remains.append(
            Remains(
                "Files in the workspace that it did not write, or that a command was told to write there, are "
                "left as they are and may "
                f"tell of people: {names}."
            )
        )
    return deleted, remains
