"""A run of profiles in a process of its own that can be killed.

Each is forked off a server that has everything imported, so that twenty of them cost little more than their work.
"""

import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["reclm_lite.profiles.generate", "reclm_lite.profiles.sources.gguf", "llama_cpp"])


def _profile(root: str, model: str, max_new_tokens: int, ready) -> None:
    from reclm_lite.profiles.generate import run_profiles
    from reclm_lite.profiles.sources import SourceSettings
    from reclm_lite.prompts import forms
    from reclm_lite.workspace import Workspace

    forms.FORMS["compact"] = replace(forms.FORMS["compact"], max_new_tokens=max_new_tokens)
    # A suite that a shell runs in the background inherits an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Workspace.open(Path(root)) as ws:
        ready.send("ready")
        run_profiles(ws, "users", source=SourceSettings(model, n_threads=1, n_slots=4))


def start(root: Path, model: Path, max_new_tokens: int) -> multiprocessing.Process:
    """The process, once it has opened the workspace."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    child = _CONTEXT.Process(target=_profile, args=(str(root), str(model), max_new_tokens, theirs))
    child.start()
    theirs.close()
    assert ours.recv() == "ready"
    ours.close()
    return child
