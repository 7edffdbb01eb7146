"""The queue: what gateways and runners do with jobs. One method for each script.

Gateways enqueue, wait, show and cancel; runners step (settle + claim), extend, tell progress, promote, expire, reap,
sweep and audit. Together with ``bananas.dead_letters`` and ``bananas.schedules`` the only code that changes the state
of a job. Every method raises RedisUnavailable when Redis does not answer; nothing is lost by calling it again, see the
scripts' headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from bananas import codec, errors, keys, scripts
from bananas.job import Claim, Enqueued, JobRecord, JobState, NewJob, Reply, Settlement
from bananas.redis_client import BLOCK_S, Connections, unix_ms
from bananas.replies import Replies
from bananas.settings import LIMITS
from bananas.spec import PRIORITIES

_DEAD_TTL_MS = LIMITS.dead_ttl_s * 1000
_MAX_WAITERS = 1000
#: What calls a runner off goes by itself, if the runner was not there any more.
_WAKE_S = 10
#: Jobs in one call of enqueue.lua: a few ms of a server that serves others too.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Step:
    """What one round trip of a runner brought."""

    #: Per settlement: False means that the attempt was not the job's any more.
    settled: list[bool]
    claims: list[Claim]
    #: Milliseconds until the schedule's next job is due; None when it is empty.
    next_due_ms: int | None
    #: Counts changes of the pools' settings.
    pools_rev: int
    #: Unix ms by the server's clock, when it was made.
    now_ms: int


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """One lane right now."""

    pool: str
    priority: str
    queued: int
    #: How long its head has waited.
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Sizes of the shared sets, and the counters named in ``bananas.keys``."""

    scheduled: int
    leased: int
    dead: int
    #: Ends of jobs with a callback that are not told yet.
    untold: int
    #: Unix ms of the oldest dead letter's death, and of now; equal when there is none.
    oldest_dead_ms: int
    now_ms: int
    #: Since when the first lease has run out that no reaper has taken back, in ms.
    overdue_ms: int
    counters: dict[str, int | float]


@dataclass(frozen=True, slots=True)
class Activity:
    """What one function does right now."""

    #: Attempts that a runner holds.
    running: int
    #: Jobs set aside because of its ``max_concurrency``.
    parked: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What one look at some records found."""

    #: Where the next look begins; 0: the round is complete.
    cursor: int
    looked: int
    #: Kind of repair → how many (see ``audit.lua``).
    repaired: dict[str, int]


class Queue:
    """All operations on jobs, over one set of connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._scripts = scripts.Caller(connections)
        self._run = self._scripts.run

    # -- gateways ---------------------------------------------------------------------------------------------

    def enqueue(self, job: NewJob) -> Enqueued:
        """Store the job durably; raises UnknownFunction, UnknownPool, QueueFull or RateLimited, and UnknownJob or
        VersionGone for what the job is to be like."""
        [answer] = self._run("enqueue", *_bounds(), *codec.job_args(job))
        outcome = codec.enqueued(job, answer)
        if isinstance(outcome, errors.BananasError):
            raise outcome
        return outcome

    def enqueue_many(self, jobs: Sequence[NewJob]) -> list[Enqueued | errors.BananasError]:
        """Store many jobs, each taken or refused by itself, in order; the answers have the order of the jobs.

        When Redis goes away in between, those that it may or may not have taken answer RedisUnavailable.
        """
        answers: list[Enqueued | errors.BananasError] = []
        for start in range(0, len(jobs), _BATCH):
            chunk = jobs[start : start + _BATCH]
            args = [part for job in chunk for part in codec.job_args(job)]
            try:
                raw = self._run("enqueue", *_bounds(), *args)
            except errors.RedisUnavailable as e:
                return answers + [e] * (len(jobs) - len(answers))
            answers += [codec.enqueued(job, answer) for job, answer in zip(chunk, raw, strict=True)]
        return answers

    def is_taken(self, function: str, unique_key: str) -> bool:
        """True when an earlier job of the function stands for the key."""
        with self._connections.guard():
            return bool(self._connections.commands.exists(keys.unique(function, unique_key)))

    def wait(self, job_id: str, reply_to: str) -> Reply | None:
        """The end of the job, or None: then ``reply_to`` will get it. Raises UnknownJob or JobExpired."""
        answer = self._run("wait", job_id, reply_to, LIMITS.push_bytes, _MAX_WAITERS)
        match answer[0]:
            case b"over":
                return Reply(job_id, JobState(answer[1].decode()), answer[2], codec.inline(answer[3]))
            case b"waiting":
                return None
            case b"crowded":
                raise errors.QueueFull(f"{_MAX_WAITERS} callers already wait for job {job_id}")
        raise self._gone(job_id)

    def replies(self, reply_list: str, block_s: float = BLOCK_S, limit: int = 125, ahead: int = 8) -> Replies:
        """Reads one reply list; see there for what the numbers mean."""
        return Replies(self._connections, reply_list, block_s, limit, ahead)

    def show(self, job_id: str) -> JobRecord:
        """Everything known about a job; raises UnknownJob or JobExpired."""
        values = self._read(job_id)
        if codec.may_expire(values):  # also when no runner is there to do it
            self._expire(1, job_id)
            values = self._read(job_id)
        record = codec.record(job_id, values)
        if record is None:
            raise self._gone(job_id)
        return record

    def _read(self, job_id: str) -> list[Any]:
        with self._connections.guard():
            return list(self._connections.commands.hmget(keys.job(job_id), codec.RECORD))

    def payload(self, job_id: str) -> bytes:
        """What the job is called with, as it was sent; raises UnknownJob or JobExpired."""
        with self._connections.guard():
            payload = self._connections.commands.hget(keys.job(job_id), "payload")
        if payload is None:
            raise self._gone(job_id)
        return bytes(payload)

    def logs(self, job_id: str) -> dict[int, bytes]:
        """What each attempt printed, by token, oldest first; raises UnknownJob or JobExpired."""
        return self.logs_of(self.show(job_id))

    def logs_of(self, record: JobRecord) -> dict[int, bytes]:
        """The same for a record that was read already."""
        tokens = [int(msgspec.json.decode(line)["token"]) for line in record.history]
        if not tokens:
            return {}
        with self._connections.guard():
            texts = self._connections.commands.hmget(keys.job(record.id), [f"log:{token}" for token in tokens])
        return {token: text for token, text in zip(tokens, texts, strict=True) if text}

    def cancel(self, job_id: str) -> None:
        """Cancel it wherever it is; raises JobFinished, UnknownJob or JobExpired."""
        match self._run("cancel", job_id, LIMITS.reply_list, LIMITS.history):
            case [b"cancelled"]:
                return
            case [b"over", state]:
                raise errors.JobFinished(f"job {job_id} is already {state.decode()}", status=state.decode())
        raise self._gone(job_id)

    def depths(self, pools: Sequence[str]) -> list[LaneDepth]:
        """Every lane of the given pools, also the empty ones."""
        lanes = [(pool, priority) for pool in pools for priority in PRIORITIES]
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            pipe.time()
            for lane in lanes:
                pipe.llen(keys.lane(*lane))
                pipe.lindex(keys.lane(*lane), 0)
            now, *sizes = pipe.execute()
            heads = [head for head in sizes[1::2] if head]
            for head in heads:
                pipe.hget(keys.job(head.decode()), "enqueued")
            since = dict(zip(heads, pipe.execute(), strict=True))
        now_ms = unix_ms(now)
        out = []
        for (pool, priority), queued, head in zip(lanes, sizes[::2], sizes[1::2], strict=True):
            started = since.get(head)
            out.append(LaneDepth(pool, priority, queued, max(0, now_ms - int(started)) if started else 0))
        return out

    def activity(self, functions: Sequence[str]) -> dict[str, Activity]:
        """What each of the functions does."""
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            for name in functions:
                pipe.scard(keys.running(name))
                pipe.zcard(keys.parked(name))
            sizes = pipe.execute()
        pairs = zip(functions, sizes[::2], sizes[1::2], strict=True)
        return {name: Activity(running, parked) for name, running, parked in pairs}

    def counts(self) -> Counts:
        """Sizes and counters, for /metrics."""
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            pipe.zcard(keys.SCHEDULE)
            pipe.zcard(keys.LEASES)
            pipe.zcard(keys.DEAD)
            pipe.zcard(keys.CALLBACKS)
            pipe.zrange(keys.DEAD, 0, 0, withscores=True)
            pipe.zrange(keys.LEASES, 0, 0, withscores=True)
            pipe.time()
            pipe.hgetall(keys.COUNTERS)
            scheduled, leased, dead, untold, oldest, first, now, raw = pipe.execute()
        now_ms = unix_ms(now)
        counters = {name.decode(): float(value) if b"." in value else int(value) for name, value in raw.items()}
        oldest_ms = int(oldest[0][1]) if oldest else now_ms
        overdue_ms = max(0, now_ms - int(first[0][1])) if first else 0
        return Counts(scheduled, leased, dead, untold, oldest_ms, now_ms, overdue_ms, counters)

    # -- runners ----------------------------------------------------------------------------------------------

    def step(
        self, runner: str, lease_ms: int, settlements: Sequence[Settlement], free: Sequence[tuple[str, int]]
    ) -> Step:
        """Settle, then claim up to the free slots of each pool, in one round trip.

        A pool with 0 free slots is named to pass its bell on when work is left. On RedisUnavailable the same
        settlements may be sent again: those that did arrive answer False the second time.
        """
        return _step(self._run("step", *_step_args(runner, lease_ms, settlements, free), once=True))

    def step_on_ring(self, runner: str, lease_ms: int, pool: str, slots: int, block_s: float) -> Step:
        """Wait for somebody to ring the pool's bell, or to ``call_off`` this runner, and claim at that very moment; at
        the latest after ``block_s``. As ``step`` otherwise: on RedisUnavailable nobody knows what was claimed."""
        wait = ("BZPOPMIN", keys.bell(pool), keys.wake(runner), block_s)
        return _step(self._scripts.run_after(wait, "step", *_step_args(runner, lease_ms, (), [(pool, slots)])))

    def call_off(self, runner: str, pools: Sequence[str]) -> None:
        """End the waits of the runner in ``step_on_ring``, one for each of the pools. They claim what is there."""
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            pipe.zadd(keys.wake(runner), dict.fromkeys(pools, 0))
            pipe.expire(keys.wake(runner), _WAKE_S)
            pipe.execute()

    def extend(self, runner: str, lease_ms: int, attempts: Sequence[tuple[str, int]]) -> list[bool]:
        """Extend the leases of (id, token) pairs; False means that the attempt must be ended, unreported."""
        flat = [part for pair in attempts for part in pair]
        return [bool(flag) for flag in self._run("extend", runner, lease_ms, *flat)]

    def progress(self, runner: str, items: Sequence[tuple[str, int, bytes]]) -> list[bool]:
        """Keep the latest progress (JSON text) of attempts by id and token; False: the attempt is not the job's."""
        flat = [part for item in items for part in item]
        return [bool(flag) for flag in self._run("progress", runner, *flat)] if flat else []

    def promote(self, limit: int = 500) -> tuple[int, int | None]:
        """Move due jobs to their lanes; returns how many, and ms until the next is due (None: nothing scheduled)."""
        moved, now, due = self._run("promote", limit)
        return moved, None if due < 0 else max(0, due - now)

    def expire(self, limit: int = 100) -> int:
        """Fail jobs that waited longer than their ``expires_after``; returns how many were looked at."""
        return self._expire(limit, "")

    def _expire(self, limit: int, job_id: str) -> int:
        return int(self._run("expire", limit, LIMITS.push_bytes, LIMITS.reply_list, _DEAD_TTL_MS, job_id))

    def reap(self, limit: int = 500) -> tuple[int, int]:
        """Take back jobs whose lease ran out; returns (returned to their lanes, poisoned)."""
        returned, poisoned = self._run(
            "reap", limit, LIMITS.max_losses, LIMITS.push_bytes, LIMITS.reply_list, LIMITS.history, _DEAD_TTL_MS
        )
        return returned, poisoned

    def sweep(self, limit: int = 1000) -> int:
        """Drop records whose time is over; returns how many."""
        dropped = self._run("sweep", limit, _DEAD_TTL_MS, LIMITS.dead_jobs, LIMITS.tombstone_s, LIMITS.failed_calls)
        return int(dropped)

    def audit(self, cursor: int, count: int = 500) -> Audit:
        """Look at about ``count`` records from ``cursor`` on (0: from the start) and put right what is wrong.

        Versions of live jobs are kept meanwhile.
        """
        with self._connections.guard():
            client = self._connections.commands
            following, found = client.scan(cursor, match=keys.job("*"), count=count, _type="HASH")
        ids = [key.decode().removeprefix(keys.job("")) for key in found]
        raw = self._run("audit", int(cursor == 0), LIMITS.old_version_s * 1000, *ids)
        repaired = dict(zip((kind.decode() for kind in raw[::2]), raw[1::2], strict=True))
        return Audit(int(following), len(ids), repaired)

    def pop_inbox(self, runner: str, block_s: float) -> tuple[str, ...] | None:
        """The next message for this runner, or None: ``("cancel", id, token)``, ``("follow", id, token)``,
        ``("pools",)`` (settings changed) or ``("deployed", function)``."""
        with self._connections.guard():
            message = self._connections.blocking.blpop([keys.inbox(runner)], timeout=block_s)
        return None if message is None else tuple(message[1].decode().split(" "))

    def server_uptime_s(self) -> int:
        """Seconds since the Redis server started (the reaper waits one lease after a restart)."""
        with self._connections.guard():
            return int(self._connections.commands.info("server")["uptime_in_seconds"])

    def _gone(self, job_id: str) -> errors.BananasError:
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            pipe.exists(keys.tomb(job_id))
            pipe.zscore(keys.DONE, job_id)
            pipe.zscore(keys.DEAD, job_id)
            pipe.zscore(keys.CALLS, job_id)
            was_here = any(answer not in (0, None) for answer in pipe.execute())
        if was_here:
            return errors.JobExpired(f"the record of job {job_id} was kept for its time and is gone")
        return errors.UnknownJob(f"no job has the id {job_id}")


def _step_args(
    runner: str, lease_ms: int, settlements: Sequence[Settlement], free: Sequence[tuple[str, int]]
) -> list[Any]:
    args: list[Any] = [runner, lease_ms, LIMITS.push_bytes, LIMITS.reply_list, LIMITS.history, _DEAD_TTL_MS]
    args += [len(settlements), len(free)]
    for settlement in settlements:
        args += codec.settlement_args(settlement)
    for pool, slots in free:
        args += [pool, slots]
    return args


def _step(answer: list[Any]) -> Step:
    now, due, rev, settled, claims = answer
    return Step(
        [bool(flag) for flag in settled],
        [codec.claim(raw, now) for raw in claims],
        None if due < 0 else max(0, due - now),
        rev,
        now,
    )


def _bounds() -> tuple[int, int, int]:
    """What enqueue.lua is told once for all jobs of a call."""
    return LIMITS.queued_jobs, LIMITS.callbacks, LIMITS.old_version_s * 1000
