"""A few numbers in memory that keeper and worker share, so that the keeper can finish what a dead worker began.

The worker writes, the keeper reads, and only after the worker's death; so there is nothing to lock.
"""

from __future__ import annotations

import mmap

#: The call that runs, 0 for none; bytes of its output sent so far, the cap on them, and bytes dropped over the cap.
CALL, LOGGED, LOG_CAP, DROPPED = range(4)
#: 1 while a frame is being sent that the kernel may take in pieces.
SENDING = 4
_COUNT = 5

DEFAULT_LOG_CAP_BYTES = 256 * 1024


def create() -> memoryview:
    """The numbers, all 0 except the cap; a process forked later sees the same ones."""
    state = memoryview(mmap.mmap(-1, mmap.PAGESIZE))[: _COUNT * 8].cast("Q")
    state[LOG_CAP] = DEFAULT_LOG_CAP_BYTES
    return state
