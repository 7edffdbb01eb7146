"""Neighbouring releases on one Redis: the release before, from the history of this checkout, beside this one.

In the middle of an upgrade, or of a way back, each kind of process meets the other kind of the other release.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import requests

from bananas import keys, storage
from bananas.client import Client
from bananas.errors import ApiError
from bananas.ports import free_port
from bananas.spec import FunctionSpec, RuntimeInfo, Version
from tests.platform import ROOT, STOP_S, Platform, Process, until

#: What counts as the release before; to be moved at each release. Any mix of the two must work.
BEFORE = "12f1fb876f4fc3a84b3467cc4b3ed1b5922b550a"
PACKAGES = ("bananas", "gateway", "runner", "bananas_sdk.py")
WAIT_S = 60.0
ECHO = "def handle(event, context):\n    print('seen', event)\n    return event\n"
FAILS_ONCE = """
def handle(event, context):
    if context.attempt == 1:
        raise ValueError("once")
    return context.attempt
"""
BREAKS = (
    "class Broken(Exception):\n    permanent = True\n\n\ndef handle(event, context):\n    raise Broken(str(event))\n"
)
NAPS = "import time\n\n\ndef handle(event, context):\n    time.sleep(60)\n"
FUNCTIONS = {"echo": ECHO, "fails_once": FAILS_ONCE, "breaks": BREAKS, "naps": NAPS}
SETTINGS = "    retries: {max: 3, base: 100ms}"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before."""
    folder = tmp_path_factory.mktemp("before")
    done = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE, *PACKAGES], capture_output=True, timeout=30)
    if done.returncode:
        pytest.skip(f"this checkout has no history up to {BEFORE[:7]}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


class Mixed:
    """One installation whose processes are of either release; each gateway has a port of its own."""

    def __init__(self, platform: Platform, base: RuntimeInfo, before: Path) -> None:
        self.platform = platform
        self._base = base
        self._before = before

    def runner(self, *, old: bool) -> Process:
        return self._start("runner", "ready, pools:", old, BANANAS_PYTHON_IMAGE=self._base.image)

    def gateway(self, *, old: bool) -> tuple[Process, Client]:
        port = free_port()
        process = self._start("gateway", "gateway listening", old, BANANAS_PORT=str(port))
        return process, Client(f"http://127.0.0.1:{port}")

    def _start(self, module: str, ready: str, old: bool, **env: str) -> Process:
        # -P: the working directory, which is this checkout, does not count.
        root = self._before if old else ROOT
        variables = {**self.platform.env, **env, "PYTHONPATH": str(root)}
        name = f"{'old' if old else 'new'}-{module}{len(self.platform.processes)}"
        process = Process(name, [sys.executable, "-P", "-m", module], variables, self.platform.folder, ready)
        self.platform.processes.append(process)
        return process


@pytest.fixture
def mixed(redis_url: str, base_image: RuntimeInfo, before: Path) -> Iterator[Mixed]:
    with Platform(redis_url, BANANAS_LEASE_S="5", BANANAS_GRACE_S="5") as platform:
        yield Mixed(platform, base_image, before)


def use(client: Client, tag: str) -> list[str]:
    """Everything that needs both a gateway and a runner; returns the jobs, all over."""
    assert client.invoke("echo", tag) == f'"{tag}"'.encode()
    late = client.submit("echo", [tag], delay="1s")["id"]
    again = client.submit("fails_once", None, priority="high", unique_key=tag)["id"]
    assert client.submit("fails_once", None, unique_key=tag)["id"] == again
    broken = client.submit("breaks", tag)["id"]
    sleeper = client.submit("naps", None)["id"]
    records = {job: client.wait(job, timeout_s=WAIT_S) for job in (late, again, broken)}
    assert records[late]["result"] == [tag]
    assert (records[again]["status"], records[again]["result"]) == ("completed", 2)
    assert (records[broken]["status"], records[broken]["reason"]) == ("failed", "permanent")
    assert f"seen ['{tag}']" in client.logs(late)
    until(lambda: client.job(sleeper)["status"] == "processing", WAIT_S, "the sleeper to run")
    client.cancel(sleeper)
    assert client.wait(sleeper, timeout_s=WAIT_S)["status"] == "cancelled"
    return [late, again, broken, sleeper]


@pytest.mark.timeout(300)
def test_a_mix_of_two_releases_does_all_that_both_know(mixed: Mixed) -> None:
    """Through an upgrade with either kind of process first, calls, retries, delays, cancels and deploys go on."""
    old_gateway, old_client = mixed.gateway(old=True)
    old_runner = mixed.runner(old=True)
    mixed.platform.client = old_client
    mixed.platform.deploy(FUNCTIONS, SETTINGS)
    jobs = use(old_client, "both-old")

    _, new_client = mixed.gateway(old=False)
    jobs += use(new_client, "runner-old")
    mixed.platform.client = new_client
    # Another text of the same functions: their versions are written by the new release and run by the old one.
    mixed.platform.deploy({name: f"{text}\n# again\n" for name, text in FUNCTIONS.items()}, SETTINGS)
    jobs += use(old_client, "deployed-by-new")

    waiting = [new_client.submit("echo", n, delay="3s")["id"] for n in range(20)]
    mixed.runner(old=False)
    assert old_runner.stop() == 0
    jobs += use(old_client, "gateway-old")
    assert [new_client.wait(job, timeout_s=WAIT_S)["result"] for job in waiting] == list(range(20))

    assert old_gateway.stop() == 0
    jobs += use(new_client, "both-new")
    mixed.platform.client = new_client
    records = [new_client.job(job) for job in [*jobs, *waiting]]
    assert {record["status"] for record in records} == {"completed", "failed", "cancelled"}
    broken = [record["id"] for record in records if record["status"] == "failed"]
    replayed = new_client.replay(broken[0])
    assert new_client.wait(replayed["id"], timeout_s=WAIT_S)["status"] == "failed"
    assert len(new_client.versions("echo")["versions"]) == 2


def test_what_only_a_newer_release_knows_waits_for_it(platform: Platform) -> None:
    """A function with a setting that this release does not know is refused with the setting's name; others go on."""
    platform.gateway()
    platform.runner()
    platform.deploy({"echo": ECHO})
    bundles = platform.registry.current("echo").bundles
    write_newer(
        platform,
        Version(function="ahead", version="a" * 12, spec=FunctionSpec(), bundles=bundles, abi="x", deployed_at_ms=1),
    )
    job = platform.client.submit("ahead", 1)["id"]
    tried = until(
        lambda: (found := platform.client.job(job))["history"] and found, WAIT_S, "an attempt at the newer one"
    )
    assert tried["history"][0]["outcome"] == "start"
    assert "quantum" in tried["history"][0]["error"]["message"]
    assert "newer release" in tried["history"][0]["error"]["message"]
    assert platform.client.invoke("echo", 1) == b"1"
    assert [found["name"] for found in platform.client.functions()] == ["echo"]
    with pytest.raises(ApiError) as refused:
        platform.client.function("ahead")
    assert (refused.value.status, refused.value.problem["code"]) == (503, "newer-release")
    platform.client.cancel(job)


def write_newer(platform: Platform, version: Version) -> None:
    """As a release would that has a field `quantum`."""
    text = storage.encode(version).replace(b'"spec":{', b'"spec":{"quantum":7')
    with redis.Redis.from_url(platform.redis_url, socket_timeout=5) as client:
        client.set(keys.version(version.function, version.version), text)
        current = client.hgetall(keys.function("echo"))
        client.hset(keys.function(version.function), mapping={**current, b"version": version.version})
        client.sadd(keys.FUNCTIONS, version.function)


def test_data_of_another_layout_is_left_alone(platform: Platform) -> None:
    """When a newer release raises the format, runners leave, the gateway is not ready, and none starts anew."""
    platform.gateway()
    runner = platform.runner()
    platform.deploy({"echo": ECHO})
    assert platform.client.invoke("echo", 1) == b"1"
    with redis.Redis.from_url(platform.redis_url, socket_timeout=5) as client:
        assert client.get(keys.FORMAT) == str(storage.FORMAT).encode()
        client.set(keys.FORMAT, storage.FORMAT + 1)
    assert runner.popen.wait(STOP_S) == 1
    assert f"format {storage.FORMAT + 1}" in runner.text
    answer = requests.get(f"{platform.url}/readyz", timeout=10)
    assert answer.status_code == 503
    assert f"format {storage.FORMAT + 1}, and Bananas" in answer.json()["detail"]
    with pytest.raises(AssertionError, match=r"runner.* ended with 1"):
        platform.runner()


@pytest.fixture
def platform(redis_url: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    with Platform(
        redis_url, BANANAS_LEASE_S="5", BANANAS_GRACE_S="5", BANANAS_PYTHON_IMAGE=base_image.image
    ) as platform:
        yield platform
