"""``bananas invoke --local``: a real sandbox without Redis and gateway, with a runner's limits and failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bananas.spec import RuntimeInfo
from tests.tools import wheels

HANDLER = """
import os, sys, time
def handle(event, context):
    what = event.get("do")
    if what == "sleep":
        print("sleeping", flush=True)
        time.sleep(60)
    if what == "memory":
        return len(bytearray(400_000_000))
    if what == "exit":
        os._exit(3)
    if what == "fail":
        raise ValueError("boom")
    print("printed", os.environ["GREETING"])
    return {"event": event, "uid": os.getuid(), "attempt": context.attempt}
"""
MANIFEST = """
version: 1
pools:
  default: {memory: 128M}
functions:
  hello: {path: f, timeout: 2s, env: {GREETING: "${GREETING:-hi}"}}
  slow: {path: f, timeout: 60s, env: {GREETING: hi}}
  sealed: {path: f, secrets: [KEY]}
"""


class App:
    """A folder with an app, and a state directory of its own."""

    def __init__(self, folder: Path, image: RuntimeInfo) -> None:
        self.folder = folder
        (folder / "f").mkdir()
        (folder / "f/handler.py").write_text(HANDLER)
        (folder / "bananas.yaml").write_text(MANIFEST)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("BANANAS_")}
        # Nothing listens there: a local call asks no gateway.
        self.env = plain | {"BANANAS_STATE_DIR": str(folder / "s"), "BANANAS_URL": "http://127.0.0.1:1"}
        self.env["BANANAS_PYTHON_IMAGE"] = image.image

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "bananas", "invoke", *args, "--local"]

    def call(self, *args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            cwd=self.folder,
            env=self.env | env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture(scope="module")
def app(base_image: RuntimeInfo) -> Iterator[App]:
    """Below a short path: sockets live there."""
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    yield App(folder, base_image)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_result_is_on_stdout_and_the_output_on_stderr(app: App) -> None:
    """From an argument and from stdin; the sandbox is the usual one."""
    done = app.call("hello", '{"n": 1}', GREETING="good day")
    assert (done.returncode, done.stderr) == (0, "printed good day\n")
    assert json.loads(done.stdout) == {"event": {"n": 1}, "uid": 65534, "attempt": 1}
    done = app.call("hello", "-", "-f", str(app.folder / "bananas.yaml"), stdin='{"n": 2}')
    assert json.loads(done.stdout)["event"] == {"n": 2}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("fail", "ValueError: boom"),
        ("sleep", "error: Timeout: it took longer than its timeout (2000 ms"),
        ("memory", "error: OutOfMemory: it used more memory than its limit of 128 MiB (pool 'default')"),
        ("exit", "error: Crashed: its process exited with status 3 before it answered"),
    ],
)
def test_a_failure_of_the_function_is_exit_code_4(app: App, what: str, says: str) -> None:
    """Told as the record of a job would tell it."""
    done = app.call("hello", json.dumps({"do": what}))
    assert (done.returncode, done.stdout) == (4, "")
    assert says in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("helo",), 1, "has no function 'helo'; it has hello, slow, sealed"),
        (("sealed",), 1, "function 'sealed' uses secrets, which a local call does not offer; run `bananas dev`"),
        (("hello", "-f", "nowhere.yaml"), 1, "nowhere.yaml"),
        (("hello", "--async"), 2, "--local is without a queue"),
    ],
)
def test_what_cannot_be_called_here_is_refused(app: App, args: tuple[str, ...], code: int, says: str) -> None:
    """Before a sandbox is made, with the next step."""
    done = app.call(*args)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_call_leaves_nothing_behind(
    app: App, engine: docker.DockerClient, number: signal.Signals
) -> None:
    """No container and no directory; the exit code says which signal it was."""
    process = subprocess.Popen(
        app.command("slow", '{"do": "sleep"}'),
        cwd=app.folder,
        env=app.env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == b"sleeping\n"
        [box] = [entry.name for entry in (app.folder / "s/local").glob("*/") if entry.name != "bundles"]
        began_s = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert time.monotonic() - began_s < 10
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert [entry.name for entry in (app.folder / "s/local").iterdir()] == ["bundles"]
    assert engine.containers.list(all=True, filters={"label": f"bananas.runner={box}"}) == []


def test_what_a_killed_call_left_goes_with_the_next(app: App, engine: docker.DockerClient) -> None:
    """Even SIGKILL leaves a container for as long as nobody calls again."""
    process = subprocess.Popen(
        app.command("slow", '{"do": "sleep"}'),
        cwd=app.folder,
        env=app.env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"sleeping\n"
    process.kill()
    process.communicate(timeout=20)
    [box] = [entry.name for entry in (app.folder / "s/local").glob("*/") if entry.name != "bundles"]
    assert app.call("hello").returncode == 0
    assert engine.containers.list(all=True, filters={"label": f"bananas.runner={box}"}) == []
    assert [entry.name for entry in (app.folder / "s/local").iterdir()] == ["bundles"]


def test_packages_and_egress_are_as_under_a_runner(app: App, tmp_path: Path) -> None:
    """A requirement is installed for the image, and the pool's address is reached through the relay."""
    wheels.build(tmp_path, "bn_greeting", body="TEXT = 'from a wheel'\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (app.folder / "g").mkdir()
        (app.folder / "g/requirements.txt").write_text("bn-greeting\n")
        (app.folder / "g/handler.py").write_text(
            "import bn_greeting, socket\n"
            "def handle(event, context):\n"
            f"    with socket.create_connection(('127.0.0.1', {port}), 5) as s:\n"
            "        return [bn_greeting.TEXT, s.recv(5).decode()]\n"
        )
        (app.folder / "out.yaml").write_text(
            f"version: 1\npools:\n  out: {{egress: ['127.0.0.1:{port}']}}\n"
            "functions:\n  go: {path: g, pool: out, requirements: requirements.txt}\n"
        )

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")

        server.settimeout(60)
        thread = threading.Thread(target=answer)
        thread.start()
        done = app.call("go", "-f", "out.yaml", UV_NO_INDEX="1", UV_FIND_LINKS=str(tmp_path))
        thread.join(60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["from a wheel", "hello"]
    assert "go: installing requirements.txt for cp3" in done.stderr
