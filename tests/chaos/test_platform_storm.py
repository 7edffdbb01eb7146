"""A storm over gateways, runners, Redis and containers at once: every job that got its 202 ends once and as planned."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from bananas.spec import RuntimeInfo
from tests.chaos import plan, verdict
from tests.chaos.platform_storm import PLANTED, PlatformStorm
from tests.chaos.storm import LEASE_S, REAP_S
from tests.platform import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

QUIET_S = 90.0
#: So that some jobs run whenever something is killed.
MORE_MS = 1000


@pytest.fixture
def storm(base_image: RuntimeInfo, tmp_path: Path) -> Iterator[PlatformStorm]:
    with PlatformStorm(plan.seed(), base_image.image, tmp_path) as storm:
        storm.start(round(plan.number("GATEWAYS")), round(plan.number("PLATFORM_RUNNERS")))
        yield storm


def test_a_platform_in_a_storm_keeps_every_promise(
    storm: PlatformStorm, engine: docker.DockerClient, record_property
) -> None:
    """Runners and gateways killed, stalled and restarted and Redis killed, while clients go on: nothing is lost."""
    jobs = plan.jobs(storm.rng, round(plan.number("PLATFORM_JOBS")), pools=False, more_ms=MORE_MS)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        disturbing = threads.submit(storm.disturb, stop)
        try:
            storm.send(jobs, plan.number("PLATFORM_SPREAD_S"))
        finally:
            stop.set()
        disturbing.result(timeout=120)
    states = storm.await_all(QUIET_S)
    judge = verdict.Judge(
        f"{len(storm.runners)} runners, {len(storm.gateways)} gateways, containers",
        storm.queue,
        storm.sent,
        storm.disruptions,
        LEASE_S + REAP_S + 1.0,
    )
    executions = storm.executions()
    found = judge.judge(executions)
    narrow = {sent.job.id for sent in storm.sent if sent.plan.function == "narrow"}
    found.narrow_peak = verdict.narrow_peak(executions, narrow, storm.disruptions)
    # A job whose 202 was never heard may still be on its way.
    until(lambda: not verdict.leftovers(storm.platform.connections, storm.queue), 60, "the queue to be empty")
    found.check(record_property)
    expected = {"completed": "completed", "cancelled": "cancelled"}
    stored = Counter(expected.get(end, "failed") for end in found.ends.elements())
    assert Counter(states) == stored, "gateways tell what is stored"
    instance = storm.platform.registry.instance()
    for process in storm.runners:
        assert process.stop() == 0
    left = engine.containers.list(filters={"label": f"bananas.instance={instance}", "status": "running"})
    assert left == []
    texts = [process.text for process in storm.platform.processes]
    assert any("attempt.failed" in text for text in texts), "the log tells what the code raised"
    assert not [text for text in texts if PLANTED in text]
