"""The seams: what the parts expect of each other, so that public fakes (``bananas.testing``) can stand in.

The real implementations are named in each docstring. Contract tests run the same cases over real and fake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec


class Clock(Protocol):
    """``bananas.clock.SystemClock``; ``bananas.testing.ManualClock``."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def mono_s(self) -> float:
        """Monotonic seconds."""
        ...


@dataclass(frozen=True, slots=True)
class SandboxProfile:
    """Everything that shapes an unbound sandbox (a stem). Equal profiles are interchangeable."""

    pool: str
    #: Image reference and its id on this engine.
    image: str
    image_id: str
    memory_mb: int
    cpus: float
    pids: int
    tmp_mb: int
    egress: tuple[str, ...] = ()
    network: str = "none"
    #: Whole devices of its own: a number, or ``all``.
    gpus: int | str = 0
    #: OCI runtime, as the engine names it; None: the engine's default.
    runtime: str | None = None
    #: Which shim runs in it: ``python`` or ``node``; or the contract of an image without one: ``http`` or ``exec``.
    shim: str = "python"


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret's value, on its way into a sandbox. Equal when the version is."""

    version: str
    value: bytes = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """What turns a stem into the sandbox of one function version."""

    function: str
    version: str
    handler: str
    #: SHA-256 digests of the bundles to link in.
    code: str
    deps: str | None
    env: dict[str, str] = field(default_factory=dict)
    #: By name; the sandbox keeps them as files in memory.
    secrets: dict[str, Secret] = field(default_factory=dict)
    #: Of the profile's egress targets those that it may reach, as ``host:port``; None: all.
    egress: tuple[str, ...] | None = None
    #: Of an image of one's own: what to run instead of its own program; empty: that.
    command: tuple[str, ...] = ()
    #: How many calls may run in it at once.
    calls: int = 1
    #: What a bound sandbox must agree in to serve the binding; hashable.
    identity: tuple[object, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Once, since it is asked for with each call."""
        versions = sorted((name, secret.version) for name, secret in self.secrets.items())
        object.__setattr__(self, "identity", (self.function, self.version, *versions))


class Invocation(msgspec.Struct, frozen=True):
    """One call of a bound sandbox."""

    #: Unique among the calls of the sandbox; not 0.
    call_id: int
    job_id: str
    attempt: int
    #: JSON text.
    payload: bytes
    timeout_s: float
    #: W3C trace context of the job, if it has one.
    traceparent: str | None = None
    #: The fencing number of the claim: grows with every claim of the job.
    token: int = 0


class CallReply(msgspec.Struct, frozen=True):
    """The answer to one call: exactly one of ``result`` and ``error``."""

    #: JSON text.
    result: bytes | None
    #: ``{"type", "message", "traceback"?, "permanent"?, "retry_after_s"?}``
    error: dict[str, Any] | None
    #: False when the sandbox must not serve another call; ``why_not`` then says why.
    reusable: bool = True
    why_not: str = ""
    run_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """How a sandbox's process ended; every field may be unknown."""

    status: int | None = None
    signal: int | None = None
    oom: bool = False

    def describe(self) -> str:
        """A few words for an error message."""
        if self.oom:
            return "killed by the kernel: out of memory"
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        if self.status is not None:
            return f"exited with status {self.status}"
        return "ended without a word"


class Sandbox(Protocol):
    """A started container with the shim in it. ``runner.sandbox.DockerSandbox``; ``bananas.testing.FakeSandbox``.

    ``bind`` exactly once, then ``invoke`` one call after the other, or up to ``Binding.calls`` at once, each from a
    greenlet of its own. What ends it ends all of them.
    """

    id: str
    profile: SandboxProfile

    def bind(self, binding: Binding, timeout_s: float, on_log: Callable[[bytes], None]) -> float:
        """Load the function; returns the init time in ms. What it prints meanwhile goes to ``on_log``.

        Raises HandlerLoadError when the code cannot be loaded, TimeoutError at the deadline, SandboxDied or
        ProtocolError otherwise.
        """
        ...

    def invoke(
        self, call: Invocation, on_log: Callable[[bytes], None], on_progress: Callable[[bytes], None]
    ) -> CallReply:
        """Run one call. Raises TimeoutError at the deadline, SandboxDied or ProtocolError otherwise.

        ``on_progress`` gets what the call tells of its progress, as JSON text; neither callable may wait.
        """
        ...

    @property
    def is_alive(self) -> bool:
        """False once it is known to have ended; never waits."""
        ...

    def interrupt(self) -> None:
        """End it from another greenlet, at once: whoever waits in ``bind`` or ``invoke`` gets SandboxDied. Its owner
        still calls ``terminate``."""
        ...

    def terminate(self, on_log: Callable[[bytes], None] | None = None) -> ExitInfo:
        """End every process in it, remove it, and say how it ended. Idempotent; never raises for a dead one."""
        ...


class HandlerLoadError(Exception):
    """The function's code could not be loaded: the user's error, with ``error`` as in CallReply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('type')}: {error.get('message')}")
        self.error = error


class SandboxFactory(Protocol):
    """``runner.sandbox.DockerSandboxFactory``; ``bananas.testing.FakeSandboxFactory``."""

    def create(self, profile: SandboxProfile) -> Sandbox:
        """A started stem. Raises SandboxStartError, ImageMissing or EngineUnavailable."""
        ...


class Channel(Protocol):
    """A connected byte stream to a shim. ``runner.transport``'s socket now, an attach stream later."""

    def sendall(self, data: bytes) -> None:
        """Send all of it or raise OSError."""
        ...

    def recv_into(self, buffer: memoryview) -> int:
        """Read some bytes; 0 at the end of the stream; raises TimeoutError after the timeout."""
        ...

    @property
    def is_hung_up(self) -> bool:
        """True once the other end is gone; never waits."""
        ...

    def settimeout(self, value: float | None) -> None:
        """Seconds for each following call; None waits for ever."""
        ...

    def half_close(self) -> None:
        """Say that nothing more will be sent; the guard in the sandbox takes it as the order to end."""
        ...

    def close(self) -> None:
        """Release it. Idempotent."""
        ...
