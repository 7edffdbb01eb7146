"""A no-op in taskiq: the stream broker, which acknowledges, and results in Redis. Runs in taskiq's own environment."""

import asyncio
import os

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["BENCH_URL"]
broker = RedisStreamBroker(URL).with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600))


@broker.task
async def noop(event: int) -> int:
    """What every reference does."""
    return event


async def _submit(jobs: int) -> None:
    await broker.startup()
    for start in range(0, jobs, 100):
        await asyncio.gather(*(noop.kiq(1) for _ in range(start, min(jobs, start + 100))))
    await broker.shutdown()


def submit(jobs: int) -> None:
    """Queue so many."""
    asyncio.run(_submit(jobs))
