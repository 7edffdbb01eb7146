"""``/dead`` and ``/jobs/{id}/replay``: look at failed jobs, put them back into the queue, drop them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from flask import Blueprint, request

from bananas.dead_letters import DeadLetter, DeadLetters
from bananas.errors import BananasError, InvalidRequest, UnknownJob
from bananas.queue import Queue
from bananas.registry import Registry
from bananas.settings import LIMITS
from gateway import bodies, letters, records
from gateway.answers import Answer, iso, json_answer
from gateway.guard import read_body, too_large
from gateway.routes.jobs import check_id

#: Of an error's message in the list; the job's record has all of it.
_MESSAGE_CHARS: Final = 500


class DeadRoutes:
    """The calls on dead letters."""

    def __init__(self, dead: DeadLetters, queue: Queue, registry: Registry) -> None:
        self._dead = dead
        self._queue = queue
        self._registry = registry

    def blueprint(self) -> Blueprint:
        """The routes, to be registered with the app."""
        routes = Blueprint("dead", __name__)
        routes.add_url_rule("/dead", view_func=self.page, methods=["GET"])
        routes.add_url_rule("/dead/replay", view_func=self.replay, methods=["POST"])
        routes.add_url_rule("/dead/purge", view_func=self.purge, methods=["POST"])
        routes.add_url_rule("/jobs/<job:job_id>/replay", view_func=self.replay_one, methods=["POST"])
        return routes

    def page(self) -> Answer:
        """Letters that match, oldest first."""
        query = letters.query(request.args)
        found = self._dead.page(query.wanted(), query.cursor, query.limit)
        return json_answer({"letters": [_public(letter) for letter in found.letters], "cursor": found.cursor})

    def replay_one(self, job_id: str) -> Answer:
        """202: the job is back in the queue, maybe with another payload."""
        check_id(job_id)
        raw = read_body(LIMITS.payload_bytes + bodies.ENVELOPE_BYTES, what="body with its payload")
        body = letters.ONE.decode(raw or b"{}")
        payload = bytes(body.payload)
        if len(payload) > LIMITS.payload_bytes:
            raise too_large("payload", len(payload), LIMITS.payload_bytes)
        [state] = self._dead.replay([job_id], payload or None, version=body.version, key=_key())
        if isinstance(state, UnknownJob):
            self._queue.show(job_id)  # knows whether it ever was
        if isinstance(state, BananasError):
            raise state
        return json_answer({"id": job_id, "status": state.value}, 202, {"Location": f"/jobs/{job_id}"})

    def replay(self) -> Answer:
        """Put back many: by id, or a page of those that match."""
        body = letters.REPLAY.decode(read_body(letters.BODY_BYTES) or b"{}")
        letters.check_choice(body, "replay")
        if body.ids is not None:
            ids = list(dict.fromkeys(body.ids))
            answers = self._dead.replay(ids, None, body.interval_ms, body.version, key=_key())
            refused = {i: e for i, e in zip(ids, answers, strict=True) if isinstance(e, BananasError)}
            return _moved([job_id for job_id in ids if job_id not in refused], refused, None)
        if _key():
            raise InvalidRequest(f"{bodies.KEY_HEADER} is for a replay by ids; a call by filter goes on where it stood")
        now_ms = self._registry.now_ms()
        at = letters.position(body.cursor, now_ms)
        wanted = letters.until(body.wanted(), at.before_ms)
        done = self._dead.replay_matching(
            wanted, body.interval_ms, body.version, at.cursor, body.limit, delay_ms=at.due_ms - now_ms
        )
        following = replace(at, cursor=done.cursor, due_ms=at.due_ms + body.interval_ms * len(done.moved))
        return _moved(done.moved, done.refused, None if done.cursor is None else str(following))

    def purge(self) -> Answer:
        """Drop many for good: by id, or a page of those that match."""
        body = letters.PURGE.decode(read_body(letters.BODY_BYTES) or b"{}")
        letters.check_choice(body, "purge")
        if body.ids is not None:
            return json_answer({"purged": self._dead.purge(list(dict.fromkeys(body.ids))), "cursor": None})
        at = letters.position(body.cursor, self._registry.now_ms())
        done = self._dead.purge_matching(letters.until(body.wanted(), at.before_ms), at.cursor, body.limit)
        cursor = None if done.cursor is None else str(replace(at, cursor=done.cursor))
        return json_answer({"purged": len(done.moved), "cursor": cursor})


def _key() -> str:
    """What makes a replay that is sent again the first one; empty without it. Raises InvalidRequest."""
    return bodies.checked_key(request.headers.get(bodies.KEY_HEADER)) or ""


def _moved(moved: list[str], refused: dict[str, BananasError], cursor: str | None) -> Answer:
    told = [{"id": job_id, "code": e.code, "detail": str(e)} for job_id, e in refused.items()]
    return json_answer({"moved": moved, "refused": told, "cursor": cursor})


def _public(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "name": letter.function,
        "version": letter.version,
        "pool": letter.pool,
        "reason": letter.reason,
        "error": records.short_error(letter.error, _MESSAGE_CHARS),
        "died_at": iso(letter.died_at_ms),
        "attempts": letter.attempts,
    }
