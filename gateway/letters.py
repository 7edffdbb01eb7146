"""What the calls on dead letters take: filters in queries and bodies, and the cursors between calls. Pure.

A cursor of a replay or purge also says where the first call stood in time: letters that die after it are left alone,
so a loop over the cursor ends, and a paced replay goes on at the pace at which it began.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Annotated, Final, Literal

import msgspec
from werkzeug.datastructures import MultiDict

from bananas import spec
from bananas.dead_letters import SCAN, DeadFilter
from bananas.errors import InvalidRequest
from bananas.job import DeadReason
from gateway.forms import Form, query_values

LIMIT: Final = 100
#: Bodies hold ids at most.
BODY_BYTES: Final = 64 * 1024 + SCAN * 64
_CURSOR: Final = re.compile(r"(\d{1,15}-[0-9a-f-]{1,40})~(\d{1,15})~(\d{1,15})")

Limit = Annotated[int, msgspec.Meta(ge=1, le=SCAN)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=60)]


class _Filter(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    function: spec.Name | None = None
    reason: DeadReason | None = None
    after: Instant | None = None
    before: Instant | None = None
    cursor: Annotated[str, msgspec.Meta(max_length=120)] | None = None
    limit: Limit = LIMIT

    @property
    def is_empty(self) -> bool:
        return (self.function, self.reason, self.after, self.before) == (None, None, None, None)

    def wanted(self) -> DeadFilter:
        return DeadFilter(self.function, self.reason, _ms(self.after), _ms(self.before))


class PageQuery(_Filter, forbid_unknown_fields=True, kw_only=True):
    """The query of ``GET /dead``."""


class PurgeBody(_Filter, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /dead/purge``: ids, or a filter, or ``all``."""

    ids: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=SCAN)] | None = None
    all: bool = False


class ReplayBody(PurgeBody, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /dead/replay``."""

    per_second: Annotated[float, msgspec.Meta(ge=0.0001, le=1000)] | None = None
    version: Literal["current", "same"] = "current"

    @property
    def interval_ms(self) -> int:
        """Between two jobs, so that they are never faster than asked for."""
        return 0 if self.per_second is None else ceil(1000 / self.per_second)


class OneBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /jobs/{id}/replay``."""

    #: Empty when it is not given.
    payload: msgspec.Raw = msgspec.Raw(b"")
    version: Literal["current", "same"] = "current"


_REASONS: Final = [reason.value for reason in DeadReason]
_WHEN: Final = 'an RFC 3339 time with a zone such as "2026-11-24T06:00:00Z"'
_PAGE: Final = {
    "function": "the name of a function",
    "reason": f"{', '.join(_REASONS[:-1])} or {_REASONS[-1]}",
    "after": _WHEN,
    "before": _WHEN,
    "cursor": "the cursor of the last answer",
    "limit": f"a whole number from 1 to {SCAN}",
}
_PURGE: Final = _PAGE | {"ids": f"a list of 1 to {SCAN} ids of jobs", "all": "true or false"}
_VERSION: Final = {"version": '"current" or "same"'}
_REPLAY: Final = _PURGE | {"per_second": "a number from 0.0001 to 1000"} | _VERSION

_QUERY: Final = Form(PageQuery, _PAGE, "{}")
PURGE: Final = Form(PurgeBody, _PURGE, '{"function": "hello"}')
REPLAY: Final = Form(ReplayBody, _REPLAY, '{"function": "hello"}')
ONE: Final = Form(OneBody, _VERSION, '{"version": "current"}')


def query(args: MultiDict[str, str]) -> PageQuery:
    """The query of ``GET /dead``; a parameter without a value is not given. Raises InvalidRequest."""
    return _QUERY.convert(query_values(args, numbers=("limit",)))


def check_choice(body: PurgeBody, verb: str) -> None:
    """Ids, a filter or ``all``: exactly one of them. Raises InvalidRequest."""
    if body.ids is not None:
        if not body.is_empty or body.all or body.cursor is not None:
            raise InvalidRequest("ids exclude function, reason, after, before, all and cursor; give one or the other")
    elif body.is_empty and not body.all:
        raise InvalidRequest(
            f'nothing says which letters to {verb}; give ids, function, reason, after or before, or {{"all": true}}'
        )
    elif body.all and not body.is_empty:
        raise InvalidRequest("all excludes function, reason, after and before; give one or the other")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a loop of calls stands."""

    #: ``DeadLetters``' own cursor; None for the first call.
    cursor: str | None
    #: Unix ms at which the next job of a paced replay is due.
    due_ms: int
    #: Only letters that died before this (Unix ms) are meant.
    before_ms: int

    def __str__(self) -> str:
        return f"{self.cursor}~{self.due_ms}~{self.before_ms}"


def position(cursor: str | None, now_ms: int) -> Position:
    """The position that a cursor says, or that of a first call; raises InvalidRequest."""
    if cursor is None:
        return Position(None, now_ms, now_ms + 1)
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequest(f"{cursor[:60]!r} is not a cursor of this call; use the one of the last answer, or none")
    return Position(match[1], max(now_ms, int(match[2])), int(match[3]))


def until(wanted: DeadFilter, before_ms: int) -> DeadFilter:
    """The filter, without letters that died at ``before_ms`` or later."""
    if wanted.before_ms is not None:
        before_ms = min(before_ms, wanted.before_ms)
    return DeadFilter(wanted.function, wanted.reason, wanted.after_ms, before_ms)


def _ms(when: datetime | None) -> int | None:
    return None if when is None else round(when.timestamp() * 1000)
