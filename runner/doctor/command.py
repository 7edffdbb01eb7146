"""``python -m runner doctor``: a finding a line, as JSON, while it looks. Started by ``bananas doctor``.

The findings go to stdout as they come, so that who started it can show what there is when a later look takes too long.
The exit code is 1 when one of them failed. It changes nothing: its own sandbox, named by an installation of its own,
is gone when it ends, and what a killed one left is removed by the next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bananas import events, pack, redis_url
from bananas.errors import BananasError, SandboxStartError
from bananas.findings import Finding
from bananas.protocols import Sandbox, SandboxFactory
from bananas.runtimes import DEFAULT_RUNTIME
from bananas.settings import Settings
from bananas.spec import PoolSpec, RuntimeInfo
from runner import images, opennet
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine, describe
from runner.doctor import engine as engine_looks
from runner.doctor import inside
from runner.host import Host
from runner.sandbox import DockerSandboxFactory
from runner.slot import profile_of
from runner.stdio import StdioSandboxFactory

#: Below the state directory, and the label of the containers.
INSTANCE: Final = "doctor"
#: Enough for Python; little, since twice of it is tried.
_MEMORY_MB: Final = 64


def main() -> int:
    """Returns the exit code: 1 when something failed."""
    failed = 0
    for finding in look():
        print(json.dumps(asdict(finding)), flush=True)
        failed += finding.status == "failed"
    return 1 if failed else 0


def look() -> Iterator[Finding]:
    """Everything that a runner on this machine would depend on; raises nothing that an installation can cause."""
    try:
        settings = Settings.from_env()
        client = images.connect()
    except BananasError as e:
        yield Finding("engine", "failed", str(e))
        return
    with closing(client):
        try:
            engine = Engine(client)
            yield from engine_looks.judge(*engine.facts(), describe())
            runtimes = images.discover(client, settings.python_image)
            is_there = not settings.python_image or images.find(client, settings.python_image) is not None
            yield from engine_looks.judge_images(runtimes, settings.python_image, is_there)
        except BananasError as e:
            yield Finding("engine", "failed", str(e), "see that `docker info` answers")
            return
        if DEFAULT_RUNTIME in runtimes:
            yield from _look_inside(settings, engine, runtimes[DEFAULT_RUNTIME])


def _look_inside(settings: Settings, engine: Engine, runtime: RuntimeInfo) -> Iterator[Finding]:
    try:
        host = Host(settings.state_path, INSTANCE, engine)
    except BananasError as e:
        yield Finding("sandbox", "failed", str(e), "run as the user of the runners, or set BANANAS_STATE_DIR")
        return
    try:
        host.sweep()
        places, problem = targets(settings)
        if problem is not None:
            yield problem
        yield from _probe(settings, engine, host, runtime, places)
    except (BananasError, TimeoutError) as e:
        step = "the runner's sandboxes start the same way; see docs/troubleshooting.md"
        yield Finding("sandbox", "failed", f"none could be looked into: {e}", step)
    finally:
        host.leave()


def _probe(
    settings: Settings, engine: Engine, host: Host, runtime: RuntimeInfo, places: Iterable[opennet.Place]
) -> Iterator[Finding]:
    code = inside.bundle()
    sandbox, is_shared = _start(settings, engine, host, runtime, code)
    asked = inside.Asked(tuple(places), tuple(sockets(settings)), _MEMORY_MB, is_shared)
    try:
        seen = inside.look(sandbox, code.digest, asked)
        yield from inside.judge(seen, asked)
        yield inside.judge_memory(seen["limits"], _MEMORY_MB, inside.overfill(sandbox, _MEMORY_MB))
    finally:
        sandbox.terminate()


def _start(
    settings: Settings, engine: Engine, host: Host, runtime: RuntimeInfo, code: pack.Bundle
) -> tuple[Sandbox, bool]:
    """A sandbox of a pool with default settings, and whether it shares a directory with us, as a runner decides it."""
    spec = PoolSpec(memory_mb=_MEMORY_MB)
    profile = profile_of("doctor", spec, runtime.image, runtime.image_id, runtime.shim)
    bundles = BundleCache(host.directory / "bundles", {code.digest: code.data}.__getitem__)
    common: tuple[Any, ...] = (engine, bundles, host.directory, host.labels, Access())
    if settings.transport != "stdio":
        try:
            shared: SandboxFactory = DockerSandboxFactory(*common)
            return shared.create(profile), True
        except SandboxStartError as e:
            if settings.transport != "auto":
                raise
            events.DOCTOR_NO_SOCKET(error=e)
    return StdioSandboxFactory(*common).create(profile), False


def targets(settings: Settings) -> tuple[list[opennet.Place], Finding | None]:
    """What a sandbox must not reach: Redis and the gateway at all addresses of this machine, its own loopback too, and
    metadata addresses. With a finding when Redis' own address cannot be told."""
    problem, redis, ports = None, [], [settings.redis_port]
    if settings.redis_url:
        try:
            ports = [port for _, port in redis_url.parse(settings.redis_url).nodes]
            redis = opennet.redis_places(settings.redis_url)
        except (BananasError, OSError) as e:
            problem = Finding("sandbox reach", "warning", f"the address of Redis is not known, so not tried: {e}")
    nearby = [("127.0.0.1", port) for port in ports if port]
    found = opennet.places([*redis, *nearby], settings.port, opennet.own_addresses())
    loopback = dict.fromkeys([*(port for _, port in [*redis, *nearby]), settings.port])
    return [*found, *(opennet.Place("its loopback", "127.0.0.1", port, "") for port in loopback)], problem


def sockets(settings: Settings) -> list[str]:
    """Paths of the engine's socket, and of Redis' if it has one."""
    paths = ["/var/run/docker.sock", describe().removeprefix("unix://")]
    if settings.redis_url:
        paths.append(redis_url.parse(settings.redis_url).path or "")
    return [path for path in dict.fromkeys(paths) if Path(path).is_absolute()]
