"""What the gateway says of runners that take no jobs for now: their engine is away, or others have the GPUs."""

from __future__ import annotations

import re
from typing import Any

from bananas.registry import RunnerInfo
from tests.integration.gateway_player import Player
from tests.platform import until


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
