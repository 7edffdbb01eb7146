"""``/metrics``: read from Redis at the moment of the scrape, so every process of every gateway tells the same.

The scripts count what happens to jobs (docs/decisions/0003); here the counters get their names, units and labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bananas import __version__, keys
from bananas.queue import Activity, Counts, LaneDepth, Queue
from bananas.registry import Registry, RunnerInfo

#: (bucket as in the counters, its ``le`` in seconds), smallest first.
_BUCKETS: Final = [(str(bound), str(bound / 1000)) for bound in keys.DURATION_BUCKETS_MS]


def scrape(queue: Queue, registry: Registry) -> tuple[bytes, str]:
    """The exposition and its content type; raises RedisUnavailable."""
    runners = registry.runners()
    depths = queue.depths(list(registry.pools()))
    exposition = CollectorRegistry(auto_describe=False)
    exposition.register(_Snapshot(queue.counts(), depths, queue.activity(registry.names()), runners))
    return generate_latest(exposition), CONTENT_TYPE_LATEST


class _Snapshot(Collector):
    """Everything that one scrape tells."""

    def __init__(
        self, counts: Counts, depths: list[LaneDepth], activity: dict[str, Activity], runners: list[RunnerInfo]
    ) -> None:
        self._counts = counts
        self._depths = depths
        self._activity = activity
        self._runners = runners

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("bananas_up", "1 while the gateway reaches Redis", 1)
        build = GaugeMetricFamily("bananas_build_info", "The version that answers", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield from self._sizes()
        yield from self._functions()
        yield from self._jobs()
        yield self._durations()
        yield from self._schedules()
        yield from self._sandboxes()
        yield from self._egress()
        yield from self._live()

    def _sizes(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("bananas_queue_depth", "Jobs ready to run", labels=["pool", "priority"])
        oldest = GaugeMetricFamily(
            "bananas_queue_oldest_seconds", "How long the next job has waited", labels=["pool", "priority"]
        )
        for lane in self._depths:
            queued.add_metric([lane.pool, lane.priority], lane.queued)
            oldest.add_metric([lane.pool, lane.priority], lane.oldest_ms / 1000)
        yield from (queued, oldest)
        counts = self._counts
        yield GaugeMetricFamily("bananas_scheduled_jobs", "Jobs that wait for their time or a retry", counts.scheduled)
        yield GaugeMetricFamily("bananas_processing_jobs", "Jobs that a runner holds", counts.leased)
        yield GaugeMetricFamily("bananas_dead_letters", "Failed jobs whose records are kept", counts.dead)
        oldest_s = max(0, counts.now_ms - counts.oldest_dead_ms) / 1000
        yield GaugeMetricFamily("bananas_dead_letters_oldest_seconds", "Since the oldest of them failed", oldest_s)

    def _functions(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("bananas_running_jobs", "Jobs that a runner holds", labels=["function"])
        parked = GaugeMetricFamily(
            "bananas_parked_jobs", "Jobs that wait for their function's max_concurrency", labels=["function"]
        )
        for name, activity in self._activity.items():
            running.add_metric([name], activity.running)
            parked.add_metric([name], activity.parked)
        yield from (running, parked)

    def _jobs(self) -> Iterator[Metric]:
        accepted = CounterMetricFamily("bananas_jobs_accepted", "Jobs taken into the queue", labels=["function"])
        ended = CounterMetricFamily("bananas_jobs", "Attempts that ended, by outcome", labels=["function", "outcome"])
        dead = CounterMetricFamily("bananas_dead_letters", "Jobs that failed for good", labels=["reason"])
        repairs = CounterMetricFamily("bananas_queue_repairs", "What the janitor put right", labels=["kind"])
        for name, value in sorted(self._counts.counters.items()):
            match name.split(":"):
                case ["repaired", kind]:
                    repairs.add_metric([kind], value)
                case ["enqueued", function]:
                    accepted.add_metric([function], value)
                case ["outcome", function, outcome]:
                    ended.add_metric([function, outcome], value)
                case ["dead", reason]:
                    dead.add_metric([reason], value)
        yield from (accepted, ended, dead, repairs)
        for name, text in _PLAIN.items():
            yield CounterMetricFamily(f"bananas_{name}", text, self._counts.counters.get(_FIELDS.get(name, name), 0))

    def _durations(self) -> Metric:
        family = HistogramMetricFamily("bananas_job_duration_seconds", "Runs of handlers", labels=["function"])
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for name, value in self._counts.counters.items():
            match name.split(":"):
                case ["ms", function, bucket]:
                    found[function][bucket] = value
        for function, runs in sorted(found.items()):
            total, buckets = 0.0, []
            for bucket, le in [*_BUCKETS, ("inf", "+Inf")]:
                total += runs.get(bucket, 0)
                buckets.append((le, total))
            sum_ms = self._counts.counters.get(f"ms_sum:{function}", 0)
            family.add_metric([function], buckets, sum_ms / 1000)
        return family

    def _sandboxes(self) -> Iterator[Metric]:
        starts = CounterMetricFamily(
            "bananas_sandbox_starts",
            "How attempts got their sandbox (warm, stem, cold), and what was started ahead of them (spare, min_warm)",
            labels=["pool", "function", "start", "reason"],
        )
        ends = CounterMetricFamily(
            "bananas_sandbox_ends", "Sandboxes that were ended, by reason", labels=["pool", "function", "reason"]
        )
        for name, value in sorted(self._counts.counters.items()):
            match name.split(":"):
                case ["start", pool, function, start, reason]:
                    starts.add_metric([pool, function, start, reason], value)
                case ["end", pool, function, reason]:
                    ends.add_metric([pool, function, reason], value)
        yield from (starts, ends)

    def _schedules(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "bananas_cron_lag_seconds", "How late the last slot of a schedule fired", labels=["function"]
        )
        counters = {
            f"cron_{name}": CounterMetricFamily(f"bananas_cron_{name}", text, labels=["function"])
            for name, text in _SLOTS.items()
        }
        for name, value in sorted(self._counts.counters.items()):
            match name.split(":"):
                case ["cron_lag", function]:
                    lag.add_metric([function], value / 1000)
                case [counter, function] if counter in counters:
                    counters[counter].add_metric([function], value)
        yield from (lag, *counters.values())

    def _egress(self) -> Iterator[Metric]:
        connections = CounterMetricFamily(
            "bananas_egress_connections", "Connections out of sandboxes: ok, refused, cut", labels=["pool", "verdict"]
        )
        passed = CounterMetricFamily(
            "bananas_egress_bytes", "Bytes that passed them: sent, received", labels=["pool", "direction"]
        )
        for name, value in sorted(self._counts.counters.items()):
            match name.split(":"):
                case ["egress", pool, verdict]:
                    connections.add_metric([pool, verdict], value)
                case ["egress_bytes", pool, direction]:
                    passed.add_metric([pool, direction], value)
        yield from (connections, passed)

    def _live(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("bananas_runners", "Live runners", len(self._runners))
        busy = GaugeMetricFamily("bananas_runner_busy", "Attempts in flight", labels=["runner"])
        boxes = GaugeMetricFamily("bananas_sandboxes", "Sandboxes", labels=["runner", "pool", "state"])
        for runner in self._runners:
            busy.add_metric([runner.id], runner.busy)
            for place, number in sorted(runner.sandboxes.items()):
                pool, _, state = place.rpartition("/")
                boxes.add_metric([runner.id, pool, state], number)
        yield from (busy, boxes)


#: What becomes of a schedule's slots.
_SLOTS: Final = {
    "fired": "Slots of schedules that made a job",
    "skipped": "Slots left out because the job before was not over",
    "missed": "Slots left out because no runner was there in time",
}
#: Counters without labels, and where their field has another name.
_PLAIN: Final = {
    "retries": "Attempts that were put off to be tried again",
    "jobs_cancelled": "Jobs that were cancelled",
    "dead_letters_trimmed": "Records of failed jobs dropped because there were too many",
    "dead_letters_replayed": "Failed jobs that were put back into the queue",
    "dead_letters_purged": "Records of failed jobs that were dropped by hand",
    "orphans": "Ids that were met without a record",
}
_FIELDS: Final = {
    "jobs_cancelled": "cancelled",
    "dead_letters_trimmed": "trimmed",
    "dead_letters_replayed": "replayed",
    "dead_letters_purged": "purged",
}
