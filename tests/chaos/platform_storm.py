"""A storm over the whole platform: several gateways, several runners, Redis with AOF, and containers.

Jobs come and go by HTTP only. Executions are read from the jobs' records and from what the code printed, as no journal
of the host's reaches into a container.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from bananas import errors
from bananas.client import Client
from bananas.embedded import EmbeddedRedis
from bananas.job import NewJob
from bananas.ports import free_port
from bananas.secrets import ensure_key_file
from tests.chaos import plan
from tests.chaos.journal import Execution
from tests.chaos.plan import Disruption, JobPlan, Sent
from tests.chaos.storm import ACK_S, GRACE_S, LEASE_S
from tests.platform import Platform, Process, until

#: What the functions know and tell whoever listens; no process may have it in its log.
PLANTED = "planted-secret-of-the-storm"
HANDLER = """
import os, time

secret = open("/run/secrets/TOKEN").read()

class Planned(Exception):
    permanent = False

def handle(event, context):
    nonce = os.urandom(8).hex()
    print("nonce", nonce)
    print("secret", secret)
    time.sleep(event["run_ms"] / 1000)
    if event.get("permanent") or context.attempt <= event.get("fail", 0):
        error = Planned(f"attempt {context.attempt} with {secret}")
        error.permanent = bool(event.get("permanent"))
        raise error
    return {"nonce": nonce}
"""
SETTINGS = f"    retries: {{max: {plan.RETRIES}, base: 100ms}}\n    secrets: [TOKEN]"
#: Who asks for the jobs.
CLIENTS = 4


class PlatformStorm:
    """Starts everything, sends the jobs, knows which processes are there."""

    def __init__(self, seed: int, image: str, folder: Path) -> None:
        self.rng = Random(seed)
        self.redis = EmbeddedRedis(folder / "redis", port=free_port())
        # The kernel ends the server with the thread that started it, so that thread must stay.
        self._keeper = ThreadPoolExecutor(1)
        self.start_redis()
        self.platform = Platform(
            self.redis.url, BANANAS_LEASE_S=f"{LEASE_S}", BANANAS_GRACE_S=f"{GRACE_S}", BANANAS_PYTHON_IMAGE=image
        )
        self.platform.env["BANANAS_SECRET_KEY_FILE"] = str(ensure_key_file(self.platform.folder / "secret.key"))
        self.platform.env["BANANAS_LOG_LEVEL"] = "debug"  # what code raises is told there only
        self.queue = self.platform.queue
        self.gateways: dict[int, Process] = {}
        self.runners: list[Process] = []
        self.sent: list[Sent] = []
        self.disruptions: list[Disruption] = []
        #: Calls that got no acknowledgement: their jobs may exist, nobody was promised anything.
        self.unheard = 0
        self._lock = threading.Lock()

    def start_redis(self) -> None:
        """Start Redis on its files; returns when it answers."""
        self._keeper.submit(self.redis.start).result(timeout=60)

    def start(self, gateways: int, runners: int) -> None:
        """Everything, and the functions."""
        for port in [self.platform.port, *(free_port() for _ in range(gateways - 1))]:
            self.gateway(port)
        for _ in range(runners):
            self.runner()
        self.platform.client.put_secret("TOKEN", PLANTED.encode())
        narrow = f"{SETTINGS}\n    max_concurrency: {plan.NARROW}"
        self.platform.deploy({"work": HANDLER}, SETTINGS)
        self.platform.deploy({"narrow": HANDLER}, narrow)

    def gateway(self, port: int) -> None:
        """Start one, or start it again."""
        self.gateways[port] = self.platform.gateway(BANANAS_PORT=str(port))

    def runner(self) -> Process:
        """Start another one; returns when it serves."""
        process = self.platform.runner()
        self.runners.append(process)
        return process

    # -- disruptions ------------------------------------------------------------------------------------------

    def disturb(self, stop: threading.Event) -> None:
        """One thing after the other, at random, each of them sooner or later."""
        deeds = [self._kill_runner, self._kill_gateway, self._stall_runner, self._restart_runner, self._kill_redis]
        left = list[Any]()
        while not stop.wait(self.rng.uniform(*plan.kill_every_s())):
            if not left:
                # Runners die more often than anything else.
                left = [*deeds, self._kill_runner]
                self.rng.shuffle(left)
                left.append(self._kill_runner)
            left.pop()()

    def _disrupt(self, kind: str, *processes: Process) -> Disruption:
        found = Disruption(kind, time.monotonic(), tuple(name_of(p) for p in processes))
        self.disruptions.append(found)
        return found

    def _kill_runner(self) -> None:
        victim = self.runners.pop(self.rng.randrange(len(self.runners)))
        self._disrupt("kill", victim)
        victim.kill9()
        self.runner()

    def _stall_runner(self) -> None:
        victim = self.rng.choice(self.runners)
        found = self._disrupt("stall", victim)
        victim.popen.send_signal(signal.SIGSTOP)
        time.sleep(2 * LEASE_S)  # this is what is done to it
        victim.popen.send_signal(signal.SIGCONT)
        found.until_s = time.monotonic()

    def _restart_runner(self) -> None:
        self.runner()
        victim = self.runners.pop(0)
        self._disrupt("restart")
        assert victim.stop(GRACE_S + 25) == 0, victim.text[-3000:]

    def _kill_gateway(self) -> None:
        port = self.rng.choice(list(self.gateways))
        victim = self.gateways[port]
        found = self._disrupt("gateway")
        workers = Path(f"/proc/{victim.popen.pid}/task/{victim.popen.pid}/children").read_text("ascii").split()
        victim.kill9()
        for pid in workers:  # its host has died, and with it all of them
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.gateway(port)
        found.until_s = time.monotonic()

    def _kill_redis(self) -> None:
        found = self._disrupt("redis")
        self.redis.kill()
        self.start_redis()
        found.until_s = time.monotonic()

    # -- jobs -------------------------------------------------------------------------------------------------

    def send(self, jobs: list[JobPlan], spread_s: float) -> None:
        """Send them by all gateways, evenly over ``spread_s`` seconds; then withdraw those to be cancelled."""
        began_s = time.monotonic()
        numbers = itertools.count()
        with ThreadPoolExecutor(CLIENTS) as threads:
            work = [threads.submit(self._client, jobs, numbers, began_s, spread_s) for _ in range(CLIENTS)]
            for future in work:
                future.result(timeout=spread_s + ACK_S)
        for sent in [s for s in self.sent if s.plan.end == "cancelled"]:
            self._withdraw(sent.job.id)

    def _client(self, jobs: list[JobPlan], numbers: itertools.count[int], began_s: float, spread_s: float) -> None:
        clients = [Client(f"http://127.0.0.1:{port}", patience_s=0) for port in self.gateways]
        try:
            while (number := next(numbers)) < len(jobs):
                time.sleep(max(0.0, began_s + spread_s * number / len(jobs) - time.monotonic()))  # the pace asked for
                self._submit(clients, number, jobs[number])
        finally:
            for client in clients:
                client.close()

    def _submit(self, clients: list[Client], number: int, job: JobPlan) -> None:
        deadline_s = time.monotonic() + ACK_S
        for attempt in itertools.count(number):
            delay = f"{job.delay_ms}ms" if job.delay_ms else None
            try:
                answer = clients[attempt % len(clients)].submit(
                    job.function, job.event, priority=job.priority, delay=delay
                )
            except (errors.GatewayUnreachable, errors.ApiError) as e:
                if time.monotonic() > deadline_s or (isinstance(e, errors.ApiError) and e.status != 503):
                    raise
                with self._lock:
                    self.unheard += 1
                time.sleep(0.1)  # as a client would
                continue
            new = NewJob(job.function, json.dumps(job.event).encode(), id=answer["id"])
            with self._lock:
                self.sent.append(Sent(job, new, time.monotonic()))
            return

    def _withdraw(self, job_id: str) -> None:
        def is_cancelled() -> bool:
            for port in self.gateways:
                with Client(f"http://127.0.0.1:{port}", patience_s=0) as client:
                    try:
                        client.cancel(job_id)
                    except errors.GatewayUnreachable:
                        continue
                    except errors.ApiError as e:
                        if e.status == 503:
                            continue
                        if e.status != 409:  # an earlier try arrived
                            raise
                    return True
            return False

        until(is_cancelled, ACK_S, f"job {job_id} to be cancelled")

    def await_all(self, deadline_s: float) -> list[str]:
        """Wait for the end of each job by all gateways in turn; returns their states there."""
        ends_s = time.monotonic() + deadline_s
        ports = list(self.gateways)
        with ThreadPoolExecutor(CLIENTS) as threads:
            waits = [
                threads.submit(self._await, ports[i % len(ports)], sent, ends_s) for i, sent in enumerate(self.sent)
            ]
            return [wait.result(timeout=deadline_s + 30) for wait in waits]

    def _await(self, port: int, sent: Sent, ends_s: float) -> str:
        with Client(f"http://127.0.0.1:{port}", patience_s=0) as client:
            while True:
                status = str(client.job(sent.job.id, wait_s=10)["status"])
                if status in ("completed", "failed", "cancelled"):
                    return status
                assert time.monotonic() < ends_s, f"job {sent.job.id} ({sent.plan.kind}) is {status}"

    def executions(self) -> list[Execution]:
        """Attempts in the records of the jobs that were sent, by begin. A lost one ends with the lease."""
        off_s = time.time() - time.monotonic()
        found = []
        for sent in self.sent:
            failures = 0
            logs = self.queue.logs(sent.job.id)
            for line in map(json.loads, self.queue.show(sent.job.id).history):
                if line["outcome"] == "start":
                    continue
                text = logs.get(line["token"], b"").decode()
                nonce = m[1] if (m := re.search(r"nonce (\w+)", text)) else ""
                begun_s = line["started_at_ms"] / 1000 - off_s
                timings = line.get("timings", {})
                run_s = (timings.get("total_ms", LEASE_S * 1000) - timings.get("queued_ms", 0)) / 1000
                found.append(
                    Execution(sent.job.id, line["token"], failures + 1, line["runner"], nonce, begun_s, begun_s + run_s)
                )
                failures += line["outcome"] in ("error", "permanent", "timeout", "oom", "crashed")
        return sorted(found, key=lambda e: e.begun_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.runners:
            process.popen.send_signal(signal.SIGCONT)
        if error is not None:
            print(self.platform.logs())
        try:
            self.platform.close()
        finally:
            self.redis.stop()
            self._keeper.shutdown()


def name_of(process: Process) -> str:
    """What a runner calls itself."""
    found = re.search(r"^runner (\S+) ready", process.text, re.MULTILINE)
    assert found, process.text
    return found[1]
