"""docker-compose.yml, run by the real Compose on the real engine, with images of this host: nothing is pulled."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from bananas import deploy, manifest
from bananas.client import Client
from bananas.errors import ApiError, BananasError, GatewayUnreachable
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.platform import ROOT, load_script, until
from tests.tools.leftovers import Run

#: Building, starting and stopping all of it, on a busy machine.
COMPOSE_S = 110
#: One submit, over the restart of whatever is away.
SUBMIT_S = 40
MIN_JOBS = 200
#: Ends of an attempt that use up no try: done, or Redis or its runner went away around it.
HARMLESS = {"ok", "lost", "start", "handed_back"}
DEMO = "deploy/compose.demo.yml"
NAP = "import time\ndef handle(event, context):\n    time.sleep(0.05)\n    return event\n"


class Stack:
    """One Compose project of this run, on a port and a state directory of its own."""

    def __init__(self, engine: docker.DockerClient, base: RuntimeInfo, run: Run, folder: Path) -> None:
        self.engine = engine
        self.id = f"bn-{run.id.rpartition('-')[2]}"
        self.port = free_port()
        self.client = Client(f"http://localhost:{self.port}", patience_s=0)
        self.state = folder / "s"
        self._folder = folder
        self._base = base
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("BANANAS_", "COMPOSE_"))}
        self.images = {"APP_IMAGE": f"bananas/app:{self.id}", "REDIS_IMAGE": f"bananas/redis:{self.id}"}
        self._env = {
            **plain,
            **self.images,
            "BASE_IMAGE": base.image,
            "BANANAS_PYTHON_IMAGE": base.image,
            "BANANAS_PORT": str(self.port),
            "BANANAS_STATE_DIR": str(self.state),
        }
        labelled: dict[str, Any] = {"labels": run.labels}
        # A claim whose answer got lost with Redis comes back after a lease; not after 30 s in a test.
        runner = {**labelled, "environment": {"BANANAS_LEASE_S": "4"}}
        self._write("plain", {"redis": labelled, "gateway": labelled, "runner": runner})
        self._write("demo", {"mail": labelled})

    def _write(self, name: str, services: dict[str, Any]) -> None:
        (self._folder / f"{name}.json").write_text(json.dumps({"services": services}), "utf-8")

    def compose(self, *words: str, demo: bool = False) -> str:
        """Run Compose; returns what it printed on stdout, fails with what it said when its exit code is not 0."""
        files = ["docker-compose.yml", str(self._folder / "plain.json")]
        files += [DEMO, str(self._folder / "demo.json")] if demo else []
        command = [str(Path(sys.executable).parent / "docker-compose"), "--project-name", self.id]
        command += [word for file in files for word in ("--file", file)]
        done = subprocess.run(
            [*command, *words], cwd=ROOT, env=self._env, capture_output=True, text=True, timeout=COMPOSE_S
        )
        assert done.returncode == 0, f"docker compose {' '.join(words)}: {done.stderr[-4000:]}"
        return done.stdout

    def up(self, *words: str, demo: bool = False) -> None:
        """Bring it to the state that the files and ``words`` describe, healthy."""
        self.compose("up", "--detach", "--wait", "--pull", "never", "--remove-orphans", *words, demo=demo)

    def containers(self, service: str) -> list[Any]:
        """The running containers of one service."""
        labels = [f"com.docker.compose.project={self.id}", f"com.docker.compose.service={service}"]
        return list(self.engine.containers.list(filters={"label": labels}))

    def sandboxes(self) -> list[Any]:
        """The containers that the runners of this project made, known by what is mounted into them."""
        found = self.engine.containers.list(all=True, filters={"label": "bananas.instance"}, ignore_removed=True)
        prefix = f"{self.state}/"
        return [c for c in found if any(b.startswith(prefix) for b in c.attrs["HostConfig"]["Binds"] or ())]

    def runner_ids(self) -> set[str]:
        """The live runners, as the gateway tells; empty while it cannot."""
        try:
            return {runner["id"] for runner in self.client.runners()}
        except (ApiError, GatewayUnreachable):
            return set()

    def deploy(self) -> None:
        """Deploy two examples of the repository and one that takes 50 ms."""
        app = self._folder / "app"
        for name in ("hello", "send_email"):
            shutil.copytree(ROOT / "functions" / name, app / "functions" / name)
        (app / "functions/nap").mkdir()
        (app / "functions/nap/handler.py").write_text(NAP, "utf-8")
        lines = (ROOT / "bananas.yaml").read_text("utf-8").partition("  flaky:")[0]
        (app / "bananas.yaml").write_text(f"{lines}  nap:\n    path: functions/nap\n", "utf-8")
        deploy.deploy(self.client, manifest.load(app / "bananas.yaml", {}), None, lambda line: None)

    def close(self) -> None:
        """Remove everything that belongs to the project."""
        self.compose("down", "--volumes", "--timeout", "30", demo=True)
        sandboxes = self.sandboxes()
        for sandbox in sandboxes:
            sandbox.remove(force=True)
        # Files in there belong to root, this process perhaps not.
        self.engine.containers.run(
            self._base.image,
            ["python3", "-c", "import shutil; shutil.rmtree('/x/s', ignore_errors=True)"],
            volumes={str(self._folder): {"bind": "/x", "mode": "rw"}},
            network_mode="none",
            remove=True,
        )
        for tag in self.images.values():
            with contextlib.suppress(docker.errors.ImageNotFound):  # it was never built
                self.engine.images.remove(tag, force=True)
        self.client.close()
        assert not sandboxes, "runners that were stopped left sandboxes behind"


@pytest.fixture(scope="module")
def stack(engine: docker.DockerClient, base_image: RuntimeInfo, run: Run) -> Iterator[Stack]:
    """A project with its images built, started and deployed to."""
    with tempfile.TemporaryDirectory(prefix="bn-", ignore_cleanup_errors=True) as folder:
        stack = Stack(engine, base_image, run, Path(folder))
        images = load_script("compose_images")
        try:
            images.prepare(base_image)
            images.build_redis(engine, base_image.image, stack.images["REDIS_IMAGE"])
            stack.compose("build", "--quiet")
            stack.up()
            stack.deploy()
            yield stack
        finally:
            try:
                print(stack.compose("logs", "--no-color", "--tail", "60", demo=True))
            finally:
                stack.close()


class Load(threading.Thread):
    """A client that submits jobs one after the other, and each one again until it is accepted."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(name="load")
        self._client = Client(stack.client.url, patience_s=0)
        self._over = threading.Event()
        #: Payload → id of every job that was accepted.
        self.accepted: dict[int, str] = {}
        #: Submits that had to be repeated.
        self.repeats = 0
        self.problem = ""

    def run(self) -> None:
        number = 0
        while not self._over.wait(0.04):
            try:
                self.accepted[number] = self._submit(number)
            except BananasError as e:
                self.problem = f"job {number}: {e}"
                return
            number += 1

    def _submit(self, number: int) -> str:
        deadline = time.monotonic() + SUBMIT_S
        while True:
            try:
                return str(self._client.submit("nap", number)["id"])
            except (ApiError, GatewayUnreachable) as e:
                if (isinstance(e, ApiError) and e.status != 503) or time.monotonic() > deadline:
                    raise
                self.repeats += 1
            threading.Event().wait(0.1)

    def end(self) -> None:
        """Stop submitting."""
        self._over.set()
        self.join(SUBMIT_S + 5)
        self._client.close()


def test_up_gives_a_hardened_gateway_and_three_runners(stack: Stack) -> None:
    """All is healthy and calls work; only the gateway is published, on loopback, without root, rights or Docker."""
    assert len(stack.runner_ids()) == 3
    assert json.loads(stack.client.invoke("hello", {"name": "Ada"})) == {"message": "Hello, Ada!"}
    (gateway,), (redis,) = stack.containers("gateway"), stack.containers("redis")
    facts = "import os; print(open('/proc/1/status').read(), os.path.exists('/var/run/docker.sock'))"
    said = gateway.exec_run(["python3", "-c", facts]).output.decode()
    assert re.search(r"^Uid:\s65534\s65534\s", said, re.MULTILINE)
    assert re.search(r"^CapEff:\s0+$", said, re.MULTILINE)
    assert said.strip().endswith("False")
    assert gateway.attrs["Mounts"] == []
    assert gateway.attrs["HostConfig"]["ReadonlyRootfs"]
    assert "no authentication: everyone who can reach" in gateway.logs().decode()
    published = {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]}
    assert gateway.attrs["HostConfig"]["PortBindings"] == published
    for container in (redis, *stack.containers("runner")):
        assert not container.attrs["HostConfig"]["PortBindings"]
        assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert container.attrs["State"]["Health"]["Status"] == "healthy"


def test_redis_keeps_jobs(stack: Stack) -> None:
    """Redis writes its append-only file to a volume and never evicts."""
    (redis,) = stack.containers("redis")
    assert [mount["Type"] for mount in redis.attrs["Mounts"] if mount["Destination"] == "/data"] == ["volume"]
    ready = stack.client._wire.json("GET", "/readyz")
    assert {check["name"]: check["status"] for check in ready["checks"]} == {
        "redis": "ok",
        "eviction": "ok",
        "persistence": "ok",
    }


def test_the_mail_example_of_the_readme_works(stack: Stack, tmp_path: Path) -> None:
    """The README's curls that queue a mail and wait for it run as written, and the sink has the mail."""
    demo = load_script("demo")
    stack.up("--scale", "runner=1", demo=True)
    session = demo.Session(stack.client.url, tmp_path)
    submit, wait, *_ = demo.commands((ROOT / "README.md").read_text("utf-8"))
    assert session.run(submit).status == 202
    record = json.loads(session.run(wait).body)
    assert (record["name"], record["status"]) == ("send_email", "completed")
    assert '"to": ["user@example.com"], "subject": "Hello!"' in stack.compose("logs", "mail", demo=True)


def test_runners_scale(stack: Stack) -> None:
    """``--scale runner=5`` gives five live runners, which share one state directory."""
    stack.up("--scale", "runner=5")
    until(lambda: len(stack.runner_ids()) == 5, 20, "five live runners")
    assert json.loads(stack.client.invoke("hello", {"name": "Eve"})) == {"message": "Hello, Eve!"}


def test_a_rolling_restart_under_load_loses_nothing(stack: Stack) -> None:
    """While Redis, the gateway and each runner restart in turn, every accepted job completes and no attempt fails."""
    stack.up("--scale", "runner=3")
    until(lambda: len(stack.runner_ids()) == 3, 20, "three live runners")
    before = stack.runner_ids()
    load = Load(stack)
    load.start()
    try:
        for service in ("redis", "gateway"):
            stack.compose("restart", service)
            until(has_grown(load), SUBMIT_S, f"jobs to be accepted after the restart of {service}")
        for container in stack.containers("runner"):
            left = stack.runner_ids()
            container.restart(timeout=60)
            until(lambda left=left: len(stack.runner_ids() - left) == 1, 30, f"{container.name} to be live again")
        until(lambda: load.problem or len(load.accepted) >= MIN_JOBS, SUBMIT_S, f"{MIN_JOBS} accepted jobs")
    finally:
        load.end()
    assert load.problem == ""
    assert load.repeats > 0, "nothing was away"
    assert not before & stack.runner_ids(), "a runner was not restarted"
    records = {number: finished(stack.client, job) for number, job in load.accepted.items()}
    assert {record["status"] for record in records.values()} == {"completed"}
    assert {number: record["result"] for number, record in records.items()} == {n: n for n in records}
    outcomes = collections.Counter(attempt["outcome"] for record in records.values() for attempt in record["history"])
    print(f"{len(records)} jobs, {load.repeats} repeated submits, {dict(outcomes)}")
    assert set(outcomes) <= HARMLESS, "an attempt failed"


def has_grown(load: Load) -> Callable[[], bool]:
    """True once another five jobs were accepted from now on."""
    accepted = len(load.accepted)
    return lambda: bool(load.problem) or len(load.accepted) >= accepted + 5


def finished(client: Client, job_id: str) -> dict[str, Any]:
    record = client.job(job_id, wait_s=30)
    assert record["status"] in ("completed", "failed", "cancelled"), f"job {job_id} is not over: {record}"
    return record
