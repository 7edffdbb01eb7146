"""High availability: every kind of BANANAS_REDIS_URL against real servers, and failovers whose losses are counted.

Replication of Redis is asynchronous: what a master answered and had not sent on when it died is gone. The tables that
these tests print (``pytest -s``) say how much that was; docs/deployment.md says what follows from it.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from bananas import keys, retry, scripts
from bananas.callbacks import Callbacks
from bananas.dead_letters import DeadFilter, DeadLetters
from bananas.errors import RedisUnavailable, UnknownJob
from bananas.follow import Follow
from bananas.health import Health
from bananas.job import Attempt, Claim, JobState, NewJob, Outcome, Settlement
from bananas.listing import JobLists
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.redis_nodes import RECHECK_S
from bananas.registry import Registry
from bananas.schedules import Schedules
from bananas.spec import Bundles, Deployment, FunctionSpec, PoolSpec, ScheduleSpec
from tests.bells import rings
from tests.platform import until
from tests.tools.redis_servers import SERVICE, ReplicaSet, Servers, tls_in_front

CODE = b"code"
SHA = hashlib.sha256(CODE).hexdigest()
LEASE_MS = 30_000
PASSWORD = "pa:ss/w@rd"
QUOTED = "pa%3Ass%2Fw%40rd"
KINDS = ("plain", "tls", "sentinel", "tls_sentinel", "cluster_enabled", "cluster")
#: From a failure to the first job that is accepted again, with servers that count as down after 0.6 s.
RECOVERY_S = 20.0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with Servers(tmp_path) as servers:
        yield servers


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, servers: Servers) -> Iterator[str]:
    """The URL of an empty Redis of each kind."""
    with ExitStack() as stack:
        yield _start(request.param, servers, stack)


def _start(kind: str, servers: Servers, stack: ExitStack) -> str:
    if kind == "cluster":
        nodes = servers.cluster(3)
        return f"redis+cluster://127.0.0.1:{nodes[2].port},127.0.0.1:{nodes[1].port}"
    if kind == "cluster_enabled":
        return f"redis://127.0.0.1:{servers.cluster(1)[0].port}/0"
    server = servers.server(password=PASSWORD)
    if kind == "plain":
        return f"redis://:{QUOTED}@127.0.0.1:{server.port}/1"
    certificates = servers.folder / "certificates"
    if kind == "tls":
        proxy = stack.enter_context(tls_in_front(certificates, server.port))
        return f"rediss://default:{QUOTED}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={proxy.ca}"
    if kind == "sentinel":
        sentinel = servers.sentinel(server.port, 1, PASSWORD, "s3ntinel")
        gone = servers.sentinel(server.port, 1, PASSWORD)
        gone.kill9()
        return (
            f"redis+sentinel://:{QUOTED}@127.0.0.1:{gone.port},127.0.0.1:{sentinel.port}/{SERVICE}/2"
            "?sentinel_password=s3ntinel"
        )
    # The sentinel sends clients to the proxy, and reaches the server through it without TLS.
    proxy = stack.enter_context(tls_in_front(certificates, server.port))
    sentinel = servers.sentinel(proxy.port, 1, PASSWORD)
    front = stack.enter_context(tls_in_front(certificates, sentinel.port))
    return f"rediss+sentinel://:{QUOTED}@127.0.0.1:{front.port}/{SERVICE}?ssl_ca_certs={front.ca}"


def deploy(connections: Connections, **spec: object) -> None:
    registry = Registry(connections)
    registry.put_bundle(SHA, CODE)
    registry.put_pool("default", PoolSpec())
    registry.deploy("hello", Deployment(spec=FunctionSpec(**spec), bundles=Bundles(code=SHA), abi="cp311-x86_64"))


def settlement(claim: Claim, outcome: Outcome) -> Settlement:
    error = None if outcome is Outcome.OK else {"type": "E", "message": "m"}
    attempt = Attempt(claim.token, outcome, "runner", 0, timings={"run_ms": 1.0}, error=error)
    decision = retry.decide(outcome, claim.retries, claim.failures, claim.starts, Random(0))
    return Settlement(claim, attempt, decision, b'"done"' if outcome is Outcome.OK else b"", b"")


def run(queue: Queue, outcome: Outcome, lease_ms: int = LEASE_MS) -> str:
    """Claim one job and end the attempt; its id."""
    [claim] = queue.step("runner", lease_ms, [], [("default", 1)]).claims
    assert queue.extend("runner", lease_ms, [(claim.id, claim.token)]) == [True]
    assert queue.progress("runner", [(claim.id, claim.token, b"1")]) == [True]
    assert queue.step("runner", lease_ms, [settlement(claim, outcome)], []).settled == [True]
    return claim.id


def tell_an_end(queue: Queue, callbacks: Callbacks) -> None:
    """A job with a callback, from its end to its delivery."""
    job = queue.enqueue(NewJob("hello", b"1", callback_url="http://example.com/"))
    queue.cancel(job.id)
    assert callbacks.wait(1)
    [delivery] = callbacks.take(10, LEASE_MS).deliveries
    assert (delivery.id, delivery.number) == (f"{job.id}.1", 1)
    assert callbacks.told(delivery, "delivered") == "delivered"


def test_every_script_runs_on_every_kind_of_server(url: str) -> None:
    """One pass through the life of jobs, over single servers, TLS, sentinels and clusters of one and three nodes."""
    connections = Connections(url)
    redis, queue = connections.commands, Queue(connections)
    redis.script_flush()
    assert not [check for check in Health(connections).check() if check.status == "failed"]
    deploy(connections)

    job = queue.enqueue(NewJob("hello", b"1"))
    assert queue.wait(job.id, keys.reply("me")) is None
    assert rings(queue, "default", 1)
    assert run(queue, Outcome.ERROR) == job.id
    assert queue.show(job.id).state is JobState.SCHEDULED
    redis.zadd(keys.SCHEDULE, {job.id: 1})
    assert queue.promote()[0] == 1
    assert run(queue, Outcome.OK) == job.id
    [reply] = queue.replies(keys.reply("me"), 2, 10, ahead=1).pop()
    assert (reply.id, reply.state, reply.result) == (job.id, JobState.COMPLETED, b'"done"')

    queue.call_off("runner", ["default"])
    assert queue.step_on_ring("runner", LEASE_MS, "default", 1, 5.0).claims == []

    lost, cancelled, late = queue.enqueue_many([NewJob("hello", b"1") for _ in range(3)])
    queue.cancel(cancelled.id)
    assert len(queue.step("runner", LEASE_MS, [], [("default", 1)]).claims) == 1
    redis.zadd(keys.LEASES, {lost.id: 1}, xx=True)
    assert queue.reap() == (1, 0)
    assert run(queue, Outcome.PERMANENT) == lost.id
    assert DeadLetters(connections).replay([lost.id]) == [JobState.PENDING]
    assert [run(queue, Outcome.OK), run(queue, Outcome.PERMANENT)] == [late.id, lost.id]
    assert [letter.id for letter in DeadLetters(connections).page(DeadFilter()).letters] == [lost.id]
    assert DeadLetters(connections).purge([lost.id]) == 1

    waits = queue.enqueue(NewJob("hello", b"1", expires_after_ms=1))
    redis.zadd(keys.EXPIRING, {waits.id: 1})
    redis.hset(keys.job(waits.id), "expires", 1)
    assert queue.expire() == 1
    assert queue.show(waits.id).reason == "expired"
    redis.zadd(keys.DONE, {job.id: 1})
    assert queue.sweep() == 1

    deploy(connections, schedule=ScheduleSpec(cron="* * * * *", catchup="all"))
    redis.hincrby(keys.cron("hello"), "last", -60_000)
    schedules = Schedules(connections)
    assert schedules.look().fired
    assert schedules.pause("hello")
    assert queue.audit(0).repaired == {}

    tell_an_end(queue, Callbacks(connections))
    assert Follow(connections).ask({late.id: ""}) == {late.id: ""}
    assert JobLists(connections).forget("hello", 0) == 0

    names = list(scripts.NAMES)
    there = redis.script_exists(*(scripts.load()[name].sha for name in names))
    assert [name for name, is_there in zip(names, there, strict=True) if not is_there] == [], "not in this scenario"
    connections.close()


def test_a_certificate_of_another_authority_is_refused(servers: Servers) -> None:
    """TLS without the right authority reaches nobody, and the error says what is wrong with the certificate."""
    server = servers.server()
    with (
        tls_in_front(servers.folder / "ours", server.port) as proxy,
        tls_in_front(servers.folder / "other", server.port) as other,
    ):
        connections = Connections(f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={other.ca}")
        with pytest.raises(RedisUnavailable, match=r"(?i)certificate"):
            connections.ping()
        assert proxy.encrypted == 0


def test_the_wrong_name_and_a_missing_password_are_told_apart(servers: Servers) -> None:
    """What each sentinel said is in the message: whoever set it up sees what to change."""
    server = servers.server(password=PASSWORD)
    sentinel = servers.sentinel(server.port, 1, PASSWORD, "s3ntinel")
    at = f"127.0.0.1:{sentinel.port}"
    for url, why in {
        f"redis+sentinel://:{QUOTED}@{at}/other?sentinel_password=s3ntinel": "watches no master called 'other'",
        f"redis+sentinel://:{QUOTED}@{at}/{SERVICE}": "Authentication required",
        f"redis+sentinel://:wr0ng@{at}/{SERVICE}?sentinel_password=s3ntinel": "refuses the user or password",
    }.items():
        with pytest.raises(RedisUnavailable, match=why) as caught:
            Connections(url).ping()
        assert not [secret for secret in (PASSWORD, QUOTED, "s3ntinel", "wr0ng") if secret in str(caught.value)]


def test_one_node_of_a_cluster_says_which_url_is_needed(servers: Servers) -> None:
    """redis:// works with a cluster's node that has our slot; another one names the form that follows the slot."""
    nodes = servers.cluster(3)
    messages = []
    for node in nodes:
        connections = Connections(f"redis://127.0.0.1:{node.port}")
        messages += [check.detail for check in Health(connections).check() if check.status == "failed"]
        connections.close()
    assert len(messages) == 2
    assert all("redis+cluster://host:port" in message for message in messages)


# -- failovers ------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Threads that enqueue without pause, one that works and one that blocks, over one Connections."""

    connections: Connections
    #: Id → when it was accepted.
    accepted: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    #: Blocking calls that ended as RedisUnavailable.
    unblocked: int = 0
    completed: set[str] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, enqueuers: int = 3) -> None:
        for target in [self._enqueue] * enqueuers + [self._work, self._block]:
            self._threads.append(threading.Thread(target=self._guarded, args=(target,)))
            self._threads[-1].start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)
        assert self.errors == []

    def accepted_since(self, at: float) -> list[str]:
        return [job_id for job_id, when in list(self.accepted.items()) if when > at]

    def lost(self) -> list[str]:
        """Accepted, and neither there nor completed."""
        queue = Queue(self.connections)
        return [job_id for job_id in self.accepted if not _is_there(queue, job_id)]

    def _guarded(self, target: Callable[[Queue], None]) -> None:
        try:
            target(Queue(self.connections))
        except BaseException as e:
            self.errors.append(e)

    def _enqueue(self, queue: Queue) -> None:
        while not self._stop.is_set():
            job = NewJob("hello", b"1")
            while not self._stop.is_set():
                try:
                    queue.enqueue(job)  # the same id again: it becomes one job
                except RedisUnavailable:
                    self.refused += 1
                    self._stop.wait(0.02)
                else:
                    self.accepted[job.id] = time.monotonic()
                    break
            self._stop.wait(0.002)

    def _work(self, queue: Queue) -> None:
        ready: list[Settlement] = []
        while not self._stop.is_set():
            try:
                step = queue.step("runner", LEASE_MS, ready, [("default", 5)])
            except RedisUnavailable:
                self._stop.wait(0.02)
                continue
            self.completed |= {s.claim.id for s, is_settled in zip(ready, step.settled, strict=True) if is_settled}
            ready = [settlement(claim, Outcome.OK) for claim in step.claims]
            if not ready:
                self._stop.wait(0.01)

    def _block(self, queue: Queue) -> None:
        while not self._stop.is_set():
            try:
                queue.pop_inbox("runner", 1)  # nobody writes to it: it is blocked whenever a server goes
            except RedisUnavailable:
                self.unblocked += 1
                self._stop.wait(0.02)


def _is_there(queue: Queue, job_id: str) -> bool:
    try:
        queue.show(job_id)
    except UnknownJob:
        return False
    return True


def test_pops_that_are_sent_ahead_leave_a_master_that_others_have_left(servers: Servers) -> None:
    """One that nobody has told so answers on and on: whoever reads there would wait for replies that go elsewhere."""
    old, new = servers.server(), servers.server()
    sentinel = servers.sentinel(old.port, 1)
    connections = Connections(f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}/0")
    replies = Queue(connections).replies("{bananas}reply:me", 0.2, 10, ahead=4)
    assert replies.pop() == []
    sentinel.ask("SENTINEL", "REMOVE", SERVICE)
    sentinel.ask("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", new.port, 1)

    def has_heard() -> bool:
        try:
            assert replies.pop() == []
        except RedisUnavailable as e:
            return "left" in str(e)
        return False

    until(has_heard, 30, "the reader to hear of it")
    new.ask("RPUSH", "{bananas}reply:me", "j1\ncompleted\nnull\nr7")
    until(lambda: [reply.id for reply in replies.pop()] == ["j1"], 30, "the reply")
    connections.close()


def cut_replicas(replicas: ReplicaSet) -> None:
    """The replicas lose their master, and cannot come back; sentinels and clients see nothing of it."""
    for replica in replicas.replicas:
        replica.ask("CONFIG", "SET", "masterauth", "wrong")
    replicas.master.ask("CLIENT", "KILL", "TYPE", "replica")
    until(lambda: replicas.master.facts("replication")["connected_slaves"] == 0, 5, "the replicas to be gone")


def drain(load: Load) -> set[str]:
    """Run everything that is left, also what was leased when the old master went; the ids of completed jobs."""
    queue, redis, ready = Queue(load.connections), load.connections.commands, []
    for job_id in redis.zrange(keys.LEASES, 0, -1):
        redis.zadd(keys.LEASES, {job_id: 1}, xx=True)
    queue.reap(10_000)
    while claims := queue.step("runner", LEASE_MS, ready, [("default", 100)]).claims:
        ready = [settlement(claim, Outcome.OK) for claim in claims]
    states = {job_id: redis.hget(keys.job(job_id), "state") for job_id in load.accepted}
    return {job_id for job_id, state in states.items() if state == b"completed"}


SAFE = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")


@pytest.mark.parametrize(
    ("how", "options"),
    [("kill", ()), ("cut", ()), ("cut", SAFE), ("freeze", ()), ("planned", ()), ("paused", ())],
    ids=["kill", "cut", "cut-min-replicas", "freeze", "planned", "paused"],
)
def test_a_failover_is_survived_and_its_losses_are_counted(
    how: str, options: tuple[str, ...], servers: Servers
) -> None:
    """After it everything accepted is kept and run; before it only what the old master had not sent on can be lost."""
    replicas = servers.replica_set(*options, password=PASSWORD)
    connections = Connections(f"redis+sentinel://:{QUOTED}@{replicas.hosts()}/{SERVICE}")
    deploy(connections, result_ttl_ms=3_600_000)
    load = Load(connections)
    load.start()
    try:
        until(lambda: len(load.accepted) >= 300, 20, "300 jobs")
        cut_at = time.monotonic()
        if how == "cut":
            cut_replicas(replicas)
            until(lambda: load.refused if options else len(load.accepted_since(cut_at)) > 100, 10, "work while cut")
        failed_at = time.monotonic()
        fail(how, replicas)
        if how == "planned":
            until(lambda: replicas.named() != {replicas.master.port}, RECOVERY_S, "a sentinel to name another master")
            until(lambda: len(replicas.named()) == 1, RECOVERY_S, "all sentinels to name it")
        recovered_at = time.monotonic() + RECHECK_S + 0.5
        until(lambda: len(load.accepted_since(recovered_at)) >= 200, RECOVERY_S, "200 jobs after the failover")
        if how == "freeze":  # it takes itself for the master until the sentinels tell it otherwise, in 8 s or more
            replicas.master.process.send_signal(signal.SIGCONT)
            thawed_at = time.monotonic()
            until(lambda: len(load.accepted_since(thawed_at)) >= 50, 10, "50 jobs after the thaw")
    finally:
        load.stop()
    lost = {job_id: load.accepted[job_id] for job_id in load.lost()}
    gap_s, ended_at = max((b - a, b) for a, b in pairwise(sorted(load.accepted.values())))
    if how != "planned":  # whose gap may be shorter than another one
        recovered_at = ended_at
    done = drain(load)
    print(
        f"\nfailover {how}{' min-replicas' if options else ''}: accepted {len(load.accepted)}, refused {load.refused}, "
        f"lost {len(lost)} (completed before {len(load.completed & set(lost))}), no acceptance for {gap_s:.2f} s"
    )
    assert [at for at in lost.values() if not min(cut_at, failed_at) - 1 < at < recovered_at] == []
    assert set(load.accepted) - set(lost) == done
    if how in ("kill", "cut"):
        assert load.unblocked > 0
    assert gap_s < RECOVERY_S
    if how == "cut" and not options:
        assert len(lost) >= 50, "replicas that are cut off have nothing of what came after"
    if how == "paused":
        assert lost == {}
    if options:
        assert [at for at in lost.values() if at > cut_at + 0.5] == [], "refused instead of lost"
    connections.close()


def fail(how: str, replicas: ReplicaSet) -> None:
    """End the master's reign."""
    if how == "planned":
        replicas.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
    elif how == "paused":  # longer than a command waits, so that none that was held back is ever run there
        replicas.master.ask("CLIENT", "PAUSE", 30_000, "WRITE")
        replicas.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
    elif how == "freeze":
        replicas.master.process.send_signal(signal.SIGSTOP)
    else:
        replicas.master.kill9()
    if how == "cut":
        for replica in replicas.replicas:
            replica.ask("CONFIG", "SET", "masterauth", PASSWORD)


@pytest.mark.parametrize("how", ["kill", "planned"])
def test_a_cluster_fails_over_without_a_change_of_the_url(how: str, servers: Servers) -> None:
    """The node that has our slot dies, or hands the slot over (MOVED): the next one is found through the others."""
    nodes = servers.cluster(3, replicas=3)
    connections = Connections(f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}")
    deploy(connections)
    owner = next(n for n, node in enumerate(nodes[:3]) if node.facts("keyspace"))
    load = Load(connections)
    load.start()
    try:
        until(lambda: len(load.accepted) >= 200, 20, "200 jobs")
        failed_at = time.monotonic()
        if how == "kill":
            nodes[owner].kill9()
        else:
            nodes[owner + 3].ask("CLUSTER", "FAILOVER")
        replica = nodes[owner + 3]
        until(lambda: replica.facts("replication")["role"] == "master", RECOVERY_S, "the replica to be the master")
        promoted_at = time.monotonic()
        until(lambda: len(load.accepted_since(promoted_at)) >= 200, RECOVERY_S, "200 jobs after the failover")
    finally:
        load.stop()
    lost = load.lost()
    times = sorted(load.accepted.values())
    gap_s = max(b - a for a, b in pairwise(times))
    print(
        f"\ncluster failover {how}: accepted {len(load.accepted)}, refused {load.refused}, lost {len(lost)}, "
        f"no acceptance for {gap_s:.2f} s"
    )
    assert [job_id for job_id in lost if not failed_at - 1 < load.accepted[job_id] < promoted_at] == []
    assert set(load.accepted) - set(lost) == drain(load)
    assert load.unblocked > 0 or how == "planned"
    connections.close()
