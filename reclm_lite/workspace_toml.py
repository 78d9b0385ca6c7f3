"""Reads `workspace.toml` with a bound on its size, and replaces it atomically."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from .errors import WorkspaceError
from .files import atomic_path

MAX_TOML_BYTES = 4 << 20  # an import writes some kilobytes


def read_toml(path: Path) -> dict:
    """The content of workspace.toml: sections only."""
    try:
        with open(path, "rb") as handle:
            content = handle.read(MAX_TOML_BYTES + 1)
        if len(content) > MAX_TOML_BYTES:
            raise ValueError(f"expected at most {MAX_TOML_BYTES:,} bytes, found more")
        config = tomllib.loads(content.decode())
        for name, section in config.items():
            if not isinstance(section, dict):
                raise ValueError(f"expected a section [{name[:40]}], found {name[:40]} = {section!r:.40}")
        return config
    except (ValueError, RecursionError) as error:  # ValueError: also invalid UTF-8 and huge integers
        raise WorkspaceError(
            f"{path} cannot be used ({error}): correct it, or empty the file (the data set is kept elsewhere)"
        ) from error


def write_toml(path: Path, config: Mapping) -> None:
    """Replace a TOML file, atomically."""
    import tomli_w

    with atomic_path(path) as temporary:
        temporary.write_text(tomli_w.dumps(config), encoding="utf-8")
