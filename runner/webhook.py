"""One try to deliver a callback: one POST over a connection of its own, and what the answer means.

Where it may go is decided like a sandbox's egress: the name is resolved once, the address checked, and what was
checked is connected to. Redirects are not followed, of the answer only the head is read, and all of it has a deadline.
Called by ``runner.maintenance.callbacks``.
"""

from __future__ import annotations

import http.client
import io
import ssl
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gevent

from bananas import __version__, webhooks
from bananas.targets import literal
from runner import outbound
from runner.outbound import Refused, Resolve

#: From the first packet to the answer's head.
TIMEOUT_S: Final = 20.0
#: Of an answer's head.
HEAD_BYTES: Final = 16 * 1024
#: The longest wait that a receiver may ask for.
_RETRY_AFTER_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said."""

    status: int
    #: How long it wants to be left alone, in seconds.
    retry_after_s: int = 0

    @property
    def is_ok(self) -> bool:
        """True when the callback was taken."""
        return 200 <= self.status < 300


class Forbidden(Exception):
    """No callback may go there."""


class Unanswered(Exception):
    """No answer; the text says why."""


class Sender:
    """Sends callbacks."""

    def __init__(self, allowed: Collection[str], resolver: Resolve = outbound.resolve) -> None:
        """``allowed``: places that are not public, as in BANANAS_CALLBACK_ALLOW."""
        self._allowed = frozenset(allowed)
        self._resolve = resolver
        self._tls: ssl.SSLContext | None = None

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send it; raises Forbidden or Unanswered."""
        try:
            parts = webhooks.parse_url(url)
        except ValueError as e:
            raise Forbidden(str(e)) from e
        try:
            with gevent.Timeout(TIMEOUT_S, Unanswered(f"{parts.place} gave no answer within {TIMEOUT_S:g} s")):
                return self._post(parts, headers, body)
        except Refused as e:
            raise Unanswered(f"{parts.place}: {e}") from e
        except (OSError, http.client.HTTPException) as e:
            raise Unanswered(f"{parts.place}: {e or type(e).__name__}") from e

    def _post(self, url: webhooks.Url, headers: Mapping[str, str], body: bytes) -> Answer:
        host = f"[{url.host}]" if ":" in url.host else url.host
        is_usual = url.port == (443 if url.is_tls else 80)
        lines = [
            f"POST {url.target} HTTP/1.1",
            f"Host: {host}" if is_usual else f"Host: {host}:{url.port}",
            f"User-Agent: Bananas/{__version__}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        with outbound.connect(lambda: self._addresses(url), url.port, lambda _: None) as plain:
            sock = self._context().wrap_socket(plain, server_hostname=url.host) if url.is_tls else plain
            with sock:
                sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + body)
                return _read(sock)

    def _addresses(self, url: webhooks.Url) -> Sequence[str]:
        found = [url.host] if literal(url.host) else outbound.look_up(url.host, self._resolve)
        reasons = [webhooks.refused(url.host, address, url.port, self._allowed) for address in found]
        allowed = [address for address, why in zip(found, reasons, strict=True) if why is None]
        if found and not allowed:
            raise Forbidden(f"{url.host}: {reasons[0]}")
        return allowed

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _read(sock: Any) -> Answer:
    """The answer's head; raises OSError or HTTPException."""
    head = b""
    while True:
        while b"\r\n\r\n" not in head:
            data = sock.recv(HEAD_BYTES + 1 - len(head))
            if not data:
                raise OSError("the connection was closed without an answer")
            head += data
            if len(head) > HEAD_BYTES:
                raise OSError(f"the head of the answer has more than {HEAD_BYTES} bytes")
        first, _, head = head.partition(b"\r\n\r\n")
        answer = http.client.HTTPResponse(_Head(first + b"\r\n\r\n"))  # type: ignore[arg-type]
        if not first.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")):  # an interim one
            answer.begin()
            return Answer(answer.status, _seconds(answer.getheader("Retry-After")))


class _Head:
    """What http.client wants of a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        """The head, and nothing of the body."""
        return io.BytesIO(self._raw)


def _seconds(text: str | None) -> int:
    return min(int(text), _RETRY_AFTER_S) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0
