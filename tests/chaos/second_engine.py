"""A Docker Engine of a test's own, which it may stop, hold and fill up: the machine's own engine is other people's too.

It has its own socket, data and containerd, no bridge and no firewall rules, and lives in memory: a tmpfs of ``SIZE_MB``
that a test can fill. It has a network namespace of its own too, since an engine that is told to have no bridge removes
``docker0``, whosever that is. Needs root, ``dockerd``, ``runc`` and ``unshare``; without one its tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import docker
import pytest

SIZE_MB = 600
START_S = 30.0
STOP_S = 30.0
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class SecondEngine:
    """See the module; ``with`` starts it and takes everything away afterwards."""

    def __init__(self) -> None:
        programs = [shutil.which(name, path=PATH) for name in ("unshare", "dockerd", "runc")]
        if None in programs or os.geteuid() != 0:
            pytest.skip("a second engine needs root, dockerd, runc and unshare")
        unshare, dockerd, self._runc = map(str, programs)
        # Short: a socket's path has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="bn-e-"))
        self.data = self.folder / "data"
        self.url = f"unix://{self.folder}/e.sock"
        self._log = self.folder / "dockerd.log"
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self._settings()), "ascii")
        # unshare becomes dockerd, so its pid is dockerd's.
        self._command = [unshare, "--net", "--", dockerd, "--config-file", str(config)]
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.data.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "bananas-test", str(self.data)]
        done = subprocess.run(mount, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            pytest.skip(f"a second engine needs a tmpfs of its own: {done.stderr.strip()}")
        try:
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        print(f"--- dockerd\n{self._log.read_text('utf-8', 'replace')[-1500:]}")
        self._clean_up()

    def start(self) -> None:
        """Start it, on what it left; returns when it answers."""
        # After kill9 it names a process that is gone, but not yet reaped.
        (self.folder / "x/containerd/containerd.pid").unlink(missing_ok=True)
        env = {**os.environ, "PATH": PATH}
        env.pop("DOCKER_HOST", None)
        with self._log.open("ab") as log:
            begin = log.tell()
            self._popen = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + START_S
        while b"API listen on" not in (said := self._log.read_bytes()[begin:]):
            text = said.decode("utf-8", "replace")[-3000:]
            assert self._popen.poll() is None, f"dockerd ended with {self._popen.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"dockerd does not listen after {START_S:g} s:\n{text}"
            time.sleep(0.02)

    def _settings(self) -> dict[str, object]:
        return {
            "hosts": [self.url],
            "data-root": str(self.data / "d"),
            "exec-root": str(self.folder / "x"),
            "pidfile": str(self.folder / "e.pid"),
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "live-restore": False,
            "shutdown-timeout": 2,
            # Another runtime by name; what is behind it does not matter to who asks for it.
            "runtimes": {"runsc": {"path": self._runc}},
        }

    def stop(self) -> None:
        """SIGTERM, as a service manager would: every container ends with it."""
        assert self._popen is not None
        self._popen.terminate()
        self._popen.wait(STOP_S)

    def kill9(self) -> None:
        """It dies without a word; its containers live on until it starts again."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait(STOP_S)

    def hold(self) -> None:
        """It takes connections and answers nothing, like an engine whose disk hangs."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After ``hold``."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGCONT)

    def fill(self) -> Path:
        """Leave no byte free where its data is; removing the file that is returned ends that."""
        path = self.data / "ballast"
        with path.open("wb") as file:
            free = os.statvfs(self.data)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        return path

    def client(self, timeout_s: int = 60) -> docker.DockerClient:
        """A client of it; to be closed."""
        return _Client(base_url=self.url, timeout=timeout_s, version="auto")

    def _clean_up(self) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self.go_on()
            self.stop()
        for pid in self._left():  # of an engine that did not end well
            os.kill(pid, signal.SIGKILL)
        mounts = [line.split(" ")[1] for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
        for path in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "-l", path], timeout=10, check=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[int]:
        """Processes that name this engine's folder: its containerd, and one for each container."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"containerd" in words[0] and any(f"{self.folder}/".encode() in word for word in words):
                    found.append(int(path.parent.name))
        return found


class _Client(docker.DockerClient):
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
