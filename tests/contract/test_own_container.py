"""Containers of a user's own image, on the real engine: what they wait for, and what is told of their end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker.errors import NotFound

from bananas import pack
from bananas.errors import EngineUnavailable, SandboxStartError
from bananas.protocols import Binding, Invocation, Sandbox
from bananas.spec import PoolSpec, RuntimeInfo
from runner import contracts, memory_volumes
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine, Exited
from runner.gate import Gate
from runner.helpers import SecretVolume
from runner.host import Host
from runner.own_container import Workshop
from runner.sandbox import DockerSandboxFactory
from runner.slot import profile_of
from tests.contract.subjects import SERVER
from tests.tools.leftovers import Run

pytestmark = pytest.mark.docker

HANDLER = "def echo(event, context): return event\n"
PROCESS = "import json, sys; print(json.dumps(json.load(sys.stdin)))"
COMMANDS = {"http": ("python3", "/run/bananas/code/server.py"), "exec": ("python3", "-c", PROCESS)}


class WatchedEngine(Engine):
    """Notes how many places at the gate are taken at each create and start."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.taken: list[tuple[str, int]] = []
        self._gate = gate

    def create_own(self, *args: Any, **options: Any) -> str:
        self.taken.append(("create", self._gate.taken))
        return super().create_own(*args, **options)

    def start(self, container_id: str, pool: str) -> None:
        self.taken.append(("start", self._gate.taken))
        super().start(container_id, pool)


class AwayEngine(Engine):
    """Can be away for whoever wants to remove something."""

    is_away = False

    def remove(self, container_id: str) -> None:
        if self.is_away:
            raise EngineUnavailable("the Docker Engine does not answer")
        super().remove(container_id)


class ForgetfulEngine(Engine):
    """Does not know how a container ended, like one that went away meanwhile."""

    def wait_exit(self, container_id: str, timeout_s: int) -> Exited | None:
        super().wait_exit(container_id, timeout_s)
        return None


@contextmanager
def bound(contract: str, image: RuntimeInfo, run: Run, engine: Engine, gate: Gate) -> Iterator[Sandbox]:
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    (folder / "src").mkdir()
    (folder / "src" / "handler.py").write_text(HANDLER)
    (folder / "src" / "server.py").write_text(SERVER)
    bundle = pack.pack(folder / "src", ignore=())
    cache = BundleCache(folder / "cache", {bundle.digest: bundle.data}.__getitem__)
    shims = DockerSandboxFactory(engine, cache, folder / "sb", run.labels)
    workshop = Workshop(engine, cache, folder / "sb", run.labels, Access(), gate)
    profile = profile_of("p", PoolSpec(memory_mb=64), image.image, image.image_id, contract)
    sandbox = contracts.of_runner(shims, workshop, lambda: image).create(profile)
    binding = Binding("f", "v1", "", bundle.digest, None, {"CASE": "echo"}, command=COMMANDS[contract])
    try:
        sandbox.bind(binding, 20.0, lambda _: None)
        yield sandbox
    finally:
        sandbox.terminate()
        shutil.rmtree(folder)


@pytest.mark.parametrize("contract", ["http", "exec"])
def test_creates_and_starts_pass_the_gate(contract: str, base_image: RuntimeInfo, run: Run) -> None:
    """They count among those that this runner has under way at a time, and give their place back."""
    gate = Gate(2)
    engine = WatchedEngine(gate)
    with bound(contract, base_image, run, engine, gate) as sandbox:
        reply = sandbox.invoke(Invocation(1, "job", 1, b"[1]", 20.0), lambda _: None, lambda _: None)
        assert reply.result == b"[1]"
        # The helper of http was created before, by whoever makes stems, which has its place for that.
        assert [call for call in engine.taken if call[1]] == [("create", 1), ("start", 1)]
    assert gate.taken == 0


def test_a_container_that_the_engine_lost_is_no_fault_of_its_function(
    base_image: RuntimeInfo, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job is tried again without using anything up, instead of failing with words about the code."""
    monkeypatch.setitem(COMMANDS, "http", ("python3", "-c", "raise SystemExit(1)"))
    with (
        pytest.raises(SandboxStartError, match=r"the engine lost a container of image .* before it listened on port"),
        bound("http", base_image, run, ForgetfulEngine(), Gate(2)),
    ):
        pass


def test_a_volume_that_could_not_be_removed_goes_with_the_next(
    base_image: RuntimeInfo, run: Run, tmp_path: Path
) -> None:
    """A container that was left behind keeps it for a while; nothing else collects the volumes of a live runner."""
    engine, left, mark = Engine(), set[str](), f"bananas-{os.urandom(5).hex()}"
    bundles: dict[str, bytes] = {}
    workshop = Workshop(
        engine, BundleCache(tmp_path / "cache", bundles.__getitem__), tmp_path / "sb", run.labels, Access()
    )
    kept, next_one = (SecretVolume(workshop, f"{mark}-{n}", left) for n in (1, 2))
    for volume in (kept, next_one):
        memory_volumes.create(engine, volume.name, run.labels)
    container = engine.client.containers.create(
        base_image.image_id, ["python3"], network_mode="none", labels=run.labels, volumes=[f"{kept.name}:/x"]
    )
    try:
        kept.close()
        assert left == {kept.name}
        assert engine.client.volumes.get(kept.name)
    finally:
        container.remove(force=True)
    next_one.close()
    assert left == set()
    assert not engine.client.volumes.list(filters={"name": mark})


def test_a_container_that_outlived_its_end_is_removed_when_the_engine_is_back(
    base_image: RuntimeInfo, run: Run, tmp_path: Path
) -> None:
    """Nothing in it notices that its attempt is over, so it runs until the runner's next sweep, and no longer."""
    engine = AwayEngine()
    with bound("http", base_image, run, engine, Gate(2)) as sandbox:
        engine.is_away = True
        sandbox.terminate()
        [container] = engine.left
        assert engine.client.containers.get(container).status == "running"
        host = Host(tmp_path, f"own{os.urandom(4).hex()}", engine)
        try:
            with pytest.raises(EngineUnavailable):
                host.sweep()
            engine.is_away = False
            assert host.sweep() == 1
        finally:
            host.leave()
        assert engine.left == set()
        with pytest.raises(NotFound):
            engine.client.containers.get(container)
