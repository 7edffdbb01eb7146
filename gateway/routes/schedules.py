"""``/schedules``: what fires when, and pausing it. Schedules come with deploys (``PUT /functions/{name}``)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from bananas.errors import InvalidRequest
from bananas.schedules import Schedule, Schedules
from gateway import bodies
from gateway.answers import Answer, iso, json_answer
from gateway.guard import read_body

_BODY_BYTES = 16 * 1024


class ScheduleRoutes:
    """The calls on schedules."""

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("schedules", __name__)
        routes.add_url_rule("/schedules", view_func=self.all, methods=["GET"])
        routes.add_url_rule("/schedules/<function>/pause", view_func=self.pause, methods=["POST"])
        routes.add_url_rule("/schedules/<function>/resume", view_func=self.resume, methods=["POST"])
        return routes

    def all(self) -> Answer:
        """Every schedule, with its next five slots."""
        return json_answer({"schedules": [_public(schedule) for schedule in self._schedules.list()]})

    def pause(self, function: str) -> Answer:
        """Let nothing fire until it is resumed."""
        bodies.checked_name(function, "function")
        _check_body()
        changed = self._schedules.pause(function)
        return json_answer({"function": function, "paused": True, "changed": changed})

    def resume(self, function: str) -> Answer:
        """Go on from now."""
        bodies.checked_name(function, "function")
        _check_body()
        changed = self._schedules.resume(function)
        return json_answer({"function": function, "paused": False, "changed": changed})


def _check_body() -> None:
    """Nothing is said in it, but it must be JSON, which no other site's page can send."""
    raw = read_body(_BODY_BYTES)
    if raw and raw.strip() != b"{}":
        raise InvalidRequest(f"the body takes no members: {raw[:60].decode(errors='replace')!r}; send {{}}")


def _public(schedule: Schedule) -> dict[str, Any]:
    return {
        "function": schedule.function,
        "cron": schedule.cron,
        "tz": schedule.tz,
        "catchup": schedule.catchup,
        "overlap": schedule.overlap,
        "paused": schedule.is_paused,
        "last_slot": iso(schedule.last_slot_ms),
        "next": [iso(slot_ms) for slot_ms in schedule.next_ms],
        "last_job": schedule.last_job,
        "held": schedule.held,
        "fired": schedule.fired,
        "skipped": schedule.skipped,
        "missed": schedule.missed,
        "problem": schedule.problem,
    }
