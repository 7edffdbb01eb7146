"""Unique keys: the second job with a key is the first one, for as long as that lives, and a day at least."""

from __future__ import annotations

import threading

import pytest

from bananas import keys
from bananas.dead_letters import DeadLetters
from bananas.job import Enqueued, JobState, NewJob, Outcome
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from tests.integration.jobs import end, ids, let_expire, make_past
from tests.integration.test_queue import claim, deploy

pytestmark = pytest.mark.redis

DAY_MS = 86_400_000
KEY = keys.PREFIX + "unique:f:k"


@pytest.fixture
def registry(connections: Connections) -> Registry:
    registry = Registry(connections)
    deploy(registry, "f")
    return registry


def submit(queue: Queue, function: str = "f", key: str = "k", **kw: object) -> Enqueued:
    return queue.enqueue(NewJob(function, b"1", unique_key=key, **kw))


def test_the_second_job_with_a_key_is_the_first_one(queue, registry, connections):
    """One job, one run; every field of the answer is the first one's."""
    first = submit(queue, delay_ms=60_000, timeout_ms=500)
    second = submit(queue)
    assert (first.duplicate, second.duplicate) == (False, True)
    assert (second.id, second.version, second.timeout_ms) == (first.id, first.version, 500)
    assert second.state is JobState.SCHEDULED
    make_past(connections, keys.SCHEDULE, [first.id])
    queue.promote()
    assert submit(queue).state is JobState.PENDING
    assert ids(claim(queue, 9)) == [first.id]
    assert queue.counts().counters["enqueued:f"] == 1


def test_a_key_belongs_to_its_function(queue, registry):
    """Other functions and other keys are other jobs; a job without a key is never a duplicate."""
    deploy(registry, "g")
    answers = [submit(queue), submit(queue, "g"), submit(queue, key="other"), queue.enqueue(NewJob("f", b"1"))]
    assert [answer.duplicate for answer in answers] == [False] * 4
    assert len({answer.id for answer in answers}) == 4


def test_the_same_id_again_is_no_duplicate(queue, registry):
    """A client that sends its request again gets its own job."""
    job = NewJob("f", b"1", unique_key="k")
    assert queue.enqueue(job) == queue.enqueue(job)
    other = NewJob("f", b"1", unique_key="k")
    assert [queue.enqueue(other).duplicate for _ in range(2)] == [True, True]


def test_a_live_job_holds_its_key_for_ever_and_a_finished_one_for_a_day(queue, registry, connections):
    """From its creation, whatever became of it, with its final state in the answer."""
    job = submit(queue)
    assert connections.commands.pttl(KEY) == -1
    end(queue, claim(queue), Outcome.OK)
    assert 0 < connections.commands.pttl(KEY) <= DAY_MS
    assert (submit(queue).id, submit(queue).state) == (job.id, JobState.COMPLETED)
    connections.commands.delete(keys.job(job.id))  # as at the end of its result_ttl
    again = submit(queue)
    assert (again.id, again.state, again.duplicate) == (job.id, JobState.COMPLETED, True)


def test_a_job_older_than_a_day_gives_its_key_up_when_it_ends(queue, registry, connections):
    """No finished or dead job blocks its key for longer."""
    job = submit(queue)
    connections.commands.hincrby(keys.job(job.id), "created", -DAY_MS - 1)
    assert submit(queue).duplicate
    end(queue, claim(queue), Outcome.PERMANENT)
    assert not connections.commands.exists(KEY)
    new = submit(queue)
    assert (new.duplicate, new.id != job.id) == (False, True)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_jobs_that_never_ran_end_their_key_too(queue, registry, connections, how):
    """Cancelled and expired ones."""
    job = submit(queue, expires_after_ms=60_000)
    if how == "cancelled":
        queue.cancel(job.id)
    else:
        let_expire(connections, [job.id])
        queue.expire()
    assert 0 < connections.commands.pttl(KEY) <= DAY_MS
    assert submit(queue).id == job.id


def test_a_key_whose_job_was_deleted_by_hand_blocks_nobody(queue, registry, connections):
    """Without a record and without an end it is of nobody."""
    job = submit(queue)
    connections.commands.delete(keys.job(job.id))
    new = submit(queue)
    assert (new.duplicate, new.id != job.id) == (False, True)


def test_a_replayed_job_holds_its_key_again(queue, registry, connections):
    """As long as it lives; unless another one holds it by then."""
    letters = DeadLetters(connections)
    first = submit(queue)
    end(queue, claim(queue), Outcome.PERMANENT)
    letters.replay([first.id])
    assert connections.commands.pttl(KEY) == -1
    assert (submit(queue).id, submit(queue).state) == (first.id, JobState.PENDING)

    end(queue, claim(queue), Outcome.PERMANENT)
    connections.commands.delete(KEY)  # as a day after its creation
    second = submit(queue)
    assert not second.duplicate
    letters.replay([first.id])
    assert submit(queue).id == second.id
    claims = {c.id: c for c in claim(queue, 9)}
    end(queue, [claims[first.id]], Outcome.OK)
    assert submit(queue).id == second.id
    assert connections.commands.pttl(KEY) == -1, "the end of another job is nothing to the key"


def test_an_answer_to_a_key_needs_no_function(queue, registry):
    """A client that asks again after a removal still learns what became of its job."""
    job = submit(queue)
    registry.remove("f")
    assert submit(queue).id == job.id


def test_within_one_batch(queue, registry):
    """The later one of two is a duplicate of the earlier one."""
    jobs = [NewJob("f", b"1", unique_key=key) for key in ("a", "b", "a")]
    answers = queue.enqueue_many(jobs)
    assert [(answer.id, answer.duplicate) for answer in answers] == [
        (jobs[0].id, False),
        (jobs[1].id, False),
        (jobs[0].id, True),
    ]


def test_many_clients_at_once_make_one_job(queue, registry):
    """Eight threads, 50 keys, the same keys at the same time."""
    answers: list[Enqueued] = []
    start = threading.Barrier(8)

    def client() -> None:
        start.wait(timeout=10)
        answers.extend([submit(queue, key=f"k{n}") for n in range(50)])

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(answers) == 400
    assert len({answer.id for answer in answers}) == 50
    assert sum(not answer.duplicate for answer in answers) == 50
    assert len(claim(queue, 500)) == 50
