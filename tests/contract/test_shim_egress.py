"""User code reaches what is in ``egress``, through the real forwarder in the shim and the real relay in the runner."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

from runner import framing
from runner.egress import Caps
from runner.relay import Event, Relay
from tests.contract.shim_host import Answer, ShimHost

Serve = Callable[[Any, Any], None]

#: Where the forwarder listens. In a sandbox /etc/hosts sends the target's name there.
INSIDE = "127.66.0.1"

SOURCE = """
import socket, threading, time

def connect(port):
    sock = socket.create_connection(("127.66.0.1", port), timeout=10)
    return sock

def read_all(sock):
    data = b""
    while more := sock.recv(65536):
        data += more
    return data

def handle(event, context):
    return globals()[event["do"]](event["port"])

def talk(port):
    with connect(port) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock).decode()

def refused(port):
    try:
        with connect(port) as sock:
            return read_all(sock).decode()
    except ConnectionResetError:  # so soon that it may be connect that says it
        return "reset"

def until_broken_after_its_end(port):
    return until_broken(port, is_half=True)

def until_broken(port, is_half=False, after_s=0):
    got = 0
    with connect(port) as sock:
        sock.sendall(b"go")
        if is_half:
            sock.shutdown(socket.SHUT_WR)
        time.sleep(after_s)
        try:
            while more := sock.recv(65536):
                got += len(more)
        except ConnectionResetError:
            return ["reset", got]
        return ["end", got]

def late(port):
    return until_broken(port, after_s=0.5)

def much(port):
    blob = bytes(range(256)) * 40_000
    with connect(port) as sock:
        def send():
            sock.sendall(blob)
            sock.shutdown(socket.SHUT_WR)
        threading.Thread(target=send).start()
        return read_all(sock) == blob + b"bye"

def many(port):
    # More than may be open at a time: the rest waits until there is room.
    socks = [connect(port) for _ in range(40)]
    for sock in socks:
        sock.sendall(b"x")
        sock.shutdown(socket.SHUT_WR)
    answers = [read_all(sock) for sock in socks]
    for sock in socks:
        sock.close()
    return [answer.decode() for answer in answers]
"""


def echo(sock: Any, _: Any) -> None:
    """Give back what comes, then say goodbye after the end."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.sendall(b"bye")


class Network:
    """A TCP server on the runner's machine, and a sandbox with a way to it."""

    def __init__(self, host: ShimHost, port: int, events: list[Event], relay: Relay) -> None:
        self._host = host
        self.port = port
        self.events = events
        self.relay = relay

    def call(self, do: str) -> Answer:
        """One call. It blocks in a thread of its own, since the relay runs here, in this thread's greenlets."""
        payload = {"do": do, "port": self.port}
        answer: Answer = gevent.get_hub().threadpool.apply(self._host.call, [payload])
        return answer


@contextmanager
def network(*targets: str, serve: Serve = echo, caps: Caps | None = None) -> Iterator[Network]:
    """The way leads to the server's address; ``targets`` are what the relay allows instead of just that."""
    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    port: int = server.server_port
    events: list[Event] = []
    # A sandbox has loopback addresses of its own. Here both sides share them, so the route goes by another one.
    host = ShimHost(SOURCE, egress=[{"name": "127.0.0.1", "ip": INSIDE, "port": port}])
    relay = Relay(host.root / "e", targets or [f"127.0.0.1:{port}"], events.append, caps=caps)
    try:
        with host:
            host.ready()
            yield Network(host, port, events, relay)
            relay.close()
    finally:
        relay.close()
        server.stop(timeout=1)


def test_an_unmodified_client_reaches_a_listed_target() -> None:
    """Bytes and ends pass in both directions, through all of it; the audit log has both counts."""
    with network() as net:
        assert net.call("talk").json() == "hellobye"
        assert [(e.verdict, e.sent_bytes, e.received_bytes) for e in net.events] == [("ok", 5, 8)]
        assert net.call("talk").json() == "hellobye"


def test_megabytes_pass_in_both_directions_at_once() -> None:
    """More than every buffer on the way, so each side has to wait for the other one."""
    with network() as net:
        assert net.call("much").json() is True


def test_more_connections_than_the_limit_wait_for_their_turn() -> None:
    """None is refused, since the forwarder takes no more than the relay does."""
    with network() as net:
        assert net.call("many").json() == ["xbye"] * 40
        assert {e.verdict for e in net.events} == {"ok"}


def test_a_refused_target_is_reset_and_the_reason_is_in_the_logs() -> None:
    """The relay decides, whatever the sandbox believes to be allowed."""
    with network("127.0.0.1:1") as net:
        answer = net.call("refused")
        assert answer.json() == "reset"
        expected = f"bananas: egress to 127.0.0.1:{net.port}: the target is not in the pool's egress list\n"
        assert answer.logs.decode() == expected
        assert [e.verdict for e in net.events] == ["refused"]


def test_a_relay_that_is_gone_breaks_the_connection_and_the_reason_is_in_the_logs() -> None:
    """Nothing hangs in a sandbox whose runner gave the relay up."""
    with network() as net:
        (net._host.root / "e").unlink()
        answer = net.call("refused")
        assert answer.json() == "reset"
        assert b"the runner's relay cannot be reached: No such file" in answer.logs


def test_a_port_that_is_taken_ends_the_sandbox_with_the_reason() -> None:
    """Before any call, and with the address."""
    with socket.socket() as taken:
        taken.bind((INSIDE, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with ShimHost(egress=[{"name": "a.example", "ip": INSIDE, "port": port}]) as host:
            last = host.answer()
    assert last.frame.kind == framing.EXIT
    assert last.meta["reason"] == f"egress: [Errno 98] cannot listen on {INSIDE}:{port}: Address already in use"


def test_user_code_does_not_hold_the_forwarders_listeners() -> None:
    """The worker has the protocol's socket and no other."""
    source = (
        "import os, stat\n"
        "def handle(event, context):\n"
        "    fds = [int(fd) for fd in os.listdir('/proc/self/fd')]\n"
        "    found = 0\n"
        "    for fd in fds:\n"
        "        try: found += stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
        "        except OSError: pass\n"
        "    return found\n"
    )
    with socket.socket() as probe:
        probe.bind((INSIDE, 0))
        port = probe.getsockname()[1]
    with ShimHost(source, egress=[{"name": "a.example", "ip": INSIDE, "port": port}]) as host:
        assert host.ready().call().json() == 1


@pytest.mark.parametrize("reply", [b"", b"x" * 600, b"error no such thing\n"])
def test_a_relay_that_answers_nonsense_gives_no_connection(reply: bytes) -> None:
    """Only ``ok`` opens a connection; everything else is told to user code."""

    def nonsense(sock: Any, _: Any) -> None:
        sock.recv(300)
        sock.sendall(reply)

    with network() as net:
        path = net._host.root / "e"
        path.unlink()
        listener = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(5)
        server = StreamServer(listener, nonsense)
        server.start()
        try:
            answer = net.call("refused")
        finally:
            server.stop(timeout=1)
        assert answer.json() == "reset"
        wanted = b"no such thing" if reply.startswith(b"error") else b"the runner's relay gave no answer"
        assert answer.logs == b"bananas: egress to 127.0.0.1:%d: %s\n" % (net.port, wanted)


def flood(sock: Any, _: Any) -> None:
    """Send without end."""
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"x" * 65536)


def test_a_connection_over_its_bytes_is_an_error_that_code_sees_and_a_line_in_its_log() -> None:
    """A part of a download never looks like the whole, also not after a half-close."""
    with network(serve=flood, caps=Caps(connection_bytes=1024 * 1024)) as net:
        told: list[bytes] = []
        with net.relay.during("job", told.append):
            for do in ["until_broken", "until_broken_after_its_end"] * 20:
                kind, got = net.call(do).json()
                assert (do, kind) == (do, "reset")
                assert 0 < got <= 1024 * 1024 + 65536
        assert b"more than 1 MiB passed, the limit of a connection (BANANAS_EGRESS_MB)" in told[0]


def test_a_relay_that_ends_in_the_middle_breaks_the_connection() -> None:
    """The runner gave the sandbox up, or died."""

    def waits(sock: Any, _: Any) -> None:
        sock.recv(2)
        sock.sendall(b"abc")
        net.relay.close()

    with network(serve=waits) as net:
        assert net.call("until_broken").json() in (["reset", 3], ["reset", 0])


def say_much(sock: Any, _: Any) -> None:
    """Send 100,000 bytes after the first ones that come, and wait for the end."""
    sock.recv(2)
    sock.sendall(b"x" * 100_000)
    with contextlib.suppress(OSError):
        sock.recv(1)


def test_code_reads_what_came_before_the_cut() -> None:
    """The reset waits for a reader that is behind."""
    with network(serve=say_much, caps=Caps(connection_bytes=100_001)) as net:
        assert net.call("late").json() == ["reset", 100_000]
