"""The command `reclm`: one module per command, imported only when that command runs.

Results go to stdout, progress and logs to stderr. Exit codes: 0 success, 1 failure
with one clear sentence, 2 bad usage.
"""

from ._group import main

__all__ = ["main"]
