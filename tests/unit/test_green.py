"""The channel of a busy runner: the promises of ``SocketChannel``, by greenlets that wait."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.lock import RLock

from runner import conversation, framing
from runner.conversation import Conversation
from runner.green import Deadlines, GreenChannel
from tests.platform import until

WAIT_S = 30.0


@pytest.fixture
def ends() -> Iterator[tuple[GreenChannel, GreenChannel]]:
    ours, theirs = map(GreenChannel, socket.socketpair())
    for channel in (ours, theirs):
        channel.settimeout(WAIT_S)
    yield ours, theirs
    ours.close()
    theirs.close()


def read(channel: GreenChannel, most: int = 100) -> bytes:
    buffer = bytearray(most)
    return bytes(buffer[: channel.recv_into(memoryview(buffer))])


def test_bytes_pass_both_ways_and_to_the_end(ends: tuple[GreenChannel, GreenChannel]) -> None:
    """A half-closed channel still hears the last words."""
    ours, theirs = ends
    reader = gevent.spawn(read, theirs)
    gevent.sleep(0)
    ours.sendall(b"hi")
    assert reader.get(timeout=WAIT_S) == b"hi"
    ours.half_close()
    assert read(theirs) == b""
    theirs.sendall(b"still")
    assert read(ours) == b"still"


def test_what_the_kernel_takes_in_pieces_arrives_whole(ends: tuple[GreenChannel, GreenChannel]) -> None:
    """A frame of the largest size waits for a reader that is behind."""
    ours, theirs = ends
    data = bytes(range(256)) * 16 * 1024
    writer = gevent.spawn(ours.sendall, data)
    got = bytearray()
    while len(got) < len(data):
        got += read(theirs, 100_000)
    writer.get(timeout=WAIT_S)
    assert got == data


def test_a_wait_ends_at_its_own_deadline_only(ends: tuple[GreenChannel, GreenChannel]) -> None:
    """One timer serves all: it ends the waits whose time is over, in any order, and no other one."""
    others = [GreenChannel(sock) for _ in range(3) for sock in socket.socketpair()]
    waits = dict(zip(others[::2], (WAIT_S, 0.2, 0.05), strict=True))
    for channel, timeout_s in waits.items():
        channel.settimeout(timeout_s)
    greenlets = [gevent.spawn(read, channel) for channel in waits]
    for greenlet in greenlets[1:]:
        with pytest.raises(TimeoutError):
            greenlet.get(timeout=WAIT_S)
    assert not greenlets[0].ready()
    others[1].sendall(b"in time")
    assert greenlets[0].get(timeout=WAIT_S) == b"in time"
    ours, theirs = ends
    ours.settimeout(0.01)
    with pytest.raises(TimeoutError):
        read(ours)
    theirs.sendall(b"late")
    ours.settimeout(WAIT_S)
    assert read(ours) == b"late"
    for channel in others:
        channel.close()


def test_a_writer_that_nobody_reads_from_ends_at_its_deadline(ends: tuple[GreenChannel, GreenChannel]) -> None:
    """With part of it sent."""
    ours, _ = ends
    ours.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(8 * 1024 * 1024))


@pytest.mark.parametrize("wait", [read, lambda channel: channel.sendall(bytes(8 * 1024 * 1024))])
def test_closing_ends_the_waits(ends: tuple[GreenChannel, GreenChannel], wait: Any) -> None:
    """With an OSError, whether they read or write; and closing twice is nothing."""
    ours, _ = ends
    waiting = gevent.spawn(wait, ours)
    gevent.sleep(0)
    ours.close()
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        waiting.get(timeout=WAIT_S)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read(ours)
    assert ours.is_hung_up


def test_an_end_that_nobody_waits_for_is_seen_and_costs_nothing(ends: tuple[GreenChannel, GreenChannel]) -> None:
    """An idle sandbox that dies is not taken for alive, and the loop does not tell of it for ever."""
    ours, theirs = ends
    first = gevent.spawn(read, ours)
    gevent.sleep(0)
    theirs.sendall(b"a")
    assert first.get(timeout=WAIT_S) == b"a"
    assert not ours.is_hung_up
    theirs.close()
    assert ours.is_hung_up
    until(lambda: gevent.sleep(0) or not ours._is_watching, WAIT_S, "the loop to stop watching")
    assert read(ours) == b""


def test_a_greenlet_that_is_killed_leaves_the_channel_usable(ends: tuple[GreenChannel, GreenChannel]) -> None:
    """The next reader gets what comes."""
    ours, theirs = ends
    first = gevent.spawn(read, ours)
    gevent.sleep(0)
    first.kill(timeout=WAIT_S)
    theirs.sendall(b"next")
    assert read(ours) == b"next"
    assert not Deadlines.here()._waits


def test_calls_share_a_conversation_between_greenlets(
    ends: tuple[GreenChannel, GreenChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads, each gets its own answer; and the end of the conversation is heard by all who wait."""
    monkeypatch.setattr(conversation, "threading", SimpleNamespace(Event=Event, Lock=RLock))  # as in a runner
    ours, theirs = ends
    talk, shim = Conversation("s1", ours), framing.FrameReader(theirs)
    talk.is_shared = True

    def ask(call_id: int) -> bytes:
        frame = framing.Frame(framing.INVOKE, call_id, {}, b"1")
        return talk.ask(frame, (framing.RESULT,), time.monotonic() + WAIT_S, lambda _: None).body

    calls = {call_id: gevent.spawn(ask, call_id) for call_id in (1, 2, 3)}
    assert {shim.read(WAIT_S).call_id for _ in calls} == set(calls)
    for call_id in (2, 1):
        theirs.sendall(framing.encode(framing.RESULT, call_id, {}, str(call_id).encode()))
        assert calls[call_id].get(timeout=WAIT_S) == str(call_id).encode()
    finishing = gevent.spawn(talk.finish, lambda _: None, WAIT_S)
    assert read(theirs) == b""
    theirs.sendall(framing.encode(framing.EXIT, 0, {"status": 0, "ordered": True}, b""))
    theirs.close()
    finishing.get(timeout=WAIT_S)
    with pytest.raises(Exception, match="exited with status 0"):
        calls[3].get(timeout=WAIT_S)
    assert talk.is_ordered
