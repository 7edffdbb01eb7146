"""What is refused before a request is looked at: foreign host names, wrong media types, bodies that are too large.

Without authentication any web page could drive a gateway on its visitor's machine. Two checks stop that. A browser
sends the name it was told to connect to as ``Host``, so a rebound DNS name shows; and it sends ``application/json`` to
another origin only after a preflight, which is never granted here. An empty body needs the media type as well, since a
page may send one without any.

The host check applies while the gateway is bound to a loopback address, and wherever ``BANANAS_HOSTS`` names what it is
called; bound elsewhere without that (``BANANAS_AUTH=none``) it is reached by names that only its operator knows.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.exceptions import BadRequest, ClientDisconnected
from werkzeug.http import parse_options_header
from werkzeug.sansio.utils import get_content_length

from bananas.errors import HostNotAllowed, OriginNotAllowed, PayloadTooLarge, UnsupportedMedia
from gateway.answers import JSON
from gateway.asked import Asked, current
from gateway.listen import is_loopback

OCTETS: Final = "application/octet-stream"
#: For ``read_body``: whatever the body is. Only where ``check_origin`` or a token guards the call.
ANY: Final = ""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(?::[0-9]{1,5})?")


def host_check(names: Sequence[str]) -> Callable[[Asked], None]:
    """What to call before every request: raises HostNotAllowed unless Host is a loopback name or one of ``names``."""
    allowed = {name.lower() for name in names}

    @functools.lru_cache(maxsize=256)
    def is_served(header: str) -> bool:
        match = _HOST.fullmatch(header)
        return match is not None and (is_loopback(match[1].strip("[]")) or match[1].lower() in allowed)

    def check_host(asked: Asked) -> None:
        host = asked.header("Host") or ""
        if not is_served(host):
            served = ", ".join(["localhost", "127.0.0.1", "[::1]", *sorted(allowed)])
            raise HostNotAllowed(
                f"Host {host[:100]!r} is not served: this gateway has no authentication and answers only to {served}; "
                "more names can be given in BANANAS_HOSTS"
            )

    return check_host


def check_origin() -> None:
    """Raises OriginNotAllowed for what a browser sends on behalf of another site's page.

    Following a link is let through. For calls that take more than JSON, which such a page can send without asking.
    """
    asked = current()
    host, origin = asked.header("Host") or "", asked.header("Origin")
    site, mode = asked.header("Sec-Fetch-Site"), asked.header("Sec-Fetch-Mode")
    follows_link = asked.method in ("GET", "HEAD") and mode == "navigate"
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        raise OriginNotAllowed(
            f"Origin {origin[:100]!r} is not this gateway ({host}): a page of another site may not call functions "
            "here; have your own server call, or ask for API tokens (docs/security.md)"
        )
    if site in ("cross-site", "same-site") and not follows_link:
        raise OriginNotAllowed(f"Sec-Fetch-Site is {site}: a page of another site may not call functions here")


def read_body(limit_bytes: int, media: str = JSON, what: str = "body") -> bytes:
    """The body; raises UnsupportedMedia or, mostly before a byte of it is read, PayloadTooLarge.

    Args:
        limit_bytes: the most that is read.
        media: the type it must have; ``ANY``: it is not looked at.
        what: the name of the body in a message.
    """
    asked = current()
    environ = asked.environ
    if media != ANY and (found := _media(environ.get("CONTENT_TYPE", ""))) != media:
        sent = repr(found) if found else "nothing"
        raise UnsupportedMedia(f"{asked.method} {asked.path} takes Content-Type: {media}, not {sent}")
    size = get_content_length(environ.get("CONTENT_LENGTH"), asked.header("Transfer-Encoding"))
    if size is not None and size > limit_bytes:
        raise too_large(what, size, limit_bytes)
    data = _read(environ, limit_bytes + 1 if size is None else size)
    if size is not None and len(data) < size:
        raise ClientDisconnected
    if len(data) > limit_bytes:
        raise too_large(what, None, limit_bytes)
    return data


@functools.lru_cache(maxsize=64)
def _media(content_type: str) -> str:
    """Without parameters, in lower case."""
    return parse_options_header(content_type)[0].lower()


def _read(environ: dict[str, Any], most_bytes: int) -> bytes:
    """Up to that many bytes. Not by way of Werkzeug, which takes a body that is cut off for a whole one (3.1)."""
    if "CONTENT_LENGTH" not in environ and "wsgi.input_terminated" not in environ:
        return b""  # a server that leaves the end of the body to us, and no way to know it
    try:
        data: bytes = environ["wsgi.input"].read(most_bytes)
    except (OSError, ParseException) as e:  # the client has gone, or what it sent is no chunk
        raise BadRequest(f"the body cannot be read: {e}") from e
    return data


def too_large(what: str, size_bytes: int | None, limit_bytes: int) -> PayloadTooLarge:
    """The error that names what is too large, its size (None: not known, but too large) and the limit."""
    size = "is larger than allowed" if size_bytes is None else f"has {size_bytes} bytes"
    return PayloadTooLarge(
        f"the {what} {size}; the limit is {limit_bytes} bytes; keep large data elsewhere and send its address",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )
