"""Reads `workspace.toml` with a bound on its size, and replaces it atomically."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from .errors import WorkspaceError
from .files import atomic_path

MAX_TOML_BYTES = 4 << 20  # an import writes some kilobytes
# Of the parts of a dotted key (tomllib's time and memory grow with their square), and of arrays and tables in each
# other (tomli_w indents each line by them). An import writes four.
MAX_DEPTH = 32
_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")


def read_toml(path: Path) -> dict:
    """The content of workspace.toml: sections only."""
    try:
        with open(path, "rb") as handle:
            content = handle.read(MAX_TOML_BYTES + 1)
        if len(content) > MAX_TOML_BYTES:
            raise ValueError(f"expected at most {MAX_TOML_BYTES:,} bytes, found more")
        text = content.decode()
        if found := _DEEP_KEY.search(text):
            line = text.count("\n", 0, found.start()) + 1
            raise ValueError(f"expected keys of at most {MAX_DEPTH} parts, found more dots in line {line}")
        config = tomllib.loads(text)
        _require_shallow(config)
        for name, section in config.items():
            if not isinstance(section, dict):
                raise ValueError(f"expected a section [{name[:40]}], found {name[:40]} = {section!r:.40}")
        return config
    except (ValueError, RecursionError) as error:  # ValueError: also invalid UTF-8 and huge integers
        raise WorkspaceError(
            f"{path} cannot be used ({error}): correct it, or empty the file (the data set is kept elsewhere)"
        ) from error


def _require_shallow(config: dict) -> None:
    level: list = [config]
    for _ in range(MAX_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    if level:
        raise ValueError(f"expected at most {MAX_DEPTH} tables and arrays in each other, found more")


def write_toml(path: Path, config: Mapping) -> None:
    """Replace a TOML file, atomically."""
    import tomli_w

    with atomic_path(path) as temporary:
        temporary.write_text(tomli_w.dumps(config), encoding="utf-8")
