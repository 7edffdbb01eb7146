"""Sandboxes that are ready before the call, and how long they serve, on a real engine."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import docker
import pytest
import requests

from bananas.spec import RuntimeInfo
from runner.docker_driver import LABEL_INSTANCE
from tests.platform import Platform, until

DEADLINE_S = 30.0
ECHO = "def handle(event, context):\n    return event\n"
COUNT = "n = 0\n\ndef handle(event, context):\n    global n\n    n += 1\n    return n\n"
SLEEP = "import time\n\ndef handle(event, context):\n    time.sleep(event)\n"
BROKEN = "import there_is_no_such_module\n\ndef handle(event, context):\n    return event\n"


def attempt(platform: Platform, function: str, payload: object = 1) -> dict[str, Any]:
    """What the record says of the only attempt of a new job."""
    record = platform.finished(platform.client.submit(function, payload)["id"], DEADLINE_S)
    assert record["status"] == "completed", record
    (only,) = record["history"]
    return {**only, "result": record["result"]}


def spare(platform: Platform, pool: str) -> set[str]:
    """Ids of the stems that are there now; the gauges are told every 2 s only, so this reads what the runner logs."""
    found: set[str] = set()
    for process in platform.processes:
        for told in process.events("sandbox.started", "sandbox.ended"):
            if told["pool"] == pool:
                (found.add if told.get("start") == "spare" else found.discard)(told["sandbox"])
    return found


def stocked(platform: Platform, pool: str, number: int) -> set[str]:
    """Wait for so many stems; their ids."""
    return until(lambda: len(found := spare(platform, pool)) == number and found, DEADLINE_S, f"{number} stems")


def counted(platform: Platform, field: str, number: int = 1) -> None:
    """Wait until a counter of starts or ends is that high."""
    counters = platform.queue.counts
    until(lambda: counters().counters.get(field, 0) == number, DEADLINE_S, f"{field} to be {number}: {counters()}")


@pytest.fixture(scope="module")
def idle_platform(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner whose first stems are there."""
    with Platform(empty_redis, BANANAS_PYTHON_IMAGE=base_image.image) as platform:
        platform.gateway()
        platform.runner()
        stocked(platform, "default", 2)
        yield platform


@pytest.fixture
def platform(idle_platform: Platform) -> Platform:
    """With full stems again after the test before."""
    stocked(idle_platform, "default", 2)
    return idle_platform


def test_a_first_call_binds_a_stem_and_another_one_is_made(platform):
    """No container is created while the caller waits; the record says how the attempt got its sandbox."""
    before = spare(platform, "default")
    platform.deploy({"first": ECHO})
    first = attempt(platform, "first")
    assert (first["start"], first["start_reason"], first["nth_use"]) == ("stem", "none_idle", 1)
    assert first["sandbox"] in before
    again = attempt(platform, "first")
    assert (again["start"], again["start_reason"], again["sandbox"]) == ("warm", None, first["sandbox"])
    assert first["sandbox"] not in stocked(platform, "default", 2)
    counted(platform, "start:default:first:stem:none_idle")
    counted(platform, "start:default:first:warm:")


def test_a_stem_holds_nothing_of_any_function(platform, engine):
    """What waits for a first call has the shim, a socket and its settings, and no variable of anybody's."""
    platform.deploy({"private": ECHO}, "    env: {MINE: very-private}")
    attempt(platform, "private")
    label = {"label": f"{LABEL_INSTANCE}={platform.registry.instance()}"}
    ids = stocked(platform, "default", 2)
    running = engine.containers.list(filters=label)
    stems = [c for c in running if any(sandbox in str(c.attrs["HostConfig"]["Binds"]) for sandbox in ids)]
    assert len(stems) == 2
    look = "import json,os;print(json.dumps([os.listdir('/run/bananas'), open('/proc/1/environ').read()]))"
    for container in stems:
        code, out = container.exec_run(["python3", "-c", look])
        assert code == 0
        names, environ = json.loads(out)
        assert "shim" in names
        assert not {"code", "deps"} & set(names)
        assert "very-private" not in environ


def test_min_warm_is_ready_after_the_deploy(platform):
    """The first call finds the code loaded; a new version gets its own before anybody calls it."""
    platform.deploy({"ready": "VALUE = 1\n" + ECHO}, "    min_warm: 1")
    counted(platform, "start:default:ready:min_warm:")
    first = attempt(platform, "ready")
    assert (first["start"], first["nth_use"]) == ("warm", 1)
    platform.deploy({"ready": "VALUE = 2\n" + ECHO}, "    min_warm: 1")
    counted(platform, "start:default:ready:min_warm:", 2)
    second = attempt(platform, "ready")
    assert (second["start"], second["nth_use"]) == ("warm", 1)
    assert second["sandbox"] != first["sandbox"]
    counted(platform, "end:default:ready:new_version")


def test_a_function_that_is_removed_leaves_no_sandbox(platform):
    """Neither its idle ones nor what min_warm kept."""
    platform.deploy({"gone": ECHO}, "    min_warm: 1")
    counted(platform, "start:default:gone:min_warm:")
    platform.registry.remove("gone")
    counted(platform, "end:default:gone:removed")


def test_min_warm_of_broken_code_is_told_and_disturbs_nobody(platform):
    """The runner says so once and goes on; other functions are served."""
    runner = next(process for process in platform.processes if process.name.startswith("runner"))
    platform.deploy({"broken": BROKEN, "fine": ECHO}, "    min_warm: 1")
    said = "min_warm of function broken pool=default: ModuleNotFoundError"
    until(lambda: said in runner.text, DEADLINE_S, "the warning")
    assert attempt(platform, "fine")["result"] == 1
    platform.registry.remove("broken")


def test_the_last_sandbox_that_worked_works_next(platform):
    """Last in, first out: the others become old and go."""
    platform.deploy({"lifo": SLEEP})
    jobs = [platform.client.submit("lifo", seconds)["id"] for seconds in (0.3, 0.6)]
    used = [platform.finished(job, DEADLINE_S)["history"][0]["sandbox"] for job in jobs]
    assert len(set(used)) == 2
    assert {attempt(platform, "lifo", 0)["sandbox"] for _ in range(5)} == {used[1]}


def test_single_use_starts_every_call_afresh(platform):
    """Nothing of a call is there in the next one."""
    platform.deploy({"once": COUNT}, "    single_use: true")
    attempts = [attempt(platform, "once") for _ in range(4)]
    assert [a["result"] for a in attempts] == [1, 1, 1, 1]
    assert len({a["sandbox"] for a in attempts}) == 4
    counted(platform, "end:default:once:single_use", 4)


def test_max_uses_replaces_a_sandbox(platform):
    """After that many calls the next one has a new sandbox."""
    platform.deploy({"some": COUNT}, "    max_uses: 3")
    assert [attempt(platform, "some")["result"] for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    counted(platform, "end:default:some:max_uses", 2)


def test_max_lifetime_replaces_a_sandbox(platform):
    """Also while nobody calls."""
    platform.deploy({"mortal": COUNT}, "    max_lifetime: 1s")
    first = attempt(platform, "mortal")
    counted(platform, "end:default:mortal:max_lifetime")
    second = attempt(platform, "mortal")
    assert (second["result"], second["sandbox"] != first["sandbox"]) == (1, True)


def test_idle_sandboxes_end_in_time_and_the_metrics_tell(platform):
    """Nobody looks every second for that; the upkeep sleeps until it is due."""
    platform.deploy({"rest": ECHO}, "    pool: short", "pools:\n  short: {idle_timeout: 1s, stems: 0}")
    cold = attempt(platform, "rest")
    assert (cold["start"], cold["start_reason"]) == ("cold", "stems_off")
    counted(platform, "end:short:rest:idle")
    text = requests.get(f"{platform.url}/metrics", timeout=10).text
    assert 'bananas_sandbox_ends_total{function="rest",pool="short",reason="idle"} 1.0' in text
    assert 'bananas_sandbox_starts_total{function="rest",pool="short",reason="stems_off",start="cold"} 1.0' in text


def test_a_burst_creates_no_more_than_the_gate_lets(platform, engine):
    """Fifty calls of a function that was never called: all are served, and two containers are made at any moment."""
    platform.deploy({"burst": SLEEP}, "    pool: crowd", "pools:\n  crowd: {concurrency: 20}")
    stocked(platform, "crowd", 2)
    since = time.time()
    jobs = [platform.client.submit("burst", 0.2)["id"] for _ in range(50)]
    records = [platform.finished(job, 120.0) for job in jobs]
    assert {record["status"] for record in records} == {"completed"}
    starts = Counter(record["history"][0]["start"] for record in records)
    assert starts["stem"] >= 2, starts
    assert starts["stem"] + starts["cold"] <= 20, starts
    assert most_at_once(engine, platform, since) <= 2


def most_at_once(engine: docker.DockerClient, platform: Platform, since_s: float) -> int:
    """How many containers of the installation were between ``create`` and ``start`` at the same moment."""
    filters = {"label": f"{LABEL_INSTANCE}={platform.registry.instance()}", "type": "container"}
    events = engine.events(since=int(since_s), until=int(time.time()) + 1, filters=filters, decode=True)
    kinds = {"create": 1, "start": -1}
    changes = [(event["timeNano"], kinds[event["Action"]]) for event in events if event["Action"] in kinds]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    assert changes, "no container was created"
    return most
