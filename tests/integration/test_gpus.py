"""What the engine is asked for when a pool has GPUs, seen where the requests leave us; and what it says without any."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from bananas.errors import GpusTaken, SandboxStartError
from bananas.spec import PoolSpec, RuntimeInfo
from runner import images
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.gpus import Gpus
from runner.sandbox import DockerSandboxFactory
from runner.slot import profile_of
from tests.platform import Platform, until
from tests.tools.leftovers import Run

pytestmark = pytest.mark.docker

ECHO = "def handle(event, context):\n    return event\n"


class Rig:
    """A real factory on a real engine, with declared devices, and every create call that left it."""

    def __init__(self, folder: Path, run: Run, image: RuntimeInfo, devices: list[str]) -> None:
        client = images.connect()
        self.created: list[dict[str, Any]] = []
        client.api.hooks["response"].append(self._record)
        self.gpus = Gpus(devices, folder / "gpus")
        cache = BundleCache(folder / "cache", dict[str, bytes]().__getitem__)
        access = Access(gpus=self.gpus)
        self.factory = DockerSandboxFactory(Engine(client), cache, folder / "sb", run.labels, access)
        self._client = client
        self._image = image

    def _record(self, response: Any, *_: Any, **__: Any) -> None:
        if response.request.path_url.endswith("/containers/create"):
            self.created.append(json.loads(response.request.body)["HostConfig"])

    def create(self, **pool: Any) -> Any:
        return self.factory.create(profile_of("gpu", PoolSpec(**pool), self._image.image, self._image.image_id))

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def rig(engine: docker.DockerClient, run: Run, base_image: RuntimeInfo) -> Iterator[Rig]:
    assert engine.ping()
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    rig = Rig(folder, run, base_image, ["0", "1"])
    yield rig
    rig.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(("gpus", "devices"), [(1, ["0"]), (2, ["0", "1"]), ("all", ["0", "1"])])
def test_the_engine_is_asked_for_the_leased_devices_by_id(rig: Rig, gpus: int | str, devices: list[str]) -> None:
    """Not for a count, which would be everybody's; an engine without support says so, and all is given back."""
    wanted = [{"Driver": "", "Count": 0, "DeviceIDs": devices, "Capabilities": [["gpu", "compute", "utility"]]}]
    said = ""
    try:
        rig.create(gpus=gpus).terminate()
    except SandboxStartError as e:  # where there are no GPUs
        said = str(e)
    assert not said or re.search(r"pool 'gpu': the engine answered 500: .*gpu", said), said
    (asked,) = rig.created
    assert [{k: v for k, v in r.items() if k != "Options"} for r in asked["DeviceRequests"]] == wanted
    assert (asked["NetworkMode"], asked["CapDrop"], asked["ReadonlyRootfs"]) == ("none", ["ALL"], True)
    lease = rig.gpus.lease("all", "gpu")
    lease.close()


def test_pools_without_gpus_ask_for_no_device(rig: Rig) -> None:
    """Also on a machine that has some."""
    rig.create().terminate()
    (asked,) = rig.created
    assert not asked.get("DeviceRequests")


def test_a_job_waits_for_devices_that_others_have_and_then_begins(redis_url: str, base_image: RuntimeInfo) -> None:
    """It is not claimed meanwhile, and says what it waits for; where the engine has no GPUs it says that then."""
    with Platform(redis_url, BANANAS_GPUS="0", BANANAS_PYTHON_IMAGE=base_image.image) as platform:
        other = Gpus(["0"], platform.folder / "state" / "gpus")
        (platform.folder / "state").mkdir(mode=0o711)
        lease = other.lease("all", "elsewhere")
        platform.gateway()
        platform.runner()
        platform.deploy({"train": ECHO}, "    pool: gpu", "pools: {gpu: {gpus: all, concurrency: 1}}")
        job = platform.client.submit("train", 1)["id"]
        record = until(
            lambda: (r := platform.client.job(job)) and r["waiting_for"] == "gpus" and r, 30, "the job to say it"
        )
        assert (record["status"], record["history"]) == ("pending", [])
        assert "other sandboxes have the GPUs that pool 'gpu' needs" in record["waiting_detail"]
        lease.close()
        record = until(lambda: (r := platform.client.job(job)) and r["history"] and r, 30, "an attempt")
        first = record["history"][0]
        assert first["outcome"] == "ok" or re.search("the engine answered 500: .*gpu", first["error"]["message"])


def test_a_sandbox_whose_devices_are_taken_is_not_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine would start both, since it does not count; so the lease comes first."""
    monkeypatch.setattr("runner.gpus.RECLAIM_S", 0.0)
    lease = rig.gpus.lease(1, "other")
    with pytest.raises(GpusTaken, match=r"pool 'gpu' asks for gpus: all, and of 0, 1 so many are not free"):
        rig.create(gpus="all")
    assert rig.created == []
    lease.close()
