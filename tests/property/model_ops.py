"""The operations of the model: each changes its state and returns what the real one must answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.property.model import (
    CALL_MS,
    DEAD_TTL_MS,
    LIVE,
    PRIORITIES,
    RESULT_TTL_MS,
    STRIDE,
    End,
    Function,
    Job,
    Model,
    Now,
    Time,
)


@dataclass(frozen=True)
class New:
    """A job to create; the names are those of NewJob."""

    id: str
    fn: str
    payload: bytes = b"1"
    pool: str | None = None
    prio: str | None = None
    timeout_ms: int | None = None
    max_retries: int | None = None
    delay_ms: int = 0
    run_at_ms: int | None = None
    expires_ms: int | None = None
    reply_to: str | None = None
    unique_key: str = ""
    callback: str = ""
    is_sync: bool = False


class QueueModel(Model):
    """What gateways, runners and operators do."""

    # -- gateways ---------------------------------------------------------------------------------------------

    def create(self, new: New) -> tuple[Any, ...]:
        """("ok", id, version, state, pool, timeout, duplicate) or the name of a refusal."""
        old = self.jobs.get(new.id)
        if old is not None:
            return "ok", old.id, old.ver, old.state, old.pool, old.timeout, False
        holder = self.unique.get((new.fn, new.unique_key)) if new.unique_key else None
        if holder is not None:
            record = self.jobs.get(holder["id"])
            state = record.state if record else holder["state"]
            return "ok", holder["id"], holder["ver"], state, holder["pool"], holder["timeout"], True
        f = self.functions.get(new.fn)
        if f is None:
            return ("unknown_function",)
        pool = new.pool or f.pool
        if pool not in (f.pool, *f.allow):
            return ("unknown_pool",)
        if self.queued_in(pool, new.fn) >= self.limits.queued:
            self.counters[f"refused:{new.fn}:queue_full"] += 1
            return ("full",)
        if new.callback and len(self.callbacks) >= self.limits.callbacks:
            self.counters[f"refused:{new.fn}:callbacks_full"] += 1
            return ("full",)
        if f.burst and self.spent[new.fn] >= f.burst:
            self.counters[f"refused:{new.fn}:function_rate"] += 1
            return ("limited",)
        return self._create(new, f, pool)

    def _create(self, new: New, f: Function, pool: str) -> tuple[Any, ...]:
        due: Time = Now(new.delay_ms) if new.run_at_ms is None else new.run_at_ms
        job = Job(
            *(new.id, new.fn, f.version, pool, new.prio or "normal", "pending", new.payload),
            timeout=min(f.timeout_ms, new.timeout_ms or f.timeout_ms),
            maxr=f.max_retries if new.max_retries is None else min(f.max_retries, new.max_retries),
            uniq=new.unique_key,
            waiters=[new.reply_to] if new.reply_to else [],
            due=due,
            enqueued=due if isinstance(due, Now) else Now(),
            expires=0 if new.expires_ms is None else Now(new.expires_ms),
            cb=new.callback,
            sync="1" if new.is_sync else "",
        )
        self.jobs[new.id] = job
        self.spent[new.fn] += bool(f.burst)
        self.listed[new.fn].add(new.id)
        self.done.pop(new.id, None)
        self.dead.pop(new.id, None)
        self.calls.pop(new.id, None)
        if new.expires_ms is not None:
            self.expiring[new.id] = job.expires
        self.counters[f"enqueued:{new.fn}"] += 1
        if isinstance(due, Now) and due.offset_ms:
            self.put_off(job, due)
        else:
            self.push(job)
        if new.unique_key:
            self._hold_key(job)
        return "ok", job.id, job.ver, job.state, job.pool, job.timeout, False

    def _hold_key(self, job: Job) -> None:
        value = {"id": job.id, "ver": job.ver, "state": job.state, "pool": job.pool, "timeout": job.timeout}
        self.unique[job.fn, job.uniq] = {**value, "is_for_ever": True}

    def wait(self, job_id: str, reply_to: str) -> tuple[Any, ...]:
        """("over", state, last token, result), ("waiting",) or ("gone",)."""
        job = self.jobs.get(job_id)
        if job is None:
            return ("gone",)
        if job.state not in LIVE:
            last = job.hist[-1][0] if job.hist else None
            return "over", job.state, last, job.result if len(job.result) <= self.limits.push_bytes else None
        if reply_to not in job.waiters:
            job.waiters.append(reply_to)
        return ("waiting",)

    def cancel(self, job_id: str) -> str:
        """cancelled, gone or over."""
        job = self.jobs.get(job_id)
        if job is None:
            return "gone"
        if job.state not in LIVE:
            return "over"
        if job.state == "processing":
            self.end_lease(job)
            self.remember(job, "cancelled")
            self.inbox[job.runner].append(f"cancel {job.id} {job.token}")
        else:
            self.unqueue(job)
        self.expiring.pop(job.id, None)
        self.finish(job, "cancelled")
        self.counters["cancelled"] += 1
        self.call(job.fn)
        return "cancelled"

    # -- runners ----------------------------------------------------------------------------------------------

    def step(
        self, runner: str, lease_ms: int, ends: Sequence[End], free: Sequence[tuple[str, int]]
    ) -> tuple[list[bool], list[tuple[Any, ...]]]:
        """Per end whether it counted, and the claims in order."""
        backs: list[Job] = []
        freed: dict[str, None] = {}
        settled = [self._settle(end, backs, freed) for end in ends]
        self.give_back(backs)
        for fn in freed:
            self.call(fn)
        freed.clear()
        claims = [claim for pool, slots in free for claim in self._claim(runner, lease_ms, pool, slots, freed)]
        for fn in freed:
            self.call(fn)
        return settled, claims

    def _settle(self, end: End, backs: list[Job], freed: dict[str, None]) -> bool:
        job = self.jobs.get(end.id)
        if job is None or job.token != end.token or job.id not in self.leases:
            return False
        self.end_lease(job)
        freed[job.fn] = None
        self.remember(job, end.outcome, end.logs)
        self.counters[f"ms:{job.fn}:5"] += 1
        self.counters[f"ms_sum:{job.fn}"] += 3
        used = "starts" if end.outcome == "start" else "failures"
        if end.action == "complete":
            self.finish(job, "completed", result=end.result, last=job.token)
        elif end.action == "dead":
            job.failures += used == "failures"
            self.finish(job, "failed", end.reason, error="E", last=job.token)
        elif end.action == "retry":
            setattr(job, used, getattr(job, used) + 1)
            job.error, job.due, job.enqueued = "E", Now(end.delay_ms), Now(end.delay_ms)
            self.put_off(job, job.due)
            self.counters["retries"] += 1
        else:
            job.starts += end.outcome == "displaced"
            if end.outcome == "held_up" and job.expires and job.fresh == job.token - 1:
                job.fresh = job.token
                self.expiring[job.id] = job.expires
            backs.append(job)
        return True

    def _claim(
        self, runner: str, lease_ms: int, name: str, slots: int, freed: dict[str, None]
    ) -> Iterable[tuple[Any, ...]]:
        pool = self.pools[name]
        lanes = {prio: self.lanes[name, prio] for prio in PRIORITIES}
        room = pool.max_concurrency - len(self.busy(name)) if pool.max_concurrency else float("inf")
        if not any(lanes.values()) or room <= 0:
            return
        taken = 0
        while taken < min(slots, room) and any(lanes.values()):
            prio = min((p for p in PRIORITIES if lanes[p]), key=lambda p: pool.passes[p])
            claim = self._take(self.jobs[lanes[prio].pop(0)], runner, lease_ms, freed)
            if claim:
                taken += 1
                pool.virtual = pool.passes[prio]
                pool.passes[prio] += STRIDE / pool.weights[prio]
                yield claim
        if any(lanes.values()) and taken < room:
            self.bells.add(name)

    def _take(self, job: Job, runner: str, lease_ms: int, freed: dict[str, None]) -> tuple[Any, ...] | None:
        self.called[job.fn].discard(self.ticket(job))
        if job.token == job.fresh and job.expires and self._is_past(job.expires):
            self._expire(job)
            freed[job.fn] = None
            return None
        if self.room(job.fn) <= 0:
            if job.pseq is None:
                self.park_seq += 1
                job.pseq = self.park_seq
            job.state = "parked"
            self.parked[job.fn].add(self.ticket(job))
            return None
        self._assert_turn(job)
        if job.token == job.fresh:
            self.expiring.pop(job.id, None)
        job.token += 1
        job.state, job.runner, job.pseq, job.progress = "processing", runner, None, b""
        self.leases[job.id] = Now(lease_ms)
        settings = (job.payload, job.timeout, job.failures, job.starts, job.maxr)
        return job.id, job.token, job.fn, job.ver, job.pool, job.prio, *settings

    def _is_past(self, at: Time) -> bool:
        return isinstance(at, int) and at <= self.window[0]

    def _assert_turn(self, job: Job) -> None:
        """FIFO within a lane, told apart from where the lists put it: nobody who came before still waits."""
        rivals = (j for j in self.jobs.values() if j.lane == job.lane and j.fn == job.fn and j.turn is not None)
        if job.turn is not None:
            passed = [j.id for j in rivals if j.state in ("pending", "parked") and j.turn < job.turn]
            assert not passed, f"{job.id} is claimed before {passed}"

    def extend(self, lease_ms: int, attempts: Sequence[tuple[str, int]]) -> list[bool]:
        """Per attempt whether its lease stands."""
        mine = [self._is_mine(*attempt) for attempt in attempts]
        self.leases |= {job_id: Now(lease_ms) for (job_id, _), is_mine in zip(attempts, mine, strict=True) if is_mine}
        return mine

    def progress(self, job_id: str, token: int, text: bytes) -> bool:
        """Whether it was kept."""
        is_mine = self._is_mine(job_id, token)
        if is_mine:
            self.jobs[job_id].progress = text
        return is_mine

    def _is_mine(self, job_id: str, token: int) -> bool:
        return job_id in self.leases and self.jobs[job_id].token == token

    def _over(self, times: dict[str, Time], kept_ms: int = 0) -> list[str]:
        """Ids whose time is past, in the order of a ZSET."""
        return [
            i for _, i in sorted((t, i) for i, t in times.items() if isinstance(t, int) and self._is_past(t + kept_ms))
        ]

    def promote(self) -> int:
        """How many became due."""
        due = self._over(self.schedule)
        for job_id in due:
            del self.schedule[job_id]
            self.push(self.jobs[job_id])
        return len(due)

    def reap(self) -> tuple[int, int]:
        """(returned, poisoned)."""
        lost = [self.jobs[job_id] for job_id in self._over(self.leases)]
        backs = []
        for job in lost:
            self.end_lease(job)
            job.losses += 1
            self.remember(job, "lost")
            if job.losses >= self.limits.losses:
                self.finish(job, "failed", "poisoned", error="Lost", last=job.token)
            else:
                backs.append(job)
        self.give_back(backs)
        for job in backs:
            job.enqueued = Now()
        for job in lost:
            self.call(job.fn)
        return len(backs), len(lost) - len(backs)

    def expire(self) -> int:
        """How many were looked at."""
        late = self._over(self.expiring)
        for job_id in late:
            self.unqueue(self.jobs[job_id])
            self._expire(self.jobs[job_id])
            self.call(self.jobs[job_id].fn)
        return len(late)

    def _expire(self, job: Job) -> None:
        self.expiring.pop(job.id)
        self.finish(job, "failed", "expired", error="Expired")

    def take_callbacks(self, most: int, lease_ms: int) -> list[tuple[str, str, int, int, str]]:
        """(id, url, number of the end, number of the try, state) of each."""
        taken = []
        for job_id in self._over(self.callbacks)[:most]:
            job = self.jobs.get(job_id)
            if job is None or job.cbstate != "pending":
                del self.callbacks[job_id]
                self.counters["callbacks_lost"] += 1
                continue
            job.cbtries += 1
            self.callbacks[job_id] = Now(lease_ms)
            taken.append((job_id, job.cb, job.cbend, job.cbtries, job.state))
        if self._over(self.callbacks):
            self.is_rung_for_callbacks = True
        return taken

    def told(self, job_id: str, end: int, number: int, verdict: str, delay_ms: int, error: str) -> str:
        """delivered, again, failed or stale."""
        job = self.jobs.get(job_id)
        if job is None or job.cbstate != "pending" or job.cbend != end:
            return "stale"
        if verdict != "delivered" and job.cbtries != number:
            return "stale"
        job.cberr = error
        if verdict == "again" and job.cbtries < self.limits.callback_tries:
            self.callbacks[job_id] = Now(delay_ms)
            self.counters[f"callback:{job.fn}:again"] += 1
            return "again"
        job.cbstate = "delivered" if verdict == "delivered" else "failed"
        self.counters[f"callback:{job.fn}:{job.cbstate}"] += 1
        del self.callbacks[job_id]
        if job.state != "failed":
            assert isinstance(job.finished, int)
            self.done[job_id] = job.finished + RESULT_TTL_MS
        return job.cbstate

    def sweep(self) -> int:
        """How many records went."""
        gone = self._over(self.done) + self._over(self.dead, DEAD_TTL_MS) + self._over(self.calls, CALL_MS)
        calls = sorted((t, i) for i, t in self.calls.items() if i not in gone)
        gone += [i for _, i in calls[: max(0, len(calls) - self.limits.calls)]]
        left = sorted(((t, i) for i, t in self.dead.items() if i not in gone))
        over = max(0, len(left) - self.limits.dead)
        if over:
            self.counters["trimmed"] += over
        gone += [i for _, i in left[:over]]
        self._drop(gone)
        return len(gone)

    def _drop(self, ids: Iterable[str]) -> None:
        for job_id in ids:
            self.done.pop(job_id, None)
            self.dead.pop(job_id, None)
            self.calls.pop(job_id, None)
            job = self.jobs.pop(job_id, None)
            if job:
                self.listed[job.fn].discard(job_id)
            self.tombs.add(job_id)

    # -- operators --------------------------------------------------------------------------------------------

    def replay(self, ids: Sequence[str], payload: bytes | None, interval_ms: int, version: str) -> list[str]:
        """Per id its new state or the name of the refusal."""
        answers = []
        wait_ms = 0
        for job_id in ids:
            answer = self._replay(job_id, payload, wait_ms, version)
            wait_ms += interval_ms if answer in ("pending", "scheduled") else 0
            answers.append(answer)
        return answers

    def _replay(self, job_id: str, payload: bytes | None, wait_ms: int, version: str) -> str:
        job = self.jobs.get(job_id)
        if job is None:
            return "missing"
        if job.state != "failed":
            return "not_dead"
        if self.queued_in(job.pool, job.fn) >= self.limits.queued:
            return "full"
        if version == "same":
            if (job.fn, job.ver) not in self.versions:
                return "version_gone"
        elif job.fn not in self.functions:
            return "unknown_function"
        else:
            f = self.functions[job.fn]
            job.ver, job.timeout, job.maxr = f.version, f.timeout_ms, f.max_retries
        (self.calls if job.sync else self.dead).pop(job_id)
        job.sync = ""
        job.failures = job.losses = job.starts = job.expires = 0
        job.reason, job.result, job.error, job.progress, job.pseq = "", b"", "", b"", None
        job.payload = job.payload if payload is None else payload
        job.finished, job.cbstate, job.cbtries, job.cberr = 0, "", 0, ""
        self.callbacks.pop(job_id, None)
        job.due = job.enqueued = Now(wait_ms)
        self.counters["replayed"] += 1
        self.put_off(job, job.due) if wait_ms else self.push(job)
        holder = self.unique.get((job.fn, job.uniq))
        if job.uniq and (holder is None or holder["id"] == job.id):
            self._hold_key(job)
        return job.state

    def purge(self, ids: Sequence[str]) -> int:
        """How many were there."""
        there = [i for i in dict.fromkeys(ids) if i in self.dead]
        self._drop(there)
        if there:
            self.counters["purged"] += len(there)
        return len(there)

    def deploy(self, name: str, function: Function) -> None:
        """The new current version; parked jobs find what room there is now."""
        is_new = name not in self.functions or self.functions[name].version != function.version
        self.functions[name] = function
        self.versions.add((name, function.version))
        self.unlisted.discard(name)
        if is_new:
            self.call(name)

    def remove(self, name: str) -> bool:
        """Whether it was there; its jobs go on without a limit."""
        was_there = self.functions.pop(name, None) is not None
        if was_there:
            self.unlisted.add(name)
        self.call(name)
        return was_there

    def put_pool(self, name: str, weights: dict[str, int], max_concurrency: int) -> None:
        """New settings from now on; passes stay."""
        pool = self.pools[name]
        pool.weights, pool.max_concurrency = weights, max_concurrency
        self.bells.add(name)
