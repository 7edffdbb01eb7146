"""What a real sandbox keeps apart, judged by what ``probe`` saw and tried in it.

The sandbox is made by the runner's own factory with the profile of a pool without settings, so what holds here holds
for functions. Called by ``runner.doctor.command``; ``judge`` is pure.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bananas import pack
from bananas.errors import ProtocolError, SandboxDied, SandboxStartError
from bananas.findings import Finding
from bananas.job import new_job_id
from bananas.protocols import Binding, HandlerLoadError, Invocation, Sandbox
from runner.docker_driver import SANDBOX_UID
from runner.opennet import Place

_HANDLER: Final = "probe.handle"
_INIT_S: Final = 20.0
_LOOK_S: Final = 25.0
_CONNECT_S: Final = 2.0
_MEMORY_S: Final = 20.0
_MIB: Final = 1024 * 1024
#: What a kernel says of addresses to which there is no way; any other answer came from somebody.
_NO_WAY: Final = ("", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EPERM", "EACCES")
_WRITABLE: Final = ("/dev/shm", "/run/secrets", "/tmp")  # noqa: S108 - inside the sandbox
_MOUNT: Final = "/run/bananas"
#: Podman mounts /var/tmp beside a read-only root; we keep it this small, its mode is that of the image's folder.
_SMALL_KIB: Final = 64
#: Parts of names of variables that nobody but the platform has.
_PRIVATE: Final = ("BANANAS", "REDIS", "DOCKER", "SECRET", "TOKEN", "PASSWORD")
_REPORT: Final = "this is not what Bananas asks the engine for: "


@dataclass(frozen=True, slots=True)
class Asked:
    """What the sandbox was asked to try."""

    places: tuple[Place, ...]
    #: Sockets of this machine that must not be in it.
    paths: tuple[str, ...]
    memory_mb: int
    #: True when the code is in a read-only mount; else it is the sandbox's own copy in memory.
    is_shared: bool


def bundle() -> pack.Bundle:
    """The probe as the code of a function."""
    source = Path(__file__).with_name("probe.py").read_bytes()
    with tempfile.TemporaryDirectory(prefix="bananas-doctor-") as folder:
        (Path(folder) / "probe.py").write_bytes(source)
        return pack.pack(Path(folder), ignore=())


def look(sandbox: Sandbox, digest: str, asked: Asked) -> dict[str, Any]:
    """What the probe tells. Raises SandboxDied, ProtocolError, TimeoutError; SandboxStartError with its own error."""
    try:
        sandbox.bind(Binding("doctor", digest[:12], _HANDLER, digest, None), _INIT_S, _ignore)
    except HandlerLoadError as e:
        raise SandboxStartError(f"the probe does not load in {sandbox.profile.image}: {e.error.get('message')}") from e
    targets = [[place.address, place.port] for place in asked.places]
    event = {"do": "look", "targets": targets, "paths": asked.paths, "timeout_s": _CONNECT_S}
    payload = json.dumps(event).encode()
    reply = sandbox.invoke(Invocation(1, new_job_id(), 1, payload, _LOOK_S), _ignore, _ignore)
    if reply.result is None:
        raise SandboxStartError(f"the probe failed in {sandbox.profile.image}: {(reply.error or {}).get('message')}")
    seen: dict[str, Any] = json.loads(reply.result)
    return seen


def overfill(sandbox: Sandbox, memory_mb: int) -> str:
    """Let it take twice its memory: how that ended, ``killed`` if it was stopped for it. Ends the sandbox."""
    payload = json.dumps({"do": "memory", "mb": 2 * memory_mb}).encode()
    try:
        reply = sandbox.invoke(Invocation(2, new_job_id(), 1, payload, _MEMORY_S), _ignore, _ignore)
    except (SandboxDied, ProtocolError):
        info = sandbox.terminate()
        return "killed" if info.oom else f"its process {info.describe()}"
    except TimeoutError:
        return f"it did not end within {_MEMORY_S:g} s"
    if reply.error is not None:
        return str(reply.error.get("message"))
    return f"it got {2 * memory_mb} MiB"


def judge(seen: Mapping[str, Any], asked: Asked) -> list[Finding]:
    """One finding for each wall but the memory's."""
    return [
        _user(seen),
        _rights(seen),
        _seccomp(seen),
        _files(seen, asked.is_shared),
        _interfaces(seen),
        *_reach(seen, asked),
        _environment(seen),
    ]


def judge_memory(limits: Sequence[int | None], memory_mb: int, ended: str) -> Finding:
    """``limits``: bytes of memory and of memory with swap by the sandbox's cgroup; ``ended``: see ``overfill``."""
    name = "sandbox memory"
    shown = " and ".join(
        f"{limit // _MIB} MiB {what}" for limit, what in zip(limits, ("of memory", "with swap"), strict=True) if limit
    )
    detail = f"limited to {shown or 'what its cgroup does not show'}"
    if ended != "killed":
        step = "see the finding `cgroup`; without that limit one function can take the host's memory"
        return Finding(name, "failed", f"{detail}; asked to take {2 * memory_mb} MiB, {ended}", step)
    if limits[0] is not None and limits[1] is not None and limits[1] > limits[0]:
        return Finding(name, "warning", f"{detail}, so it can swap", "boot with swapaccount=1, or switch swap off")
    return Finding(name, "ok", f"{detail}; one that took {2 * memory_mb} MiB was killed for it")


def _user(seen: Mapping[str, Any]) -> Finding:
    ids = {seen["uid"], seen["gid"], *seen["groups"]}
    detail = f"uid {seen['uid']}, gid {seen['gid']}, groups {_list(seen['groups'])}"
    return _verdict("sandbox user", ids == {SANDBOX_UID}, detail, f"user and group {SANDBOX_UID}")


def _rights(seen: Mapping[str, Any]) -> Finding:
    held = [f"{name}={value:#x}" for name, value in seen["caps"].items() if value]
    is_good = not held and seen["no_new_privs"] == "1" and seen["setuid"] == "EPERM"
    detail = (
        f"capabilities {_list(held)}, no_new_privs {seen['no_new_privs'] or 'unknown'}, becoming root: {seen['setuid']}"
    )
    return _verdict("sandbox rights", is_good, detail, "no capability, no new privileges")


def _seccomp(seen: Mapping[str, Any]) -> Finding:
    modes = {"0": "off", "1": "strict", "2": "a filter"}
    detail = f"system calls: {modes.get(seen['seccomp'], 'unknown')} (mode {seen['seccomp'] or '?'})"
    return _verdict("sandbox seccomp", seen["seccomp"] == "2", detail, "the engine's seccomp profile")


def _files(seen: Mapping[str, Any], is_shared: bool) -> Finding:
    allowed = {*_WRITABLE} if is_shared else {*_WRITABLE, _MOUNT}
    closed = [("the root", seen["root"]), *([("the code", seen["shim"])] if is_shared else [])]
    open_ones = [what for what, answer in closed if answer not in ("EROFS", "EACCES")]
    others = [
        folder
        for folder, kind, size_kib in seen["writable"]
        if kind != "tmpfs" or not (folder in allowed or size_kib <= _SMALL_KIB)
    ]
    folders = [f"{folder} ({kind}, {_size(size_kib)})" for folder, kind, size_kib in seen["writable"]]
    detail = f"root {seen['root']}; writable: {_list(folders)}"
    if open_ones or others:
        return _verdict(
            "sandbox files", False, detail, f"{_list(sorted(allowed))} in memory, and nothing else writable"
        )
    if not seen["all_seen"]:
        return Finding("sandbox files", "warning", f"{detail}; the image is too large to be looked through in time")
    return Finding("sandbox files", "ok", detail)


def _interfaces(seen: Mapping[str, Any]) -> Finding:
    found = seen["interfaces"]
    return _verdict("sandbox network", found == ["lo"], f"interfaces: {_list(found)}", "no interface but lo")


def _reach(seen: Mapping[str, Any], asked: Asked) -> list[Finding]:
    reached: dict[bool, list[str]] = {False: [], True: []}
    for place, answer in zip(asked.places, seen["answers"], strict=True):
        # On its own loopback nobody listening is what there should be; elsewhere a refusal came from somebody.
        fine = (*_NO_WAY, "ECONNREFUSED") if place.address.startswith("127.") else _NO_WAY
        if answer not in fine:
            reached[_is_metadata(place)].append(f"{place.what} at {place.address}:{place.port} ({answer})")
    found: list[Finding] = []
    for is_metadata, name in ((True, "sandbox metadata"), (False, "sandbox reach")):
        tried = [place for place in asked.places if _is_metadata(place) is is_metadata]
        bad = reached[is_metadata] + ([] if is_metadata else list(seen["paths"]))
        if bad:
            found.append(_verdict(name, False, f"it reaches {_list(bad)}", "a sandbox without network"))
            continue
        shown = _list([place.address for place in tried]) if is_metadata else _sum_up(tried, asked.paths)
        found.append(Finding(name, "ok", f"nothing answers: {shown}"))
    return found


def _sum_up(places: Sequence[Place], paths: Sequence[str]) -> str:
    hosts, ports = {place.address for place in places}, {place.port for place in places}
    addresses = f"ports {_list(sorted(ports))} at {len(hosts)} addresses of this machine and of Redis"
    return f"{addresses}; no {_list(paths)}" if paths else addresses


def _environment(seen: Mapping[str, Any]) -> Finding:
    private = [name for name in seen["env"] if any(part in name.upper() for part in _PRIVATE)]
    detail = f"variables: {_list(private or seen['env'])}"
    return _verdict("sandbox env", not private, detail, "no variable of the platform")


def _is_metadata(place: Place) -> bool:
    return place.address.startswith("169.254.")


def _verdict(name: str, is_good: bool, detail: str, wanted: str) -> Finding:
    if is_good:
        return Finding(name, "ok", detail)
    step = f"run no foreign code on this engine; {_REPORT}{wanted}. See docs/security.md"
    return Finding(name, "failed", detail, step)


def _size(size_kib: int) -> str:
    return f"{size_kib // 1024} MiB" if size_kib >= 1024 else f"{size_kib} KiB"


def _list(words: Sequence[object]) -> str:
    return ", ".join(map(str, words)) or "none"


def _ignore(_: bytes) -> None:
    """The probe prints nothing that anybody wants."""
