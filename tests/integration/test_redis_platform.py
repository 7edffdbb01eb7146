"""Gateway and runner behind sentinels: a failover, then no Redis at all, and no password in what they print."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bananas import keys
from bananas.errors import ApiError
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.platform import ROOT, Platform, until
from tests.tools.redis_servers import SERVICE, ReplicaSet, Servers, tls_in_front

PASSWORD = "hunter2/pl@in"
QUOTED = "hunter2%2Fpl%40in"
SENTINEL_PASSWORD = "s3ntinel"
KEY_PASSWORD = "k3ypass"
USER = "us3r"
SECRETS = (PASSWORD, QUOTED, "hunter2", SENTINEL_PASSWORD, KEY_PASSWORD, USER)
ECHO = "def handle(event, context):\n    return event\n"


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[ReplicaSet]:
    with Servers(tmp_path) as servers:
        yield servers.replica_set(password=PASSWORD, own_password=SENTINEL_PASSWORD)


@pytest.fixture
def platform(replicas: ReplicaSet, base_image: RuntimeInfo) -> Iterator[Platform]:
    url = f"redis+sentinel://:{QUOTED}@{replicas.hosts()}/{SERVICE}?sentinel_password={SENTINEL_PASSWORD}"
    env = {"BANANAS_LEASE_S": "3", "BANANAS_LOG_LEVEL": "debug", "BANANAS_PYTHON_IMAGE": base_image.image}
    with Platform(url, **env) as platform:
        platform.gateway()
        platform.runner()
        platform.deploy({"echo": ECHO})
        yield platform


def works(platform: Platform) -> bool:
    try:
        return platform.client.invoke("echo", 1) == b"1"
    except ApiError as e:
        if e.status not in (503, 504):
            raise
        threading.Event().wait(0.05)
        return False


def assert_no_secret(text: str) -> None:
    assert [secret for secret in SECRETS if secret in text] == []


def test_a_failover_needs_no_restart_and_an_outage_tells_no_password(platform: Platform, replicas: ReplicaSet) -> None:
    """Calls work again within seconds; with everything gone, processes and problems name the sentinels only."""
    assert works(platform)
    job = platform.client.submit("echo", 2)
    for replica in replicas.replicas:  # replication is asynchronous, and losses are another test's matter
        until(lambda r=replica: r.ask("EXISTS", keys.job(job["id"])), 5, "the job to be copied")
    replicas.master.kill9()
    until(lambda: works(platform), 30, "calls after the failover")
    assert platform.finished(job["id"])["status"] == "completed"

    for server in (*replicas.replicas, *replicas.sentinels):
        server.kill9()
    with pytest.raises(ApiError) as caught:
        platform.client.invoke("echo", 3)
    assert (caught.value.status, caught.value.problem["code"]) == (503, "redis-unavailable")
    runner = platform.processes[1]
    until(lambda: "does not answer" in runner.text, 20, "the runner to say that Redis is away")
    shown = f"redis+sentinel://***@{replicas.hosts()}/{SERVICE}/0"
    assert shown in runner.text
    assert shown in str(caught.value.problem)
    assert_no_secret(str(caught.value.problem))
    for process in platform.processes:
        assert_no_secret(process.text)


def said_at_start(module: str, url: str, folder: Path) -> str:
    """Everything that a process prints that cannot reach its Redis; a gateway is asked how it is, and stopped."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BANANAS_")}
    env = {"BANANAS_REDIS_URL": url, "BANANAS_STATE_DIR": str(folder / "state"), "BANANAS_LOG_LEVEL": "debug"}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=plain | env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_runner_that_cannot_reach_its_redis_names_it_without_secrets(tmp_path: Path) -> None:
    """Each form of URL, with a password in each place where one may be."""
    at = f"127.0.0.1:{free_port()}"
    for url, shown in {
        f"redis://{USER}:{QUOTED}@{at}/0": f"redis://***@{at}/0",
        f"redis://{at}/0?password={QUOTED}": f"redis://***@{at}/0",
        f"rediss://{at}/0?password={QUOTED}&ssl_password={KEY_PASSWORD}": f"rediss://***@{at}/0",
        f"redis+sentinel://:{QUOTED}@{at},{at}/jobs?sentinel_password={SENTINEL_PASSWORD}": f"***@{at}/jobs/0",
        f"redis+cluster://:{QUOTED}@{at}": f"redis+cluster://***@{at}",
    }.items():
        said = said_at_start("runner", url, tmp_path)
        assert f"{shown} does not answer" in said
        assert_no_secret(said)


@pytest.mark.parametrize("module", ["gateway", "runner"])
def test_a_url_that_is_not_valid_stops_a_process_at_once_and_is_not_quoted(module: str, tmp_path: Path) -> None:
    """One line with the right form."""
    said = said_at_start(module, f"redis+sentinel://:{PASSWORD}@127.0.0.1/jobs", tmp_path)
    assert "error: BANANAS_REDIS_URL=redis+sentinel://*** is not valid" in said
    assert "/service[/db]" in said
    assert_no_secret(said)
    said = said_at_start(module, f"rediss://:{QUOTED}@127.0.0.1/0?ssl_ca_certs={tmp_path}/ca.pem", tmp_path)
    assert "ca.pem' cannot be read" in said
    assert_no_secret(said)


def test_a_gateway_over_tls_says_ready_and_then_why_not(tmp_path: Path) -> None:
    """Its own process, with a private authority; when Redis refuses the password later, nothing of it is printed."""
    with Servers(tmp_path) as servers:
        server = servers.server(password=PASSWORD)
        with tls_in_front(tmp_path / "certificates", server.port) as proxy:
            url = f"rediss://:{QUOTED}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={proxy.ca}"
            with Platform(url, BANANAS_LOG_LEVEL="debug") as platform:
                gateway = platform.gateway()
                assert platform.client.functions() == []
                assert proxy.encrypted > 0
                server.ask("CONFIG", "SET", "requirepass", "other")
                server.password = "other"
                server.ask("CLIENT", "KILL", "TYPE", "normal")
                with pytest.raises(ApiError) as caught:
                    platform.client.functions()
                assert "refuses the user or password" in str(caught.value.problem)
                assert_no_secret(str(caught.value.problem) + gateway.text)
