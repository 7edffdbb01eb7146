"""What ``bananas doctor`` looks at, one function a subject. Each gives findings, and raises for nothing that can be
wrong with an installation; every wait has a deadline. Nothing is changed.

The engine, its images and its sandboxes are looked at by ``python -m runner doctor``, since nothing here talks to
Docker.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bananas.cli import units
from bananas.errors import ApiError, BananasError, ConfigError, GatewayUnreachable
from bananas.findings import Finding
from bananas.runtimes import OLDEST_PYTHON
from bananas.settings import MIB, Settings

#: Two looks into a sandbox, each with deadlines of its own.
_ENGINE_S: Final = 150.0
_GATEWAY_S: Final = 5.0
#: Of the state directory's file system: below the first nothing works for long, below the second somebody should look.
_DISK_FAILED_MB: Final = 200
_DISK_LOW_MB: Final = 2048
#: Clocks count for `run_at`, for the end of tokens and for what people read; leases and schedules go by Redis' own.
_CLOCK_S: Final = 5.0


def look_at_python(_: Settings) -> list[Finding]:
    """The interpreter that runs this command."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return [Finding("python", "failed", found, f"install Bananas with Python {oldest} or newer")]
    return [Finding("python", "ok", found)]


def look_at_engine(_: Settings) -> list[Finding]:
    """The Docker Engine, what it starts containers with, images, and what a sandbox keeps apart."""
    command = [sys.executable, "-P", "-m", "runner", "doctor"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ENGINE_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as e:
        detail = f"the Docker Engine was not looked at to the end within {_ENGINE_S:g} s"
        late = Finding("engine", "failed", detail, "see that `docker info` answers")
        # It is bytes, although text was asked for; a line may be cut off.
        told = e.stdout.decode("utf-8", "replace") if isinstance(e.stdout, bytes) else (e.stdout or "")
        return [*findings(told.rpartition("\n")[0]), late]
    found = findings(done.stdout)
    if done.returncode not in (0, 1) or not found:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        found.append(Finding("engine", "failed", f"looking at the Docker Engine failed: {said}"))
    return found


def findings(lines: str) -> list[Finding]:
    """What ``python -m runner doctor`` prints: a finding a line, as JSON."""
    import json

    return [Finding(**json.loads(line)) for line in lines.splitlines()]


def look_at_redis(settings: Settings) -> list[Finding]:
    """The Redis that is set, or the server that ``bananas up`` would start."""
    if not settings.redis_url:
        from bananas.embedded import find_server

        try:
            server = find_server()
        except ConfigError as e:
            return [Finding("redis", "failed", str(e))]
        return [Finding("redis", "ok", f"none is set, so `bananas up` starts its own {server.name}")]
    from bananas.health import Health
    from bananas.redis_client import Connections, safe_url

    try:
        connections = Connections(settings.require_redis_url())
    except BananasError as e:
        return [Finding("redis", "failed", str(e))]
    shown = safe_url(settings.redis_url)
    try:
        found = [
            Finding(
                check.name,
                check.status,
                f"{shown} {check.detail}" if (check.name, check.status) == ("redis", "ok") else check.detail,
            )
            for check in Health(connections).check()
        ]
        if found[0].status == "ok":
            before_s = time.time()
            with connections.guard():
                seconds, micros = connections.commands.time()
            middle_s = (before_s + time.time()) / 2
            found.append(clock("Redis", float(seconds) + float(micros) / 1e6 - middle_s))
    except BananasError as e:
        found = [Finding("redis", "failed", str(e))]
    finally:
        connections.close()
    return found


def clock(whose: str, ahead_s: float) -> Finding:
    """How far another clock is ahead of this one."""
    if abs(ahead_s) <= _CLOCK_S:
        return Finding("clock", "ok", f"that of {whose} and this one differ by less than {_CLOCK_S:g} s")
    way = "ahead of" if ahead_s > 0 else "behind"
    detail = f"that of {whose} is {abs(ahead_s):.0f} s {way} this one"
    return Finding("clock", "warning", detail, "let both hosts set their clocks by NTP")


def look_at_gateway(settings: Settings, url: str) -> list[Finding]:
    """Whether it answers, takes our token, and can take jobs; and its clock."""
    from bananas.client import Client

    try:
        with Client(url, settings.token, patience_s=0) as gateway:
            findings = _readiness(gateway.url)
            try:
                gateway.functions()
            except ApiError as e:
                findings.append(_refusal(e))
        return findings
    except GatewayUnreachable as e:
        return [Finding("gateway", "failed", str(e))]
    except BananasError as e:
        return [Finding("gateway", "failed", str(e), "set BANANAS_URL, or give --url")]


def _refusal(error: ApiError) -> Finding:
    """What it means that we may not list functions."""
    if error.status == 403:
        return Finding("token", "ok", f"the gateway knows it; it may not do everything ({error})")
    if error.status == 401:
        step = "set BANANAS_TOKEN to a token of this gateway; `bananas token create` makes one"
        return Finding("token", "failed", str(error), step)
    return Finding("gateway", "failed", str(error), "see its log")


def _readiness(url: str) -> list[Finding]:
    """What ``/readyz`` says; raises GatewayUnreachable."""
    from email.utils import parsedate_to_datetime

    import requests

    with requests.Session() as session:
        # A proxy from the environment would be asked for its own loopback address.
        session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
        before_s = time.time()
        try:
            answer = session.get(f"{url}/readyz", timeout=_GATEWAY_S, allow_redirects=False)
            told = answer.json()
        except requests.exceptions.JSONDecodeError:
            detail = f"{url} answers, but not like a gateway of Bananas (HTTP {answer.status_code} for /readyz)"
            return [Finding("gateway", "failed", detail, "set BANANAS_URL, or give --url")]
        except requests.RequestException as e:
            raise GatewayUnreachable(
                f"no gateway answers at {url} ({type(e).__name__}); start one with `bananas up`, or set BANANAS_URL"
            ) from e
        middle_s = (before_s + time.time()) / 2
    findings = [Finding("gateway", "ok", f"{url} takes jobs")]
    if answer.status_code != 200:
        findings = [Finding("gateway", "failed", f"{url} takes no jobs: {told.get('detail', 'it does not say why')}")]
    for check in told.get("checks", []):
        if check["status"] == "warning":
            findings.append(Finding(f"its {check['name']}", "warning", check["detail"]))
    if date := answer.headers.get("Date"):
        # It is cut to whole seconds.
        findings.append(clock("the gateway", parsedate_to_datetime(date).astimezone(UTC).timestamp() + 0.5 - middle_s))
    return findings


def look_at_disk(settings: Settings) -> list[Finding]:
    """Room and rights where bundles, sockets and our own Redis live."""
    state = settings.state_path
    there = next((path for path in (state, *state.parents) if path.exists()), Path("/"))
    try:
        free_mb = shutil.disk_usage(there).free // MIB
    except OSError as e:
        return [Finding("disk", "failed", f"{there} cannot be looked at: {e.strerror}", "set BANANAS_STATE_DIR")]
    if not os.access(there, os.W_OK | os.X_OK):
        detail = f"{there} may not be written by this user, and {state} is the state directory"
        return [Finding("disk", "warning", detail, "run as the user of the services, or set BANANAS_STATE_DIR")]
    return [disk(state, free_mb)]


def disk(state: Path, free_mb: int) -> Finding:
    """What the room on the state directory's file system means."""
    detail = f"{free_mb} MiB are free for {state}"
    if free_mb >= _DISK_LOW_MB:
        return Finding("disk", "ok", detail)
    step = "free some, or set BANANAS_STATE_DIR to another file system"
    return Finding("disk", "failed" if free_mb < _DISK_FAILED_MB else "warning", detail, step)


#: By the name that ``--skip`` takes, in order; the gateway is looked at apart, since it needs the address.
LOOKS: Final[dict[str, Callable[[Settings], list[Finding]]]] = {
    "python": look_at_python,
    "disk": look_at_disk,
    "engine": look_at_engine,
    "redis": look_at_redis,
    "systemd": units.look_at_units,
}
