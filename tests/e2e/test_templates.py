"""What ``bananas init`` writes works as it is: it is deployed to a real platform and called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform, until


def run(platform: Platform, folder: Path, *args: str) -> str:
    """One command as a user types it; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "bananas", *args],
        cwd=folder,
        env={**os.environ, "BANANAS_URL": platform.url},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_app_answers(platform: Platform, tmp_path: Path) -> None:
    """Written, deployed, called."""
    run(platform, tmp_path, "init", "shop")
    run(platform, tmp_path / "shop", "deploy")
    answer = run(platform, tmp_path / "shop", "invoke", "hello", '{"name": "Ada"}')
    assert json.loads(answer) == {"message": "Hello, Ada!"}


def test_the_cron_app_has_its_schedule(platform: Platform, tmp_path: Path) -> None:
    """The slot's payload is what the handler gets; here it is called by hand."""
    run(platform, tmp_path, "init", "shop", "--template", "cron")
    run(platform, tmp_path / "shop", "deploy")
    [schedule] = json.loads(run(platform, tmp_path, "schedules", "ls", "-o", "json"))
    assert (schedule["function"], schedule["cron"], schedule["overlap"]) == ("hello", "*/5 * * * *", "skip")
    answer = json.loads(run(platform, tmp_path, "invoke", "hello", '{"what": "the shop"}'))
    assert answer["done"] == "the shop"


@pytest.mark.timeout(300)
def test_the_node_app_answers(platform: Platform, node_image: RuntimeInfo, tmp_path: Path) -> None:
    """As the one for Python does."""
    until(lambda: "node" in platform.client.runtimes(), 60, "a runner that runs node")
    run(platform, tmp_path, "init", "shop", "--template", "node")
    run(platform, tmp_path / "shop", "deploy")
    answer = run(platform, tmp_path / "shop", "invoke", "hello", '{"name": "Ada"}')
    assert json.loads(answer) == {"message": "Hello, Ada!"}
