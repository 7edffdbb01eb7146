"""What ``GET /jobs`` takes and how it shows a job in a list. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from werkzeug.datastructures import MultiDict

from bananas import spec
from bananas.job import JobState
from bananas.listing import SCAN, Listed
from gateway.answers import iso
from gateway.forms import Form, query_values


class JobsQuery(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The query of ``GET /jobs``; all that is given must match."""

    status: JobState | None = None
    function: spec.Name | None = None
    cursor: Annotated[str, msgspec.Meta(max_length=240)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=SCAN)] = 100


_STATES: Final = [state.value for state in JobState]
_WANTED: Final = {
    "status": f"{', '.join(_STATES[:-1])} or {_STATES[-1]}",
    "function": "the name of a function",
    "cursor": "the cursor of the last answer",
    "limit": f"a whole number from 1 to {SCAN}",
}
_FORM: Final = Form(JobsQuery, _WANTED, "{}")


def query(args: MultiDict[str, str]) -> JobsQuery:
    """The query of a request; a parameter without a value is not given. Raises InvalidRequest."""
    return _FORM.convert(query_values(args, numbers=("limit",)))


def public(job: Listed) -> dict[str, Any]:
    """A job in a list, with the names of its record."""
    return {
        "id": job.id,
        "name": job.function,
        "version": job.version,
        "pool": job.pool,
        "priority": job.priority,
        "status": job.state.value,
        "created_at": iso(job.created_at_ms),
        "scheduled_for": iso(job.due_at_ms),
        "started_at": iso(job.started_at_ms),
        "finished_at": iso(job.finished_at_ms),
        "attempts": job.attempts,
        "reason": job.reason,
    }
