"""Node in the real container: what only the image, the kernel and the engine can show."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bananas import pack
from bananas.errors import ProtocolError, SandboxDied
from bananas.protocols import Binding, CallReply, HandlerLoadError, Invocation, Sandbox, Secret
from bananas.spec import PoolSpec, RuntimeInfo
from runner.bundles import BundleCache
from runner.docker_driver import Engine
from runner.pool import profile_of
from runner.sandbox import DockerSandboxFactory
from tests.conftest import Run

SOURCE = """
const fs = require('fs');
const { spawn } = require('child_process');
exports.echo = async (event) => event;
exports.fails = async () => { throw new TypeError('no'); };
exports.exits = async () => { console.log('bye'); process.exit(3); };
exports.hangs = async () => { for (;;) ; };
exports.kills = async () => { process.kill(process.ppid, 'SIGKILL'); await new Promise(() => {}); };
exports.stops = async () => { process.kill(process.ppid, 'SIGSTOP'); for (;;) ; };
exports.closes = async () => { for (let fd = 0; fd < 64; fd++) try { fs.closeSync(fd); } catch {} return 1; };
exports.breaks = async () => {
  for (const of of [JSON, Promise.prototype, Buffer, Object, process]) {
    for (const name of Object.getOwnPropertyNames(of)) try { of[name] = () => { throw 0; }; } catch {}
  }
  return 1;
};
exports.fills = async () => { const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)); };
exports.heaps = async () => { const all = []; for (;;) all.push(new Array(10000).fill(all.length)); };
exports.detaches = async () => {
  spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'], { detached: true, stdio: 'ignore' }).unref();
};
exports.orphans = async () => {
  const script = `require('child_process').spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'],
    { detached: true, stdio: 'ignore' }).unref()`;
  await new Promise((done) => spawn(process.execPath, ['-e', script], { stdio: 'ignore' }).on('exit', done));
};
exports.looks = async () => ({
  uid: process.getuid(),
  cwd: process.cwd(),
  env: process.env,
  root: (() => { try { fs.writeFileSync('/x', ''); return 'open'; } catch (e) { return e.code; } })(),
  secret: fs.readFileSync('/run/secrets/key', 'utf8'),
  mode: (fs.statSync('/run/secrets/key').mode & 0o777).toString(8),
  interfaces: Object.keys(require('os').networkInterfaces()),
  berlin: new Date(0).toLocaleTimeString('en-GB', { timeZone: 'Europe/Berlin' }),
  local: new Date(0).getHours(),
  authorities: require('tls').rootCertificates.length > 50,
  bundle: fs.existsSync('/etc/ssl/certs/ca-certificates.crt'),
  deps: require('installed'),
  memory: fs.readFileSync('/proc/self/status', 'utf8').match(/RssAnon:\\s+(\\d+)/)[1] / 1024,
});
"""


class Rig:
    """Sandboxes of Node, bound to handlers of the source above."""

    def __init__(self, image: RuntimeInfo, labels: dict[str, str], folder: Path) -> None:
        (folder / "src").mkdir()
        (folder / "src" / "handler.js").write_text(SOURCE, "utf-8")
        (folder / "deps" / "installed").mkdir(parents=True)
        (folder / "deps" / "installed" / "index.js").write_text("module.exports = 'installed'", "utf-8")
        bundles = [pack.pack(folder / name, ignore=()) for name in ("src", "deps")]
        self.code, self.deps = (bundle.digest for bundle in bundles)
        cache = BundleCache(folder / "cache", {bundle.digest: bundle.data for bundle in bundles}.__getitem__)
        self.factory = DockerSandboxFactory(Engine(), cache, folder / "sb", labels)
        self._image = image
        self._ids = itertools.count(1)
        self._created: list[Sandbox] = []
        self.printed: list[bytes] = []

    def create(self, **spec: Any) -> Sandbox:
        image = self._image
        profile = profile_of("p", PoolSpec(**spec), image.image, image.image_id, image.shim)
        self._created.append(self.factory.create(profile))
        return self._created[-1]

    def bound(self, handler: str, *, env: dict[str, str] | None = None, **spec: Any) -> Sandbox:
        sandbox = self.create(**spec)
        secrets = {"key": Secret("1", b"opensesame")}
        binding = Binding("f", "v1", f"handler.{handler}", self.code, self.deps, env=env or {}, secrets=secrets)
        sandbox.bind(binding, 10.0, self.printed.append)
        return sandbox

    def call(self, sandbox: Sandbox, payload: bytes = b"null", timeout_s: float = 20.0) -> CallReply:
        call = Invocation(next(self._ids), "job", 1, payload, timeout_s)
        return sandbox.invoke(call, self.printed.append, lambda _: None)

    def close(self) -> None:
        for sandbox in self._created:
            sandbox.terminate()


@pytest.fixture
def rig(node_image: RuntimeInfo, run: Run) -> Iterator[Rig]:
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    rig = Rig(node_image, run.labels, folder)
    yield rig
    rig.close()
    shutil.rmtree(folder)


def test_a_call_goes_in_and_comes_out(rig: Rig) -> None:
    """Twice in the same sandbox; an error in between is an answer."""
    sandbox = rig.bound("echo")
    for payload in (b'{"a":[1,2.5,true]}', '"grüße 🍌"'.encode()):
        reply = rig.call(sandbox, payload)
        assert (json.loads(reply.result or b"0"), reply.error) == (json.loads(payload), None)
        assert reply.reusable
    reply = rig.call(rig.bound("fails"))
    assert reply.error is not None
    assert (reply.error["type"], reply.error["message"], reply.reusable) == ("TypeError", "no", True)


def test_inside_it_looks_as_in_every_sandbox(rig: Rig) -> None:
    """No rights, no network, read-only; secrets in memory, packages, zones and certificates in place."""
    found = json.loads(rig.call(rig.bound("looks", env={"A": "1", "TZ": "Europe/Berlin"})).result or b"0")
    assert 0 < found.pop("memory") < 60
    assert found == {
        "uid": 65534,
        "cwd": "/run/bananas/code",
        "env": {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
            "HOSTNAME": "sandbox",
            "A": "1",
            "TZ": "Europe/Berlin",
        },
        "root": "EROFS",
        "secret": "opensesame",
        "mode": "400",
        "interfaces": ["lo"],
        "berlin": "01:00:00",
        "local": 1,
        "authorities": True,
        "bundle": True,
        "deps": "installed",
    }


def test_an_exit_and_a_deadline_are_the_end(rig: Rig) -> None:
    """SandboxDied with the status; TimeoutError for code that holds the event loop, which is dead at once then."""
    sandbox = rig.bound("exits")
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
    assert (sandbox.terminate().status, rig.printed) == (3, [b"bye\n"])
    sandbox = rig.bound("hangs")
    with pytest.raises(TimeoutError):
        rig.call(sandbox, timeout_s=0.3)
    began = time.monotonic()
    sandbox.terminate()
    assert time.monotonic() - began < 20  # the code goes on for ever


@pytest.mark.parametrize("handler", ["kills", "stops", "closes", "breaks"])
def test_code_that_attacks_its_own_sandbox_only_ends_that(rig: Rig, handler: str) -> None:
    """Whatever it does to the keeper, to descriptors or to the language: soon there is no such sandbox any more."""
    sandbox, neighbour = rig.bound(handler), rig.bound("echo")
    began = time.monotonic()
    with pytest.raises((SandboxDied, ProtocolError, TimeoutError)):
        rig.call(sandbox, timeout_s=1.0)
    sandbox.terminate()
    assert time.monotonic() - began < 40
    assert not sandbox.is_alive
    assert rig.call(neighbour, b"1").result == b"1"


@pytest.mark.parametrize(("handler", "memory_mb"), [("fills", 128), ("heaps", 128), ("heaps", 64)])
def test_too_much_memory_is_reported_as_such(rig: Rig, handler: str, memory_mb: int) -> None:
    """Outside of V8's heap the kernel ends it, inside V8 itself does."""
    sandbox = rig.bound(handler, memory_mb=memory_mb)
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
    assert sandbox.terminate().oom


def test_a_sandbox_of_the_smallest_sensible_size_works(rig: Rig) -> None:
    """Two processes of Node fit into 64 MB and 32 process ids."""
    sandbox = rig.bound("echo", memory_mb=64, pids=32)
    for _ in range(20):
        assert rig.call(sandbox, b"[1]").result == b"[1]"


@pytest.mark.parametrize(
    ("handler", "why"),
    [("detaches", "left child processes running"), ("orphans", "left detached processes running")],
)
def test_processes_that_a_call_leaves_end_the_reuse(rig: Rig, handler: str, why: str) -> None:
    """Also ones that belong to the sandbox's init by now."""
    reply = rig.call(rig.bound(handler))
    assert (reply.reusable, reply.why_not) == (False, why)


def test_a_handler_that_is_not_there_is_a_load_error(rig: Rig) -> None:
    """The user's error, not the platform's."""
    with pytest.raises(HandlerLoadError) as caught:
        rig.bound("nothing")
    assert "exports no nothing" in str(caught.value)
