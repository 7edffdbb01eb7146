"""The bell of a pool, as a runner of a test hears it."""

from __future__ import annotations

from bananas import keys
from bananas.queue import Queue


def rings(queue: Queue, pool: str, block_s: float) -> bool:
    """Block until somebody rings, or the time is over; True when it rang. The ring is taken."""
    return queue._connections.blocking.bzpopmin([keys.bell(pool)], timeout=block_s) is not None
