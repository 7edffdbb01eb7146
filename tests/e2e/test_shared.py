"""``calls_per_sandbox`` on the whole platform: many calls at once in one container, and how they end together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

DEADLINE_S = 30.0
CALLS = 8
#: Each call waits inside for all the others, so none of them ends unless they run at once.
ASYNC = """
import asyncio

inside, all_in = 0, asyncio.Event()

async def handle(event, context):
    global inside
    inside += 1
    if inside == event["of"]:
        all_in.set()
    await asyncio.wait_for(all_in.wait(), 25)
    print("call", event["n"])
    return event["n"]
"""
THREADS = """
import threading

barriers = {}

def handle(event, context):
    barriers.setdefault(0, threading.Barrier(event["of"])).wait(25)
    print("call", event["n"])
    return event["n"]
"""
#: A call stays in a sandbox that is older than its job; in a newer one it ends at once.
STAY = """
import os, time
from bananas_sdk import progress

LOADED = time.time()

def handle(event, context):
    if event == "exit":
        os._exit(3)
    progress("in")
    while event == "hang" or LOADED < event:
        time.sleep(0.02)
    return "out"
"""


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    with Platform(empty_redis, BANANAS_PYTHON_IMAGE=base_image.image) as platform:
        platform.gateway()
        platform.runner()
        yield platform


@pytest.mark.parametrize(("name", "source"), [("tasks", ASYNC), ("threads", THREADS)])
def test_calls_run_at_once_in_one_sandbox(app: Platform, name: str, source: str) -> None:
    """Eight of them, from the first call on; each with its own result and output, and a place of the pool."""
    app.deploy({name: source}, f"    calls_per_sandbox: {CALLS}\n    retries: 0")
    jobs = [app.client.submit(name, {"n": n, "of": CALLS})["id"] for n in range(CALLS)]
    records = [app.finished(job, DEADLINE_S) for job in jobs]
    assert [record["result"] for record in records] == list(range(CALLS))
    attempts = [record["history"][0] for record in records]
    assert len({attempt["sandbox"] for attempt in attempts}) == 1
    assert sorted(attempt["nth_use"] for attempt in attempts) == list(range(1, CALLS + 1))
    assert [attempt["start_reason"] for attempt in attempts].count("shared") == CALLS - 1
    assert [app.client.logs(job) for job in jobs] == [f"call {n}\n" for n in range(CALLS)]


def stay(app: Platform, name: str, settings: str = "") -> tuple[str, list[str]]:
    """Deploy, and have two calls stay in one sandbox: its id and theirs."""
    app.deploy({name: STAY}, f"    calls_per_sandbox: 3\n{settings}")
    warm = app.finished(app.client.submit(name, 0)["id"], DEADLINE_S)
    jobs = [app.client.submit(name, time.time())["id"] for _ in range(2)]
    for job in jobs:
        until(lambda job=job: app.client.job(job)["progress"] == "in", DEADLINE_S, f"{job} to be in")
    return warm["history"][0]["sandbox"], jobs


def displaced(app: Platform, jobs: list[str], sandbox: str, words: str) -> None:
    """The jobs were sent back and are completed, without a retry: their functions have none."""
    for job in jobs:
        record = app.finished(job, DEADLINE_S)
        assert (record["status"], record["result"]) == ("completed", "out"), record
        first, second = record["history"]
        assert (first["outcome"], second["outcome"]) == ("displaced", "ok")
        assert first["sandbox"] == sandbox != second["sandbox"]
        assert first["error"] == {
            "type": "Displaced",
            "message": f"another call in the same sandbox {words}, which ended every call in it",
        }


def test_a_timeout_costs_the_others_nothing(app: Platform) -> None:
    """They have run into nothing: they go back to the head of the queue, and their records say why."""
    sandbox, jobs = stay(app, "late", "    retries: 0")
    record = app.finished(app.client.submit("late", "hang", timeout=2)["id"], DEADLINE_S)
    assert (record["history"][0]["outcome"], record["history"][0]["sandbox"]) == ("timeout", sandbox)
    displaced(app, jobs, sandbox, "ran into its timeout")


def test_a_cancelled_call_costs_the_others_nothing(app: Platform) -> None:
    """The sandbox is killed for it, at once. Until then the pool tells of three calls, not of one sandbox."""
    sandbox, jobs = stay(app, "stop", "    retries: 0")
    job = app.client.submit("stop", "hang")["id"]
    until(lambda: app.client.job(job)["progress"] == "in", DEADLINE_S, "the third to be in")
    until(lambda: [pool["processing"] for pool in app.client.pools()] == [3], DEADLINE_S, "the pool to tell of three")
    app.client.cancel(job)
    displaced(app, jobs, sandbox, "was ended (cancelled)")


def test_a_crash_is_everyones_and_uses_a_retry(app: Platform) -> None:
    """Nobody knows whose fault it was: each of them is tried again as after a crash of its own."""
    sandbox, jobs = stay(app, "crash", "    retries: {max: 1, base: 100ms}")
    crash = app.finished(app.client.submit("crash", "exit", retries=0)["id"], DEADLINE_S)
    assert crash["history"][0]["outcome"] == "crashed"
    for job in jobs:
        first, second = app.finished(job, DEADLINE_S)["history"]
        assert (first["outcome"], first["sandbox"], second["outcome"]) == ("crashed", sandbox, "ok")
        assert "3 calls ran in the sandbox, and any of them may be the cause" in first["error"]["message"]


def test_min_warm_keeps_one_sandbox_for_many_calls(app: Platform) -> None:
    """It counts sandboxes: a burst finds the one that is loaded, and no second one is made for it."""
    app.deploy({"kept": THREADS}, "    calls_per_sandbox: 4\n    min_warm: 1")

    def starts() -> dict[str, Any]:
        return {
            name.removeprefix("start:default:kept:"): number
            for name, number in app.queue.counts().counters.items()
            if name.startswith("start:default:kept:")
        }

    until(lambda: starts() == {"min_warm:": 1}, DEADLINE_S, "the sandbox to be ready")
    jobs = [app.client.submit("kept", {"n": n, "of": 4})["id"] for n in range(4)]
    attempts = [app.finished(job, DEADLINE_S)["history"][0] for job in jobs]
    assert len({attempt["sandbox"] for attempt in attempts}) == 1
    assert {attempt["start"] for attempt in attempts} == {"warm"}
    until(lambda: starts() == {"min_warm:": 1, "warm:": 1, "warm:shared": 3}, DEADLINE_S, "the starts to be told")
