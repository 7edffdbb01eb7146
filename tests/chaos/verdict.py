"""What a storm did to the jobs: every job's record against its plan, and every execution against the records.

Reads Redis and the journals when all is quiet. The promises are in ``Verdict.broken``; nothing else decides.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bananas import errors, keys
from bananas.job import JobRecord
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.settings import LIMITS
from tests.chaos import plan
from tests.chaos.journal import Execution
from tests.chaos.plan import Disruption, Sent

#: Acknowledged this long before a kill of Redis, a job is on its disk.
DURABLE_S = 1.0
#: A report is on its way for less than this.
REPORT_S = 0.5
#: Outcomes of attempts that nothing in a plan asks for.
_BURNT = ("timeout", "oom", "crashed")


@dataclass(slots=True)
class Verdict:
    """The numbers of the table; what must be empty or 0 is checked by ``broken``."""

    title: str
    recovery_bound_s: float
    submitted: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    executions: int = 0
    #: Executions of an attempt that had been executed before: what at least once means.
    twice: int = 0
    twice_bound: int = 0
    lost: list[str] = field(default_factory=list)
    #: Missing, but acknowledged less than a second before Redis was killed.
    lost_young: int = 0
    stale: list[str] = field(default_factory=list)
    #: Reports and extensions that a zombie sent on purpose, and how many were taken.
    zombie: tuple[int, int] = (0, 0)
    burnt: list[str] = field(default_factory=list)
    handed_back: int = 0
    losses: int = 0
    starts: int = 0
    #: Two executions under one token: only a Redis that forgot a claim can cause that.
    same_token: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    narrow_peak: int = 0
    leftovers: dict[str, Any] = field(default_factory=dict)
    disruptions: Counter[str] = field(default_factory=Counter)

    @property
    def p99_s(self) -> float:
        """Of the time from the end of a runner to the next start of each of its jobs."""
        ordered = sorted(self.recoveries_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] if ordered else 0.0

    def table(self) -> str:
        """For people."""
        done = self.ends["completed"]
        others = ", ".join(f"{end} {n}" for end, n in sorted(self.ends.items()) if end != "completed")
        rows = [
            ("submitted", f"{self.submitted}"),
            ("completed", f"{done}" + (f" ({others})" if others else "")),
            ("executed twice", f"{self.twice} of {self.executions} executions (bound {self.twice_bound})"),
            ("lost", f"{len(self.lost)}" + (f" ({self.lost_young} younger than 1 s)" if self.lost_young else "")),
            ("stale results accepted", f"{len(self.stale) + self.zombie[1]} ({self.zombie[0]} sent by zombies)"),
            ("attempts burned by restarts", f"{len(self.burnt)} ({self.handed_back} handed back)"),
            ("recovery p99", f"{self.p99_s:.2f} s of {len(self.recoveries_s)}, allowed {self.recovery_bound_s:.2f} s"),
            ("limit of narrow", f"at most {self.narrow_peak} of {plan.NARROW}" if self.narrow_peak else "not used"),
            ("left behind", f"{self.leftovers or 'nothing'}"),
            ("disruptions", ", ".join(f"{kind} {n}" for kind, n in sorted(self.disruptions.items())) or "none"),
            ("lease losses", f"{self.losses}, start-up failures {self.starts}, tokens given twice {self.same_token}"),
        ]
        width = max(len(name) for name, _ in rows)
        head = f"{self.title} (seed {plan.seed()}, {plan.size()})"
        return "\n".join([head, *(f"  {name:<{width}}  {value}" for name, value in rows)])

    def broken(self) -> list[str]:
        """The promises that were not kept, each with its evidence."""
        out = []
        if self.lost:
            out.append(f"lost: {self.lost[:5]}")
        if self.stale or self.zombie[1]:
            out.append(f"stale results: {self.stale[:5]}, {self.zombie[1]} of a zombie")
        if self.burnt:
            out.append(f"burned: {self.burnt[:5]}")
        if self.twice > self.twice_bound:
            out.append(f"{self.twice} executed twice, at most {self.twice_bound} were in flight")
        if self.p99_s > self.recovery_bound_s:
            out.append(f"recovery p99 {self.p99_s:.2f} s, allowed {self.recovery_bound_s:.2f} s")
        if self.narrow_peak > plan.NARROW:
            out.append(f"{self.narrow_peak} attempts of narrow at once, allowed {plan.NARROW}")
        if self.leftovers:
            out.append(f"left behind: {self.leftovers}")
        return out

    def check(self, record: Callable[[str, object], None]) -> None:
        """Hand the table to ``record`` (pytest's ``record_property``) and fail when a promise is broken."""
        record("table", self.table())
        print(self.table())
        assert not self.broken(), "\n".join([*self.broken(), self.table()])


class Judge:
    """Fills a verdict."""

    def __init__(
        self, title: str, queue: Queue, sent: Sequence[Sent], disruptions: Sequence[Disruption], bound_s: float
    ) -> None:
        self.verdict = Verdict(title, bound_s, submitted=len(sent))
        self.verdict.disruptions = Counter(d.kind for d in disruptions)
        self._queue = queue
        self._sent = sent
        self._disruptions = disruptions
        self._by_job: dict[str, list[Execution]] = defaultdict(list)
        #: Any runner's claims and reports may have been lost on the way.
        self._anybody = any(d.kind in ("clients", "redis") for d in disruptions)
        self._stopped = {name for d in disruptions if d.kind != "restart" for name in d.runners}

    def judge(self, executions: Sequence[Execution]) -> Verdict:
        """All of it, but for what only the caller can tell."""
        verdict = self.verdict
        for execution in executions:
            self._by_job[execution.job_id].append(execution)
            verdict.executions += 1
        for found in self._by_job.values():
            verdict.twice += len(found) - len({e.attempt for e in found})
            verdict.same_token += len(found) - len({e.token for e in found})
        for sent in self._sent:
            self._judge_job(sent)
        cuts = [d for d in self._disruptions if d.kind not in ("restart", "gateway")]
        verdict.twice_bound = sum(_in_flight(d, executions) for d in cuts) + verdict.handed_back
        return verdict

    def _judge_job(self, sent: Sent) -> None:
        verdict, job_id = self.verdict, sent.job.id
        try:
            record = self._queue.show(job_id)
        except (errors.UnknownJob, errors.JobExpired):
            if self._is_young(sent):
                verdict.lost_young += 1
            elif sent.acked_s is not None:
                verdict.lost.append(f"{job_id} is gone")
            return
        history = [json.loads(line) for line in record.history]
        end = record.reason or record.state.value
        verdict.ends[end] += 1
        is_poisoned = end == "poisoned" and record.losses == LIMITS.max_losses
        if end != sent.plan.end and not is_poisoned:
            verdict.lost.append(f"{job_id} ({sent.plan.kind}) is {end}, not {sent.plan.end}")
        self._judge_history(sent, record, history)
        if end == "completed":
            self._judge_result(record, history)
        self._measure(job_id, history)

    def _is_young(self, sent: Sent) -> bool:
        acked_s = sent.acked_s
        return acked_s is not None and any(
            d.kind == "redis" and d.at_s - DURABLE_S <= acked_s <= d.until_s for d in self._disruptions
        )

    def _judge_history(self, sent: Sent, record: JobRecord, history: list[dict[str, Any]]) -> None:
        verdict = self.verdict
        outcomes = Counter(line["outcome"] for line in history)
        verdict.losses += outcomes["lost"]
        verdict.starts += outcomes["start"]
        verdict.handed_back += outcomes["handed_back"]
        over_budget = record.failures > sent.plan.failures
        if over_budget or any(outcomes[outcome] for outcome in _BURNT):
            verdict.burnt.append(f"{record.id} ({sent.plan.kind}): {dict(outcomes)}")
        for line in history:
            is_excused = line["runner"] in self._stopped or self._anybody
            if line["outcome"] == "lost" and not is_excused:
                verdict.burnt.append(f"{record.id}: lost by {line['runner']}, which nothing was done to")

    def _judge_result(self, record: JobRecord, history: list[dict[str, Any]]) -> None:
        """The stored result must be that of the last claim, exactly one attempt succeeded, and it did run."""
        result = json.loads(record.result or b"{}")
        last = [e for e in self._by_job[record.id] if e.token == record.token]
        succeeded = [line["token"] for line in history if line["outcome"] == "ok"]
        is_last = bool(last) and last[-1].nonce == result.get("nonce")
        if succeeded != [record.token] or result.get("token", record.token) != record.token or not is_last:
            self.verdict.stale.append(f"{record.id}: {result} of token {record.token}, succeeded: {succeeded}")

    def _measure(self, job_id: str, history: list[dict[str, Any]]) -> None:
        lost = [line for line in history if line["outcome"] == "lost"]
        for line in lost:
            again = next((e for e in self._by_job[job_id] if e.token > line["token"]), None)
            if again is None:
                continue
            if any(line["token"] < other["token"] < again.token for other in lost):
                continue  # the next runner had it and was lost before it began it: its recovery is that other one's
            # A runner may be stalled more than once.
            causes = [d for d in self._disruptions if line["runner"] in d.runners and d.at_s < again.begun_s]
            if not causes:
                continue
            cause = causes[-1]
            if any(d.kind == "redis" and cause.at_s < d.until_s and d.at_s < again.begun_s for d in self._disruptions):
                continue  # after an outage the reaper gives everybody one more lease
            self.verdict.recoveries_s.append(again.begun_s - cause.at_s)


def _in_flight(disruption: Disruption, executions: Sequence[Execution]) -> int:
    """Executions that it could cut short: running then, or with a report or a claim on the way."""
    until_s = disruption.until_s if disruption.kind == "redis" else disruption.at_s
    return sum(
        e.begun_s < until_s + REPORT_S and (e.ended_s or math.inf) > disruption.at_s - REPORT_S
        for e in executions
        if not disruption.runners or e.runner in disruption.runners
    )


def narrow_peak(executions: Iterable[Execution], jobs: set[str], disruptions: Sequence[Disruption]) -> int:
    """The most executions of the given jobs at the same moment; one whose runner was stopped ends with that."""
    stopped = {name: d.at_s for d in disruptions for name in d.runners}
    moments: list[tuple[float, int]] = []
    for e in executions:
        if e.job_id in jobs:
            ended_s = min(e.ended_s or math.inf, max(stopped.get(e.runner, math.inf), e.begun_s))
            moments += [(e.begun_s, 1), (ended_s, -1)]
    now = peak = 0
    for _, change in sorted(moments):
        now += change
        peak = max(peak, now)
    return peak


def leftovers(connections: Connections, queue: Queue) -> dict[str, Any]:
    """Whatever should not exist when nothing waits or runs."""
    found: dict[str, Any] = {}
    with connections.guard():
        client = connections.commands
        for pattern in ("running:*", "busy:*", "parked:*", "called:*", "lane:*"):
            for key in client.scan_iter(keys.PREFIX + pattern, count=1000):
                found[key.decode()] = "exists"
        for key in (keys.LEASES, keys.SCHEDULE, keys.EXPIRING):
            if count := client.zcard(key):
                found[key] = count
    cursor = 0
    while True:
        audit = queue.audit(cursor, 1000)
        found |= {f"repaired {kind}": n for kind, n in audit.repaired.items()}
        cursor = audit.cursor
        if not cursor:
            break
    if orphans := queue.counts().counters.get("orphans"):
        found["orphans"] = orphans
    return found
