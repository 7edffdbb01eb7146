"""The queue against a model: programs of every operation, on a real server, compared key by key after each step."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bananas import dead_letters, keys
from bananas import queue as queue_module
from bananas.dead_letters import DeadFilter, DeadLetters
from bananas.embedded import EmbeddedRedis
from bananas.job import Claim, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, RetrySpec, Weights
from tests.property import answers
from tests.property.inspect_redis import Dump, Inspector, compare
from tests.property.model import PRIORITIES, Function, Limits, Model
from tests.property.model_ops import New, QueueModel
from tests.property.promises import keeps_promises

IS_LONG = os.environ.get("BANANAS_HYPOTHESIS") == "long"
EXAMPLES = 20_000 if IS_LONG else 500
STEPS = 50

#: Small, so that programs of 50 steps meet them.
SMALL = replace(LIMITS, queued_jobs=18, history=3, dead_jobs=6, push_bytes=8)
CODE = b"code"
SHA = hashlib.sha256(CODE).hexdigest()
LEASE_MS = answers.HOUR_MS
FUNCTIONS = ("a", "b", "c")
POOLS = ("default", "gpu")
REPLIES = (keys.reply("g1"), keys.reply("g2"))
#: What a runner may tell: action, outcome, reason.
ENDS: tuple[tuple[Any, Outcome, str], ...] = (
    ("complete", Outcome.OK, ""),
    ("back", Outcome.HANDED_BACK, ""),
    ("retry", Outcome.ERROR, ""),
    ("dead", Outcome.TIMEOUT, "retries_exhausted"),
    ("dead", Outcome.PERMANENT, "permanent"),
    ("retry", Outcome.START, ""),
    ("dead", Outcome.START, "start_failed"),
)

picks = st.integers(0, 60)
hours = st.integers(1, 4)
some = st.lists(picks, min_size=1, max_size=4, unique=True)
functions = st.sampled_from(FUNCTIONS)
pools = st.sampled_from(POOLS)
slots = st.integers(0, 4)
free_slots = st.sampled_from([("default",), ("gpu",), POOLS, POOLS[::-1]]).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), slots) for name in names)).map(list)
)
new_jobs = st.fixed_dictionaries(
    {"fn": functions},
    optional={
        "pool": st.sampled_from(["gpu"] * 5 + ["nopool"]),
        "prio": st.sampled_from(PRIORITIES),
        "delay_ms": hours.map(lambda h: h * LEASE_MS),
        "run_at_ms": st.just(1000),
        "expires_ms": st.just(LEASE_MS),
        "unique_key": st.sampled_from(["k1", "k2"]),
        "reply_to": st.sampled_from(REPLIES),
        "timeout_ms": st.sampled_from([100, 10_000_000]),
        "max_retries": st.integers(0, 5),
    },
)


@pytest.fixture(scope="module")
def server() -> Iterator[Connections]:
    """A Redis of its own, on a Unix socket, without persistence."""
    with tempfile.TemporaryDirectory(prefix="bn-") as folder:
        redis = EmbeddedRedis(Path(folder) / "redis", unix_socket=Path(folder) / "r")
        redis.start()
        connections = Connections(redis.url)
        try:
            connections.commands.config_set("appendonly", "no")
            yield connections
        finally:
            connections.close()
            redis.stop()


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "LIMITS", SMALL)
    monkeypatch.setattr(dead_letters, "LIMITS", SMALL)


def test_the_queue_does_what_the_model_says(server, small_limits):
    """Whatever is done in whatever order: every key, every answer and every promise after every step."""
    run_state_machine_as_test(
        lambda: Machine(server),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not IS_LONG,
            database=None,
            print_blob=True,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


class Machine(RuleBasedStateMachine):
    """Runs each operation on the server, then on the model, and compares."""

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self.redis = connections.commands
        self.redis.flushdb()
        self.queue = Queue(connections)
        self.letters = DeadLetters(connections)
        self.registry = Registry(connections)
        self.inspector = Inspector(connections)
        limits = Limits(SMALL.queued_jobs, SMALL.history, SMALL.dead_jobs, SMALL.push_bytes, SMALL.max_losses)
        self.model = QueueModel(limits)
        self.known: list[New] = []
        self.claims: list[Claim] = []
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

    # -- gateways ---------------------------------------------------------------------------------------------

    def fresh(self, spec: dict[str, Any]) -> New:
        new = New(f"j{len(self.known):03}", **spec)
        self.known.append(new)
        return new

    @rule(spec=new_jobs)
    def enqueue(self, spec):
        self.send(self.fresh(spec))

    @rule(fn=functions, n=st.integers(2, 6), prio=st.sampled_from(PRIORITIES), pool=st.sampled_from([None, "gpu"]))
    def enqueue_alike(self, fn, n, prio, pool):
        self.create_all([{"fn": fn, "prio": prio, "pool": pool}] * n)

    @precondition(lambda self: self.known)
    @rule(at=picks)
    def send_again(self, at):
        self.send(self.known[at % len(self.known)])

    def send(self, new: New) -> None:
        self.both(lambda: answers.created(self.queue, answers.new_job(new)), lambda m: answers.public(m.create(new)))

    @initialize(specs=st.lists(new_jobs, max_size=8))
    def begin(self, specs):
        self.create_all(specs)

    @rule(specs=st.lists(new_jobs, min_size=2, max_size=6))
    def enqueue_many(self, specs):
        self.create_all(specs)

    def create_all(self, specs: list[dict[str, Any]]) -> None:
        news = [self.fresh(spec) for spec in specs]
        self.both(
            lambda: [
                answers.shown(answer) for answer in self.queue.enqueue_many([answers.new_job(new) for new in news])
            ],
            lambda m: [answers.public(m.create(new)) for new in news],
        )

    @rule(at=picks, reply_to=st.sampled_from(REPLIES))
    def wait(self, at, reply_to):
        job_id = self.pick(self.model.jobs, at)
        self.both(lambda: answers.waited(self.queue, job_id, reply_to), lambda m: m.wait(job_id, reply_to))

    @precondition(lambda self: any(self.model.replies.values()))
    @rule()
    def pop_replies(self):
        for name in [name for name, told in self.model.replies.items() if told]:
            popped = self.queue.pop_replies(name, 1, 100)
            assert [(r.id, r.state.value, r.result) for r in popped] == [
                (job_id, state, result) for job_id, state, _, result in self.model.replies.pop(name)
            ]

    @rule(at=picks)
    def cancel(self, at):
        job_id = self.pick(self.model.jobs, at)
        self.both(lambda: answers.cancelled(self.queue, job_id), lambda m: m.cancel(job_id))

    # -- runners ----------------------------------------------------------------------------------------------

    @rule(free=free_slots, is_called=st.booleans())
    def claim(self, free, is_called):
        self.run_step([], free, is_called)

    @precondition(lambda self: self.model.bells)
    @rule(n=st.integers(1, 6))
    def answer_the_bells(self, n):
        self.run_step([], [(pool, n) for pool in sorted(self.model.bells)], True)

    @precondition(lambda self: self.claims)
    @rule(
        told=st.lists(st.tuples(picks, st.sampled_from(ENDS), hours, st.booleans()), min_size=1, max_size=4),
        free=st.just([]) | free_slots,
        is_latest=st.sampled_from([True, True, True, False]),
    )
    def settle(self, told, free, is_latest):
        running = [c for c in self.claims if c.id in self.model.leases and self.model.jobs[c.id].token == c.token]
        among = running if is_latest and running else self.claims
        self.run_step([answers.settlement(among[at % len(among)], *rest) for at, *rest in told], free, True)

    def run_step(self, ends: list[Settlement], free: list[tuple[str, int]], is_called: bool) -> None:
        for pool, _ in free:
            if is_called and pool in self.model.bells:
                assert self.queue.ring(pool, 1)
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

    def stale(self) -> list[Claim]:
        """Attempts that were given up while a later one of the same job runs."""
        jobs = self.model.jobs
        return [c for c in self.claims if c.id in self.model.leases and jobs[c.id].token != c.token]

    @precondition(lambda self: self.stale())
    @rule(at=picks, how=st.sampled_from(ENDS))
    def report_too_late(self, at, how):
        """A runner that was given up tells of its attempt, in every way that it could."""
        c = self.stale()[at % len(self.stale())]
        self.run_step([answers.settlement(c, how, 1, False)], [], False)
        self.both(
            lambda: self.queue.extend(LEASE_MS, [(c.id, c.token)]), lambda m: m.extend(LEASE_MS, [(c.id, c.token)])
        )
        self.both(lambda: self.queue.progress([(c.id, c.token, b"9")]), lambda m: [m.progress(c.id, c.token, b"9")])

    @precondition(lambda self: self.model.leases)
    @rule(hows=st.lists(st.sampled_from(ENDS), min_size=3, max_size=3), free=free_slots)
    def settle_all(self, hows, free):
        """What a busy runner does: every attempt ends, and the next ones begin."""
        latest = {c.id: c for c in self.claims if c.id in self.model.leases}
        ends = [answers.settlement(c, hows[at % 3], 1 + at % 4, False) for at, c in enumerate(latest.values())]
        self.run_step(ends, free, True)

    @precondition(lambda self: self.claims)
    @rule(ats=st.lists(picks, min_size=1, max_size=4))
    def extend(self, ats):
        attempts = [(c.id, c.token) for c in (self.claims[at % len(self.claims)] for at in ats)]
        self.both(lambda: self.queue.extend(LEASE_MS, attempts), lambda m: m.extend(LEASE_MS, attempts))

    @precondition(lambda self: self.claims)
    @rule(at=picks, text=st.sampled_from([b"1", b'{"done":2}']))
    def progress(self, at, text):
        c = self.claims[at % len(self.claims)]
        self.both(lambda: self.queue.progress([(c.id, c.token, text)]), lambda m: [m.progress(c.id, c.token, text)])

    @precondition(lambda self: self.model.schedule)
    @rule(ats=some)
    def promote(self, ats):
        self.rewind(keys.SCHEDULE, ats, self.model.schedule)
        self.both(lambda: self.queue.promote()[0], lambda m: m.promote())

    @precondition(lambda self: self.model.leases)
    @rule(ats=some)
    def reap(self, ats):
        self.rewind(keys.LEASES, ats, self.model.leases)
        self.both(self.queue.reap, lambda m: m.reap())

    @precondition(lambda self: self.model.expiring)
    @rule(ats=some, is_claimed=st.booleans())
    def expire(self, ats, is_claimed):
        for job_id in self.rewind(keys.EXPIRING, ats, self.model.expiring):
            self.redis.hset(keys.job(job_id), "expires", 1)
            self.model.jobs[job_id].expires = 1
        if is_claimed:
            self.run_step([], [("default", 1), ("gpu", 1)], False)
        else:
            self.both(self.queue.expire, lambda m: m.expire())

    @precondition(lambda self: self.model.done or self.model.dead)
    @rule(ats=some)
    def sweep(self, ats):
        for key, times in ((keys.DONE, self.model.done), (keys.DEAD, self.model.dead)):
            self.rewind(key, ats[:2], times)
        self.both(self.queue.sweep, lambda m: m.sweep())

    @rule()
    def nothing_is_due(self):
        """What every runner asks again and again."""
        self.both(lambda: self.queue.promote()[0], lambda m: m.promote())
        self.both(self.queue.reap, lambda m: m.reap())
        self.both(self.queue.expire, lambda m: m.expire())
        self.both(self.queue.sweep, lambda m: m.sweep())

    @precondition(lambda self: self.model.done or self.model.dead)
    @rule(at=picks, is_sent_again=st.booleans())
    def record_ends_by_itself(self, at, is_sent_again):
        """As Redis does it, before any sweep."""
        job_id = self.pick([*self.model.done, *self.model.dead], at)
        self.redis.delete(keys.job(job_id))
        self.model.jobs.pop(job_id, None)
        if is_sent_again:
            self.send(next(new for new in self.known if new.id == job_id))

    @precondition(lambda self: any(not value["is_for_ever"] for value in self.model.unique.values()))
    @rule()
    def unique_keys_end_by_themselves(self):
        """Those that have an end."""
        for fn, key in [name for name, value in self.model.unique.items() if not value["is_for_ever"]]:
            self.redis.delete(f"{keys.PREFIX}unique:{fn}:{key}")
            del self.model.unique[fn, key]

    @rule()
    def audit(self):
        """A healthy queue needs no repair."""
        self.both(lambda: answers.repairs(self.queue), lambda m: {})

    # -- operators --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.dead)
    @rule(
        ats=st.lists(picks, min_size=1, max_size=4),
        payload=st.sampled_from([None, b"2"]),
        interval_ms=st.sampled_from([0, LEASE_MS]),
        version=st.sampled_from(["current", "same"]),
        is_any=st.sampled_from([False, False, True]),
    )
    def replay(self, ats, payload, interval_ms, version, is_any):
        ids = [self.pick(self.model.jobs if is_any else self.model.dead, at) for at in ats]
        self.both(
            lambda: [answers.state_or_refusal(a) for a in self.letters.replay(ids, payload, interval_ms, version)],
            lambda m: m.replay(ids, payload, interval_ms, version),
        )

    @precondition(lambda self: self.model.dead)
    @rule(ats=st.lists(picks, min_size=1, max_size=3), is_any=st.booleans())
    def purge(self, ats, is_any):
        ids = [self.pick(self.model.jobs if is_any else self.model.dead, at) for at in ats]
        self.both(lambda: self.letters.purge(ids), lambda m: m.purge(ids))

    @precondition(lambda self: self.model.dead)
    @rule(fn=st.none() | functions, limit=st.integers(1, 4))
    def page(self, fn, limit):
        """Every letter that matches, once, oldest first."""
        found, cursor = [], None
        while True:
            page = self.letters.page(DeadFilter(function=fn), cursor, limit)
            found += [letter.id for letter in page.letters]
            cursor = page.cursor
            if cursor is None:
                break
        order = sorted(self.model.dead, key=lambda i: (self.model.dead[i], i))
        jobs = self.model.jobs
        assert found == [i for i in order if i in jobs and fn in (None, jobs[i].fn)]

    @rule(
        name=functions, limit=st.sampled_from([None, 1, 2, 3]), timeout_ms=st.sampled_from([30_000, 20_000]),
        retries=st.integers(2, 3),
    )  # fmt: skip
    def deploy(self, name, limit, timeout_ms, retries):
        self.install(name, limit, timeout_ms, retries)

    def install(self, name: str, limit: int | None, timeout_ms: int, retries: int = 3) -> None:
        spec = FunctionSpec(
            allow_pools=("gpu",),
            timeout_ms=timeout_ms,
            max_concurrency=limit,
            retries=RetrySpec(max=retries),
        )
        deployment = Deployment(spec=spec, bundles=Bundles(code=SHA), abi="x")
        f = Function(deployment.version(), "default", spec.allow_pools, timeout_ms, retries, limit or 0)
        self.both(lambda: self.registry.deploy(name, deployment) and None, lambda m: m.deploy(name, f))

    @rule(name=st.sampled_from("ab"), is_back=st.booleans())
    def remove(self, name, is_back):
        self.both(lambda: self.registry.remove(name), lambda m: m.remove(name))
        if is_back:
            self.install(name, 1, 30_000)

    @rule(at=picks)
    def old_version_ends_by_itself(self, at):
        """As Redis does it a day after it was replaced."""
        old = [v for v in sorted(self.model.versions) if getattr(self.model.functions.get(v[0]), "version", "") != v[1]]
        if old:
            version = old[at % len(old)]
            self.redis.delete(keys.version(*version))
            self.model.versions.discard(version)

    @rule(
        name=pools,
        limit=st.sampled_from([None, 1, 2]),
        weights=st.sampled_from([(16, 4, 1), (1, 1, 1), (1, 3, 100)]),
    )
    def change_pool(self, name, limit, weights):
        self.put(name, PoolSpec(max_concurrency=limit, weights=Weights(**dict(zip(PRIORITIES, weights, strict=True)))))

    def put(self, name: str, spec: PoolSpec) -> None:
        weights = {prio: getattr(spec.weights, prio) for prio in PRIORITIES}
        if self.registry.pools().get(name) != spec or name not in self.model.pools:
            self.both(
                lambda: self.registry.put_pool(name, spec) and None,
                lambda m: m.put_pool(name, weights, spec.max_concurrency or 0),
            )

    def teardown(self) -> None:
        self.audit()
