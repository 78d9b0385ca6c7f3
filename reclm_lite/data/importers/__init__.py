"""Importers: one module per format, each a function from a path to `Imported`, and a row in formats.py.

Every importer takes its options as keywords, reads tables through DuckDB (so that a file larger than memory imports),
and raises an InputError naming file and place for bad input. docs/formats.md describes each format.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .formats import FORMATS

if TYPE_CHECKING:
    from ..dataset import Imported


def import_dataset(format: str, source: Path, **options: Any) -> "Imported":
    """Read a data set of one of the FORMATS; `options` are that importer's keywords.

    Raises InputError for an unknown format, an option that the format does not have, or bad data.
    """
    if format not in FORMATS:
        raise InputError(f"expected one of the formats {', '.join(FORMATS)}, found {format!r}: use one of them")
    known = FORMATS[format].keywords
    foreign = [name for name in options if name not in known]
    if foreign:
        raise InputError(
            f"the format {format} has no option {', '.join(map(repr, foreign))}: it has {', '.join(known)}; leave "
            "the others out"
        )
    return FORMATS[format].importer()(Path(source), **options)
