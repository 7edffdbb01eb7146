"""The queue: the only module that changes the state of a job. One method for each script.

Gateways enqueue, wait, show and cancel; runners step (settle + claim), extend, promote, reap and sweep. Every method
raises RedisUnavailable when Redis does not answer; nothing is lost by calling it again, see the scripts' headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis

from bananas import errors, keys, scripts
from bananas.job import Attempt, Claim, DeadReason, Enqueued, JobRecord, JobState, NewJob, Reply, Settlement
from bananas.redis_client import Connections
from bananas.settings import LIMITS
from bananas.spec import PRIORITIES, RetrySpec

_FIXED = [keys.SCHEDULE, keys.LEASES, keys.DEAD, keys.DONE, keys.COUNTERS, keys.POOLS_REV]
_DEAD_TTL_MS = LIMITS.dead_ttl_s * 1000
_MAX_WAITERS = 1000
_RETRY = msgspec.json.Decoder(RetrySpec)
_RECORD = (
    *("fn", "ver", "pool", "prio", "state", "created", "due", "claimed", "finished", "token", "failures", "losses"),
    *("maxr", "timeout", "reason", "result", "error", "hist"),
)


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
    counters: dict[str, int | float]


class Queue:
    """All operations on jobs, over one set of connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._scripts = scripts.load()
        #: Redis 7 pops many at once; 6.2 takes two calls.
        self._has_blmpop = True

    def _run(self, name: str, *args: Any, once: bool = False) -> Any:
        client = self._connections.once if once else self._connections.commands
        with self._connections.guard():
            return self._scripts[name](client, _FIXED, [keys.PREFIX, *args])

    # -- gateways ---------------------------------------------------------------------------------------------

    def enqueue(self, job: NewJob) -> Enqueued:
        """Store the job durably; raises UnknownFunction, UnknownPool or QueueFull."""
        optional = (job.pool, job.priority, job.timeout_ms, job.max_retries)
        answer = self._run(
            "enqueue",
            job.id,
            job.function,
            job.payload,
            *("" if value is None else value for value in optional),
            job.delay_ms,
            "" if job.run_at_ms is None else job.run_at_ms,
            "" if job.expires_after_ms is None else job.expires_after_ms,
            job.reply_to or "",
            LIMITS.queued_jobs,
        )
        match [part.decode() if isinstance(part, bytes) else part for part in answer]:
            case ["ok", version, state, pool, timeout]:
                return Enqueued(job.id, version, JobState(state), pool, int(timeout))
            case ["unknown_function"]:
                raise errors.UnknownFunction(f"no function {job.function!r} is deployed", function=job.function)
            case ["unknown_pool", allowed]:
                names = allowed.replace(",", ", ")
                raise errors.UnknownPool(f"{job.function!r} may not run in pool {job.pool!r}; it allows {names}")
            case ["full", pool, queued]:
                raise errors.QueueFull(f"pool {pool!r} has {queued} jobs waiting, the limit is {LIMITS.queued_jobs}")
        raise AssertionError(f"enqueue.lua answered {answer!r}")

    def wait(self, job_id: str, reply_to: str) -> Reply | None:
        """The end of the job, or None: then ``reply_to`` will get it. Raises UnknownJob or JobExpired."""
        answer = self._run("wait", job_id, reply_to, LIMITS.push_bytes, _MAX_WAITERS)
        match answer[0]:
            case b"over":
                return Reply(job_id, JobState(answer[1].decode()), answer[2], _inline(answer[3]))
            case b"waiting":
                return None
            case b"crowded":
                raise errors.QueueFull(f"{_MAX_WAITERS} callers already wait for job {job_id}")
        raise self._gone(job_id)

    def pop_replies(self, reply_list: str, block_s: float, limit: int) -> list[Reply]:
        """Final records for one gateway process: blocks up to ``block_s`` for the first, then takes what is there."""
        with self._connections.guard():
            messages = self._pop_messages(reply_list, block_s, limit)
        return [_parse_reply(message) for message in messages]

    def _pop_messages(self, reply_list: str, block_s: float, limit: int) -> list[bytes]:
        if self._has_blmpop:
            try:
                popped = self._connections.blocking.blmpop(block_s, 1, reply_list, direction="LEFT", count=limit)
                return list(popped[1]) if popped else []
            except redis.exceptions.ResponseError as e:
                if "unknown command" not in str(e).lower():
                    raise
                self._has_blmpop = False
        first = self._connections.blocking.blpop([reply_list], timeout=block_s)
        if first is None:
            return []
        return [first[1], *(self._connections.once.lpop(reply_list, limit) or [])]

    def show(self, job_id: str) -> JobRecord:
        """Everything known about a job; raises UnknownJob or JobExpired."""
        with self._connections.guard():
            values = self._connections.commands.hmget(keys.job(job_id), _RECORD)
        fields = dict(zip(_RECORD, values, strict=True))
        if fields["fn"] is None:
            raise self._gone(job_id)
        return _record(job_id, fields)

    def logs(self, job_id: str) -> dict[int, bytes]:
        """What each attempt printed, by token, oldest first; raises UnknownJob or JobExpired."""
        record = self.show(job_id)
        tokens = [int(msgspec.json.decode(line)["token"]) for line in record.history]
        if not tokens:
            return {}
        with self._connections.guard():
            texts = self._connections.commands.hmget(keys.job(job_id), [f"log:{token}" for token in tokens])
        return {token: text for token, text in zip(tokens, texts, strict=True) if text}

    def cancel(self, job_id: str) -> None:
        """Cancel it wherever it is; raises JobFinished, UnknownJob or JobExpired."""
        match self._run("cancel", job_id, LIMITS.reply_list):
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
        now_ms = now[0] * 1000 + now[1] // 1000
        out = []
        for (pool, priority), queued, head in zip(lanes, sizes[::2], sizes[1::2], strict=True):
            started = since.get(head)
            out.append(LaneDepth(pool, priority, queued, max(0, now_ms - int(started)) if started else 0))
        return out

    def counts(self) -> Counts:
        """Sizes and counters, for /metrics."""
        with self._connections.guard():
            pipe = self._connections.commands.pipeline(transaction=False)
            pipe.zcard(keys.SCHEDULE)
            pipe.zcard(keys.LEASES)
            pipe.zcard(keys.DEAD)
            pipe.hgetall(keys.COUNTERS)
            scheduled, leased, dead, raw = pipe.execute()
        counters = {name.decode(): float(value) if b"." in value else int(value) for name, value in raw.items()}
        return Counts(scheduled, leased, dead, counters)

    # -- runners ----------------------------------------------------------------------------------------------

    def step(
        self, runner: str, lease_ms: int, settlements: Sequence[Settlement], free: Sequence[tuple[str, int]]
    ) -> Step:
        """Settle, then claim up to the free slots of each pool, in one round trip.

        A pool with 0 free slots is named to pass its bell on when work is left. On RedisUnavailable the same
        settlements may be sent again: those that did arrive answer False the second time.
        """
        args: list[Any] = [runner, lease_ms, LIMITS.push_bytes, LIMITS.reply_list, LIMITS.history, _DEAD_TTL_MS]
        args += [len(settlements), len(free)]
        for settlement in settlements:
            args += _settlement_args(settlement)
        for pool, slots in free:
            args += [pool, slots]
        now, due, rev, settled, claims = self._run("step", *args, once=True)
        return Step(
            [bool(flag) for flag in settled],
            [_claim(raw, now) for raw in claims],
            None if due < 0 else max(0, due - now),
            rev,
        )

    def extend(self, lease_ms: int, attempts: Sequence[tuple[str, int]]) -> list[bool]:
        """Extend the leases of (id, token) pairs; False means that the attempt must be ended, unreported."""
        flat = [part for pair in attempts for part in pair]
        return [bool(flag) for flag in self._run("extend", lease_ms, *flat)]

    def promote(self, limit: int = 500) -> tuple[int, int | None]:
        """Move due jobs to their lanes; returns how many, and ms until the next is due (None: nothing scheduled)."""
        moved, now, due = self._run("promote", limit)
        return moved, None if due < 0 else max(0, due - now)

    def reap(self, limit: int = 500) -> tuple[int, int]:
        """Take back jobs whose lease ran out; returns (returned to their lanes, poisoned)."""
        returned, poisoned = self._run(
            "reap", limit, LIMITS.max_losses, LIMITS.push_bytes, LIMITS.reply_list, LIMITS.history, _DEAD_TTL_MS
        )
        return returned, poisoned

    def sweep(self, limit: int = 1000) -> int:
        """Drop records whose time is over; returns how many."""
        dropped = self._run("sweep", limit, _DEAD_TTL_MS, LIMITS.dead_jobs, LIMITS.tombstone_s)
        return int(dropped)

    def ring(self, pool: str, block_s: float) -> bool:
        """Block until somebody rings the pool's bell or the time is over; True when it rang."""
        with self._connections.guard():
            return self._connections.blocking.bzpopmin([keys.bell(pool)], timeout=block_s) is not None

    def pop_inbox(self, runner: str, block_s: float) -> tuple[str, ...] | None:
        """The next message for this runner, or None: ``("cancel", id, token)`` or ``("pools",)`` (settings changed)."""
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
            was_here = any(answer not in (0, None) for answer in pipe.execute())
        if was_here:
            return errors.JobExpired(f"the record of job {job_id} was kept for its time and is gone")
        return errors.UnknownJob(f"no job has the id {job_id}")


def duration_bucket(run_ms: float) -> str:
    """The histogram bucket of a run: the smallest upper bound in ms, or ``inf``.

    >>> duration_bucket(3.2), duration_bucket(10.0), duration_bucket(1e9)
    ('5', '10', 'inf')
    """
    return next((str(bound) for bound in keys.DURATION_BUCKETS_MS if run_ms <= bound), "inf")


def _settlement_args(s: Settlement) -> list[Any]:
    attempt = s.attempt
    run_ms = attempt.timings.get("run_ms")
    error = msgspec.json.encode(attempt.error) if attempt.error else b""
    reason: DeadReason | None = s.decision.reason
    return [
        s.claim.id,
        s.claim.token,
        s.decision.action,
        s.decision.delay_ms,
        attempt.outcome.value,
        reason.value if reason else "",
        s.result,
        error,
        _encode_attempt(attempt),
        s.logs,
        "" if run_ms is None else duration_bucket(run_ms),
        run_ms or 0,
    ]


def _encode_attempt(attempt: Attempt) -> bytes:
    # Dataclasses are encoded in the order of their fields, so the text starts with {"token": as the scripts need it.
    return msgspec.json.encode(attempt)


def _claim(raw: list[Any], now_ms: int) -> Claim:
    (job_id, token, fn, ver, pool, prio, payload, timeout, retry, failures, starts, enqueued, ttl, maxr) = raw
    try:
        policy = _RETRY.decode(retry)
    except msgspec.DecodeError:  # written by another release: the job must not be lost for it
        policy = RetrySpec()
    return Claim(
        id=job_id.decode(),
        token=token,
        function=fn.decode(),
        version=ver.decode(),
        pool=pool.decode(),
        priority=prio.decode(),
        payload=payload,
        timeout_ms=int(timeout),
        retries=msgspec.structs.replace(policy, max=int(maxr)),
        failures=int(failures),
        starts=int(starts),
        enqueued_at_ms=int(enqueued),
        claimed_at_ms=now_ms,
        result_ttl_ms=int(ttl),
    )


def _record(job_id: str, f: dict[str, Any]) -> JobRecord:
    state = JobState(f["state"].decode())
    return JobRecord(
        id=job_id,
        function=f["fn"].decode(),
        version=f["ver"].decode(),
        pool=f["pool"].decode(),
        priority=f["prio"].decode(),
        state=state,
        created_at_ms=int(f["created"]),
        due_at_ms=int(f["due"]) if state is JobState.SCHEDULED else None,
        started_at_ms=int(f["claimed"]) if f["claimed"] else None,
        finished_at_ms=int(f["finished"]) if f["finished"] else None,
        token=int(f["token"]),
        failures=int(f["failures"]),
        losses=int(f["losses"]),
        max_retries=int(f["maxr"]),
        timeout_ms=int(f["timeout"]),
        reason=f["reason"].decode() if f["reason"] else None,
        result=f["result"] or None,
        error=f["error"] or None,
        history=f["hist"].split(b"\n") if f["hist"] else [],
    )


def _parse_reply(message: bytes) -> Reply:
    job_id, state, attempt, rest = message.split(b"\n", 3)
    return Reply(job_id.decode(), JobState(state.decode()), attempt, _inline(rest))


def _inline(flagged: bytes) -> bytes | None:
    """``r`` + result, or ``x`` when it was too large to push."""
    return flagged[1:] if flagged[:1] == b"r" else None
