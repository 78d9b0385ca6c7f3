"""A chat template is a program from outside: rendered here in a process of its own, which is ended where it takes too
much.

The process gets the template and the conversations on its standard input, and gives texts back as JSON. It renders in
Jinja's immutable sandbox, set up as llama-cpp-python and transformers set it up, with at most CPU_SECONDS of processor
time, EXTRA_BYTES of memory and MAX_TEXT_CHARS of text, and may write no file. Whoever waits for it can be interrupted;
after WALL_SECONDS it is killed. Windows has no limits of memory and processor time: the clock's holds there.
Left out: what is made of the text (`profiles.chat`, `tune.rendering`).
"""

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

MAX_TEMPLATE_CHARS = 1_000_000  # those in use have at most some 20,000
MAX_TEXT_CHARS = 1_000_000
CPU_SECONDS = 3  # one in use takes milliseconds
EXTRA_BYTES = 512 << 20  # beyond what the process has when it begins to render
WALL_SECONDS = 60.0  # for machines with much else to do


class TemplateFailed(Exception):
    """Why a template cannot be rendered, in a few words."""


class TemplateTooLarge(TemplateFailed):
    """A text that is longer, or takes more memory, than any template in use asks for."""


def render(
    template: str, contexts: Sequence[Mapping[str, Any]], *, today: datetime | None = None, program: str = __name__
) -> list[str | TemplateFailed]:
    """The text of each context (`messages`, `add_generation_prompt`, …), or why there is none, in one process for all.

    today: what a template that asks for the date is told; None: the date. program: the module that renders, by `serve`.
    Raises TemplateFailed where nothing came back.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise TemplateFailed(f"it has more than {MAX_TEMPLATE_CHARS:,} characters")
    request = json.dumps(
        {"template": template, "contexts": list(contexts), "today": (today or datetime.now()).isoformat()}
    )
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-m", program], input=request.encode(), capture_output=True, timeout=WALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise TemplateFailed(f"it takes more than {WALL_SECONDS:.0f} seconds") from None
    return read_answer(run.returncode, run.stdout, len(contexts))


def render_one(template: str, context: Mapping[str, Any], *, today: datetime | None = None) -> str:
    """`render` of one context. Raises TemplateFailed."""
    (found,) = render(template, [context], today=today)
    if isinstance(found, TemplateFailed):
        raise found
    return found


def read_answer(code: int, answer: bytes, n: int) -> list[str | TemplateFailed]:
    """What the process said, by its exit code and its output. Raises TemplateFailed where it did not end well."""
    if code and code == -getattr(signal, "SIGXCPU", 0):
        raise TemplateFailed(f"it takes more than {CPU_SECONDS} seconds of processor time")
    try:
        found = json.loads(answer) if code == 0 else None
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) != n:
        raise TemplateFailed(f"rendering it ended with exit code {code}")
    return [
        str(one["text"])
        if "text" in one
        else (TemplateTooLarge if one.get("too_large") else TemplateFailed)(str(one["error"]))
        for one in found
    ]


# -- the process ---------------------------------------------------------------------


def _environment() -> Any:
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` of transformers marks what an assistant wrote; it writes nothing itself."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=jinja2.BaseLoader(),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.filters["tojson"] = to_json  # jinja's own writes for HTML
    return environment


def _parts(template: str, contexts: Sequence[Mapping[str, Any]], today: str) -> Iterator[Iterator[str]]:
    """The text of each context, in parts as they are written."""

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    def strftime_now(form: str) -> str:
        return datetime.fromisoformat(today).strftime(form)

    compiled = functools.cache(_environment().from_string)

    def parts(context: Mapping[str, Any]) -> Iterator[str]:
        yield from compiled(template).generate(
            {**context, "raise_exception": raise_exception, "strftime_now": strftime_now}
        )

    yield from map(parts, contexts)


def _told(parts: Iterator[str]) -> dict[str, str | bool]:
    found, n = [], 0
    try:
        for part in parts:
            found.append(part)
            n += len(part)
            if n > MAX_TEXT_CHARS:
                return {"error": f"it writes more than {MAX_TEXT_CHARS:,} characters", "too_large": True}
        text = "".join(found)
        text.encode()  # a lone surrogate is no text
    except MemoryError:
        return {"error": f"it takes more than {EXTRA_BYTES >> 20} MiB of memory", "too_large": True}
    except Exception as error:  # the template may fail in any way
        return {"error": str(error)[:200] or type(error).__name__}
    return {"text": text}


def set_limits(cpu_seconds: int = CPU_SECONDS, extra_bytes: int = EXTRA_BYTES) -> None:
    """Limit what this process may take from now on, where the system can."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_CPU": int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds}
    try:
        with open("/proc/self/statm") as handle:
            wanted["RLIMIT_AS"] = int(handle.read().split()[0]) * resource.getpagesize() + extra_bytes
    except OSError:  # not Linux
        wanted["RLIMIT_DATA"] = extra_bytes
    for name, limit in wanted.items():
        try:
            _, most = resource.getrlimit(getattr(resource, name))
            limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(getattr(resource, name), (limit, most))
        except (ValueError, OSError):  # the system does not keep this one
            continue


Renderer = Callable[[str, Sequence[Mapping[str, Any]], str], Iterable[Iterator[str]]]


def answer(request: bytes, renderer: Renderer = _parts) -> bytes:
    """What the process gives back for a request."""
    asked = json.loads(request)
    return json.dumps(
        [_told(parts) for parts in renderer(asked["template"], asked["contexts"], asked["today"])]
    ).encode()


def serve(renderer: Renderer = _parts) -> int:
    """Be the process: one request, under the limits, with all that it needs loaded before."""
    request = sys.stdin.buffer.read()
    set_limits()
    sys.stdout.buffer.write(answer(request, renderer))
    return 0


if __name__ == "__main__":
    _environment()  # loads Jinja before the limits count
    sys.exit(serve())
