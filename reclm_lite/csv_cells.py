"""Cells of a CSV file that a spreadsheet would run as a formula, marked so that it shows them as text, and the way
back.

A mark is one `'` before the cell. A cell that begins with `'` and then with a formula gets another one, so that
`unmarked` turns every marked cell into the one that it was. Left out: files whose separator is not the comma that they
were written with.
"""

import unicodedata

_MARK = "'"
_FORMULA = frozenset("=+-@\u2212")  # and whatever looks like one of them in another width, by NFKC
_SKIPPED = frozenset(
    "\ufeff\u200b\u200c\u200d\u2060"
)  # invisible: spreadsheets and converters drop them, as they do spaces
_FIRST = frozenset(
    "\t\r\n"
)  # some programs drop these and read on; a cell that begins with one is marked whatever comes


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet may take `cell` for a formula: it begins with = + - @, after spaces and invisible
    characters too."""
    if cell[:1] in _FIRST and cell:
        return True
    for char in cell:
        if not (char.isspace() or char in _SKIPPED or char < " " or "\x7f" <= char < "\xa0"):
            return unicodedata.normalize("NFKC", char)[0] in _FORMULA
    return False


def marked(cell: object) -> object:
    """`cell` as it goes into a CSV file; numbers stay numbers."""
    return _MARK + cell if isinstance(cell, str) and is_formula(cell.lstrip(_MARK)) else cell


def unmarked(cell: str) -> str:
    """`cell` of a CSV file as it was before `marked`; a cell without a mark stays as it is."""
    return cell[1:] if cell.startswith(_MARK) and is_formula(cell.lstrip(_MARK)) else cell
