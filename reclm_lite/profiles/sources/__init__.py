"""Sources of profiles: `rules`, a GGUF file, an OpenAI-compatible endpoint; the latter two also on a Ray cluster.

A new source is one file here with a class like `answers.Source`, and a line in `open_source`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from ...prompts.inputs import PromptInputs
from ..answers import Source
from .source_settings import SourceSettings as SourceSettings

RULES = "rules"
ENGINES = ("local", "ray")


@contextlib.contextmanager
def open_source(settings: SourceSettings, inputs: PromptInputs) -> Iterator[Source]:
    """The source that the settings name. Raises InputError if they do not go together, ModelError on an unusable
    model."""
    source = _make(settings, inputs)
    try:
        yield source
    finally:
        source.close()


def _make(settings: SourceSettings, inputs: PromptInputs) -> Source:
    if settings.engine not in ENGINES:
        raise InputError(f"expected engine {' or '.join(map(repr, ENGINES))}, found {settings.engine!r}")
    if settings.endpoint is not None:
        if settings.model == RULES:
            raise InputError(
                f"expected the name of the endpoint's model, found {RULES!r}, which runs on this machine; leave out "
                "--endpoint, or give a model of the server"
            )
        from .endpoint import Endpoint

        if settings.engine == "ray":
            raise InputError("--engine ray cannot be used with an endpoint: leave it out")
        return Endpoint(settings)
    if settings.model == RULES:
        from .rules import Rules

        if settings.engine == "ray":
            raise InputError("--engine ray cannot be used with rules: leave it out")
        return Rules(inputs)
    from .gguf import Gguf

    is_bundled = settings.model is None
    if settings.model is None:
        from ...assets import profile_model_path

        path = profile_model_path()
    else:
        path = Path(settings.model)
    if settings.engine == "ray":
        from .ray_cluster import RayCluster

        return RayCluster(path, is_bundled, settings)
    return Gguf(path, is_bundled, settings)
