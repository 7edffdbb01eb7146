"""Jobs that are to be like an earlier one: its version and limits, whatever the function says by now."""

from __future__ import annotations

import pytest

from bananas import errors, keys
from bananas.job import JobState, NewJob
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from tests.integration.test_queue import claim, deploy

pytestmark = pytest.mark.redis


@pytest.fixture
def registry(connections: Connections) -> Registry:
    return Registry(connections)


def test_a_job_takes_the_version_and_limits_of_the_one_it_is_like(queue: Queue, registry: Registry) -> None:
    """Those that were stamped on that one, also when they are over what the function has now; it may ask for less."""
    old = deploy(registry, "hello", timeout_ms=9000)
    first = queue.enqueue(NewJob("hello", b"1", timeout_ms=8000, max_retries=1)).id
    new = deploy(registry, "hello", timeout_ms=2000)
    again = queue.enqueue(NewJob("hello", b"1", like=first))
    less = queue.enqueue(NewJob("hello", b"1", like=first, timeout_ms=500, max_retries=0))
    other = queue.enqueue(NewJob("hello", b"1"))
    assert (again.version, less.version, other.version) == (old, old, new)
    assert (again.timeout_ms, less.timeout_ms, other.timeout_ms) == (8000, 500, 2000)
    assert [c.retries.max for c in claim(queue, 3)] == [1, 1, 0]


def test_it_keeps_that_version_for_as_long_as_any_job_needs_one(
    queue: Queue, registry: Registry, connections: Connections
) -> None:
    """The archive of code that was about to go stays."""
    old = deploy(registry, "hello")
    first = queue.enqueue(NewJob("hello", b"1")).id
    deploy(registry, "hello", timeout_ms=2000)
    connections.commands.pexpire(keys.version("hello", old), 60_000)
    queue.enqueue(NewJob("hello", b"1", like=first))
    assert connections.commands.pttl(keys.version("hello", old)) > LIMITS.old_version_s * 1000 - 60_000
    connections.commands.delete(keys.version("hello", old))
    with pytest.raises(errors.VersionGone, match=f"version {old} of function 'hello' is not kept"):
        queue.enqueue(NewJob("hello", b"1", like=first))


def test_what_is_no_job_of_the_function_is_refused(queue: Queue, registry: Registry) -> None:
    """Each of a batch by itself, and nothing is queued for it."""
    deploy(registry, "hello")
    deploy(registry, "other")
    theirs = queue.enqueue(NewJob("other", b"1")).id
    jobs = [NewJob("hello", b"1", like=theirs), NewJob("hello", b"1", like="no-such-job"), NewJob("hello", b"1")]
    refused, unknown, taken = queue.enqueue_many(jobs)
    assert isinstance(refused, errors.UnknownJob)
    assert isinstance(unknown, errors.UnknownJob)
    assert str(unknown) == "function 'hello' has no job with the id no-such-job"
    assert not isinstance(taken, errors.BananasError)
    assert queue.show(taken.id).state is JobState.PENDING
    with pytest.raises(errors.UnknownJob):
        queue.show(jobs[0].id)
