"""A no-op in huey, which keeps results in a hash until they are read. Runs in huey's own environment."""

import os

from huey import RedisHuey

huey = RedisHuey("bench", url=os.environ["BENCH_URL"])


@huey.task()
def noop(event: int) -> int:
    """What every reference does."""
    return event


def submit(jobs: int) -> None:
    """Queue so many."""
    for _ in range(jobs):
        noop(1)
