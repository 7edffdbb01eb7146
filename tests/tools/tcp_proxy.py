"""A TCP proxy with a switch: ``stop`` makes it a network that delivers nothing, ``go`` one that delivers again.

While it is stopped nothing is refused and nothing is closed, as behind a partition: what was sent waits in the kernel's
buffers and arrives late, even from a client that has given up meanwhile. ``cut`` ends all connections at once.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65536
_CONNECT_S = 5.0
#: Ends a connection with a reset instead of a farewell.
_RESET = struct.pack("ii", 1, 0)


class TcpProxy:
    """Listens on a free port of loopback and passes everything on to ``target_port`` there."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._closed = False
        #: Connections accepted so far.
        self.accepted = 0
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def stop(self) -> None:
        """Deliver nothing from now on."""
        self._flows.clear()

    def go(self) -> None:
        """Deliver again, what was held back first."""
        self._flows.set()

    def cut(self) -> int:
        """Reset every connection; returns how many sockets that were."""
        with self._lock:
            sockets = list(self._open)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.shutdown(socket.SHUT_RDWR)
        return len(sockets)

    def close(self) -> None:
        """End everything. Idempotent."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flows.set()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            self._flows.wait()
            if self._closed:
                return
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target_port), _CONNECT_S))
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            stack.callback(self._forget, client, server)
            back = threading.Thread(target=self._pump, args=(server, client), name="proxy", daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    def _forget(self, *sockets: socket.socket) -> None:
        with self._lock:
            self._open.difference_update(sockets)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
