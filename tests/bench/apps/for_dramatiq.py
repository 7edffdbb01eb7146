"""A no-op in dramatiq, with its results middleware on Redis. Runs in dramatiq's own environment."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = os.environ["BENCH_URL"]
broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, result_ttl=3_600_000)
def noop(event: int) -> int:
    """What every reference does."""
    return event


def submit(jobs: int) -> None:
    """Queue so many."""
    for _ in range(jobs):
        noop.send(1)
