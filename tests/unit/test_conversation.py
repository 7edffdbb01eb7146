"""Several calls at once over one connection: each gets what is its, whoever reads. The other half is the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bananas.errors import ProtocolError, SandboxDied
from bananas.protocols import ExitInfo
from runner import framing
from runner.conversation import Conversation
from runner.framing import Frame, FrameReader
from runner.transport import SocketChannel
from tests.platform import until

ANSWERS = (framing.RESULT, framing.ERROR)
WAIT_S = 30.0


class Call(threading.Thread):
    """Somebody who waits for an answer."""

    def __init__(self, talk: Conversation, call_id: int, timeout_s: float = WAIT_S, payload: bytes = b"1") -> None:
        super().__init__(daemon=True)
        self.talk = talk
        self.frame = Frame(framing.INVOKE, call_id, {}, payload)
        self.timeout_s = timeout_s
        self.printed: list[bytes] = []
        self.told: list[bytes] = []
        self.end: Any = None
        self.start()

    def run(self) -> None:
        deadline_s = time.monotonic() + self.timeout_s
        try:
            self.end = self.talk.ask(self.frame, ANSWERS, deadline_s, self.printed.append, self.told.append).body
        except Exception as e:
            self.end = e

    def ended(self) -> Any:
        """The answer's body, or what was raised."""
        self.join(WAIT_S)
        assert not self.is_alive(), "nobody woke it"
        return self.end


class Shim:
    """The other half."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.channel = SocketChannel(ours)
        self.talk = Conversation("s1", self.channel)
        self.talk.is_shared = True
        self.reader = FrameReader(SocketChannel(self.sock))

    def say(self, kind: int, call_id: int, body: bytes = b"", **meta: Any) -> None:
        self.sock.sendall(framing.encode(kind, call_id, meta, body))

    def calls(self, *ids: int, timeout_s: float = WAIT_S) -> list[Call]:
        """That many calls, whose frames have arrived."""
        calls = [Call(self.talk, call_id, timeout_s) for call_id in ids]
        assert {self.reader.read(WAIT_S).call_id for _ in ids} == set(ids)
        return calls


@pytest.fixture
def shim() -> Iterator[Shim]:
    shim = Shim()
    yield shim
    shim.sock.close()
    shim.channel.close()


def test_answers_come_in_any_order_to_those_who_asked(shim: Shim) -> None:
    """Nobody waits for another one's answer, whichever of them reads at the moment."""
    calls = {call.frame.call_id: call for call in shim.calls(1, 2, 3, 4)}
    for call_id in (3, 1, 4, 2):
        shim.say(framing.RESULT, call_id, b"%d" % call_id)
        assert calls[call_id].ended() == b"%d" % call_id


def test_a_thousand_calls_through_ten_seats(shim: Shim) -> None:
    """However reading is passed on, none is forgotten and none gets another one's answer."""

    def seat(number: int) -> None:
        for n in range(100):
            call_id = 1 + number * 100 + n
            frame = Frame(framing.INVOKE, call_id, {}, b"x" * (n * 50))
            answer = shim.talk.ask(frame, ANSWERS, time.monotonic() + WAIT_S, lambda _: None)
            if answer.body != b"%d" % call_id:
                wrong.append((call_id, answer))

    wrong: list[object] = []
    seats = [threading.Thread(target=seat, args=(number,), daemon=True) for number in range(10)]
    for thread in seats:
        thread.start()
    for _ in range(1000):
        call_id = shim.reader.read(WAIT_S).call_id
        shim.say(framing.RESULT, call_id, b"%d" % call_id)
    for thread in seats:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert wrong == []


def test_output_and_progress_go_to_their_call_and_what_is_nobodys_to_all(shim: Shim) -> None:
    """Output without a call id is that of every call that runs; of one that is over, of nobody."""
    one, two = shim.calls(1, 2)
    shim.say(framing.LOG, 1, b"one")
    shim.say(framing.LOG, 2, b"two")
    shim.say(framing.PROGRESS, 2, b"0.5")
    shim.say(framing.LOG, 0, b"both")
    shim.say(framing.RESULT, 1)
    shim.say(framing.LOG, 1, b"late")
    shim.say(framing.LOG, 0, b"left")
    shim.say(framing.RESULT, 2)
    assert (one.ended(), two.ended()) == (b"", b"")
    assert (one.printed, one.told) == ([b"one", b"both"], [])
    assert (two.printed, two.told) == ([b"two", b"both", b"left"], [b"0.5"])


def test_a_deadline_is_its_calls_own(shim: Shim) -> None:
    """Who gives up while it reads leaves the reading to the others."""
    (late,) = shim.calls(1, timeout_s=0.2)
    (other,) = shim.calls(2)
    assert isinstance(late.ended(), TimeoutError)
    shim.say(framing.RESULT, 2, b"2")
    assert other.ended() == b"2"


def _exits(shim: Shim) -> None:
    shim.say(framing.EXIT, 0, status=3, signal=None)


def _closes(shim: Shim) -> None:
    shim.sock.shutdown(socket.SHUT_WR)


def _babbles(shim: Shim) -> None:
    shim.say(framing.RESULT, 9)


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (_exits, SandboxDied, "exited with status 3"),
        (_closes, SandboxDied, "ended"),
        (_babbles, ProtocolError, "frame kind 4 for call 9"),
    ],
)
def test_the_end_is_everybodys(shim: Shim, act: Callable[[Shim], None], error: type[Exception], words: str) -> None:
    """All of them hear why, and so does who comes later."""
    calls = shim.calls(1, 2, 3)
    act(shim)
    for end in [*(call.ended() for call in calls), Call(shim.talk, 4).ended()]:
        assert type(end) is error
        assert words in str(end)


def test_last_words_reach_every_open_call(shim: Shim) -> None:
    """Also one whose time is over: its own output is part of its log; and an answer that was on its way counts."""
    (late,) = shim.calls(1, timeout_s=0.1)
    waiting, answered = shim.calls(2, 3)
    assert isinstance(late.ended(), TimeoutError)
    for call_id in (1, 2, 0):
        shim.say(framing.LOG, call_id, b"last %d" % call_id)
    shim.say(framing.RESULT, 3, b"3")
    shim.say(framing.EXIT, 0, status=None, signal=9, ordered=True)
    shim.sock.shutdown(socket.SHUT_WR)
    strays: list[bytes] = []
    shim.talk.finish(strays.append, WAIT_S)
    assert isinstance(waiting.ended(), SandboxDied)
    assert answered.ended() == b"3"
    assert (late.printed, waiting.printed, strays) == ([b"last 1", b"last 0"], [b"last 2", b"last 0"], [])
    assert (shim.talk.exit, shim.talk.is_ordered) == (ExitInfo(None, 9), True)


def test_a_flood_of_one_call_is_a_breach_and_the_caps_are_each_calls_own(shim: Shim) -> None:
    """Three calls may print three times as much as one; none more than the shim would let it."""
    calls = shim.calls(1, 2, 3)
    piece = b"x" * (64 * 1024)
    for _ in range(7):
        for call_id in (1, 2, 3):
            shim.say(framing.LOG, call_id, piece)
    until(lambda: [len(call.printed) for call in calls] == [7] * 3, WAIT_S, "all output to arrive")
    for _ in range(2):
        shim.say(framing.LOG, 2, piece)
    assert isinstance(calls[1].ended(), ProtocolError)


def test_output_of_nobody_is_bounded_from_call_to_call(shim: Shim) -> None:
    """A sandbox that is never idle may print for as long as calls come; between two of them it is bounded."""
    piece = b"x" * (64 * 1024)
    (last,) = shim.calls(1)
    for call_id in range(2, 12):
        (call,) = shim.calls(call_id)
        for _ in range(4):
            shim.say(framing.LOG, 0, piece)
        shim.say(framing.RESULT, call_id - 1)
        assert last.ended() == b""
        last = call
    for _ in range(5):
        shim.say(framing.LOG, 0, piece)
    assert isinstance(last.ended(), ProtocolError)


def test_a_call_id_is_used_once_at_a_time(shim: Shim) -> None:
    """Two calls of one id could not be told apart."""
    shim.calls(1)
    assert isinstance(Call(shim.talk, 1).ended(), ValueError)
