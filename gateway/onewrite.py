"""One request from the parser to the socket, its answer in one write. Called by ``gateway.worker`` for each request.

gunicorn writes the head of an answer by itself and the body after it: two calls of the kernel and two wake-ups of the
client, which is a fifth of a small answer's cost. An answer of known length leaves here in one piece; one without
(events that follow a log) is written as it comes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from gunicorn.http import wsgi  # type: ignore[import-untyped]

from bananas import events
from gateway.environ import environ_of

if TYPE_CHECKING:  # the master imports this file before anything is patched
    from gateway.direct import Direct

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
        send(self._sock, held + data if held else data)

    def flush(self) -> None:
        """Send what is kept, if anything is."""
        if self._held:
            held, self._held = self._held, b""
            send(self._sock, held)


def serve(
    app: Direct,
    req: Any,
    sock: socket.socket,
    addr: Any,
    server: Any,
    cfg: Any,
    *,
    is_last: Callable[[], bool],
    is_watched: bool,
) -> None:
    """Answer a request; raises StopIteration when the connection is to be closed then.

    ``is_last``: asked when the answer begins; no other request is taken on it. ``is_watched``: its client can be seen
    to hang up, since its receiving side was not ended by us.
    """
    out = Gathering(sock)
    answer, environ = wsgi.Response(req, out, cfg), environ_of(req, sock, addr, server, cfg)
    if not is_watched:
        del environ["gunicorn.socket"]
    try:
        whole = app.answer(environ)
        if whole is not None:
            if is_last():
                answer.force_close()
            answer.response_length = len(whole.body)
            out.holds = True
            out.sendall(whole.head(req.version, answer.version, closes=answer.should_close()))
            out.sendall(whole.body)
        else:
            _relay(app.flask, environ, answer, out, is_last)
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


def _relay(
    app: Callable[..., Any], environ: dict[str, Any], answer: Any, out: Gathering, is_last: Callable[[], bool]
) -> None:
    """Run a WSGI app and write what it answers."""
    pieces = app(environ, answer.start_response)
    if is_last():
        answer.force_close()
    out.holds = answer.response_length is not None
    try:
        for piece in pieces:
            answer.write(piece)
        answer.close()
        out.flush()
    finally:
        if hasattr(pieces, "close"):
            pieces.close()


def send(sock: socket.socket, data: bytes) -> None:
    """All of it: in one call of the kernel where gevent's ``sendall`` asks for the size of the buffer first."""
    sent = sock.send(data)
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])
