"""Importers: one module per format, each a function from a path to `Imported`.

Every importer takes its options as keywords, reads tables through DuckDB (so that a file larger
than memory imports), and answers bad input with an InputError that names file and place.
docs/formats.md shows what each format expects.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

from ...errors import InputError
from ..dataset import Imported
from .lightgcn import import_lightgcn
from .mind import import_mind
from .movielens import import_movielens
from .recbole import import_recbole
from .reclm import import_reclm
from .table import import_table

IMPORTERS: dict[str, Callable[..., Imported]] = {
    "reclm": import_reclm,
    "movielens": import_movielens,
    "mind": import_mind,
    "recbole": import_recbole,
    "lightgcn": import_lightgcn,
    "table": import_table,
}


def options_of(format: str) -> list[str]:
    """The names of the keywords that the importer of `format` takes."""
    return [name for name in inspect.signature(IMPORTERS[format]).parameters if name != "source"]


def import_dataset(format: str, source: Path, **options) -> Imported:
    """Read a data set of one of the IMPORTERS' formats; `options` are that importer's keywords.

    Raises InputError for an unknown format, an option that the format does not have, or bad data.
    """
    if format not in IMPORTERS:
        raise InputError(f"expected a format among {', '.join(IMPORTERS)}, found {format!r}: name one of them")
    importer = IMPORTERS[format]
    known = options_of(format)
    foreign = [name for name in options if name not in known]
    if foreign:
        raise InputError(
            f"the format {format} has no option {', '.join(map(repr, foreign))}: "
            f"it takes {', '.join(known)}; leave the others out"
        )
    return importer(Path(source), **options)
