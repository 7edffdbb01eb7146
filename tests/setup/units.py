"""The units of deploy/systemd under a real systemd, installed by the lines of docs/deploy-systemd.md: they start when
they are ready, stop without losing a job, and come back from kills, hangs and a power cut.

Not named test_*, as it takes minutes: ``make test-bare`` asks for it. The tests share one machine with an engine and a
Redis of its own, and each leaves it with everything running.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.setup.machines import DOCKER_STORE, Machine
from tests.tools.leftovers import Run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a root needs root")

BIN = "/opt/bananas/bin"
ENV_FILE = "/etc/bananas/bananas.env"
GATEWAY, DEFAULT, GPU = "bananas-gateway", "bananas-runner@default", "bananas-runner@gpu"
#: Of the guide's blocks: what every host needs, what one host alone starts, what several hosts share, what they start.
INSTALL, ONE_HOST, SETTINGS, START = range(4)
HANDLER = """
import pathlib, time
def handle(event, context):
    time.sleep(event.get("for_s", 0))
    return {"slept_s": event.get("for_s", 0), "secret": pathlib.Path("/run/secrets/TOKEN").read_text()}
"""
MANIFEST = """
version: 1
pools:
  gpu: {concurrency: 2}
functions:
  nap: {path: nap, timeout: 100s, secrets: [TOKEN]}
  render: {path: nap, pool: gpu, timeout: 100s, secrets: [TOKEN]}
"""


class Host:
    """A booted Debian on which Bananas is installed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        text = (machine.checkout / "docs/deploy-systemd.md").read_text()
        self._blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    def guide(self, block: int) -> str:
        """Do what one block of the guide says; returns what it printed."""
        return self.machine.must(f"set -e\n{self._blocks[block]}")

    def show(self, unit: str, name: str) -> str:
        return self.machine.must(f"systemctl show --property={name} --value {unit}").strip()

    def pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def children(self, unit: str) -> set[str]:
        pid = self.pid(unit)
        return set(self.machine.must(f"cat /proc/{pid}/task/{pid}/children").split())

    def curl(self, path: str, body: object = None) -> Any:
        """Ask the gateway; a problem fails."""
        data = "" if body is None else f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
        return json.loads(self.machine.must(f"curl -fsS --max-time 90 {data} 'http://127.0.0.1:8080{path}'"))

    def submit(self, name: str, for_s: float) -> str:
        return self.curl("/jobs", {"name": name, "payload": {"for_s": for_s}})["id"]

    def running(self, name: str, for_s: float) -> str:
        """The id of a job that has begun."""
        job = self.submit(name, for_s)
        self.until(f'curl -fsS http://127.0.0.1:8080/jobs/{job} | grep -q \'"status":"processing"\'')
        return job

    def finished(self, job: str) -> dict[str, Any]:
        record = self.curl(f"/jobs/{job}?wait=60")
        assert record["status"] == "completed", record
        return record

    def until(self, test: str) -> None:
        self.machine.until(test)

    def until_active(self, *units: str) -> None:
        for unit in units:
            self.until(f"systemctl is-active --quiet {unit}")

    def doctor(self) -> dict[str, list[tuple[str, str]]]:
        """What the doctor says of each unit: how bad, and in which words."""
        done = self.machine.sh(f"{BIN}/bananas doctor -o json")
        found: dict[str, list[tuple[str, str]]] = {}
        for check in json.loads(done.text)["checks"]:
            if check["name"].startswith("bananas"):
                found.setdefault(check["name"], []).append((check["status"], check["detail"]))
        return found

    def drop_in(self, unit: str, lines: str) -> None:
        """Change a unit as ``systemctl edit`` does; without ``lines`` as it was."""
        folder = f"/etc/systemd/system/{unit}.service.d"
        change = f"mkdir -p {folder} && printf '[Service]\\n{lines}\\n' >{folder}/test.conf"
        self.machine.must(f"{change if lines else f'rm -r {folder}'} && systemctl daemon-reload")


@pytest.fixture(scope="module")
def host(engine: docker.DockerClient, run: Run, folder: Path, image: Callable[[str], str]) -> Iterator[Host]:
    """Installed by the guide as on one of several hosts, with two functions of which each has a pool."""
    own = Path(tempfile.mkdtemp(prefix="", dir=folder))
    own.chmod(0o755)
    options = {"with_engine": False, "nested": DOCKER_STORE, "systemd": True}
    machine = Machine(engine, image("bookworm+host"), own / "c", run.labels, **options)  # type: ignore[arg-type]
    try:
        machine.must("redis-cli config set appendonly yes && redis-cli config rewrite")
        host = Host(machine)
        host.guide(INSTALL)
        host.guide(SETTINGS)
        # Shorter than 30 s, so that a killed runner's job is back soon; long enough for a busy machine.
        machine.must(f"echo BANANAS_LEASE_S=9 >>{ENV_FILE}")
        host.guide(START)
        machine.must(f"printf s3cret | {BIN}/bananas secret set TOKEN")
        app = machine.checkout / "units"
        (app / "nap").mkdir(parents=True)
        (app / "nap" / "handler.py").write_text(HANDLER)
        (app / "bananas.yaml").write_text(MANIFEST)
        machine.must(f"{BIN}/bananas deploy -f units/bananas.yaml")
        yield host
    finally:
        print(machine.sh("journalctl --no-pager -n 200 -u 'bananas*'").text)
        machine.close()


def test_the_lines_of_the_guide_give_services_that_are_ready(host: Host) -> None:
    """The moment they return, calls are answered in each pool by its own runner, with its secrets."""
    answered = host.machine.must(
        f"systemctl restart {GATEWAY} && curl -fsS http://127.0.0.1:8080/readyz"
        f" && systemctl restart {DEFAULT} {GPU} && curl -fsS http://127.0.0.1:8080/runners"
    )
    assert '"ready"' in answered
    pools = {runner["id"]: runner["pools"] for runner in host.curl("/runners")["runners"]}
    assert sorted(pools.values()) == [["default"], ["gpu"]]
    for name, pool in (("nap", "default"), ("render", "gpu")):
        assert host.curl(f"/functions/{name}/invoke", {}) == {"slept_s": 0, "secret": "s3cret"}
        record = host.finished(host.submit(name, 0))
        assert pools[record["history"][-1]["runner"]] == [pool]
    assert "serves http://127.0.0.1:8080" in host.show(GATEWAY, "StatusText")
    assert host.show(GPU, "StatusText") == "serves gpu"


def test_the_services_may_do_little(host: Host) -> None:
    """No root, no capability, filtered system calls; each with a user of its own, and the settings are root's alone."""
    users = set()
    for unit in (GATEWAY, DEFAULT):
        status = host.machine.must(f"cat /proc/{host.pid(unit)}/status")
        facts = dict(re.findall(r"^(\w+):\s+(\S+)", status, re.MULTILINE))
        assert (int(facts["CapEff"], 16), int(facts["CapBnd"], 16)) == (0, 0)
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        users.add(facts["Uid"])
    assert len(users) == 2
    assert "0" not in users
    assert host.machine.must(f"stat -c '%a %U' {ENV_FILE} /etc/bananas").split() == ["600", "root", "700", "root"]


def test_a_start_waits_for_redis_and_is_tried_again(host: Host) -> None:
    """A gateway is not ready without it, and says so; a runner ends, and is started until it can stay."""
    machine = host.machine
    machine.must(f"systemctl stop {GATEWAY} {DEFAULT} && systemctl stop redis-server")
    try:
        machine.must(f"systemctl start --no-block {GATEWAY} {DEFAULT}")
        host.until(f"systemctl show -p StatusText --value {GATEWAY} | grep -q 'takes no jobs: Redis'")
        assert machine.sh(f"systemctl is-active --quiet {GATEWAY}").status != 0
        host.until(f"test $(systemctl show -p NRestarts --value {DEFAULT}) -ge 3")
        assert host.show(DEFAULT, "StartLimitIntervalUSec") == "0"
    finally:
        machine.must("systemctl start redis-server")
    host.until_active(GATEWAY, DEFAULT)
    assert host.curl("/functions/nap/invoke", {})["slept_s"] == 0


def test_a_stop_lets_running_work_end(host: Host) -> None:
    """A runner finishes its job, and what waits is kept; a gateway answers the call that it has begun."""
    machine = host.machine
    job = host.running("nap", 8)
    machine.must(f"systemctl stop {DEFAULT}")
    assert host.show(DEFAULT, "Result") == "success"
    record = host.curl(f"/jobs/{job}")
    assert (record["status"], record["attempts"]) == ("completed", 1)
    waiting = host.submit("nap", 0)
    machine.must(f"systemctl start {DEFAULT}")
    host.finished(waiting)

    call = (
        "curl -fsS -H 'Content-Type: application/json' -d '{\"for_s\": 15}' http://127.0.0.1:8080/functions/nap/invoke"
    )
    machine.must(f"setsid sh -c {shlex.quote(f'{call} >/tmp/answer')} >/dev/null 2>&1 </dev/null & sleep 0")
    host.until("curl -fsS 'http://127.0.0.1:8080/jobs?status=processing&function=nap' | grep -q '\"id\"'")
    machine.must(f"systemctl stop {GATEWAY}")
    assert (host.show(GATEWAY, "Result"), json.loads(machine.must("cat /tmp/answer"))["slept_s"]) == ("success", 15)
    machine.must(f"systemctl start {GATEWAY}")


def test_what_is_killed_starts_again_and_loses_nothing(host: Host) -> None:
    """SIGKILL to the runner in the middle of a job, and to the gateway: the job runs again and is finished."""
    job = host.running("nap", 15)
    before = {unit: host.pid(unit) for unit in (GATEWAY, DEFAULT)}
    workers = host.children(GATEWAY)
    host.machine.must(f"kill -KILL {' '.join(map(str, before.values()))}")
    for unit, pid in before.items():
        host.until(f"systemctl is-active --quiet {unit} && ! test -e /proc/{pid}")
        assert int(host.show(unit, "NRestarts")) >= 1
    # The gateway's other processes went with it: the new ones could have the port.
    assert not workers & host.children(GATEWAY)
    record = host.finished(job)
    outcomes = [attempt["outcome"] for attempt in record["history"]]
    assert (outcomes[0], outcomes[-1]) == ("lost", "ok")


def test_what_hangs_is_killed_and_starts_again(host: Host) -> None:
    """systemd does that for a runner and a gateway's master, the master for a process of its own."""
    machine = host.machine
    for unit in (DEFAULT, GATEWAY):
        host.drop_in(unit, "WatchdogSec=5")
    machine.must(f"systemctl restart {GATEWAY} {DEFAULT}")
    job = host.running("nap", 5)
    stuck = min(host.children(GATEWAY))
    machine.must(f"kill -STOP {stuck}")
    host.until(f"! test -e /proc/{stuck}")  # gunicorn gives it 30 s
    assert host.show(GATEWAY, "NRestarts") == "0"
    host.finished(job)
    before = {unit: host.pid(unit) for unit in (GATEWAY, DEFAULT)}
    machine.must(f"kill -STOP {' '.join(map(str, before.values()))}")
    for unit, pid in before.items():
        host.until(f"systemctl is-active --quiet {unit} && test $(systemctl show -p MainPID --value {unit}) != {pid}")
        assert "Watchdog timeout (limit 5s)" in machine.must(f"journalctl --no-pager -u {unit}")
    assert host.curl("/functions/nap/invoke", {})["slept_s"] == 0
    for unit in (DEFAULT, GATEWAY):
        host.drop_in(unit, "")
    machine.must(f"systemctl restart {GATEWAY} {DEFAULT}")


def test_the_doctor_finds_what_is_wrong_with_a_unit(host: Host) -> None:
    """Nothing at first; then a short stop, open settings, a wrong setting, a unit that no boot starts."""
    names = [f"{unit}.service" for unit in (GATEWAY, DEFAULT, GPU)]
    found = host.doctor()
    assert {name: [status for status, _ in found[name]] for name in names} == {name: ["ok"] for name in names}
    host.drop_in(GPU, "TimeoutStopSec=20")
    host.machine.must(
        f"chmod 644 {ENV_FILE} && systemctl disable {GATEWAY} && echo BANANAS_POOL=x >/etc/bananas/runner-default.env"
    )
    try:
        found = host.doctor()
    finally:
        host.drop_in(GPU, "")
        host.machine.must(f"chmod 600 {ENV_FILE}; systemctl enable {GATEWAY}; rm /etc/bananas/runner-default.env")
    gateway, default, gpu = (str(found[name]) for name in names)
    assert "it does not start when this host boots" in gateway
    assert f"{ENV_FILE} has the mode 0644" in gateway
    assert "BANANAS_POOL is not a setting of Bananas; did you mean BANANAS_POOLS" in default
    assert "it is killed 20 s after a stop began, and may need 50 s" in gpu


def test_all_comes_back_after_a_power_cut(host: Host) -> None:
    """What ``enable`` says; the job that was running is finished."""
    job = host.running("render", 10)
    host.machine.cut_power()
    host.until_active(GATEWAY, DEFAULT, GPU)
    assert host.finished(job)["result"]["slept_s"] == 10
    host.until("test $(docker ps --quiet --filter label=bananas.runner --filter status=exited | wc -l) = 0")


def test_one_unit_is_everything_on_one_host(host: Host) -> None:
    """``bananas.service``: ready with its own Redis, a job survives its stop, nothing is left running."""
    machine = host.machine
    machine.must(f"systemctl disable --now {GATEWAY} {DEFAULT} {GPU} redis-server && mv {ENV_FILE} /var/lib")
    try:
        host.guide(ONE_HOST)
        machine.must(f"printf s3cret | {BIN}/bananas secret set TOKEN && {BIN}/bananas deploy -f units/bananas.yaml")
        assert host.curl("/functions/render/invoke", {"for_s": 1}) == {"slept_s": 1, "secret": "s3cret"}
        job = host.running("nap", 8)
        machine.must("systemctl stop bananas")
        assert host.show("bananas", "Result") == "success"
        assert machine.must("docker ps --quiet") == ""
        assert "bananas" not in machine.sh("stat --format=%U /proc/[0-9]*").text.split()
        machine.must("systemctl start bananas")
        assert host.finished(job)["attempts"] == 1
        machine.must("systemctl disable --now bananas")
    finally:
        machine.must(
            f"mv /var/lib/bananas.env {ENV_FILE} && systemctl enable --now redis-server {GATEWAY} {DEFAULT} {GPU}"
        )
