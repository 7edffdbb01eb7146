"""The WSGI environment of a request that gunicorn has parsed: the same as gunicorn's own, made with less ado.

Only for what this gateway serves: HTTP/1 over TCP, at the root of its host, with no proxy that is believed. Nothing is
looked up that is the same for all requests. A test compares it with gunicorn's. Called by ``gateway.onewrite``.
"""

from __future__ import annotations

import functools
import socket
from typing import Any, Final

from gunicorn.http import wsgi  # type: ignore[import-untyped]
from gunicorn.util import unquote_to_wsgi_str  # type: ignore[import-untyped]

#: Headers that have no ``HTTP_`` in front.
_BARE: Final = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}


def environ_of(
    req: Any, sock: socket.socket, addr: tuple[Any, ...], server: tuple[Any, ...], cfg: Any
) -> dict[str, Any]:
    """``addr`` is the client's, ``server`` our own. A client that waits to be told may send its body from now on."""
    if req._expected_100_continue:
        sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    environ = {
        **_always(cfg),
        "wsgi.input": req.body,
        "wsgi.url_scheme": req.scheme,
        "gunicorn.socket": sock,
        "REQUEST_METHOD": req.method,
        "RAW_URI": req.uri,
        "PATH_INFO": unquote_to_wsgi_str(req.path),
        "QUERY_STRING": req.query,
        "SERVER_PROTOCOL": f"HTTP/{req.version[0]}.{req.version[1]}",
        "REMOTE_ADDR": addr[0],
        "REMOTE_PORT": str(addr[1]),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
    }
    repeated: dict[str, list[str]] = {}
    for name, value in req.headers:
        key = _BARE.get(name)
        if key is None:
            key = "HTTP_" + name.replace("-", "_")
            if key in environ:
                repeated.setdefault(key, [environ[key]]).append(value)
                continue
        environ[key] = value
    for key, values in repeated.items():
        environ[key] = ",".join(values)
    return environ


@functools.lru_cache(maxsize=1)
def _always(cfg: Any) -> dict[str, Any]:
    return {**wsgi.base_environ(cfg), "wsgi.multithread": True, "SCRIPT_NAME": ""}
