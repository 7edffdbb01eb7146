"""``bananas up`` and ``dev``: what they start, refuse, repair, and that they leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import redis

from bananas.client import Client
from bananas.errors import ConfigError
from bananas.own_redis import OwnRedis
from bananas.ports import check_port, free_port
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.spec import RuntimeInfo
from bananas.stack import Stack
from bananas.supervise import Supervisor
from tests.platform import Process, until

DEADLINE_S = 30.0
READY = "Ctrl-C stops everything"
MANIFEST = """\
version: 1
functions:
  hello: {path: hello}
"""
HANDLER = "def handle(event, context):\n    return {'message': 'Hello, ' + event['name']}\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short temporary folder: sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="bn-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def app(folder: Path) -> Path:
    """The manifest of a small app."""
    (folder / "hello").mkdir()
    (folder / "hello/handler.py").write_text(HANDLER)
    path = folder / "bananas.yaml"
    path.write_text(MANIFEST)
    return path


class Bananas(Process):
    """``bananas up`` or ``dev`` as a process of its own."""

    def __init__(self, mode: str, app: Path, image: RuntimeInfo, engine: docker.DockerClient, **env: str) -> None:
        self._engine = engine
        self.app = app
        self.instance = ""
        self.port = free_port()
        self.state = app.parent / "state"
        settings = {
            "BANANAS_PORT": str(self.port),
            "BANANAS_STATE_DIR": str(self.state),
            "BANANAS_GATEWAY_WORKERS": "1",
            "BANANAS_REDIS_PORT": "0",
            "BANANAS_PYTHON_IMAGE": image.image,
            "SMTP_PORT": str(free_port()),
        }
        command = [sys.executable, "-m", "bananas", mode, "-f", str(app)]
        super().__init__(mode, command, settings | env, app.parent, READY)
        self.client = Client(f"http://127.0.0.1:{self.port}", patience_s=0)
        connections = Connections(env.get("BANANAS_REDIS_URL", f"unix://{self.state}/redis/redis.sock"))
        self.instance = Registry(connections).instance()
        connections.close()

    def hello(self) -> dict[str, str]:
        return json.loads(self.client.invoke("hello", {"name": "Ada"}, timeout_s=DEADLINE_S))

    def processes(self) -> list[int]:
        """Every process below it, in no order."""
        found, todo = [], [self.popen.pid]
        while todo:
            for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
                found += (children := [int(pid) for pid in task.read_text().split()])
                todo += children
        return found

    def containers(self) -> list[str]:
        """The sandboxes of this installation, dead ones too."""
        label = f"bananas.instance={self.instance}"
        return [c["Id"] for c in self._engine.api.containers(all=True, filters={"label": label})]

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, unless it has ended; returns the exit code. Its containers are gone then."""
        code = super().stop(timeout_s)
        left = self.containers()
        for container in left:
            self._engine.api.remove_container(container, force=True)
        assert left == [], self.text
        return code


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_dev_deploys_answers_and_leaves_nothing_behind(
    app: Path, base_image: RuntimeInfo, engine: docker.DockerClient
) -> None:
    """From one command to an answered call; Ctrl-C ends every process and container, Redis last, with exit code 0."""
    dev = Bananas("dev", app, base_image, engine)
    try:
        assert dev.hello() == {"message": "Hello, Ada"}
        assert f"gateway  http://localhost:{dev.port}" in dev.text
        assert f"curl -X POST http://localhost:{dev.port}/functions/hello/invoke" in dev.text
        pids = dev.processes()
        assert len(dev.client.runners()) == 3
        assert len(pids) >= 7, "redis, mail sink, gateway master and worker, three runners"
        assert dev.containers()
        dev.popen.send_signal(signal.SIGINT)
        assert dev.popen.wait(DEADLINE_S) == 0, dev.text
    finally:
        dev.stop()
    stops = [line.split()[-1] for line in dev.text.splitlines() if "bananas | stopping" in line]
    assert stops == ["runner3", "runner2", "runner1", "gateway", "mail", "redis"]
    assert [pid for pid in pids if is_running(pid)] == []


def test_jobs_survive_a_restart(app: Path, base_image: RuntimeInfo, engine: docker.DockerClient) -> None:
    """What was deployed and queued is there again after a stop and a start with the same data."""
    first = Bananas("dev", app, base_image, engine)
    try:
        job = first.client.submit("hello", {"name": "Ada"}, delay="1s")["id"]
    finally:
        assert first.stop() == 0
    second = Bananas("up", app, base_image, engine)
    try:
        record = second.client.job(job, wait_s=DEADLINE_S)
        assert (record["status"], record["result"]) == ("completed", {"message": "Hello, Ada"})
    finally:
        assert second.stop() == 0


def test_a_wrong_manifest_is_told_and_dev_keeps_running(
    app: Path, base_image: RuntimeInfo, engine: docker.DockerClient
) -> None:
    """A mistake in bananas.yaml costs a message with its place, not the session."""
    app.write_text("version: 1\nfunctions:\n  hello: {path: hello, timeot: 3s}\n")
    dev = Bananas("dev", app, base_image, engine)
    try:
        assert "bananas.yaml:3:" in dev.text
        assert "timeout" in dev.text
        assert "what was live before still is" in dev.text
        assert dev.client.functions() == []
        app.write_text(MANIFEST)
        again = Process(
            "again",
            [sys.executable, "-m", "bananas", "deploy", "-f", str(app)],
            {"BANANAS_URL": f"http://127.0.0.1:{dev.port}"},
            app.parent,
            "hello",
        )
        assert again.popen.wait(DEADLINE_S) == 0
        assert dev.hello() == {"message": "Hello, Ada"}
    finally:
        assert dev.stop() == 0


def test_a_killed_runner_is_replaced(app: Path, base_image: RuntimeInfo, engine: docker.DockerClient) -> None:
    """A crash of the runner is repaired; its sandboxes go, and calls are answered again."""
    up = Bananas("up", app, base_image, engine, BANANAS_LEASE_S="2")
    try:
        assert up.hello() == {"message": "Hello, Ada"}
        (runner,) = up.client.runners()
        before = up.containers()
        os.kill(runner["pid"], signal.SIGKILL)
        until(lambda: "runner runs again" in up.text, DEADLINE_S, "the runner to run again")
        assert "runner ended with signal SIGKILL; starting it again in 0.5 s" in up.text
        assert up.hello() == {"message": "Hello, Ada"}
        until(lambda: not set(before) & set(up.containers()), DEADLINE_S, "the dead runner's sandboxes to go")
    finally:
        assert up.stop() == 0


def test_nothing_survives_a_killed_dev(app: Path, base_image: RuntimeInfo, engine: docker.DockerClient) -> None:
    """Even SIGKILL of the supervisor, which it cannot see coming, ends every process and container."""
    dev = Bananas("dev", app, base_image, engine)
    try:
        assert dev.hello() == {"message": "Hello, Ada"}
        pids = dev.processes()
        assert dev.containers()
    finally:
        dev.kill9()
    until(lambda: not any(is_running(pid) for pid in pids), 60.0, "every process to end")
    until(lambda: not dev.containers(), DEADLINE_S, "every container to end")


def test_a_redis_of_somebody_else_is_used_and_left_alone(
    app: Path, base_image: RuntimeInfo, engine: docker.DockerClient, redis_url: str
) -> None:
    """With BANANAS_REDIS_URL no server is started, and that one is never stopped."""
    up = Bananas("up", app, base_image, engine, BANANAS_REDIS_URL=redis_url)
    try:
        assert up.hello() == {"message": "Hello, Ada"}
        assert not (up.state / "redis").exists()
    finally:
        assert up.stop() == 0
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        assert client.ping()


def test_a_taken_port_is_named_with_a_free_one(folder: Path) -> None:
    """The message says which port, and how to choose another one that works."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 .*BANANAS_PORT=(\d+)") as caught:
            Stack("up", None, {"BANANAS_PORT": str(port), "BANANAS_STATE_DIR": str(folder)}, print).run()
    check_port("127.0.0.1", int(str(caught.value).rpartition("=")[2]))


def test_a_state_directory_has_one_owner(folder: Path) -> None:
    """A second stack over the same data is refused, naming the process that has it."""
    environ = {"BANANAS_STATE_DIR": str(folder), "BANANAS_PORT": str(free_port())}
    first = Stack("up", None, environ, lambda line: None)
    redis_part = next(unit.part for unit in first.supervisor._units if unit.part.name == "redis")
    thread = threading.Thread(target=first.run)
    thread.start()
    try:
        until(lambda: redis_part.pid, DEADLINE_S, "the first stack to start")
        with pytest.raises(ConfigError, match=rf"in use by process {os.getpid()}.*BANANAS_STATE_DIR"):
            Stack("up", None, environ, lambda line: None).run()
    finally:
        first.stop()
        first.stop()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert redis_part.pid is None


def test_a_taken_mail_port_is_replaced_by_a_free_one(folder: Path) -> None:
    """Two dev stacks side by side each have a mail sink, and functions are told the right port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stack = Stack("dev", None, {"SMTP_PORT": str(port), "BANANAS_STATE_DIR": str(folder)}, print)
    try:
        assert stack._env["SMTP_HOST"] == "127.0.0.1"
        assert stack._env["SMTP_PORT"] != str(port)
        check_port("127.0.0.1", int(stack._env["SMTP_PORT"]))
    finally:
        stack.supervisor.close()


def test_our_redis_is_started_again_with_its_data(folder: Path) -> None:
    """A Redis that crashes comes back with what was written to it."""
    lines: list[str] = []
    supervisor = Supervisor(lines.append)
    part = OwnRedis(folder / "redis")
    supervisor.add(part)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        assert supervisor.ready.wait(DEADLINE_S)
        with redis.Redis.from_url(part.server.url, socket_timeout=5) as client:
            client.set("kept", "yes")
            client.execute_command("WAITAOF", 1, 0, 5000)  # on disk
        first = part.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: "redis runs again" in "\n".join(lines), DEADLINE_S, "redis to run again")
        assert part.pid not in (None, first)
        with redis.Redis.from_url(part.server.url, socket_timeout=5) as client:
            assert client.get("kept") == b"yes"
    finally:
        supervisor.stop()
        thread.join(DEADLINE_S)
    assert part.pid is None


def test_a_long_state_path_moves_redis_to_a_port(folder: Path) -> None:
    """A socket's path has 107 bytes; a checkout that lies deeper still works."""
    part = OwnRedis(folder / ("x" * 120) / "redis")
    assert part.server.url.startswith("redis://127.0.0.1:")
