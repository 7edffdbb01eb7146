"""``python -m tests.chaos.light_runner FOLDER``: a real runner, except that its sandboxes are greenlets with a journal.

Worker, heartbeat, fence, inbox, promoter, reaper, executor, pools and shutdown are those of the product; only Docker
is missing, so that eight of them fit on a small machine. The code that a job runs is ``JournalSandbox.invoke``.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 - everything below must see the patched standard library
import logging  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from random import SystemRandom  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.lock import BoundedSemaphore  # noqa: E402

from bananas.errors import SandboxDied  # noqa: E402
from bananas.protocols import CallReply, ExitInfo, Invocation, SandboxProfile  # noqa: E402
from bananas.secrets import Secrets  # noqa: E402
from bananas.settings import Settings  # noqa: E402
from bananas.spec import RuntimeInfo  # noqa: E402
from bananas.testing import FakeSandbox, FakeSandboxFactory, OnLog, OnProgress  # noqa: E402
from runner.catalog import Catalog  # noqa: E402
from runner.executor import Executor  # noqa: E402
from runner.heartbeat import Fence, Heartbeat  # noqa: E402
from runner.maintenance.promoter import Promoter  # noqa: E402
from runner.maintenance.reaper import Reaper  # noqa: E402
from runner.supervisor import ANNOUNCE_S, Supervisor, _Every  # noqa: E402
from runner.worker import Inbox, Worker  # noqa: E402
from tests.chaos.journal import Journal  # noqa: E402

RUNTIME = RuntimeInfo(image="none", image_id="none", python="3.11", machine="any", libc="none")


class JournalSandbox(FakeSandbox):
    """Does what the event says, and writes down that it did."""

    def __init__(self, name: str, profile: SandboxProfile, journal: Journal) -> None:
        super().__init__(name, profile, {"handler.handle": lambda event, context: event})
        self._journal = journal
        self._ended = Event()

    def invoke(self, call: Invocation, on_log: OnLog, on_progress: OnProgress) -> CallReply:
        """Wait ``run_ms``, then fail as often as the event says, else return token and nonce."""
        event = json.loads(call.payload)
        nonce = self._journal.begin(call.job_id, call.call_id, call.attempt)
        if event["run_ms"]:
            self._ended.wait(timeout=event["run_ms"] / 1000)
        self._journal.end(nonce)
        if self._ended.is_set():
            raise SandboxDied("interrupted")
        if event.get("permanent"):
            return CallReply(None, {"type": "Planned", "message": "for good", "permanent": True})
        if call.attempt <= event.get("fail", 0):
            return CallReply(None, {"type": "Planned", "message": f"attempt {call.attempt}"})
        return CallReply(json.dumps({"token": call.call_id, "nonce": nonce}).encode(), None)

    def interrupt(self) -> None:
        """Whoever waits in ``invoke`` is woken."""
        super().interrupt()
        self._ended.set()

    def terminate(self, on_log: OnLog | None = None) -> ExitInfo:
        """As above."""
        self._ended.set()
        return super().terminate(on_log)


class JournalFactory(FakeSandboxFactory):
    """Makes them."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def create(self, profile: SandboxProfile) -> FakeSandbox:
        """At once."""
        return JournalSandbox(f"light{next(self._ids)}", profile, self._journal)


class Place:
    """What a runner's ``Host`` is, without an engine."""

    def __init__(self) -> None:
        self.name = f"light-{os.getpid()}"

    def leave(self) -> None:
        """Nothing of ours is here."""


class LightSupervisor(Supervisor):
    """The supervisor with other sandboxes."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(settings)
        self._folder = folder

    def _build(self) -> None:
        lease_s = self._settings.lease_s
        host: Any = Place()
        factory: Any = JournalFactory(Journal(self._folder, host.name))
        self._host, self._factory, self._gate = host, factory, BoundedSemaphore(8)
        catalog = self._catalog = Catalog(
            self._registry.version, Secrets(self._connections, None).fetch, lambda: {"python": RUNTIME}
        )
        executor = Executor(host.name, catalog.version, catalog.profile, catalog.secrets, self._clock, SystemRandom())
        self._promoter = Promoter(self._on_crash, self._queue)
        self._worker = Worker(
            self._on_crash, self._queue, executor, self._pools, self._in_flight, host.name, lease_s, self._on_step
        )
        self._services = [
            Heartbeat(self._on_crash, self._queue, self._in_flight, lease_s, self._settings.heartbeat_s),
            Fence(self._on_crash, self._in_flight, self._settings.fence_s),
            Inbox(self._on_crash, self._queue, self._in_flight, host.name, self._refresh_pools),
            self._promoter,
            Reaper(self._on_crash, self._queue, lease_s, self._settings.reap_s),
            _Every(self._on_crash, "announcer", ANNOUNCE_S, self._announce),
            self._worker,
        ]


def main(argv: list[str]) -> int:
    """Until SIGTERM; the exit code of the supervisor."""
    settings = Settings.from_env()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    # One line for each planned failure would be most of the work.
    logging.getLogger("runner.executor").setLevel(logging.WARNING)
    supervisor = LightSupervisor(settings, Path(argv[0]))
    gevent.signal_handler(signal.SIGTERM, supervisor.stop)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
