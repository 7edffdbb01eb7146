"""``python -m runner doctor``: what each answer of an engine and each sight from inside a sandbox means."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from bananas.settings import Settings
from bananas.spec import RuntimeInfo
from runner.doctor import command, engine, inside, runc
from runner.opennet import Place

LOCAL = "unix:///var/run/docker.sock"
INFO: dict[str, Any] = {
    "ServerVersion": "27.1.1",
    "Driver": "overlay2",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
    "CgroupVersion": "2",
    "CgroupDriver": "systemd",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "DefaultRuntime": "runc",
    "OSType": "linux",
}
VERSION: dict[str, Any] = {
    "ApiVersion": "1.46",
    "Components": [
        {"Name": "containerd", "Version": "1.7.19"},
        {"Name": "runc", "Version": "1.3.3", "Details": {"GitCommit": "v1.3.3-0-gd842d77"}},
    ],
}
REDIS = Place("Redis", "10.0.0.9", 6379, "")
METADATA = Place("the cloud's metadata", "169.254.169.254", 80, "")
LOOPBACK = Place("its loopback", "127.0.0.1", 6379, "")
WRITABLE = [["/dev/shm", "tmpfs", 65536], ["/run/secrets", "tmpfs", 1024], ["/tmp", "tmpfs", 65536]]
ASKED = inside.Asked((REDIS, METADATA, LOOPBACK), ("/var/run/docker.sock",), 64, is_shared=True)
SEEN: dict[str, Any] = {
    "uid": 65534,
    "gid": 65534,
    "groups": [65534],
    "caps": {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0},
    "no_new_privs": "1",
    "seccomp": "2",
    "setuid": "EPERM",
    "root": "EROFS",
    "shim": "EROFS",
    "interfaces": ["lo"],
    "answers": ["ENETUNREACH", "ENETUNREACH", "ECONNREFUSED"],
    "paths": [],
    "env": ["HOME", "LANG", "PATH"],
    "writable": WRITABLE,
    "all_seen": True,
}


@pytest.mark.parametrize(
    ("version", "package", "mended", "status", "names"),
    [
        ("1.1.11", "", (), "failed", "CVE-2024-21626"),
        ("1.0.3", "", (), "failed", "CVE-2024-21626"),
        ("1.1.12", "", (), "warning", "CVE-2025-31133"),
        ("1.1.5+ds1", "1.1.5+ds1-1", (), "failed", "CVE-2024-21626"),
        ("1.1.5+ds1", "1.1.5+ds1-1+deb12u1", (), "warning", "CVE-2025-52881"),
        ("1.1.5+ds1", "1.1.5+ds1-1ubuntu9", ("CVE-2024-21626",), "warning", "CVE-2025-52565"),
        ("1.1.5+ds1", "1.1.5+ds1-9", [escape.cve for escape in runc.ESCAPES], "ok", "are mended"),
        ("1.2.7", "", (), "warning", "CVE-2025-31133"),
        ("1.2.8", "", (), "ok", "are mended"),
        ("1.3.2", "", (), "warning", "CVE-2025-31133"),
        ("1.3.3", "", (), "ok", "are mended"),
        ("1.4.0-rc.2", "", (), "warning", "CVE-2025-31133"),
        ("1.4.0-rc.3", "", (), "ok", "are mended"),
        ("1.4.0~rc2", "", (), "warning", "CVE-2025-31133"),
        ("1.5.0-rc.1", "", (), "ok", "are mended"),
        ("main", "", (), "warning", "no version that can be compared"),
    ],
)
def test_a_runc_is_judged_by_its_number_and_by_what_its_package_mended(
    version: str, package: str, mended: list[str], status: str, names: str
) -> None:
    """An old number of a distribution is condemned for nothing that its package mended."""
    finding = runc.judge(runc.Runc(version, package, frozenset(mended)))
    assert (finding.name, finding.status, names in finding.detail) == ("runc", status, True)
    assert bool(finding.next) == (status != "ok")


def test_the_runc_of_an_engine_is_found_where_engines_tell_it() -> None:
    """Docker's component, Debian's package in its commit, Podman's many lines; none with crun."""
    debian = {"Name": "runc", "Version": "1.1.5+ds1", "Details": {"GitCommit": "1.1.5+ds1-1+deb12u1"}}
    podman = {"Name": "OCI Runtime (runc)", "Version": "runc version 1.1.12\ncommit: v1.1.12\nspec: 1.0.2-dev"}
    crun = {"Name": "OCI Runtime (crun)", "Version": "crun version 1.8.1"}
    assert runc.of_engine(VERSION, is_local=False) == runc.Runc("1.3.3")
    assert runc.of_engine({"Components": [debian]}, is_local=False) == runc.Runc("1.1.5+ds1", "1.1.5+ds1-1+deb12u1")
    assert runc.of_engine({"Components": [podman]}, is_local=False) == runc.Runc("1.1.12")
    assert runc.of_engine({"Components": [crun]}, is_local=False) is None


def test_a_change_log_tells_what_a_package_mended(tmp_path: Path) -> None:
    """Every CVE in it, and none where slim containers have no change logs or the file is no archive."""
    changes = tmp_path / "changelog.Debian.gz"
    assert runc._mended(changes) == frozenset()
    changes.write_bytes(gzip.compress(b"  * CVE-2024-21626: leaked fds\n  * Fix CVE-2023-27561 (Closes: #1033520)\n"))
    assert runc._mended(changes) == {"CVE-2024-21626", "CVE-2023-27561"}
    changes.write_bytes(b"no archive")
    assert runc._mended(changes) == frozenset()


def test_a_current_engine_is_well() -> None:
    """One finding a subject, all ok."""
    found = engine.judge(INFO, VERSION, "tcp://10.0.0.1:2376")
    assert [(finding.name, finding.status) for finding in found] == [
        ("engine", "ok"),
        ("users", "ok"),
        ("runc", "ok"),
        ("cgroup", "ok"),
        ("seccomp", "ok"),
    ]


@pytest.mark.parametrize(
    ("name", "change", "status", "says"),
    [
        ("engine", {"Driver": "vfs"}, "warning", "storage vfs"),
        ("engine", {"Driver": "overlay"}, "warning", "storage overlay"),
        ("engine", {"Driver": "overlayfs"}, "ok", "storage overlayfs"),
        ("engine", {"Driver": "overlay", "BuildahVersion": "1.28.2"}, "ok", "Podman 27.1.1"),
        ("engine", {"Driver": "vfs", "BuildahVersion": "1.28.2"}, "warning", "storage vfs"),
        ("engine", {"OSType": "windows"}, "failed", "Docker Engine"),
        ("users", {"Rootless": True}, "ok", "without root"),
        ("users", {"SecurityOptions": ["name=seccomp,profile=default", "name=userns"]}, "ok", "userns-remap"),
        ("runc", {"DefaultRuntime": "runsc"}, "ok", "started by runsc"),
        ("cgroup", {"SwapLimit": False}, "warning", "swap beyond"),
        ("cgroup", {"MemoryLimit": False, "SwapLimit": False}, "failed", "memory, swap"),
        ("cgroup", {"PidsLimit": False}, "failed", "processes"),
        ("cgroup", {"Rootless": True, "CgroupVersion": "1"}, "failed", "no limit"),
        ("cgroup", {"CgroupDriver": "none"}, "failed", "no limit"),
        ("seccomp", {"SecurityOptions": []}, "failed", "no system calls"),
        ("seccomp", {"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "failed", "unconfined"),
    ],
)
def test_what_an_engine_lacks_is_told(name: str, change: dict[str, Any], status: str, says: str) -> None:
    """Each lack by its own finding; what fails or warns has a next step."""
    [finding] = [found for found in engine.judge({**INFO, **change}, VERSION, "tcp://h:1") if found.name == name]
    assert (finding.status, says in finding.detail) == (status, True)
    assert bool(finding.next) == (status != "ok")


def test_an_engine_that_is_too_old() -> None:
    """Docker 19.03 spoke API 1.40."""
    assert engine.judge_engine(INFO, {"ApiVersion": "1.40"}, LOCAL).status == "failed"
    assert engine.judge_engine(INFO, {"ApiVersion": "1.41"}, LOCAL).status == "ok"


def test_images_by_runtime() -> None:
    """One line an image, with all its runtimes; one that is missing, with how to make it."""
    python = RuntimeInfo(
        image="bananas/python:default", image_id="sha256:1", machine="x86_64", libc="glibc2.36", python="3.11"
    )
    node = RuntimeInfo(image="bananas/node:default", image_id="sha256:2", machine="x86_64", libc="glibc2.36", node="22")
    found = engine.judge_images({"python": python, "python3.11": python, "node": node}, "", True)
    assert [(finding.status, finding.detail.split(" (")[0]) for finding in found] == [
        ("ok", "bananas/python:default runs python, python3.11"),
        ("ok", "bananas/node:default runs node"),
    ]
    [missing, _] = engine.judge_images({"node": node}, "", True)
    assert (missing.status, missing.next) == ("failed", "run `bananas images build`")
    [wrong, _] = engine.judge_images({"node": node}, "mine:1", False)
    assert (wrong.status, "BANANAS_PYTHON_IMAGE=mine:1" in wrong.detail) == ("failed", True)


def test_a_closed_sandbox_is_well() -> None:
    """One finding a wall."""
    found = inside.judge(SEEN, ASKED)
    assert {finding.status for finding in found} == {"ok"}
    assert [finding.name.removeprefix("sandbox ") for finding in found] == [
        "user",
        "rights",
        "seccomp",
        "files",
        "network",
        "metadata",
        "reach",
        "env",
    ]


@pytest.mark.parametrize(
    ("wall", "change", "says"),
    [
        ("user", {"uid": 0}, "uid 0"),
        ("user", {"groups": [65534, 0]}, "groups 65534, 0"),
        ("rights", {"caps": {"CapEff": 0x400}}, "CapEff=0x400"),
        ("rights", {"no_new_privs": "0"}, "no_new_privs 0"),
        ("rights", {"setuid": "connected"}, "becoming root"),
        ("seccomp", {"seccomp": "0"}, "off"),
        ("files", {"root": "worked"}, "root worked"),
        ("files", {"shim": "worked"}, "root EROFS"),
        ("files", {"writable": [*WRITABLE, ["/var/lib", "overlay", 99]]}, "/var/lib (overlay, 99 KiB)"),
        ("files", {"writable": [*WRITABLE, ["/var/tmp", "tmpfs", 10240]]}, "/var/tmp (tmpfs, 10 MiB)"),
        ("files", {"writable": [["/tmp", "ext4", 65536]]}, "/tmp (ext4, 64 MiB)"),
        ("network", {"interfaces": ["eth0", "lo"]}, "eth0"),
        ("metadata", {"answers": ["", "connected", ""]}, "169.254.169.254:80 (connected)"),
        ("reach", {"answers": ["ECONNREFUSED", "", ""]}, "Redis at 10.0.0.9:6379 (ECONNREFUSED)"),
        ("reach", {"answers": ["", "", "connected"]}, "its loopback at 127.0.0.1:6379"),
        ("reach", {"paths": ["/var/run/docker.sock"]}, "/var/run/docker.sock"),
        ("env", {"env": ["BANANAS_REDIS_URL", "PATH"]}, "BANANAS_REDIS_URL"),
    ],
)
def test_a_wall_with_a_hole_fails_alone(wall: str, change: dict[str, Any], says: str) -> None:
    """It is named with what came through, and nothing else is blamed."""
    [finding] = [found for found in inside.judge({**SEEN, **change}, ASKED) if found.status != "ok"]
    assert (finding.name, finding.status, says in finding.detail) == (f"sandbox {wall}", "failed", True)
    assert finding.next


def test_code_that_lies_in_a_sandboxs_own_memory_may_be_written() -> None:
    """Without a shared directory /run/bananas is the sandbox's copy."""
    seen = {**SEEN, "shim": "worked", "writable": [*WRITABLE, ["/run/bananas", "tmpfs", 65536]]}
    over_stdio = inside.Asked(ASKED.places, ASKED.paths, 64, is_shared=False)
    assert {finding.status for finding in inside.judge(seen, over_stdio)} == {"ok"}
    assert {finding.status for finding in inside.judge(seen, ASKED)} == {"ok", "failed"}


def test_a_small_folder_in_memory_harms_nobody() -> None:
    """Podman's /var/tmp has the mode of the image's folder, and the 64 KiB that it is given."""
    seen = {**SEEN, "writable": [*WRITABLE, ["/var/tmp", "tmpfs", 64]]}
    assert {finding.status for finding in inside.judge(seen, ASKED)} == {"ok"}


def test_a_limit_of_memory_holds_when_it_kills() -> None:
    """The number in the cgroup is shown; what counts is how taking more ended."""
    limit = 64 * 2**20
    assert inside.judge_memory([limit, limit], 64, "killed").status == "ok"
    assert inside.judge_memory([None, None], 64, "killed").status == "ok"
    assert inside.judge_memory([limit, 2 * limit], 64, "killed").status == "warning"
    failed = inside.judge_memory([limit, limit], 64, "it got 128 MiB")
    assert (failed.status, "it got 128 MiB" in failed.detail, bool(failed.next)) == ("failed", True, True)


def test_redis_is_tried_at_every_address_of_the_machine_and_its_password_stays_here() -> None:
    """Its port and the gateway's, on the sandbox's own loopback too; a socket is looked for by its path."""
    places, problem = command.targets(Settings(redis_url="redis://:hush@127.0.0.1:6399/0", port=8099))
    assert problem is None
    assert {("127.0.0.1", 6399), ("127.0.0.1", 8099), ("169.254.169.254", 80)} <= {(p.address, p.port) for p in places}
    assert "hush" not in repr(places)
    assert "/run/redis.sock" in command.sockets(Settings(redis_url="unix:///run/redis.sock"))


def test_an_address_of_redis_that_is_not_known_is_told() -> None:
    """A name that does not resolve is a warning; the rest is tried all the same."""
    places, problem = command.targets(Settings(redis_url="redis://redis.invalid:6399/0"))
    assert problem is not None
    assert (problem.name, problem.status) == ("sandbox reach", "warning")
    assert ("127.0.0.1", 6399) in {(place.address, place.port) for place in places}
