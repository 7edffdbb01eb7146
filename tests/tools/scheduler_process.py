"""A process with nothing but the scheduler of a runner: ``python -m tests.tools.scheduler_process URL CLOCK_OFFSET_S``.

Its own clock is wrong by the offset, for everything in it that asks.
"""

from __future__ import annotations

import sys
import time

real_time, real_time_ns = time.time, time.time_ns


def main(url: str, offset_s: int) -> None:
    """Runs until it is killed."""
    time.time = lambda: real_time() + offset_s
    time.time_ns = lambda: real_time_ns() + offset_s * 1_000_000_000
    from bananas.redis_client import Connections
    from bananas.schedules import Schedules
    from runner.maintenance.scheduler import Scheduler

    def crashed(role: str, error: BaseException) -> None:
        raise error

    print("ready", flush=True)
    Scheduler(crashed, Schedules(Connections(url))).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
