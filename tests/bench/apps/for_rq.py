"""A no-op in RQ: jobs go in by ``enqueue_many``, results stay for 500 s, its default. Runs in RQ's own environment."""

import os

from redis import Redis
from rq import Queue


def noop(event: int) -> int:
    """What every reference does."""
    return event


def submit(jobs: int) -> None:
    """Queue so many."""
    queue = Queue(connection=Redis.from_url(os.environ["BENCH_URL"]))
    for start in range(0, jobs, 500):
        queue.enqueue_many([Queue.prepare_data(noop, (1,)) for _ in range(min(500, jobs - start))])
