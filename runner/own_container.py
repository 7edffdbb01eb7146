"""A container of a user's own image: made behind the same walls as every sandbox, with its output read as it comes.

What ``contract_http`` and ``contract_exec`` have in common. The function's files are at /run/bananas/code, read-only;
the program is the image's, or ``command``. Never pulls an image.
"""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import gevent

from bananas import events
from bananas.errors import EngineUnavailable, SandboxStartError
from bananas.protocols import Binding, ExitInfo, SandboxProfile
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.gate import Gate
from runner.gpus import Lease
from runner.ledger import Ledger
from runner.streams import Listener, Streams

#: For the last output after a kill.
LAST_OUTPUT_S = 2.0
#: The engine says 128 + signal for a process that was killed.
_SIGNALLED = 128
#: The kernel's counters of this machine; one of them is of processes that it killed for memory.
VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What such containers are made with; one per runner."""

    engine: Engine
    bundles: BundleCache
    directory: Path
    labels: dict[str, str]
    access: Access
    #: Creates and starts of these containers wait here too; whoever binds or calls has left the one of its stem.
    gate: Gate = field(default_factory=lambda: Gate(4))
    ledger: Ledger = field(default_factory=lambda: Ledger(sys.maxsize))

    def create(
        self,
        name: str,
        profile: SandboxProfile,
        binding: Binding,
        env: dict[str, str],
        *,
        network: str,
        stdin: bool = False,
        secrets_volume: str | None = None,
    ) -> OwnContainer:
        """A container that is not started yet; ``env`` comes on top of the function's. ``name`` is unique.

        Whatever fails, nothing is left behind. Raises SandboxStartError, ImageMissing or EngineUnavailable.
        """
        directory = self.directory / f"{name}-own"
        container_id: str | None = None
        lease: Lease | None = None
        try:
            directory.mkdir(mode=0o755)
            directory.chmod(0o755)
            self.bundles.link_into(binding.code, directory / "code")
            lease = self.access.lease(profile)
            with self.gate.place():
                container_id = self.engine.create_own(
                    profile,
                    directory,
                    binding.command,
                    {**binding.env, **env},
                    self.labels,
                    network=network,
                    gpus=lease.devices if lease is not None else (),
                    stdin=stdin,
                    secrets_volume=secrets_volume,
                )
            streams = Streams(self.engine.attach(container_id, stdin=stdin))
        except BaseException as e:
            if container_id is not None:
                _remove(self.engine, container_id)
            if lease is not None:
                lease.close()
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(e, OSError):
                raise SandboxStartError(f"a container of image {profile.image} could not be prepared: {e}") from e
            raise
        return OwnContainer(self, container_id, profile, directory, streams, lease)


class OwnContainer:
    """One container, from its creation to its removal. One owner."""

    def __init__(
        self,
        workshop: Workshop,
        container_id: str,
        profile: SandboxProfile,
        directory: Path,
        streams: Streams,
        lease: Lease | None,
    ) -> None:
        self.streams = streams
        self._engine = workshop.engine
        self._gate = workshop.gate
        self._container_id = container_id
        self._profile = profile
        self._directory = directory
        self._lease = lease
        self._is_killed = False
        self._oom_kills = oom_kills()

    def start(self) -> None:
        """Raises SandboxStartError with the engine's words, such as for a program that is not in the image."""
        with self._gate.place():
            self._engine.start(self._container_id, self._profile.pool)

    def listen(self, listener: Listener | None) -> None:
        """Who gets the output from now on: a call begins, or is over."""
        self._oom_kills = oom_kills()
        self.streams.listen(listener)

    def exit_info(self, timeout_s: float) -> ExitInfo:
        """How it ended, waiting for that if need be; unknown when it still runs.

        The engine often misses that memory was the reason. So a SIGKILL that is not ours was for memory, too, if the
        kernel has killed something for that since the call began.
        """
        exited = self._engine.wait_exit(self._container_id, max(1, round(timeout_s)))
        if exited is None:
            return ExitInfo()
        if exited.status <= _SIGNALLED:
            return ExitInfo(exited.status, None, exited.oom)
        number = exited.status - _SIGNALLED
        is_foreign = number == signal.SIGKILL and not self._is_killed
        return ExitInfo(None, number, exited.oom or (is_foreign and oom_kills() > self._oom_kills))

    def kill_soon(self) -> None:
        """Kill it from another greenlet; its owner still calls ``end``."""
        self._is_killed = True
        gevent.spawn(_remove, self._engine, self._container_id)

    def end(self) -> ExitInfo:
        """Kill and remove it, so that nothing in it lives on; says how it had ended, if it did by itself."""
        info = self.exit_info(1) if self.streams.ended.is_set() else ExitInfo()
        _remove(self._engine, self._container_id)
        # What it still printed goes to whoever listens.
        self.streams.ended.wait(LAST_OUTPUT_S)
        self.streams.close()
        if self._lease is not None:
            self._lease.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        return info


def oom_kills() -> int:
    """How many processes of this machine the kernel has killed for memory; 0 where it does not count them."""
    try:
        lines = VMSTAT.read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _remove(engine: Engine, container_id: str) -> None:
    try:
        engine.remove(container_id)
    except EngineUnavailable as e:
        # No shim in it notices that we are gone: it would run on.
        engine.left.add(container_id)
        events.SANDBOX_LEFT(error=e)
