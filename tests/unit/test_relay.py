"""What a relay lets through, what it refuses, and what each connection leaves behind."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.socket
import pytest
from gevent.server import StreamServer

from runner import outbound, relay
from runner.egress import Caps
from runner.relay import Event, Relay


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bn-") as name:
        yield Path(name)


class Bench:
    """A relay, the events it reported, and a TCP server that it may reach."""

    def __init__(self, directory: Path, serve: Callable[[Any, Any], None]) -> None:
        self._directory = directory
        self.events: list[Event] = []
        self.has_event = gevent.event.Event()
        self.server = StreamServer(("127.0.0.1", 0), serve)
        self.server.start()
        self.port: int = self.server.server_port
        self.relay: Relay | None = None

    def start(self, *targets: str, **options: Any) -> None:
        self.relay = Relay(self._directory / "e", targets or [f"127.0.0.1:{self.port}"], self._on_event, **options)

    def _on_event(self, event: Event) -> None:
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

    def event(self) -> Event:
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


def read_piece(sock: Any) -> bytes:
    """What comes after ``ok`` is in pieces; one of no bytes is the end."""
    return read_exactly(sock, int.from_bytes(read_exactly(sock, 4), "big"))


def read_pieces(sock: Any, count: int) -> bytes:
    """So many bytes, in however many pieces."""
    data = b""
    while len(data) < count:
        piece = read_piece(sock)
        assert piece, data
        data += piece
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
        assert read_piece(client) == b"hello"
        client.shutdown(socket.SHUT_WR)
        assert (read_piece(client), read_piece(client), read_all(client)) == (b"bye", b"", b"")
    event = bench.event()
    target = f"127.0.0.1:{bench.port}"
    assert event == Event("ok", target, "127.0.0.1", "", "", 5, 8, event.ms, "")
    assert event.ms >= 0


def test_megabytes_pass_unharmed(bench: Bench) -> None:
    """More than all buffers on the way together."""
    bench.start()
    blob = bytes(range(256)) * 40_000
    with bench.connect() as client:
        read_exactly(client, 3)
        sender = gevent.spawn(client.sendall, blob)
        assert read_pieces(client, len(blob)) == blob
        sender.get(timeout=5)
    assert bench.event().sent_bytes == len(blob)


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
    assert (event.verdict, event.target) == ("refused", f"evil.example:{bench.port}")
    assert event.reason.startswith(reason)


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
    assert bench.event().verdict == "refused"


@pytest.mark.parametrize(
    "request_line",
    [b"\n", b"{}\n", b"[]\n", b'{"target": 5}\n', b"GET / HTTP/1.1\r\n\r\n", b'{"target": "a\\nb:1"}\n', b"\xff\n"],
)
def test_a_request_that_is_none_is_refused(bench: Bench, request_line: bytes) -> None:
    """User code can talk to the relay directly."""
    bench.start()
    with bench.connect(request_line) as client:
        assert b'error the request is not {"target": "host:port"}\n' in read_all(client) + b"\n"
    assert bench.event().target == ""


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
    monkeypatch.setattr(relay, "REQUEST_TIMEOUT_S", 0.1)
    bench.start()
    with bench.connect(b"") as client:
        assert read_all(client) == b"error no request within 0.1 s\n"


def test_a_port_that_nobody_listens_on_is_an_error(bench: Bench, free_port: int) -> None:
    """The answer names the address and what the system said."""
    bench.start(f"127.0.0.1:{free_port}")
    assert bench.ask(f"127.0.0.1:{free_port}") == b"error 127.0.0.1: Connection refused\n"


def test_dns_that_does_not_answer_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a connection that hangs."""
    monkeypatch.setattr(outbound, "RESOLVE_TIMEOUT_S", 0.1)
    bench.start("slow.example:1", resolve=lambda host: gevent.sleep(10) or [])
    assert bench.ask("slow.example:1") == b"error no answer from DNS within 0.1 s\n"


def test_a_connection_without_traffic_ends(bench: Bench) -> None:
    """Idle means no byte in either direction."""
    bench.start(idle_timeout_s=0.2)
    with bench.connect() as client:
        assert read_exactly(client, 3) == b"ok\n"
        assert read_all(client) in (b"", b"bye")
    assert bench.event().reason == "nothing was sent for 0.2 s"


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
            assert read_exactly(client, 3) == b"ok\n"
            assert read_pieces(client, 10) == b".........."
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
    clients = [bench.connect() for _ in range(Caps().connections)]
    for client in clients:
        assert read_exactly(client, 3) == b"ok\n"
    with bench.connect() as extra:
        assert read_all(extra).startswith(b"error the sandbox has 32 connections open already")
    assert bench.event().verdict == "refused"
    clients.pop().close()
    assert bench.event().verdict == "ok"
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
    assert bench.event().reason == "the sandbox ended"
    assert not (directory / "e").exists()
    bench.relay.close()


def test_the_relays_socket_is_open_to_the_sandboxes_user(bench: Bench, directory: Path) -> None:
    """uid 65534 connects through a read-only mount."""
    bench.start()
    assert (directory / "e").stat().st_mode & 0o777 == 0o666


def test_a_connection_is_cut_at_its_bytes(bench: Bench) -> None:
    """Both directions count together; the running calls and the audit log are told the limit and its setting."""
    bench.start(caps=Caps(connection_bytes=1024 * 1024))
    told: list[bytes] = []
    assert bench.relay is not None
    with bench.relay.during("job1", told.append), bench.connect() as client:
        read_exactly(client, 3)
        with contextlib.suppress(OSError):  # the other end is closed under us, that is the point
            while True:
                client.sendall(b"x" * 65536)
                if not client.recv(65536):
                    break
        event = bench.event()
    reason = "more than 1 MiB passed, the limit of a connection (BANANAS_EGRESS_MB)"
    assert (event.verdict, event.reason, event.jobs) == ("cut", reason, "job1")
    assert 1024 * 1024 < event.sent_bytes + event.received_bytes <= 1024 * 1024 + 3 * 65536
    assert told == [f"bananas: egress to 127.0.0.1:{bench.port}: {reason}\n".encode()]


def test_a_server_that_breaks_off_is_a_cut_and_code_that_does_is_not(directory: Path) -> None:
    """A download that ended early must not look like a whole one; what code gives up itself needs no line."""

    def reset(sock: Any, _: Any) -> None:
        sock.sendall(b"part")
        sock.recv(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    bench = Bench(directory, reset)
    told: list[bytes] = []
    try:
        bench.start()
        assert bench.relay is not None
        with bench.relay.during("job1", told.append):
            with bench.connect() as client:
                assert read_exactly(client, 3) == b"ok\n"
                assert read_piece(client) == b"part"
                client.sendall(b"more")
                assert client.recv(10) == b""  # no piece, so this is not the end
                assert bench.event().verdict == "cut"
            assert told == [
                f"bananas: egress to 127.0.0.1:{bench.port}: [Errno 104] Connection reset by peer\n".encode()
            ]
    finally:
        bench.close()


def test_code_that_gives_up_a_download_is_told_nothing(directory: Path) -> None:
    """It is its own affair."""

    def flood(sock: Any, _: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"x" * 65536)

    bench = Bench(directory, flood)
    told: list[bytes] = []
    try:
        bench.start()
        assert bench.relay is not None
        with bench.relay.during("job1", told.append):
            with bench.connect() as client:
                read_exactly(client, 100_000)
            event = bench.event()
        assert (event.verdict, event.reason, told) == ("ok", "the sandbox closed it", [])
    finally:
        bench.close()


def test_a_function_reaches_what_both_lists_have(bench: Bench) -> None:
    """Its own list takes away from the pool's and never adds."""
    bench.start(f"127.0.0.1:{bench.port}", "a.example:1")
    assert bench.relay is not None
    bench.relay.bind("mail", [f"127.0.0.1:{bench.port}", "b.example:1"])
    with bench.connect() as client:
        assert read_exactly(client, 3) == b"ok\n"
    assert bench.event().function == "mail"
    assert bench.ask("a.example:1") == b"error the target is not in the egress list of function 'mail'\n"
    assert bench.ask("b.example:1") == b"error the target is not in the pool's egress list\n"


@pytest.mark.parametrize(("address", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_name_with_an_address_leads_there_without_dns(directory: Path, address: str, family: int) -> None:
    """Also to a private one, since somebody wrote that very address."""
    server = gevent.socket.socket(family, socket.SOCK_STREAM)
    server.bind((address, 0))
    server.listen(1)
    bench = Bench(directory, echo)
    try:
        port = server.getsockname()[1]
        shown = f"[{address}]" if ":" in address else address

        def resolve(host: str) -> Sequence[str]:
            raise AssertionError(f"{host} was resolved")

        bench.start(f"db={shown}:{port}", resolve=resolve)
        with bench.connect(json.dumps({"target": f"db:{port}"}).encode() + b"\n") as client:
            assert read_exactly(client, 3) == b"ok\n"
            server.accept()[0].close()
        event = bench.event()
        assert (event.target, event.address) == (f"db:{port}", address)
    finally:
        bench.close()
        server.close()


def test_a_name_that_changes_its_answer_reaches_nothing_private(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: each connection resolves anew and is checked anew; what is private is refused each time."""
    answers = [["93.184.216.34"], ["127.0.0.1"], ["169.254.169.254"], ["10.0.0.1"]]
    bench.start("evil.example:1", resolve=lambda _: answers.pop(0))
    assert bench.relay is not None
    dialled: list[str] = []

    def dial(address: str, port: int, timeout_s: float) -> Any:
        dialled.append(address)
        raise OSError(101, f"not from a test: {port} {timeout_s}")

    monkeypatch.setattr(outbound, "dial", dial)
    for _ in range(4):
        assert bench.ask("evil.example:1").startswith(b"error ")
    assert dialled == ["93.184.216.34"]


def test_an_address_that_swallows_packets_leaves_time_for_the_next_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken IPv6 route must not use up the time in which IPv4 would have worked."""
    monkeypatch.setattr(outbound, "TRY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(outbound, "CONNECT_TIMEOUT_S", 0.4)
    monkeypatch.setattr(relay, "is_public", lambda address: bool(address))
    with socket.socket() as full, socket.socket() as waits:
        full.bind(("127.0.0.2", bench.port))
        full.listen(0)
        waits.connect(full.getsockname())  # now its backlog is full, and it answers no more
        bench.start(f"two.example:{bench.port}", resolve=lambda _: ["127.0.0.2", "127.0.0.1"])
        with bench.connect(json.dumps({"target": f"two.example:{bench.port}"}).encode() + b"\n") as client:
            assert read_exactly(client, 3) == b"ok\n"
    assert bench.event().address == "127.0.0.1"


def test_a_connection_waits_for_one_that_is_about_to_end(bench: Bench) -> None:
    """The forwarder keeps to the limit too, and may know of an end a moment before the relay does."""
    bench.start(caps=Caps(connections=2))
    clients = [bench.connect() for _ in range(2)]
    for client in clients:
        assert read_exactly(client, 3) == b"ok\n"
    with bench.connect() as next_one:
        gevent.sleep(0.1)  # the relay has seen it by now
        clients.pop().close()
        assert read_exactly(next_one, 3) == b"ok\n"
    clients.pop().close()


def test_silent_connections_hold_up_only_their_own_sandbox(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow loris: as many as the relay takes at all, none saying anything; they end, and then there is room again."""
    monkeypatch.setattr(relay, "REQUEST_TIMEOUT_S", 0.3)
    bench.start(caps=Caps(connections=4))
    silent = [bench.connect(b'{"tar') for _ in range(8)]
    with bench.connect() as client:  # waits in the backlog until the silent ones have had their time
        assert read_exactly(client, 3) == b"ok\n"
    for sock in silent:
        assert read_all(sock).startswith(b"error no request within")
        sock.close()
