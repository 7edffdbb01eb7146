"""Claims that wait in Redis for the bell of a pool: made with the ring, never lost, ended when they are called off."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from bananas import keys
from bananas.job import JobState, NewJob
from bananas.redis_client import BLOCK_S, Connections
from bananas.registry import Registry
from tests.bells import rings
from tests.integration.test_queue import LEASE_MS, assert_invariant, deploy
from tests.platform import until

RUNNER = "r"


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    deploy(registry, "hello")
    return registry


def waiting_claim(queue, connections, slots=9):
    """A claim that waits in Redis for the bell of the default pool."""
    callers = ThreadPoolExecutor(1)
    call = callers.submit(queue.step_on_ring, RUNNER, LEASE_MS, "default", slots, BLOCK_S)
    callers.shutdown(wait=False)
    until(lambda: connections.commands.info("clients")["blocked_clients"] == 1, 20, "the claim to wait")
    return call


def test_a_claim_waits_for_the_ring_and_is_made_with_it(queue, registry, connections):
    """Who enqueues gives the job to the runner that waits: nothing more has to be said."""
    claiming = waiting_claim(queue, connections)
    job = queue.enqueue(NewJob("hello", b"1"))
    step = claiming.result(20)
    assert [c.id for c in step.claims] == [job.id]
    assert queue.show(job.id).state is JobState.PROCESSING
    assert_invariant(connections)


def test_a_waiting_claim_takes_what_it_has_places_for_and_passes_the_bell_on(queue, registry, connections):
    """A batch comes at once; what is left calls for the next runner."""
    claiming = waiting_claim(queue, connections, slots=2)
    ids = [answer.id for answer in queue.enqueue_many([NewJob("hello", b"1") for _ in range(3)])]
    assert [c.id for c in claiming.result(20).claims] == ids[:2]
    assert rings(queue, "default", 5)


def test_a_waiting_claim_looks_by_itself_when_no_ring_comes(queue, registry, connections):
    """A ring that got lost costs the time that a claim waits, and no more."""
    job = queue.enqueue(NewJob("hello", b"1"))
    assert rings(queue, "default", 5)
    assert [c.id for c in queue.step_on_ring(RUNNER, LEASE_MS, "default", 1, 0.05).claims] == [job.id]


def test_a_waiting_claim_can_be_called_off(queue, registry, connections):
    """A runner that stops does not wait for its own claims; one that was called off in vain leaves nothing behind."""
    claiming = waiting_claim(queue, connections)
    queue.call_off(RUNNER, ["default"])
    assert claiming.result(20).claims == []
    queue.call_off(RUNNER, ["default"])
    assert 0 < connections.commands.ttl(keys.wake(RUNNER)) <= 60


def test_a_waiting_claim_survives_that_the_server_forgets_its_scripts(queue, registry, connections):
    """The script is sent again, and the job is not lost between the two."""
    claiming = waiting_claim(queue, connections)
    connections.commands.script_flush()
    job = queue.enqueue(NewJob("hello", b"1"))
    assert [c.id for c in claiming.result(20).claims] == [job.id]
