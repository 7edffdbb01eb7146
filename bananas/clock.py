"""The two clocks of a process: wall time for records, monotonic time for durations and deadlines.

Neither decides anything in the queue: leases and due times use Redis ``TIME`` only.
"""

from __future__ import annotations

import time

from bananas.protocols import Clock


class SystemClock(Clock):
    """The machine's own clocks."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000

    def mono_s(self) -> float:
        """Seconds since some fixed point; never goes back."""
        return time.monotonic()
