"""What a handler tells of its progress, seen by whoever asks for the job's record; and what it costs nobody."""

from __future__ import annotations

import time

import pytest

from tests.platform import Platform, until

pytestmark = pytest.mark.docker

HANDLERS = {
    "steps": (
        "import time\nfrom bananas_sdk import progress\n"
        "def handle(event, context):\n"
        "    for done in range(1, event['of'] + 1):\n"
        "        progress({'done': done, 'of': event['of']})\n"
        "        time.sleep(event['step_s'])\n"
        "    return 'all done'\n"
    ),
    "fails": (
        "from bananas_sdk import progress\n"
        "def handle(event, context):\n    progress(context.attempt)\n    raise ValueError(context.attempt)\n"
    ),
    "hangs": (
        "import time\nfrom bananas_sdk import progress\n"
        "def handle(event, context):\n    progress('begun')\n    progress('half')\n    time.sleep(60)\n"
    ),
    "babbles": (
        "from bananas_sdk import progress\n"
        "def handle(event, context):\n    for n in range(10**6):\n        progress(n)\n    return 'quiet now'\n"
    ),
    # Past the SDK: frames of its own, written to the connection with the runner for ever.
    "forges": (
        "import os, struct\n"
        "def handle(event, context):\n"
        "    frame = struct.pack('>IBQI', 16, 8, event, 2) + b'{}1'\n"
        "    for fd in range(3, 1024):\n"
        "        try:\n"
        "            if os.readlink(f'/proc/self/fd/{fd}').startswith('socket:'):\n"
        "                while True:\n"
        "                    os.write(fd, frame * 500)\n"
        "        except OSError:\n"
        "            continue\n"
    ),
}


@pytest.fixture(scope="module")
def app(platform: Platform) -> Platform:
    platform.deploy(HANDLERS, "    timeout: 10s\n    retries: {max: 1, base: 100ms}")
    platform.deploy({"neighbour": "def handle(event, context):\n    return event\n"})
    return platform


def test_the_record_shows_the_steps_while_they_are_made(app):
    """Nothing before the first, each soon after it was told, the last one for good."""
    job = app.client.submit("steps", {"of": 4, "step_s": 0.7})["id"]
    seen = []
    while (record := app.client.job(job))["status"] not in ("completed", "failed"):
        if record["progress"] not in seen:
            seen.append(record["progress"])
        time.sleep(0.02)
    assert record["result"] == "all done"
    assert record["progress"] == {"done": 4, "of": 4}
    assert seen[-4:] == [{"done": n, "of": 4} for n in (1, 2, 3, 4)]


def test_the_last_step_of_a_short_call_is_there_when_it_is_over(app):
    """However fast it was: whoever sees the job completed sees its last word."""
    for of in range(1, 30):
        record = app.finished(app.client.submit("steps", {"of": of, "step_s": 0})["id"])
        assert record["progress"] == {"done": of, "of": of}


def test_progress_is_of_the_latest_attempt(app):
    """Kept while it waits for its retry, and replaced by what the next one tells."""
    job = app.client.submit("fails")["id"]
    record = app.finished(job)
    assert [attempt["outcome"] for attempt in record["history"]] == ["error", "error"]
    assert record["progress"] == 2


def test_how_far_a_call_was_is_known_after_its_timeout(app):
    """That is when one wants to know."""
    record = app.finished(app.client.submit("hangs", None, timeout="1s", retries=0)["id"])
    assert (record["status"], record["error"]["type"], record["progress"]) == ("failed", "Timeout", "half")


def test_a_million_calls_of_progress_harm_nobody(app):
    """It completes, its last value is in the record, and its neighbours' calls take as long as ever."""
    job = app.client.submit("babbles")["id"]
    app.state(job, "processing")
    slowest_s = 0.0
    while app.client.job(job)["status"] == "processing":
        began_s = time.monotonic()
        assert app.client.invoke("neighbour", 1) == b"1"
        slowest_s = max(slowest_s, time.monotonic() - began_s)
    record = app.finished(job)
    assert (record["status"], record["result"], record["progress"]) == ("completed", "quiet now", 999_999)
    assert slowest_s < 10  # they would have to wait for the end of a million


def test_forged_progress_ends_its_sandbox_and_holds_nobody_up(app):
    """More than the shim would ever send is a violation; calls of others are answered meanwhile."""
    job = app.client.submit("forges", 1, retries=0)["id"]
    for n in range(20):
        assert app.client.invoke("neighbour", n) == str(n).encode()
    attempt = app.finished(job)["history"][-1]
    assert (attempt["outcome"], attempt["error"]["type"]) == ("crashed", "ProtocolViolation"), attempt


def test_a_stalled_redis_loses_no_progress_and_delays_no_result(app):
    """While Redis takes nothing the handler goes on; afterwards the record has the last value."""
    job = app.client.submit("steps", {"of": 20, "step_s": 0.1})["id"]
    until(lambda: app.client.job(job)["progress"], 10, "the first step")
    app.connections.commands.execute_command("CLIENT", "PAUSE", 1500, "WRITE")
    record = app.finished(job)
    assert (record["status"], record["progress"]) == ("completed", {"done": 20, "of": 20})
    assert record["history"][-1]["timings"]["run_ms"] < 6000
