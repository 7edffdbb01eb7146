"""Debian's Prometheus scrapes a real gateway and a real runner, and answers every query of the dashboard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bananas import keys
from bananas.ports import free_port
from bananas.spec import RuntimeInfo
from tests.e2e.test_egress import web
from tests.platform import ROOT, Platform, Process, until

pytestmark = pytest.mark.docker

SOON_S = 60.0
HANDLERS = {
    "hello": "def handle(event, context):\n    return event\n",
    "bad": "def handle(event, context):\n    raise ValueError('bad')\n",
    "tick": "def handle(event, context):\n    return None\n",
    "out": (
        "import urllib.request\n"
        "def handle(event, context):\n"
        "    return urllib.request.urlopen(event, timeout=10).read().decode()\n"
    ),
}


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner that tells its metrics, on an empty Redis."""
    address = f"127.0.0.1:{free_port()}"
    with Platform(empty_redis, BANANAS_GRACE_S="5", BANANAS_RUNNER_METRICS=address) as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        yield platform


def runner_metrics(platform: Platform) -> str:
    """The address of the runner's endpoint."""
    return platform.env["BANANAS_RUNNER_METRICS"]


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def prometheus(app: Platform, prometheus_path: str) -> Iterator[str]:
    """Prometheus with the configuration of deploy/prometheus, but for addresses and pace; gives its address."""
    config = (ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8").replace("15s", "500ms")
    config = config.replace("127.0.0.1:8080", f"127.0.0.1:{app.port}").replace("127.0.0.1:9464", runner_metrics(app))
    (app.folder / "prometheus.yml").write_text(config, "utf-8")
    (app.folder / "alerts.yml").write_text((ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8"), "utf-8")
    address = f"127.0.0.1:{free_port()}"
    process = Process(
        "prometheus",
        [
            prometheus_path,
            f"--config.file={app.folder}/prometheus.yml",
            f"--storage.tsdb.path={app.folder}/tsdb",
            f"--web.listen-address={address}",
        ],
        {},
        app.folder,
        "Server is ready to receive web requests",
    )
    try:
        yield address
    finally:
        process.stop()


def ask(address: str, query: str) -> list[dict[str, Any]]:
    """The result of an instant query."""
    answer = json.loads(get(address, f"/api/v1/query?query={urllib.parse.quote(query)}"))
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


def values(address: str, query: str) -> list[float]:
    return [float(found["value"][1]) for found in ask(address, query)]


def queries() -> list[str]:
    """Those of the dashboard, with what Grafana fills in."""
    panels = json.loads((ROOT / "deploy/grafana/bananas.json").read_text("utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", "1m").replace("$pool", ".*") for query in found]


def make_something_happen(app: Platform) -> None:
    """Calls that go well and badly, a schedule, a connection out: one thing for each panel."""
    with web() as port:
        pools = f'pools:\n  out: {{egress: ["127.0.0.1:{port}"], concurrency: 1}}'
        app.deploy({"hello": HANDLERS["hello"]})
        app.deploy({"bad": HANDLERS["bad"]}, "    retries: {max: 1, base: 100ms}")
        app.deploy({"out": HANDLERS["out"]}, "    pool: out", pools)
        app.deploy({"tick": HANDLERS["tick"]}, '    schedule: {cron: "* * * * *", catchup: last}')
        # As if the last slot had been five minutes ago, so that nobody waits for the next one.
        now_ms = app.registry.now_ms()
        app.connections.commands.hset(keys.cron("tick"), "last", now_ms - 300_000)
        for _ in range(5):
            app.client.invoke("hello", 1, timeout_s=30)
        assert app.finished(app.client.submit("bad", None)["id"])["status"] == "failed"
        assert json.loads(app.client.invoke("out", f"http://127.0.0.1:{port}/", timeout_s=30)) == "hello"
        counters = app.queue.counts
        until(lambda: counters().counters.get("outcome:tick:ok"), SOON_S, "the missed slot of the schedule to run")


def test_prometheus_scrapes_gateway_and_runner_and_answers_the_dashboard(app: Platform, prometheus: str) -> None:
    """Both targets are up, nothing is empty on the dashboard, and the figures are what happened."""
    make_something_happen(app)
    wanted = queries()
    assert len(wanted) > 50
    until(lambda: values(prometheus, "sum(up)") == [2], SOON_S, "both targets to be up")
    empty = list(wanted)

    def answered() -> bool:
        empty[:] = [query for query in empty if not ask(prometheus, query)]
        return not empty

    try:
        until(answered, SOON_S, "an answer to every query")
    finally:
        print("without an answer:", *empty, sep="\n  ")
    for query, expected in {
        'bananas_jobs_total{function="hello", outcome="ok"}': 5,
        'bananas_jobs_total{function="bad", outcome="error"}': 2,
        "bananas_retries_total": 1,
        'bananas_dead_letters_total{reason="retries_exhausted"}': 1,
        "bananas_dead_letters_kept": 1,
        "bananas_runners": 1,
        'bananas_egress_connections_total{pool="out", verdict="ok"}': 1,
        'bananas_runner_attempts_total{pool="default", outcome="error"}': 2,
        'bananas_attempt_run_seconds_count{pool="out"}': 1,
        'bananas_http_requests_total{call="functions.invoke", status="200"}': 6,
        "bananas_runner_engine_up": 1,
        "bananas_redis_evicting": 0,
    }.items():
        told = partial(values, prometheus, query)
        until(lambda told=told, n=expected: told() == [n], SOON_S, f"{query} to be {expected}")


def test_promtool_finds_nothing_to_say_about_what_both_tell(app: Platform, promtool: str) -> None:
    """What is really scraped, with labels of real things."""
    for address in (f"127.0.0.1:{app.port}", runner_metrics(app)):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=get(address, "/metrics"), capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_runner_serves_nothing_but_its_metrics(app: Platform) -> None:
    """Every other path is 404, and another runner at the same address says what to do."""
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(runner_metrics(app), "/")
    text = get(runner_metrics(app), "/metrics").decode()
    assert re.search(r'^bananas_runner_build_info\{runner=".+",version=".+"\} 1\.0$', text, re.M)
    done = subprocess.run(
        [sys.executable, "-m", "runner"],
        env={**os.environ, **app.env, "BANANAS_STATE_DIR": str(app.folder / "other")},
        capture_output=True,
        text=True,
        timeout=SOON_S,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert f"BANANAS_RUNNER_METRICS={runner_metrics(app)} cannot be listened at" in done.stderr
