"""Clocks of clients that are an hour wrong, either way: due times, leases, expiry and order are those of Redis."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from bananas.client import Client
from bananas.ports import free_port
from bananas.registry import Registry
from bananas.spec import PoolSpec
from tests.chaos import journal, plan
from tests.chaos.storm import LEASE_S, REAP_S, Storm
from tests.platform import Process, until

pytestmark = pytest.mark.redis

HOUR_S = 3600
#: How late the promoter and a free runner may be, on a busy machine.
LATE_S = 1.0


@pytest.fixture
def storm() -> Iterator[Storm]:
    with Storm(plan.seed()) as storm:
        yield storm


def shifted_runner(storm: Storm, seconds: int) -> Process:
    return storm.runner(module=("tests.chaos.shifted", str(seconds), "tests.chaos.light_runner"))


@pytest.fixture
def clients(storm: Storm) -> Iterator[list[Client]]:
    """Of two gateways, an hour early and an hour late."""
    processes, clients = [], []
    for seconds in (HOUR_S, -HOUR_S):
        port = free_port()
        env = {"BANANAS_REDIS_URL": storm.redis.url, "BANANAS_PORT": str(port), "BANANAS_GATEWAY_WORKERS": "1"}
        args = [sys.executable, "-m", "tests.chaos.shifted", str(seconds), "gateway"]
        processes.append(Process(f"gateway{seconds}", args, env, storm.folder, "gateway listening"))
        clients.append(Client(f"http://127.0.0.1:{port}", patience_s=0))
    yield clients
    for client, process in zip(clients, processes, strict=True):
        client.close()
        process.kill9()


def begins(storm: Storm) -> dict[str, list[float]]:
    """Job → monotonic seconds of each of its executions."""
    found: dict[str, list[float]] = {}
    for execution in journal.read(storm.journal):
        found.setdefault(execution.job_id, []).append(execution.begun_s)
    return found


def test_wrong_clocks_move_no_due_time_no_lease_and_no_expiry(storm, clients):
    """A delay is as long as it says, a lease stands while it is extended, and nothing expires early."""
    runners = [shifted_runner(storm, seconds) for seconds in (HOUR_S, -HOUR_S)]
    due_s: dict[str, float] = {}
    for client in clients:
        now_s = time.monotonic()
        due_s[client.submit("work", {"run_ms": 0}, delay="1.2s")["id"]] = now_s + 1.2
        at = (datetime.now(UTC) + timedelta(seconds=1.2)).isoformat()
        due_s[client.submit("work", {"run_ms": 0}, run_at=at)["id"]] = now_s + 1.2
    # Two per place of each runner, so that both have some, and all outlive a lease.
    long = [client.submit("work", {"run_ms": 2500}, expires_after="30s")["id"] for client in clients for _ in range(6)]
    storm.settle_down(30)
    ran = begins(storm)
    for job_id, at_s in due_s.items():
        [begun_s] = ran[job_id]
        assert at_s - 0.05 <= begun_s <= at_s + LATE_S, f"{begun_s - at_s:.2f} s late"
    assert {len(ran[job_id]) for job_id in long} == {1}
    records = [client.job(job_id) for client in clients for job_id in (*due_s, *long)]
    assert {record["status"] for record in records} == {"completed"}
    age_s = (datetime.now(UTC) - datetime.fromisoformat(records[0]["created_at"])).total_seconds()
    assert 0 <= age_s < 60
    assert len(clients[0].runners()) == len(runners)
    reports = [json.loads(line) for job_id in long for line in storm.queue.show(job_id).history]
    off_s = {round(report["started_at_ms"] / 1000 - time.time(), -2) for report in reports}
    assert off_s == {HOUR_S, -HOUR_S}, "both runners had some, by their own wrong clocks"


def test_wrong_clocks_do_not_change_the_order_of_a_lane(storm, clients):
    """Jobs that come by two gateways two hours apart run in the order in which Redis took them."""
    Registry(storm.connections).put_pool("gpu", PoolSpec(concurrency=1))
    ids = [clients[i % 2].submit("work", {"run_ms": 0}, pool="gpu")["id"] for i in range(30)]
    shifted_runner(storm, -HOUR_S)
    storm.settle_down(20)
    assert list(begins(storm)) == ids


def test_jobs_of_a_dead_runner_come_back_in_time_whatever_the_clocks_say(storm, clients):
    """The lease of a runner whose clock is an hour early ends a lease after its last extension."""
    early = shifted_runner(storm, HOUR_S)
    job_id = clients[1].submit("work", {"run_ms": 20_000}, timeout="25s")["id"]
    until(lambda: job_id in begins(storm), 10, "the job to run")
    shifted_runner(storm, -HOUR_S)
    killed_s = time.monotonic()
    storm.kill9(early)
    until(lambda: len(begins(storm)[job_id]) == 2, 10, "the second attempt")
    assert begins(storm)[job_id][1] - killed_s <= LEASE_S + REAP_S + LATE_S
    clients[0].cancel(job_id)
    record = clients[0].job(job_id)
    assert (record["status"], record["attempts"]) == ("cancelled", 2)
