"""``GET /jobs/{id}/logs?follow=1``: what a job prints, as server-sent events, until its end.

One greenlet for each gateway process reads the streams of all followed jobs at once, and asks their runners to tell;
so a follower costs its own connection and greenlet and none to Redis. What a follower missed (it came late, its client
is slow, a piece was lost) it gets from the job's record when an attempt is over. Nothing runs while nobody follows.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import gevent
import msgspec
from gevent.queue import Empty, Full, Queue

from bananas import events
from bananas.errors import BananasError, RedisUnavailable
from bananas.follow import FOLLOW_S, Follow, Piece, Position
from bananas.job import JobState
from bananas.queue import Queue as Jobs
from gateway import hangup
from gateway.wait import Waiters

#: How often runners are looked for while all of them tell, and how long one look into the streams blocks: a new
#: follower waits for it, and so does the next question while a runner tells nothing yet.
_ASK_S: Final = 2.0
_BLOCK_S: Final = 0.5
#: Runners that tell already are told again before they stop.
_AGAIN_S: Final = FOLLOW_S / 3
#: Pieces that may wait for a slow client; more are left for the end.
_PIECES: Final = 64
_KEEP_ALIVE_S: Final = 15.0
_BACKOFF_S: Final = 1.0
_OVER: Final = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)

#: A piece, or None: look whether the job is over.
_Mail: TypeAlias = "Queue[Piece | None]"


class Followers:
    """Those who follow in one gateway process. Made after the fork."""

    def __init__(self, jobs: Jobs, follow: Follow, waiters: Waiters) -> None:
        self._jobs = jobs
        self._follow = follow
        self._waiters = waiters
        self._mails: dict[str, list[_Mail]] = {}
        self._reader: gevent.Greenlet[[], None] | None = None

    def events(self, job_id: str, environ: dict[str, Any]) -> Iterator[bytes]:
        """Server-sent events: ``log`` with ``{"attempt", "text"}``, at last ``end`` with ``{"id", "status"}``.

        Ends without ``end`` when the gateway stops, and with ``error`` (``{"code", "detail"}``) when it fails.
        """
        try:
            yield from self._events(job_id, environ)
        except hangup.ClientGone:
            return
        except BananasError as e:  # the answer has begun: it cannot become a problem
            yield _event("error", {"code": e.code, "detail": str(e)})

    def _events(self, job_id: str, environ: dict[str, Any]) -> Iterator[bytes]:
        mail: _Mail = Queue(_PIECES)
        sent = _Sent()
        with self._waiters.expect(job_id, patient=False) as waiter, hangup.watched(environ, waiter.abandon):
            self._join(job_id, mail)
            try:
                waiter.on_over(lambda: gevent.spawn(mail.put, None))
                waiter.ask()
                yield b": follows\n\n"
                yield from sent.missed(self._jobs.logs(job_id))
                for piece in self._follow.so_far(job_id):
                    yield from self._pass_on(piece, sent)
                while not waiter.is_over:
                    try:
                        heard = mail.get(timeout=_KEEP_ALIVE_S)
                    except Empty:
                        yield b": still runs\n\n"
                        continue
                    if heard is not None:
                        yield from self._pass_on(heard, sent)
            finally:
                self._leave(job_id, mail)
            waiter.wait(0)  # raises what it was let go with
        yield from self._end(job_id, sent)

    def _pass_on(self, piece: Piece, sent: _Sent) -> Iterator[bytes]:
        if sent.is_next_attempt(piece.token):  # the one before is over, and its record has what is missing of it
            yield from sent.missed(self._jobs.logs(piece.job_id))
        yield from sent.more(piece.token, piece.offset, piece.data)

    def _end(self, job_id: str, sent: _Sent) -> Iterator[bytes]:
        record = self._jobs.show(job_id)
        if record.state not in _OVER:  # the gateway stops
            return
        yield from sent.missed(self._jobs.logs(job_id))
        yield _event("end", {"id": job_id, "status": record.state.value})

    def _join(self, job_id: str, mail: _Mail) -> None:
        self._mails.setdefault(job_id, []).append(mail)
        if self._reader is None:
            self._reader = gevent.spawn(self._read)

    def _leave(self, job_id: str, mail: _Mail) -> None:
        others = self._mails[job_id]
        others.remove(mail)
        if not others:
            del self._mails[job_id]

    def _read(self) -> None:
        """The reader: ends by itself when nobody follows."""
        positions: dict[str, Position] = {}
        told: dict[str, str] = {}
        asked_s = again_s = float("-inf")
        while self._mails:
            try:
                now_s = time.monotonic()
                is_new = any(job_id not in positions for job_id in self._mails)
                is_told = all(job_id in told for job_id in self._mails)
                if is_new or now_s - asked_s >= (_ASK_S if is_told else _BLOCK_S):
                    if now_s - again_s >= _AGAIN_S:
                        told, again_s = {}, now_s
                    self._follow.ask({job_id: told.get(job_id, "") for job_id in self._mails})
                    asked_s = now_s
                positions = {job_id: positions.get(job_id, Position()) for job_id in self._mails}
                pieces, moved = self._follow.read(positions, _BLOCK_S)
                positions |= moved
                for piece in pieces:
                    # Not before: a runner that is asked in the moment of its claim does not know the attempt yet.
                    told[piece.job_id] = str(piece.token)
                    self._hand_out(piece)
            except RedisUnavailable as e:
                events.FOLLOW_WAITS(error=e)
                gevent.sleep(_BACKOFF_S)
            except Exception as e:  # noqa: BLE001 - the top of the greenlet: followers would wait for nothing
                events.FOLLOW_DEFECT(e)
                gevent.sleep(_BACKOFF_S)
        self._reader = None

    def _hand_out(self, piece: Piece) -> None:
        for mail in self._mails.get(piece.job_id, ()):
            try:
                mail.put_nowait(piece)
            except Full:  # it comes from the record
                events.FOLLOWER_SLOW(job=piece.job_id)


class _Sent:
    """What one follower has got: bytes of each attempt."""

    def __init__(self) -> None:
        self._bytes: dict[int, int] = {}
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def is_next_attempt(self, token: int) -> bool:
        """True for the first word of an attempt after another one."""
        return token not in self._bytes and any(other < token for other in self._bytes)

    def more(self, token: int, offset: int, data: bytes) -> Iterator[bytes]:
        """The event of a piece; nothing for what was sent, or does not follow on what was."""
        have = self._bytes.setdefault(token, 0)
        if not offset <= have < offset + len(data):
            return
        new = data[have - offset :]
        self._bytes[token] = have + len(new)
        decoder = self._decoders.setdefault(token, codecs.getincrementaldecoder("utf-8")("replace"))
        if text := decoder.decode(new):
            yield _event("log", {"attempt": token, "text": text})

    def missed(self, logs: dict[int, bytes]) -> Iterator[bytes]:
        """The rest of attempts that are over."""
        for token, text in logs.items():
            yield from self.more(token, 0, text)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
