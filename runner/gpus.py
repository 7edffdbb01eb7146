"""Which GPUs this machine has, and which sandbox holds which: each whole device belongs to at most one at a time.

The devices are those that ``BANANAS_GPUS`` declares, else those of NVIDIA's driver. A lease is a file lock, so it also
holds against other runners of this machine (with the same state directory) and ends with its runner. Whether the engine
can hand devices to containers is known only when it is asked to. Called by ``runner.sandbox`` for each new sandbox, and
by the supervisor and ``runner.holdups``, which offer no more places than there are devices for.
"""

from __future__ import annotations

import fcntl
import re
import sys
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

import msgspec
from gevent.event import Event

from bananas import events
from bananas.errors import ConfigError, GpusTaken, SandboxStartError
from bananas.spec import PoolSpec

NVIDIA = Path("/proc/driver/nvidia/gpus")
#: For idle sandboxes to give up their devices. It is spent while other sandboxes wait for their start, so not longer.
RECLAIM_S = 3.0


def discover(root: Path = NVIDIA) -> tuple[str, ...]:
    """The ids of the driver's devices, in the order of their PCI addresses; empty without the driver."""
    devices = []
    for number, folder in enumerate(sorted(root.iterdir()) if root.is_dir() else ()):
        try:
            text = (folder / "information").read_text("utf-8", "replace")
        except OSError as e:
            raise ConfigError(
                f"the NVIDIA driver's {folder} cannot be read: {e}; declare the GPUs in BANANAS_GPUS"
            ) from e
        uuid = re.search(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)\s*$", text, re.MULTILINE)
        # Until a device is used for the first time the driver shows question marks.
        devices.append(uuid[1] if uuid else str(number))
    return tuple(devices)


class Lease:
    """Devices that belong to one sandbox until ``close``."""

    def __init__(self, devices: dict[str, TextIOWrapper], on_release: Callable[[], None]) -> None:
        self.devices = tuple(devices)
        self._files = devices
        self._on_release = on_release

    def close(self) -> None:
        """Give them back. Idempotent."""
        for file in self._files.values():
            file.close()
        if self._files:
            self._files = {}
            self._on_release()


class Gpus:
    """The devices of this machine, as far as this runner may use them."""

    def __init__(self, devices: Sequence[str], folder: Path) -> None:
        """``folder`` holds one lock for each device."""
        self.devices = tuple(devices)
        self._folder = folder
        self._freed = Event()
        #: Device → pool, of the leases of this runner.
        self._leased: dict[str, str] = {}
        #: Asks whoever holds devices and does not use them to give them up; ``HoldUps`` sets it.
        self.reclaim: Callable[[], None] = lambda: None
        #: Hears of devices that this runner gave back; the supervisor sets it.
        self.on_freed: Callable[[], None] = lambda: None

    def fit(self, spec: PoolSpec) -> PoolSpec:
        """The pool's settings with no more places than there are devices for, and no spare sandboxes that hold some.

        With none at all the places stay: a job that comes fails with the reason, instead of waiting without a word.
        """
        if not spec.gpus:
            return spec
        each = self.number(spec.gpus)
        places = len(self.devices) // each if each else 0
        return msgspec.structs.replace(spec, stems=0, concurrency=min(spec.concurrency, places or spec.concurrency))

    def lease(self, wanted: int | str, pool: str) -> Lease:
        """``wanted`` devices (a number or ``all``) for a sandbox of ``pool``.

        Waits a moment for idle sandboxes to give theirs up. Raises GpusTaken while others have them, and
        SandboxStartError when this machine has too few.
        """
        number = self.number(wanted)
        if wanted and (not self.devices or number > len(self.devices)):
            has = f"has {len(self.devices)} ({', '.join(self.devices)})" if self.devices else "has none"
            raise SandboxStartError(
                f"pool {pool!r} asks for gpus: {wanted} and this runner {has}; install NVIDIA's driver and container "
                "toolkit, or declare the devices in BANANAS_GPUS, or leave the pool to other runners with BANANAS_POOLS"
            )
        lease = self._take(number, pool)
        if lease is None:
            self.reclaim()
            deadline_s = time.monotonic() + RECLAIM_S
            while lease is None and (left_s := deadline_s - time.monotonic()) > 0:
                self._freed.clear()
                lease = self._take(number, pool)
                if lease is None:
                    self._freed.wait(timeout=left_s)
        if lease is None:
            raise GpusTaken(
                f"pool {pool!r} asks for gpus: {wanted}, and of {', '.join(self.devices)} so many are not free: other "
                "sandboxes of this machine work with them; the job waits until they are"
            )
        if lease.devices:
            events.GPUS_LEASED(pool=pool, devices=",".join(lease.devices))
        return lease

    def places(self, wanted: int | str, pool: str, idle_elsewhere: int) -> int:
        """For how many sandboxes of ``pool``, together with those that it has, there are devices now.

        ``idle_elsewhere``: devices that other pools would give up. A pool that asks for more than there are is not
        held up: its jobs are to fail with the reason.
        """
        each = self.number(wanted)
        if not 0 < each <= len(self.devices):
            return sys.maxsize
        own = sum(holder == pool for holder in self._leased.values())
        others = [device for device in self.devices if device not in self._leased]
        return (own + idle_elsewhere + sum(self._is_free(device) for device in others)) // each

    def number(self, wanted: int | str) -> int:
        """How many devices ``gpus: wanted`` means here."""
        return len(self.devices) if wanted == "all" else int(wanted)

    def _is_free(self, device: str) -> bool:
        file = self._lock(device)
        if file is None:
            return False
        file.close()
        return True

    def _given_back(self, devices: Sequence[str]) -> None:
        for device in devices:
            del self._leased[device]
        self._freed.set()
        self.on_freed()

    def _take(self, number: int, pool: str) -> Lease | None:
        """So many devices, or None and nothing is held."""
        held: dict[str, TextIOWrapper] = {}
        for device in self.devices:
            if len(held) == number:
                break
            file = self._lock(device)
            if file is not None:
                held[device] = file
        if len(held) == number:
            self._leased.update(dict.fromkeys(held, pool))
            return Lease(held, lambda: self._given_back(list(held)))
        for file in held.values():
            file.close()
        return None

    def _lock(self, device: str) -> TextIOWrapper | None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            file = (self._folder / f"{device}.lock").open("w")
        except OSError as e:
            raise SandboxStartError(f"GPU {device} cannot be leased: {e}") from e
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file
