"""How many pieces an answer leaves in. The sockets keep packets apart, so each write shows."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gateway.onewrite import Gathering

Pair = tuple[Gathering, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """What an answer is written to, and the client's end."""
    ours, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(20)
    with ours, client:
        yield Gathering(ours), client


def test_the_head_of_an_answer_of_known_length_leaves_with_its_body(pair: Pair) -> None:
    """One write, one wake-up of the client; what follows is not kept."""
    out, client = pair
    out.holds = True
    for piece in (b"head ", b"body", b"more"):
        out.sendall(piece)
    assert [client.recv(99), client.recv(99)] == [b"head body", b"more"]


def test_a_stream_is_written_as_it_comes(pair: Pair) -> None:
    """The client sees the head before there is anything to tell."""
    out, client = pair
    out.sendall(b"head")
    assert client.recv(99) == b"head"
    out.sendall(b"event")
    assert client.recv(99) == b"event"


def test_a_head_without_a_body_leaves_at_the_end_and_only_once(pair: Pair) -> None:
    """Answers to HEAD, and 204."""
    out, client = pair
    out.holds = True
    out.sendall(b"head")
    out.flush()
    out.flush()
    out.sendall(b"next answer")
    assert [client.recv(99), client.recv(99)] == [b"head", b"next answer"]


def test_a_large_body_is_not_copied_behind_its_head(pair: Pair) -> None:
    """The second write costs less than a copy."""
    out, client = pair
    out.holds = True
    out.sendall(b"head")
    out.sendall(b"x" * 100_000)
    assert client.recv(200_000) == b"head"
    assert len(client.recv(200_000)) == 100_000
