"""An engine that stops, dies, hangs, fills up or loses its image under a working platform. It is a second one that the
test started (see ``second_engine.py``); afterwards each job's record is asserted, and that no runner was restarted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from bananas.spec import RuntimeInfo
from runner import images
from tests.chaos.second_engine import SecondEngine
from tests.platform import Platform, Process, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

LEASE_S = 4
MAIN_ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
IS_FULL = os.environ.get("BANANAS_CHAOS_SIZE", "small") != "small"
SLOW = """
import time
def handle(event, context):
    time.sleep(event)
    return context.attempt
"""
#: Spares come before the jobs, so that their number says when a pool is full again.
POOLS = "pools: {default: {stems: 2, concurrency: 4}, bare: {stems: 0, concurrency: 2}}"
RETRIES = "    retries: {max: 3, base: 500ms}"


@pytest.fixture(scope="module")
def second() -> Iterator[SecondEngine]:
    """One engine for the module, with the base image; each test leaves it running."""
    with SecondEngine() as second:
        with second.client() as client:
            images.build_from_host(client)
        yield second


@pytest.fixture
def platform(redis_url: str, second: SecondEngine) -> Iterator[Platform]:
    """A gateway and one runner on the second engine."""
    env = {"BANANAS_LEASE_S": str(LEASE_S), "BANANAS_GRACE_S": "1", "DOCKER_HOST": second.url}
    with Platform(redis_url, **env) as platform:
        platform.gateway()
        platform.runner()
        platform.deploy({"slow": SLOW}, RETRIES, POOLS)
        yield platform


def runner_of(platform: Platform) -> Process:
    return platform.processes[1]


def outcomes(record: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in record["history"]]


def sandboxes(client: docker.DockerClient, platform: Platform) -> list[Any]:
    return client.containers.list(all=True, filters={"label": f"bananas.instance={platform.registry.instance()}"})


def stems(platform: Platform) -> int:
    [runner] = platform.client.runners()
    return int(runner["sandboxes"].get("default/stem", 0))


def held_up(platform: Platform) -> dict[str, str]:
    runner = next(runner for runner in platform.client.runners() if runner["pid"] == runner_of(platform).popen.pid)
    return dict(runner["held_up"])


def is_full(platform: Platform) -> None:
    until(lambda: stems(platform) == 2, 20, "the pool to have its stems")


HOW = ["stop", pytest.param("kill9", marks=pytest.mark.skipif(not IS_FULL, reason="make chaos"))]


@pytest.mark.parametrize("how", HOW)
def test_an_engine_that_restarts_while_busy_costs_an_attempt_and_no_job(
    platform: Platform, second: SecondEngine, how: str
) -> None:
    """Jobs that ran are tried again and complete, new ones wait, the pool is refilled; no runner is restarted."""
    is_full(platform)
    running = [platform.client.submit("slow", 3)["id"] for _ in range(3)]
    for job in running:
        platform.state(job, "processing")
    getattr(second, how)()
    waiting = [platform.client.submit("slow", 0)["id"] for _ in range(3)]
    time.sleep(1.5)  # while there is no engine at all
    second.start()
    for job in running + waiting:
        record = platform.finished(job, 60)
        assert record["status"] == "completed", record
        assert outcomes(record)[-1] == "ok"
        # `start` only while it was stopping: it answered then, and refused. `handed_back`: claimed as it went.
        assert set(outcomes(record)[:-1]) <= {"crashed", "start", "held_up", "handed_back"}, record["history"]
    is_full(platform)
    assert platform.client.invoke("slow", 0) == b"1"
    assert runner_of(platform).popen.poll() is None
    assert "died of" not in runner_of(platform).text
    if IS_FULL:
        with second.client() as client:
            until(lambda: all(c.status == "running" for c in sandboxes(client, platform)), 90, "the sweep of dead ones")


def test_jobs_wait_for_an_engine_that_is_away_and_use_nothing_up(
    platform: Platform, second: SecondEngine, base_image: RuntimeInfo
) -> None:
    """However long it takes: its runner takes none and says so, other runners do, and it goes on by itself."""
    is_full(platform)
    second.stop()
    try:
        jobs = [platform.client.submit("slow", 0)["id"] for _ in range(4)]
        away = {"default": "engine", "bare": "engine"}
        until(lambda: held_up(platform) == away, 30, "the runner to say it")
        records = [platform.client.job(job) for job in jobs]
        assert {(r["status"], r["waiting_for"]) for r in records} == {("pending", "engine")}
        assert "the Docker Engine of the runners of pool 'default' does not answer" in records[0]["waiting_detail"]
        seen = [len(r["history"]) for r in records]
        time.sleep(6)  # longer than any pause after which a worker looks by itself
        assert [len(platform.client.job(job)["history"]) for job in jobs] == seen
        other = platform.runner(DOCKER_HOST=MAIN_ENGINE, BANANAS_PYTHON_IMAGE=base_image.image)
        for job in jobs:
            record = platform.finished(job, 60)
            assert (record["status"], record["result"]) == ("completed", 1)
            assert set(outcomes(record)[:-1]) <= {"held_up"}, record["history"]
        other.stop()
    finally:
        second.start()
    record = platform.finished(platform.client.submit("slow", 0)["id"], 60)
    assert record["result"] == 1
    until(lambda: not held_up(platform), 20, "the runner to say that nothing holds it up")
    assert runner_of(platform).text.count("no job is taken until the engine answers again") == 1
    assert runner_of(platform).text.count("the engine answers again, after") == 1


@pytest.mark.skipif(not IS_FULL, reason="make chaos")
def test_an_engine_that_hangs_holds_up_nothing_but_new_sandboxes(platform: Platform, second: SecondEngine) -> None:
    """For longer than a lease: what runs goes on and keeps its lease; what needs a container waits, then runs."""
    is_full(platform)
    long = platform.client.submit("slow", LEASE_S + 2)["id"]
    platform.state(long, "processing")
    second.hold()
    try:
        needs_one = platform.client.submit("slow", 0)["id"]
        time.sleep(LEASE_S + 1)  # a heartbeat that is held up would lose the lease
    finally:
        second.go_on()
    assert outcomes(platform.finished(long, 20)) == ["ok"]
    assert outcomes(platform.finished(needs_one, 40))[-1] == "ok"
    assert "the event loop was held up" not in runner_of(platform).text


@pytest.mark.skipif(not IS_FULL, reason="make chaos")
def test_a_full_disk_is_named_and_over_when_there_is_space_again(platform: Platform, second: SecondEngine) -> None:
    """A job that needs a container says that there is no space; it completes once there is."""
    platform.deploy({"fresh": SLOW}, "    pool: bare", POOLS)
    ballast = second.fill()
    try:
        job = platform.client.submit("fresh", 0)["id"]
        record = until(lambda: (r := platform.client.job(job)) and r["history"] and r, 20, "an attempt")
        assert outcomes(record)[0] == "start"
        assert "no space left" in record["history"][0]["error"]["message"]
        assert "disk" in record["history"][0]["error"]["message"]
    finally:
        ballast.unlink()
    record = platform.finished(job, 40)
    assert (record["status"], outcomes(record)[-1]) == ("completed", "ok")


def test_an_image_that_is_gone_is_named_and_found_again_when_it_is_built(
    platform: Platform, second: SecondEngine
) -> None:
    """The job's error names the image and the command that makes it; after that it completes by itself."""
    platform.deploy({"fresh": SLOW}, "    pool: bare", "pools: {default: {stems: 0}, bare: {stems: 0}}")
    with second.client() as client:
        until(lambda: not sandboxes(client, platform), 20, "no sandbox")
        for container in client.containers.list(all=True):  # of tests before this one
            container.remove(force=True)
        for tag in images.list_images(client)[0].tags:
            client.api.remove_image(tag)
        try:
            job = platform.client.submit("fresh", 0)["id"]
            record = until(lambda: (r := platform.client.job(job)) and r["history"] and r, 20, "an attempt")
            assert outcomes(record)[0] == "start"
            assert "bananas images build" in record["history"][0]["error"]["message"]
        finally:
            images.build_from_host(client)
    record = platform.finished(job, 40)
    assert (record["status"], outcomes(record)[-1]) == ("completed", "ok")


def test_a_pool_has_its_sandboxes_run_by_the_runtime_it_names(platform: Platform, second: SecondEngine) -> None:
    """``runtime: runsc`` reaches the engine for each sandbox of that pool, and of no other."""
    platform.deploy({"guarded": SLOW}, "    pool: guarded", "pools: {guarded: {stems: 0, runtime: runsc}}")
    assert platform.client.invoke("guarded", 0) == b"1"
    assert platform.client.invoke("slow", 0) == b"1"
    with second.client() as client:
        found = {c.labels["bananas.pool"]: c.attrs["HostConfig"]["Runtime"] for c in sandboxes(client, platform)}
    assert found == {"guarded": "runsc", "default": "runc"}
