"""The ``stdio`` transport: sandboxes of engines that share neither sockets nor files with the runner.

Docker Desktop and engines on other machines are such. The shim, the code and the frames go over the attach stream of
the container to a bridge inside (``shim/stdio/bridge.py``), which unpacks the files into memory and moves the frames.
It is the same shim, and the same ``DockerSandbox`` speaks with it. Only for Python, and without egress.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path

from bananas import events
from bananas.errors import EngineUnavailable, SandboxDied, SandboxStartError
from bananas.protocols import Binding, SandboxProfile
from runner import docker_driver
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.gpus import Lease
from runner.sandbox import CONNECT_TIMEOUT_S, PROTOCOL, DockerSandbox
from runner.shims import Kit
from runner.streams import STDOUT
from runner.transport import is_hung_up

_BRIDGE = Path(__file__).parent / "shim" / "stdio" / "bridge.py"
#: For a bundle of 50 MiB on a slow line.
SEND_TIMEOUT_S = 60.0
_HEAD = struct.Struct(">BxxxI")
_SCRATCH_BYTES = 64 * 1024


class StdioChannel:
    """See ``bananas.protocols.Channel``: an attach stream, of whose two outputs only the first one counts."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout_s: float | None = None
        self._head = bytearray()
        #: Of the piece that is being read.
        self._stream = 0
        self._left = 0

    def sendall(self, data: bytes) -> None:
        """Send all of it or raise OSError."""
        self._sock.settimeout(self._timeout_s)
        self._sock.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        """Read some bytes; 0 at the end of the stream; raises TimeoutError after the timeout."""
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            self._sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            if self._left == 0:
                data = self._sock.recv(_HEAD.size - len(self._head))
                self._head += data
                if len(self._head) == _HEAD.size:
                    self._stream, self._left = _HEAD.unpack(self._head)
                    self._head.clear()
            elif self._stream == STDOUT:
                count = self._sock.recv_into(buffer[: min(self._left, len(buffer))])
                self._left -= count
                return count
            else:
                data = self._sock.recv(min(self._left, _SCRATCH_BYTES))
                self._left -= len(data)
                events.BRIDGE_WROTE(data=data[:1000])
            if not data:
                return 0
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError

    @property
    def is_hung_up(self) -> bool:
        """True once the engine has closed the stream; never waits."""
        return is_hung_up(self._sock)

    def settimeout(self, value: float | None) -> None:
        """Seconds for each following call; None waits for ever."""
        self._timeout_s = value

    def half_close(self) -> None:
        """The engine closes the container's standard input then, which the bridge passes on."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Release it. Idempotent."""
        self._sock.close()


class StdioSandbox(DockerSandbox):
    """A sandbox whose code is sent instead of linked."""

    def _put_code(self, binding: Binding) -> None:
        archives = [self._bundles.archive(binding.code)]
        archives.append(self._bundles.archive(binding.deps) if binding.deps else b"")
        self._channel.settimeout(SEND_TIMEOUT_S)
        for archive in archives:
            self._channel.sendall(section(archive))


class StdioSandboxFactory:
    """See ``bananas.protocols.SandboxFactory``."""

    def __init__(
        self,
        engine: Engine,
        bundles: BundleCache,
        directory: Path,
        labels: dict[str, str],
        access: Access | None = None,
    ) -> None:
        """``directory`` is for the runner's own files; the engine need not see it."""
        self._engine = engine
        self._bundles = bundles
        self._directory = directory
        self._labels = labels
        self._access = access or Access()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kit = Kit(directory / "kit").archive("python")
        self._bridge = _BRIDGE.read_text("utf-8")

    def create(self, profile: SandboxProfile) -> DockerSandbox:
        """A connected stem. Whatever fails, nothing is left behind."""
        if profile.shim != "python" or profile.egress:
            raise SandboxStartError(
                f"pool {profile.pool!r}: over transport stdio there is only Python, and no egress; "
                "use an engine on the runner's own kernel (BANANAS_TRANSPORT=socket)"
            )
        sandbox_id = os.urandom(5).hex()
        container_id: str | None = None
        channel: StdioChannel | None = None
        lease: Lease | None = None
        try:
            lease = self._access.lease(profile)
            container_id = self._engine.create_bare(
                profile,
                ["python3", "-I", "-B", "-u", "-c", self._bridge],
                {**self._labels, docker_driver.LABEL_POOL: profile.pool},
                network=self._access.network(profile),
                gpus=lease.devices if lease is not None else (),
            )
            channel = StdioChannel(self._engine.attach(container_id, stdin=True))
            self._engine.start(container_id, profile.pool)
            self._boot(channel)
        except BaseException as e:
            self._discard(container_id, channel, lease)
            if isinstance(e, OSError | SandboxDied):
                raise SandboxStartError(f"a sandbox of image {profile.image} did not start over stdio: {e}") from e
            raise
        directory = self._directory / sandbox_id
        return StdioSandbox(
            sandbox_id, profile, directory, container_id, channel, self._engine, self._bundles, None, lease
        )

    def _boot(self, channel: StdioChannel) -> None:
        """Send the shim; wait for its connection. Raises OSError or SandboxDied."""
        boot = json.dumps({"protocol": PROTOCOL, "egress": [], "bridge": True}).encode()
        channel.settimeout(CONNECT_TIMEOUT_S)
        channel.sendall(section(self._kit) + section(boot))
        if channel.recv_into(memoryview(bytearray(1))) != 1:
            raise SandboxDied("its bridge ended; has the image python3?")

    def _discard(self, container_id: str | None, channel: StdioChannel | None, lease: Lease | None) -> None:
        if container_id is not None:
            try:
                self._engine.remove(container_id)
            except EngineUnavailable as e:
                events.SANDBOX_LEFT(error=e)
        for part in (channel, lease):
            if part is not None:
                part.close()


def section(data: bytes) -> bytes:
    """What the bridge reads as one section."""
    return struct.pack(">Q", len(data)) + data
