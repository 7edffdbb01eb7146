"""``make bench``: what a call costs, beside references measured in the same run. Ratios are the result.

Starts its own Redis (AOF), gateway and runner with the default settings, deploys one no-op function, measures, stops.
Writes the figures as JSON when given a path. ``python -m tests.bench first-calls`` or ``idle`` measures only that part;
``claim-cost`` measures the queue alone, see
``tests.bench.claims``.
"""

from __future__ import annotations

import json
import os
import platform as machine
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bananas.embedded import EmbeddedRedis
from runner import images
from tests.bench import claims, idle, starts
from tests.bench.load import Sample, http_load, median, timed_ms
from tests.platform import Platform

CALLS = int(os.environ.get("CALLS", "2000"))
NOOP = "def handle(event, context):\n    return event\n"


def main(argv: list[str]) -> int:
    """Measure and print; returns 0 unless a call failed."""
    if argv[:1] == ["claim-cost"]:
        return claims.main(argv[1:])
    parts = [argv.pop(0)] if argv[:1] in (["first-calls"], ["idle"]) else ["first-calls", "calls", "idle"]
    client = images.connect()
    image = images.build_from_host(client)
    load_before = os.getloadavg()[0]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="bn-") as folder:
        redis = EmbeddedRedis(Path(folder) / "redis", unix_socket=Path(folder) / "r")
        redis.start()
        try:
            platform = Platform(redis.url, BANANAS_PYTHON_IMAGE=image.image, BANANAS_GATEWAY_WORKERS="0")
            try:
                platform.gateway()
                platform.runner()
                if "first-calls" in parts:
                    rows += measure_first_calls(platform, image.image)
                if "calls" in parts:
                    rows += measure_calls(platform)
                if "idle" in parts:
                    rows += measure_idle(platform, redis.pid or 0)
            finally:
                platform.close()
        finally:
            redis.stop()
    report(rows, load_before)
    if argv:
        Path(argv[0]).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return 1 if any(row.get("errors") for row in rows) else 0


def measure_first_calls(platform: Platform, image: str) -> list[dict[str, object]]:
    """First calls, with the engine's own times as references."""
    run = [*("docker", "run", "--rm", "--network", "none", image, "python3", "-c", "pass")]
    docker_run = median(timed_ms(lambda: subprocess.run(run, check=True, capture_output=True), 5))
    rows = [row("reference: docker run (python3 -c pass)", docker_run, None, None, None)]

    found = starts.first_calls(platform, NOOP, image)
    rows.append(row("reference: container create + start", found["engine"], None, None, docker_run))
    rows.append(row("first call of a function, by a stem", found["stem"], None, None, found["engine"]))
    rows.append(row("the same in a pool with stems: 0 (cold)", found["cold"], None, None, found["engine"]))
    return rows


def measure_idle(platform: Platform, redis_pid: int) -> list[dict[str, object]]:
    """CPU time while nothing is to do, in ms per second of each part; and what freezing would cost a call."""
    platform.deploy({"idle": NOOP})
    for _ in range(3):
        platform.client.invoke("idle", 1)
    cpu_s = idle.cpu_of_idle_s(platform, redis_pid)
    count = round(cpu_s.pop("sandboxes_count"))
    rows = []
    for part, seconds in {**cpu_s, "all of them": sum(cpu_s.values())}.items():
        name = f"{part} ({count})" if part == "sandboxes" else part
        rows.append(row(f"idle, CPU ms per second: {name}", seconds / idle.IDLE_S * 1000, None, None, None))
    frozen, thawed = idle.freeze_and_thaw_ms(platform)
    rows.append(row("reference: the engine's pause of a sandbox", frozen, None, None, None))
    rows.append(row("reference: its unpause", thawed, None, None, None))
    return rows


def measure_calls(platform: Platform) -> list[dict[str, object]]:
    """Warm calls, submits and a drain, with the gateway's floor as reference."""
    rows: list[dict[str, object]] = []
    platform.deploy({"noop": NOOP})
    invoke = "/functions/noop/invoke"
    http_load(platform.port, "POST", invoke, b"1", 200, 8)
    floor = http_load(platform.port, "GET", "/healthz", b"", CALLS, 1)
    rows.append(sampled("reference: GET /healthz, 1 client", floor, None))
    one = http_load(platform.port, "POST", invoke, b"1", CALLS, 1)
    rows.append(sampled("synchronous call, warm, 1 client", one, floor.percentile(50)))
    gaps = http_load(platform.port, "POST", invoke, b"1", 50, 1, gap_s=0.2)
    rows.append(sampled("the same with 200 ms between calls", gaps, floor.percentile(50)))
    floor8 = http_load(platform.port, "GET", "/healthz", b"", CALLS, 8)
    rows.append(sampled("reference: GET /healthz, 8 clients", floor8, None))
    eight = http_load(platform.port, "POST", invoke, b"1", CALLS, 8)
    rows.append(sampled("synchronous call, warm, 8 clients", eight, floor8.percentile(50)))
    body = json.dumps({"name": "noop", "payload": 1, "delay": "1h"}).encode()
    for clients in (1, 10):
        sample = http_load(platform.port, "POST", "/jobs", body, CALLS, clients)
        rows.append(sampled(f"POST /jobs, {clients} clients", sample, floor.percentile(50)))
    rows.append(drain(platform))
    return rows


def drain(platform: Platform) -> dict[str, object]:
    """Jobs per second from a full queue to an empty one: all become due at the same moment, with warm sandboxes."""
    due = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    body = json.dumps({"name": "noop", "payload": 1, "run_at": due}).encode()
    http_load(platform.port, "POST", "/jobs", body, CALLS, 8)
    done = platform.queue.counts().counters.get("outcome:noop:ok", 0)
    began = None
    deadline = time.monotonic() + 120
    while (n := platform.queue.counts().counters.get("outcome:noop:ok", 0) - done) < CALLS:
        if began is None and n:
            began = time.monotonic()
        if time.monotonic() > deadline:
            raise SystemExit(f"only {n} of {CALLS} jobs were done after 120 s")
        time.sleep(0.005)
    return row("drain of queued jobs", None, None, CALLS / (time.monotonic() - (began or deadline)), None)


def row(
    what: str, p50_ms: float | None, p99_ms: float | None, per_s: float | None, reference_ms: float | None
) -> dict[str, object]:
    """One line of the table; ``ratio`` is p50 over the reference's."""
    ratio = p50_ms / reference_ms if p50_ms and reference_ms else None
    return {"what": what, "p50_ms": p50_ms, "p99_ms": p99_ms, "per_s": per_s, "ratio": ratio}


def sampled(what: str, sample: Sample, reference_ms: float | None) -> dict[str, object]:
    """A row of a load sample."""
    out = row(what, sample.percentile(50), sample.percentile(99), sample.per_s, reference_ms)
    return {**out, "errors": sample.errors}


def report(rows: list[dict[str, object]], load_before: float) -> None:
    """The table, with the machine and its load."""
    print(f"{machine.machine()}, {os.cpu_count()} cores, Python {machine.python_version()}, {machine.system()}")
    print(f"load before {load_before:.2f}, after {os.getloadavg()[0]:.2f}; {CALLS} calls per row, client included\n")
    print(f"{'':44}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}{'ratio':>8}")
    for r in rows:
        cells = "".join(
            f"{r[key]:>{width}.2f}" if isinstance(r[key], float) else " " * width
            for key, width in (("p50_ms", 9), ("p99_ms", 9), ("per_s", 9), ("ratio", 8))
        )
        print(f"{r['what']:44}{cells}" + (f"  {r['errors']} errors" if r.get("errors") else ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
