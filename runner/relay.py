"""The relay of one sandbox: connects to what the sandbox asks for by name, if that is allowed, and passes the bytes.

User code can talk to it directly, so nothing about a request is sure and everything has a limit: the request, its time,
the connections at a time, the bytes of each. Only listed targets are served, and of those only what the function's own
list leaves; a name is resolved once and the checked address connected to, unless the target names its address itself.
Each connection leaves one line for the audit log. ``runner.sandbox`` makes one for each sandbox whose pool has egress.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from gevent.server import StreamServer

from bananas.addresses import is_public
from bananas.targets import Target, parse_target
from runner import outbound
from runner.egress import Caps
from runner.outbound import Refused, Resolve
from runner.transport import listen_unix

OnLog = Callable[[bytes], None]

REQUEST_BYTES = 300
REQUEST_TIMEOUT_S = 5.0
#: Without a byte in either direction.
IDLE_TIMEOUT_S = 300.0
CLOSE_TIMEOUT_S = 1.0
#: The forwarder opens the next connection when one has ended for it, which may be a moment before it has for us.
PLACE_TIMEOUT_S = 2.0
_CHUNK_BYTES = 64 * 1024
#: Before each piece that goes to the sandbox: its length. One of no bytes is the end; without it, it was cut.
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Event:
    """One connection that is over."""

    #: ``ok``, ``refused`` (never connected) or ``cut`` (ended before both sides were done, or at a limit).
    verdict: str
    #: As asked for, and the address that was connected to or tried last; empty when it did not come to that.
    target: str
    address: str
    function: str
    #: Ids of the jobs that ran when it began, with commas; connections belong to the sandbox and may outlive a call.
    jobs: str
    sent_bytes: int
    received_bytes: int
    ms: int
    reason: str


@dataclass(slots=True)
class _Connection:
    """What becomes of one; ``active_s`` is the monotonic time of the last byte in either direction."""

    jobs: str
    active_s: float
    verdict: str = "refused"
    target: str = ""
    address: str = ""
    sent_bytes: int = 0
    received_bytes: int = 0
    reason: str = ""

    def count(self, counter: str, number: int) -> int:
        """Add bytes of a direction; returns those of both."""
        setattr(self, counter, getattr(self, counter) + number)
        self.active_s = time.monotonic()
        return self.sent_bytes + self.received_bytes


@dataclass(slots=True)
class _Bound:
    """The function that the sandbox serves, and its running calls."""

    function: str = ""
    #: None: all targets of the pool.
    allowed: frozenset[str] | None = None
    calls: dict[str, OnLog] = field(default_factory=dict)
    #: Hear of refused connections too, of which elsewhere the forwarder tells.
    hearing_all: set[str] = field(default_factory=set)


class _Up:
    """From the sandbox to the target."""

    counter = "sent_bytes"

    def __init__(self, source: Any, sink: Any) -> None:
        self.source = source
        self.sink = sink

    def send(self, data: bytes) -> None:
        """All of it, waiting for a reader that is behind; raises OSError."""
        self.sink.sendall(data)

    def end(self) -> None:
        """No more will come."""
        self.sink.shutdown(socket.SHUT_WR)


class _Down(_Up):
    """From the target to the sandbox, in pieces, so that the forwarder never takes a cut for an end."""

    counter = "received_bytes"

    def send(self, data: bytes) -> None:
        super().send(_LENGTH.pack(len(data)) + data)

    def end(self) -> None:
        self.sink.sendall(_LENGTH.pack(0))


class Relay:
    """Serves the egress socket of one sandbox, in greenlets."""

    def __init__(
        self,
        path: Path,
        targets: Sequence[str],
        on_event: Callable[[Event], None],
        *,
        caps: Caps | None = None,
        resolve: Resolve = outbound.resolve,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """Listen at ``path`` for requests for one of ``targets`` (as in ``bananas.yaml``).

        ``on_event`` hears of each connection when it is over or was refused.
        """
        self._path = path
        self._targets: dict[str, Target] = {target.key: target for target in map(parse_target, targets)}
        self._on_event = on_event
        self._caps = caps or Caps()
        self._resolve = resolve
        self._idle_timeout_s = idle_timeout_s
        self._bound = _Bound()
        self._places = BoundedSemaphore(self._caps.connections)
        # Above the limit there is some room to wait and say no; beyond that, connections wait in the backlog.
        self._greenlets = Pool(2 * self._caps.connections)
        listener = listen_unix(path, self._caps.connections, gevent.socket.socket)
        self._server = StreamServer(listener, self._serve, spawn=self._greenlets)
        self._server.start()

    def bind(self, function: str, allowed: Sequence[str] | None) -> None:
        """The sandbox serves ``function`` now, which may reach only ``allowed`` (``host:port``) of its targets."""
        self._bound.function = function
        self._bound.allowed = None if allowed is None else frozenset(allowed)

    @contextlib.contextmanager
    def during(self, job: str, on_log: OnLog, *, hears_all: bool = False) -> Iterator[None]:
        """A call of the sandbox; what goes wrong with a connection in its middle is told to its log. ``hears_all``: and
        what is refused, for a call whose log has not what the forwarder tells."""
        self._bound.calls[job] = on_log
        if hears_all:
            self._bound.hearing_all.add(job)
        try:
            yield
        finally:
            del self._bound.calls[job]
            self._bound.hearing_all.discard(job)

    def close(self) -> None:
        """End every connection and stop listening. Idempotent."""
        self._server.close()
        self._greenlets.kill(timeout=CLOSE_TIMEOUT_S)
        self._path.unlink(missing_ok=True)

    # -- one connection ---------------------------------------------------------------------------------------

    def _serve(self, client: Any, _: Any) -> None:
        began_s = time.monotonic()
        connection = _Connection(",".join(self._bound.calls), began_s)
        try:
            with client:
                has_place = self._places.acquire(timeout=PLACE_TIMEOUT_S)
                try:
                    self._serve_in_place(client, connection, has_place)
                finally:
                    if has_place:
                        self._places.release()
        except gevent.GreenletExit:
            connection.reason = "the sandbox ended"
            raise
        except OSError as e:
            connection.reason = str(e)
        finally:
            self._report(connection, round((time.monotonic() - began_s) * 1000))

    def _serve_in_place(self, client: Any, connection: _Connection, has_place: bool) -> None:
        upstream = self._open(client, connection, has_place)
        if upstream is not None:
            connection.verdict = "ok"
            with upstream:
                self._pipe(client, upstream, connection)

    def _tell(self, connection: _Connection) -> None:
        """Put what went wrong into the logs of the calls: before code can see it, and be over."""
        line = f"bananas: egress to {connection.target}: {connection.reason}\n".encode()
        for job, on_log in list(self._bound.calls.items()):
            if connection.verdict == "cut" or job in self._bound.hearing_all:
                on_log(line)

    def _report(self, connection: _Connection, ms: int) -> None:
        self._on_event(
            Event(
                verdict=connection.verdict,
                target=connection.target,
                address=connection.address,
                function=self._bound.function,
                jobs=connection.jobs,
                sent_bytes=connection.sent_bytes,
                received_bytes=connection.received_bytes,
                ms=ms,
                reason=connection.reason,
            )
        )

    def _open(self, client: Any, connection: _Connection, has_place: bool) -> Any:
        """The connection to what the sandbox asks for, or None when it was refused."""
        try:
            asked = connection.target = self._read_request(client)
            if not has_place:
                raise Refused(
                    f"the sandbox has {self._caps.connections} connections open already, which is the limit "
                    "(BANANAS_EGRESS_CONNECTIONS)"
                )
            target = self._targets.get(asked)
            if target is None:
                raise Refused("the target is not in the pool's egress list")
            if self._bound.allowed is not None and asked not in self._bound.allowed:
                raise Refused(f"the target is not in the egress list of function {self._bound.function!r}")
            upstream = self._connect(target, connection)
        except Refused as e:
            connection.reason = str(e)
            self._tell(connection)
            client.settimeout(REQUEST_TIMEOUT_S)
            client.sendall(f"error {e}\n".encode())
            return None
        client.sendall(b"ok\n")
        return upstream

    @staticmethod
    def _read_request(client: Any) -> str:
        """The target in the sandbox's first line."""
        line = b""
        with gevent.Timeout(REQUEST_TIMEOUT_S, Refused(f"no request within {REQUEST_TIMEOUT_S:g} s")):
            # Nothing follows the line before our answer does, so reading on cannot take bytes of the stream.
            while not line.endswith(b"\n"):
                data = client.recv(REQUEST_BYTES + 1 - len(line))
                line += data
                if not data or len(line) > REQUEST_BYTES:
                    raise Refused(f"the request is not one line of at most {REQUEST_BYTES} bytes")
        try:
            target = json.loads(line)["target"]
        except (ValueError, TypeError, KeyError, RecursionError):
            target = None
        if not isinstance(target, str) or not target.isascii() or not target.isprintable():
            raise Refused('the request is not {"target": "host:port"}')
        return target

    def _connect(self, target: Target, connection: _Connection) -> Any:
        def trying(address: str) -> None:
            connection.address = address

        return outbound.connect(lambda: self._addresses(target), target.port, trying)

    def _addresses(self, target: Target) -> Sequence[str]:
        """Where the target may be reached: the address that it names itself, else the public ones of its name."""
        if target.address is not None:
            return [target.address]
        found = outbound.look_up(target.host, self._resolve)
        public = [address for address in found if is_public(address)]
        if found and not public:
            raise Refused(
                f"the name resolves to {found[0]}, which is not a public address; if it is meant, list "
                f"{target.host}={found[0]}:{target.port} in the pool's egress"
            )
        return public

    # -- passing bytes ----------------------------------------------------------------------------------------

    def _pipe(self, client: Any, upstream: Any, connection: _Connection) -> None:
        """Pass bytes both ways until both directions have ended, one is broken, or nothing moved for too long."""
        connection.active_s = time.monotonic()
        for sock in (client, upstream):
            sock.settimeout(self._idle_timeout_s)  # of a sendall to a side that does not read
        up = gevent.spawn(self._flow, _Up(client, upstream), connection)
        try:
            self._flow(_Down(upstream, client), connection)
            up.join()
        finally:
            up.kill(timeout=CLOSE_TIMEOUT_S)

    def _flow(self, way: _Up, connection: _Connection) -> None:
        """One direction. A failure ends the other one too: both sockets are shut down both ways."""
        failing = way.source
        try:
            while data := self._receive(way.source, connection):
                failing = way.sink
                way.send(data)
                failing = None
                if connection.count(way.counter, len(data)) > self._caps.connection_bytes:
                    mb = self._caps.connection_bytes / (1024 * 1024)
                    raise OSError(f"more than {mb:g} MiB passed, the limit of a connection (BANANAS_EGRESS_MB)")
                failing = way.source
            failing = way.sink
            way.end()
        except OSError as e:
            if not connection.reason:
                # Code that closes its end early is its own affair; it needs no telling.
                is_own = failing is not None and failing.family == socket.AF_UNIX and not isinstance(e, TimeoutError)
                connection.verdict = "ok" if is_own else "cut"
                connection.reason = "the sandbox closed it" if is_own else str(e)
                if not is_own:
                    self._tell(connection)
            for sock in (way.source, way.sink):
                # Not connected any more: that is what is wanted.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _receive(self, source: Any, connection: _Connection) -> bytes:
        """The next bytes, empty at the end. While the other direction is busy, silence in this one is no idleness."""
        while (left_s := connection.active_s + self._idle_timeout_s - time.monotonic()) > 0:
            # Not by the socket's own timeout, which the other direction uses for sending.
            with contextlib.suppress(TimeoutError), gevent.Timeout(left_s, TimeoutError()):
                data: bytes = source.recv(_CHUNK_BYTES)
                return data
        raise TimeoutError(f"nothing was sent for {self._idle_timeout_s:g} s")
