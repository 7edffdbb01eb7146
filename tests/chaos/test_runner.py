"""Runners that die, stop or stall in the middle of jobs; afterwards each job's exact state is asserted."""

from __future__ import annotations

import signal
import time
from typing import Any

import docker
import pytest

from bananas import keys
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

SLOW = """
import time
def handle(event, context):
    print("attempt begins")
    time.sleep(event)
    return context.attempt
"""


def sandboxes(engine: docker.DockerClient, platform: Platform) -> list[Any]:
    return engine.containers.list(all=True, filters={"label": f"bananas.instance={platform.registry.instance()}"})


def outcomes(record: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in record["history"]]


def test_kill_9_mid_job_gives_exactly_one_rerun_within_the_lease(platform: Platform, engine):
    """The job runs again on another runner within one lease; the dead one's container ends by itself and is swept."""
    runners = [platform.runner(), platform.runner()]
    platform.deploy({"slow": SLOW})
    job = platform.client.submit("slow", 5)["id"]
    platform.state(job, "processing")
    old = platform.queue.show(job)
    name = platform.connections.commands.hget(keys.job(job), "runner").decode()
    [doomed] = [runner for runner in runners if f"runner {name} ready" in runner.text]
    doomed.kill9()
    killed_at = time.monotonic()
    until(lambda: platform.queue.show(job).token == 2, 30, "the rerun")
    again_s = time.monotonic() - killed_at
    record = platform.finished(job)
    assert record["status"] == "completed"
    assert outcomes(record) == ["lost", "ok"]
    assert (record["attempts"], platform.queue.show(job).failures, platform.queue.show(job).losses) == (2, 0, 1)
    assert platform.queue.extend("nobody", 2000, [(job, old.token)]) == [False]
    assert again_s < 20, f"the lease is 2 s, the rerun began {again_s:.1f} s after the kill"
    platform.runner()  # a start sweeps at once
    label = {"label": f"bananas.runner={name.rpartition('-')[2]}"}
    until(lambda: not engine.containers.list(all=True, filters=label), 40, "the sweep of the dead runner's sandboxes")


def test_dead_runner_leaves_no_code_running(platform: Platform, engine):
    """The sandbox of a killed runner ends at once, even when its code holds the interpreter."""
    doomed = platform.runner()
    platform.deploy({"holds": "import re\ndef handle(event, context):\n    re.match(r'(a+)+$', 'a' * 40 + 'b')\n"})
    job = platform.client.submit("holds", None)["id"]
    platform.state(job, "processing")
    until(lambda: any(c.status == "running" for c in sandboxes(engine, platform)), 30, "a sandbox")
    time.sleep(0.3)  # let the regular expression take hold of the interpreter
    doomed.kill9()
    until(
        lambda: all(c.status in ("created", "exited") for c in sandboxes(engine, platform)),
        20,
        "the sandboxes to end by themselves",
    )
    platform.client.cancel(job)


def test_sigterm_finishes_what_fits_in_the_grace_and_hands_the_rest_back(platform: Platform, engine):
    """A quick job completes, a long one goes back untouched to the head of its lane, no container is left, exit 0."""
    runner = platform.runner(BANANAS_GRACE_S="4")
    platform.deploy({"slow": SLOW})
    long = platform.client.submit("slow", 30)["id"]
    platform.state(long, "processing")
    platform.client.invoke("slow", 0)  # now there is a warm sandbox for the quick one
    quick = platform.client.submit("slow", 1)["id"]
    platform.state(quick, "processing")
    assert runner.stop(timeout_s=60) == 0
    assert platform.client.job(quick)["status"] == "completed"
    record = platform.client.job(long)
    assert (record["status"], outcomes(record)) == ("pending", ["handed_back"])
    shown = platform.queue.show(long)
    assert (shown.failures, shown.losses, shown.token) == (0, 0, 1)
    assert sandboxes(engine, platform) == []
    assert platform.client.runners() == []
    platform.client.cancel(long)


def test_a_stalled_runner_cannot_report_what_another_has_run(platform: Platform):
    """SIGSTOP for longer than the lease, then SIGCONT: the zombie's report is refused and its own attempt ended."""
    zombie = platform.runner()
    platform.deploy({"slow": SLOW})
    job = platform.client.submit("slow", 0.5)["id"]
    platform.state(job, "processing")
    zombie.popen.send_signal(signal.SIGSTOP)
    platform.runner()
    record = platform.finished(job)
    assert (record["status"], outcomes(record)) == ("completed", ["lost", "ok"])
    zombie.popen.send_signal(signal.SIGCONT)
    until(lambda: "refused" in zombie.text or "unreported" in zombie.text, 30, "the zombie to notice")
    assert outcomes(platform.client.job(job)) == ["lost", "ok"]
    assert platform.client.invoke("slow", 0) == b"1"


def test_a_job_that_kills_its_runner_three_times_is_poisoned(platform: Platform):
    """After the third lost runner the job is a dead letter and no runner gets it again."""
    platform.runner()
    platform.deploy({"slow": SLOW})
    job = platform.client.submit("slow", 60)["id"]
    for token in (1, 2, 3):
        until(lambda token=token: platform.queue.show(job).token == token, 40, f"claim {token}")
        platform.processes[-1].kill9()
        platform.runner()
    record = platform.finished(job)
    assert (record["status"], record["reason"], outcomes(record)) == ("failed", "poisoned", ["lost"] * 3)


def test_two_runners_share_an_engine_and_leave_each_other_alone(platform: Platform, engine):
    """A runner that starts or stops never touches a living runner's sandboxes."""
    first = platform.runner()
    platform.deploy({"slow": SLOW})
    job = platform.client.submit("slow", 3)["id"]
    platform.state(job, "processing")
    second = platform.runner()
    assert second.stop() == 0
    assert first.popen.poll() is None
    assert outcomes(platform.finished(job)) == ["ok"]
