"""What the engine says of itself, judged: version, users, runc, cgroups, seccomp, and an image for each runtime.

Pure but for ``runner.doctor.runc``'s look at this host's packages. Takes the answers of ``docker info`` and
``docker version``; called by ``runner.doctor.command``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bananas.findings import Finding
from bananas.runtimes import DEFAULT_RUNTIME
from bananas.spec import RuntimeInfo
from runner.doctor import runc

#: Docker 20.10 and Podman 4 speak it; nothing older is tried.
_OLDEST_API: Final = (1, 41)
#: Storage drivers that copy whole images for each container, or are gone from current engines. Docker's ``overlay``
#: was one of these; Podman gives that name to what Docker calls ``overlay2``, or ``overlayfs``.
_SLOW_STORAGE: Final = {"Docker Engine": ("vfs", "aufs", "devicemapper", "overlay"), "Podman": ("vfs",)}
#: What of ``docker info`` says that a limit of a sandbox is enforced.
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU",
    "SwapLimit": "swap",
}


def judge(info: Mapping[str, Any], version: Mapping[str, Any], address: str) -> list[Finding]:
    """One finding each for engine, users, runc, cgroup and seccomp."""
    return [
        judge_engine(info, version, address),
        judge_users(info),
        judge_runc(info, version, is_local=address.startswith("unix://")),
        judge_cgroup(info),
        judge_seccomp(info),
    ]


def judge_engine(info: Mapping[str, Any], version: Mapping[str, Any], address: str) -> Finding:
    """Its version, its API and how it stores images."""
    kind = "Podman" if "BuildahVersion" in info else "Docker Engine"
    api, driver = str(version.get("ApiVersion", "")), str(info.get("Driver", ""))
    detail = f"{kind} {info.get('ServerVersion')}, API {api}, storage {driver}, answers at {address}"
    numbers = tuple(int(part) for part in api.split(".") if part.isdecimal())
    if numbers < _OLDEST_API:
        return Finding("engine", "failed", detail, "update it: API 1.41 (Docker 20.10, Podman 4) is the oldest")
    if info.get("OSType", "linux") != "linux":
        return Finding("engine", "failed", detail, "let it run Linux containers")
    if driver in _SLOW_STORAGE[kind]:
        better = "overlay" if kind == "Podman" else "overlay2"
        step = f"use {better}: with {driver} sandboxes start slowly or not at all"
        return Finding("engine", "warning", detail, step)
    return Finding("engine", "ok", detail)


def judge_users(info: Mapping[str, Any]) -> Finding:
    """Whose root the root of a container would be."""
    options = _options(info)
    if info.get("Rootless") or "rootless" in options:
        return Finding("users", "ok", "the engine runs without root")
    if "userns" in options:
        return Finding("users", "ok", "containers have users of their own (userns-remap)")
    return Finding(
        "users", "ok", "containers share the host's user ids; sandboxes are uid 65534 there, and none becomes root"
    )


def judge_runc(info: Mapping[str, Any], version: Mapping[str, Any], *, is_local: bool) -> Finding:
    """What starts the containers, and its known escapes."""
    default = str(info.get("DefaultRuntime", "") or "runc")
    if default in ("runc", "io.containerd.runc.v2", "nvidia"):
        found = runc.of_engine(version, is_local=is_local)
        if found is not None:
            return runc.judge(found)
        return Finding(
            "runc", "warning", "the engine does not say its version of runc", "see `runc --version` on its host"
        )
    return Finding("runc", "ok", f"not used: containers are started by {default}, whose escapes are not looked up")


def judge_cgroup(info: Mapping[str, Any]) -> Finding:
    """Which limits the engine says it can enforce; whether they hold is tried in a sandbox."""
    version = str(info.get("CgroupVersion") or "1")
    detail = f"version {version}, driver {info.get('CgroupDriver') or 'none'}"
    rootless = bool(info.get("Rootless")) or "rootless" in _options(info)
    if str(info.get("CgroupDriver")) == "none" or (rootless and version == "1"):
        step = "boot with systemd.unified_cgroup_hierarchy=1, or run the engine as root"
        return Finding("cgroup", "failed", f"{detail}: no limit of a sandbox is enforced", step)
    lacks = [what for key, what in _LIMITS.items() if info.get(key) is False]
    if lacks == ["swap"]:
        step = "boot with swapaccount=1, or switch swap off"
        return Finding("cgroup", "warning", f"{detail}: sandboxes can use swap beyond their memory", step)
    if lacks:
        step = "enable these controllers in the host's kernel (cgroup_enable=memory)"
        return Finding("cgroup", "failed", f"{detail}: no limit of {', '.join(lacks)} is enforced", step)
    return Finding("cgroup", "ok", f"{detail}; limits of memory, swap, processes and CPU")


def judge_seccomp(info: Mapping[str, Any]) -> Finding:
    """Whether system calls are filtered, and by whose profile."""
    options = _options(info)
    others = "".join(f"; {name}" for name in ("apparmor", "selinux") if name in options)
    if "seccomp" not in options:
        step = "use a kernel and an engine with seccomp (CONFIG_SECCOMP_FILTER)"
        return Finding("seccomp", "failed", "the engine filters no system calls", step)
    profile = options["seccomp"] or "default"
    if profile == "unconfined":
        step = 'take "seccomp-profile": "unconfined" out of the engine\'s daemon.json'
        return Finding("seccomp", "failed", "the engine's profile is unconfined", step)
    return Finding("seccomp", "ok", f"profile {profile}{others}")


def judge_images(runtimes: Mapping[str, RuntimeInfo], wanted: str, is_there: bool) -> list[Finding]:
    """One finding for each image, with its runtimes. ``wanted`` is BANANAS_PYTHON_IMAGE, and whether that is there."""
    found: list[Finding] = []
    if wanted and not is_there:
        step = "see `bananas images ls`; a runner needs it for `runtime: python`"
        found.append(Finding("image", "failed", f"BANANAS_PYTHON_IMAGE={wanted} is not on the engine", step))
    elif DEFAULT_RUNTIME not in runtimes:
        found.append(
            Finding("image", "failed", "there is no image for `runtime: python`", "run `bananas images build`")
        )
    by_id: dict[str, list[str]] = {}
    for name, info in runtimes.items():
        by_id.setdefault(info.image_id, []).append(name)
    for names in by_id.values():
        info = runtimes[names[0]]
        found.append(Finding("image", "ok", f"{info.image} runs {', '.join(names)} ({info.abi})"))
    return found


def _options(info: Mapping[str, Any]) -> dict[str, str]:
    """``name=seccomp,profile=default`` → {"seccomp": "default"}."""
    found: dict[str, str] = {}
    for option in info.get("SecurityOptions") or ():
        pairs = dict(part.partition("=")[::2] for part in str(option).split(","))
        found[pairs.get("name", str(option))] = pairs.get("profile", "")
    return found
