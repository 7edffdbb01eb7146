"""The proxy of the chaos suite is a network that can fail: silent while stopped, late afterwards, cut when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.tools.tcp_proxy import TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client:
            while data := client.recv(1024):
                client.sendall(data)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy(echo) as proxy:
        yield proxy


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def test_bytes_pass_both_ways(proxy):
    """As if it were not there."""
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
    assert proxy.accepted == 1


def test_a_stopped_proxy_delivers_late_and_refuses_nobody(proxy):
    """Old connections stay open and silent, new ones are taken and get no answer; all of it arrives afterwards."""
    with connect(proxy) as old:
        old.sendall(b"1")
        assert old.recv(100) == b"1"
        proxy.stop()
        with connect(proxy) as new:
            for client, data in ((old, b"2"), (new, b"3")):
                client.sendall(data)
                client.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.recv(100)
            proxy.go()
            for client, data in ((old, b"2"), (new, b"3")):
                client.settimeout(5)
                assert client.recv(100) == data


def test_cut_ends_every_connection(proxy):
    """And the next one works."""
    with connect(proxy) as client:
        client.sendall(b"1")
        assert client.recv(100) == b"1"
        assert proxy.cut() == 2
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
    with connect(proxy) as client:
        client.sendall(b"again")
        assert client.recv(100) == b"again"
