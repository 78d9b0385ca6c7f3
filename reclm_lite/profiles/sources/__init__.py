"""Sources of profiles: `rules`, a GGUF file, an OpenAI-compatible endpoint; the latter two also on a Ray cluster.

A new source is one file here with a class like `answers.Source`, and a line in `open_source`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...prompts.inputs import PromptInputs
from ..answers import Source

RULES = "rules"
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class SourceSettings:
    """Which source, and how it runs.

    model: a GGUF file, "rules", the name of the endpoint's model, or None for the bundled model. endpoint: the base URL
    of an OpenAI-compatible server, or None. n_threads, n_slots: None for what suits the machine and the model. engine:
    "local" or "ray". ray_address: of a running cluster, None for the one that is found or a new one. max_new_tokens: of
    an answer, None for the usual. model_sha256: of the model's file, where it must be that one. For an endpoint:
    requests_per_minute, None for no limit; price_in, price_out: per million tokens, for the estimate of the cost;
    n_ctx: tokens of the model's context, timeout_seconds: of one request, None for the usual.
    """

    model: str | None = None
    endpoint: str | None = None
    n_threads: int | None = None
    n_slots: int | None = None
    engine: str = "local"
    ray_address: str | None = None
    requests_per_minute: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    max_new_tokens: int | None = None
    model_sha256: str | None = None
    n_ctx: int | None = None
    timeout_seconds: float | None = None


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
