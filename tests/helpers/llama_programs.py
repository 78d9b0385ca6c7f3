"""Where llama.cpp's own programs are, for the tests that compare with them: set LLAMA_CPP_BIN to their folder.

They must be of the version that llama-cpp-python contains.
"""

import os
from pathlib import Path

import pytest

LLAMA_BIN = Path(os.environ.get("LLAMA_CPP_BIN", "/nonexistent"))


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where `program` is not at hand."""
    return pytest.mark.skipif(
        not (LLAMA_BIN / program).is_file(), reason="LLAMA_CPP_BIN names no folder with llama.cpp's programs"
    )
