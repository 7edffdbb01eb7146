"""A sandbox: a hardened container, a directory that it sees read-only, and one connection to the shim in it.

The runner listens, the shim connects: readiness is ``accept()``, there is exactly one connection, and then the listener
is gone. Layout of the directory, at ``/run/bananas`` inside: ``shim/ sdk/ boot.json s e`` from the start, ``code/
deps/`` once bound.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import gevent

from bananas import events
from bananas.errors import ConfigError, EngineUnavailable, SandboxStartError
from bananas.protocols import Binding, CallReply, Channel, ExitInfo, HandlerLoadError, Invocation, SandboxProfile
from bananas.settings import LIMITS
from runner import docker_driver, egress, framing
from runner.access import Access
from runner.answers import checked_json, clean_error
from runner.bundles import BundleCache
from runner.conversation import Conversation, OnLog, OnProgress
from runner.docker_driver import Engine
from runner.gpus import Lease
from runner.relay import Relay
from runner.shims import SHIMS, Kit
from runner.transport import SocketListener

PROTOCOL = 1
_ANSWERS = (framing.RESULT, framing.ERROR)
#: From the engine's start call to the shim's connection.
CONNECT_TIMEOUT_S = 20.0
#: A container that has not connected after this long is looked at: it may have ended.
LOOK_S = 2.0
#: From the order to end until everything in the sandbox is dead and its last words are read.
END_TIMEOUT_S = 2


class DockerSandbox:
    """See ``bananas.protocols.Sandbox``."""

    def __init__(
        self,
        sandbox_id: str,
        profile: SandboxProfile,
        directory: Path,
        container_id: str,
        channel: Channel,
        engine: Engine,
        bundles: BundleCache,
        relay: Relay | None,
        lease: Lease | None,
    ) -> None:
        self.id = sandbox_id
        self.profile = profile
        self._directory = directory
        self._container_id = container_id
        self._channel = channel
        self._talk = Conversation(sandbox_id, channel)
        self._engine = engine
        self._bundles = bundles
        self._relay = relay
        self._lease = lease
        #: Set by the first terminate().
        self._exit: ExitInfo | None = None

    def bind(self, binding: Binding, timeout_s: float, on_log: OnLog) -> float:
        """Link the code in, send ``init``, wait for ``ready``; returns the ms it took."""
        began = time.monotonic()
        try:
            self._put_code(binding)
        except OSError as e:
            raise SandboxStartError(f"the code of {binding.function!r} could not be put in place: {e}") from e
        meta = {
            "protocol": PROTOCOL,
            "function": binding.function,
            "version": binding.version,
            "handler": binding.handler,
            "env": binding.env,
            "deps": binding.deps is not None,
            "log_bytes": LIMITS.log_bytes,
            "result_bytes": LIMITS.result_bytes,
        }
        if binding.calls > 1:
            meta["calls"] = binding.calls
            self._talk.is_shared = True
        if self._relay is not None:
            self._relay.bind(binding.function, binding.egress)
        # Apart from the rest, so that nothing which shows a frame's meta can show them.
        secrets = {name: base64.b64encode(secret.value).decode() for name, secret in binding.secrets.items()}
        init = framing.Frame(framing.INIT, 0, meta, json.dumps(secrets).encode() if secrets else b"")
        frame = self._talk.ask(init, (framing.READY, framing.ERROR), began + timeout_s, on_log)
        if frame.kind == framing.ERROR:
            raise HandlerLoadError(clean_error(frame.meta))
        return (time.monotonic() - began) * 1000

    def _put_code(self, binding: Binding) -> None:
        """Raises OSError."""
        self._bundles.link_into(binding.code, self._directory / "code")
        if binding.deps:
            self._bundles.link_into(binding.deps, self._directory / SHIMS[self.profile.shim].deps)

    def invoke(self, call: Invocation, on_log: OnLog, on_progress: OnProgress) -> CallReply:
        """One call; the deadline runs from the ``invoke`` frame."""
        began = time.monotonic()
        meta = {"job": call.job_id, "attempt": call.attempt, "timeout_ms": round(call.timeout_s * 1000)}
        if call.traceparent is not None:
            meta["traceparent"] = call.traceparent
        ask = framing.Frame(framing.INVOKE, call.call_id, meta, call.payload)
        with self.during(call.job_id, on_log):
            frame = self._talk.ask(ask, _ANSWERS, began + call.timeout_s, on_log, on_progress)
        run_ms = (time.monotonic() - began) * 1000
        reusable = frame.meta.get("reusable", True) is True
        why_not = "" if reusable else str(frame.meta.get("why_not") or "the shim said so")[:200]
        if frame.kind == framing.ERROR:
            return CallReply(None, clean_error(frame.meta), reusable, why_not, run_ms)
        return CallReply(checked_json(frame.body, "result", LIMITS.result_bytes), None, reusable, why_not, run_ms)

    def during(self, job_id: str, on_log: OnLog, *, hears_all: bool = False) -> AbstractContextManager[None]:
        """A call uses the sandbox's egress; its log hears what goes wrong there, see ``Relay.during``."""
        return self._relay.during(job_id, on_log, hears_all=hears_all) if self._relay is not None else nullcontext()

    @property
    def container_id(self) -> str:
        """As the engine knows it."""
        return self._container_id

    @property
    def is_alive(self) -> bool:
        """False once its end of the connection is gone."""
        return self._exit is None and not self._channel.is_hung_up

    def interrupt(self) -> None:
        """Half-close, so that the guard kills it; and have the engine kill it in case the guard is gone."""
        if self._exit is None:
            try:
                self._channel.half_close()
            except OSError as e:
                events.SANDBOX_CLOSED_ALREADY(sandbox=self.id, error=e)
            gevent.spawn(self._kill)

    def _kill(self) -> None:
        try:
            self._engine.remove(self._container_id)
        except EngineUnavailable as e:
            events.SANDBOX_NOT_REMOVED(sandbox=self.id, error=e)

    def terminate(self, on_log: OnLog | None = None) -> ExitInfo:
        """Half-close: the guard in the sandbox kills it at once; read its last words; remove the container."""
        if self._exit is not None:
            return self._exit
        self._exit = self._talk.exit
        self._talk.finish(on_log or (lambda _: None), END_TIMEOUT_S)
        self._exit = self._talk.exit
        self._channel.close()
        if self._exit.status is None and not self._talk.is_ordered and not self._exit.oom:
            # Killed, or no word from inside: then only the engine knows whether memory was the reason.
            exited = self._engine.wait_exit(self._container_id, END_TIMEOUT_S)
            if exited is not None and (exited.oom or self._exit.signal is None):
                self._exit = ExitInfo(exited.status, self._exit.signal, exited.oom)
        # If the engine is away the connection is closed all the same, so nothing runs on in there; the sweep removes
        # the rest when the engine is back.
        self._kill()
        for part in (self._relay, self._lease):
            if part is not None:
                part.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        return self._exit


class DockerSandboxFactory:
    """Creates stems below one directory; see ``bananas.protocols.SandboxFactory``."""

    def __init__(
        self,
        engine: Engine,
        bundles: BundleCache,
        directory: Path,
        labels: dict[str, str],
        access: Access | None = None,
    ) -> None:
        """``directory`` must be short (socket paths have 107 bytes) and known to the engine by the same path."""
        self._engine = engine
        self._access = access or Access()
        self._bundles = bundles
        self._directory = directory
        self._labels = labels
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kit = Kit(directory / "kit")

    def create(self, profile: SandboxProfile, secrets_volume: str | None = None) -> DockerSandbox:
        """A connected stem. Whatever fails, nothing is left behind."""
        sandbox_id = os.urandom(5).hex()
        directory = self._directory / sandbox_id
        listener: SocketListener | None = None
        relay: Relay | None = None
        lease: Lease | None = None
        container_id = None
        try:
            directory.mkdir(mode=0o755)
            directory.chmod(0o755)
            routes = egress.plan(profile.egress)
            self._kit.link_into(profile.shim, directory)
            boot = {
                "protocol": PROTOCOL,
                "egress": [{"name": r.name, "ip": r.ip, "port": r.port} for r in routes],
                "egress_connections": self._access.caps.connections,
            }
            (directory / "boot.json").write_text(json.dumps(boot), "utf-8")
            (directory / "boot.json").chmod(0o444)
            listener = SocketListener(directory / "s")
            relay = self._access.relay(sandbox_id, profile, directory / "e")
            network = self._access.network(profile)
            lease = self._access.lease(profile)
            container_id = self._engine.create(
                profile,
                directory,
                SHIMS[profile.shim].command,
                {**self._labels, docker_driver.LABEL_POOL: profile.pool},
                egress.extra_hosts(routes),
                network=network,
                gpus=lease.devices if lease is not None else (),
                secrets_volume=secrets_volume,
            )
            channel = self._connection(listener, container_id, profile)
        except BaseException as e:
            self._discard(container_id, directory, listener, relay, lease)
            if isinstance(e, TimeoutError):
                raise SandboxStartError(
                    f"a sandbox of image {profile.image} did not connect within {CONNECT_TIMEOUT_S:g} s; does the "
                    f"engine see {self._directory} at the same path as the runner, and is it one with {profile.shim}?"
                ) from e
            if isinstance(e, OSError | ConfigError):  # a full disk, no descriptors, an impossible egress target
                raise SandboxStartError(f"a sandbox of pool {profile.pool!r} could not be prepared: {e}") from e
            raise
        return DockerSandbox(
            sandbox_id, profile, directory, container_id, channel, self._engine, self._bundles, relay, lease
        )

    def _connection(self, listener: SocketListener, container_id: str, profile: SandboxProfile) -> Channel:
        """Raises TimeoutError, or SandboxStartError as soon as the container has ended: it will not connect."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            left_s = deadline - time.monotonic()
            try:
                return listener.accept(max(0.01, min(LOOK_S, left_s)))
            except TimeoutError:
                if left_s <= LOOK_S:
                    raise
            if not self._engine.is_running(container_id):
                raise SandboxStartError(
                    f"a sandbox of pool {profile.pool!r} ended before it connected; was the engine stopped, or is "
                    f"{profile.image} no image with {profile.shim}?"
                )

    def _discard(
        self, container_id: str | None, directory: Path, *parts: SocketListener | Relay | Lease | None
    ) -> None:
        if container_id is not None:
            try:
                self._engine.remove(container_id)
            except EngineUnavailable as e:
                events.SANDBOX_LEFT(error=e)
        for part in parts:
            if part is not None:
                part.close()
        shutil.rmtree(directory, ignore_errors=True)
