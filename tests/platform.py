"""Real gateway and runner processes for tests, started and stopped by their pid, on free ports and a state directory of
their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from bananas import deploy, manifest
from bananas.client import Client
from bananas.ports import free_port
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry

READY_S = 30.0
STOP_S = 30.0
ROOT = Path(__file__).parents[1]


def until(condition: Callable[[], Any], deadline_s: float, what: str) -> Any:
    """The first true value of ``condition``, looked at every 20 ms; fails naming ``what`` at the deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.02)


def load_script(name: str) -> ModuleType:
    """``scripts/<name>.py`` as a module."""
    spec = importlib.util.spec_from_file_location(f"bananas_{name}", ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Process:
    """One child process; its output goes to a file that failures show."""

    def __init__(
        self, name: str, args: list[str], env: dict[str, str], folder: Path, ready: str, root: Path = ROOT
    ) -> None:
        """``root``: the checkout whose code it runs."""
        self.name = name
        self._is_told = False
        self.log = folder / f"{name}.log"
        with self.log.open("w") as file:
            self.popen = subprocess.Popen(
                args,
                env={**os.environ, **env},
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=root,
                stdin=subprocess.DEVNULL,
            )
        until(lambda: self._is_ready(ready), READY_S, f"{name} to say {ready!r}")

    def _is_ready(self, ready: str) -> bool:
        text = self.log.read_text("utf-8", "replace")
        assert self.popen.poll() is None, f"{self.name} ended with {self.popen.returncode}:\n{text[-4000:]}"
        return ready in text

    @property
    def text(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text("utf-8", "replace")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names that it logged so far."""
        lines = self.text.splitlines(keepends=True)
        return [
            told
            for line in lines
            if line.startswith("{") and line.endswith("}\n") and (told := json.loads(line))["event"] in names
        ]

    def kill9(self) -> None:
        """As if its host had died."""
        self.popen.kill()
        self.popen.wait(STOP_S)

    def tell_to_stop(self) -> None:
        """SIGTERM, once."""
        if not self._is_told:
            self._is_told = True
            self.popen.send_signal(signal.SIGTERM)  # nothing, when it has ended

    def stop(self, timeout_s: float = STOP_S) -> int:
        """SIGTERM; returns the exit code."""
        if self.popen.poll() is None:
            self.tell_to_stop()
            try:
                self.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill9()
                raise AssertionError(f"{self.name} did not stop within {timeout_s:g} s:\n{self.text[-4000:]}") from None
        return self.popen.returncode


class Platform:
    """A gateway, any number of runners, and one Redis that belongs to somebody else."""

    def __init__(self, redis_url: str, *, root: Path = ROOT, **env: str) -> None:
        """``env``: settings for every process, e.g. ``BANANAS_LEASE_S="2"``; ``root``: the checkout they run."""
        self.redis_url = redis_url
        self._root = root
        # Short, since the sandboxes' socket paths have 107 bytes; at the same path for the engine.
        self.folder = Path(tempfile.mkdtemp(prefix="bn-"))
        self.port = free_port()
        self.env = {
            "BANANAS_REDIS_URL": redis_url,
            "BANANAS_PORT": str(self.port),
            "BANANAS_STATE_DIR": str(self.folder / "state"),
            "BANANAS_GATEWAY_WORKERS": "1",
            "PYTHONUNBUFFERED": "1",
            **env,
        }
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url, patience_s=0)
        self.connections = Connections(redis_url)
        self.queue = Queue(self.connections)
        self.registry = Registry(self.connections)
        self.processes: list[Process] = []
        self._apps = 0

    def gateway(self, **env: str) -> Process:
        """Start the gateway."""
        return self._start("gateway", "gateway listening", env)

    def runner(self, **env: str) -> Process:
        """Start another runner."""
        return self._start("runner", "ready, pools:", env)

    def maintenance(self, **env: str) -> Process:
        """Start what a runner does for everybody, alone."""
        return self._start("runner", "maintenance ready", env, "--only", "maintenance")

    def _start(self, module: str, ready: str, env: dict[str, str], *args: str) -> Process:
        name = f"{module}{len(self.processes)}"
        command = [sys.executable, "-m", module, *args]
        process = Process(name, command, {**self.env, **env}, self.folder, ready, self._root)
        self.processes.append(process)
        return process

    def deploy(self, functions: dict[str, str], settings: str = "", pools: str = "") -> None:
        """Deploy handlers given as source text; ``settings`` is YAML for each function, indented by 4."""
        self._apps += 1
        app = self.folder / f"app{self._apps}"
        lines = ["version: 1", *([pools] if pools else []), "functions:"]
        for name, source in functions.items():
            folder = app / "functions" / name
            folder.mkdir(parents=True)
            (folder / "handler.py").write_text(source, "utf-8")
            lines += [f"  {name}:", f"    path: functions/{name}", "    handler: handler.handle"]
            lines += [settings] if settings else []
        path = app / "bananas.yaml"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        deploy.deploy(self.client, manifest.load(path, {}), None, lambda line: None)

    def finished(self, job_id: str, deadline_s: float = 30.0) -> dict[str, Any]:
        """The record of a job that is over; fails at the deadline."""
        deadline = time.monotonic() + deadline_s
        while True:
            record = self.client.job(job_id, wait_s=max(1, min(10, int(deadline - time.monotonic()))))
            if record["status"] in ("completed", "failed", "cancelled"):
                return record
            assert time.monotonic() < deadline, f"job {job_id} is not over after {deadline_s:g} s: {record}"

    def state(self, job_id: str, wanted: str, deadline_s: float = 15.0) -> dict[str, Any]:
        """Wait until a job is in a state that is not an end, and return its record."""
        return until(
            lambda: (record := self.client.job(job_id)) and record["status"] == wanted and record,
            deadline_s,
            f"job {job_id} to be {wanted}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show what the processes said, for a failure, and end them."""
        print(self.logs())
        self.close()

    def close(self) -> None:
        """Stop all processes at once; remove everything."""
        for process in self.processes:
            process.tell_to_stop()
        for process in self.processes:
            process.stop()
        self.connections.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self, names: Iterable[str] = ()) -> str:
        """The last output of every process, for failures."""
        return "\n".join(f"--- {p.name}\n{p.text[-3000:]}" for p in self.processes if not names or p.name in names)
