"""A real runner that serves some pools only, and what becomes of jobs of the others; cancelling what it runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

DEADLINE_S = 30.0
ECHO = "def handle(event, context):\n    return event\n"
FOREVER = "import time\n\ndef handle(event, context):\n    print('begun', flush=True)\n    time.sleep(600)\n"
#: The heartbeat of such a lease beats every 20 minutes, so that it can have no part in what is tested.
LONG_LEASE_S = "3600"


@pytest.fixture
def platform(redis_url: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway on an empty Redis; runners are started by the tests."""
    env = {"BANANAS_LEASE_S": LONG_LEASE_S, "BANANAS_GRACE_S": "0", "BANANAS_PYTHON_IMAGE": base_image.image}
    with Platform(redis_url, **env) as platform:
        platform.gateway()
        yield platform


def pool_of(platform: Platform, name: str) -> dict[str, object]:
    return next(pool for pool in platform.client.pools() if pool["name"] == name)


def test_a_runner_serves_the_pools_it_is_told_and_those_made_later(platform: Platform) -> None:
    """Jobs of another pool wait and say so; a pool of its list that is made later is served at once."""
    runner = platform.runner(BANANAS_POOLS="default,gpu,later")
    pools = "pools:\n  mail: {concurrency: 1}\n  gpu: {concurrency: 1}"
    platform.deploy({"render": ECHO}, "    pool: gpu\n    allow_pools: [mail, default]", pools)
    served = platform.client.submit("render", 1)["id"]
    left = platform.client.submit("render", 2, pool="mail")["id"]
    assert platform.finished(served, DEADLINE_S)["result"] == 1
    record = platform.client.job(left)
    assert (record["status"], record["waiting_for"]) == ("pending", "runner")
    assert "no live runner serves pool 'mail'" in record["waiting_detail"]
    assert (pool_of(platform, "mail")["waits_for_runner"], pool_of(platform, "mail")["runners"]) == (True, 0)
    assert (pool_of(platform, "gpu")["waits_for_runner"], pool_of(platform, "gpu")["runners"]) == (False, 1)
    assert "pool 'later' of BANANAS_POOLS does not exist; it is served as soon as it is made" in runner.text

    platform.deploy({"late": ECHO}, "    pool: later", "pools:\n  later: {concurrency: 1}")
    assert platform.finished(platform.client.submit("late", 3)["id"], DEADLINE_S)["result"] == 3

    platform.runner(BANANAS_POOLS="mail")
    assert platform.finished(left, DEADLINE_S)["result"] == 2
    assert not pool_of(platform, "mail")["waits_for_runner"]


def test_a_running_job_is_killed_by_a_message_long_before_a_heartbeat(platform: Platform) -> None:
    """Its place is free for the next job, its report is not taken, and the runner says why it ended it."""
    runner = platform.runner()
    functions = {"forever": FOREVER, "echo": ECHO}
    platform.deploy(functions, "    pool: one\n    timeout: 10m", "pools:\n  one: {concurrency: 1}")
    job = platform.client.submit("forever")["id"]
    platform.state(job, "processing", DEADLINE_S)
    behind = platform.client.submit("echo", "next")["id"]
    assert platform.client.job(behind)["status"] == "pending"
    assert platform.client.cancel(job) == {"id": job, "status": "cancelled"}
    record = platform.finished(behind, DEADLINE_S)
    assert (record["result"], platform.client.job(job)["status"]) == ("next", "cancelled")
    said = f"attempt ended unreported job={job} token=1 reason=cancelled"
    until(lambda: said in runner.text, DEADLINE_S, "the runner to say why")
    assert "lease lost" not in runner.text
