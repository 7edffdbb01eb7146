"""The requests of one connection, as gunicorn parses them; without what it finds out anew for each and is always so.

Decides nothing about what is a request. Called by ``gateway.worker``.
"""

from __future__ import annotations

from gunicorn.http import Request, RequestParser  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]


class _Request(Request):  # type: ignore[misc]
    def _peer_is_trusted_proxy(self) -> bool:
        return False  # nobody is, see gunicorn.conf.py; gunicorn would parse the address of each client to say so


class Requests(RequestParser):  # type: ignore[misc]
    """One after the other; ends when the connection does, or when HTTP says so."""

    mesg_class = _Request

    def finish_body(self, deadline: float | None = None, max_bytes: int | None = None) -> bool:
        """Called by gunicorn before it reads the next request: true when nothing is left of the last one."""
        nothing_is_left = self._is_read() or super().finish_body(deadline, max_bytes)
        return bool(nothing_is_left)

    def _is_read(self) -> bool:
        """True when the last body was taken as a whole, as nearly all are."""
        body = self.mesg.body if self.mesg else None
        if body is None or body.failed or not isinstance(body.reader, LengthReader):
            return False
        return bool(body.reader.length == 0 and body.buf.tell() == 0)
