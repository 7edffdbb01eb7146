"""Lets user code reach the addresses in ``egress`` though the sandbox has no network. Lives in the keeper.

The names resolve to loopback addresses inside the sandbox, and this listens there. For each connection it asks the
runner's relay, through the socket ``e``, for the target that belongs to the address, and then passes bytes both ways.
What may be reached is decided by the relay alone; user code that talks to ``e`` itself gains nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from .loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .loop import Loop

#: Unless boot.json says another number.
MAX_CONNECTIONS = 32
#: Clients that wait while the most are connected; one more would have to knock again a second later.
BACKLOG = 128
BUFFER_BYTES = 64 * 1024
REPLY_BYTES = 512
#: Of a piece's length, which comes before it.
LENGTH_BYTES = 4
#: The relay takes at most 15 s and some for resolving; this is for a relay that died.
REPLY_TIMEOUT_S = 30.0
#: For code to read what came before a cut. There is no event for that, so we look.
READ_TIMEOUT_S = 10.0
LOOK_S = 0.01


class Forwarder:
    """The listeners, and the connections that came through them."""

    def __init__(
        self,
        loop: Loop,
        relay_path: str,
        routes: list[dict[str, Any]],
        log_fd: int,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Listen at ``ip:port`` of each route. Raises OSError when that is not possible, naming the address."""
        self.loop = loop
        self._max_connections = max_connections
        self.relay_path = relay_path
        self._connections: set[Connection] = set()
        self._listeners: dict[socket.socket, str] = {}
        for route in routes:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((route["ip"], route["port"]))
            except OSError as e:
                raise OSError(e.errno, f"cannot listen on {route['ip']}:{route['port']}: {e.strerror}") from e
            listener.listen(BACKLOG)
            listener.setblocking(False)
            self._listeners[listener] = f"{route['name']}:{route['port']}"
        # Another open file of the same pipe, because not blocking is a property of the open file, and the worker's
        # end must block.
        self._log_fd = os.open(f"/proc/self/fd/{log_fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._listen()

    def abandon(self) -> None:
        """In the forked worker: close what only the keeper may hold."""
        for listener in self._listeners:
            listener.close()
        os.close(self._log_fd)

    def tell(self, text: str) -> None:
        """Write a line to the logs of the running call."""
        # A pipe that is full or has no reader: then nobody would read it.
        with contextlib.suppress(OSError):
            os.write(self._log_fd, f"bananas: {text}\n".encode())

    def ended(self, connection: Connection) -> None:
        """A connection is over, so there is room for another one."""
        self._connections.discard(connection)
        if len(self._connections) == self._max_connections - 1:
            self._listen()

    def _listen(self) -> None:
        for listener, target in self._listeners.items():
            self.loop.watch(listener.fileno(), READ, lambda at=listener, to=target: self._accept(at, to))  # type: ignore[misc]

    def _accept(self, listener: socket.socket, target: str) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # it went away before we came
        connection = Connection(self, client, target)
        self._connections.add(connection)
        connection.start()
        if len(self._connections) >= self._max_connections:
            for full in self._listeners:
                self.loop.forget(full.fileno())  # further clients wait in the backlog


class Flow:
    """One direction of a connection, with a bounded buffer: nothing is read while the other side is behind."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source = source
        self._sink = sink
        self.buffer = bytearray()
        self.has_ended = False
        #: The source went away without its end.
        self.is_cut = False
        #: The end has been passed on.
        self.is_done = False

    @property
    def wants_data(self) -> bool:
        """Is there room, and can more come?"""
        return not self.has_ended and not self.is_cut and len(self.buffer) < BUFFER_BYTES

    def read(self) -> None:
        """Take what is there. Raises OSError when the source is broken."""
        if self.wants_data:
            try:
                data = self._source.recv(BUFFER_BYTES - len(self.buffer))
            except BlockingIOError:
                return
            self._take(data)

    def write(self) -> None:
        """Give what the sink takes, and the end after the last byte. Raises OSError when the sink is broken."""
        if self.buffer:
            try:
                del self.buffer[: self._sink.send(self.buffer)]
            except BlockingIOError:
                return
        if self.has_ended and not self.buffer and not self.is_done:
            self.is_done = True
            self._sink.shutdown(socket.SHUT_WR)

    def _take(self, data: bytes) -> None:
        """These bytes came, or the end (none)."""
        self.buffer += data
        self.has_ended = not data


class Download(Flow):
    """From the relay: in pieces, each behind its length. One of no bytes is the end, and nothing else is."""

    def __init__(self, source: socket.socket, sink: socket.socket, first: bytes) -> None:
        """``first`` came already."""
        super().__init__(source, sink)
        self._length = bytearray()
        #: Bytes that are still to come of this piece.
        self._left = 0
        if first:
            self._take(first)

    def _take(self, data: bytes) -> None:
        self.is_cut = not data
        while data and not self.has_ended:
            if self._left:
                part = data[: self._left]
                self.buffer += part
                self._left -= len(part)
            else:
                part = data[: LENGTH_BYTES - len(self._length)]
                self._length += part
                if len(self._length) == LENGTH_BYTES:
                    self._left = int.from_bytes(self._length, "big")
                    self._length.clear()
                    self.has_ended = self._left == 0
            data = data[len(part) :]


class Connection:
    """One client inside the sandbox and its counterpart at the relay: first ask, then pass bytes."""

    def __init__(self, forwarder: Forwarder, client: socket.socket, target: str) -> None:
        self.target = target
        self._forwarder = forwarder
        self._loop = forwarder.loop
        self._client = client
        self._relay = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._up = Flow(client, self._relay)
        self._down = Flow(self._relay, client)
        self._is_open = False

    def start(self) -> None:
        """Ask the relay for the target."""
        self._client.setblocking(False)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._relay.setblocking(False)
        self._up.buffer += json.dumps({"target": self.target}).encode() + b"\n"
        self._loop.at(id(self), REPLY_TIMEOUT_S, lambda: self._end("the runner's relay does not answer"))
        try:
            self._relay.connect(self._forwarder.relay_path)  # at once or never, as Unix sockets go
        except OSError as e:
            self._end(f"the runner's relay cannot be reached: {e.strerror}")
        else:
            self._step()

    def _step(self) -> None:
        try:
            if not self._is_open and (problem := self._ask()):
                self._end(problem)
                return
            if self._is_open:
                self._up.read()
                self._down.read()
                if self._down.is_cut:
                    self._break_off()  # the relay told the reason to the logs
                    return
                self._up.write()
                self._down.write()
        except OSError as e:
            if self._is_open:
                self._break_off()
            else:
                self._end(f"the connection to the runner's relay broke: {e.strerror}")
            return
        if self._up.is_done and self._down.is_done:
            self._end("")
            return
        to_client = (READ * self._up.wants_data | WRITE * bool(self._down.buffer)) if self._is_open else 0
        self._loop.watch(self._client.fileno(), to_client, self._step)
        to_relay = READ * self._down.wants_data | WRITE * bool(self._up.buffer)
        self._loop.watch(self._relay.fileno(), to_relay, self._step)

    def _ask(self) -> str:
        """Pass on the request and look for the relay's answer; returns what is wrong, if something is."""
        self._up.write()
        self._down.read()
        line, newline, rest = self._down.buffer.partition(b"\n")
        if not newline:
            is_garbage = self._down.has_ended or len(line) > REPLY_BYTES
            return "the runner's relay gave no answer" if is_garbage else ""
        if line != b"ok":
            return line.decode("utf-8", "replace").removeprefix("error ")
        self._down = Download(self._relay, self._client, bytes(rest))
        self._loop.cancel(id(self))
        self._is_open = True
        return ""

    def _break_off(self) -> None:
        """Reset the client when it has read what came: some (all that use libuv) take a reset together with data for
        an end."""
        give_up_s = time.monotonic() + READ_TIMEOUT_S

        def look() -> None:
            try:
                self._down.write()
                is_behind = bool(self._down.buffer) or _is_unread(self._client)
            except OSError:
                is_behind = False  # it is gone; or there is no list of sockets here, then nothing can be known
            if is_behind and time.monotonic() < give_up_s:
                self._loop.at(id(self), LOOK_S, look)
            else:
                self._end("", is_cut=True)

        for sock in (self._client, self._relay):
            self._loop.forget(sock.fileno())
        look()

    def _end(self, problem: str, *, is_cut: bool = False) -> None:
        """Close both sides; the client sees a broken connection rather than an end when it is not a proper one."""
        self._loop.cancel(id(self))
        if problem or is_cut:
            # Closing then sends a reset.
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if problem:
            # Before the close, which may wake user code and end the call that the text belongs to.
            self._forwarder.tell(f"egress to {self.target}: {problem}")
        for sock in (self._client, self._relay):
            self._loop.forget(sock.fileno())
            sock.close()
        self._forwarder.ended(self)


def _is_unread(client: socket.socket) -> bool:
    """Has its other end, a socket of the same sandbox, still to read some of what was sent to it? Raises OSError."""
    us, them = client.getsockname()[1], client.getpeername()[1]
    return any(
        (ends == (us, them) and unsent) or (ends == (them, us) and unread) for ends, unsent, unread in _sockets()
    )


def _sockets() -> Iterator[tuple[tuple[int, int], bool, bool]]:
    """The TCP sockets of this sandbox: own and other port; are bytes on their way to the other, are bytes unread?"""
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(path, encoding="ascii") as lines:
            next(lines)
            for line in lines:
                _, own, other, _, queues, *_ = line.split()
                unsent, unread = queues.split(":")
                yield (int(own[-4:], 16), int(other[-4:], 16)), unsent != "00000000", unread != "00000000"
