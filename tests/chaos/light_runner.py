"""``python -m tests.chaos.light_runner FOLDER``: a real runner, except that its sandboxes are greenlets with a journal.

Everything that ``runner.supervisor`` builds is that of the product; only Docker is missing, so that eight of them fit
on a small machine. The code that a job runs is ``JournalSandbox.invoke``.
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
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

from bananas.errors import SandboxDied  # noqa: E402
from bananas.protocols import CallReply, ExitInfo, Invocation, SandboxProfile  # noqa: E402
from bananas.settings import Settings  # noqa: E402
from bananas.spec import RuntimeInfo  # noqa: E402
from bananas.testing import FakeSandbox, FakeSandboxFactory, OnLog, OnProgress  # noqa: E402
from runner import images, supervisor  # noqa: E402
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
        nonce = self._journal.begin(call.job_id, call.token, call.attempt)
        if event["run_ms"]:
            self._ended.wait(timeout=event["run_ms"] / 1000)
        self._journal.end(nonce)
        if self._ended.is_set():
            raise SandboxDied("interrupted")
        if event.get("permanent"):
            return CallReply(None, {"type": "Planned", "message": "for good", "permanent": True})
        if call.attempt <= event.get("fail", 0):
            return CallReply(None, {"type": "Planned", "message": f"attempt {call.attempt}"})
        return CallReply(json.dumps({"token": call.token, "nonce": nonce}).encode(), None)

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


class NoEngine:
    """Stands where the Docker Engine would."""

    client = None

    def ping(self) -> None:
        """Always there."""


class Place:
    """What a runner's ``Host`` is, without an engine: nothing of ours is here that could be left behind."""

    def __init__(self, state: Path, instance: str, engine: NoEngine) -> None:
        self.id = str(os.getpid())
        self.name = f"light-{self.id}"
        self.directory = state / self.id
        self.cache = state / "bundles"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.labels: dict[str, str] = {}

    def sweep(self) -> int:
        """No containers."""
        return 0

    def leave(self) -> None:
        """No lock."""


def without_docker(folder: Path) -> None:
    """Give the supervisor's module other parts in the four places where it would meet the engine."""
    replaced: dict[str, Any] = {
        "Engine": NoEngine,
        "Host": Place,
        "DockerSandboxFactory": lambda *_, **__: JournalFactory(Journal(folder, f"light-{os.getpid()}")),
    }
    for name, part in replaced.items():
        assert hasattr(supervisor, name), f"runner.supervisor has no {name} any more"
        setattr(supervisor, name, part)
    images.discover = lambda *_, **__: {"python": RUNTIME}


def main(argv: list[str]) -> int:
    """Until SIGTERM; the exit code of the supervisor."""
    settings = Settings.from_env()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    # One line for each planned failure would be most of the work.
    logging.getLogger("runner.executor").setLevel(logging.WARNING)
    without_docker(Path(argv[0]))
    runner = supervisor.Supervisor(settings)
    gevent.signal_handler(signal.SIGTERM, runner.stop)
    return runner.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
