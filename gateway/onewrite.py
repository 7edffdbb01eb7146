"""One request from the parser to the socket, its answer in one write. Called by ``gateway.worker`` for each request.

gunicorn writes the head of an answer by itself and the body after it: two calls of the kernel and two wake-ups of the
client, which is a fifth of a small answer's cost. An answer of known length leaves here in one piece; one without
(events that follow a log) is written as it comes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gunicorn.http import wsgi  # type: ignore[import-untyped]

from bananas import events

#: A body above this is not copied behind its head; the second write costs less than that.
_COPIED_BYTES: Final = 64 * 1024


class Gathering:
    """The part of a socket that gunicorn's ``Response`` writes to. Keeps the first piece back until the second."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = b""
        #: True while the next piece is to be kept.
        self.holds = False

    def sendall(self, data: bytes) -> None:
        """Send it behind what was kept, or keep it."""
        if self.holds:
            self._held, self.holds = data, False
            return
        if self._held and len(data) > _COPIED_BYTES:
            self.flush()
        held, self._held = self._held, b""
        self._sock.sendall(held + data if held else data)

    def flush(self) -> None:
        """Send what is kept, if anything is."""
        if self._held:
            held, self._held = self._held, b""
            self._sock.sendall(held)


def serve(
    app: Callable[..., Any], req: Any, sock: socket.socket, addr: Any, server: Any, cfg: Any, *, last: bool
) -> None:
    """Run the WSGI app and write what it answers; raises StopIteration when the connection is to be closed then.

    ``last``: no other request is taken on it.
    """
    _, environ = wsgi.create(req, sock, addr, server, cfg)
    environ["wsgi.multithread"] = True
    out = Gathering(sock)
    answer = wsgi.Response(req, out, cfg)
    if last:
        answer.force_close()
    try:
        pieces = app(environ, answer.start_response)
        out.holds = answer.response_length is not None
        try:
            for piece in pieces:
                answer.write(piece)
            answer.close()
            out.flush()
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
    except OSError:
        raise  # the client has gone; gunicorn looks which way
    except Exception as e:
        if not answer.headers_sent:
            raise
        # Another answer behind a piece of this one would be taken for its rest.
        events.REQUEST_DEFECT(e, request="-", method=environ["REQUEST_METHOD"], path=environ["PATH_INFO"])
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        raise StopIteration from e
    if answer.should_close():
        raise StopIteration
