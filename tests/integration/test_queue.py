"""The queue's scripts against a real server: each transition, tokens, leases, bells, waiters, and the invariant."""

from __future__ import annotations

import hashlib
import threading
import time
from itertools import pairwise
from random import Random

import pytest

from bananas import errors, keys, retry
from bananas.job import Attempt, Claim, Decision, JobState, NewJob, Outcome, Settlement
from bananas.queue import Queue, Step
from bananas.redis_client import Connections
from bananas.registry import Registry, RunnerInfo
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, RetrySpec
from tests.bells import rings

pytestmark = pytest.mark.redis

CODE = b"code"
SHA = hashlib.sha256(CODE).hexdigest()
LEASE_MS = 30_000
REPLY = keys.reply("test")


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    registry.put_pool("gpu", PoolSpec())
    deploy(registry, "hello")
    return registry


def deploy(registry: Registry, name: str, **spec: object) -> str:
    registry.put_bundle(SHA, CODE)
    return registry.deploy(name, deployment(**spec))[0].version


def deployment(**spec: object) -> Deployment:
    return Deployment(spec=FunctionSpec(**spec), bundles=Bundles(code=SHA), abi="cp311-x86_64-glibc2.36")


def claim(queue: Queue, n: int = 1, pool: str = "default", lease_ms: int = LEASE_MS) -> list[Claim]:
    return queue.step("runner", lease_ms, [], [(pool, n)]).claims


def settle(queue: Queue, claim: Claim, outcome: Outcome, result: bytes = b"", logs: bytes = b"", **kw: object) -> Step:
    error = None if outcome is Outcome.OK else {"type": "E", "message": "m"}
    attempt = Attempt(claim.token, outcome, "runner", 0, timings={"run_ms": 3.0}, error=error)
    decision = retry.decide(outcome, claim.retries, claim.failures, claim.starts, Random(0))
    return queue.step("runner", LEASE_MS, [Settlement(claim, attempt, decision, result, logs)], [])


def whereabouts(connections: Connections) -> dict[str, list[str]]:
    """Every place each live id is in; the invariant says exactly one."""
    r = connections.commands
    places: dict[str, list[str]] = {}
    for name in (keys.SCHEDULE, keys.LEASES, keys.DEAD, keys.DONE):
        for member in r.zrange(name, 0, -1):
            places.setdefault(member.decode(), []).append(name)
    for key in r.keys(keys.PREFIX + "lane:*"):
        for member in r.lrange(key, 0, -1):
            places.setdefault(member.decode(), []).append(key.decode())
    for key in r.keys(keys.PREFIX + "job:*"):
        places.setdefault(key.decode().removeprefix(keys.PREFIX + "job:"), [])
    return places


def assert_invariant(connections: Connections) -> None:
    for job_id, places in whereabouts(connections).items():
        assert len(places) == 1, (job_id, places)


def test_a_job_goes_from_pending_to_completed(queue, registry, connections):
    """The straight line, with every field of the record along the way."""
    job = queue.enqueue(NewJob("hello", b'{"n":1}'))
    assert (job.state, queue.show(job.id).state) == (JobState.PENDING, JobState.PENDING)
    [c] = claim(queue)
    assert (c.id, c.token, c.payload, c.function, c.timeout_ms) == (job.id, 1, b'{"n":1}', "hello", 30_000)
    assert queue.show(job.id).state is JobState.PROCESSING
    assert settle(queue, c, Outcome.OK, b'{"ok":1}', b"printed\n").settled == [True]
    record = queue.show(job.id)
    assert (record.state, record.result, record.error, record.failures) == (JobState.COMPLETED, b'{"ok":1}', None, 0)
    assert record.started_at_ms
    assert record.finished_at_ms
    assert queue.logs(job.id) == {1: b"printed\n"}
    assert_invariant(connections)
    assert queue.counts().counters["outcome:hello:ok"] == 1


def test_enqueue_of_the_same_id_makes_one_job(queue, registry):
    """A client may send a job again after a lost connection."""
    job = NewJob("hello", b"1")
    assert queue.enqueue(job) == queue.enqueue(job)
    assert len(claim(queue, 10)) == 1


def test_unknown_function_and_pool_are_refused(queue, registry):
    """Nothing is accepted that could never run."""
    with pytest.raises(errors.UnknownFunction, match="nope"):
        queue.enqueue(NewJob("nope", b"1"))
    with pytest.raises(errors.UnknownPool, match="gpu"):
        queue.enqueue(NewJob("hello", b"1", pool="gpu"))
    deploy(registry, "hello", allow_pools=("gpu",))
    assert queue.enqueue(NewJob("hello", b"1", pool="gpu")).pool == "gpu"


def test_queued_jobs_keep_their_version(queue, registry):
    """A deploy never changes what was accepted before it."""
    old = queue.enqueue(NewJob("hello", b"1"))
    deploy(registry, "hello", timeout_ms=5000)
    new = queue.enqueue(NewJob("hello", b"1"))
    assert old.version != new.version
    assert [(c.version, c.timeout_ms) for c in claim(queue, 2)] == [(old.version, 30_000), (new.version, 5000)]
    assert registry.version("hello", old.version).spec.timeout_ms == 30_000


def test_a_job_can_only_lower_timeout_and_retries(queue, registry):
    """Parameters of a job stay within what its function allows."""
    queue.enqueue(NewJob("hello", b"1", timeout_ms=90_000, max_retries=9))
    queue.enqueue(NewJob("hello", b"1", timeout_ms=1000, max_retries=1))
    assert [(c.timeout_ms, c.retries.max) for c in claim(queue, 2)] == [(30_000, 3), (1000, 1)]


def test_a_full_queue_says_so(queue, registry, monkeypatch):
    """Back-pressure instead of memory without end."""
    monkeypatch.setattr("bananas.queue.LIMITS", errors_limit(2))
    for _ in range(2):
        queue.enqueue(NewJob("hello", b"1"))
    with pytest.raises(errors.QueueFull, match="has 2 jobs"):
        queue.enqueue(NewJob("hello", b"1"))


def errors_limit(queued: int) -> object:
    from dataclasses import replace

    from bananas.settings import LIMITS

    return replace(LIMITS, queued_jobs=queued)


def test_retries_run_after_2_4_8_seconds_and_then_the_job_is_dead(queue, registry, connections):
    """The default policy, exactly: three more tries, then a dead letter with its reason."""
    job = queue.enqueue(NewJob("hello", b"1"))
    for expected_ms in (2000, 4000, 8000):
        [c] = claim(queue)
        assert settle(queue, c, Outcome.ERROR).next_due_ms == pytest.approx(expected_ms, abs=50)
        assert queue.show(job.id).state is JobState.SCHEDULED
        assert_invariant(connections)
        make_due(connections, job.id)
        assert queue.promote()[0] == 1
    [c] = claim(queue)
    assert (c.failures, c.token) == (3, 4)
    settle(queue, c, Outcome.ERROR)
    record = queue.show(job.id)
    assert (record.state, record.reason, record.failures) == (JobState.FAILED, "retries_exhausted", 4)
    assert len(record.history) == 4
    assert queue.counts().dead == 1
    assert_invariant(connections)


def make_due(connections: Connections, job_id: str) -> None:
    """Move a scheduled job's due time to now: the server's clock cannot be moved."""
    connections.commands.zadd(keys.SCHEDULE, {job_id: 1})


def test_success_after_a_failure_leaves_no_stale_error(queue, registry, connections):
    """The record of a completed job has no error; its history has."""
    job = queue.enqueue(NewJob("hello", b"1"))
    settle(queue, claim(queue)[0], Outcome.ERROR)
    assert queue.show(job.id).error
    make_due(connections, job.id)
    queue.promote()
    settle(queue, claim(queue)[0], Outcome.OK, b"2")
    record = queue.show(job.id)
    assert (record.state, record.error, record.result, len(record.history)) == (JobState.COMPLETED, None, b"2", 2)


@pytest.mark.parametrize(
    ("outcome", "reason"), [(Outcome.PERMANENT, "permanent"), (Outcome.START, None), (Outcome.HANDED_BACK, None)]
)
def test_other_outcomes(queue, registry, connections, outcome, reason):
    """Permanent is over at once; start-up trouble and hand-back use nothing up."""
    job = queue.enqueue(NewJob("hello", b"1"))
    settle(queue, claim(queue)[0], outcome)
    record = queue.show(job.id)
    if reason:
        assert (record.state, record.reason) == (JobState.FAILED, reason)
    else:
        assert record.failures == 0
        assert record.state is (JobState.SCHEDULED if outcome is Outcome.START else JobState.PENDING)
    assert_invariant(connections)


def test_start_failures_are_bounded(queue, registry, connections):
    """An engine that never comes back fails the job with the real reason."""
    job = queue.enqueue(NewJob("hello", b"1"))
    for _ in range(6):
        [c] = claim(queue)
        settle(queue, c, Outcome.START)
        make_due(connections, job.id) if queue.show(job.id).state is JobState.SCHEDULED else None
        queue.promote()
    record = queue.show(job.id)
    assert (record.state, record.reason, record.failures) == (JobState.FAILED, "start_failed", 0)


def test_handed_back_job_is_next_in_its_lane(queue, registry):
    """A shutdown costs a job neither its turn nor a retry."""
    first, second = (queue.enqueue(NewJob("hello", b"1")) for _ in range(2))
    settle(queue, claim(queue)[0], Outcome.HANDED_BACK)
    assert [(c.id, c.token) for c in claim(queue, 2)] == [(first.id, 2), (second.id, 1)]


def test_stale_token_cannot_finish_or_extend_a_job_given_to_another_runner(queue, registry, connections):
    """Fencing: after a lost lease the old attempt's report changes nothing."""
    job = queue.enqueue(NewJob("hello", b"1"))
    [old] = claim(queue, lease_ms=1)
    expire_lease(connections, job.id)
    assert queue.reap() == (1, 0)
    [new] = claim(queue)
    assert (new.token, new.failures) == (2, 0)
    assert settle(queue, old, Outcome.OK, b'"old"').settled == [False]
    assert queue.extend("runner", LEASE_MS, [(old.id, old.token), (new.id, new.token)]) == [False, True]
    assert queue.show(job.id).state is JobState.PROCESSING
    assert settle(queue, new, Outcome.OK, b'"new"').settled == [True]
    assert queue.show(job.id).result == b'"new"'
    assert settle(queue, new, Outcome.OK, b'"twice"').settled == [False]
    assert_invariant(connections)


def expire_lease(connections: Connections, job_id: str) -> None:
    connections.commands.zadd(keys.LEASES, {job_id: 1}, xx=True)


def test_third_lost_runner_poisons_the_job(queue, registry, connections):
    """A job that takes its runner down with it ends as a dead letter."""
    job = queue.enqueue(NewJob("hello", b"1", reply_to=REPLY))
    for n in (1, 2, 3):
        claim(queue)
        expire_lease(connections, job.id)
        assert queue.reap() == ((1, 0) if n < 3 else (0, 1))
        assert_invariant(connections)
    record = queue.show(job.id)
    assert (record.state, record.reason, record.losses) == (JobState.FAILED, "poisoned", 3)
    assert [reply.state for reply in queue.replies(REPLY, 1, 10, ahead=1).pop()] == [JobState.FAILED]


def test_live_lease_is_not_reaped_and_extending_keeps_it(queue, registry):
    """Only an expired lease is taken back."""
    queue.enqueue(NewJob("hello", b"1"))
    [c] = claim(queue, lease_ms=60_000)
    assert queue.reap() == (0, 0)
    assert queue.extend("runner", 60_000, [(c.id, c.token)]) == [True]


def test_cancel_in_every_state(queue, registry, connections):
    """Cancelled means cancelled, wherever the job is; a finished one says so."""
    pending = queue.enqueue(NewJob("hello", b"1"))
    scheduled = queue.enqueue(NewJob("hello", b"1", delay_ms=60_000))
    for job in (pending, scheduled):
        queue.cancel(job.id)
        assert queue.show(job.id).state is JobState.CANCELLED
    assert claim(queue) == []
    running = queue.enqueue(NewJob("hello", b"1"))
    [c] = claim(queue)
    queue.cancel(running.id)
    assert queue.pop_inbox("runner", 1) == ("cancel", running.id, str(c.token))
    assert queue.extend("runner", LEASE_MS, [(c.id, c.token)]) == [False]
    assert settle(queue, c, Outcome.OK, b"1").settled == [False]
    with pytest.raises(errors.JobFinished, match="cancelled"):
        queue.cancel(running.id)
    with pytest.raises(errors.UnknownJob):
        queue.cancel("nope")
    assert_invariant(connections)


def test_delayed_job_waits_for_its_time(queue, registry):
    """Promotion happens at the due time by the server's clock, and tells how long until the next."""
    job = queue.enqueue(NewJob("hello", b"1", delay_ms=80))
    assert job.state is JobState.SCHEDULED
    step = queue.step("runner", LEASE_MS, [], [("default", 1)])
    assert step.claims == []
    assert 0 < step.next_due_ms <= 80
    deadline = time.monotonic() + 5
    while not queue.promote()[0]:
        assert time.monotonic() < deadline
    assert [c.id for c in claim(queue)] == [job.id]


def test_expired_job_never_runs(queue, registry, connections):
    """A job that waited longer than expires_after fails with that reason."""
    job = queue.enqueue(NewJob("hello", b"1", expires_after_ms=1, reply_to=REPLY))
    connections.commands.hset(keys.job(job.id), "expires", 1)
    assert claim(queue) == []
    assert (queue.show(job.id).state, queue.show(job.id).reason) == (JobState.FAILED, "expired")
    assert queue.replies(REPLY, 1, 1, ahead=1).pop()[0].state is JobState.FAILED
    assert_invariant(connections)


def test_a_job_that_was_claimed_once_does_not_expire(queue, registry, connections):
    """expires_after bounds the wait for the first attempt; a lost runner does not turn into an expiry."""
    job = queue.enqueue(NewJob("hello", b"1", expires_after_ms=60_000))
    claim(queue)
    expire_lease(connections, job.id)
    queue.reap()
    connections.commands.hset(keys.job(job.id), "expires", 1)
    assert [c.id for c in claim(queue)] == [job.id]


def test_one_step_looks_at_a_bounded_number_of_expired_jobs(queue, registry, connections):
    """A backlog that has expired never holds the server up for long; the bell calls for the next step."""
    ids = [queue.enqueue(NewJob("hello", b"1", expires_after_ms=60_000)).id for _ in range(1200)]
    pipe = connections.commands.pipeline(transaction=False)
    for job_id in ids:
        pipe.hset(keys.job(job_id), "expires", 1)
    pipe.execute()
    fresh = queue.enqueue(NewJob("hello", b"1"))
    assert claim(queue) == []
    assert 0 < queue.counts().dead < len(ids)
    assert rings(queue, "default", 1), "work is left, so the bell rings again"
    claimed = [c.id for _ in range(4) for c in claim(queue)]
    assert claimed == [fresh.id]
    assert queue.counts().dead == len(ids)


def test_a_full_redis_still_extends_leases(queue, registry, connections):
    """Long jobs keep their leases while nothing new is accepted."""
    queue.enqueue(NewJob("hello", b"1"))
    [c] = claim(queue)
    connections.commands.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(errors.RedisUnavailable, match="takes no writes"):
            queue.enqueue(NewJob("hello", b"1"))
        assert queue.extend("runner", LEASE_MS, [(c.id, c.token)]) == [True]
        assert settle(queue, c, Outcome.OK, b"1").settled == [True]
    finally:
        connections.commands.config_set("maxmemory", "0")


def test_what_another_release_wrote_stops_nobody(queue, registry, connections):
    """Unknown settings of a pool or a retry policy are passed over, and told."""
    job = queue.enqueue(NewJob("hello", b"1"))
    connections.commands.hset(keys.job(job.id), "retry", b'{"max":3,"new":1}')
    connections.commands.hset(keys.POOLS, "odd", b'{"concurrency":1,"new":1}')
    assert [c.retries.max for c in claim(queue)] == [3]
    assert "odd" not in registry.pools()


@pytest.mark.parametrize("target", ["x.example.com:99999", "x.example.com:0", "10.0.0.5:25", "169.254.169.254:80"])
def test_pools_with_impossible_egress_are_refused(target):
    """Before a runner meets them."""
    with pytest.raises(errors.InvalidRequest, match="egress"):
        PoolSpec.decode(b'{"egress":["%s"]}' % target.encode())


def test_lanes_share_16_4_1_and_low_waits_at_most_21_claims(queue, registry):
    """Stride: shares within 2 % of the weights, and no starvation, counted by claims."""
    for priority in ("high", "normal", "low") * 3:
        queue.enqueue_many([NewJob("hello", b"1", priority=priority) for _ in range(700)])
    order = "".join(c.priority[0] for _ in range(210) for c in claim(queue, 10))
    assert (order.count("h"), order.count("n"), order.count("l")) == (1600, 400, 100)
    lows = [i for i, lane in enumerate(order) if lane == "l"]
    assert max(b - a for a, b in pairwise(lows)) <= 21


def test_a_lane_that_was_empty_cannot_claim_its_past(queue, registry):
    """A newly filled lane starts at the pool's virtual time."""
    for _ in range(400):
        queue.enqueue(NewJob("hello", b"1", priority="high"))
    claim(queue, 300)
    for _ in range(100):
        queue.enqueue(NewJob("hello", b"1", priority="low"))
    assert "".join(c.priority[0] for c in claim(queue, 21)).count("l") <= 2


def test_fifo_within_a_lane_and_claims_within_free_slots(queue, registry):
    """Oldest first; never more than asked for; other pools untouched."""
    deploy(registry, "onlygpu", pool="gpu")
    ids = [queue.enqueue(NewJob("hello", b"1")).id for _ in range(5)]
    gpu = queue.enqueue(NewJob("onlygpu", b"1")).id
    assert [c.id for c in claim(queue, 3)] == ids[:3]
    assert [c.id for c in claim(queue, 9, "gpu")] == [gpu]
    assert [c.id for c in claim(queue, 9)] == ids[3:]


def test_the_bell_wakes_a_blocked_runner_and_is_passed_on(queue, registry):
    """An idle runner learns of work at once; what it leaves wakes the next one."""
    rang: list[bool] = []
    waiting = threading.Thread(target=lambda: rang.append(rings(queue, "default", 5)))
    waiting.start()
    queue.enqueue(NewJob("hello", b"1"))
    waiting.join(timeout=4)
    assert rang == [True]
    queue.enqueue(NewJob("hello", b"1"))
    claim(queue, 1)
    assert rings(queue, "default", 1), "one job is left, so the bell must ring again"
    assert len(claim(queue, 5)) == 1
    assert not rings(queue, "default", 0.05)


def test_waiter_gets_the_reply_whichever_came_first(queue, registry):
    """Registered before the end: pushed. Asked after the end: answered. Never lost, never twice."""
    job = queue.enqueue(NewJob("hello", b"1"))
    assert queue.wait(job.id, REPLY) is None
    assert queue.wait(job.id, REPLY) is None
    settle(queue, claim(queue)[0], Outcome.OK, b'"r"')
    [reply] = queue.replies(REPLY, 1, 100, ahead=1).pop()
    assert (reply.id, reply.state, reply.result) == (job.id, JobState.COMPLETED, b'"r"')
    assert b'"outcome":"ok"' in reply.attempt
    late = queue.wait(job.id, REPLY)
    assert late is not None
    assert (late.state, late.result, late.attempt) == (JobState.COMPLETED, b'"r"', reply.attempt)
    assert queue.replies(REPLY, 0.05, 100, ahead=1).pop() == []


def test_large_results_are_not_pushed(queue, registry):
    """A waiter reads them from the record."""
    job = queue.enqueue(NewJob("hello", b"1", reply_to=REPLY))
    big = b'"' + b"x" * 70_000 + b'"'
    settle(queue, claim(queue)[0], Outcome.OK, big)
    [reply] = queue.replies(REPLY, 1, 10, ahead=1).pop()
    assert reply.result is None
    assert queue.show(job.id).result == big


def test_no_wake_up_is_lost_in_a_thousand_races(queue, registry):
    """Waiting and settling at the same time: every waiter hears of the end exactly once."""
    ids = [queue.enqueue(NewJob("hello", b"1")).id for _ in range(1000)]
    direct: list[str] = []

    def wait_for_all() -> None:
        direct.extend(job_id for job_id in ids if queue.wait(job_id, REPLY) is not None)

    waiter = threading.Thread(target=wait_for_all)
    waiter.start()
    done = 0
    while done < len(ids):
        for c in claim(queue, 10):
            settle(queue, c, Outcome.OK, b"1")
            done += 1
    waiter.join()
    pushed: list[str] = []
    while batch := queue.replies(REPLY, 0.05, 500, ahead=1).pop():
        pushed += [reply.id for reply in batch]
    assert sorted(direct + pushed) == sorted(ids)


def test_records_end_and_leave_a_tombstone(queue, registry, connections):
    """A result is kept for its time; then its id answers gone, not unknown."""
    deploy(registry, "brief", result_ttl_ms=1000)
    job = queue.enqueue(NewJob("brief", b"1"))
    settle(queue, claim(queue)[0], Outcome.OK, b"1")
    assert 0 < connections.commands.pttl(keys.job(job.id)) <= 61_000
    connections.commands.zadd(keys.DONE, {job.id: 1})
    assert queue.sweep() == 1
    with pytest.raises(errors.JobExpired):
        queue.show(job.id)
    with pytest.raises(errors.UnknownJob):
        queue.show("01a20c3a-983b-763b-b3be-a35623b3090f")
    assert 0 < connections.commands.ttl(keys.tomb(job.id)) <= 86_400


def test_dead_letters_are_capped(queue, registry, connections, monkeypatch):
    """The oldest go first, and are counted."""
    deploy(registry, "once", retries=RetrySpec(max=0))
    ids = []
    for _ in range(5):
        ids.append(queue.enqueue(NewJob("once", b"1")).id)
        settle(queue, claim(queue)[0], Outcome.ERROR)
    for age, job_id in enumerate(reversed(ids)):
        connections.commands.zincrby(keys.DEAD, -age, job_id)
    from dataclasses import replace

    from bananas.settings import LIMITS

    monkeypatch.setattr("bananas.queue.LIMITS", replace(LIMITS, dead_jobs=2))
    assert queue.sweep() == 3
    assert [m.decode() for m in connections.commands.zrange(keys.DEAD, 0, -1)] == ids[3:]
    assert queue.counts().counters["trimmed"] == 3


def test_history_and_logs_are_bounded(queue, registry, connections):
    """However often a job is handed back, its record keeps the latest attempts only."""
    job = queue.enqueue(NewJob("hello", b"1"))
    for _ in range(40):
        settle(queue, claim(queue)[0], Outcome.HANDED_BACK, logs=b"x")
    assert len(queue.show(job.id).history) == 30
    assert min(queue.logs(job.id)) == 11


def test_scripts_survive_a_script_flush(queue, registry, connections):
    """A server that forgot the scripts is sent them again."""
    queue.enqueue(NewJob("hello", b"1"))
    connections.commands.script_flush()
    assert len(claim(queue)) == 1


def test_depths_tell_size_and_age(queue, registry):
    """What /metrics and /pools show."""
    queue.enqueue(NewJob("hello", b"1", priority="low"))
    depth = {(d.pool, d.priority): d for d in queue.depths(["default", "gpu"])}
    assert depth["default", "low"].queued == 1
    assert depth["default", "low"].oldest_ms >= 0
    assert depth["gpu", "high"].queued == 0


# -- the registry -------------------------------------------------------------------------------------------------


def test_deploying_the_same_again_changes_nothing(registry):
    """Versions are content-addressed."""
    version, changed = registry.deploy("hello", deployment())
    assert (changed, registry.current("hello")) == (False, version)


def test_deploy_needs_its_bundles_and_pools(registry):
    """Half a deploy never becomes current."""
    missing = Deployment(spec=FunctionSpec(), bundles=Bundles(code="b" * 64), abi="x")
    with pytest.raises(errors.UnknownBundle):
        registry.deploy("new", missing)
    with pytest.raises(errors.UnknownPool, match="nopool"):
        registry.deploy("new", deployment(pool="nopool"))
    with pytest.raises(errors.UnknownFunction):
        registry.current("new")


def test_bundles_are_verified_and_stay_only_when_deployed(registry, connections):
    """An orphan upload goes away by itself."""
    data = b"other"
    sha = hashlib.sha256(data).hexdigest()
    with pytest.raises(errors.InvalidRequest, match="SHA-256"):
        registry.put_bundle(SHA, data)
    assert registry.put_bundle(sha, data)
    assert not registry.put_bundle(sha, data)
    assert connections.commands.ttl(keys.bundle(sha)) > 0
    assert connections.commands.ttl(keys.bundle(SHA)) == -1
    assert registry.get_bundle(sha) == data


def test_removed_function_refuses_new_jobs_and_still_runs_queued_ones(queue, registry):
    """Removing takes nothing away from jobs that were accepted."""
    job = queue.enqueue(NewJob("hello", b"1"))
    assert registry.remove("hello")
    assert not registry.remove("hello")
    with pytest.raises(errors.UnknownFunction):
        queue.enqueue(NewJob("hello", b"1"))
    [c] = claim(queue)
    assert registry.version("hello", c.version).version == job.version


def test_rollback_by_redeploying_keeps_the_version_for_good(registry, connections):
    """An old version that becomes current again loses its end date; it is the last one deployed, and both are kept."""
    first = registry.current("hello").version
    second = deploy(registry, "hello", timeout_ms=1000)
    connections.commands.expire(keys.version("hello", first), 1000)
    assert deploy(registry, "hello") == first
    assert [version.version for version in registry.history("hello")] == [first, second]
    assert connections.commands.ttl(keys.version("hello", first)) == -1
    assert connections.commands.ttl(keys.version("hello", second)) == -1


def test_runners_are_live_while_they_say_so(registry):
    """A silent runner is not counted, and finally forgotten."""
    now = registry.now_ms()
    for runner_id, age_ms in (("live", 0), ("silent", 20_000), ("gone", 120_000)):
        registry.announce(RunnerInfo(id=runner_id, host="h", pid=1, started_at_ms=1, seen_at_ms=now - age_ms))
    assert [runner.id for runner in registry.runners()] == ["live"]
    registry.retire("live")
    assert registry.runners() == []


def test_every_runner_is_told_of_changed_pools(queue, registry):
    """A new pool is served at once, not at the next look."""
    registry.announce(RunnerInfo(id="r1", host="h", pid=1, started_at_ms=1, seen_at_ms=registry.now_ms()))
    assert registry.put_pool("email", PoolSpec())
    assert queue.pop_inbox("r1", 1) == ("pools",)
    assert not registry.put_pool("email", PoolSpec())
    assert queue.pop_inbox("r1", 0.05) is None


def test_instance_id_is_made_once(registry, connections):
    """Every process on one Redis belongs to the same installation."""
    assert registry.instance() == Registry(connections).instance()


def test_a_token_that_a_failover_gives_again_lets_only_its_holder_report(queue, registry, connections):
    """A claim that Redis forgot is made again with the same token by another runner: the first one is refused."""
    job = queue.enqueue(NewJob("hello", b"1"))
    r, key = connections.commands, keys.job(job.id)
    before = r.dump(key)
    [lost] = queue.step("first", LEASE_MS, [], [("default", 1)]).claims
    r.delete(keys.LEASES, keys.running("hello"), keys.busy("default"))
    r.restore(key, 0, before, replace=True)
    r.rpush(keys.lane("default", "normal"), job.id)
    [again] = queue.step("second", LEASE_MS, [], [("default", 1)]).claims
    assert again.token == lost.token
    assert queue.extend("first", LEASE_MS, [(lost.id, lost.token)]) == [False]
    assert queue.progress("first", [(lost.id, lost.token, b"1")]) == [False]
    done = Settlement(lost, Attempt(lost.token, Outcome.OK, "first", 0), Decision("complete"), b"1")
    assert queue.step("first", LEASE_MS, [done], []).settled == [False]
    assert queue.step("second", LEASE_MS, [done], []).settled == [True]
