"""Public fakes: what you need to test code that uses Bananas' seams without Docker and without waiting.

Each fake passes the same contract tests as the real thing (``tests/contract``).
"""

from __future__ import annotations

import itertools
import json
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import bananas_sdk
from bananas.errors import ProtocolError, SandboxDied, SandboxStartError
from bananas.protocols import (
    Binding,
    CallReply,
    Clock,
    ExitInfo,
    HandlerLoadError,
    Invocation,
    Sandbox,
    SandboxFactory,
    SandboxProfile,
)

Handler = Callable[[Any, Any], Any]
OnLog = Callable[[bytes], None]
OnProgress = Callable[[bytes], None]


class ManualClock(Clock):
    """A clock that moves only when told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        """``now_ms``: Unix ms to start at."""
        self._now_ms = now_ms
        self._mono_s = 0.0

    def advance(self, seconds: float) -> None:
        """Move both clocks on."""
        self._now_ms += round(seconds * 1000)
        self._mono_s += seconds

    def now_ms(self) -> int:
        """Unix ms."""
        return self._now_ms

    def mono_s(self) -> float:
        """Seconds since creation, as advanced."""
        return self._mono_s


class Print:
    """Given to a fake handler as ``context.print``: output that is captured like a real one's."""

    def __init__(self, on_log: OnLog) -> None:
        self._on_log = on_log

    def __call__(self, text: str) -> None:
        self._on_log(text.encode() + b"\n")


class Progress:
    """Given to a fake handler as ``context.progress``: what ``bananas_sdk.progress`` is in a sandbox."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def __call__(self, value: Any) -> None:
        self._on_progress(bananas_sdk.encode(value))


@dataclass(slots=True)
class FakeContext:
    """What a fake handler gets as its context."""

    job_id: str
    attempt: int
    print: Print
    progress: Progress


class Exit(BaseException):
    """Raised in a fake handler: its process ends here (like ``os._exit``), or is killed when ``signal`` is set."""

    def __init__(self, status: int | None = None, *, signal: int | None = None, oom: bool = False) -> None:
        super().__init__(status)
        self.info = ExitInfo(status, signal, oom)


class Hang(BaseException):
    """Raised in a fake handler: it never answers, so the call ends at its deadline, at once."""


@dataclass(eq=False)
class FakeSandbox(Sandbox):
    """Runs handlers in this process. ``handlers`` maps a version's handler name to a function.

    A handler that still runs when the sandbox is ended gives no answer any more: its call is SandboxDied.
    """

    id: str
    profile: SandboxProfile
    handlers: dict[str, Handler]
    terminated: bool = False
    interrupted: bool = False
    binding: Binding | None = None
    calls: int = 0
    #: Calls that run at the moment.
    running: int = 0
    _exit: ExitInfo = field(default_factory=ExitInfo)

    def bind(self, binding: Binding, timeout_s: float, on_log: OnLog) -> float:
        """Look the handler up; an unknown one is a load error, as a missing module would be."""
        self._check()
        if self.binding is not None:
            raise SandboxDied("already bound")
        if binding.handler not in self.handlers:
            raise HandlerLoadError({"type": "ModuleNotFoundError", "message": f"no handler {binding.handler}"})
        self.binding = binding
        return 0.0

    def invoke(self, call: Invocation, on_log: OnLog, on_progress: OnProgress) -> CallReply:
        """Call the handler with the decoded payload."""
        self._check()
        if self.binding is None:
            raise SandboxDied("not bound")
        if self.running >= self.binding.calls:
            raise ProtocolError("more calls at once than the binding says")
        self.calls += 1
        self.running += 1
        context = FakeContext(call.job_id, call.attempt, Print(on_log), Progress(on_progress))
        try:
            value = self.handlers[self.binding.handler](json.loads(call.payload), context)
            self._check()
            return CallReply(json.dumps(value, allow_nan=False).encode(), None)
        except SandboxDied:
            raise
        except Exit as e:
            self._exit = e.info
            self.interrupted = True
            raise SandboxDied(e.info.describe()) from None
        except Hang:
            raise TimeoutError from None
        except Exception as e:  # noqa: BLE001 - user code: its failure is the answer
            self._check()
            error: dict[str, Any] = {"type": type(e).__name__, "message": str(e), "traceback": traceback.format_exc()}
            if getattr(e, "permanent", False):
                error["permanent"] = True
            after_s = getattr(e, "retry_after_s", None)
            if isinstance(after_s, int | float) and not isinstance(after_s, bool) and 0 <= after_s < math.inf:
                error["retry_after_s"] = float(after_s)
            return CallReply(None, error)
        finally:
            self.running -= 1

    @property
    def is_alive(self) -> bool:
        """Until it is ended."""
        return not self.terminated and not self.interrupted

    def interrupt(self) -> None:
        """As if killed from outside."""
        self.interrupted = True

    def terminate(self, on_log: OnLog | None = None) -> ExitInfo:
        """End it; says how the handler's process ended, if it did by itself."""
        self.terminated = True
        return self._exit

    def _check(self) -> None:
        if self.terminated or self.interrupted:
            raise SandboxDied("ended")


class FakeSandboxFactory(SandboxFactory):
    """Creates FakeSandboxes and remembers them; ``fail_next`` creates fail with SandboxStartError."""

    def __init__(self, handlers: dict[str, Handler] | None = None) -> None:
        """``handlers``: name, as in ``handler:`` of a function, to a function of (event, context)."""
        self.handlers = dict(handlers or {})
        self.created: list[FakeSandbox] = []
        self.fail_next = 0
        self._ids = itertools.count(1)

    def create(self, profile: SandboxProfile) -> FakeSandbox:
        """A stem, at once."""
        if self.fail_next:
            self.fail_next -= 1
            raise SandboxStartError("told to fail")
        sandbox = FakeSandbox(f"fake{next(self._ids)}", profile, self.handlers)
        self.created.append(sandbox)
        return sandbox
