"""A sandbox from outside and from inside, against what docs/security.md promises."""

from __future__ import annotations

import json

import docker
import pytest

from tests.platform import Platform

pytestmark = pytest.mark.docker

PROBE = r"""
import glob, os, socket

def attempt(action):
    try:
        action()
        return "worked"
    except OSError as e:
        return type(e).__name__ + ":" + str(e.errno)

def write(path):
    with open(path, "w") as f:
        f.write("x")

def writable():
    # Every folder in which a file can be made, as far as we can look.
    found = []
    for folder, names, _ in os.walk("/"):
        names[:] = [name for name in names if os.path.join(folder, name) not in ("/proc", "/sys")]
        if attempt(lambda: write(os.path.join(folder, "probe-x"))) == "worked":
            os.unlink(os.path.join(folder, "probe-x"))
            found.append([folder, os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize // 2**20])
    return sorted(found)

def connect(host, port):
    socket.create_connection((host, port), timeout=1).close()

def handle(event, context):
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return {
        "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
        "caps": [status[k].strip() for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privs": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
        "root": attempt(lambda: write("/x")), "shim": attempt(lambda: write("/run/bananas/shim/x")),
        "code": attempt(lambda: write("/run/bananas/code/handler.py")), "tmp": attempt(lambda: write("/tmp/x")),
        "interfaces": sorted(os.listdir("/sys/class/net")), "sockets": glob.glob("/var/run/docker.sock"),
        "env": sorted(os.environ),
        "redis": attempt(lambda: connect("127.0.0.1", event["redis"])),
        "metadata": attempt(lambda: connect("169.254.169.254", 80)),
        "writable": writable(),
        "tmp_mb": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize // 2**20,
    }
"""


@pytest.fixture(scope="module")
def app(platform: Platform) -> Platform:
    platform.deploy({"probe": PROBE}, "    env: {GREETING: hi}")
    return platform


def test_from_inside_there_is_nothing_to_reach_or_write(app):
    """No capability, no network, no writable file but tmpfs, no variable of the platform."""
    redis_port = int(app.redis_url.rsplit(":", 1)[1].split("/")[0])
    seen = json.loads(app.client.invoke("probe", {"redis": redis_port}))
    assert (seen["uid"], seen["gid"]) == (65534, 65534)
    assert set(seen["groups"]) <= {65534}
    assert seen["caps"] == ["0000000000000000"] * 5
    assert (seen["no_new_privs"], seen["seccomp"]) == ("1", "2")
    assert (seen["root"], seen["shim"], seen["code"]) == ("OSError:30", "OSError:30", "OSError:30")
    assert seen["tmp"] == "worked"
    assert seen["tmp_mb"] == 64
    assert seen["writable"] == [["/dev/shm", 64], ["/run/secrets", 1], ["/tmp", 64]]
    assert seen["interfaces"] == ["lo"]
    assert seen["sockets"] == []
    assert seen["redis"] == "ConnectionRefusedError:111"
    assert seen["metadata"].startswith("OSError:101")
    assert {"GREETING", "HOME", "LANG", "PATH"} <= set(seen["env"])
    assert not [name for name in seen["env"] if "BANANAS" in name or "REDIS" in name or "SECRET" in name]


def test_docker_inspect_shows_the_hardened_profile(app, engine: docker.DockerClient):
    """What the engine was asked for, field by field."""
    app.client.invoke("probe", {"redis": 1})
    label = f"bananas.instance={app.registry.instance()}"
    [container, *_] = [engine.api.inspect_container(c.id) for c in engine.containers.list(filters={"label": label})]
    host, config = container["HostConfig"], container["Config"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == ("none", True, False)
    assert (host["CapDrop"], host["CapAdd"], host["SecurityOpt"]) == (["ALL"], None, ["no-new-privileges"])
    assert host["Memory"] == host["MemorySwap"] == 256 * 2**20
    assert (host["NanoCpus"], host["PidsLimit"], host["Init"]) == (1_000_000_000, 128, True)
    assert {u["Name"]: u["Hard"] for u in host["Ulimits"]} == {"nofile": 1024, "core": 0}
    assert set(host["Tmpfs"]) == {"/tmp", "/run/secrets"}
    assert [bind.split(":", 1)[1] for bind in host["Binds"]] == ["/run/bananas:ro"]
    assert host["LogConfig"]["Type"] == "none"
    assert not host["Devices"]
    assert config["User"] == "65534:65534"
    assert {e.split("=")[0] for e in config["Env"]} == {"PATH", "HOME", "LANG"}
    assert not [mount for mount in container["Mounts"] if mount["RW"]]
