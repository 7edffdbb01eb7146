"""The engine's attach stream: pieces behind headers, read by Streams and by the stdio transport's channel."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import pytest

from runner.stdio import StdioChannel
from runner.streams import CappedLog, Streams


def piece(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours, and the engine's end."""
    ours, engine = socket.socketpair()
    engine.settimeout(5)
    yield ours, engine
    ours.close()
    engine.close()


def test_pieces_go_to_whoever_listens_with_their_stream(pair) -> None:
    """However the bytes are cut on their way; the end is told after all of them."""
    ours, engine = pair
    got: list[tuple[int, bytes]] = []
    ends: list[bool] = []
    streams = Streams(ours, lambda stream, data: got.append((stream, data)))
    streams.on_end = lambda: ends.append(True)
    for byte in piece(1, b"out") + piece(2, b"err"):
        engine.sendall(bytes([byte]))
    engine.shutdown(socket.SHUT_WR)
    assert streams.ended.wait(5)
    assert b"".join(data for stream, data in got if stream == 1) == b"out"
    assert b"".join(data for stream, data in got if stream == 2) == b"err"
    assert ends == [True]


def test_a_stream_that_breaks_in_a_piece_is_an_end(pair) -> None:
    """Half a header or half a piece is no error of anybody's."""
    ours, engine = pair
    streams = Streams(ours)
    engine.sendall(piece(1, b"whole") + piece(1, b"broken")[:-3])
    engine.close()
    assert streams.ended.wait(5)
    streams.close()


def test_output_is_settled_when_nothing_comes_for_a_while(pair) -> None:
    """And at the latest at the deadline, however much comes."""
    ours, engine = pair
    streams = Streams(ours)
    began = time.monotonic()
    streams.settle(0.05, 60.0)
    assert 0.04 < time.monotonic() - began < 30
    engine.shutdown(socket.SHUT_WR)
    assert streams.ended.wait(5)


def test_a_log_is_cut_once(pair) -> None:
    """One empty piece says so, whichever stream it was."""
    got: list[bytes] = []
    log = CappedLog(got.append, 5)
    for stream, data in ((1, b"abc"), (2, b"def"), (1, b"ghi")):
        log(stream, data)
    assert got == [b"abc", b"de", b""]


def test_a_channel_reads_standard_output_only(pair) -> None:
    """In pieces as large as the buffer; what goes to standard error is left out; the end is 0 bytes."""
    ours, engine = pair
    channel = StdioChannel(ours)
    channel.settimeout(5)
    engine.sendall(piece(2, b"Traceback") + piece(1, b"hello") + piece(2, b"") + piece(1, b"!"))
    engine.shutdown(socket.SHUT_WR)
    buffer = bytearray(3)
    read = []
    while count := channel.recv_into(memoryview(buffer)):
        read.append(bytes(buffer[:count]))
    assert read == [b"hel", b"lo", b"!"]
    assert channel.is_hung_up
    channel.close()
    assert channel.is_hung_up


def test_a_channel_keeps_half_a_header_over_a_timeout(pair) -> None:
    """A read that timed out goes on where it was."""
    ours, engine = pair
    channel = StdioChannel(ours)
    channel.settimeout(0.05)
    whole = piece(1, b"late")
    engine.sendall(whole[:5])
    buffer = bytearray(10)
    with pytest.raises(TimeoutError):
        channel.recv_into(memoryview(buffer))
    engine.sendall(whole[5:])
    assert channel.recv_into(memoryview(buffer)) == 4
    assert buffer[:4] == b"late"
