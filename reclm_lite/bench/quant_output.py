"""Where the results of `reclm bench quant` go: `quant.json`, `quant.csv` and `quant.html` in the folder asked for,
lines for the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_path
from ..own_paths import make_folder
from . import quant_page, quant_tables


def write(document: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the results, each whole or not at all; returns the paths. The folder is made."""
    texts = {
        "quant.json": json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n",
        "quant.csv": quant_tables.csv_of(document),
        "quant.html": quant_page.render(document),
    }
    make_folder(out)
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def lines(document: Mapping[str, Any], *, auto: bool) -> list[str]:
    """The table, and with `auto` the choice."""
    return [*quant_tables.lines_of(document), *(["", document["choice"]["sentence"]] if auto else [])]
