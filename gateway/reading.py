"""The requests of one connection, as gunicorn parses them; without what it finds out anew for each and is always so.

Decides nothing about what is a request, but how long its body may take to come, and what is done with a body that
nobody wants: it is read to its end and thrown away, so that the next request begins where it does, or else the
connection must end. Called by ``gateway.worker``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import gevent
from gunicorn.http import Request, RequestParser  # type: ignore[import-untyped]
from gunicorn.http.body import Body, ChunkedReader, LengthReader  # type: ignore[import-untyped]
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]

#: For any body to come, and how fast the rest of a large one must at least.
BODY_S: Final = 30.0
SLOWEST_BYTES_PER_S: Final = 10_000
#: For what is left of a body that nobody wants. Shorter than any connection may be idle.
REST_S: Final = 30.0
#: Bytes of it, and chunks of any body, before others get a turn.
_PIECE_BYTES: Final = 32 * 1024
_CHUNKS: Final = 256


class _Late(Body):  # type: ignore[misc]
    """A body that has not come with its head."""

    def read(self, size: int | None = None) -> bytes:
        """Raises TimeoutError when it does not come in time; the connection is of no use then."""
        allowed_s = BODY_S + (size or 0) / SLOWEST_BYTES_PER_S
        with gevent.Timeout(allowed_s, TimeoutError(f"it did not come within {allowed_s:.0f} s")):
            data: bytes = super().read(size)
        return data


class _Request(Request):  # type: ignore[misc]
    body: Any

    def _peer_is_trusted_proxy(self) -> bool:
        return False  # nobody is, see gunicorn.conf.py; gunicorn would parse the address of each client to say so

    def set_body_reader(self) -> None:
        """Called by gunicorn with what came behind the head in its ``unreader``."""
        super().set_body_reader()
        reader = self.body.reader
        if not (isinstance(reader, LengthReader) and reader.length <= self.unreader.buf.tell()):
            self.body = _Late(reader)
        if isinstance(reader, ChunkedReader):
            reader.parser = _in_turns(reader.parser)


class Requests(RequestParser):  # type: ignore[misc]
    """One after the other; ends when the connection does, or when HTTP says so."""

    mesg_class = _Request

    def finish_body(self, deadline: float | None = None, max_bytes: int | None = None) -> bool:  # noqa: ARG002
        """Called by gunicorn before it reads the next request: true when nothing is left of the last one.

        Gunicorn's own has no deadline, lets nobody else have a turn, and takes an end of the connection for the body's.
        """
        body = self.mesg.body if self.mesg else None
        if body is None:
            return True
        if body.failed:
            return False
        left = body.reader.length + body.buf.tell() if isinstance(body.reader, LengthReader) else None
        if left == 0:  # nearly always
            return True
        try:
            with gevent.Timeout(REST_S, TimeoutError()):
                return _is_read_away(body, left)
        except (OSError, ParseException):  # the client is slow or has gone, or what it sends is no chunk
            return False


def _in_turns(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same; a body of one byte in each would keep the process busy for seconds."""
    for nth, chunk in enumerate(chunks, 1):
        yield chunk
        if nth % _CHUNKS == 0:
            gevent.sleep(0)


def _is_read_away(body: Any, left: int | None) -> bool:
    """Read the rest of a body, ``left`` bytes; None: it tells its end itself. False when its end did not come."""
    while left != 0:
        piece = body.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
        if not piece:
            return left is None
        if left is not None:
            left -= len(piece)
        gevent.sleep(0)
    return True
