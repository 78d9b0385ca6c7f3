"""Where an OpenAI-compatible server is, the key that it wants, and the proxy on the way to it.

The key comes from the environment alone. An address that holds a user, a password or a query is refused, since
addresses are
written down with a run. Left out: talking to the server (`http_chat`).
"""

import ipaddress
import os
import re
import urllib.request
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

from ...errors import InputError

KEYS = ("RECLM_API_KEY", "OPENAI_API_KEY")  # the first that is set counts, also where it is set to nothing


@dataclass(frozen=True)
class Address:
    """A server. base: without a slash at its end. host: with the port where the address names one."""

    base: str
    host: str
    is_loopback: bool
    is_tls: bool


def read_address(url: str) -> Address:
    """The base URL of a server. Raises InputError if it is none, or holds what must not be written down."""
    wanted = "expected the base URL of an OpenAI-compatible server, such as http://127.0.0.1:8080/v1"
    try:
        parts = urlsplit(url.strip())
        hostname, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{wanted}, found an invalid one ({error})") from error
    if "@" in parts.netloc or parts.query or parts.fragment:  # not repeated: it may hold a secret
        raise InputError(
            f"{wanted}, found one with a user, a password, a query or a fragment: put the key in {KEYS[0]} instead"
        )
    if (
        parts.scheme not in ("http", "https")
        or not hostname
        or re.search(r"\s", url.strip())
        or not url.strip().isprintable()
    ):
        raise InputError(f"{wanted}, found {url!r}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    host = f"[{hostname}]" if ":" in hostname else hostname
    host += f":{port}" if port is not None else ""
    return Address(
        urlunsplit((parts.scheme, host, path, "", "")), host, _is_loopback(hostname), parts.scheme == "https"
    )


def _is_loopback(hostname: str) -> bool:
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def read_key(address: Address) -> str:
    """The key from the environment, or an empty text. Raises InputError if it would be sent readable for others."""
    name = next((name for name in KEYS if name in os.environ), None)
    key = os.environ[name].strip() if name else ""
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"the key in {name} contains spaces or special characters: set it again")
    if key and not address.is_tls and not address.is_loopback:
        raise InputError(
            f"{name} is not sent to {address.host} over http, where others can read it: use an https address, "
            f"or run with {KEYS[0]}= (empty) if the server needs no key"
        )
    return key


def proxy_for(address: Address) -> tuple[str, dict | None] | None:
    """The proxy and the headers it wants, where HTTPS_PROXY (HTTP_PROXY for http) and NO_PROXY say so; never for
    loopback."""
    if address.is_loopback or urllib.request.proxy_bypass(address.host):
        return None
    found = urllib.request.getproxies().get("https" if address.is_tls else "http")
    if not found:
        return None
    import urllib3

    try:
        parts = urllib3.util.parse_url(found if "://" in found else f"http://{found}")
    except urllib3.exceptions.LocationParseError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:  # not repeated: it may hold a password
        raise InputError("HTTPS_PROXY or HTTP_PROXY is not the address of an http proxy: fix or unset it")
    headers = urllib3.util.make_headers(proxy_basic_auth=unquote(parts.auth)) if parts.auth else None
    return parts._replace(auth=None, path=None, query=None, fragment=None).url, headers
