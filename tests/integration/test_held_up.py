"""What the gateway says of runners that take no jobs for now: their engine is away, or others have the GPUs."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bananas.redis_client import Connections
from bananas.registry import RunnerInfo
from tests.integration.conftest import Cli
from tests.integration.gateway_player import Player, call
from tests.integration.jobs import let_expire
from tests.platform import Platform, until


def announce(player: Player, name: str, **held_up: str) -> None:
    now_ms = player.registry.now_ms()
    info = RunnerInfo(id=name, host="h", pid=1, started_at_ms=now_ms, seen_at_ms=now_ms, held_up=held_up)
    player.registry.announce(info)


def submit(client: Any, name: str) -> str:
    job: str = client.post("/jobs", json={"name": name}).get_json()["id"]
    return job


def checks(client: Any) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in client.get("/readyz").get_json()["checks"]}


def test_a_job_says_what_holds_up_every_runner_of_its_pool(client: Any, player: Player) -> None:
    """In its record, in /readyz, at the runner and in metrics; not while one of them takes jobs."""
    player.deploy("hello")
    announce(player, "r1", default="engine", gpu="engine")
    job = submit(client, "hello")
    record = client.get(f"/jobs/{job}").get_json()
    assert (record["status"], record["waiting_for"]) == ("pending", "engine")
    assert record["waiting_detail"].startswith("the Docker Engine of the runners of pool 'default' does not answer")
    assert checks(client)["engine"] == "the Docker Engine of r1 does not answer; no job begins there until it does"
    assert "runners" not in checks(client)
    [runner] = client.get("/runners").get_json()["runners"]
    assert runner["held_up"] == {"default": "engine", "gpu": "engine"}
    metrics = client.get("/metrics").get_data(as_text=True)
    assert re.search(r'bananas_runner_held_up\{.*"default".*"engine".*\} 1', metrics)

    announce(player, "r2", gpu="gpus")
    announce(player, "r1", default="gpus")
    assert "engine" not in checks(client)
    # The gateway's list of runners may be a second old.
    until(lambda: client.get(f"/jobs/{job}").get_json()["waiting_for"] is None, 20, "r2 to be enough")


def test_a_job_whose_gpus_are_taken_says_so(client: Any, player: Player) -> None:
    """It waits for them like for its turn."""
    player.deploy("hello")
    announce(player, "r1", default="gpus")
    record = client.get(f"/jobs/{submit(client, 'hello')}").get_json()
    assert record["waiting_for"] == "gpus"
    assert (
        record["waiting_detail"]
        == "other sandboxes have the GPUs that pool 'default' needs; the job begins when they are done"
    )


@pytest.mark.parametrize(
    ("word", "reason"), [("engine", "the Docker Engine of the runners"), ("gpus", "other sandboxes have the GPUs")]
)
def test_a_call_that_got_no_turn_says_what_held_it_up(
    platform: Platform, outside: Player, connections: Connections, word: str, reason: str
) -> None:
    """Its 504 does not only name its pool, as if that had been busy."""
    announce(outside, "r1", default=word)
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(call, platform.port, "POST", "/functions/hello/invoke", b"{}", 60)
        [job] = until(lambda: [one["id"] for one in platform.client.jobs(function="hello")["jobs"]], 30, "the call")
        # The gateway's list of runners may be a second old, and of a test before.
        until(lambda: platform.client.job(job)["waiting_for"] == word, 30, "the gateway to hear of it")
        let_expire(connections, [job])
        outside.queue.expire()
        answer = calling.result(60)
    assert (answer.status, answer.json["code"], answer.json["outcome"]) == (504, "timeout", "expired")
    assert answer.json["detail"].startswith(f"no sandbox of pool 'default' became free within 30 s; {reason}")


def test_the_list_of_runners_says_which_take_no_jobs(bananas: Cli, outside: Player) -> None:
    """A line for each runner and reason, beside the table; ``-o json`` has it in the record."""
    announce(outside, "r1", default="engine", email="engine", gpu="gpus")
    announce(outside, "r2")
    code, out, err = bananas("runners")
    assert (code, len(out.splitlines())) == (0, 3)
    assert err.splitlines() == [
        "r1 takes no jobs of default, email for now: its Docker Engine does not answer",
        "r1 takes no jobs of gpu for now: other sandboxes have the GPUs",
    ]
