"""Frames survive any way of being cut up, and nothing that a sandbox can send makes the reader hang or break."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananas.errors import ProtocolError, SandboxDied
from bananas.settings import LIMITS
from runner import framing
from runner.framing import Frame, FrameReader
from runner.shim.python import wire
from runner.transport import SocketChannel

HEAD = struct.Struct(">IBQI")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates are not text that every JSON reader takes; the shim spells them out.
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
metas = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), json_values, max_size=4)
frames = st.builds(Frame, st.sampled_from(framing.KINDS), st.integers(0, 2**64 - 1), metas, st.binary(max_size=2000))


class Chunks:
    """A channel that delivers what it is given in pieces of given sizes, and then ends."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = memoryview(data)
        self._sizes: Iterator[int] = iter(sizes)
        self.reads = 0

    def recv_into(self, buffer: memoryview) -> int:
        self.reads += 1
        count = min(next(self._sizes, 1_000_000), len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def settimeout(self, value: float | None) -> None:
        assert value is not None
        assert value > 0

    def sendall(self, data: bytes) -> None:
        raise NotImplementedError

    half_close = close = lambda self: None


def encode(frame: Frame) -> bytes:
    return framing.encode(frame.kind, frame.call_id, frame.meta, frame.body)


def read_all(reader: FrameReader) -> None:
    while True:
        reader.read(5)


@pytest.fixture
def connected() -> Iterator[tuple[SocketChannel, socket.socket]]:
    """The runner's channel and the sandbox's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SocketChannel(ours), theirs


@given(st.lists(frames, min_size=1, max_size=5), st.lists(st.integers(1, 3000), max_size=40))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[Frame], sizes: list[int]) -> None:
    """decode(encode(x)) == x, for several frames in a row and any sizes of the reads."""
    reader = FrameReader(Chunks(b"".join(map(encode, sent)), sizes))
    assert [reader.read(5) for _ in sent] == sent
    with pytest.raises(SandboxDied, match="without a word"):
        reader.read(5)


@given(frames)
def test_runner_and_shim_write_the_same_bytes(frame: Frame) -> None:
    """One format, written twice: both sides read what the other one writes."""
    meta = wire.encode_meta(frame.meta)
    assert FrameReader(Chunks(wire.encode(frame.kind, frame.call_id, meta, frame.body), [])).read(5) == frame
    left, right = socket.socketpair()
    with left, right:
        left.sendall(encode(frame))
        kind, call_id, read_meta, body = wire.Link(right, memoryview(bytearray(64)).cast("Q")).read() or ()
    assert Frame(kind, call_id, read_meta, body) == frame


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=20))
def test_garbage_is_a_protocol_error_or_an_end(garbage: bytes, sizes: list[int]) -> None:
    """Nothing else comes out of nonsense, and soon."""
    reader = FrameReader(Chunks(garbage, sizes))
    with pytest.raises((ProtocolError, SandboxDied)):
        read_all(reader)


@given(frames, st.data())
def test_one_wrong_byte_never_does_more_than_end_the_sandbox(frame: Frame, data: st.DataObject) -> None:
    """A damaged frame is read as another frame, or refused."""
    good = bytearray(encode(frame))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] = data.draw(st.integers(0, 255))
    reader = FrameReader(Chunks(bytes(good), []))
    try:
        read = reader.read(5)
    except (ProtocolError, SandboxDied):
        return
    assert read.kind in framing.KINDS
    assert isinstance(read.meta, dict)


@given(frames, st.data())
def test_an_end_within_a_frame_is_told_from_an_end_after_it(frame: Frame, data: st.DataObject) -> None:
    """Half a frame means that the sandbox died while it spoke."""
    whole = encode(frame)
    cut = data.draw(st.integers(1, len(whole) - 1))
    reader = FrameReader(Chunks(whole[:cut], []))
    for _ in range(2):  # and it stays that way
        with pytest.raises(SandboxDied, match="in the middle of a frame"):
            reader.read(5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEAD.pack(LIMITS.frame_bytes - 3, 4, 1, 2), f"a frame of {LIMITS.frame_bytes + 1} bytes, the limit is"),
        (HEAD.pack(2**32 - 1, 4, 1, 2), "a frame of 4294967299 bytes, the limit is 4194304"),
        (HEAD.pack(20, 9, 1, 2), "unknown kind 9; known are 1 to 8"),
        (HEAD.pack(20, 0, 1, 2), "unknown kind 0"),
        (HEAD.pack(5, 4, 1, 0), "length 5 does not hold its header of 13"),
        (HEAD.pack(20, 4, 1, 8), "length 20 does not hold its header of 13 and meta of 8"),
        (HEAD.pack(15, 4, 1, 2) + b"[]", "kind 4 whose meta is no JSON object"),
        (HEAD.pack(13, 4, 1, 0), "kind 4 whose meta is no JSON object"),
        (HEAD.pack(15, 4, 1, 2) + b"\xff\xff", "kind 4 whose meta is no JSON object"),
        (HEAD.pack(13 + 200_000, 4, 1, 200_000) + b"[" * 200_000, "kind 4 whose meta is no JSON object"),
        (HEAD.pack(19, 4, 1, 6) + b'{"a":1', "kind 4 whose meta is no JSON object"),
    ],
)
def test_a_malformed_frame_is_named_and_final(data: bytes, message: str) -> None:
    """The error says what is wrong and what the limit is; afterwards the stream is lost for good."""
    reader = FrameReader(Chunks(data + encode(Frame(4, 1, {}, b"")), []))
    for _ in range(2):
        with pytest.raises(ProtocolError) as caught:
            reader.read(5)
        assert message in str(caught.value)


def test_a_frame_over_the_limit_is_not_made() -> None:
    """The largest frame is exactly the limit."""
    room = LIMITS.frame_bytes - HEAD.size - 2
    whole = framing.encode(framing.INVOKE, 1, {}, b"x" * room)
    assert len(whole) == LIMITS.frame_bytes
    assert FrameReader(Chunks(whole, [])).read(5).body == b"x" * room
    with pytest.raises(ProtocolError, match=f"a frame of {LIMITS.frame_bytes + 1} bytes"):
        framing.encode(framing.INVOKE, 1, {}, b"x" * (room + 1))


def test_a_small_frame_costs_one_read() -> None:
    """What a warm call pays."""
    channel = Chunks(encode(Frame(framing.RESULT, 1, {"run_ms": 1.5}, b"null")) * 2, [])
    reader = FrameReader(channel)
    reader.read(5)
    reader.read(5)
    assert channel.reads == 1


def test_the_deadline_is_for_the_whole_frame_and_reading_can_go_on(
    connected: tuple[SocketChannel, socket.socket],
) -> None:
    """Bytes that trickle in do not extend it; what came before it is not lost."""
    channel, sandbox = connected
    reader = FrameReader(channel)
    frame = Frame(framing.LOG, 7, {"a": "b"}, b"x" * 100)
    data = encode(frame)
    sandbox.sendall(data[:30])
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        reader.read(0.1)
    assert 0.1 <= time.monotonic() - began_s < 10
    with pytest.raises(TimeoutError):
        reader.read(0)
    sandbox.sendall(data[30:])
    assert reader.read(5) == frame


def test_a_broken_connection_is_a_dead_sandbox(connected: tuple[SocketChannel, socket.socket]) -> None:
    """Whatever error the system gives."""
    channel, _ = connected
    reader = FrameReader(channel)
    channel.close()
    with pytest.raises(SandboxDied, match="the connection to the sandbox broke"):
        reader.read(1)


def test_metas_keep_what_json_can_hold() -> None:
    """Text beyond ASCII, and half a surrogate pair on its way to the sandbox (an environment may contain it)."""
    meta: dict[str, Any] = {"env": {"A": "zażółć 🍌", "B": "\ud800"}}
    left, right = socket.socketpair()
    with left, right:
        left.sendall(framing.encode(framing.INIT, 0, meta, b""))
        _, _, read, _ = wire.Link(right, memoryview(bytearray(64)).cast("Q")).read() or ()
    assert read == meta
    assert json.loads(wire.encode_meta({"message": "\ud800"})) == {"message": "\\ud800"}
