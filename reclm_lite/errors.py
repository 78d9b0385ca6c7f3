"""Every error this package raises on purpose.

A message says what was expected, what was found (and where), and what to do.
The command line prints it as one sentence and exits with 1.
"""

import shlex
from pathlib import Path


def shell_word(path: Path | str) -> str:
    """`path` as one word of a shell command that a message names: quoted where it must be."""
    return shlex.quote(str(path))


class ReclmError(Exception):
    """Base class: a failure the user can act on."""


class InputError(ReclmError):
    """Data from outside (a file, a column, a value) is not what its format promises."""


class WorkspaceError(ReclmError):
    """A workspace is missing, locked, half-written or of another version."""


class MissingArtefactError(WorkspaceError):
    """A stage's input has not been made yet, or is stale; the message names the command that makes it."""


class ModelError(ReclmError):
    """A model file (GGUF, safetensors, checkpoint) cannot be used."""


class ProfileFormatError(ReclmError):
    """A text is not a profile of the form `User identity: a, b, c; User interests: x, y, z`."""


class LeakError(ReclmError):
    """Something that validation or test hold out was about to be learned from."""
