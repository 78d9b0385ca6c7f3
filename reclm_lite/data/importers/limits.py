"""Limits on source files, so that no import takes memory, disk or time without bound.

`reclm import --limit NAME=N` changes one of them; docs/formats.md lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from ...errors import InputError

# A file may always unpack to this much, at any ratio: small files of repeated rows compress very well.
FREE_UNPACKED_BYTES = 256 << 20
# Bytes counted per Parquet row in addition to its text: run lengths store any number of equal rows in a few bytes.
ROW_BYTES = 16
# A message shows this much of a value or of a list of names.
SHOWN_CHARS = 80
SHOWN_NAMES = 20


@dataclass(frozen=True)
class Limits:
    """Limits on a source file. A file beyond them is refused, except that long texts are cut.

    line_bytes: a line of a text file. columns: of a table. id_bytes: a user or item id in UTF-8.
    text_chars: a title, category, subcategory or description; longer ones are cut, and the manifest counts them.
    unpacked_ratio: how many times its size a gzip or Parquet file may unpack to, beyond FREE_UNPACKED_BYTES.
    """

    line_bytes: int = 4 << 20
    columns: int = 2_000
    id_bytes: int = 1_000
    text_chars: int = 100_000
    unpacked_ratio: int = 200

    def unpacked_bytes(self, n_bytes: int) -> int:
        """The largest unpacked size of a compressed file of `n_bytes`."""
        return max(FREE_UNPACKED_BYTES, self.unpacked_ratio * n_bytes)


# The largest values that --limit accepts. DuckDB allocates buffers of sixteen lines, and a vector per column.
_MOST = {
    "line_bytes": 16 << 20,
    "columns": 10_000,
    "id_bytes": 65_536,
    "text_chars": 4 << 20,
    "unpacked_ratio": 1_000_000,
}


def parse_limits(words: Sequence[str]) -> Limits:
    """Parse limits such as `line-bytes=8000000`. Raises InputError for an unknown name or a number out of range."""
    limits = Limits()
    names = [field.name for field in fields(Limits)]
    for word in words:
        name, _, value = word.partition("=")
        key = name.strip().replace("-", "_")
        if key not in names:
            shown = ", ".join(known.replace("_", "-") for known in names)
            raise InputError(f"expected a limit as NAME=N with one of the names {shown}, found {cut(word)!r}")
        most = _MOST[key]
        value = value.strip()
        if not (value.isascii() and value.isdigit() and len(value) < 20 and 1 <= int(value) <= most):
            raise InputError(f"limit {name}: expected a whole number from 1 to {most:,}, found {cut(value)!r}")
        limits = replace(limits, **{key: int(value)})
    return limits


def cut(text: str) -> str:
    """The beginning of `text`, for a message."""
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first few, quoted, and the number of the others."""
    shown = ", ".join(repr(cut(name)) for name in names[:SHOWN_NAMES])
    return shown if len(names) <= SHOWN_NAMES else f"{shown} and {len(names) - SHOWN_NAMES:,} more"
