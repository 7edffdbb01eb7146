"""``bananas dev`` while its files are edited: what is deployed again, what is restarted, and what keeps serving."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bananas.devloop import DevLoop
from bananas.errors import ApiError, GatewayUnreachable
from bananas.spec import RuntimeInfo
from bananas.watch import Watch, own_sources
from tests.integration.test_stack import DEADLINE_S, HANDLER, MANIFEST, Bananas, app, folder
from tests.platform import ROOT, until

__all__ = ["app", "folder"]


@pytest.fixture(scope="module")
def shared(base_image: RuntimeInfo, engine: docker.DockerClient) -> Iterator[Bananas]:
    """One ``bananas dev`` for the tests that edit its app."""
    with tempfile.TemporaryDirectory(prefix="bn-", ignore_cleanup_errors=True) as folder:
        app = Path(folder) / "bananas.yaml"
        write(app)
        dev = Bananas("dev", app, base_image, engine)
        yield dev
        assert dev.stop() == 0


@pytest.fixture
def dev(shared: Bananas) -> Iterator[Bananas]:
    """It, with its app as it was written first."""
    assert shared.hello() == {"message": "Hello, Ada"}
    yield shared
    write(shared.app)
    says(shared, "Hello, Ada")


def write(app: Path) -> None:
    """A manifest with one function that greets."""
    (app.parent / "hello").mkdir(exist_ok=True)
    (app.parent / "hello/handler.py").write_text(HANDLER)
    app.write_text(MANIFEST)


def says(dev: Bananas, message: str, deadline_s: float = DEADLINE_S) -> float:
    """Wait until hello answers with the message; returns how long that took, in s."""
    began = time.monotonic()
    until(lambda: dev.hello() == {"message": message}, deadline_s, f"hello to say {message!r}\n{dev.text}")
    return time.monotonic() - began


def test_dev_shows_three_runners_and_an_edited_function_serves_within_2_s(dev: Bananas) -> None:
    """Saving a handler is all it takes; the time runs from the write to the first new answer."""
    assert len(dev.client.runners()) == 3
    (dev.app.parent / "hello/handler.py").write_text(HANDLER.replace("Hello", "Ahoy"))
    took_s = says(dev, "Ahoy, Ada")
    print(f"redeployed after {took_s:.2f} s")
    assert took_s < DEADLINE_S


def test_broken_code_and_broken_yaml_are_told_with_their_place_and_the_last_version_serves(dev: Bananas) -> None:
    """A mistake costs a message; mending it is all it takes to go on."""
    app = dev.app
    handler = app.parent / "hello/handler.py"
    handler.write_text("def handle(event, context):\n    return {'message': \n")
    until(lambda: f"{handler}:2:" in dev.text and "SyntaxError" in dev.text, DEADLINE_S, "the place of the mistake")
    until(lambda: "what was live before still is" in dev.text, DEADLINE_S, "the word that nothing changed")
    assert dev.hello() == {"message": "Hello, Ada"}
    app.write_text(MANIFEST.replace("path:", "paht:"))
    until(lambda: "bananas.yaml:3:" in dev.text and "did you mean" in dev.text, DEADLINE_S, "the place in the YAML")
    assert dev.hello() == {"message": "Hello, Ada"}
    handler.write_text(HANDLER.replace("Hello", "Mended"))
    app.write_text(MANIFEST)
    says(dev, "Mended, Ada")


def test_a_new_function_in_bananas_yaml_is_deployed_and_watched(dev: Bananas) -> None:
    """Functions that come later are part of the loop."""
    app = dev.app
    shutil.copytree(app.parent / "hello", app.parent / "other")
    app.write_text(MANIFEST + "  other: {path: other}\n")
    until(lambda: len(dev.client.functions()) == 2, DEADLINE_S, "the new function")
    (app.parent / "other/handler.py").write_text("def handle(event, context):\n    return 'edited'\n")
    until(lambda: dev.client.invoke("other", {"name": "Ada"}) == b'"edited"', DEADLINE_S, "its edited version")


def test_editing_our_own_code_restarts_its_processes_and_loses_no_job(
    app: Path, base_image: RuntimeInfo, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout of the sources: runner/ restarts the runners one by one, gateway/ the gateway, bananas/ both."""
    checkout = app.parent / "checkout"
    for package in ("bananas", "gateway", "runner"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    slow = "import time\ndef handle(event, context):\n    time.sleep(0.2)\n    return event\n"
    (app.parent / "hello/handler.py").write_text(slow)
    dev = Bananas("dev", app, base_image, engine, PYTHONPATH=str(checkout), PYTHONSAFEPATH="1")
    try:
        jobs: list[str] = []
        stop = threading.Event()
        submitter = threading.Thread(target=submit_until, args=(dev, jobs, stop))
        submitter.start()
        for package, expected in (
            ("runner", ["runner1", "runner2", "runner3"]),
            ("gateway", ["gateway"]),
            ("bananas", ["gateway", "runner1", "runner2", "runner3"]),
        ):
            seen = len(dev.text)
            (checkout / package / "edited.py").write_text("# edited\n")
            for name in expected:
                until(lambda n=name, s=seen: f"{n} runs again" in dev.text[s:], 60, f"{name} after {package}/")
        stop.set()
        submitter.join(DEADLINE_S)
        records = [dev.client.job(job, wait_s=30) for job in jobs]
        assert len(records) > 10
        assert {record["status"] for record in records} == {"completed"}, records
    finally:
        assert dev.stop() == 0


def submit_until(dev: Bananas, jobs: list[str], stop: threading.Event) -> None:
    """A job every 0.2 s; one that was not accepted while the gateway restarts is sent again, as a client would."""
    n = 0
    while not stop.wait(0.2):
        try:
            jobs.append(dev.client.submit("hello", n)["id"])
            n += 1
        except GatewayUnreachable:
            continue
        except ApiError as e:
            if e.status != 503:
                raise


# -- the loop alone -----------------------------------------------------------------------------------------------


def test_a_burst_of_writes_is_told_once_and_leftovers_never(tmp_path: Path) -> None:
    """Editors write several files at once, and files that are nobody's business."""
    told: list[set[Path]] = []
    got = threading.Event()
    watch = Watch([tmp_path], lambda paths: (told.append(paths), got.set()))
    watch.start()
    until(lambda: touch(tmp_path / "first.py") and got.wait(0.5), 10, "the watch to begin")
    got.clear()
    told.clear()
    for name in ("a.py", "b.py", "c.py.swp", "d.pyc"):
        (tmp_path / name).write_text("x")
    assert got.wait(5)
    watch.stop()
    names = {path.name for paths in told for path in paths}
    assert names >= {"a.py", "b.py"}
    assert not names & {"c.py.swp", "d.pyc"}


def touch(path: Path) -> bool:
    path.write_text(str(time.monotonic()))
    return True


def test_which_change_means_what(tmp_path: Path) -> None:
    """Functions and the manifest are deployed; packages restart the processes that run them."""
    manifest, function = tmp_path / "bananas.yaml", tmp_path / "functions/hello"
    function.mkdir(parents=True)
    sources = {name: tmp_path / "src" / name for name in ("bananas", "gateway", "runner")}
    for path in sources.values():
        path.mkdir(parents=True)
    did: list[object] = []
    loop = DevLoop(
        manifest,
        lambda: [function],
        post=lambda call: call(),
        redeploy=lambda: did.append("deploy"),
        restart=did.append,
        runners=["runner1", "runner2"],
        sources=sources,
    )
    for paths, expected in (
        ({manifest}, ["deploy"]),
        ({function / "handler.py"}, ["deploy"]),
        ({sources["gateway"] / "app.py"}, [["gateway"]]),
        ({sources["runner"] / "pool.py"}, [["runner1", "runner2"]]),
        ({sources["bananas"] / "queue.py", sources["gateway"] / "app.py"}, [["gateway", "runner1", "runner2"]]),
        ({tmp_path / "notes.txt"}, []),
    ):
        did.clear()
        loop._noticed(paths)
        assert did == expected
    loop.stop()


def test_our_sources_are_found_in_a_checkout() -> None:
    """The test suite runs from one."""
    assert own_sources() == {name: ROOT / name for name in ("bananas", "gateway", "runner")}
