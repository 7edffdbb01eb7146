"""``contract: exec``: a process for each job, in a container of its own from any image.

The payload is its standard input, what it writes to standard output is the result (JSON, or nothing for null), standard
error is the log. Status 0 is success. What ends on a signal has crashed. Nothing that a call leaves behind is there in
the next one: the container goes with its process. The first container is created when the sandbox is bound, each other
one when it is called for. In a pool with egress each shares the network of a helper, which is the stem; the secrets of
a function are in a volume that another helper holds between the calls.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from bananas.errors import SandboxDied
from bananas.protocols import Binding, CallReply, ExitInfo, Invocation, SandboxProfile
from bananas.settings import LIMITS
from runner.helpers import Helpers, SecretVolume
from runner.own_container import OwnContainer, Workshop
from runner.sandbox import DockerSandbox
from runner.streams import STDOUT, CappedLog

#: Of standard error that is shown in the message of an error.
TAIL_BYTES = 1000
#: From the end of the output to the engine's word on the status.
END_S = 5.0

OnLog = Callable[[bytes], None]


class _Output:
    """Listens to one process: standard output is kept up to the limit of a result, the rest is the log."""

    def __init__(self, on_log: OnLog) -> None:
        self._log = CappedLog(on_log, LIMITS.log_bytes)
        self.result = bytearray()
        self.result_bytes = 0
        self.tail = b""

    def __call__(self, stream: int, data: bytes) -> None:
        if stream == STDOUT:
            self.result_bytes += len(data)
            self.result += data[: LIMITS.result_bytes + 2 - len(self.result)]  # a line end does not count
        else:
            self.tail = (self.tail + data)[-TAIL_BYTES:]
            self._log(stream, data)


class ExecSandbox:
    """See ``bananas.protocols.Sandbox``."""

    def __init__(
        self, profile: SandboxProfile, workshop: Workshop, helpers: Helpers, network: DockerSandbox | None
    ) -> None:
        """``network`` is the helper whose network the processes share, None where they have none."""
        self.id = os.urandom(5).hex()
        self.profile = profile
        self._workshop = workshop
        self._helpers = helpers
        self._network = network
        self._secrets: SecretVolume | None = None
        self._numbers = itertools.count(1)
        self._binding: Binding | None = None
        self._own: OwnContainer | None = None
        self._exit: ExitInfo | None = None
        self._is_interrupted = False

    def bind(self, binding: Binding, timeout_s: float, on_log: OnLog) -> float:  # noqa: ARG002 - nothing runs yet
        """Create the first container; returns the ms it took."""
        began = time.monotonic()
        self._binding = binding
        if self._network is not None:
            self._helpers.hold(self._network, dataclasses.replace(binding, secrets={}))
        self._secrets = self._helpers.secrets(self.id, self.profile, binding)
        self._own = self._create(binding)
        return (time.monotonic() - began) * 1000

    def invoke(self, call: Invocation, on_log: OnLog, on_progress: OnLog) -> CallReply:  # noqa: ARG002
        """Run one process; the deadline runs from its start."""
        if self._binding is None or not self.is_alive:
            raise SandboxDied(f"sandbox {self.id} has ended or was not bound")
        own = self._own = self._own or self._create(self._binding)
        output = _Output(on_log)
        own.listen(output)
        own.start()
        began = time.monotonic()
        threading.Thread(target=_feed, args=(own, call.payload), name="container-input", daemon=True).start()
        egress = (
            self._network.during(call.job_id, on_log, hears_all=True) if self._network is not None else nullcontext()
        )
        with egress:
            if not own.streams.ended.wait(call.timeout_s):
                raise TimeoutError(f"the process still ran after {call.timeout_s:g} s")
        if self._is_interrupted:
            raise SandboxDied("ended by its runner")
        info = own.exit_info(END_S)
        run_ms = (time.monotonic() - began) * 1000
        if info.status is None or info.oom:
            raise SandboxDied(info.describe())
        own.end()
        self._own = None
        result, error = _judge(self._binding.function, info.status, output)
        return CallReply(result, error, run_ms=run_ms)

    def _create(self, binding: Binding) -> OwnContainer:
        name = f"{self.id}-{next(self._numbers)}"
        if self._network is not None:
            network = f"container:{self._network.container_id}"
        else:
            network = self._workshop.access.network(self.profile)
        volume = self._secrets.name if self._secrets is not None else None
        return self._workshop.create(
            name, self.profile, binding, {}, network=network, stdin=True, secrets_volume=volume
        )

    @property
    def is_alive(self) -> bool:
        """Until it is ended, or a helper of it has; between calls nothing else of it runs."""
        helpers = (self._network, self._secrets.helper if self._secrets is not None else None)
        return self._exit is None and not self._is_interrupted and all(h is None or h.is_alive for h in helpers)

    def interrupt(self) -> None:
        """End it from another greenlet."""
        self._is_interrupted = True
        if self._own is not None:
            self._own.kill_soon()

    def terminate(self, on_log: OnLog | None = None) -> ExitInfo:  # noqa: ARG002 - the call's listener gets the rest
        """Remove the container; how its process ended, if it did by itself."""
        if self._exit is None:
            self._exit = ExitInfo()
            if self._own is not None:
                self._exit = self._own.end()
            if self._secrets is not None:
                self._secrets.close()
            if self._network is not None:
                self._network.terminate()
        return self._exit


class ExecFactory:
    """Makes what is to be bound; no container of the user's before its environment is known."""

    def __init__(self, workshop: Workshop, helpers: Helpers) -> None:
        self._workshop = workshop
        self._helpers = helpers

    def create(self, profile: SandboxProfile) -> ExecSandbox:
        """At once, or with a helper where the pool has egress. Raises what creating that raises."""
        network = self._helpers.create(profile) if profile.egress else None
        return ExecSandbox(profile, self._workshop, self._helpers, network)


def _feed(own: OwnContainer, payload: bytes) -> None:
    try:
        own.streams.send(payload)
    except OSError:
        return  # it ended without reading all of it, which is its right


def _judge(function: str, status: int, output: _Output) -> tuple[bytes | None, dict[str, Any] | None]:
    """The result or the error of a process that has ended by itself."""
    if status:
        tail = output.tail.decode("utf-8", "replace").strip()
        return None, {"type": "ExitStatus", "message": f"exited with status {status}" + (f": {tail}" if tail else "")}
    body = bytes(output.result).strip() or b"null"
    if len(body) > LIMITS.result_bytes or output.result_bytes > LIMITS.result_bytes + 2:
        message = f"{function} wrote {output.result_bytes} bytes to standard output, the limit is {LIMITS.result_bytes}"
        return None, {"type": "ResultTooLarge", "message": f"{message}; store large results elsewhere"}
    try:
        json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        message = f"{function} wrote something to standard output that is not JSON: {e}; write logs to standard error"
        return None, {"type": "ResultNotJson", "message": message}
    return body, None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
