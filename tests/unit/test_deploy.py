"""A deploy changes what must change, nothing else, and nothing at all when something is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bananas.client import Client
from bananas.deploy import Deployed, deploy
from bananas.errors import ApiError, DeployError, GatewayUnreachable
from bananas.manifest import load
from bananas.pack import pack, unpack
from tests.tools import wheels
from tests.tools.stub_gateway import ABI, RUNTIME, StubGateway, problem

MANIFEST = """
version: 1
pools: {default: {concurrency: 2}, mail: {concurrency: 1}}
functions:
  hello:
  send: {pool: mail, requirements: requirements.txt, timeout: 5s}
"""
Run = Callable[..., list[Deployed]]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two functions, one of which requires a package that a local folder of wheels has."""
    for name in ("hello", "send"):
        folder = tmp_path / "functions" / name
        folder.mkdir(parents=True)
        (folder / "handler.py").write_text(f"def handle(event, context):\n    return {name!r}\n")
    (tmp_path / "functions/send/requirements.txt").write_text("demo==1.0\n")
    (tmp_path / "bananas.yaml").write_text(MANIFEST)
    (tmp_path / "wheels").mkdir()
    wheels.build(tmp_path / "wheels", "demo")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    return tmp_path


@pytest.fixture
def lines() -> list[str]:
    """What was reported."""
    return []


@pytest.fixture
def run(app: Path, gateway: StubGateway, lines: list[str]) -> Iterator[Run]:
    """Deploys the app."""
    with Client(gateway.url, patience_s=0) as client:
        yield lambda *only: deploy(client, load(app / "bananas.yaml", {}), set(only) or None, lines.append)


def changes(gateway: StubGateway) -> list[str]:
    """The calls that changed something, digests left out."""
    return [call.split("?")[0][:20].rstrip("/") for call in gateway.calls if call.split(" ")[0] in ("PUT", "DELETE")]


def test_the_first_deploy_brings_everything(app: Path, gateway: StubGateway, run: Run, tmp_path: Path) -> None:
    """Pools, code and installed requirements; versions are switched last."""
    hello, send = run()
    assert hello == Deployed(
        "hello", gateway.functions["hello"]["version"], True, f"{gateway.url}/functions/hello/invoke"
    )
    assert send.changed
    assert gateway.pools["mail"]["concurrency"] == 1
    stored = gateway.functions["send"]
    assert (stored["abi"], stored["spec"]["timeout_ms"], stored["spec"]["pool"]) == (ABI, 5000, "mail")
    assert stored["bundles"]["requirements"] == hashlib.sha256(b"demo==1.0\n").hexdigest()
    assert stored["bundles"]["code"] == pack(app / "functions/send").digest
    unpack(gateway.bundles[stored["bundles"]["deps"]], tmp_path / "deps")
    assert (tmp_path / "deps" / "demo.py").is_file()
    puts = [call.split("/")[1] for call in gateway.calls if call.startswith("PUT")]
    assert puts == ["bundles"] * 3 + ["pools"] * 2 + ["functions"] * 2


def test_an_unchanged_deploy_neither_installs_nor_uploads(gateway: StubGateway, run: Run, lines: list[str]) -> None:
    """The version is computed from the files and compared with what is served."""
    before = run()
    gateway.calls.clear()
    lines.clear()
    again = run()
    assert [(f.name, f.version, f.changed) for f in again] == [(f.name, f.version, False) for f in before]
    assert lines == [f"{f.name}: unchanged ({f.version})" for f in before]
    assert changes(gateway) == ["PUT /pools/default", "PUT /pools/mail"]


def test_only_what_changed_is_sent(app: Path, gateway: StubGateway, run: Run, lines: list[str]) -> None:
    """A changed setting uploads nothing; a changed file uploads its bundle, and does not touch the requirements'."""
    run()
    (app / "bananas.yaml").write_text(MANIFEST.replace("5s", "6s"))
    gateway.calls.clear()
    assert [f.changed for f in run()] == [False, True]
    assert changes(gateway) == ["PUT /pools/default", "PUT /pools/mail", "PUT /functions/send"]
    (app / "functions/send/handler.py").write_text("def handle(event, context): ...\n")
    gateway.calls.clear()
    assert [f.changed for f in run()] == [False, True]
    assert [call.split("/")[1] for call in gateway.calls if call.startswith("PUT")] == [
        "bundles",
        "pools",
        "pools",
        "functions",
    ]


def test_another_abi_is_another_version(gateway: StubGateway, run: Run) -> None:
    """What was installed for one C library is installed again for another."""
    run()
    gateway.runtimes["python"] = {**RUNTIME, "abi": "cp311-x86_64-glibc2.31"}
    assert [f.changed for f in run()] == [True, True]


def test_named_functions_bring_only_their_pools(gateway: StubGateway, run: Run) -> None:
    """The rest of the file is left alone."""
    assert [f.name for f in run("hello")] == ["hello"]
    assert (list(gateway.pools), list(gateway.functions)) == (["default"], ["hello"])


def test_a_pool_whose_gpus_no_live_runner_has_is_warned_of_once(
    app: Path, gateway: StubGateway, run: Run, lines: list[str]
) -> None:
    """The deploy goes on; it is told when something of that pool is deployed, and not again for what is unchanged."""
    (app / "bananas.yaml").write_text(MANIFEST.replace("mail: {concurrency: 1}", "mail: {gpus: all}"))
    run("hello")
    assert not [line for line in lines if "GPU" in line]
    run()
    run()
    warning = "warning: no live runner has a GPU for pool mail; jobs there fail and say so until one has"
    assert lines.count(warning) == 1
    (app / "functions/send/handler.py").write_text("def handle(event, context): ...\n")
    gateway.runners = [{"id": "r1", "pools": ["default"], "gpus": 2}, {"id": "r2", "pools": [], "gpus": 1}]
    run()
    assert lines.count(warning) == 1


def test_a_function_that_the_file_does_not_have_is_refused(gateway: StubGateway, run: Run) -> None:
    """Before the gateway is asked anything."""
    with pytest.raises(DeployError, match=r"has no function helo; it has hello, send"):
        run("helo")
    assert gateway.calls == []


def test_problems_of_all_functions_are_told_and_nothing_is_switched(app: Path, gateway: StubGateway, run: Run) -> None:
    """One broken function keeps the whole deploy back."""
    before = run()
    (app / "functions/hello/handler.py").write_text("# new\n")
    (app / "functions/hello/link").symlink_to("/etc/hostname")
    (app / "functions/send/requirements.txt").write_text("demo==2.0\n")
    gateway.calls.clear()
    with pytest.raises(DeployError) as caught:
        run()
    text = str(caught.value)
    assert "hello: " in text
    assert "is a link that leads out of" in text
    assert "send: " in text
    assert "uv could not install it" in text
    assert text.endswith("nothing was deployed; what served before still serves")
    assert {name: f["version"] for name, f in gateway.functions.items()} == {f.name: f.version for f in before}
    assert changes(gateway) == []


def test_a_runtime_that_no_runner_has_is_told_with_the_next_step(app: Path, gateway: StubGateway, run: Run) -> None:
    """Requirements cannot be installed for an unknown interpreter."""
    (app / "bananas.yaml").write_text(MANIFEST.replace("  hello:\n", "  hello: {runtime: python3.13}\n"))
    with pytest.raises(
        DeployError,
        match=r"no runner has published the runtime python3.13; .*`bananas images build --runtime python3.13`",
    ):
        run()
    gateway.runtimes.clear()
    with pytest.raises(
        DeployError, match=r"send: no runner has published the runtime python; start .*`bananas runner`\n"
    ):
        run()


def test_a_file_without_requirements_in_it_makes_no_bundle(app: Path, gateway: StubGateway, run: Run) -> None:
    """Only its text counts for the version."""
    (app / "functions/send/requirements.txt").write_text("# none\n")
    run("send")
    bundles = gateway.functions["send"]["bundles"]
    assert bundles["deps"] is None
    assert bundles["requirements"] == hashlib.sha256(b"# none\n").hexdigest()


def test_what_the_gateway_refuses_is_told_by_function(gateway: StubGateway, run: Run) -> None:
    """An upload that fails stops before the switch."""
    code = "PUT /functions/hello"
    gateway.override[code] = problem(503, "redis-unavailable", "Redis does not answer")
    with pytest.raises(ApiError, match="Redis does not answer"):
        run("hello")
    assert gateway.functions == {}


def test_a_gateway_that_is_not_there_is_told_once(app: Path, free_port: int) -> None:
    """Not once for each function."""
    with Client(f"http://127.0.0.1:{free_port}", patience_s=0) as client, pytest.raises(GatewayUnreachable):
        deploy(client, load(app / "bananas.yaml", {}), None, lambda _: None)
