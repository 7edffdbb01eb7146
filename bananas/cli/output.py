"""What commands share: options, payloads from the command line, tables and records on the terminal."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import rich_click as click

from bananas.errors import InvalidRequest
from bananas.settings import KIB, LIMITS, Settings
from bananas.units import parse_time_ms, show_time

if TYPE_CHECKING:
    from bananas.client import Client

_Command = TypeVar("_Command", bound=Callable[..., Any])
#: A column is not cut to fewer characters.
_NARROWEST = 6
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def output_option(command: _Command) -> _Command:
    """``-o table`` for people, ``-o json`` for programs."""
    choice = click.Choice(["table", "json"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="How to print.")(
        command
    )


def file_option(command: _Command) -> _Command:
    """``-f bananas.yaml``."""
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option(
        *("-f", "--file"), type=kind, default=Path("bananas.yaml"), show_default=True, help="The manifest."
    )(command)


def time_text(text: str) -> str:
    """An option's time such as 30s, which stays the text that the API takes; a usage error when it is none."""
    try:
        parse_time_ms(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from e
    return text


def time_option(flag: str, says: str) -> Callable[[_Command], _Command]:
    """An option that takes a time."""
    return click.option(flag, type=time_text, metavar="TIME", help=says)


def client(patience_s: float = 0) -> Client:
    """A client of the gateway named by --url or BANANAS_URL; without patience it sends nothing twice."""
    from bananas.client import Client

    context, settings = click.get_current_context(), Settings.from_env()
    return Client((context and context.obj) or settings.url, settings.token, patience_s=patience_s)


def remove_each(names: Sequence[str], remove: Callable[[str], object], output: str) -> None:
    """Remove one after the other, and say so."""
    for name in names:
        remove(name)
        if output == "table":
            click.echo(f"{name} removed")
    if output == "json":
        print_json({"removed": list(names)})


def pages(
    ask: Callable[[str | None, int], Mapping[str, Any]], key: str, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """Up to ``limit`` rows of a list that comes in pages, and whether there are more.

    ``ask`` gets the cursor and how many rows the page may have; the rows are under ``key`` of its answer.
    """
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = ask(cursor, min(limit - len(found), 1000))
        found += page[key]
        cursor = page["cursor"]
        if cursor is None or len(found) >= limit:
            return found, cursor is not None


def read_payload(text: str | None) -> bytes:
    """JSON from the argument, from a file (``@file``) or from stdin (``-``); nothing means ``{}``.

    Raises a usage error for what is not JSON, and InvalidRequest for what is too large.
    """
    if text is None:
        return b"{}"
    try:
        if text == "-":
            raw = sys.stdin.buffer.read(LIMITS.payload_bytes + 1)
        elif text.startswith("@"):
            with open(text[1:], "rb") as file:
                raw = file.read(LIMITS.payload_bytes + 1)
        else:
            raw = text.encode()
    except OSError as e:
        raise click.UsageError(f"the payload {text} cannot be read: {e.strerror or e}") from e
    if len(raw) > LIMITS.payload_bytes:
        raise InvalidRequest(f"the payload is larger than {LIMITS.payload_bytes // KIB} KiB")
    try:
        json.loads(raw, parse_constant=_no_constant)
    except ValueError as e:
        raise click.UsageError(f"""the payload is not JSON: {e}; write it like '{{"name": "Ada"}}'""") from e
    return raw


def read_jobs(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Bodies of ``POST /jobs`` with the number of their line, one by one; text says why a line is none.

    The payloads are bytes, as they are written in the file. Empty lines count but say nothing.
    """
    most = LIMITS.payload_bytes + 16 * KIB
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            while line and not line.endswith(b"\n"):
                line = file.readline(most + 1)
            yield number, f"a job has at most {most // KIB} KiB"
        elif line.strip():
            yield number, _decode_job(line)


def _decode_job(line: bytes) -> dict[str, Any] | str:
    import msgspec

    try:
        line.decode()  # a payload is not looked at, and one that is no text would spoil its batch
        job = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        return {name: bytes(raw) if name == "payload" else msgspec.json.decode(raw) for name, raw in job.items()}
    except (ValueError, RecursionError) as e:
        return f"not a job: {e}"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def print_json(value: object) -> None:
    """Indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns; on a terminal the widest are cut until a row fits its width."""
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    for line in table_lines(headings, rows, width):
        click.echo(line)


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[object]], width: int | None = None) -> Iterator[str]:
    """Aligned columns; with ``width`` the widest ones are cut until a row has no more characters than that.

    An id is what other commands take, so that a column called ID is cut last.
    """
    lines = [list(headings), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    if width is not None:
        room = width - 2 * (len(widths) - 1)
        for columns in ([n for n, heading in enumerate(headings) if heading != "ID"], range(len(headings))):
            while sum(widths) > room and (widest := max(columns, key=lambda n: widths[n], default=0)) in columns:
                if widths[widest] <= _NARROWEST:
                    break
                widths[widest] -= 1
    for line in lines:
        yield "  ".join(_cut(text, wide).ljust(wide) for text, wide in zip(line, widths, strict=True)).rstrip()


def cell(value: object) -> str:
    return "-" if value is None or value == "" else _CONTROL.sub("?", str(value))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def ago(when: object) -> str:
    """``42s ago`` for an RFC 3339 time or Unix milliseconds, in the largest unit that fits."""
    try:
        if isinstance(when, int | float):
            at = datetime.fromtimestamp(when / 1000, UTC)
        else:
            at = datetime.fromisoformat(str(when))
        seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    except (ValueError, TypeError, OverflowError, OSError):
        return str(when)
    for unit_s, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit_s:
            return f"{seconds // unit_s}{letter} ago"
    return f"{seconds}s ago"


def waits_for_runner(pool: dict[str, Any]) -> str:
    """What is told about a pool with jobs that no live runner serves."""
    name, n = pool["name"], sum(pool["queued"].values())
    jobs = "1 job waits" if n == 1 else f"{n} jobs wait"
    return f"{jobs} in pool {name} for a runner; start one with `bananas runner --pools {name}`"


def print_record(record: Mapping[str, Any]) -> None:
    """A job's record for people: what it is, how it went, what came out."""
    facts = {
        "id": record["id"],
        "function": f"{record['name']} @ {record['version']}",
        "status": record["status"] + (f" ({record['reason']})" if record.get("reason") else ""),
        "waiting": record.get("waiting_detail"),
        "pool": f"{record['pool']}, priority {record['priority']}",
        "created": record["created_at"],
        "due": record.get("scheduled_for"),
        "finished": record.get("finished_at"),
        "attempts": f"{record['attempts']} (at most {record['max_retries']} retries)",
        "timeout": show_time(record["timeout_ms"]),
        "callback": _callback(record.get("callback")),
    }
    for name, value in facts.items():
        if value is not None:
            click.echo(f"{name:<9} {cell(value)}")
    history = record.get("history") or []
    if history:
        click.echo()
        print_table(("TRY", "OUTCOME", "START", "QUEUED MS", "RUN MS", "TOTAL MS", "SANDBOX"), map(_attempt, history))
    if record.get("progress") is not None:
        click.echo(f"\nprogress  {json.dumps(record['progress'], ensure_ascii=False)}")
    if record.get("error"):
        error = record["error"]
        click.echo(f"\nerror     {cell(error.get('type'))}: {cell(error.get('message'))}")
    if record["status"] == "completed":
        click.echo(f"\nresult    {json.dumps(record.get('result'), ensure_ascii=False)}")


def _callback(callback: Mapping[str, Any] | None) -> str | None:
    if callback is None:
        return None
    tries = f" after {callback['tries']} tries" if callback["tries"] > 1 else ""
    error = f": {callback['last_error']}" if callback["last_error"] else ""
    return f"{callback['url']} {callback['status']}{tries}{error}"


def _attempt(attempt: Mapping[str, Any]) -> Sequence[object]:
    timings = attempt.get("timings") or {}
    times = (timings.get(name) for name in ("queued_ms", "run_ms", "total_ms"))
    return (
        attempt.get("attempt"),
        attempt["outcome"],
        attempt.get("start"),
        *times,
        (attempt.get("sandbox") or "")[:12],
    )
