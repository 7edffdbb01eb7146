"""The queue against a model: programs of every operation, on a real server, compared key by key after each step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from bananas import callbacks, dead_letters, keys
from bananas import queue as queue_module
from bananas.callbacks import Verdict
from bananas.dead_letters import DeadFilter
from bananas.embedded import EmbeddedRedis
from bananas.job import Outcome
from bananas.redis_client import Connections
from bananas.spec import PoolSpec, Weights
from tests.property import answers
from tests.property.machine import FUNCTIONS, LEASE_MS, SMALL, Both
from tests.property.model import PRIORITIES

IS_LONG = os.environ.get("BANANAS_HYPOTHESIS") == "long"
EXAMPLES = 20_000 if IS_LONG else 500
STEPS = 50

POOLS = ("default", "gpu")
REPLIES = (keys.reply("g1"), keys.reply("g2"))
#: What a runner may tell: action, outcome, reason.
ENDS: tuple[tuple[Any, Outcome, str], ...] = (
    ("complete", Outcome.OK, ""),
    ("back", Outcome.HANDED_BACK, ""),
    ("back", Outcome.DISPLACED, ""),
    ("back", Outcome.HELD_UP, ""),
    ("retry", Outcome.ERROR, ""),
    ("dead", Outcome.TIMEOUT, "retries_exhausted"),
    ("dead", Outcome.PERMANENT, "permanent"),
    ("retry", Outcome.START, ""),
    ("dead", Outcome.START, "start_failed"),
)

#: How a try to tell an end goes.
VERDICTS: tuple[Verdict, ...] = ("delivered", "again", "never")
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
        "callback": st.just("http://example.com/"),
        "is_sync": st.just(True),
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
    monkeypatch.setattr(callbacks, "LIMITS", SMALL)


@pytest.mark.usefixtures("untraced")
@pytest.mark.timeout(0 if IS_LONG else 600)  # a busy machine takes minutes
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


class Machine(Both):
    """Programs: whatever gateways, runners, operators and time do, in any order."""

    # -- gateways ---------------------------------------------------------------------------------------------

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

    @initialize(specs=st.lists(new_jobs, max_size=8))
    def begin(self, specs):
        self.create_all(specs)

    @rule(specs=st.lists(new_jobs, min_size=2, max_size=6))
    def enqueue_many(self, specs):
        self.create_all(specs)

    @rule(at=picks, reply_to=st.sampled_from(REPLIES))
    def wait(self, at, reply_to):
        job_id = self.pick(self.model.jobs, at)
        self.both(lambda: answers.waited(self.queue, job_id, reply_to), lambda m: m.wait(job_id, reply_to))

    @precondition(lambda self: any(self.model.replies.values()))
    @rule()
    def pop_replies(self):
        for name in [name for name, told in self.model.replies.items() if told]:
            popped = self.queue.replies(name, 1, 100, ahead=1).pop()
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

    @precondition(lambda self: self.stale())
    @rule(at=picks, how=st.sampled_from(ENDS))
    def report_too_late(self, at, how):
        """A runner that was given up tells of its attempt, in every way that it could."""
        c = self.stale()[at % len(self.stale())]
        self.run_step([answers.settlement(c, how, 1, False)], [], False)
        self.both(
            lambda: self.queue.extend("r1", LEASE_MS, [(c.id, c.token)]),
            lambda m: m.extend(LEASE_MS, [(c.id, c.token)]),
        )
        self.both(
            lambda: self.queue.progress("r1", [(c.id, c.token, b"9")]), lambda m: [m.progress(c.id, c.token, b"9")]
        )

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
        self.both(lambda: self.queue.extend("r1", LEASE_MS, attempts), lambda m: m.extend(LEASE_MS, attempts))

    @precondition(lambda self: self.claims)
    @rule(at=picks, text=st.sampled_from([b"1", b'{"done":2}']))
    def progress(self, at, text):
        c = self.claims[at % len(self.claims)]
        self.both(
            lambda: self.queue.progress("r1", [(c.id, c.token, text)]), lambda m: [m.progress(c.id, c.token, text)]
        )

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

    @precondition(lambda self: self.model.callbacks)
    @rule(ats=st.just([]) | some, most=st.integers(1, 3))
    def take_callbacks(self, ats, most):
        """Also those whose lease ran out, or whose time has come."""
        self.rewind(keys.CALLBACKS, ats, self.model.callbacks)
        self.take(most)

    @precondition(lambda self: self.deliveries)
    @rule(at=picks, verdict=st.sampled_from(VERDICTS), is_latest=st.booleans())
    def told(self, at, verdict, is_latest):
        self.tell(self.deliveries[-1] if is_latest else self.deliveries[at % len(self.deliveries)], verdict)

    @precondition(lambda self: self.model.callbacks)
    @rule(verdicts=st.lists(st.sampled_from(VERDICTS), min_size=2, max_size=2), at=picks)
    def told_by_one_whose_lease_ran_out(self, verdicts, at):
        """Two runners send the same end, and the first one tells after the second one took it."""
        for _ in verdicts:
            self.rewind(keys.CALLBACKS, [at], self.model.callbacks)
            self.take(1)
        for delivery, verdict in zip(self.deliveries[-2:], verdicts, strict=False):
            self.tell(delivery, verdict)

    @precondition(lambda self: self.model.is_rung_for_callbacks)
    @rule()
    def hear_of_callbacks(self):
        assert self.callbacks.wait(1)
        self.model.is_rung_for_callbacks = False

    @precondition(lambda self: self.model.done or self.model.dead or self.model.calls)
    @rule(ats=some)
    def sweep(self, ats):
        for key, times in ((keys.DONE, self.model.done), (keys.DEAD, self.model.dead), (keys.CALLS, self.model.calls)):
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
        job_id = self.pick([*self.model.done, *self.model.dead, *self.model.calls], at)
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

    @precondition(lambda self: self.model.dead or self.model.calls)
    @rule(
        ats=st.lists(picks, min_size=1, max_size=4),
        payload=st.sampled_from([None, b"2"]),
        interval_ms=st.sampled_from([0, LEASE_MS]),
        version=st.sampled_from(["current", "same"]),
        is_any=st.sampled_from([False, False, True]),
    )
    def replay(self, ats, payload, interval_ms, version, is_any):
        ids = [self.pick(self.model.jobs if is_any else [*self.model.dead, *self.model.calls], at) for at in ats]
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

    def teardown(self) -> None:
        self.audit()
