"""Which GPUs this machine has, and which sandbox holds which: each whole device belongs to at most one at a time.

The devices are those that ``BANANAS_GPUS`` declares, else those of NVIDIA's driver. A lease is a file lock, so it also
holds against other runners of this machine (with the same state directory) and ends with its runner. Whether the engine
can hand devices to containers is known only when it is asked to. Called by ``runner.sandbox`` for each new sandbox, and
by the supervisor, which offers no more places than there are devices for.
"""

from __future__ import annotations

import fcntl
import logging
import re
import time
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

import msgspec
from gevent.event import Event

from bananas.errors import ConfigError, SandboxStartError
from bananas.spec import PoolSpec

log = logging.getLogger(__name__)

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
        #: Asks whoever holds devices and does not use them to give them up; the supervisor sets it.
        self.reclaim: Callable[[], None] = lambda: None

    def fit(self, spec: PoolSpec) -> PoolSpec:
        """The pool's settings with no more places than there are devices for, and no spare sandboxes that hold some.

        With none at all the places stay: a job that comes fails with the reason, instead of waiting without a word.
        """
        if not spec.gpus:
            return spec
        each = self._number(spec.gpus)
        places = len(self.devices) // each if each else 0
        return msgspec.structs.replace(spec, stems=0, concurrency=min(spec.concurrency, places or spec.concurrency))

    def lease(self, wanted: int | str, pool: str) -> Lease:
        """``wanted`` devices (a number or ``all``) for a sandbox of ``pool``.

        Waits a moment for idle sandboxes to give theirs up. Raises SandboxStartError naming what is missing.
        """
        number = self._number(wanted)
        if wanted and (not self.devices or number > len(self.devices)):
            has = f"has {len(self.devices)} ({', '.join(self.devices)})" if self.devices else "has none"
            raise SandboxStartError(
                f"pool {pool!r} asks for gpus: {wanted} and this runner {has}; install NVIDIA's driver and container "
                "toolkit, or declare the devices in BANANAS_GPUS, or leave the pool to other runners with BANANAS_POOLS"
            )
        lease = self._take(number)
        if lease is None:
            self.reclaim()
            deadline_s = time.monotonic() + RECLAIM_S
            while lease is None and (left_s := deadline_s - time.monotonic()) > 0:
                self._freed.clear()
                lease = self._take(number)
                if lease is None:
                    self._freed.wait(timeout=left_s)
        if lease is None:
            raise SandboxStartError(
                f"pool {pool!r} asks for gpus: {wanted}, and of {', '.join(self.devices)} so many are not free: other "
                "sandboxes of this machine work with them; let one pool use the GPUs, or lower its concurrency"
            )
        if lease.devices:
            log.info("gpus leased pool=%s devices=%s", pool, ",".join(lease.devices))
        return lease

    def _number(self, wanted: int | str) -> int:
        return len(self.devices) if wanted == "all" else int(wanted)

    def _take(self, number: int) -> Lease | None:
        """So many devices, or None and nothing is held."""
        held: dict[str, TextIOWrapper] = {}
        for device in self.devices:
            if len(held) == number:
                break
            file = self._lock(device)
            if file is not None:
                held[device] = file
        if len(held) == number:
            return Lease(held, self._freed.set)
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
