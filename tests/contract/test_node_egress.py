"""Node code reaches what is in ``egress``, through the real forwarder in the shim and the real relay in the runner."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent.server import StreamServer

from runner import framing
from runner.egress import Caps
from runner.relay import Event, Relay
from tests.contract.node_host import NodeHost
from tests.contract.shim_host import Answer
from tests.contract.test_shim_egress import INSIDE, echo, flood, say_much

SOURCE = """
const net = require('node:net');
const calls = {
  // Send `text`, end, and return what came until the end.
  talk: (port, text) => new Promise((resolve) => {
    const got = [];
    const socket = net.connect({ host: '127.66.0.1', port, allowHalfOpen: true });
    socket.on('data', (data) => got.push(data));
    socket.on('error', (e) => resolve([e.code, Buffer.concat(got).length]));
    socket.on('end', () => { socket.destroy(); resolve(['end', Buffer.concat(got).toString()]); });
    socket.end(text);
  }),
  much: async (port) => {
    const blob = 'x'.repeat(10_000_000);
    const [kind, text] = await calls.talk(port, blob);
    return kind === 'end' && text === blob + 'bye';
  },
  many: (port) => Promise.all(Array.from({ length: 40 }, () => calls.talk(port, 'x'))),
  open: (port) => new Promise((resolve) => {
    let got = 0;
    const socket = net.connect({ host: '127.66.0.1', port });
    socket.on('data', (data) => { got += data.length; });
    socket.on('error', (e) => resolve([e.code, got]));
    socket.on('end', () => resolve(['end', got]));
    socket.write('go');
  }),
  late: (port) => new Promise((resolve) => {
    let got = 0;
    const socket = net.connect({ host: '127.66.0.1', port });
    socket.on('error', (e) => resolve([e.code, got]));
    socket.on('end', () => resolve(['end', got]));
    socket.write('go', () => setTimeout(() => socket.on('data', (data) => { got += data.length; }), 500));
  }),
};
exports.handle = ({ call, port }) => calls[call](port, 'hello');
"""


class Network:
    """A TCP server on the runner's machine, and a sandbox with a way to it."""

    def __init__(self, host: NodeHost, port: int, relay: Relay) -> None:
        self.host = host
        self.port = port
        self.relay = relay

    def call(self, call: str) -> Answer:
        """In a thread of its own, since the relay runs here, in this thread's greenlets."""
        payload = {"call": call, "port": self.port}
        answer: Answer = gevent.get_hub().threadpool.apply(self.host.call, [payload])
        return answer


@contextmanager
def network(
    node: Path, *targets: str, serve: Callable[[Any, Any], None] = echo, caps: Caps | None = None
) -> Iterator[Network]:
    """``targets`` are what the relay allows instead of just the server."""
    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    port: int = server.server_port
    events: list[Event] = []
    host = NodeHost(node, SOURCE, egress=[{"name": "127.0.0.1", "ip": INSIDE, "port": port}])
    relay = Relay(host.root / "e", targets or [f"127.0.0.1:{port}"], events.append, caps=caps)
    try:
        with host:
            host.ready()
            yield Network(host, port, relay)
            relay.close()
    finally:
        relay.close()
        server.stop(timeout=1)


def test_bytes_and_ends_pass_in_both_directions(node: Path) -> None:
    """Little, much at once, and more connections than may be open at a time."""
    with network(node) as net:
        assert net.call("talk").json() == ["end", "hellobye"]
        assert net.call("much").json() is True
        assert net.call("many").json() == [["end", "xbye"]] * 40


def test_a_refused_target_is_reset_and_the_reason_is_in_the_logs(node: Path) -> None:
    """Code that writes to a connection which is not allowed sees it break."""
    with network(node, "other.example.com:443") as net:
        answer = net.call("talk")
        assert answer.json() == ["ECONNRESET", 0]
        assert answer.logs.startswith(b"bananas: egress to 127.0.0.1:%d: " % net.port)


def test_a_relay_that_is_gone_breaks_the_connection(node: Path) -> None:
    """The reason is in the logs."""
    with network(node) as net:
        net.relay.close()
        answer = net.call("open")
        assert answer.json() == ["ECONNRESET", 0]
        assert b"the runner's relay" in answer.logs


def test_a_connection_over_its_bytes_is_an_error_that_code_sees(node: Path) -> None:
    """A part of a download never looks like the whole, whatever comes before what, and also after a half-close."""
    with network(node, serve=flood, caps=Caps(connection_bytes=1024 * 1024)) as net:
        for call in ["open", "talk"] * 20:
            kind, got = net.call(call).json()
            assert (call, kind) == (call, "ECONNRESET")
            assert 0 < got <= 1024 * 1024 + 65536


def test_a_relay_that_ends_in_the_middle_breaks_the_connection(node: Path) -> None:
    """The runner gave the sandbox up, or died."""

    def waits(sock: Any, _: Any) -> None:
        sock.recv(2)
        sock.sendall(b"abc")
        net.relay.close()

    with network(node, serve=waits) as net:
        assert net.call("open").json() in (["ECONNRESET", 3], ["ECONNRESET", 0])


def test_code_reads_what_came_before_the_cut(node: Path) -> None:
    """The reset waits for a reader that is behind, who would take it for an end if it found data before it."""
    with network(node, serve=say_much, caps=Caps(connection_bytes=100_001)) as net:
        assert net.call("late").json() == ["ECONNRESET", 100_000]


def test_a_port_that_is_taken_ends_the_sandbox_with_the_reason(node: Path) -> None:
    """Nothing else listens in a sandbox, so this is a configuration that cannot work."""
    server = StreamServer((INSIDE, 0), echo)
    server.start()
    with contextlib.closing(server):
        port: int = server.server_port
        with NodeHost(node, SOURCE, egress=[{"name": "a", "ip": INSIDE, "port": port}]) as host:
            answer = host.answer()
            assert (answer.frame.kind, answer.meta["status"]) == (framing.EXIT, 78)
            assert f"cannot listen on {INSIDE}:{port}" in answer.meta["reason"]
