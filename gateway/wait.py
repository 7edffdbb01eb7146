"""How a waiting request is woken: one reader per gateway process takes the ends of jobs from this process's reply list.

A waiter puts itself into ``_waiting`` first and is registered in Redis second (by ``enqueue`` or ``wait``, which look
at the job and register in one step), so no end can slip between. When Redis went away the reader raises ``epoch``,
registers every waiter again and goes on; a waiter whose own registration crossed that moment sees the new epoch and
asks again. It does so with another reply list: what was sent ahead on the connection that broke may still be there and
take replies from the one before. So neither a restart of Redis nor a reply lost with a connection loses a waiter.
Nothing polls.

Everything here runs in one gevent hub: code between two calls to Redis is never interrupted, hence no locks.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import gevent
from gevent.event import AsyncResult

from bananas import events, keys
from bananas.errors import BananasError, RedisUnavailable, RequestError, Unavailable
from bananas.job import Enqueued, NewJob, Reply
from bananas.queue import Queue
from gateway.hangup import ClientGone

#: Requests that may wait in one process; each holds a connection and a greenlet.
MAX_WAITERS: Final = 10_000
_BACKOFF_S: Final = (0.1, 2.0)


class Waiter:
    """One waiting request. Made by ``Waiters.expect``; used by that request only."""

    def __init__(self, owner: Waiters, job_id: str, patient: bool) -> None:
        self.job_id = job_id
        #: False for one that is glad to answer early when the gateway stops.
        self.patient = patient
        #: True once Redis knows that somebody waits here.
        self.is_registered = False
        self._owner = owner
        self._answer: AsyncResult[Reply | None] = AsyncResult()

    def submit(self, job: NewJob) -> Enqueued:
        """Enqueue the job of this waiter and wait for its end; raises what ``Queue.enqueue`` raises.

        Its ``reply_to`` is the owner's reply list, or was that when the job was made.

        When the answer is a duplicate, this job is not there; somebody else must wait for the other one.
        """
        epoch = self._owner.epoch
        enqueued = self._owner.queue.enqueue(job)
        self.is_registered = not enqueued.duplicate
        is_stale = self._owner.epoch != epoch or self._owner.reply_list != job.reply_to
        if is_stale and self.is_registered:
            self.ask()
        return enqueued

    def ask(self) -> None:
        """Wait for a job that exists; raises UnknownJob, JobExpired or, with too many waiters, QueueFull."""
        while not self._answer.ready():
            epoch = self._owner.epoch
            reply = self._owner.queue.wait(self.job_id, self._owner.reply_list)
            self.is_registered = True
            if reply is not None:
                self.resolve(reply)
            if self._owner.epoch == epoch:
                return

    def wait(self, timeout_s: float) -> Reply | None:
        """The job's end; None after ``timeout_s`` seconds or when let go. Raises ClientGone, or what it failed with."""
        self._answer.wait(timeout_s)
        return self._answer.get(block=False) if self._answer.ready() else None

    def on_over(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once it is over, in the hub: it must not wait."""
        self._answer.rawlink(lambda _: call())

    @property
    def is_over(self) -> bool:
        """True when ``wait`` would return at once."""
        return self._answer.ready()

    def resolve(self, reply: Reply | None) -> None:
        """Wake it with an answer; the first one counts."""
        if not self._answer.ready():
            self._answer.set(reply)

    def fail(self, error: BaseException) -> None:
        """Wake it with an error, unless it has its answer."""
        if not self._answer.ready():
            self._answer.set_exception(error)

    def abandon(self) -> None:
        """Its client has gone."""
        self.fail(ClientGone())


class Waiters:
    """The waiting requests of one gateway process and the reader that wakes them. Made after the fork."""

    def __init__(self, queue: Queue, limit: int = MAX_WAITERS) -> None:
        self.queue = queue
        self.reply_list = _new_list()
        #: Counts the times at which registrations in Redis may have been lost.
        self.epoch = 0
        self._limit = limit
        self._count = 0
        self._waiting: dict[str, list[Waiter]] = {}
        self._reader: gevent.Greenlet[[], None] | None = None
        self._stopped = False

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def expect(self, job_id: str, *, patient: bool = True) -> Iterator[Waiter]:
        """A waiter for the end of a job, for the time of the block. Starts the reader on first use.

        Raises Unavailable when too many wait already, or when the gateway stops.
        """
        if self._stopped:
            raise _stopping()
        if self._count >= self._limit:
            raise Unavailable(f"{self._limit} calls already wait in this gateway process; try again, or add processes")
        if self._reader is None:
            self._reader = gevent.spawn(self._read)
        waiter = Waiter(self, job_id, patient)
        self._waiting.setdefault(job_id, []).append(waiter)
        self._count += 1
        try:
            yield waiter
        finally:
            self._count -= 1
            others = self._waiting[job_id]
            others.remove(waiter)
            if not others:
                del self._waiting[job_id]

    def let_go(self) -> None:
        """The gateway begins to stop: who only looks gets an answer now, who called a function may still wait."""
        for waiter in self._all():
            if not waiter.patient:
                waiter.resolve(None)

    def stop(self) -> None:
        """End the reader; every waiter that is left fails with Unavailable. Idempotent."""
        self._stopped = True
        for waiter in self._all():
            waiter.fail(_stopping())
        if self._reader is not None:
            self._reader.kill(block=False)

    def _all(self) -> list[Waiter]:
        return [waiter for waiters in self._waiting.values() for waiter in waiters]

    def _read(self) -> None:
        """The reader: ends only when killed."""
        pause_s, longest_s = _BACKOFF_S
        is_connected, list_ = True, self.queue.replies(self.reply_list)
        while True:
            try:
                if not is_connected:
                    self.reply_list = _new_list()
                    list_ = self.queue.replies(self.reply_list)
                    self.epoch += 1
                    self._register_again()
                replies = list_.pop()
                if not is_connected:
                    events.REPLIES_BACK()
                pause_s, is_connected = _BACKOFF_S[0], True
                for reply in replies:
                    for waiter in self._waiting.get(reply.id, ()):
                        waiter.resolve(reply)
            except RedisUnavailable as e:
                if is_connected:
                    events.REPLIES_AWAY(error=e)
                is_connected = False
            except Exception as e:  # noqa: BLE001 - the top of the greenlet: without it every request would wait for nothing
                events.REPLIES_DEFECT(e)
                is_connected = False
            if not is_connected:
                gevent.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)

    def _register_again(self) -> None:
        for job_id in [job_id for job_id, waiters in self._waiting.items() if any(w.is_registered for w in waiters)]:
            waiters = self._waiting.get(job_id, [])
            answer: Reply | BananasError | None
            try:
                answer = self.queue.wait(job_id, self.reply_list) if waiters else None
            except (RequestError, Unavailable) as e:
                if isinstance(e, RedisUnavailable):
                    raise
                answer = e
            for waiter in [w for w in self._waiting.get(job_id, ()) if w.is_registered]:
                if isinstance(answer, BananasError):
                    waiter.fail(answer)
                elif answer is not None:
                    waiter.resolve(answer)


def _new_list() -> str:
    """The key of a reply list that nobody reads yet."""
    return keys.reply(uuid.uuid4().hex)


def _stopping() -> Unavailable:
    return Unavailable("this gateway process is stopping; send the call again")
