"""``contract: http``: a container of any image that listens on $PORT; each call is one POST to it.

Such a sandbox is two containers that share one network with nothing in it but loopback: the user's, and a *helper*, an
ordinary Python sandbox of ours (``shim/http/adapter.py``) that sends the requests and checks the answers. So there is
no address of the host, of Redis or of another sandbox that the container could reach, and the runner parses nothing
that it sent; the pool's egress works as in any sandbox. The helper is the stem: the user's container is created when
the sandbox is bound, because its environment is then known.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from bananas.errors import SandboxDied, SandboxStartError
from bananas.protocols import Binding, CallReply, ExitInfo, HandlerLoadError, Invocation, SandboxProfile
from bananas.settings import LIMITS
from runner.helpers import Helpers, SecretVolume
from runner.own_container import OwnContainer, Workshop
from runner.sandbox import DockerSandbox
from runner.streams import CappedLog

DEFAULT_PORT = "8080"
#: Output travels through the engine: a call's last lines come after its answer, a little.
QUIET_S, SETTLE_S = 0.02, 0.5
#: From a broken connection to the engine's word that the container has ended.
END_S = 2.0

OnLog = Callable[[bytes], None]


class HttpSandbox:
    """See ``bananas.protocols.Sandbox``."""

    def __init__(self, profile: SandboxProfile, helper: DockerSandbox, helpers: Helpers, workshop: Workshop) -> None:
        self.id = helper.id
        self.profile = profile
        self._helper = helper
        self._helpers = helpers
        self._workshop = workshop
        self._own: OwnContainer | None = None
        self._secrets: SecretVolume | None = None
        self._exit: ExitInfo | None = None

    def bind(self, binding: Binding, timeout_s: float, on_log: OnLog) -> float:
        """Start the user's container and wait until it listens, for which the time runs; returns the ms of both."""
        began = time.monotonic()
        port = binding.env.get("PORT", DEFAULT_PORT)
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise HandlerLoadError({"type": "ConfigError", "message": f"PORT={port!r} is not a port; write 1 to 65535"})
        secrets = self._secrets = self._helpers.secrets(self.id, self.profile, binding)
        own = self._own = self._workshop.create(
            *(self.id, self.profile, binding, {"PORT": port}),
            network=f"container:{self._helper.container_id}",
            secrets_volume=secrets.name if secrets is not None else None,
        )
        own.listen(CappedLog(on_log, LIMITS.log_bytes))
        own.streams.on_end = self._helper.interrupt
        own.start()
        started = time.monotonic()
        if secrets is not None:
            secrets.let_go()
        adapted = dataclasses.replace(
            binding,
            handler="adapter.handle",
            code=self._helpers.adapter,
            deps=None,
            env={"PORT": port, "BANANAS_RESULT_BYTES": str(LIMITS.result_bytes)},
            secrets={},
        )
        try:
            self._helper.bind(adapted, timeout_s - (time.monotonic() - started), lambda _: None)
        except SandboxDied as e:
            if not own.streams.ended.is_set():
                raise
            info = own.exit_info(END_S)
            if info.oom:
                raise
            if info == ExitInfo():
                # Its output broke off and its end is unknown: that is the engine's affair, not the function's.
                raise SandboxStartError(
                    f"the engine lost a container of image {self.profile.image} before it listened on port {port}"
                ) from e
            message = f"the container of image {self.profile.image} {info.describe()} before it listened on port {port}"
            raise HandlerLoadError({"type": "ContainerEnded", "message": message}) from e
        finally:
            own.streams.on_end = None
        own.listen(None)
        return (time.monotonic() - began) * 1000

    def invoke(self, call: Invocation, on_log: OnLog, on_progress: OnLog) -> CallReply:
        """One request; the deadline runs from its beginning."""
        own = self._own
        if own is None or self._exit is not None:
            raise SandboxDied(f"sandbox {self.id} has ended or was not bound")
        output = CappedLog(on_log, LIMITS.log_bytes)
        own.listen(output)
        # What the helper prints is of its egress forwarder.
        reply = self._helper.invoke(call, lambda data: output(0, data), on_progress)
        if reply.error is not None:
            if reply.error["type"] == "NoHttpAnswer" and own.streams.ended.wait(END_S):
                raise SandboxDied(own.exit_info(END_S).describe())
            reply.error.pop("traceback", None)  # the helper's own
        own.streams.settle(QUIET_S, SETTLE_S)
        own.listen(None)
        return reply

    @property
    def is_alive(self) -> bool:
        """False once either container is known to have ended."""
        return self._helper.is_alive and (self._own is None or not self._own.streams.ended.is_set())

    def interrupt(self) -> None:
        """End both from another greenlet."""
        self._helper.interrupt()
        if self._own is not None:
            self._own.kill_soon()

    def terminate(self, on_log: OnLog | None = None) -> ExitInfo:
        """Remove both; how the user's container ended, if it did by itself."""
        if self._exit is not None:
            return self._exit
        self._exit = ExitInfo()
        if self._own is not None:
            self._exit = self._own.end()
        if self._secrets is not None:
            self._secrets.close()
        helped = self._helper.terminate(on_log)
        if self._own is None:
            self._exit = helped
        return self._exit


class HttpFactory:
    """Makes stems: helpers, each with a network that a user's container is going to share."""

    def __init__(self, workshop: Workshop, helpers: Helpers) -> None:
        self._workshop = workshop
        self._helpers = helpers

    def create(self, profile: SandboxProfile) -> HttpSandbox:
        """A connected stem."""
        return HttpSandbox(profile, self._helpers.create(profile), self._helpers, self._workshop)
