"""What a source of profiles is made from. Left out: the sources themselves."""

from dataclasses import dataclass


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
