"""What one claim costs with nothing, 10,000 and 1,000,000 jobs in the queue.

Its own Redis on a Unix socket, without persistence, so that the figures are the script's and not the disk's. The ratio
to the empty queue is the result.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bananas.embedded import EmbeddedRedis
from bananas.errors import BananasError
from bananas.job import Attempt, Claim, Decision, NewJob, Outcome, Settlement
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.settings import LIMITS
from bananas.spec import PRIORITIES, Bundles, Deployment, FunctionSpec
from tests.bench.bench import Bench
from tests.bench.table import Row

SIZES = (0, 10_000, 1_000_000)
CLAIMS = 2000
LEASE_MS = 600_000
_BATCH = 1000


def claim_cost(bench: Bench) -> list[Row]:
    """one claim with 0, 10,000 and 1,000,000 jobs queued; needs about 1.2 GB of memory and two minutes"""
    with tempfile.TemporaryDirectory(prefix="bn-") as folder:
        redis = EmbeddedRedis(Path(folder) / "redis", unix_socket=Path(folder) / "r")
        redis.start()
        connections = Connections(redis.url)
        try:
            connections.commands.config_set("appendonly", "no")
            found = measure(connections, (0, 1000) if bench.options.quick else SIZES, bench.options.n(CLAIMS, 100))
        finally:
            connections.close()
            redis.stop()
    return [
        Row(
            *("claim-cost", f"one claim with {row['queued']:,.0f} jobs queued"),
            p50_ms=row["p50_ms"],
            p99_ms=row["p99_ms"],
            ratio=row["ratio_p50"],
            reference="the empty queue",
            ratio_of="p50_ms",
        )
        for row in found
    ]


def measure(connections: Connections, sizes: Sequence[int], claims: int = CLAIMS) -> list[dict[str, float]]:
    """One row per size: queued, p50_ms and p99_ms of one claim of one job, and their ratios to the first row."""
    deploy_noop(connections)
    queue = Queue(connections)
    rows: list[dict[str, float]] = []
    for size in sizes:
        fill(queue, size)
        took = sorted(claim_ms(queue, at) for at in range(claims))
        p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
        first = rows[0] if rows else {"p50_ms": p50, "p99_ms": p99}
        ratios = {"ratio_p50": p50 / first["p50_ms"], "ratio_p99": p99 / first["p99_ms"]}
        rows.append({"queued": size, "p50_ms": p50, "p99_ms": p99, **ratios})
    return rows


def deploy_noop(connections: Connections) -> None:
    """A function ``noop``, without a gateway."""
    code = b"code"
    sha = hashlib.sha256(code).hexdigest()
    registry = Registry(connections)
    registry.put_bundle(sha, code)
    registry.deploy("noop", Deployment(spec=FunctionSpec(), bundles=Bundles(code=sha), abi="x"))


def fill(queue: Queue, size: int) -> None:
    """Until that many jobs wait, a third in each lane; one place is left for the job of the next claim."""
    size = min(size, LIMITS.queued_jobs - 1)
    queued = sum(lane.queued for lane in queue.depths(["default"]))
    while queued < size:
        n = min(_BATCH, size - queued)
        jobs = [NewJob("noop", b"1", priority=PRIORITIES[at % 3]) for at in range(n)]
        refused = [answer for answer in queue.enqueue_many(jobs) if isinstance(answer, BananasError)]
        if refused:
            raise refused[0]
        queued += n


def claim_ms(queue: Queue, at: int) -> float:
    """How long one claim takes; a job is put in before it and settled after it, so the size stays."""
    queue.enqueue(NewJob("noop", b"1", priority=PRIORITIES[at % 3]))
    began = time.perf_counter()
    step = queue.step("bench", LEASE_MS, [], [("default", 1)])
    took = (time.perf_counter() - began) * 1000
    [claim] = step.claims
    queue.step("bench", LEASE_MS, [_ok(claim)], [])
    return took


def _ok(claim: Claim) -> Settlement:
    return Settlement(claim, Attempt(claim.token, Outcome.OK, "bench", 0), Decision("complete"), b"1")
