"""A chat template rendered by transformers' own code, in a process with limits: see `reclm_lite.chat_template`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reclm_lite.chat_template import serve


def _parts(template: str, contexts: Sequence[Mapping[str, Any]], today: str) -> Iterator[Iterator[str]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    del today  # transformers asks the clock

    def parts(messages: list[dict[str, str]], **names: Any) -> Iterator[str]:
        yield render_jinja_template([messages], chat_template=template, **names)[0][0]

    for context in contexts:
        yield parts(**context)


def main() -> int:
    """Load what is needed before the limits count, then serve."""
    from transformers.utils import chat_template_utils

    chat_template_utils._compile_jinja_template("")
    return serve(_parts)


if __name__ == "__main__":
    sys.exit(main())
