"""A client that hangs up is noticed; one that merely sends early is not taken for it, nor robbed of a byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event

from gateway import hangup

SOON_S = 5.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected server and client end."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            yield server, client


def test_a_hang_up_is_told_once(pair):
    """The callback runs in the hub while the request waits."""
    server, client = pair
    gone = Event()
    with hangup.watched({"gunicorn.socket": server}, gone.set):
        client.close()
        assert gone.wait(SOON_S)


def test_a_hang_up_before_the_watch_is_told_too(pair):
    """There is no moment at which a client can go unnoticed."""
    server, client = pair
    client.close()
    gone = Event()
    with hangup.watched({"gunicorn.socket": server}, gone.set):
        assert gone.wait(SOON_S)


def test_an_early_next_request_is_no_hang_up_and_stays_to_be_read(pair):
    """Pipelined bytes wake the watch, which leaves them alone and does not spin."""
    server, client = pair
    gone, looked = Event(), Event()
    with hangup.watched({"gunicorn.socket": server}, gone.set):
        client.sendall(b"GET / HTTP/1.1\r\n")
        gevent.get_hub().loop.run_callback(looked.set)
        assert looked.wait(SOON_S)
        gevent.idle()
        assert not gone.is_set()
    assert server.recv(100) == b"GET / HTTP/1.1\r\n"


def test_has_hung_up_sees_an_end_behind_unread_bytes(pair):
    """A client that sent something and left has left."""
    server, client = pair
    assert not hangup.has_hung_up(server.fileno())
    client.sendall(b"bytes")
    assert not hangup.has_hung_up(server.fileno())
    client.shutdown(socket.SHUT_WR)
    assert hangup.has_hung_up(server.fileno())
    assert server.recv(100) == b"bytes"


def test_a_server_without_the_socket_is_not_watched():
    """Flask's test client and other servers work, unwatched."""
    with hangup.watched({}, pytest.fail):
        pass
