"""A schedule from bananas.yaml to the handler that it calls, with two runners."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bananas import keys
from bananas.schedules import LATE_MS
from tests.platform import ROOT, Platform, until

DEADLINE_S = 60.0
ECHO = "def handle(event, context):\n    return event\n"
SCHEDULE = '    schedule: {cron: "* * * * *", tz: Europe/Berlin, catchup: all, payload: {kind: full}}'


def shown(platform: Platform) -> dict[str, Any]:
    [schedule] = platform.client.schedules()
    return schedule


def test_a_schedule_calls_its_function_once_per_slot(platform: Platform) -> None:
    """Deployed, it is listed; each slot that is due runs once though two runners look; paused, it stands still."""
    platform.runner()
    platform.deploy({"report": ECHO}, SCHEDULE)
    listed = subprocess.run(
        [sys.executable, "-m", "bananas", "--url", platform.url, "schedules", "-o", "json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=True,
    )
    [schedule] = json.loads(listed.stdout)
    assert (schedule["function"], schedule["tz"], len(schedule["next"])) == ("report", "Europe/Berlin", 5)
    # As if nobody had looked for five minutes: what would take as long to wait for.
    due = platform.registry.now_ms() // LATE_MS * LATE_MS
    before = shown(platform)["fired"]
    platform.connections.commands.hset(keys.cron("report"), "last", due - 5 * LATE_MS)
    until(lambda: shown(platform)["fired"] >= before + 5, DEADLINE_S, f"five slots to fire: {shown(platform)}")
    record = platform.finished(shown(platform)["last_job"], DEADLINE_S)
    assert (record["name"], record["status"], record["result"]) == ("report", "completed", {"kind": "full"})
    assert platform.client.pause_schedule("report")["changed"]
    fired = shown(platform)["fired"]
    # One more when a minute began meanwhile.
    assert before + 5 <= fired <= before + 6
    assert shown(platform)["paused"]
    ran = sum(1 for key in platform.connections.commands.scan_iter(keys.job("*")) if is_of(platform, key))
    assert ran == fired


def is_of(platform: Platform, key: bytes) -> bool:
    unique = platform.connections.commands.hget(key, "uniq") or b""
    return bool(unique.startswith(b"cron:report@"))
