"""``bananas doctor``: what each look says, the next steps, the exit code, and that no secret is printed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bananas.cli import checks
from bananas.findings import Finding
from bananas.settings import Settings
from tests.tools.stub_gateway import StubGateway, problem

Cli = Callable[..., SimpleNamespace]
READY = (200, {"status": "ready", "checks": []})
ELSEWHERE = ("--skip", "engine", "--skip", "redis", "--skip", "systemd")


def found(bananas: Cli, *args: str) -> dict[str, Any]:
    """Each finding by its name."""
    return {check["name"]: check for check in json.loads(bananas("doctor", *args, "-o", "json").out)["checks"]}


def test_all_is_well(gateway: StubGateway, bananas: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, exit code 0."""
    monkeypatch.setenv("BANANAS_STATE_DIR", str(tmp_path))
    gateway.override["GET /readyz"] = READY
    done = bananas("doctor", *ELSEWHERE)
    assert (done.code, done.err) == (0, "")
    assert [line.split(":")[0] for line in done.out.splitlines() if not line.startswith(" ")] == [
        "ok       python",
        "ok       disk",
        "ok       gateway",
        "ok       clock",
        "",
        "all is well",
    ]


def test_what_the_gateway_warns_of_is_told_with_its_own_next_step(gateway: StubGateway, bananas: Cli) -> None:
    """A warning is no failure; a gateway that is not ready is."""
    warning = {"name": "runners", "status": "warning", "detail": "no runner is live; start one with `bananas runner`"}
    gateway.override["GET /readyz"] = (200, {"status": "ready", "checks": [warning]})
    done = bananas("doctor", *ELSEWHERE)
    assert (done.code, "warning  its runners: no runner is live; start one with" in done.out) == (0, True)
    assert done.out.endswith("\n1 to look at\n")
    gateway.override["GET /readyz"] = problem(503, "not-ready", "Redis does not answer", checks=[])
    done = bananas("doctor", *ELSEWHERE)
    assert (done.code, "takes no jobs: Redis does not answer" in " ".join(done.out.split())) == (1, True)


@pytest.mark.parametrize(
    ("answer", "name", "status", "says"),
    [
        (problem(401, "unauthorized", "a token is needed"), "token", "failed", "a token is needed"),
        (problem(403, "forbidden", "bound to hello"), "token", "ok", "it may not do everything (bound to hello)"),
        (problem(503, "redis-unavailable", "no Redis"), "gateway", "failed", "no Redis"),
    ],
)
def test_a_refused_token_is_told_from_a_narrow_one(
    gateway: StubGateway, bananas: Cli, answer: Any, name: str, status: str, says: str
) -> None:
    """Only one that the gateway does not know is a failure."""
    gateway.override |= {"GET /readyz": READY, "GET /functions": answer}
    check = found(bananas, *ELSEWHERE)[name]
    assert (check["status"], says in check["detail"]) == (status, True)


def test_something_else_at_the_gateways_address(gateway: StubGateway, bananas: Cli, free_port: int) -> None:
    """A web server that is none of ours, and nobody at all."""
    gateway.override["GET /readyz"] = (200, b"<html>")
    assert "answers, but not like a gateway" in found(bananas, *ELSEWHERE)["gateway"]["detail"]
    done = bananas("--url", f"http://127.0.0.1:{free_port}", "doctor", *ELSEWHERE)
    assert (done.code, "start one with `bananas up`" in " ".join(done.out.split())) == (1, True)


def test_no_secret_is_printed(bananas: Cli, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the password of a URL nor the token, in no form of output."""
    monkeypatch.setenv("BANANAS_REDIS_URL", f"redis://me:pass-one@127.0.0.1:{free_port}/0")
    monkeypatch.setenv("BANANAS_URL", f"http://me:pass-two@127.0.0.1:{free_port}")
    monkeypatch.setenv("BANANAS_TOKEN", "bn_three")
    for output in ("table", "json"):
        done = bananas("doctor", "--skip", "engine", "-o", output)
        assert done.code == 1
        assert "127.0.0.1" in done.out
        assert not any(secret in done.out + done.err for secret in ("pass-one", "pass-two", "bn_three"))


def test_wrong_settings_are_a_finding(bananas: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as any command names them."""
    monkeypatch.setenv("BANANAS_PORT", "http")
    check = found(bananas)["settings"]
    assert (check["status"], check["detail"].startswith("BANANAS_PORT='http' is not valid")) == ("failed", True)


def test_an_engine_that_is_not_there(bananas: Cli, gateway: StubGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's own words, with its next step; by a real process."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    [finding] = checks.look_at_engine(Settings())
    assert (finding.status, finding.name) == ("failed", "engine")
    assert finding.detail.startswith("no Docker Engine answers at unix:///nowhere/docker.sock: ")


def test_an_engine_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waited for until the deadline; what was found before counts, without the line that is cut off."""
    monkeypatch.setattr(checks, "_ENGINE_S", 1.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "docker.sock"))
        silent.listen(8)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'docker.sock'}")
        [finding] = checks.look_at_engine(Settings())
    assert (finding.status, "not looked at to the end within 1.5 s" in finding.detail) == ("failed", True)
    line = '{"name": "users", "status": "ok", "detail": "without root", "next": ""}'
    assert checks.findings(f"{line}\n{line}\n") == [Finding("users", "ok", "without root")] * 2


def test_room_and_clocks() -> None:
    """Where each begins to be a warning or a failure."""
    state = Path("/var/lib/bananas")
    assert [checks.disk(state, free_mb).status for free_mb in (199, 200, 2047, 2048)] == [
        "failed",
        "warning",
        "warning",
        "ok",
    ]
    assert [checks.clock("Redis", ahead_s).status for ahead_s in (-6, -5, 0, 5, 6)] == [
        "warning",
        "ok",
        "ok",
        "ok",
        "warning",
    ]
    assert checks.clock("Redis", -61.0).detail == "that of Redis is 61 s behind this one"


def test_a_state_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """Told of the nearest folder that exists."""
    if os.geteuid() == 0:
        assert checks.look_at_disk(Settings(state_dir="/proc/1/bananas"))[0].name == "disk"
        return
    (tmp_path / "closed").mkdir(mode=0o500)
    [finding] = checks.look_at_disk(Settings(state_dir=str(tmp_path / "closed" / "state")))
    assert (finding.status, "may not be written by this user" in finding.detail) == ("warning", True)
