"""A no-op in Celery, results in Redis, prefetching as its guide advises for many short tasks. Runs in Celery's own
environment."""

import os

from celery import Celery

# Its own spelling of a socket and a database.
URL = os.environ["BENCH_URL"].replace("unix://", "redis+socket://").replace("?db=", "?virtual_host=")
app = Celery("bench", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=128, result_expires=3600, broker_connection_retry_on_startup=True)


@app.task(name="noop")
def noop(event: int) -> int:
    """What every reference does."""
    return event


def submit(jobs: int) -> None:
    """Queue so many."""
    with app.connection_for_write() as connection:
        for _ in range(jobs):
            noop.apply_async((1,), connection=connection)
