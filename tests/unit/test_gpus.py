"""Which devices there are, and that each belongs to one sandbox at a time."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from bananas.errors import ConfigError, SandboxStartError
from bananas.settings import Settings
from bananas.spec import PoolSpec
from runner import gpus
from runner.gpus import Gpus


def test_devices_are_found_where_the_driver_tells_of_them(tmp_path: Path) -> None:
    """By UUID, in the order of their PCI addresses; one that was never used has question marks, and gets its number."""
    for address, uuid in (
        ("0000:0b:00.0", "GPU-????????-????-????-????-????????????"),
        ("0000:0a:00.0", "GPU-2e7b1a60-5b3c-11ee-8c99-0242ac120002"),
    ):
        (tmp_path / address).mkdir()
        text = f"Model: \t\t Tesla T4\nIRQ:   \t\t 33\nGPU UUID: \t {uuid}\nDevice Minor: \t 0\n"
        (tmp_path / address / "information").write_text(text)
    assert gpus.discover(tmp_path) == ("GPU-2e7b1a60-5b3c-11ee-8c99-0242ac120002", "1")
    assert gpus.discover(tmp_path / "nothing") == ()


@pytest.mark.parametrize(("text", "devices"), [("0,1", ("0", "1")), ("none", ()), ("GPU-ab12", ("GPU-ab12",))])
def test_devices_can_be_declared(text: str, devices: tuple[str, ...]) -> None:
    """Numbers or UUIDs; ``none`` is not the same as nothing said."""
    assert Settings.from_env({"BANANAS_GPUS": text}).gpus == devices
    assert Settings.from_env({}).gpus is None


@pytest.mark.parametrize(("text", "what"), [("gpu0", "'gpu0' is not the number"), ("0,0", "names a device twice")])
def test_wrong_devices_refuse_to_start(text: str, what: str) -> None:
    """With the variable's name."""
    with pytest.raises(ConfigError, match=f"BANANAS_GPUS='{text}' is not valid: {what}"):
        Settings.from_env({"BANANAS_GPUS": text})


def test_a_device_belongs_to_one_sandbox_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over two runners of a machine; what is given back is free at once, and giving back twice frees nothing."""
    monkeypatch.setattr(gpus, "RECLAIM_S", 0.05)
    one, other = Gpus(["0", "1"], tmp_path / "gpus"), Gpus(["0", "1"], tmp_path / "gpus")
    first = one.lease(1, "gpu")
    assert first.devices == ("0",)
    second = other.lease(1, "gpu")
    assert second.devices == ("1",)
    with pytest.raises(SandboxStartError, match=r"pool 'gpu' asks for gpus: 1, and of 0, 1 so many are not free"):
        one.lease(1, "gpu")
    with pytest.raises(SandboxStartError, match=r"asks for gpus: all, .* not free"):
        one.lease("all", "gpu")
    first.close()
    again = other.lease(1, "gpu")
    first.close()
    assert again.devices == ("0",)
    second.close()
    again.close()
    both = one.lease("all", "gpu")
    assert both.devices == ("0", "1")
    both.close()


def test_a_lease_that_cannot_be_had_whole_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sandboxes that each hold half of what both need would wait for ever."""
    monkeypatch.setattr(gpus, "RECLAIM_S", 0.0)
    devices = Gpus(["0", "1", "2"], tmp_path / "gpus")
    held = devices.lease(2, "a")
    with pytest.raises(SandboxStartError):
        devices.lease(2, "b")
    rest = devices.lease(1, "b")
    assert rest.devices == ("2",)
    rest.close()
    held.close()


def test_idle_sandboxes_give_their_devices_up(tmp_path: Path) -> None:
    """Whoever needs some asks for them, and goes on in the moment in which they are free."""
    devices = Gpus(["0"], tmp_path / "gpus")
    idle = devices.lease("all", "a")
    ending: list[object] = []
    devices.reclaim = lambda: ending.append(gevent.spawn_later(0.05, idle.close))
    lease = devices.lease("all", "b")
    assert lease.devices == ("0",)
    lease.close()


def test_without_enough_devices_the_reason_names_pool_wish_and_next_step(tmp_path: Path) -> None:
    """It is what a job that cannot start shows."""
    with pytest.raises(
        SandboxStartError,
        match=r"pool 'gpu' asks for gpus: all and this runner has none; install .*BANANAS_GPUS.*BANANAS_POOLS",
    ):
        Gpus((), tmp_path).lease("all", "gpu")
    with pytest.raises(SandboxStartError, match=r"asks for gpus: 4 and this runner has 2 \(0, 1\)"):
        Gpus(["0", "1"], tmp_path).lease(4, "gpu")


def test_a_pool_has_no_more_places_than_there_are_devices_for(tmp_path: Path) -> None:
    """So no job is claimed that could not start, and no spare sandbox holds a device."""
    devices = Gpus(["0", "1", "2"], tmp_path)
    assert devices.fit(PoolSpec(concurrency=8, gpus=1)) == PoolSpec(concurrency=3, stems=0, gpus=1)
    assert devices.fit(PoolSpec(concurrency=8, gpus=2)) == PoolSpec(concurrency=1, stems=0, gpus=2)
    assert devices.fit(PoolSpec(concurrency=8, gpus="all")) == PoolSpec(concurrency=1, stems=0, gpus="all")
    assert devices.fit(PoolSpec(concurrency=2, gpus=1)) == PoolSpec(concurrency=2, stems=0, gpus=1)
    assert devices.fit(PoolSpec()) == PoolSpec()
    assert Gpus((), tmp_path).fit(PoolSpec(gpus="all")) == PoolSpec(stems=0, gpus="all")
