"""The catalogue of metrics: name, kind, unit, labels and sentence of each; docs/metrics.md is made of it.

``/metrics`` of a gateway (``gateway.metrics``) tells what is in Redis, of the whole installation; that of a runner
(``runner.metrics``) what its process knows. Both fill an ``Exposition`` and can tell nothing that is not in the
catalogue. Counters in Redis, and those of a runner, are named by fields (see ``bananas.keys``): the first word says
which metric, the others are its labels.

Labels only have values of closed vocabularies, or names of pools and functions; what is counted by function goes with
the function (``bananas.leftovers``), so the number of series is bounded by what is deployed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bananas import keys
from bananas.job import DeadReason

Key = TypeVar("Key")

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_INF: Final = "inf"
#: (bucket as in the fields, its ``le`` in seconds), smallest first.
_BUCKETS: Final = [*((str(bound), str(bound / 1000)) for bound in keys.DURATION_BUCKETS_MS), (_INF, "+Inf")]


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric, under the name that is exposed."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    #: First word of the fields that it is made of; empty: it is set. Fields of a histogram end with the bucket.
    field: str = ""
    #: First word of the fields with the sum of a histogram.
    sums: str = ""
    #: What 1 in a field (of a histogram: in its sum) is in the unit of the metric.
    scale: float = 1.0
    #: Values of its only label that are told before anything happened, so that the first event is an increase.
    known: tuple[str, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Measure:
    return Measure(name, "gauge", text, labels)


def _counter(name: str, field: str, text: str, *labels: str, known: tuple[str, ...] = ()) -> Measure:
    return Measure(name, "counter", text, labels, field, known=known)


def _seconds(name: str, field: str, text: str, *labels: str) -> Measure:
    """A histogram whose sum is counted in whole µs."""
    return Measure(name, "histogram", text, labels, field, sums=f"{field}_us", scale=1e-6)


#: Phases of an attempt, in its order; a field of the histogram is ``<phase>:<pool>:<bucket>``.
PHASES: Final = {
    "queued": "From the moment at which a job could run to its claim by a runner",
    "wait_sandbox": "An attempt's wait for its sandbox",
    "init": "Loading the code, where the sandbox was not warm",
    "run": "A handler's call, from the invoke frame to its end",
    "total": "A job's attempt, from the moment at which it could run to its end",
}


def _of_runners(prefix: str) -> tuple[Measure, ...]:
    """What runners count: told by each, and by gateways for all of them together."""
    return (
        *(_seconds(f"{prefix}attempt_{phase}_seconds", phase, text, "pool") for phase, text in PHASES.items()),
        _counter(
            f"{prefix}sandbox_starts_total",
            "start",
            "How attempts got their sandbox (warm, stem, cold), and what was started ahead of them (spare, min_warm)",
            *("pool", "function", "start", "reason"),
        ),
        _counter(
            f"{prefix}sandbox_ends_total",
            *("end", "Sandboxes that were ended, by reason", "pool", "function", "reason"),
        ),
        _counter(
            f"{prefix}egress_connections_total",
            *("egress", "Connections out of sandboxes: ok, refused, cut", "pool", "verdict"),
        ),
        _counter(
            f"{prefix}egress_bytes_total",
            *("egress_bytes", "Bytes that passed them: sent, received", "pool", "direction"),
        ),
    )


#: Of a gateway: the whole installation, the same from every process of every gateway.
GATEWAY: Final[tuple[Measure, ...]] = (
    _gauge("bananas_up", "1 while the gateway reaches Redis; without it nothing but this and the version is told"),
    _gauge("bananas_build_info", "The version that answers", "version"),
    _gauge("bananas_queue_depth", "Jobs ready to run", "pool", "priority"),
    _gauge("bananas_queue_oldest_seconds", "How long the next job has waited", "pool", "priority"),
    _gauge("bananas_scheduled_jobs", "Jobs that wait for their time or a retry"),
    _gauge("bananas_processing_jobs", "Jobs that a runner holds: leases"),
    _gauge("bananas_lease_overdue_seconds", "Since when the first lease has run out that no runner has taken back"),
    _gauge("bananas_running_jobs", "Jobs that a runner holds", "function"),
    _gauge("bananas_parked_jobs", "Jobs that wait for their function's max_concurrency", "function"),
    _counter("bananas_jobs_accepted_total", "enqueued", "Jobs taken into the queue", "function"),
    _counter("bananas_jobs_refused_total", "refused", "Jobs that were not taken, by reason", "function", "reason"),
    _counter("bananas_jobs_total", "outcome", "Attempts that ended, by outcome", "function", "outcome"),
    Measure(
        *("bananas_job_duration_seconds", "histogram", "Runs of handlers", ("function",)),
        *("ms", "ms_sum", 1e-3),
    ),
    *_of_runners("bananas_"),
    _counter("bananas_retries_total", "retries", "Attempts that were put off to be tried again"),
    _counter("bananas_leases_expired_total", "lost", "Leases that ran out: their runner was gone"),
    _counter("bananas_jobs_cancelled_total", "cancelled", "Jobs that were cancelled"),
    _gauge("bananas_dead_letters_kept", "Failed jobs whose records are kept"),
    _gauge("bananas_dead_letters_oldest_seconds", "Since the oldest of them failed"),
    _counter(
        "bananas_dead_letters_total",
        *("dead", "Jobs that failed for good", "reason"),
        known=tuple(reason.value for reason in DeadReason),
    ),
    _counter(
        *("bananas_dead_letters_trimmed_total", "trimmed"),
        "Records of failed jobs dropped because there were too many",
    ),
    _counter("bananas_dead_letters_replayed_total", "replayed", "Failed jobs that were put back into the queue"),
    _counter("bananas_dead_letters_purged_total", "purged", "Records of failed jobs that were dropped by hand"),
    _counter("bananas_orphans_total", "orphans", "Ids that were met without a record"),
    _counter("bananas_queue_repairs_total", "repaired", "What the janitor put right", "kind"),
    Measure(
        *("bananas_cron_lag_seconds", "gauge", "How late the last slot of a schedule fired", ("function",)),
        *("cron_lag", "", 1e-3),
    ),
    _counter("bananas_cron_fired_total", "cron_fired", "Slots of schedules that made a job", "function"),
    _counter(
        *("bananas_cron_skipped_total", "cron_skipped"),
        *("Slots left out because the job before was not over", "function"),
    ),
    _counter(
        *("bananas_cron_missed_total", "cron_missed"),
        *("Slots left out because no runner was there in time", "function"),
    ),
    _counter(
        *("bananas_callbacks_total", "callback"),
        *("Tries to tell a job's end to its callback_url", "function", "verdict"),
    ),
    _gauge("bananas_callbacks_untold", "Ends of jobs that are still to be told"),
    _counter("bananas_callbacks_lost_total", "callbacks_lost", "Ends whose record was gone before they were told"),
    _gauge("bananas_runners", "Live runners"),
    _gauge("bananas_runner_busy", "Attempts in flight", "runner"),
    _gauge(
        "bananas_runner_held_up", "1 while it takes no jobs of the pool for that reason", "runner", "pool", "reason"
    ),
    _gauge("bananas_pool_runners", "Live runners that serve the pool", "pool"),
    _gauge("bananas_pool_slots", "Jobs that they may run at once: concurrency of the pool on each", "pool"),
    _gauge("bananas_pool_slots_busy", "Jobs that they run", "pool"),
    _gauge("bananas_sandboxes", "Sandboxes by state", "runner", "pool", "state"),
    _counter("bananas_events_total", "event", "Lines that gateways logged at warning and above", "event"),
    _counter("bananas_http_requests_total", "http", "Answered requests by call and status", "call", "status"),
    _seconds("bananas_http_request_seconds", "took", "From a request's arrival to its answer", "call"),
    _gauge("bananas_redis_info", "The server that holds the queue", "version"),
    _gauge("bananas_redis_uptime_seconds", "Since it started"),
    _gauge("bananas_redis_round_trip_seconds", "What one question to it took"),
    _gauge("bananas_redis_memory_bytes", "What it uses"),
    _gauge("bananas_redis_memory_limit_bytes", "maxmemory; 0: none"),
    _gauge("bananas_redis_clients", "Its connections"),
    _gauge("bananas_redis_evicting", "1 when maxmemory-policy lets it drop jobs: it must be noeviction"),
    _gauge("bananas_redis_persisting", "1 while the append-only file is on and the last write to it went well"),
)

#: Of a runner: this process.
RUNNER: Final[tuple[Measure, ...]] = (
    _gauge("bananas_runner_build_info", "The version, and the runner's id", "version", "runner"),
    _gauge("bananas_runner_slots", "Sandboxes that it may have at work", "pool"),
    _gauge("bananas_runner_attempts_in_flight", "Attempts whose leases it holds"),
    _counter("bananas_runner_attempts_total", "attempt", "Attempts whose end it told", "pool", "outcome"),
    _counter(
        "bananas_runner_attempts_abandoned_total",
        *("abandoned", "Attempts that it ended without a report, because they were not its own any more", "reason"),
    ),
    _counter("bananas_runner_reports_refused_total", "refused", "Reports that came too late to count"),
    *_of_runners("bananas_runner_"),
    _counter("bananas_runner_events_total", "event", "Lines that it logged at warning and above", "event"),
    _gauge("bananas_runner_sandboxes", "Sandboxes by state", "pool", "state"),
    _gauge("bananas_runner_sandbox_memory_bytes", "Limits of its sandboxes together"),
    _gauge("bananas_runner_sandbox_memory_budget_bytes", "What idle ones and spares keep within"),
    _gauge("bananas_runner_creates_in_progress", "Containers that are being created"),
    _gauge("bananas_runner_gpus", "Devices that pools may lease"),
    _gauge("bananas_runner_redis_up", "1 while Redis answers"),
    _gauge("bananas_runner_redis_round_trip_seconds", "What telling Redis that it lives took the last time"),
    _gauge("bananas_runner_engine_up", "1 while the engine answers; asked every 2 s"),
    _gauge("bananas_runner_engine_round_trip_seconds", "What asking it for a sign of life took the last time"),
    _gauge("bananas_runner_loop_lag_seconds", "How late the last heartbeat began: what held the process up"),
)


class Durations(Generic[Key]):
    """Durations by bucket, for each key; adding one costs a look-up and two additions."""

    def __init__(self) -> None:
        #: How many in each bucket, then the sum in ms.
        self._of: dict[Key, list[float]] = {}

    def add(self, key: Key, took_ms: float) -> None:
        """One more."""
        counts = self._of.get(key)
        if counts is None:
            counts = self._of[key] = [0] * (len(_BUCKETS) + 1)
        counts[bisect_left(keys.DURATION_BUCKETS_MS, took_ms)] += 1
        counts[-1] += took_ms

    def take(self) -> Iterator[tuple[Key, dict[str, int], int]]:
        """Everything since the last time: key, how many in each bucket (by its name in the fields), their sum in µs."""
        taken, self._of = self._of, {}
        for key, (*counts, sum_ms) in taken.items():
            yield key, {name: int(n) for (name, _), n in zip(_BUCKETS, counts, strict=True) if n}, round(sum_ms * 1000)


def label_at(label: str) -> dict[str, int]:
    """First words of fields that a label is part of → which word it is."""
    found = {}
    for measure in (*GATEWAY, *RUNNER):
        if measure.field and label in measure.labels:
            at = 1 + measure.labels.index(label)
            found.update({word: at for word in (measure.field, measure.sums) if word})
    return found


class Exposition(Collector):
    """What one scrape tells, by a catalogue."""

    def __init__(self, catalogue: Iterable[Measure]) -> None:
        self._measures = {measure.name: measure for measure in catalogue}
        self._values: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        #: Of histograms: labels → bucket → how many, and labels → sum.
        self._buckets: dict[str, dict[tuple[str, ...], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        self._by_word = {word: m for m in self._measures.values() for word in (m.field, m.sums) if word}

    def set(self, name: str, value: float, *labels: str) -> None:
        """A gauge's value; ``labels`` in the order of the catalogue."""
        measure = self._measures[name]
        if measure.field or len(labels) != len(measure.labels):
            raise ValueError(f"{name} is not a gauge with the labels {labels}")
        self._values[name][labels] = value

    def count(self, fields: Mapping[str, float]) -> None:
        """Counters and histograms by their fields; others are left out, so that releases may differ."""
        for measure in self._measures.values():
            if measure.kind == "counter":
                known = [(value,) for value in measure.known] if measure.labels else [()]
                self._values[measure.name].update(dict.fromkeys(known, 0.0))
        for field, value in fields.items():
            word, *labels = field.split(":")
            if word not in self._by_word:
                continue
            found = self._by_word[word]
            if found.kind == "histogram" and word == found.field:
                self._buckets[found.name][tuple(labels[:-1])][labels[-1]] = value
            elif len(labels) == len(found.labels):
                self._values[found.name][tuple(labels)] = value * found.scale

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        for measure in self._measures.values():
            yield self._family(measure)

    def _family(self, measure: Measure) -> Metric:
        values = self._values[measure.name]
        if measure.kind == "histogram":
            histogram = HistogramMetricFamily(measure.name, measure.text, labels=measure.labels)
            for labels, counts in sorted(self._buckets[measure.name].items()):
                total, buckets = 0.0, []
                for name, le in _BUCKETS:
                    total += counts.get(name, 0)
                    buckets.append((le, total))
                histogram.add_metric(labels, buckets, values.get(labels, 0))
            return histogram
        kind = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
        family = kind(measure.name, measure.text, labels=measure.labels)
        for labels, value in sorted(values.items()):
            family.add_metric(labels, value)
        return family

    def text(self, *others: Collector) -> bytes:
        """Prometheus' text format, with what ``others`` tell."""
        registry = CollectorRegistry(auto_describe=False)
        for collector in (self, *others):
            registry.register(collector)
        return generate_latest(registry)
