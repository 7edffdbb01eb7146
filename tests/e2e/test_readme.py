"""README.md is true: its calls answer, its example deploys, its commands exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import deploy, manifest
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.platform import ROOT, Platform, load_script

README = (ROOT / "README.md").read_text()


demo = load_script("demo")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short temporary folder: sockets live below it."""
    path = Path(tempfile.mkdtemp(prefix="bn-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def environ(image: RuntimeInfo, **more: str) -> dict[str, str]:
    """As of a shell without any setting of ours."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("BANANAS_")}
    return (
        plain
        | {"BANANAS_PORT": str(free_port()), "BANANAS_REDIS_PORT": "0", "BANANAS_PYTHON_IMAGE": image.image}
        | more
    )


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_every_call_of_the_readme_answers_as_promised(base_image: RuntimeInfo, folder: Path) -> None:
    """The calls run as they are written, the jobs complete, the mail arrives, and everything ends."""
    shown: list[str] = []
    with demo.DemoStack(folder / "s", environ(base_image, SMTP_PORT=str(free_port()))) as running:
        running.wait_live()
        session = demo.walk(running, folder, shown.append)
        pids = [unit.part.pid for unit in running.stack.supervisor._units]
    assert session.first_result_s is not None
    assert sum(line.startswith("\n$ ") for line in shown) == len(demo.commands(README))
    assert '"to": ["user@example.com"], "subject": "Hello!"' in shown[-1]
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids if pid)


def test_the_demo_program_says_when_the_first_result_came(base_image: RuntimeInfo) -> None:
    """``make demo`` ends with exit code 0, the time to the first result, and no process left."""
    command = [sys.executable, str(ROOT / "scripts/demo.py")]
    done = subprocess.run(command, env=environ(base_image), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"first result was there \d+\.\d s after the start", done.stdout)
    assert "mail that the sink received" in done.stdout


def test_a_demo_that_cannot_start_fails_in_one_line(base_image: RuntimeInfo) -> None:
    """A failure ends with one clear line and another exit code than 0; the stack's last lines come before it."""
    command = [sys.executable, str(ROOT / "scripts/demo.py")]
    settings = environ(base_image) | {"BANANAS_PYTHON_IMAGE": "bananas/no-such-image:1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("demo failed: ")
    assert "the last lines of the stack" in done.stderr
    assert "bananas/no-such-image:1" in done.stderr


def test_a_call_that_answers_otherwise_fails_the_demo(base_image: RuntimeInfo, folder: Path) -> None:
    """The demo does not pass over a wrong status, a failed job or a missing one."""
    with demo.DemoStack(folder / "s", environ(base_image, SMTP_PORT=str(free_port()))) as running:
        running.wait_live()
        session = demo.Session(running.stack.url, folder)
        with pytest.raises(demo.DemoFailed, match="no POST /jobs came before"):
            session.run("curl http://localhost:8080/jobs/{job-id}")
        with pytest.raises(demo.DemoFailed, match="HTTP 404"):
            session.run("curl http://localhost:8080/functions/nothing")
        body = '{"name": "flaky", "payload": {"succeed_on": 0}}'
        session.run(f"curl http://localhost:8080/jobs -H 'Content-Type: application/json' -d '{body}'")
        with pytest.raises(demo.DemoFailed, match="is failed, not completed"):
            session.run('curl "http://localhost:8080/jobs/{job-id}?wait=10"')
        with pytest.raises(demo.DemoFailed, match="exit code"):
            session.run("bananas no-such-command")
    with pytest.raises(demo.DemoFailed, match="exit code 7"):
        session.run("curl http://localhost:8080/healthz")


def test_the_readmes_function_and_manifest_work(platform: Platform, folder: Path) -> None:
    """What the README shows can be copied, deployed and called."""
    (handler,) = blocks("python")
    (text,) = blocks("yaml")
    for name in ("hello", "send_email"):
        (folder / "functions" / name).mkdir(parents=True)
        (folder / "functions" / name / "handler.py").write_text(handler)
    (folder / "bananas.yaml").write_text(text)
    loaded = manifest.load(folder / "bananas.yaml", {})
    assert list(loaded.functions) == ["hello", "send_email"]
    assert loaded.functions["send_email"].spec.retries.base_ms == 2000
    deployed = deploy.deploy(platform.client, loaded, None, print)
    assert [function.changed for function in deployed] == [True, True]
    assert platform.client.invoke("hello", {"name": "Ada"}, timeout_s=30) == b'{"message":"Hello, Ada!"}'


def test_every_command_of_the_readme_is_run_or_is_a_make_target() -> None:
    """No shell block stands in the README without being checked."""
    run = demo.commands(README)
    assert run[0] == (
        'curl -X POST http://localhost:8080/jobs -H "Content-Type: application/json" -d \''
        '{"name": "send_email", "payload": {"to": "user@example.com", "subject": "Hello!"}, "priority": "high"}\''
    )
    assert "curl http://localhost:8080/jobs/{job-id}" in run
    others = [line for block in blocks("sh") for line in block.splitlines() if line.strip() not in run]
    targets = [line.split()[1] for line in others if line.startswith("make ")]
    assert len(targets) == len(others), others
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert targets[:2] == ["demo", "test"]
