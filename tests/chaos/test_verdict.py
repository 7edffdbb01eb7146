"""The judge of the storms finds what it is there to find: lost jobs, foreign results, burnt attempts, what is left."""

from __future__ import annotations

import hashlib
import re
import time
from random import Random

import pytest

from bananas import keys, retry
from bananas.job import Attempt, Claim, NewJob, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import Bundles, Deployment, FunctionSpec
from tests.chaos import verdict
from tests.chaos.journal import Execution, Journal, read
from tests.chaos.plan import Disruption, JobPlan, Sent
from tests.chaos.verdict import Verdict

LEASE_MS = 60_000


class Case:
    """One job that ran once, and its journal."""

    def __init__(self, connections: Connections, folder) -> None:
        registry = Registry(connections)
        sha = hashlib.sha256(b"x").hexdigest()
        registry.put_bundle(sha, b"x")
        registry.deploy("work", Deployment(spec=FunctionSpec(), bundles=Bundles(code=sha), abi="any"))
        self.connections, self.queue, self.folder = connections, Queue(connections), folder
        self.sent = Sent(JobPlan("quick", "work", {"run_ms": 0}, "completed"), NewJob("work", b"1"))
        self.queue.enqueue(self.sent.job)
        self.sent.acked_s = time.monotonic()
        self.journal = Journal(folder, "runner")

    def claim(self, lease_ms: int = LEASE_MS) -> tuple[Claim, str]:
        [claim] = self.queue.step("runner", lease_ms, [], [("default", 1)]).claims
        return claim, self.journal.begin(claim.id, claim.token, claim.failures + 1)

    def settle(self, claim: Claim, nonce: str, outcome: Outcome = Outcome.OK) -> None:
        result = b'{"token":%d,"nonce":"%s"}' % (claim.token, nonce.encode())
        decision = retry.decide(outcome, claim.retries, claim.failures, claim.starts, Random(0))
        report = Settlement(claim, Attempt(claim.token, outcome, "runner", 0), decision, result)
        assert self.queue.step("runner", LEASE_MS, [report], []).settled == [True]

    def judged(self, *disruptions: Disruption) -> Verdict:
        found = verdict.Judge("case", self.queue, [self.sent], disruptions, 1.0).judge(read(self.folder))
        found.leftovers = verdict.leftovers(self.connections, self.queue)
        return found


@pytest.fixture
def case(connections, tmp_path) -> Case:
    return Case(connections, tmp_path)


def test_a_job_that_went_well_breaks_no_promise(case):
    """And the table says so."""
    case.settle(*case.claim())
    found = case.judged()
    assert found.broken() == []
    assert re.search(r"^  completed +1$", found.table(), re.MULTILINE)
    assert (found.executions, found.twice) == (1, 0)


def test_a_job_that_is_gone_is_lost_unless_redis_was_killed_right_after(case):
    """What was acknowledged less than a second before a kill of Redis is told apart."""
    case.connections.commands.flushall()
    assert "lost" in case.judged().broken()[0]
    found = case.judged(Disruption("redis", time.monotonic(), until_s=time.monotonic()))
    assert (found.broken(), found.lost_young) == ([], 1)


def test_a_job_that_is_not_over_is_lost(case):
    """Queued for ever is as bad as gone; and its lane is left behind."""
    found = case.judged()
    assert [line.split(":")[0] for line in found.broken()] == ["lost", "left behind"]


def test_a_result_of_another_execution_is_stale(case):
    """The nonce of the stored result must be that of the last claim."""
    claim, _ = case.claim()
    case.settle(claim, "0000")
    assert "stale" in case.judged().broken()[0]


def test_a_loss_without_a_cause_burns_an_attempt_and_with_one_is_a_recovery(case):
    """A lease that ran out must be that of a runner to which something was done."""
    began_s = time.monotonic()
    case.claim(lease_ms=0)
    assert case.queue.reap() == (1, 0)
    case.settle(*case.claim())
    assert "burned" in case.judged().broken()[0]
    found = case.judged(Disruption("kill", began_s, ("runner",)))
    assert found.broken() == []
    assert (found.twice, len(found.recoveries_s)) == (1, 1)
    assert "recovery p99" in case.judged(Disruption("kill", began_s - 5, ("runner",))).broken()[-1]


def test_a_job_that_the_next_runner_loses_too_recovers_from_that_loss(case):
    """A runner may be killed between a claim and the start of the code: each loss is measured from its own cause."""
    first_s = time.monotonic()
    case.claim(lease_ms=0)
    assert case.queue.reap() == (1, 0)
    assert len(case.queue.step("runner2", 0, [], [("default", 1)]).claims) == 1
    second_s = time.monotonic()
    assert case.queue.reap() == (1, 0)
    case.settle(*case.claim())
    found = case.judged(Disruption("kill", first_s, ("runner",)), Disruption("kill", second_s, ("runner2",)))
    assert found.broken() == []
    assert len(found.recoveries_s) == 1, "one loss, from the second kill"
    assert found.recoveries_s[0] < time.monotonic() - second_s


def test_failures_that_no_plan_asks_for_are_burnt(case):
    """A crash of the code that nobody planned counts against a restart."""
    case.settle(*case.claim(), Outcome.CRASHED)
    case.connections.commands.zadd(keys.SCHEDULE, {case.sent.job.id: 0})
    case.queue.promote()
    case.settle(*case.claim())
    assert "burned" in case.judged().broken()[0]


def test_narrow_peak_counts_executions_at_the_same_moment():
    """One that was killed ends with its runner."""
    at = [Execution("j", i, 1, "r", f"{i}", begun, ended) for i, (begun, ended) in enumerate([(0, 2), (1, 3), (2, 4)])]
    assert verdict.narrow_peak(at, {"j"}, []) == 2
    endless = [Execution("j", 9, 1, "dead", "9", 0.0, None), *at]
    assert verdict.narrow_peak(endless, {"j"}, []) == 3
    assert verdict.narrow_peak(endless, {"j"}, [Disruption("kill", 0.5, ("dead",))]) == 2
