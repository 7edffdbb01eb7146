"""The queue in plain Python: what every key in Redis holds after each operation, and what each operation answers.

Written from docs/states.md and DESIGN, not from the scripts' text: lists, sets and dicts instead of commands. The state
machine in ``test_queue_model`` runs each operation against a real server first and then against this model.

Times: only the server knows its clock. A time that an operation sets is a ``Now(offset_ms)`` here until the machine has
read the server's value and checked that it lies between the reads before and after the operation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bananas.job import Action

PRIORITIES = ("high", "normal", "low")
LIVE = ("pending", "scheduled", "parked", "processing")
STRIDE = 1008
#: How long a completed or cancelled job, and a dead letter, is kept.
RESULT_TTL_MS = 3_600_000
#: What a record stays beyond that when nobody sweeps.
UNSWEPT_MS = 60_000
#: A failed synchronous call.
CALL_MS = 24 * 3_600_000
#: How long an end may be told, and its record stays for that.
CALLBACK_MS = 24 * 3_600_000
DEAD_TTL_MS = 14 * 24 * 3_600_000


@dataclass(frozen=True)
class Now:
    """The server's time during the operation, plus an offset in ms."""

    offset_ms: int = 0


Time = int | Now


@dataclass
class Function:
    """What enqueue stamps on a job, and the limit."""

    version: str
    pool: str
    allow: tuple[str, ...]
    timeout_ms: int
    max_retries: int
    max_concurrency: int
    #: Jobs that its bucket holds; 0: it has no rate.
    burst: int = 0


@dataclass
class Pool:
    """A pool's shares: passes and weights of its lanes, virtual time, limit."""

    weights: dict[str, int] = field(default_factory=lambda: {"high": 16, "normal": 4, "low": 1})
    passes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PRIORITIES, 0.0))
    virtual: float = 0.0
    max_concurrency: int = 0


@dataclass
class Job:
    """One record, with the names of bananas.keys."""

    id: str
    fn: str
    ver: str
    pool: str
    prio: str
    state: str
    payload: bytes
    timeout: int
    maxr: int
    uniq: str
    waiters: list[str]
    expires: Time = 0
    created: Time = field(default_factory=Now)
    enqueued: Time = field(default_factory=Now)
    due: Time = field(default_factory=Now)
    finished: Time = 0
    token: int = 0
    failures: int = 0
    losses: int = 0
    starts: int = 0
    #: The last claim, if it and all before it were held up: nothing of it has begun.
    fresh: int = 0
    runner: str = ""
    reason: str = ""
    result: bytes = b""
    error: str = ""
    progress: bytes = b""
    pseq: int | None = None
    #: Its callback: url, number of the end, what became of it, tries, the last error.
    cb: str = ""
    cbend: int = 0
    cbstate: str = ""
    cbtries: int = 0
    cberr: str = ""
    sync: str = ""
    #: (token, outcome) per attempt.
    hist: list[tuple[int, str]] = field(default_factory=list)
    logs: dict[int, bytes] = field(default_factory=dict)
    #: Its turn among the jobs of one lane that never ran: only the FIFO check reads it.
    turn: int | None = None

    @property
    def lane(self) -> tuple[str, str]:
        """Where it waits when it is pending."""
        return self.pool, self.prio


@dataclass(frozen=True)
class Limits:
    """Those that the scripts get as arguments."""

    queued: int
    history: int
    dead: int
    push_bytes: int
    losses: int
    callbacks: int
    callback_tries: int
    calls: int


@dataclass(frozen=True)
class End:
    """An attempt's end, as a runner tells it."""

    id: str
    token: int
    action: Action
    outcome: str
    delay_ms: int = 0
    reason: str = ""
    result: bytes = b""
    logs: bytes = b""


class Model:
    """All state. Methods have the names and answers of the real operations, in plain values."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.jobs: dict[str, Job] = {}
        self.functions: dict[str, Function] = {}
        self.versions: set[tuple[str, str]] = set()
        self.pools: dict[str, Pool] = defaultdict(Pool)
        self.lanes: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.schedule: dict[str, Time] = {}
        self.leases: dict[str, Time] = {}
        self.expiring: dict[str, Time] = {}
        #: When the end of a job is told.
        self.callbacks: dict[str, Time] = {}
        self.is_rung_for_callbacks = False
        self.dead: dict[str, Time] = {}
        self.done: dict[str, Time] = {}
        #: Failed synchronous calls.
        self.calls: dict[str, Time] = {}
        #: Per function: (pool, rank of the priority, number, id), and those of them on their way back.
        self.parked: dict[str, set[tuple[str, int, int, str]]] = defaultdict(set)
        self.called: dict[str, set[tuple[str, int, int, str]]] = defaultdict(set)
        self.park_seq = 0
        self.bells: set[str] = set()
        #: Pools that may have been rung: two times of the server are too close to tell.
        self.perhaps: set[str] = set()
        self.unique: dict[tuple[str, str], dict[str, Any]] = {}
        self.tombs: set[str] = set()
        #: Per function the ids in its list, and the removed functions that still have one.
        self.listed: dict[str, set[str]] = defaultdict(set)
        self.unlisted: set[str] = set()
        self.replies: dict[str, list[tuple[str, str, int | None, bytes | None]]] = defaultdict(list)
        self.inbox: dict[str, list[str]] = defaultdict(list)
        self.counters: Counter[str] = Counter()
        #: Jobs taken from the bucket of a function with a rate; so slow a rate that none comes back.
        self.spent: Counter[str] = Counter()
        #: Server's ms before and after the operation that runs.
        self.window = (0, 0)
        self._turns = 0

    # -- small parts ------------------------------------------------------------------------------------------

    def running(self, fn: str) -> set[str]:
        """Ids of a function that have a lease."""
        return {i for i in self.leases if self.jobs[i].fn == fn}

    def busy(self, pool: str) -> set[str]:
        """Ids in a pool that have a lease."""
        return {i for i in self.leases if self.jobs[i].pool == pool}

    def limit(self, fn: str) -> int:
        """A function's max_concurrency; 0: none, also for one that was removed."""
        return self.functions[fn].max_concurrency if fn in self.functions else 0

    def room(self, fn: str) -> float:
        """How many more of a function may run."""
        return self.limit(fn) - len(self.running(fn)) if self.limit(fn) else float("inf")

    def ticket(self, job: Job) -> tuple[str, int, int, str]:
        """How parked and called name a job."""
        return job.pool, PRIORITIES.index(job.prio), job.pseq or 0, job.id

    def push(self, job: Job, at: int | None = None) -> None:
        """Into its lane, at the tail or at an index."""
        lane, pool = self.lanes[job.lane], self.pools[job.pool]
        if not lane:
            pool.passes[job.prio] = max(pool.passes[job.prio], pool.virtual)
        lane.insert(len(lane) if at is None else at, job.id)
        job.state = "pending"
        if at is None:
            self._turns += 1
            job.turn = self._turns
        self.bells.add(job.pool)

    def put_off(self, job: Job, due: Time) -> None:
        """Into the schedule; the earliest one rings."""
        self.schedule[job.id] = due
        job.state = "scheduled"
        order = [self._before(job.id, due, other, at) for other, at in self.schedule.items() if other != job.id]
        if all(is_before is not False for is_before in order):
            (self.bells if None not in order else self.perhaps).add(job.pool)

    def _before(self, job_id: str, due: Time, other: str, at: Time) -> bool | None:
        """Whether (due, id) comes before (at, other); None: cannot be told."""
        if isinstance(due, Now) == isinstance(at, Now):
            mine, theirs = (t.offset_ms if isinstance(t, Now) else t for t in (due, at))
            return (mine, job_id) < (theirs, other)
        assert isinstance(due, Now)
        assert isinstance(at, int)
        earliest, latest = (t + due.offset_ms for t in self.window)
        return True if latest < at else False if earliest > at else None

    def finish(
        self, job: Job, state: str, reason: str = "", result: bytes = b"", error: str = "", last: int | None = None
    ):
        """A job in no place any more ends: books, waiters, unique key."""
        job.state, job.reason, job.result, job.error = state, reason, result, error
        job.finished = Now()
        if state == "failed" and job.sync:
            self.calls[job.id] = Now()
        elif state == "failed":
            self.dead[job.id] = Now()
            self.counters[f"dead:{reason}"] += 1
        else:
            self.done[job.id] = Now(max(RESULT_TTL_MS, CALLBACK_MS) if job.cb else RESULT_TTL_MS)
        if job.cb:
            job.cbend += 1
            job.cbstate, job.cbtries, job.cberr = "pending", 0, ""
            self.callbacks[job.id] = Now()
            self.is_rung_for_callbacks = True
        pushed = result if len(result) <= self.limits.push_bytes or state == "cancelled" else None
        for name in job.waiters:
            self.replies[name].append((job.id, state, last, pushed))
        job.waiters = []
        holder = self.unique.get((job.fn, job.uniq)) if job.uniq else None
        if holder and holder["id"] == job.id:
            holder.update(state=state, ver=job.ver, timeout=job.timeout, is_for_ever=False)

    def remember(self, job: Job, outcome: str, logs: bytes = b"") -> None:
        """One more attempt in the history, with its logs."""
        job.hist.append((job.token, outcome))
        if logs:
            job.logs[job.token] = logs
        if len(job.hist) > self.limits.history:
            job.logs.pop(job.hist.pop(0)[0], None)
        self.counters[f"outcome:{job.fn}:{outcome}"] += 1
        if outcome == "lost":
            self.counters["lost"] += 1

    def call(self, fn: str) -> None:
        """Call parked jobs back: in each lane, of all that have a number the first ones that find room."""
        room = self.room(fn)
        for lane in sorted({ticket[:2] for ticket in self.parked[fn]}) if room > 0 else ():
            waiting = {t for t in self.parked[fn] if t[:2] == lane}
            called = {t for t in self.called[fn] if t[:2] == lane}
            ranked = sorted(waiting | called)
            chosen = [t for rank, t in enumerate(ranked) if t in waiting and rank < room]
            for ticket in reversed(chosen):
                job = self.jobs[ticket[3]]
                ahead = [t[3] for t in sorted(called) if t < ticket]
                self.push(job, self.lanes[job.lane].index(ahead[-1]) + 1 if ahead else 0)
            self.parked[fn] -= set(chosen)
            self.called[fn] |= set(chosen)

    def give_back(self, jobs: Iterable[Job]) -> None:
        """To the heads of their lanes, oldest first; before all that wait for the same place."""

        def age(job: Job) -> tuple[int, str]:
            assert isinstance(job.enqueued, int)
            return job.enqueued, job.id

        for job in sorted(jobs, key=age, reverse=True):
            job.turn = None
            if self.limit(job.fn):
                job.pseq = 0
                self.called[job.fn].add(self.ticket(job))
            self.push(job, 0)

    def end_lease(self, job: Job) -> None:
        """Its pool may have room again."""
        del self.leases[job.id]
        if self.pools[job.pool].max_concurrency:
            self.bells.add(job.pool)

    def unqueue(self, job: Job) -> None:
        """Out of where it waits."""
        if job.state == "scheduled":
            del self.schedule[job.id]
        elif job.state == "parked":
            self.parked[job.fn].remove(self.ticket(job))
        else:
            self.lanes[job.lane].remove(job.id)
            self.called[job.fn].discard(self.ticket(job))

    def queued_in(self, pool: str, fn: str) -> int:
        """Jobs that wait where a new one would."""
        return len(self.schedule) + len(self.parked[fn]) + sum(len(self.lanes[pool, prio]) for prio in PRIORITIES)
