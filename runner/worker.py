"""The loop between queue and sandboxes: settle what ended, claim what fits, run each claim in a greenlet of its own.

Nothing else may call ``Queue.step``. One step is under way at a time; outcomes that arrive meanwhile ride on the next
one, so batching merges only what is ready and a result never waits for company. A pool that has places and no jobs has
its places *promised* to a claim that waits in Redis for the pool's bell (``Bell``): who enqueues a job thereby gives it
to this runner, without a word from here. Such a claim is renewed every 5 seconds (half a lease, if that is less), so a
lost ring costs at most that.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import gevent
from gevent.event import Event

from bananas import events, logs
from bananas.errors import RedisUnavailable
from bananas.job import Claim, Settlement
from bananas.queue import Queue, Step
from bananas.redis_client import BLOCK_S
from runner.crew import Crew
from runner.executor import Executor, Running
from runner.heartbeat import InFlight
from runner.pool import SandboxPool
from runner.service import GreenletService, PeriodicService
from runner.tally import Tally

_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class Worker(GreenletService):
    """See the module."""

    name = "worker"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        queue: Queue,
        executor: Executor,
        pools: dict[str, SandboxPool],
        in_flight: InFlight,
        runner: str,
        lease_s: float,
        on_step: Callable[[Step], None],
        free: Callable[[SandboxPool], int] = lambda pool: pool.free,
        tally: Tally | None = None,
    ) -> None:
        """``pools`` is shared with the supervisor, which adds to it; ``on_step`` hears of every answer of the queue.
        ``free`` says how many attempts of a pool can be taken on now."""
        super().__init__(on_crash)
        self._queue = queue
        self._executor = executor
        self._pools = pools
        self._in_flight = in_flight
        self._runner = runner
        self._lease_ms = round(lease_s * 1000)
        #: Shorter than what is left of a lease: when a runner stands still, the claim that it has in Redis must be over
        #: before the jobs that it had come back, or it is given them again.
        self._wait_s = min(BLOCK_S, lease_s / 2)
        self._on_step = on_step
        self.free = free
        self._tally = tally or Tally()
        self._crew = Crew(partial(on_crash, "attempt"))
        self._outbox: list[Settlement] = []
        self._wake = Event()
        self._drained = Event()
        #: Pools whose bell rang; their lanes are worth a look.
        self._rung: set[str] = set()
        self._turn = 0
        self._is_stepping = False
        self._is_handing_back = False
        self.claiming = True
        #: Set at the end of every step.
        self.stepped = Event()
        #: Pools that had more free places than jobs when they were looked at last.
        self._dry: set[str] = set()
        #: Places that no step may fill, since a claim for them waits in Redis, by pool.
        self._promised: dict[str, int] = {}
        #: Places that the step under way may fill, by pool.
        self._asked: dict[str, int] = {}
        #: When the last step was sent, in monotonic seconds, and what the server's clock said then.
        self._reference: tuple[float, int] | None = None

    # -- what others do ---------------------------------------------------------------------------------------

    def rang(self, pool: str) -> None:
        """A pool's bell rang."""
        self._rung.add(pool)
        self._wake.set()

    def wake(self) -> None:
        """Look again."""
        self._wake.set()

    def is_dry(self, pool: str) -> bool:
        """True when the last look at a pool left places free, so that only its bell can tell of more jobs."""
        return pool in self._dry

    def look_soon(self, pool: str) -> None:
        """Have a pool with free places looked at, by the step that is coming anyway if there is one."""
        if not self._outbox and not self._is_stepping:
            self.rang(pool)

    def places(self, pool: SandboxPool) -> int:
        """How many attempts of a pool no claim is under way for could be taken on."""
        taken = self._promised.get(pool.name, 0) + self._asked.get(pool.name, 0)
        return max(0, self.free(pool) - taken) if self.claiming else 0

    def is_asking(self, pool: str) -> bool:
        """True while a step is under way that may fill places of the pool."""
        return self._asked.get(pool, 0) > 0

    def claim_on_ring(self, pool: SandboxPool) -> bool:
        """Have a claim for a pool's free places wait in Redis until its bell rings; False when Redis was away."""
        places, sent_s, step = self.places(pool), time.monotonic(), None
        self.promise(pool.name, places)
        try:
            step = self._queue.step_on_ring(self._runner, self._lease_ms, pool.name, places, self._wait_s)
        except RedisUnavailable as e:
            events.WORKER_WAITS(error=e)
        finally:
            self.kept(pool.name, sent_s, step)
        return step is not None

    def promise(self, pool: str, places: int) -> None:
        """Keep places for a claim that is about to wait in Redis."""
        self._promised[pool] = places

    def kept(self, pool: str, sent_s: float, step: Step | None) -> None:
        """That claim, sent at ``sent_s`` (monotonic), is over; ``step`` is what it brought, if anything is known."""
        places = self._promised.pop(pool)
        if step is None:
            self.rang(pool)  # what rang meanwhile is unknown
        else:
            self._note_dry(pool, len(step.claims), places)
            claimed_s = self._claimed_s(sent_s, step.now_ms)
            is_fresh = self._is_fresh(claimed_s)
            for claim in step.claims:
                # By now the place may be gone: fewer are allowed, or the runner stops.
                is_welcome = is_fresh and self.claiming and self.free(self._pools[pool]) > 0
                self._begin(claim, claimed_s, is_welcome=is_welcome)
            self._on_step(step)
        self._drained.set()

    def _claimed_s(self, sent_s: float, now_ms: int) -> float:
        """When a claim was made that waited in Redis, in monotonic seconds, rather too early than too late: the time
        that the server's clock tells to be between it and the last step. Its answer may be old by now."""
        if self._reference is None:
            return sent_s
        then_s, then_ms = self._reference
        return max(sent_s, min(time.monotonic(), then_s + (now_ms - then_ms) / 1000))

    def _is_fresh(self, claimed_s: float) -> bool:
        """False when this process stood still since: another one may have the jobs, or soon will."""
        return (time.monotonic() - claimed_s) * 2000 < self._lease_ms

    def drain(self, deadline_s: float) -> bool:
        """Stop claiming and wait for running attempts; False when some were still running at the deadline."""
        self.claiming = False
        if self._promised:
            gevent.spawn(self._call_off, list(self._promised))  # a Redis that does not answer takes nothing of the time
        deadline = time.monotonic() + deadline_s
        while self._has_work and time.monotonic() < deadline:
            self._drained.clear()
            self._drained.wait(timeout=max(0.0, deadline - time.monotonic()))
        return not self._has_work

    @property
    def _has_work(self) -> bool:
        """Attempts in flight, or a claim under way that may bring some."""
        return self._is_stepping or bool(self._promised) or len(self._in_flight) > 0

    def _call_off(self, pools: list[str]) -> None:
        try:
            self._queue.call_off(self._runner, pools)
        except RedisUnavailable as e:
            events.WORKER_WAITS(error=e)  # then the claims end by their own time, or with their connections

    def hand_back(self, deadline_s: float) -> None:
        """Return what still runs to the head of its lane: each sandbox is ended first, then the job goes back."""
        self._is_handing_back = True
        for running in self._in_flight.all():
            running.hand_back()
        self.drain(deadline_s)

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until stopped and everything is settled or the queue is out of reach."""
        failures = 0
        self._rung.update(self._pools)
        while not self.stopping.is_set():
            if not self._outbox and not self._rung:
                if not self._wake.wait(timeout=BLOCK_S):
                    self._rung.update(self._pools)
                self._wake.clear()
                continue
            try:
                self._step()
                failures = 0
            except RedisUnavailable as e:
                if failures == 0:
                    events.WORKER_WAITS(error=e)
                self.stopping.wait(timeout=_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                # Whatever rang while Redis was away is unknown.
                self._rung.update(self._pools)

    def _step(self) -> None:
        ready, rung = self._outbox, self._rung
        self._outbox, self._rung = [], set()
        sent_s = time.monotonic()
        self._is_stepping = True
        free = self._free(rung)
        self._asked = dict(free)
        try:
            step = self._queue.step(self._runner, self._lease_ms, ready, free)
        except RedisUnavailable:
            self._outbox = ready + self._outbox
            self._rung |= rung
            raise
        finally:
            self._is_stepping, self._asked = False, {}
            self._drained.set()
            self.stepped.set()
        self._reference = (sent_s, step.now_ms)
        claimed = Counter(claim.pool for claim in step.claims)
        for pool, places in free:
            if places or pool not in self._promised:
                self._note_dry(pool, claimed[pool], places)
        for settlement, accepted in zip(ready, step.settled, strict=True):
            claim = settlement.claim
            self._in_flight.remove(claim)
            self._tally.settled(claim.pool, settlement.attempt, accepted)
            if not accepted:
                events.ATTEMPT_REFUSED(job=claim.id, token=claim.token)
        is_fresh = self._is_fresh(sent_s)
        for claim in step.claims:
            # Not when the shutdown began meanwhile.
            self._begin(claim, sent_s, is_welcome=is_fresh and not self._is_handing_back)
        self._on_step(step)

    def _note_dry(self, pool: str, claimed: int, places: int) -> None:
        (self._dry.add if claimed < places else self._dry.discard)(pool)

    def _free(self, rung: set[str]) -> list[tuple[str, int]]:
        """The pools to name in a step: those with free slots, and full ones whose bell must be passed on. Rotated, so
        that no pool is always first."""
        names = sorted(self._pools)
        self._turn += 1
        free = []
        for i in range(len(names)):
            name = names[(i + self._turn) % len(names)]
            slots = self.places(self._pools[name])
            if slots or name in rung:
                free.append((name, slots))
        return free

    def _begin(self, claim: Claim, lease_seen_s: float, *, is_welcome: bool) -> None:
        forgotten = self._in_flight.get(claim.id, claim.token)
        if forgotten is not None:  # a failover lost that claim, so its token was given again
            forgotten.abandon("claimed again")
        running = Running(claim, lease_seen_s=lease_seen_s)
        self._in_flight.add(running)
        if not is_welcome:
            running.hand_back()
        pool = self._pools[claim.pool]
        # Now, not when the greenlet gets to run: the next step may be sent before that.
        pool.reserve()
        self._crew.run(partial(self._attempt, running, pool))

    def _attempt(self, running: Running, pool: SandboxPool) -> None:
        claim = running.claim
        logs.bind(
            job=claim.id,
            function=claim.function,
            version=claim.version,
            pool=claim.pool,
            trace=logs.trace_id(claim.traceparent),
        )
        settlement = self._executor.run(running, pool)
        if settlement is None:
            self._tally.abandoned(running.abandoned)
            self._in_flight.remove(running.claim)
            # Its slot is free again: there may be work for it.
            self.rang(pool.name)
            self._drained.set()
        else:
            self._outbox.append(settlement)
            self._wake.set()


class Bell(GreenletService):
    """Claims at the ring of one pool's bell, while the pool has free places and no jobs."""

    def __init__(self, on_crash: Callable[[str, BaseException], None], pool: SandboxPool, worker: Worker) -> None:
        super().__init__(on_crash)
        self.name = f"bell:{pool.name}"
        self._pool = pool
        self._worker = worker

    def run(self) -> None:
        """Wait and claim, again and again."""
        pool, worker = self._pool, self._worker
        while not self.stopping.is_set() and worker.claiming:
            if not worker.free(pool):
                # The step that settles an attempt's end claims what is there; this only listens for later.
                pool.freed.clear()
                pool.freed.wait(timeout=BLOCK_S)
            elif worker.is_asking(pool.name) or not worker.is_dry(pool.name):
                # Jobs may be waiting: no need to be told so.
                worker.stepped.clear()
                worker.look_soon(pool.name)
                worker.stepped.wait(timeout=BLOCK_S)
            elif worker.claim_on_ring(pool):
                gevent.sleep(0)  # what was claimed is sent to its sandboxes before this waits again
            else:
                self.stopping.wait(timeout=_BACKOFF_S[-1])


class Inbox(PeriodicService):
    """Hears at once of what concerns this runner: cancelled or followed attempts, changed pools, deployed
    functions."""

    name = "inbox"

    def __init__(
        self,
        on_crash: Callable[[str, BaseException], None],
        queue: Queue,
        in_flight: InFlight,
        runner: str,
        on_pools: Callable[[], None],
        on_deployed: Callable[[str], None],
        on_followed: Callable[[Running], None] = lambda _: None,
    ) -> None:
        super().__init__(on_crash, 0.0)
        self._on_followed = on_followed
        self._on_deployed = on_deployed
        self._queue = queue
        self._in_flight = in_flight
        self._runner = runner
        self._on_pools = on_pools

    def run_once(self) -> float | None:
        """Block for one message."""
        match self._queue.pop_inbox(self._runner, BLOCK_S):
            case ("cancel", job_id, token):
                self._in_flight.tell(job_id, int(token), lambda running: running.abandon("cancelled"))
            case ("follow", job_id, token):
                self._in_flight.tell(job_id, int(token), self._on_followed)
            case ("pools",):
                self._on_pools()
            case ("deployed", function):
                self._on_deployed(function)
        return 0.0

    def unavailable(self) -> None:
        """Redis is away: do not spin."""
        self.stopping.wait(timeout=_BACKOFF_S[-1])
