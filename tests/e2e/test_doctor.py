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
from runner.doctor import inside, probe
from runner.opennet import Place

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
    assert list(Path(state, "doctor").iterdir()) == []


def test_the_probe_finds_every_hole_of_an_ordinary_container(
    engine: docker.DockerClient, base_image: RuntimeInfo
) -> None:
    """What `docker run` gives by default, as root and with a bridge, fails each wall that it lacks."""
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    # Nobody listens there: the machine's own refusal is the answer that counts.
    asked = inside.Asked((Place("this machine", gateway, 1, ""),), ("/bin/sh", "/etc/hostname"), 64, is_shared=True)
    event = {"do": "look", "targets": [[gateway, 1]], "paths": asked.paths, "timeout_s": 2}
    source = Path(probe.__file__).read_text("utf-8")
    program = f"{source}\nimport json\nprint(json.dumps(handle({event!r}, None)))"
    printed = engine.containers.run(
        base_image.image_id,
        ["python3", "-c", program],
        user="0:0",
        network_mode="bridge",
        environment={"BANANAS_REDIS_URL": "redis://nowhere"},
        security_opt=["seccomp=unconfined"],
        remove=True,
    )
    seen = json.loads(printed)
    failed = {finding.name.removeprefix("sandbox ") for finding in inside.judge(seen, asked) if finding.status != "ok"}
    assert failed == {"user", "rights", "seccomp", "files", "network", "reach", "env"}
    [reach] = [finding for finding in inside.judge(seen, asked) if finding.name == "sandbox reach"]
    assert f"this machine at {gateway}:1 (ECONNREFUSED)" in reach.detail
    assert "/etc/hostname" in reach.detail
