"""Every row of the table in docs/states.md, on a real platform: what an attempt's end makes of its job and its record.

What each kind of misbehaviour says in its message, and that it harms nobody else, is in ``test_hostile.py``; the races
around dead and stalled runners are in ``tests/chaos``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from bananas import keys
from bananas.spec import RuntimeInfo
from tests.integration.jobs import make_past
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

#: Of a time by Redis: what claiming and promoting may take on a busy machine.
TOLERANCE_MS = 500

#: One retry each, soon.
HANDLERS = {
    name: f"{head}\ndef handle(event, context):\n    {body}\n"
    for name, (head, body) in {
        "ok": ("", "return {'got': event}"),
        "second": ("", "if context.attempt < 2: raise OSError('busy')\n    return 'done'"),
        "error": ("", "raise ValueError(f'attempt {context.attempt}')"),
        "unloadable": ("import no_such_module", "pass"),
        "timeout": ("import time", "print('slow')\n    time.sleep(60)"),
        "oom": ("", "held = []\n    while True: held.append(bytearray(2**23))"),
        "crashed": ("import os", "os._exit(3)"),
        "permanent": ("from bananas_sdk import Permanent", "raise Permanent('no such user')"),
        "marked": ("class NoSuchUser(LookupError): permanent = True", "raise NoSuchUser('no such user')"),
    }.items()
}
SETTINGS = "    timeout: {}\n    retries: {{max: 1, base: 100ms}}"

#: Function → state, reason, outcome of each attempt, type of the last error, a line of its traceback.
ROWS: dict[str, tuple[str, str | None, list[str], str | None, str | None]] = {
    "ok": ("completed", None, ["ok"], None, None),
    "second": ("completed", None, ["error", "ok"], None, None),
    "error": ("failed", "retries_exhausted", ["error"] * 2, "ValueError", 'handler.py", line 3, in handle'),
    "unloadable": ("failed", "retries_exhausted", ["error"] * 2, "ModuleNotFoundError", "line 1, in <module>"),
    "timeout": ("failed", "retries_exhausted", ["timeout"] * 2, "Timeout", None),
    "oom": ("failed", "retries_exhausted", ["oom"] * 2, "OutOfMemory", None),
    "crashed": ("failed", "retries_exhausted", ["crashed"] * 2, "Crashed", None),
    "permanent": ("failed", "permanent", ["permanent"], "Permanent", "line 3, in handle"),
    "marked": ("failed", "permanent", ["permanent"], "NoSuchUser", "line 3, in handle"),
}


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A platform with short leases and next to no grace; a test that ends its runner starts the next one."""
    env = {"BANANAS_LEASE_S": "2", "BANANAS_GRACE_S": "0.3", "BANANAS_PYTHON_IMAGE": base_image.image}
    with Platform(empty_redis, **env) as platform:
        platform.gateway()
        platform.runner(BANANAS_POOLS="default")
        # Only one of them is to run into its timeout, however slow the machine is.
        platform.deploy({"timeout": HANDLERS["timeout"]}, SETTINGS.format("1s"))
        platform.deploy({name: HANDLERS[name] for name in HANDLERS if name != "timeout"}, SETTINGS.format("20s"))
        yield platform


def outcomes(record: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in record["history"]]


def began(app: Platform, name: str, source: str, settings: str = "") -> str:
    """Deploy a function, submit one job of it and wait until its code runs, which it shows by its progress."""
    app.deploy({name: source}, settings)
    job: str = app.client.submit(name)["id"]
    until(lambda: app.client.job(job)["progress"] is not None, 15, f"{name} to begin")
    return job


@pytest.mark.parametrize("name", ROWS)
def test_what_a_runner_reports(app: Platform, name: str) -> None:
    """State, reason, attempts, error and traceback are those of the table, in the record and in each attempt."""
    state, reason, attempts, kind, line = ROWS[name]
    record = app.finished(app.client.submit(name, {"n": 1})["id"])
    assert (record["status"], record["reason"], outcomes(record)) == (state, reason, attempts)
    assert (record["attempts"], record["max_retries"]) == (len(attempts), 1)
    assert [attempt["attempt"] for attempt in record["history"]] == list(range(1, len(attempts) + 1))
    assert record["finished_at"] >= record["started_at"] >= record["created_at"]
    if state == "completed":
        assert (record["error"], record["history"][-1]["error"]) == (None, None)
        assert record["result"] == ({"got": {"n": 1}} if name == "ok" else "done")
        return
    assert record["result"] is None
    assert record["error"] == record["history"][-1]["error"]
    for attempt in record["history"]:
        assert attempt["error"]["type"] == kind
        assert (line or "") in attempt["error"].get("traceback", "")
        assert ("traceback" in attempt["error"]) is (line is not None)
    if name == "timeout":
        assert [attempt["logs"] for attempt in record["history"]] == ["slow\n"] * 2


@pytest.mark.parametrize(
    ("wish", "settings"),
    [
        # Without the wish the wait would be a minute.
        ("Retry(after_s=0.3)", "    retries: {max: 2, base: 1m}"),
        # With it, but for the cap, an hour.
        ("Retry(3600, 'later')", "    retries: {max: 2, base: 300ms, cap: 300ms}"),
        # With it, but for the cap, for ever.
        ("Retry(1e12)", "    retries: {max: 2, base: 100ms, factor: 1, cap: 300ms}"),
    ],
    ids=["chosen", "capped", "for ever"],
)
def test_a_handler_chooses_the_delay_of_its_retry(app: Platform, wish: str, settings: str) -> None:
    """Retry(after_s) is an error that uses one retry, after that many seconds or the policy's cap."""
    source = f"from bananas_sdk import Retry\ndef handle(event, context):\n    raise {wish}\n"
    app.deploy({"waits": source}, settings)
    record = app.finished(app.client.submit("waits")["id"])
    assert (record["status"], record["reason"], outcomes(record)) == ("failed", "retries_exhausted", ["error"] * 3)
    assert record["error"]["type"] == "Retry"
    assert record["error"]["retry_after_s"] in (0.3, 3600, 1e9)
    took_s = seconds(record["finished_at"]) - seconds(record["created_at"])
    assert 0.6 <= took_s < 20


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_the_default_retries_wait_exactly_2_4_and_8_seconds(app: Platform) -> None:
    """By Redis' clock: each is due at the end of the attempt before plus its delay, and begins when it is due."""
    app.deploy({"defaults": HANDLERS["error"]})
    job = app.client.submit("defaults")["id"]
    due_ms = None
    for attempt, delay_ms in enumerate((2000, 4000, 8000), 1):
        shown = until(
            lambda n=attempt: (r := app.queue.show(job)) and len(r.history) == n and r, 20, f"end of attempt {attempt}"
        )
        assert shown.started_at_ms is not None
        assert shown.due_at_ms is not None
        if due_ms is not None:
            assert 0 <= shown.started_at_ms - due_ms < TOLERANCE_MS, f"attempt {attempt} after it was due"
        ran_ms = app.client.job(job)["history"][-1]["timings"]["total_ms"]
        assert 0 <= shown.due_at_ms - shown.started_at_ms - delay_ms < ran_ms + TOLERANCE_MS
        due_ms = shown.due_at_ms
    record = app.finished(job)
    assert (record["reason"], outcomes(record), record["max_retries"]) == ("retries_exhausted", ["error"] * 4, 3)
    last = app.queue.show(job)
    assert last.started_at_ms is not None
    assert 0 <= last.started_at_ms - due_ms < TOLERANCE_MS
    assert [a["error"]["message"] for a in record["history"]] == [f"attempt {n}" for n in (1, 2, 3, 4)]


def without_code(app: Platform, name: str) -> tuple[str, bytes]:
    """Deploy a function and take its archive out of Redis before a runner has fetched it; digest and archive."""
    app.processes[-1].stop()
    app.deploy({name: f"NAME = {name!r}\n" + HANDLERS["ok"]}, SETTINGS.format("20s"))
    version = app.registry.current(name)
    assert version is not None
    sha = version.bundles.code
    data = app.connections.commands.get(keys.bundle(sha))
    assert data
    app.connections.commands.delete(keys.bundle(sha))
    app.runner(BANANAS_POOLS="default")
    return sha, data


def make_due(app: Platform, job: str, attempts: int) -> None:
    """Once that many attempts are over, do not wait for the next one's time."""
    until(lambda: len((r := app.queue.show(job)).history) == attempts and r.state == "scheduled", 15, "the backoff")
    make_past(app.connections, keys.SCHEDULE, [job])
    app.queue.promote()


def test_what_keeps_an_attempt_from_its_start_uses_no_retry(app: Platform) -> None:
    """No code: again with backoff and nothing used up; it runs when the code is there."""
    sha, data = without_code(app, "startless")
    job = app.client.submit("startless", 1)["id"]
    until(lambda: app.queue.show(job).history, 15, "the first attempt")
    app.registry.put_bundle(sha, data)
    make_due(app, job, 1)
    record = app.finished(job)
    assert (record["status"], outcomes(record), record["attempts"]) == ("completed", ["start", "ok"], 2)
    assert "deploy the function again" in record["history"][0]["error"]["message"]
    assert (app.queue.show(job).failures, record["history"][0]["start"]) == (0, "cold")


def test_a_job_that_never_starts_fails_with_the_reason(app: Platform) -> None:
    """After five more tries it is a dead letter that says what was missing."""
    without_code(app, "unstartable")
    job = app.client.submit("unstartable")["id"]
    for attempts in range(1, 6):
        make_due(app, job, attempts)
    record = app.finished(job)
    assert (record["status"], record["reason"], outcomes(record)) == ("failed", "start_failed", ["start"] * 6)
    assert record["error"]["type"] == "UnknownBundle"
    assert app.queue.show(job).failures == 0


ENDLESS = "import time\nfrom bananas_sdk import progress\ndef handle(event, context):\n    progress(context.attempt)\n"
ENDLESS += "    time.sleep(60)\n"


def test_a_lost_attempt_uses_no_retry(app: Platform) -> None:
    """Its runner is killed: the next one runs the job at once, though no retries are left."""
    job = began(app, "lost", ENDLESS, "    retries: 0")
    app.processes[-1].kill9()
    app.runner(BANANAS_POOLS="default")
    record = until(lambda: (r := app.client.job(job)) and len(r["history"]) == 1 and r, 15, "the loss to be seen")
    assert outcomes(record) == ["lost"]
    until(lambda: app.queue.show(job).token == 2, 15, "the next attempt")
    shown = app.queue.show(job)
    assert (shown.failures, shown.losses, shown.state) == (0, 1, "processing")
    app.client.cancel(job)


def test_a_job_handed_back_by_a_runner_that_stops_has_used_nothing(app: Platform) -> None:
    """SIGTERM in the middle of a job: another runner runs it, and no retry, loss or error is counted."""
    job = began(app, "handed_back", ENDLESS, "    retries: 0")
    assert app.processes[-1].stop() == 0
    record = app.client.job(job)
    assert (record["status"], outcomes(record), record["history"][0]["error"]) == ("pending", ["handed_back"], None)
    app.runner(BANANAS_POOLS="default")
    until(lambda: app.queue.show(job).token == 2, 15, "the next attempt")
    shown = app.queue.show(job)
    assert (shown.failures, shown.losses, shown.reason) == (0, 0, None)
    app.client.cancel(job)


def test_a_cancelled_job_is_never_tried_again(app: Platform) -> None:
    """While it runs, and while it waits: state, no reason, and the attempt that was cut off is in the history."""
    job = began(app, "endless", ENDLESS)
    assert app.client.cancel(job)["status"] == "cancelled"
    record = app.client.job(job)
    assert (record["status"], record["reason"], record["result"]) == ("cancelled", None, None)
    assert outcomes(record) == ["cancelled"]
    assert record["progress"] == 1
    waiting = app.client.submit("ok", None, delay=60)["id"]
    app.client.cancel(waiting)
    record = app.client.job(waiting)
    assert (record["status"], record["history"], record["attempts"]) == ("cancelled", [], 0)
    later = app.client.job(job)
    assert (later["attempts"], outcomes(later)) == (1, ["cancelled"])


def test_a_job_that_waited_too_long_is_never_run(app: Platform) -> None:
    """No runner serves its pool; after expires_after it is a dead letter without an attempt."""
    app.deploy({"expired": HANDLERS["ok"]}, "    pool: nobody", "pools:\n  nobody: {concurrency: 1, memory: 64M}")
    record = app.finished(app.client.submit("expired", None, expires_after=0.3)["id"])
    assert (record["status"], record["reason"]) == ("failed", "expired")
    assert (record["history"], record["attempts"], record["result"]) == ([], 0, None)
