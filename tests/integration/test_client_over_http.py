"""The client and a real gateway whose answers get lost, or which is killed: one job each, none lost, no half deploy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bananas import keys
from bananas.client import Client
from bananas.job import NewJob, Outcome
from bananas.spec import Bundles, Deployment, FunctionSpec
from tests.integration.gateway_player import ABI, Player
from tests.platform import Platform, Process, until
from tests.tools.tcp_proxy import TcpProxy

pytestmark = pytest.mark.redis

#: For a gateway to come back on a slow machine.
PATIENCE_S = 60.0


class LosesAnswers(TcpProxy):
    """Passes requests on, and hangs up instead of bringing the next ``losses`` answers."""

    def __init__(self, target_port: int) -> None:
        self.losses = 0
        super().__init__(target_port)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        is_answer = source.getpeername()[1] == self._target_port
        if is_answer and self.losses and source.recv(65536):
            self.losses -= 1
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            return
        super()._pump(source, sink)


@pytest.fixture
def lossy(platform: Platform) -> Iterator[LosesAnswers]:
    """Between the client and the gateway."""
    with LosesAnswers(platform.port) as proxy:
        yield proxy


@pytest.fixture
def client(lossy: LosesAnswers) -> Iterator[Client]:
    """Patient, behind it."""
    with Client(f"http://127.0.0.1:{lossy.port}", patience_s=PATIENCE_S) as client:
        yield client


def lose(lossy: LosesAnswers, client: Client, count: int) -> None:
    """Lose the answers of the next calls; each call is a connection of its own."""
    client.close()
    lossy.losses = count


def test_lost_answers_make_neither_a_second_job_nor_a_refusal(
    platform: Platform, outside: Player, lossy: LosesAnswers, client: Client
) -> None:
    """Alone or in a batch; and who cancels or replays is not told that somebody did so before."""
    lose(lossy, client, 2)
    job = client.submit("hello", {"n": 1})
    assert (lossy.losses, job["duplicate"]) == (0, False)
    assert [found["id"] for found in client.jobs()["jobs"]] == [job["id"]]
    lose(lossy, client, 1)
    batch = list(client.submit_many({"name": "hello", "payload": n} for n in range(5)))
    assert len({answer["id"] for answer in batch}) == 5
    assert not any(answer["duplicate"] for answer in batch)
    assert len(client.jobs()["jobs"]) == 6
    lose(lossy, client, 1)
    assert client.cancel(job["id"])["status"] == "cancelled"
    claim = outside.claim()
    outside.settle(claim, Outcome.PERMANENT, error={"type": "ValueError", "message": "boom"})
    lose(lossy, client, 1)
    assert client.replay(claim.id)["status"] == "pending"
    assert lossy.losses == 0
    assert platform.queue.counts().counters["replayed"] == 1


def kill9(gateway: Process) -> None:
    """All its processes at once, as when its host goes."""
    pid = gateway.popen.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    gateway.kill9()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
        until(lambda child=child: not Path(f"/proc/{child}/exe").exists(), 20, f"process {child} to be gone")


@pytest.fixture
def mortal(redis_url: str) -> Iterator[Platform]:
    """A platform whose gateway may be killed."""
    with Platform(redis_url) as platform:
        yield platform


def test_a_gateway_killed_during_waits_and_submits_loses_no_job(mortal: Platform) -> None:
    """Who waits is answered by the next gateway; every job that was submitted is there once."""
    first = mortal.gateway()
    player = Player(mortal.queue, mortal.registry)
    player.deploy("hello")
    begun = threading.Event()

    def wait() -> object:
        with Client(mortal.url, patience_s=PATIENCE_S) as client:
            return client.submit_and_wait("hello", {"n": 0}, timeout_s=100)

    def submit() -> list[str]:
        ids = []
        with Client(mortal.url, patience_s=PATIENCE_S) as client:
            while len(ids) < 20 or not over.is_set():
                ids.append(client.submit("hello", {"n": len(ids)})["id"])
                begun.set()
        return ids

    over = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(wait)
        claim = player.claim()
        until(lambda: mortal.connections.commands.hget(keys.job(claim.id), "waiters"), 20, "somebody to wait")
        submitting = pool.submit(submit)
        assert begun.wait(20)
        kill9(first)
        mortal.gateway()
        player.settle(claim, result=b'{"answer": 42}')
        assert waiting.result(110) == {"answer": 42}
        over.set()
        ids = submitting.result(110)
    listed = mortal.connections.commands.zrange(keys.jobs("hello"), 0, -1)
    assert sorted(raw.decode() for raw in listed) == sorted([claim.id, *ids])


def test_a_gateway_killed_during_an_upload_leaves_no_half_of_a_deploy(mortal: Platform) -> None:
    """What served before still serves, the archive is not there, and the same deploy then works."""
    first = mortal.gateway()
    before = Player(mortal.queue, mortal.registry).deploy("hello")
    data = os.urandom(4 * 1024 * 1024)
    sha = hashlib.sha256(data).hexdigest()
    head = f"PUT /bundles/{sha} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
    with socket.create_connection(("127.0.0.1", mortal.port), 20) as upload:
        upload.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: len(data) // 2])
        kill9(first)
    mortal.gateway()
    deployment = Deployment(spec=FunctionSpec(timeout_ms=5000), bundles=Bundles(code=sha), abi=ABI)
    with Client(mortal.url, patience_s=0) as client:
        assert not client.has_bundle(sha)
        assert [kept["version"] for kept in client.versions("hello")["versions"]] == [before]
        job = mortal.queue.enqueue(NewJob("hello", b"1"))
        assert job.version == before
        client.put_bundle(sha, data)
        assert client.put_function("hello", deployment)["version"] == deployment.version()
        assert client.function("hello")["version"] == deployment.version()
