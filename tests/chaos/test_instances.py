"""Two installations with three runners each on one engine and in one state directory: none touches what belongs to the
other. And a runtime that the engine does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import docker
import pytest

from bananas.embedded import EmbeddedRedis
from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

RUNNERS = 3
WAITS = """
import time
def handle(event, context):
    time.sleep(event)
    return context.attempt
"""


@pytest.fixture
def two(tmp_path: Path, base_image: RuntimeInfo) -> Iterator[list[Platform]]:
    """Two platforms with a Redis each, at work."""
    with ExitStack() as stack:
        platforms: list[Platform] = []
        for name in "ab":
            redis = stack.enter_context(EmbeddedRedis(tmp_path / name))
            env = {"BANANAS_LEASE_S": "2", "BANANAS_GRACE_S": "1", "BANANAS_PYTHON_IMAGE": base_image.image}
            if platforms:
                env["BANANAS_STATE_DIR"] = platforms[0].env["BANANAS_STATE_DIR"]
            platform = stack.enter_context(Platform(redis.url, **env))
            platforms.append(platform)
            platform.gateway()
            for _ in range(RUNNERS):
                platform.runner()
            platform.deploy({"waits": WAITS}, "", "pools: {default: {stems: 0, concurrency: 1}}")
        yield platforms


def sandboxes(engine: docker.DockerClient, platform: Platform) -> dict[str, str]:
    """Id → runner of every container of the installation."""
    label = f"bananas.instance={platform.registry.instance()}"
    found = engine.api.containers(all=True, filters={"label": label})
    return {c["Id"]: c["Labels"]["bananas.runner"] for c in found}


def test_two_installations_on_one_engine_never_touch_each_others_sandboxes(
    two: list[Platform], engine: docker.DockerClient
) -> None:
    """A runner of one is killed, swept and replaced: the other's jobs, runners and containers do not notice."""
    one, other = two
    jobs = {p.url: [p.client.submit("waits", 8)["id"] for _ in range(RUNNERS)] for p in two}
    for p in two:
        for job in jobs[p.url]:
            p.state(job, "processing", 20)
    # Without stems only the busy sandboxes stay, once those from before the deploy are gone.
    before = until(
        lambda: len(found := sandboxes(engine, other)) == RUNNERS and found, 20, "the spare sandboxes to end"
    )
    names = {str(runner["id"]).rpartition("-")[2] for runner in other.client.runners()}
    assert len(names) == RUNNERS
    assert names >= set(before.values())
    assert before.keys().isdisjoint(sandboxes(engine, one))
    doomed = one.processes[1]
    [dead] = [str(r["id"]).rpartition("-")[2] for r in one.client.runners() if r["pid"] == doomed.popen.pid]
    doomed.kill9()
    one.runner()  # it sweeps when it starts
    until(lambda: dead not in sandboxes(engine, one).values(), 20, "the dead runner's containers to be swept")
    assert before.items() <= sandboxes(engine, other).items()
    for job in jobs[other.url]:
        assert [a["outcome"] for a in other.finished(job)["history"]] == ["ok"]
    ends = sorted([a["outcome"] for a in one.finished(job)["history"]] for job in jobs[one.url])
    assert ends == [["lost", "ok"], ["ok"], ["ok"]]
    assert one.processes[2].stop() == 0
    assert names == {str(runner["id"]).rpartition("-")[2] for runner in other.client.runners()}
    assert all(process.popen.poll() is None for process in other.processes)


def test_a_runtime_that_the_engine_does_not_have_is_refused_with_those_it_has(
    platform: Platform, engine: docker.DockerClient
) -> None:
    """The job does not start, and its error names the pool, the runtime, the engine's own and what to do."""
    if "runsc" in engine.info()["Runtimes"]:
        pytest.skip("this engine has runsc")
    platform.runner()
    platform.deploy({"guarded": WAITS}, "    pool: guarded", "pools: {guarded: {stems: 0, runtime: runsc}}")
    job = platform.client.submit("guarded", 0)["id"]
    record = until(lambda: (r := platform.client.job(job)) and r["history"] and r, 20, "an attempt")
    message = record["history"][0]["error"]["message"]
    assert record["history"][0]["outcome"] == "start"
    assert message.startswith("pool 'guarded' has runtime: runsc, and the engine at ")
    assert " runc;" in message
    assert "daemon.json, or remove runtime from the pool" in message
    platform.client.cancel(job)
