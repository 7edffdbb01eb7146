"""Redis that goes away and comes back: nothing is lost, nothing needs a restart."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import keys
from bananas.embedded import EmbeddedRedis
from bananas.errors import ApiError
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

#: Longer than a lease and a fence; the acceptance value is 40 s with the default lease (``make chaos``).
OUTAGE_S = float(os.environ.get("BANANAS_CHAOS_OUTAGE_S", "4"))
LEASE_S = os.environ.get("BANANAS_CHAOS_LEASE_S", "2")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "redis", port=free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def platform(server: EmbeddedRedis, base_image: RuntimeInfo) -> Iterator[Platform]:
    with Platform(server.url, BANANAS_LEASE_S=LEASE_S, BANANAS_PYTHON_IMAGE=base_image.image) as platform:
        platform.gateway()
        platform.runner()
        platform.deploy(
            {
                "echo": "def handle(event, context):\n    return event\n",
                "slow": "import time\ndef handle(event, context):\n    time.sleep(event)\n    return 'slept'\n",
            }
        )
        yield platform


def outage(server: EmbeddedRedis) -> None:
    server.stop()
    threading.Event().wait(OUTAGE_S)
    server.start()


def test_idle_platform_survives_an_outage(platform: Platform, server: EmbeddedRedis):
    """During it calls fail at once with 503; after it everything works again within seconds, without a restart."""
    assert platform.client.invoke("echo", 1) == b"1"
    server.stop()
    with pytest.raises(ApiError) as caught:
        platform.client.invoke("echo", 2)
    assert (caught.value.status, caught.value.problem["code"]) == (503, "redis-unavailable")
    threading.Event().wait(OUTAGE_S)
    server.start()
    until(lambda: works(platform), 15, "a call to work again")
    assert all(process.popen.poll() is None for process in platform.processes)


def works(platform: Platform) -> bool:
    try:
        return platform.client.invoke("echo", 3) == b"3"
    except ApiError:
        return False


def test_busy_platform_loses_nothing_in_an_outage(platform: Platform, server: EmbeddedRedis):
    """Jobs queued, running and finishing while Redis is away all complete, without a retry used."""
    short = [platform.client.submit("slow", 0.3)["id"] for _ in range(20)]
    spanning = platform.client.submit("slow", OUTAGE_S / 2)["id"]
    platform.state(spanning, "processing", 30)
    outage(server)
    records = [platform.finished(job, 90) for job in (*short, spanning)]
    assert {record["status"] for record in records} == {"completed"}
    assert max(platform.queue.show(job).failures for job in (*short, spanning)) == 0
    assert all(process.popen.poll() is None for process in platform.processes)


def test_a_request_that_waits_gets_its_answer_across_a_restart(platform: Platform, server: EmbeddedRedis):
    """A long-poll that began before Redis restarted is answered after it."""
    job = platform.client.submit("slow", 3)["id"]
    platform.state(job, "processing")
    answers: list[str] = []
    waiter = threading.Thread(target=lambda: answers.append(platform.client.job(job, wait_s=50)["status"]))
    waiter.start()
    until(lambda: platform.connections.commands.hget(keys.job(job), "waiters"), 10, "the request to wait")
    server.kill()
    server.start()
    waiter.join(60)
    assert answers == ["completed"]


def test_a_killed_redis_keeps_what_was_acknowledged_a_second_ago(platform: Platform, server: EmbeddedRedis):
    """AOF, everysec: kill -9 of the server loses no job that was accepted more than a second before."""
    jobs = [platform.client.submit("echo", n, delay="5s")["id"] for n in range(50)]
    threading.Event().wait(1.5)
    server.kill()
    server.start()
    until(lambda: works(platform), 15, "a call to work again")
    assert [platform.finished(job)["result"] for job in jobs] == list(range(50))
