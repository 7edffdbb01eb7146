"""``python -m tests.chaos.shifted SECONDS MODULE [ARGUMENT...]``: runs the module with a wall clock that is off.

``time.time`` and ``time.time_ns``, which is what the product asks, also in what a gateway forks; monotonic time is as
it is. A stand-in for a host whose clock was set wrong.
"""

from __future__ import annotations

import runpy
import sys
import time

_REAL_TIME, _REAL_TIME_NS = time.time, time.time_ns


def shift(seconds: int) -> None:
    """Move the wall clock of this process."""
    time.time = lambda: _REAL_TIME() + seconds
    time.time_ns = lambda: _REAL_TIME_NS() + seconds * 1_000_000_000


if __name__ == "__main__":
    shift(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
