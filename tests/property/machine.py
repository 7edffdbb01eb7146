"""What every step of the model test is made of: an operation on the server, the same on the model, and a comparison.

Called by ``test_queue_model``, which says what the steps are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from bananas.callbacks import Callbacks, Delivery, Verdict
from bananas.dead_letters import DeadLetters
from bananas.job import Claim, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, RateSpec, RetrySpec
from tests.bells import rings
from tests.property import answers
from tests.property.inspect_redis import Dump, Inspector, compare
from tests.property.model import PRIORITIES, Function, Limits, Model
from tests.property.model_ops import New, QueueModel
from tests.property.promises import keeps_promises

#: Small, so that programs of 50 steps meet them.
SMALL = replace(
    LIMITS, queued_jobs=18, history=3, dead_jobs=6, push_bytes=8, callbacks=4, callback_tries=2, failed_calls=2
)
CODE = b"code"
SHA = hashlib.sha256(CODE).hexdigest()
LEASE_MS = answers.HOUR_MS
FUNCTIONS = ("a", "b", "c")
#: So slow that nothing comes back in a program.
RATES = {"c": RateSpec(limit="1/h", burst=12)}


class Both(RuleBasedStateMachine):
    """Runs each operation on the server, then on the model, and compares."""

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self.redis = connections.commands
        self.redis.flushdb()
        self.queue = Queue(connections)
        self.letters = DeadLetters(connections)
        self.callbacks = Callbacks(connections)
        self.registry = Registry(connections)
        self.inspector = Inspector(connections)
        limits = Limits(
            *(SMALL.queued_jobs, SMALL.history, SMALL.dead_jobs, SMALL.push_bytes, SMALL.max_losses),
            *(SMALL.callbacks, SMALL.callback_tries, SMALL.failed_calls),
        )
        self.model = QueueModel(limits)
        self.known: list[New] = []
        self.claims: list[Claim] = []
        self.deliveries: list[Delivery] = []
        self.now_ms = self.inspector.dump().now_ms
        self.registry.put_bundle(SHA, CODE)
        self.put("gpu", PoolSpec())
        for name, limit in zip(FUNCTIONS, (None, 1, 2), strict=True):
            self.install(name, limit, 30_000)

    # -- how a step is made -----------------------------------------------------------------------------------

    def look(self) -> Dump:
        """After the real operation and before the model's."""
        dump = self.inspector.dump()
        self.model.window = (self.now_ms, dump.now_ms)
        self.now_ms = dump.now_ms
        return dump

    def both(self, real: Callable[[], Any], expected: Callable[[Model], Any]) -> Any:
        """Do it twice, compare the answers and everything that is stored."""
        answer = real()
        dump = self.look()
        wanted = expected(self.model)
        assert answer == wanted, f"the server answers {answer!r}, the model {wanted!r}"
        compare(self.model, dump)
        keeps_promises(self.model)
        return answer

    def rewind(self, key: str, ats: list[int], times: dict[str, Any]) -> list[str]:
        """Move the times of some jobs in a sorted set into the past: the server's clock cannot be moved."""
        ids = list(dict.fromkeys(self.pick(times, at) for at in ats)) if times else []
        for score, job_id in enumerate(ids, start=1):
            self.redis.zadd(key, {job_id: score // 2}, xx=True)
            times[job_id] = score // 2
        return ids

    def pick(self, ids: Any, at: int) -> str:
        """One of some ids; an unknown one when there are none."""
        found = sorted(ids)
        return found[at % len(found)] if found else "nobody"

    def fresh(self, spec: dict[str, Any]) -> New:
        new = New(f"j{len(self.known):03}", **spec)
        self.known.append(new)
        return new

    def send(self, new: New) -> None:
        self.both(lambda: answers.created(self.queue, answers.new_job(new)), lambda m: answers.public(m.create(new)))

    def create_all(self, specs: list[dict[str, Any]]) -> None:
        news = [self.fresh(spec) for spec in specs]
        self.both(
            lambda: [
                answers.shown(answer) for answer in self.queue.enqueue_many([answers.new_job(new) for new in news])
            ],
            lambda m: [answers.public(m.create(new)) for new in news],
        )

    def run_step(self, ends: list[Settlement], free: list[tuple[str, int]], is_called: bool) -> None:
        for pool, _ in free:
            if is_called and pool in self.model.bells:
                assert rings(self.queue, pool, 1)
                self.model.bells.discard(pool)
        claims: list[Claim] = []

        def real() -> Any:
            step = self.queue.step("r1", LEASE_MS, ends, free)
            claims.extend(step.claims)
            return step.settled, [answers.told(c) for c in step.claims]

        self.both(real, lambda m: m.step("r1", LEASE_MS, [answers.end_of(s) for s in ends], free))
        self.claims += claims
        for c in claims:
            limit = self.model.limit(c.function)
            assert not limit or len(self.model.running(c.function)) <= limit
            limit = self.model.pools[c.pool].max_concurrency
            assert not limit or len(self.model.busy(c.pool)) <= limit

    def take(self, most: int) -> None:
        """Callbacks that are due."""

        def real() -> Any:
            taken = self.callbacks.take(most, LEASE_MS).deliveries
            self.deliveries += taken
            return [(d.job_id, d.url, d.end, d.number, d.record.state.value) for d in taken]

        self.both(real, lambda m: [answers.public(row) for row in m.take_callbacks(most, LEASE_MS)])

    def tell(self, d: Delivery, verdict: Verdict) -> None:
        """How a try went."""
        error = "" if verdict == "delivered" else "down"
        self.both(
            lambda: self.callbacks.told(d, verdict, LEASE_MS, error),
            lambda m: m.told(d.job_id, d.end, d.number, verdict, LEASE_MS, error),
        )

    def stale(self) -> list[Claim]:
        """Attempts that were given up while a later one of the same job runs."""
        jobs = self.model.jobs
        return [c for c in self.claims if c.id in self.model.leases and jobs[c.id].token != c.token]

    def install(self, name: str, limit: int | None, timeout_ms: int, retries: int = 3) -> None:
        spec = FunctionSpec(
            allow_pools=("gpu",),
            timeout_ms=timeout_ms,
            max_concurrency=limit,
            retries=RetrySpec(max=retries),
            rate=RATES.get(name),
        )
        deployment = Deployment(spec=spec, bundles=Bundles(code=SHA), abi="x")
        burst = spec.rate.most if spec.rate else 0
        f = Function(deployment.version(), "default", spec.allow_pools, timeout_ms, retries, limit or 0, burst)
        self.both(lambda: self.registry.deploy(name, deployment) and None, lambda m: m.deploy(name, f))

    def put(self, name: str, spec: PoolSpec) -> None:
        weights = {prio: getattr(spec.weights, prio) for prio in PRIORITIES}
        if self.registry.pools().get(name) != spec or name not in self.model.pools:
            self.both(
                lambda: self.registry.put_pool(name, spec) and None,
                lambda m: m.put_pool(name, weights, spec.max_concurrency or 0),
            )
