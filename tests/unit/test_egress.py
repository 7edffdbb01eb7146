"""What a sandbox may reach: the plan of its routes, which addresses count as public, and what the relay refuses."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest
from gevent.server import StreamServer

from bananas.errors import ConfigError
from runner import egress
from runner.egress import Relay, Route
from runner.transport import SocketListener


def test_each_name_gets_a_loopback_address_of_its_own() -> None:
    """Two targets may share a port, two ports of a name share its address, doubles vanish."""
    routes = egress.plan(["a.example:443", "b.example:443", "A.example:25", "127.0.0.1:6000", "a.example:443"])
    assert routes == [
        Route("a.example", "127.66.0.1", 443),
        Route("b.example", "127.66.0.2", 443),
        Route("A.example", "127.66.0.1", 25),
        Route("127.0.0.1", "127.0.0.1", 6000),
    ]
    assert egress.extra_hosts(routes) == {
        "a.example": "127.66.0.1",
        "b.example": "127.66.0.2",
        "A.example": "127.66.0.1",
    }
    assert egress.plan([]) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("10.0.0.5:25", "10.0.0.5:25 is not possible: a sandbox has no network .* Give a DNS name"),
        ("93.184.216.34:443", "no route to an address"),
        ("127.66.0.9:25", "outside 127.66.0.0/24"),
        ("127.1:25", "neither a DNS name nor a complete IPv4 address"),
        ("300.1.1.1:25", "neither a DNS name"),
        ("localhost:25", "is the sandbox itself; 127.0.0.1 with a port means the runner's machine"),
        ("x.localhost.:25", "is the sandbox itself"),
        ("example.com", "'example.com' is not host:port; write for example smtp.example.com:587"),
        ("example.com:0", "is not host:port"),
        ("example.com:65536", "is not host:port"),
        ("ex ample.com:25", "is not host:port"),
    ],
)
def test_a_target_that_cannot_work_is_refused_with_the_reason(target: str, message: str) -> None:
    """At deploy or start, not at the first connection."""
    with pytest.raises(ConfigError, match=message):
        egress.plan(["fine.example:1", target])


def test_more_names_than_addresses_are_refused() -> None:
    """One address per name, from one network."""
    assert egress.plan([f"n{n}.example:1" for n in range(254)])[-1].ip == "127.66.0.254"
    with pytest.raises(ConfigError, match=r"n254\.example:1 is one name too many; 254 are possible"):
        egress.plan([f"n{n}.example:1" for n in range(255)])


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.5",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%2",
        "fec0::1",
        "fc00::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a00:1::1",
    ],
)
def test_addresses_of_machines_nearby_are_not_public(address: str) -> None:
    """Also when they hide in an IPv6 address."""
    assert not egress.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """IPv4 and IPv6."""
    assert egress.is_public(address)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bn-") as name:
        yield Path(name)


class Bench:
    """A relay, the events it reported, and a TCP server that it may reach."""

    def __init__(self, directory: Path, serve: Callable[[Any, Any], None]) -> None:
        self._directory = directory
        self.events: list[dict[str, Any]] = []
        self.has_event = gevent.event.Event()
        self.server = StreamServer(("127.0.0.1", 0), serve)
        self.server.start()
        self.port: int = self.server.server_port
        self.relay: Relay | None = None

    def start(self, *targets: str, **options: Any) -> None:
        self.relay = Relay(self._directory / "e", targets or [f"127.0.0.1:{self.port}"], self._on_event, **options)

    def _on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.has_event.set()

    def connect(self, request: bytes | None = None) -> Any:
        """A connection as the forwarder makes it, with the request sent."""
        client = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(10)
        client.connect(str(self._directory / "e"))
        if request is None:
            request = json.dumps({"target": f"127.0.0.1:{self.port}"}).encode() + b"\n"
        client.sendall(request)
        return client

    def ask(self, target: str) -> bytes:
        """The relay's answer to a request for a target."""
        with self.connect(json.dumps({"target": target}).encode() + b"\n") as client:
            return read_all(client)

    def event(self) -> dict[str, Any]:
        """The next event, which must come."""
        assert self.has_event.wait(10)
        self.has_event.clear()
        return self.events[-1]

    def close(self) -> None:
        if self.relay is not None:
            self.relay.close()
        self.server.stop(timeout=1)


def read_all(sock: Any) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def read_exactly(sock: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, data
        data += more
    return data


def echo(sock: Any, _: Any) -> None:
    """Give back what comes, then say goodbye after the end."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.sendall(b"bye")


@pytest.fixture
def bench(directory: Path) -> Iterator[Bench]:
    bench = Bench(directory, echo)
    yield bench
    bench.close()


def test_bytes_pass_both_ways_and_an_end_passes_on(bench: Bench) -> None:
    """The half-close of one side reaches the other, whose answer still comes back; then it is reported."""
    bench.start()
    with bench.connect() as client:
        assert read_exactly(client, 3) == b"ok\n"
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"bye"
    event = bench.event()
    assert event.pop("ms") >= 0
    assert event == {
        "event": "closed",
        "target": f"127.0.0.1:{bench.port}",
        "address": "127.0.0.1",
        "sent_bytes": 5,
        "received_bytes": 8,
        "reason": "",
    }


def test_megabytes_pass_unharmed(bench: Bench) -> None:
    """More than all buffers on the way together."""
    bench.start()
    blob = bytes(range(256)) * 40_000
    with bench.connect() as client:
        read_exactly(client, 3)
        sender = gevent.spawn(client.sendall, blob)
        assert read_exactly(client, len(blob)) == blob
        sender.get(timeout=5)
    assert bench.event()["sent_bytes"] == len(blob)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (["10.0.0.5", "127.0.0.1"], "the name resolves to 10.0.0.5, which is not a public address"),
        (["169.254.169.254"], "the name resolves to 169.254.169.254, which is not a public address"),
        (["::ffff:127.0.0.1"], "the name resolves to ::ffff:127.0.0.1, which is not a public address"),
        ([], "the name has no address"),
        (socket.gaierror(-2, "Name or service not known"), "the name does not resolve: "),
        (UnicodeError("label too long"), "the name does not resolve: label too long"),
    ],
)
def test_a_name_that_leads_nowhere_good_is_refused(bench: Bench, found: Sequence[str] | Exception, reason: str) -> None:
    """Whatever DNS says, nothing near the runner is reached by a name; the sandbox and the audit log learn why."""

    def resolve(host: str) -> Sequence[str]:
        assert host == "evil.example"
        if isinstance(found, Exception):
            raise found
        return found

    bench.start(f"evil.example:{bench.port}", resolve=resolve)
    answer = bench.ask(f"evil.example:{bench.port}")
    assert answer.startswith(b"error " + reason.encode())
    assert answer.endswith(b"\n")
    event = bench.event()
    assert (event["event"], event["target"]) == ("refused", f"evil.example:{bench.port}")
    assert event["reason"].startswith(reason)


def test_the_name_is_resolved_once_and_the_checked_address_connected_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes between check and connection gains nothing. Here, connecting is made to fail."""
    asked: list[str] = []

    def resolve(host: str) -> Sequence[str]:
        asked.append(host)
        return ["10.0.0.1", "2001:4860:4860::8888", "8.8.8.8"]

    tried: list[Any] = []

    class Socket(gevent.socket.socket):  # type: ignore[misc, name-defined]
        def connect(self, address: Any) -> None:
            tried.append(address)
            raise OSError(101, "Network is unreachable")

    bench.start("name.example:443", resolve=resolve)
    client = bench.connect(b'{"target": "name.example:443"}\n')
    monkeypatch.setattr(gevent.socket, "socket", Socket)
    assert read_all(client) == b"error 8.8.8.8: Network is unreachable\n"
    client.close()
    assert (asked, tried) == (["name.example"], [("2001:4860:4860::8888", 443), ("8.8.8.8", 443)])


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "other.example:443", "Name.example:443", "name.example:443 ", "name.example.:443", "127.1:443", ""],
)
def test_only_listed_targets_are_served(bench: Bench, target: str) -> None:
    """By the letter: no other spelling of a listed target is one."""
    bench.start("name.example:443", "127.0.0.1:443")
    assert bench.ask(target) == b"error the target is not in the pool's egress list\n"
    assert bench.event()["event"] == "refused"


@pytest.mark.parametrize(
    "request_line",
    [b"\n", b"{}\n", b"[]\n", b'{"target": 5}\n', b"GET / HTTP/1.1\r\n\r\n", b'{"target": "a\\nb:1"}\n', b"\xff\n"],
)
def test_a_request_that_is_none_is_refused(bench: Bench, request_line: bytes) -> None:
    """User code can talk to the relay directly."""
    bench.start()
    with bench.connect(request_line) as client:
        assert b'error the request is not {"target": "host:port"}\n' in read_all(client) + b"\n"
    assert bench.event()["target"] == ""


def test_a_request_that_is_too_long_or_unfinished_is_refused(bench: Bench) -> None:
    """The relay keeps at most one line."""
    bench.start()
    expected = b"error the request is not one line of at most 300 bytes\n"
    with bench.connect(b"x" * 301) as client:
        assert read_all(client) == expected
    with bench.connect(b'{"target"') as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == expected


def test_a_sandbox_that_says_nothing_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request ends after a while (5 s; less here)."""
    monkeypatch.setattr(egress, "REQUEST_TIMEOUT_S", 0.1)
    bench.start()
    with bench.connect(b"") as client:
        assert read_all(client) == b"error no request within 0.1 s\n"


def test_a_port_that_nobody_listens_on_is_an_error(bench: Bench, free_port: int) -> None:
    """The answer names the address and what the system said."""
    bench.start(f"127.0.0.1:{free_port}")
    assert bench.ask(f"127.0.0.1:{free_port}") == b"error 127.0.0.1: Connection refused\n"


def test_dns_that_does_not_answer_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a connection that hangs."""
    monkeypatch.setattr(egress, "RESOLVE_TIMEOUT_S", 0.1)
    bench.start("slow.example:1", resolve=lambda host: gevent.sleep(10) or [])
    assert bench.ask("slow.example:1") == b"error no answer from DNS within 0.1 s\n"


def test_a_connection_without_traffic_ends(bench: Bench) -> None:
    """Idle means no byte in either direction."""
    bench.start(idle_timeout_s=0.2)
    with bench.connect() as client:
        assert read_exactly(client, 3) == b"ok\n"
        assert read_all(client) in (b"", b"bye")
    assert bench.event()["reason"] == "nothing was sent for 0.2 s"


def test_a_connection_with_traffic_one_way_is_not_idle(directory: Path) -> None:
    """A long download is no silence, though the client says nothing."""

    def drip(sock: Any, _: Any) -> None:
        for _ in range(10):
            gevent.sleep(0.1)
            sock.sendall(b".")

    bench = Bench(directory, drip)
    try:
        bench.start(idle_timeout_s=0.5)
        with bench.connect() as client:
            assert read_exactly(client, 13) == b"ok\n.........."
    finally:
        bench.close()


def test_a_reader_that_stops_holds_up_its_sender_and_takes_no_memory(directory: Path) -> None:
    """Backpressure: what nobody reads is not read from the other side."""
    sent = 0

    def flood(sock: Any, _: Any) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):  # at the end of the test
            while True:
                sent += sock.send(b"x" * 65536)

    bench = Bench(directory, flood)
    try:
        bench.start()
        with bench.connect() as client:
            read_exactly(client, 3)
            before = -1
            while sent != before:
                before = sent
                gevent.sleep(0.1)
            assert sent < 20_000_000
            read_exactly(client, before)
            assert sent > before
    finally:
        bench.close()


def test_a_sandbox_has_a_bounded_number_of_connections(bench: Bench) -> None:
    """One more is told so; when one ends there is room again."""
    bench.start()
    clients = [bench.connect() for _ in range(egress.MAX_CONNECTIONS)]
    for client in clients:
        assert read_exactly(client, 3) == b"ok\n"
    with bench.connect() as extra:
        assert read_all(extra).startswith(b"error the sandbox has 32 connections open already")
    assert bench.event()["event"] == "refused"
    clients.pop().close()
    assert bench.event()["event"] == "closed"
    with bench.connect() as again:
        assert read_exactly(again, 3) == b"ok\n"
    for client in clients:
        client.close()


def test_closing_ends_every_connection(bench: Bench, directory: Path) -> None:
    """A sandbox that is gone leaves nothing open; closing twice is fine."""
    bench.start()
    assert bench.relay is not None
    with bench.connect() as client:
        read_exactly(client, 3)
        bench.relay.close()
        assert client.recv(1) == b""
    assert bench.event()["reason"] == "the sandbox ended"
    assert not (directory / "e").exists()
    bench.relay.close()


def test_the_relays_socket_is_open_to_the_sandboxes_user(bench: Bench, directory: Path) -> None:
    """uid 65534 connects through a read-only mount."""
    bench.start()
    assert (directory / "e").stat().st_mode & 0o777 == 0o666


def test_the_listener_takes_one_connection_and_is_gone(directory: Path) -> None:
    """Nobody else can ever be the sandbox."""
    path = directory / "s"
    listener = SocketListener(path)
    assert path.stat().st_mode & 0o777 == 0o666
    client = socket.socket(socket.AF_UNIX)
    thread = threading.Thread(target=client.connect, args=[str(path)])
    thread.start()
    channel = listener.accept(5)
    thread.join(5)
    assert not path.exists()
    listener.close()
    channel.sendall(b"hi")
    channel.half_close()
    assert client.recv(10) == b"hi"
    assert client.recv(10) == b""
    client.sendall(b"still")
    buffer = bytearray(10)
    channel.settimeout(5)
    assert channel.recv_into(memoryview(buffer)) == 5
    channel.settimeout(0.05)
    with pytest.raises(TimeoutError):
        channel.recv_into(memoryview(buffer))
    channel.close()
    channel.close()
    client.close()


def test_a_listener_that_nobody_connects_to_says_so(directory: Path) -> None:
    """With the path, since a wrong mount is the usual reason."""
    listener = SocketListener(directory / "s")
    with pytest.raises(TimeoutError, match=f"nothing connected to {directory}/s within 0.05 s"):
        listener.accept(0.05)
    listener.close()
    assert not (directory / "s").exists()


def test_a_path_that_is_too_long_for_a_socket_is_named(directory: Path) -> None:
    """With its length, the limit and what to change."""
    fits = directory / ("x" * (107 - len(str(directory)) - 1))
    SocketListener(fits).close()
    too_long = fits.with_name(fits.name + "x")
    with pytest.raises(ConfigError, match="has 108 bytes and the kernel allows 107; set BANANAS_STATE_DIR"):
        SocketListener(too_long)
