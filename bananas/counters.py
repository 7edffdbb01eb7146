"""Counters in Redis besides those that scripts raise: the traffic of gateways, and what goes when a function is gone.

Called by gateways (``gateway.traffic``, ``gateway.metrics``) and by the janitor. Every method raises RedisUnavailable.
"""

from __future__ import annotations

from collections.abc import Mapping

from bananas import keys
from bananas.metrics import label_at
from bananas.redis_client import Connections

_FUNCTION_AT = label_at("function")


class Counters:
    """See the module."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._redis = connections.commands

    def add_traffic(self, counts: Mapping[str, int]) -> None:
        """Add what a gateway process counted, by field."""
        with self._connections.guard():
            pipe = self._redis.pipeline(transaction=True)
            for name, number in counts.items():
                pipe.hincrby(keys.TRAFFIC, name, number)
            pipe.execute()

    def traffic(self) -> dict[str, int]:
        """The sums of all gateways, by field."""
        with self._connections.guard():
            return {name.decode(): int(value) for name, value in self._redis.hgetall(keys.TRAFFIC).items()}

    def forget(self) -> int:
        """Drop the counters of functions that are removed and of which no job is listed any more; returns how many."""
        with self._connections.guard():
            # The counters first: what is deployed after this look has none among them.
            fields = [name.decode() for name in self._redis.hkeys(keys.COUNTERS)]
            here = {"", *(name.decode() for name in self._redis.sunion(keys.FUNCTIONS, keys.UNLISTED))}
            gone = [field for field in fields if _function_of(field) not in here]
            return int(self._redis.hdel(keys.COUNTERS, *gone)) if gone else 0


def _function_of(field: str) -> str:
    """The function that a field counts; empty for one that counts something else."""
    word, *labels = field.split(":")
    at = _FUNCTION_AT.get(word)
    return labels[at - 1] if at is not None and len(labels) >= at else ""
