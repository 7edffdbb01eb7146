"""``bananas doctor`` on the real engine: what it says of a sandbox was tried in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from bananas.spec import RuntimeInfo

pytestmark = pytest.mark.docker

LIMIT_S = 120
ASIDE = ("--skip", "redis", "--skip", "systemd", "--skip", "gateway")


def test_the_engine_and_a_sandbox_are_looked_at(
    engine: docker.DockerClient, base_image: RuntimeInfo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One line each, every wall found closed, nothing failed, and no container left."""
    state = tmp_path_factory.mktemp("d", numbered=True)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BANANAS_")},
        "BANANAS_STATE_DIR": str(state),
        "BANANAS_PYTHON_IMAGE": base_image.image,
        "BANANAS_REDIS_URL": "redis://:hush-hush@127.0.0.1:1/0",
    }
    command = [sys.executable, "-m", "bananas", "doctor", *ASIDE, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=env, stdin=subprocess.DEVNULL)
    assert "hush-hush" not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    checks = {check["name"]: check for check in told["checks"]}
    walls = {name.removeprefix("sandbox ") for name in checks if name.startswith("sandbox ")}
    assert walls == {
        "user",
        "rights",
        "seccomp",
        "files",
        "network",
        "metadata",
        "reach",
        "env",
        "memory",
    }
    assert {
        name: check for name, check in checks.items() if name.startswith("sandbox ") and check["status"] != "ok"
    } == {}
    assert {"engine", "users", "runc", "cgroup", "seccomp", "image"} <= set(checks)
    assert "uid 65534" in checks["sandbox user"]["detail"]
    assert "64 MiB" in checks["sandbox memory"]["detail"]
    # A runc that is open to a known escape is the machine's, not ours; all else must be well here.
    assert {name for name, check in checks.items() if check["status"] == "failed"} <= {"runc"}
    assert done.returncode == int(told["failed"] > 0)
    left = engine.api.containers(all=True, filters={"label": "bananas.instance=doctor"})
    assert [container for container in left if str(state) in json.dumps(container["Mounts"])] == []
    assert list(Path(state, "doctor").glob("*.lock")) == []
