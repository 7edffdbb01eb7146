"""Bring a gateway to what bananas.yaml says: pack, install, upload, and only then switch versions.

Everything that can fail for a reason of the user's own (files, requirements, size, a missing runtime) happens for all
functions before the first one is switched, so a failed deploy leaves every serving version as it was. A function whose
version is already served is neither installed nor uploaded. Called by the command line, ``bananas dev`` and tests.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bananas import pack, packages, requirements, syntax
from bananas.client import Client
from bananas.errors import ApiError, DeployError
from bananas.manifest import Manifest, ManifestFunction
from bananas.runtimes import build_hint
from bananas.settings import KIB, MIB
from bananas.spec import OWN_IMAGE_ABI, Bundles, Deployment
from bananas.steps import Step, no_step

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Tell:
    report: Report
    step: Step


@dataclass(frozen=True, slots=True)
class Deployed:
    """What became of one function."""

    name: str
    version: str
    #: False when that version served already.
    changed: bool
    #: The address that calls it.
    calls: str


def deploy(
    client: Client, manifest: Manifest, only: set[str] | None, report: Report, step: Step = no_step
) -> list[Deployed]:
    """Deploy the functions named in ``only`` (None: all) and the pools they use; ``report`` gets progress lines.

    ``step`` is begun for whatever takes long. Raises DeployError with the problems of all functions, ApiError or
    GatewayUnreachable.
    """
    tell = _Tell(report, step)
    functions = _choose(manifest, only)
    runtimes = client.runtimes() if functions else {}
    ready: list[tuple[str, Deployment, bool]] = []
    problems = _check_secrets(client, functions)
    for name, function in functions.items():
        try:
            ready.append((name, *_prepare(client, name, function, runtimes, tell)))
        except (DeployError, ApiError) as e:
            problems.append(f"{name}: {e}")
    if problems:
        raise DeployError("\n".join([*problems, "nothing was deployed; what served before still serves"]))
    _warn_of_gpus(client, manifest, [functions[name] for name, _, changed in ready if changed], report)
    _put_pools(client, manifest, functions.values() if only is not None else None, report)
    return _switch_all(client, ready, report)


def _choose(manifest: Manifest, only: set[str] | None) -> dict[str, ManifestFunction]:
    unknown = sorted((only or set()) - manifest.functions.keys())
    if unknown:
        known = ", ".join(manifest.functions) or "none"
        raise DeployError(f"{manifest.path} has no function {', '.join(unknown)}; it has {known}")
    return {name: f for name, f in manifest.functions.items() if only is None or name in only}


def _prepare(
    client: Client, name: str, function: ManifestFunction, runtimes: dict[str, dict[str, Any]], tell: _Tell
) -> tuple[Deployment, bool]:
    """The deployment with its bundles at the gateway, and whether it differs from what is served."""
    if function.spec.image is not None:
        return _prepare_image(client, name, function, tell)
    runtime = function.spec.runtime
    if runtime not in runtimes:
        build = "" if runtime == "python" else f", or build an image for it with {build_hint(runtime)}"
        raise DeployError(f"no runner has published the runtime {runtime}; start one with `bananas runner`{build}")
    is_node = bool(runtimes[runtime].get("node"))
    with tell.step(f"{name}: packing") as advance:
        ignore = pack.NODE_IGNORE if is_node else pack.IGNORE
        code = pack.pack(function.folder, ignore=ignore, on_bytes=advance)
    text = packages.wanted(function.folder) if is_node else _requirements_text(function.requirements)
    deployment = Deployment(
        spec=function.spec,
        bundles=Bundles(code=code.digest, requirements=None if text is None else hashlib.sha256(text).hexdigest()),
        abi=runtimes[runtime]["abi"],
    )
    if _served(client, name) == deployment.version():
        return deployment, False
    if not is_node:
        syntax.check(code, function.folder, runtimes[runtime]["python"], function.spec.handler)
    if text is not None:
        deps = install(name, function, deployment.abi, tell.report, tell.step)
        if deps is not None:
            _upload(client, name, "requirements", deps, tell)
            bundles = msgspec.structs.replace(deployment.bundles, deps=deps.digest)
            deployment = msgspec.structs.replace(deployment, bundles=bundles)
    _upload(client, name, "code", code, tell)
    return deployment, True


def _prepare_image(client: Client, name: str, function: ManifestFunction, tell: _Tell) -> tuple[Deployment, bool]:
    """The same for an image of one's own: the files beside it, if there are any."""
    with tempfile.TemporaryDirectory(prefix="bananas-empty-") as empty:
        code = pack.pack(function.folder if function.folder.is_dir() else Path(empty), ignore=pack.NODE_IGNORE)
    deployment = Deployment(spec=function.spec, bundles=Bundles(code=code.digest), abi=OWN_IMAGE_ABI)
    if _served(client, name) == deployment.version():
        return deployment, False
    _upload(client, name, "code", code, tell)
    return deployment, True


def _requirements_text(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as e:
        raise DeployError(f"{path} cannot be read: {e.strerror or e}") from e


def _served(client: Client, name: str) -> str | None:
    """The version that new calls run now; None when the function is not deployed."""
    try:
        return str(client.function(name)["version"])
    except ApiError as e:
        if e.status == 404:
            return None
        raise


def install(
    name: str, function: ManifestFunction, abi: str, report: Report, step: Step = no_step
) -> pack.Bundle | None:
    """The packed requirements or packages for a runtime; None when the file asks for nothing. Raises DeployError."""
    path = function.requirements or function.folder / "package.json"
    report(f"{name}: installing {path.name} for {abi}")
    with tempfile.TemporaryDirectory(prefix="bananas-deps-") as folder:
        target = Path(folder) / "deps"
        with step(f"{name}: installing {path.name}"):
            if function.requirements is not None:
                requirements.install(path, abi, target)
            else:
                packages.install(function.folder, abi, target)
        if not target.is_dir() or not any(target.iterdir()):
            return None
        try:
            # Packages keep all their files; only what Python would write again is left out.
            with step(f"{name}: packing {path.name}") as advance:
                return pack.pack(target, ignore=("__pycache__", "*.pyc"), on_bytes=advance)
        except DeployError as e:
            raise DeployError(f"what {path} installs cannot be packed: {e}") from e


def _upload(client: Client, name: str, what: str, bundle: pack.Bundle, tell: _Tell) -> None:
    if client.has_bundle(bundle.digest):
        return
    size = _size(len(bundle.data))
    tell.report(f"{name}: uploading {what}, {size} in {bundle.files} file{'s'[: bundle.files != 1]}")
    with tell.step(f"{name}: uploading {what}", len(bundle.data)) as advance:
        client.put_bundle(bundle.digest, bundle.data, advance)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB" if size_bytes >= MIB else f"{-(-size_bytes // KIB)} KiB"


def _warn_of_gpus(client: Client, manifest: Manifest, functions: Iterable[ManifestFunction], report: Report) -> None:
    """Name the pools of these functions that ask for GPUs which no live runner has: the deploy is fine all the same."""
    used = {pool for f in functions for pool in (f.spec.pool, *f.spec.allow_pools)}
    wanted = [name for name, pool in manifest.pools.items() if pool.gpus and name in used]
    runners = client.runners() if wanted else []
    missing = [
        name
        for name in wanted
        if not any(runner.get("gpus") and (not runner["pools"] or name in runner["pools"]) for runner in runners)
    ]
    if missing:
        report(
            f"warning: no live runner has a GPU for pool {', '.join(missing)}; jobs there fail and say so until one has"
        )


def _put_pools(client: Client, manifest: Manifest, users: Iterable[ManifestFunction] | None, report: Report) -> None:
    """Pools come before functions, which name them; with ``users``, only those that they may run in."""
    wanted = set(manifest.pools)
    if users is not None:
        wanted = {pool for user in users for pool in (user.spec.pool, *user.spec.allow_pools)}
    for name, pool in manifest.pools.items():
        if name in wanted and client.put_pool(name, pool)["changed"]:
            report(f"pool {name}: changed")


def _check_secrets(client: Client, functions: dict[str, ManifestFunction]) -> list[str]:
    """What is not set of the secrets that these functions need; nothing for a token that may not list them."""
    if not any(function.spec.secrets for function in functions.values()):
        return []
    try:
        known = {secret["name"] for secret in client.secrets()}
    except ApiError as e:
        if e.status == 403:  # the gateway tells when the function is switched
            return []
        raise
    return [
        f"{name}: secret {secret!r} is not set; `bananas secret set {secret}` first"
        for name, function in functions.items()
        for secret in function.spec.secrets
        if secret not in known
    ]


def _switch_all(client: Client, ready: list[tuple[str, Deployment, bool]], report: Report) -> list[Deployed]:
    """One after the other. Raises DeployError that says how far it came, when the gateway refuses one."""
    done: list[Deployed] = []
    for name, deployment, changed in ready:
        try:
            done.append(_switch(client, name, deployment, changed, report))
        except ApiError as e:
            before = ", ".join(function.name for function in done if function.changed)
            if not before:
                raise
            after = ", ".join(left for left, _, _ in ready[len(done) :])
            raise DeployError(f"{name}: {e}\ndeployed before it: {before}; not deployed: {after}") from e
    return done


def _switch(client: Client, name: str, deployment: Deployment, changed: bool, report: Report) -> Deployed:
    version = deployment.version()
    if changed:
        version = str(client.put_function(name, deployment)["version"])
    report(f"{name}: deployed {version}" if changed else f"{name}: unchanged ({version})")
    return Deployed(name, version, changed, f"{client.url}/functions/{name}/invoke")
