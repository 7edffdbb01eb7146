"""Each limit of a sandbox, attacked in a real container while neighbours on the same runner finish all their jobs.

``test_hostile.py`` has functions that merely go wrong; these here try to get more than they may, or out.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bananas.spec import Bundles, Deployment, FunctionSpec
from tests.platform import Platform
from tests.tools import neighbours
from tests.tools.neighbours import Neighbours

pytestmark = pytest.mark.docker

HEAD = """
import ctypes, errno, json, os, resource, signal, socket, struct, subprocess, sys, threading, time

def tried(action, *args):
    try:
        action(*args)
        return "worked"
    except (OSError, MemoryError, ValueError) as e:
        return errno.errorcode.get(getattr(e, "errno", None), type(e).__name__)

def call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = getattr(libc, name)(*args)
    return "worked" if result >= 0 else errno.errorcode[ctypes.get_errno()]

def frame(kind, number, meta=b"{}", body=b""):
    return struct.pack(">IBQI", 13 + len(meta) + len(body), kind, number, len(meta)) + meta + body

def to_runner(data):
    # The connection to the runner is among our descriptors.
    for fd in range(3, 1024):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(fd, data)
        except OSError:
            continue

"""

ATTACKS = {
    # Memory: in children, and in files that count as memory.
    "children_eat": """
def handle(event, context):
    os.fork()
    held = []
    while True:
        held.append(bytearray(2**23))
""",
    "fills_tmp": """
def fill(path):
    written = 0
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(b"x" * 2**16)
        except OSError as e:
            return [errno.errorcode[e.errno], written]

def many(path):
    for number in range(100000):
        try:
            os.mknod(f"{path}/{number}")
        except OSError as e:
            return [errno.errorcode[e.errno], number]
    return ["worked", number]

def handle(event, context):
    found = {"tmp": fill("/tmp/x"), "secrets": fill("/run/secrets/x")}
    os.unlink("/tmp/x"), os.unlink("/run/secrets/x")
    for path in ("/tmp", "/run/secrets"):
        found["files in " + path] = many(path)
    found["other"] = {path: tried(fill, path + "/x") for path in ("/", "/run", "/run/bananas", "/var/tmp", "/etc")}
    return found
""",
    "burns_cpu": """
def handle(event, context):
    began, spent, children = time.monotonic(), time.process_time(), []
    for _ in range(7):
        child = os.fork()
        if child == 0:
            signal.alarm(4)
            while True:
                pass
        children.append(child)
    while time.monotonic() - began < 2:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
    cpu_s = time.process_time() - spent + sum(sum(os.wait4(child, 0)[2][:2]) for child in children)
    return {"cpu_s": cpu_s, "wall_s": time.monotonic() - began}
""",
    "opens_descriptors": """
def handle(event, context):
    held = []
    try:
        while True:
            held.append(os.open("/", os.O_RDONLY))
    except OSError as e:
        found = [errno.errorcode[e.errno], len(held)]
    found.append(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for fd in held:
        os.close(fd)
    return found
""",
    "ignores_sigterm": """
def handle(event, context):
    for number in range(1, 32):
        tried(signal.signal, number, signal.SIG_IGN) if number not in (9, 19) else None
    while True:
        time.sleep(1)
""",
    "stops_the_keeper": """
def handle(event, context):
    os.kill(os.getppid(), signal.SIGSTOP)
    while True:
        time.sleep(1)
""",
    "kills_the_keeper": """
def handle(event, context):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
""",
    "detaches_a_burner": """
def handle(event, context):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                print("still here", flush=True)
        os._exit(0)
    os.wait()
    return os.getpid()
""",
    "returns_too_much": "def handle(event, context):\n    return 'x' * (2 * 2**20)\n",
    "returns_deep": """
def handle(event, context):
    to_runner(frame(4, event, b"{}", b"[" * 500000 + b"]" * 500000))
    time.sleep(60)
""",
    "claims_a_huge_frame": """
def handle(event, context):
    to_runner(struct.pack(">IBQI", 2**31 - 1, 4, event, 2) + b"{}")
    time.sleep(60)
""",
    "claims_huge_meta": """
def handle(event, context):
    to_runner(struct.pack(">IBQI", 100, 4, 1, 2**31 - 1) + b"x" * 100)
    time.sleep(60)
""",
    "says_ready_again": "def handle(event, context):\n    to_runner(frame(2, 0))\n    time.sleep(60)\n",
    "inits_again": """
def handle(event, context):
    to_runner(frame(1, 0, b'{"protocol": 1, "function": "neighbour"}'))
    time.sleep(60)
""",
    "answers_for_others": """
def handle(event, context):
    to_runner(frame(4, 10**6, b"{}", b"1"))
    time.sleep(60)
""",
    "claims_its_exit": """
def handle(event, context):
    to_runner(frame(7, 0, b'{"status": "' + b"x" * 1000 + b'", "signal": [1], "oom": 5}'))
    time.sleep(60)
""",
    "logs_garbage": """
def handle(event, context):
    print("\\x1b[2J\\x00\\r\\nrunner0 ERROR forged " + "\\ud800")
    sys.stdout.buffer.write(bytes(range(256)) * 100)
    return 1
""",
    "huge_environment": """
def handle(event, context):
    for n in range(200):
        os.environ[f"X{n}"] = "x" * 100000
    return tried(subprocess.run, [sys.executable, "-c", ""])
""",
}

#: Name → outcome, error type (None: completed).
FATES = {
    "children_eat": ({"oom"}, {"OutOfMemory"}),
    "ignores_sigterm": ({"timeout"}, {"Timeout"}),
    "stops_the_keeper": ({"timeout"}, {"Timeout"}),
    "kills_the_keeper": ({"crashed"}, {"Crashed"}),
    "returns_too_much": ({"error"}, {"ResultTooLarge"}),
    "returns_deep": ({"crashed"}, {"ProtocolViolation"}),
    "claims_a_huge_frame": ({"crashed"}, {"ProtocolViolation"}),
    "claims_huge_meta": ({"crashed"}, {"ProtocolViolation"}),
    "says_ready_again": ({"crashed"}, {"ProtocolViolation"}),
    "inits_again": ({"crashed"}, {"ProtocolViolation"}),
    "answers_for_others": ({"crashed"}, {"ProtocolViolation"}),
    "claims_its_exit": ({"crashed"}, {"Crashed"}),
}

OUT = """
def mount(kind, target):
    return call("mount", b"none", target, kind, 0, None)

def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)

def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

def packet():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)

def netlink():
    import fcntl
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 0))  # SIOCSIFFLAGS

def handle(event, context):
    return {
        "mount": mount(b"tmpfs", b"/tmp"),
        "mount proc": mount(b"proc", b"/tmp"),
        "pivot": call("chroot", b"/tmp"),
        "user namespace": call("unshare", 0x10000000),
        "net namespace": call("unshare", 0x40000000),
        "setuid": tried(os.setuid, 0),
        "setgroups": tried(os.setgroups, [0]),
        "mknod": tried(os.mknod, "/tmp/disk", 0o60666, os.makedev(8, 0)),
        "mem": tried(open, "/dev/mem", "rb"),
        "kmsg": tried(open, "/dev/kmsg", "rb"),
        "raw socket": tried(raw),
        "packet socket": tried(packet),
        "lo down": tried(netlink),
        "core_pattern": tried(write, "/proc/sys/kernel/core_pattern"),
        "hostname": tried(write, "/proc/sys/kernel/hostname"),
        "somaxconn": tried(write, "/proc/sys/net/core/somaxconn"),
        "sysrq": tried(write, "/proc/sysrq-trigger", "b"),
        "cgroup": tried(write, event["cgroup"], "1"),
        "reboot": call("reboot", 0x1234567),
        "settime": tried(time.clock_settime, time.CLOCK_REALTIME, 0),
        "bpf": call("syscall", 321, 0, None, 0),
        "keyctl": call("syscall", 250, 0, -3, 0),
        "init's root": tried(os.listdir, "/proc/1/root/../../var/lib/bananas"),
        "code": tried(write, "/run/bananas/code/handler.py"),
        "socket": tried(os.unlink, "/run/bananas/s"),
        "link out": tried(os.symlink, "/", "/run/bananas/code/x"),
        "nice": tried(os.nice, -5),
        "oom_score": tried(write, "/proc/self/oom_score_adj", "-1000"),
        "descriptors": tried(resource.setrlimit, resource.RLIMIT_NOFILE, (2048, 2048)),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[-1] < 1000,
    }
"""

PTRACE = """
def handle(event, context):
    keeper = os.getppid()
    attached = call("ptrace", 16, keeper, 0, 0)  # PTRACE_ATTACH
    if event == "let go":
        return [attached, call("ptrace", 17, keeper, 0, 0)]
    time.sleep(60)
"""
#: Only what takes for ever has a short timeout; the others have one that a busy machine does not reach.
SHORT, LONG = "    timeout: 3s\n    retries: 0", "    timeout: 30s\n    retries: 0"
#: Far from the end of what takes for ever, and below the long timeout.
RUN_MS = 20_000
IS_V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
CGROUP = "/sys/fs/cgroup/memory.max" if IS_V2 else "/sys/fs/cgroup/memory/memory.limit_in_bytes"


@pytest.fixture(scope="module")
def app(platform: Platform) -> Platform:
    platform.deploy({"neighbour": neighbours.SOURCE})
    endless = {name for name, (outcomes, _) in FATES.items() if "timeout" in outcomes} | {"traces"}
    attacks = {**ATTACKS, "gets_out": OUT, "traces": PTRACE}
    platform.deploy({name: HEAD + source for name, source in attacks.items() if name in endless}, SHORT)
    platform.deploy({name: HEAD + source for name, source in attacks.items() if name not in endless}, LONG)
    return platform


@pytest.fixture(autouse=True)
def beside(app: Platform) -> Iterator[Neighbours]:
    """A steady load on the same runner and pool, all of which is done at the first try."""
    with Neighbours(app.url) as load:
        yield load
    print(f"{len(load.ids)} neighbours, the slowest took {load.slowest_ms:.1f} ms")


def attack(app: Platform, name: str, payload: Any = None) -> dict[str, Any]:
    """The record of one call that is over."""
    return app.finished(app.client.submit(name, payload)["id"], 60)


@pytest.mark.parametrize("name", FATES)
def test_an_attack_ends_its_own_attempt_only(app: Platform, name: str) -> None:
    """With the outcome and the kind of error that tell what happened, within its timeout."""
    record = attack(app, name, 1)
    outcomes, kinds = FATES[name]
    last = record["history"][-1]
    assert last["outcome"] in outcomes, record
    assert last["error"]["type"] in kinds, record
    assert last["timings"]["run_ms"] < RUN_MS
    assert app.client.invoke("neighbour", 0)


def test_files_in_memory_are_bounded(app: Platform) -> None:
    """/tmp ends at its size, /run/secrets at 1 MiB, both also at a number of files; the rest cannot be written."""
    found = attack(app, "fills_tmp")["result"]
    assert found["tmp"] == ["ENOSPC", 64 * 2**20]
    assert found["secrets"][0] == "ENOSPC"
    assert found["secrets"][1] <= 2**20
    assert found["files in /run/secrets"][0] == found["files in /tmp"][0] == "ENOSPC", found
    assert found["files in /run/secrets"][1] < 100
    assert found["files in /tmp"][1] < 64 * 256
    assert set(found["other"].values()) == {"EROFS"}, found


def test_cpu_time_is_that_of_the_pool(app: Platform) -> None:
    """Eight busy processes get one core's time together, however many cores the machine has."""
    used = attack(app, "burns_cpu")["result"]
    assert used["cpu_s"] < 1.25 * used["wall_s"], used


def test_descriptors_end_at_their_limit(app: Platform) -> None:
    """1,024, which is a hard limit."""
    code, held, hard = attack(app, "opens_descriptors")["result"]
    assert (code, hard) == ("EMFILE", 1024)
    assert 900 < held < 1024


def test_what_a_call_leaves_running_ends_with_its_sandbox(app: Platform) -> None:
    """A detached process that burns and prints is gone before the next call, and its words are in no record."""
    first = attack(app, "detaches_a_burner")
    second = attack(app, "detaches_a_burner")
    assert first["history"][0]["sandbox"] != second["history"][0]["sandbox"]
    assert second["history"][0]["log_bytes"] <= 256 * 1024


def test_hostile_output_is_kept_as_text_and_forges_no_line(app: Platform) -> None:
    """Control characters and half characters reach the record escaped or replaced, and no log of ours."""
    record = attack(app, "logs_garbage")
    assert record["status"] == "completed", record
    assert "forged" in app.client.logs(record["id"])
    assert "runner0 ERROR forged" not in app.processes[1].text


def test_a_huge_environment_is_the_functions_own_problem(app: Platform) -> None:
    """The kernel refuses it."""
    assert attack(app, "huge_environment")["result"] == "E2BIG"


def test_no_way_out_is_open(app: Platform) -> None:
    """Mounts, namespaces, devices, raw sockets, the kernel's settings, other users, our files: all refused."""
    found = attack(app, "gets_out", {"cgroup": CGROUP})["result"]
    assert found.pop("processes") is True  # a namespace of its own
    assert {name: answer for name, answer in found.items() if answer == "worked"} == {}
    assert set(found.values()) <= {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS", "EINVAL", "ValueError"}, found


@pytest.mark.parametrize("then", ["let go", "hold"])
def test_tracing_the_keeper_harms_only_its_own_sandbox(app: Platform, then: str) -> None:
    """It runs as the same user, so the kernel may allow it; a keeper that is held cannot keep the sandbox alive."""
    record = attack(app, "traces", then)
    last = record["history"][-1]
    assert last["outcome"] in (("ok", "crashed") if then == "let go" else ("timeout", "crashed")), record
    assert app.client.invoke("neighbour", 0)


@pytest.mark.parametrize(
    ("kind", "name", "link"),
    [
        (tarfile.REGTYPE, "../../../../tmp/bananas-escaped", ""),
        (tarfile.REGTYPE, "/tmp/bananas-escaped", ""),
        (tarfile.SYMTYPE, "handler.py", "/etc/passwd"),
        (tarfile.LNKTYPE, "handler.py", "/etc/passwd"),
    ],
)
def test_a_forged_bundle_never_leaves_its_folder(app: Platform, kind: bytes, name: str, link: str) -> None:
    """What `bananas deploy` would refuse to pack can still be uploaded by hand: the runner refuses to unpack it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        member.size = 3 if kind == tarfile.REGTYPE else 0
        archive.addfile(member, io.BytesIO(b"x=1"))
    data = file.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    app.client.put_bundle(digest, data)
    abi = app.client.runtimes()["python"]["abi"]
    app.client.put_function("forged", Deployment(spec=FunctionSpec(), bundles=Bundles(code=digest), abi=abi))
    job = app.client.submit("forged", None)["id"]
    record = app.state(job, "scheduled")
    app.client.cancel(job)
    attempt = record["history"][0]
    assert attempt["outcome"] == "start", record
    assert "the bundle holds" in attempt["error"]["message"], record
