"""Somebody who gets callbacks: an HTTP server on loopback that keeps what comes and answers as it is told."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.platform import until

WAIT_S = 30.0


@dataclass(frozen=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # all tellers at once


class Receiver:
    """Answers 204, or what ``answers`` has next: a status, or bytes that are sent as they are and nothing more."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.got: list[Got] = []
        self.answers: deque[int | bytes] = deque()
        #: While it is cleared, nobody gets an answer.
        self.is_awake = threading.Event()
        self.is_awake.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                owner.got.append(Got(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                owner.is_awake.wait(WAIT_S)
                answer = owner.answers.popleft() if owner.answers else 204
                try:
                    self._answer(answer)
                except OSError:
                    self.close_connection = True  # whoever asked has been killed

            def _answer(self, answer: int | bytes) -> None:
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    self.close_connection = True
                    return
                self.send_response(answer)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.place = f"127.0.0.1:{self.port}"
        self.url = f"{'http' if tls is None else 'https'}://{self.place}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def wait(self, number: int) -> list[Got]:
        """The requests, once there are so many."""
        until(lambda: len(self.got) >= number, WAIT_S, f"{number} callbacks, not {self.got}")
        return list(self.got)

    def reset(self) -> None:
        """Forget what came, and answer 204."""
        self.is_awake.set()
        self.got.clear()
        self.answers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_awake.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)
