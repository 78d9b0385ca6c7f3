"""Turns DuckDB's errors into one sentence about the file.

Its messages have many lines, quote the file's content, and name the temporary link. Only parts written by DuckDB itself
decide the sentence, and a message is truncated before it is searched: a quoted line may have megabytes.
"""

import re
import tempfile
from pathlib import Path

from ...errors import InputError, WorkspaceError
from .limits import Limits, cut

# DuckDB's own text stands before and after the quoted line.
_HEAD_CHARS, _TAIL_CHARS = 500, 3000


def sentence(
    error: Exception, path: Path | None, *, link: str, limits: Limits, memory_limit: str
) -> InputError | WorkspaceError:
    """The exception for DuckDB's `error` while reading `path`. link: the staging folder, which the text may name."""
    message = str(error)
    where = str(path) if path else "import"
    head, quoted, _ = message[: _HEAD_CHARS + 1].partition("\nOriginal Line:")
    own = head[:_HEAD_CHARS]
    if quoted:
        # In the tail the file's content comes first, so the last match is DuckDB's.
        own += "\n" + message[len(head) :][-_TAIL_CHARS:]
    first = _without(own.splitlines()[0] if own else type(error).__name__, link, path)
    line = re.search(r"Line: (\d{1,18})", head) or re.search(r"in line (\d{1,18})", head)
    if line:
        where += f", line {line[1]}"
    fields = re.findall(r"^Expected Number of Columns: (\d{1,18}) Found: (\d{1,18})$", own, re.MULTILINE)
    if fields and quoted:
        expected, found = (int(number) for number in fields[-1])
        problem = "too many fields" if found > expected else "too few fields"
        return InputError(f"{where}: {problem}: expected {expected}, found {found}; quote or fix the line")
    if re.search(r"No space left|[Dd]isk.{0,60}full|max_temp_directory_size|failed to offload", head):
        folder = tempfile.gettempdir()
        return WorkspaceError(
            f"{where}: no space left in {folder} for the import's temporary files; free some space or set TMPDIR"
        )
    if "Out of Memory" in head or "failed to allocate" in head.lower():
        return WorkspaceError(
            f"{where}: the import needs more than the {memory_limit} of memory it is allowed: {cut(first)}"
        )
    if (quoted and "\nMaximum line size of" in own) or "maximum_object_size" in head:
        return InputError(
            f"{where}: a line is longer than {limits.line_bytes:,} bytes, perhaps because a quotation mark is never "
            "closed"
        )
    if quoted and "\nValue with unterminated quote found." in own:
        return InputError(
            f"{where}: a quotation mark opens a field and is not closed before the field ends; "
            "double the quotation marks inside fields, or import with no quote character"
        )
    if path is not None and {suffix.lower() for suffix in path.suffixes} & {".parquet", ".pq"}:
        return InputError(f"{where} is not a whole Parquet file ({cut(first)}): export it again")
    if "state machine" in head:
        return InputError(
            f"{where}: lines end in different ways (LF, CR LF, CR) or quotation marks are unbalanced; fix the file"
        )
    return InputError(f"{where} cannot be read: {cut(first)}")


def _without(message: str, link: str, path: Path | None) -> str:
    """`message` with the temporary link's name replaced by the file's."""
    name = path.name if path else "the file"
    message = re.sub(re.escape(link) + r"/source-\d+", lambda found: name, message)
    return message.replace(link, "the temporary folder")
