"""``/metrics``: read from Redis at the moment of the scrape, so every process of every gateway tells the same.

The scripts count what happens to jobs, runners and gateways add what they counted (docs/decisions/0003). Names, labels
and sentences are in ``bananas.metrics``.
"""

from __future__ import annotations

from bananas import __version__, metrics
from bananas.counters import Counters
from bananas.errors import RedisUnavailable
from bananas.health import Health
from bananas.metrics import Exposition
from bananas.queue import Queue
from bananas.registry import Registry
from gateway.traffic import Traffic


class Scraper:
    """Answers scrapes; one for each gateway process."""

    def __init__(self, queue: Queue, registry: Registry, health: Health, counters: Counters, traffic: Traffic) -> None:
        """``traffic`` is this process's own, told before the sums are read."""
        self._queue = queue
        self._registry = registry
        self._health = health
        self._counters = counters
        self._traffic = traffic

    def text(self) -> bytes:
        """The exposition. While Redis is away it tells that, and nothing else."""
        told = Exposition(metrics.GATEWAY)
        told.set("bananas_build_info", 1, __version__)
        try:
            self._traffic.tell()
            self._redis(told)
            self._queued(told)
            self._live(told)
        except RedisUnavailable:
            told = Exposition(metrics.GATEWAY)
            told.set("bananas_build_info", 1, __version__)
            told.set("bananas_up", 0)
        else:
            told.set("bananas_up", 1)
        return told.text()

    def _redis(self, told: Exposition) -> None:
        vitals = self._health.vitals()
        told.set("bananas_redis_info", 1, vitals.version)
        told.set("bananas_redis_uptime_seconds", vitals.uptime_s)
        told.set("bananas_redis_round_trip_seconds", vitals.round_trip_s)
        told.set("bananas_redis_memory_bytes", vitals.memory_bytes)
        told.set("bananas_redis_memory_limit_bytes", vitals.memory_limit_bytes)
        told.set("bananas_redis_clients", vitals.clients)
        told.set("bananas_redis_evicting", vitals.is_evicting)
        told.set("bananas_redis_persisting", vitals.is_persisting)

    def _queued(self, told: Exposition) -> None:
        counts = self._queue.counts()
        told.count({**counts.counters, **self._counters.traffic()})
        told.set("bananas_scheduled_jobs", counts.scheduled)
        told.set("bananas_processing_jobs", counts.leased)
        told.set("bananas_lease_overdue_seconds", counts.overdue_ms / 1000)
        told.set("bananas_dead_letters_kept", counts.dead)
        told.set("bananas_callbacks_untold", counts.untold)
        told.set("bananas_dead_letters_oldest_seconds", max(0, counts.now_ms - counts.oldest_dead_ms) / 1000)
        for lane in self._queue.depths(list(self._registry.pools())):
            told.set("bananas_queue_depth", lane.queued, lane.pool, lane.priority)
            told.set("bananas_queue_oldest_seconds", lane.oldest_ms / 1000, lane.pool, lane.priority)
        for name, activity in self._queue.activity(self._registry.names()).items():
            told.set("bananas_running_jobs", activity.running, name)
            told.set("bananas_parked_jobs", activity.parked, name)

    def _live(self, told: Exposition) -> None:
        runners = self._registry.runners()
        told.set("bananas_runners", len(runners))
        for name, spec in self._registry.pools().items():
            serving = sum(runner.serves(name) for runner in runners)
            busy = sum(runner.busy_in(name) for runner in runners)
            told.set("bananas_pool_runners", serving, name)
            told.set("bananas_pool_slots", serving * spec.concurrency, name)
            told.set("bananas_pool_slots_busy", busy, name)
        for runner in runners:
            told.set("bananas_runner_busy", runner.busy, runner.id)
            for pool, reason in runner.held_up.items():
                told.set("bananas_runner_held_up", 1, runner.id, pool, reason)
            for place, number in runner.sandboxes.items():
                pool, _, state = place.rpartition("/")
                told.set("bananas_sandboxes", number, runner.id, pool, state)
