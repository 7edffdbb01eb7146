"""The janitor of Redis: what its time is over for goes batch by batch, and what else it does is done once a round."""

from __future__ import annotations

import pytest

from bananas import keys
from bananas.leftovers import Leftovers
from bananas.queue import Audit, Queue
from bananas.redis_client import Connections
from runner.maintenance.janitor import Janitor

pytestmark = pytest.mark.redis


class Counting(Queue):
    """Counts its audits."""

    audits = 0

    def audit(self, cursor: int, count: int = 500) -> Audit:
        self.audits += 1
        return super().audit(cursor, count)


def test_a_backlog_is_dropped_in_batches_and_audited_once(connections: Connections) -> None:
    """Thousands of records that end at once cost one audit, not one for each batch."""
    connections.commands.zadd(keys.DONE, {f"job{n}": 1 for n in range(2500)})
    queue = Counting(connections)
    crashes: list[object] = []
    janitor = Janitor(lambda *crash: crashes.append(crash), queue, Leftovers(connections))
    told, audits = [], []
    for _ in range(4):
        told.append(janitor.run_once())
        audits.append(queue.audits)
    assert told == [0.0, 0.0, None, None]
    assert connections.commands.zcard(keys.DONE) == 0
    assert 0 < audits[0] == audits[2] < audits[3]
    assert not crashes
