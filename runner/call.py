"""``python -m runner call NAME -f bananas.yaml``: one call of a function in a real sandbox, without Redis and gateway.

The payload comes on stdin, the result goes to stdout, what the function prints to stderr while it runs. The same
image, limits and egress as under a runner; never secrets, GPUs or an open network, which it refuses. Started by
``bananas invoke --local``. Exit codes are those of the command line: 0, 1 for us, 4 for the function.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bananas import deploy, manifest, pack, packages, syntax
from bananas.errors import (
    BananasError,
    InvalidRequest,
    ProtocolError,
    SandboxDied,
    UnknownBundle,
    UnknownFunction,
)
from bananas.job import new_job_id
from bananas.manifest import ManifestFunction
from bananas.protocols import Binding, CallReply, HandlerLoadError, Invocation, Sandbox, SandboxFactory
from bananas.settings import LIMITS, MIB, Settings
from bananas.spec import PoolSpec, RuntimeInfo
from runner import images
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.egress import Caps
from runner.host import Host
from runner.sandbox import DockerSandboxFactory
from runner.slot import profile_of
from runner.stdio import StdioSandboxFactory

#: Below the state directory; also the label of the containers, by which later calls remove what a killed one left.
INSTANCE = "local"
_FUNCTION_FAILED = 4


@dataclass(frozen=True, slots=True)
class _App:
    """What is called: the function, its pool, its code."""

    name: str
    function: ManifestFunction
    pool: PoolSpec
    runtime: RuntimeInfo
    code: pack.Bundle
    deps: pack.Bundle | None


def main(argv: Sequence[str]) -> int:
    """Returns the exit code, after saying on stderr what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m runner call")
    parser.add_argument("name")
    parser.add_argument("--file", type=Path, default=Path("bananas.yaml"))
    options = parser.parse_args(argv)
    try:
        return _call(options.name, options.file, sys.stdin.buffer.read(LIMITS.payload_bytes + 1))
    except BananasError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def _call(name: str, file: Path, payload: bytes) -> int:
    if len(payload) > LIMITS.payload_bytes:
        raise InvalidRequest(f"the payload has more than {LIMITS.payload_bytes} bytes, the limit")
    settings = Settings.from_env()
    loaded = manifest.load(file, os.environ)
    function = _choose(loaded, name)
    engine = Engine()
    app = _pack(name, function, loaded.pools.get(function.spec.pool, PoolSpec()), engine, settings.python_image)
    host = Host(settings.state_path, INSTANCE, engine)
    try:
        host.sweep()
        sandbox = _factory(settings, engine, host, app).create(
            profile_of(function.spec.pool, app.pool, app.runtime.image, app.runtime.image_id, app.runtime.shim)
        )
        try:
            return _run(sandbox, app, payload)
        finally:
            sandbox.terminate()
    finally:
        host.leave()


def _choose(loaded: manifest.Manifest, name: str) -> ManifestFunction:
    """The function; raises for one that is not there, or that needs what only an installation has."""
    function = loaded.functions.get(name)
    if function is None:
        known = ", ".join(loaded.functions) or "none"
        raise UnknownFunction(f"{loaded.path} has no function {name!r}; it has {known}")
    pool = loaded.pools.get(function.spec.pool, PoolSpec())
    lacks = {
        "secrets": bool(function.spec.secrets),
        "an image of its own": function.spec.image is not None,
        "network: open": pool.network == "open",
        "GPUs": bool(pool.gpus),
    }
    if wanted := [what for what, is_wanted in lacks.items() if is_wanted]:
        raise InvalidRequest(
            f"function {name!r} uses {' and '.join(wanted)}, which a local call does not offer; run `bananas dev` and "
            f"call it there with `bananas invoke {name}`"
        )
    return function


def _pack(name: str, function: ManifestFunction, pool: PoolSpec, engine: Engine, image: str) -> _App:
    """The function's code and packages as a deploy makes them; raises as that does."""
    runtime = images.resolve(engine.client, function.spec.runtime, image)
    code = pack.pack(function.folder, ignore=pack.NODE_IGNORE if runtime.node else pack.IGNORE)
    if not runtime.node:
        syntax.check(code, function.folder, runtime.python, function.spec.handler)
    wants = packages.wanted(function.folder) is not None if runtime.node else function.requirements is not None
    deps = deploy.install(name, function, runtime.abi, lambda line: print(line, file=sys.stderr)) if wants else None
    return _App(name, function, pool, runtime, code, deps)


def _factory(settings: Settings, engine: Engine, host: Host, app: _App) -> SandboxFactory:
    archives = {bundle.digest: bundle.data for bundle in (app.code, app.deps) if bundle is not None}

    def fetch(sha256: str) -> bytes:
        if sha256 not in archives:
            raise UnknownBundle(f"no bundle {sha256} belongs to this call")
        return archives[sha256]

    bundles = BundleCache(host.cache, fetch)
    access = Access(Caps(settings.egress_connections, settings.egress_mb * MIB))
    kind = StdioSandboxFactory if settings.transport == "stdio" else DockerSandboxFactory
    return kind(engine, bundles, host.directory, host.labels, access)


def _run(sandbox: Sandbox, app: _App, payload: bytes) -> int:
    """Load the code and call it; prints the result or the error, returns the exit code."""
    spec = app.function.spec
    try:
        reply = _invoke(sandbox, app, payload)
    except HandlerLoadError as e:
        return _failed(e.error)
    except TimeoutError:
        message = f"it took longer than its timeout ({spec.timeout_ms} ms; init_timeout is {spec.init_timeout_ms} ms)"
        return _failed({"type": "Timeout", "message": message})
    except (SandboxDied, ProtocolError) as e:
        info = sandbox.terminate(_print_log)
        if info.oom:
            message = f"it used more memory than its limit of {app.pool.memory_mb} MiB (pool {spec.pool!r})"
            return _failed({"type": "OutOfMemory", "message": message})
        message = str(e) if isinstance(e, ProtocolError) else f"its process {info.describe()} before it answered"
        return _failed({"type": "Crashed", "message": message})
    if reply.error is not None:
        return _failed(reply.error)
    sys.stdout.buffer.write((reply.result or b"null") + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _invoke(sandbox: Sandbox, app: _App, payload: bytes) -> CallReply:
    spec = app.function.spec
    deps = None if app.deps is None else app.deps.digest
    binding = Binding(*(app.name, "local", spec.handler, app.code.digest, deps), env=dict(spec.env), egress=spec.egress)
    sandbox.bind(binding, spec.init_timeout_ms / 1000, _print_log)
    call = Invocation(1, new_job_id(), 1, payload, spec.timeout_ms / 1000)
    return sandbox.invoke(call, _print_log, lambda _: None)


def _print_log(data: bytes) -> None:
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def _failed(error: dict[str, object]) -> int:
    if traceback := error.get("traceback"):
        print(str(traceback).rstrip(), file=sys.stderr)
    print(f"error: {error.get('type')}: {error.get('message')}", file=sys.stderr)
    return _FUNCTION_FAILED
