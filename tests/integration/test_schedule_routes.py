"""``/schedules`` over a real Redis: what a deploy makes of a manifest's schedule, pausing, and the metrics of slots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from bananas import keys
from bananas.manifest import load
from bananas.redis_client import Connections
from bananas.schedules import Schedules
from bananas.spec import Bundles, Deployment
from tests.integration.gateway_player import ABI, CODE, SHA, Player, assert_problem, send

pytestmark = pytest.mark.redis

MANIFEST = """\
version: 1
functions:
  report:
    schedule: {cron: "30 2 * * *", tz: Europe/Berlin, catchup: last, overlap: skip, payload: {kind: full}}
  plain:
"""


@pytest.fixture
def deployed(client: FlaskClient, tmp_path: Path) -> FlaskClient:
    """A gateway to which the manifest was deployed by HTTP."""
    (tmp_path / "bananas.yaml").write_text(MANIFEST)
    for name in ("report", "plain"):
        (tmp_path / "functions" / name).mkdir(parents=True)
        (tmp_path / "functions" / name / "handler.py").touch()
    assert client.put(f"/bundles/{SHA}", data=CODE, content_type="application/octet-stream").status_code == 201
    for name, function in load(tmp_path / "bananas.yaml", {}).functions.items():
        deployment = Deployment(spec=function.spec, bundles=Bundles(code=SHA), abi=ABI)
        answer = client.put(f"/functions/{name}", data=deployment.encode(), content_type="application/json")
        assert answer.status_code == 200, answer.data
    return client


def test_a_deployed_schedule_is_shown_with_its_next_five_slots(deployed: FlaskClient) -> None:
    """Times are RFC 3339 in UTC; half past two in Berlin is half past midnight or one there."""
    [shown] = deployed.get("/schedules").get_json()["schedules"]
    slots = shown.pop("next")
    assert len(slots) == len(set(slots)) == 5
    assert {slot[10:] for slot in slots} <= {"T00:30:00.000Z", "T01:30:00.000Z", "T01:00:00.000Z"}
    assert shown == {
        "function": "report",
        "cron": "30 2 * * *",
        "tz": "Europe/Berlin",
        "catchup": "last",
        "overlap": "skip",
        "paused": False,
        "last_slot": None,
        "last_job": None,
        "held": 0,
        "fired": 0,
        "skipped": 0,
        "missed": 0,
        "problem": None,
    }
    spec = deployed.get("/functions/report").get_json()["spec"]["schedule"]
    assert spec["payload"] == {"kind": "full"}


def test_pausing_is_answered_with_what_changed(deployed: FlaskClient) -> None:
    """A second time changes nothing; unknown ones are 404."""
    for verb, paused in (("pause", True), ("resume", False)):
        for changed in (True, False):
            answer = send(deployed, "POST", f"/schedules/report/{verb}", {})
            assert answer.get_json() == {"function": "report", "paused": paused, "changed": changed}
        assert deployed.get("/schedules").get_json()["schedules"][0]["paused"] is paused
    assert_problem(
        send(deployed, "POST", "/schedules/plain/pause", {}), 404, "unknown-schedule", "'plain' has no sched"
    )


def test_no_page_of_another_site_can_pause(deployed: FlaskClient) -> None:
    """Only JSON is taken, which a browser does not send across sites unasked."""
    assert_problem(deployed.post("/schedules/report/pause"), 415, "unsupported-media-type")
    assert_problem(
        send(deployed, "POST", "/schedules/report/pause", {"for": "1h"}), 422, "invalid-request", "no members"
    )
    assert deployed.get("/schedules").get_json()["schedules"][0]["paused"] is False


@pytest.mark.parametrize(
    ("schedule", "detail"),
    [
        ({"cron": "0 0 30 2 *"}, "never comes"),
        ({"cron": "@daily", "tz": "Berlin"}, "did you mean 'Europe/Berlin'"),
        ({"cron": "@daily", "catchup": "some"}, "some"),
        ({"cron": "@daily", "payload": "x" * 70_000}, "payload of 70002 bytes is too large; at most 65536"),
        ({"tz": "UTC"}, "cron"),
        ({"cron": "@daily", "extra": 1}, "extra"),
    ],
)
def test_a_wrong_schedule_is_refused_at_the_deploy(client: FlaskClient, schedule: object, detail: str) -> None:
    """By HTTP too, where no manifest was read."""
    body = {"spec": {"schedule": schedule}, "bundles": {"code": SHA}, "abi": ABI}
    assert_problem(send(client, "PUT", "/functions/report", body), 422, "invalid-request", detail)


def test_metrics_tell_lag_and_fate_of_slots(client: FlaskClient, player: Player, connections: Connections) -> None:
    """Each by function, from the counters of the scripts."""
    raw = {"spec": {"schedule": {"cron": "* * * * *", "catchup": "last"}}, "bundles": {"code": SHA}, "abi": ABI}
    assert send(client, "PUT", "/functions/tick", raw).status_code == 200
    last = player.registry.now_ms() // 60_000 * 60_000 - 10 * 60_000
    connections.commands.hset(keys.cron("tick"), "last", last)
    Schedules(connections).look()
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").get_data(as_text=True)):
        found |= {s.name: s.value for s in family.samples if s.labels.get("function") == "tick"}
    assert found["bananas_cron_fired_total"] == 1
    assert found["bananas_cron_missed_total"] >= 8
    assert 0 <= found["bananas_cron_lag_seconds"] < 121
    assert json.loads(client.get("/schedules").data)["schedules"][0]["fired"] == 1
