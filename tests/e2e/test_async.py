"""``async def`` handlers on the whole platform: they await, keep what they opened, and end when their time is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform

pytestmark = pytest.mark.docker

HANDLER = """
import asyncio, os
from bananas_sdk import Permanent, progress

lock = None

async def part(n):
    await asyncio.sleep(0.05)
    progress({"part": n})
    return n * n

async def linger():
    try:
        await asyncio.sleep(600)
    finally:
        print("lingered")

async def handle(event, context):
    global lock
    lock = lock or asyncio.Lock()
    if event == "wait":
        await asyncio.sleep(600)
    if event == "compute":
        while True:
            pass
    if event == "no":
        raise Permanent("not this one")
    if event == "leave":
        asyncio.create_task(linger())
        await asyncio.sleep(0)
        return None
    async with lock:
        parts = await asyncio.gather(*map(part, range(5)))
    return [parts, os.getpid(), id(asyncio.get_running_loop())]
"""


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    with Platform(empty_redis) as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        platform.deploy({"gather": HANDLER}, "    retries: 0\n    timeout: 2s")
        yield platform


def ended(app: Platform, event: object) -> dict[str, Any]:
    """The record of a job with that payload, once it is over."""
    job = app.client.submit("gather", event)["id"]
    app.client.job(job, wait_s=20)
    return app.client.job(job)


def test_calls_share_one_loop_in_one_warm_sandbox(app: Platform) -> None:
    """What the first call made on its loop, such as a lock, works in the next."""
    first, second = (json.loads(app.client.invoke("gather", b"null")) for _ in range(2))
    assert first == second
    assert first[0] == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("event", ["wait", "compute"])
def test_the_timeout_ends_whatever_the_handler_does(app: Platform, event: str) -> None:
    """Awaiting or computing: the sandbox is killed, and the next call has another one."""
    before = json.loads(app.client.invoke("gather", b"null"))
    record = ended(app, event)
    assert (record["status"], record["history"][0]["outcome"]) == ("failed", "timeout")
    history = ended(app, None)["history"]
    assert history[0]["nth_use"] == 1
    assert json.loads(app.client.invoke("gather", b"null"))[0] == before[0]


def test_errors_and_progress_are_those_of_any_handler(app: Platform) -> None:
    """The SDK works the same under await."""
    record = ended(app, "no")
    assert (record["status"], record["error"]["message"]) == ("failed", "not this one")
    assert record["history"][0]["outcome"] == "permanent"
    assert ended(app, None)["progress"] == {"part": 4}


def test_a_task_that_is_left_is_named_in_the_log_and_costs_no_warm_start(app: Platform) -> None:
    """The call is completed, its task cancelled, and the sandbox serves on."""
    record = ended(app, "leave")
    assert record["status"] == "completed"
    text = app.client.logs(record["id"])
    assert "left 1 task running, now cancelled: linger" in text
    assert "lingered" in text
    assert ended(app, None)["history"][0]["start"] == "warm"
