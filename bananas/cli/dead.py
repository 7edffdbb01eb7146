"""``bananas dead``: look at failed jobs, put them back into the queue, drop them.

A call by filter goes over pages; each page is told when it is done, so an interrupted one says how far it came.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from bananas.cli.output import ago, client, output_option, pages, print_json, print_record, print_table, read_payload
from bananas.job import DeadReason

if TYPE_CHECKING:
    from bananas.client import Client

_Command = TypeVar("_Command", bound=Callable[..., Any])
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
#: Letters in one call.
_PAGE = 100


def _filter_options(command: _Command) -> _Command:
    """Which letters; all that are given must match."""
    for option in (
        click.option("--before", metavar="WHEN", help="Failed before then."),
        click.option("--after", metavar="WHEN", help="Failed at or after then (RFC 3339 with a zone)."),
        click.option("--reason", type=click.Choice([reason.value for reason in DeadReason]), help="Failed for this."),
        click.option("--function", metavar="NAME", help="Jobs of this function."),
    ):
        command = option(command)
    return command


@click.group()
def dead() -> None:
    """List, show, replay and purge failed jobs.

    \b
    Example:
      bananas dead ls --function hello
    """


@dead.command("ls")
@_filter_options
@click.option("--limit", type=click.IntRange(1), default=_PAGE, show_default=True, help="At most so many.")
@output_option
def ls(limit: int, output: str, **filters: str | None) -> None:
    """List failed jobs, oldest first.

    \b
    Example:
      bananas dead ls --reason permanent -o json
      bananas dead ls --after 2026-11-24T06:00:00Z
    """
    with client() as gateway:
        found, has_more = pages(
            lambda cursor, most: gateway.dead(**filters, cursor=cursor, limit=most), "letters", limit
        )
    if output == "json":
        print_json(found)
    else:
        rows = ((r["id"], r["name"], r["reason"], ago(r["died_at"]), _error(r)) for r in found)
        print_table(("ID", "FUNCTION", "REASON", "FAILED", "ERROR"), rows)
    if has_more:
        click.echo(f"there are more than {limit}; see them with --limit", err=True)


def _error(letter: dict[str, Any]) -> str:
    error = letter.get("error")
    return f"{error['type']}: {error['message']}" if error else ""


@dead.command()
@click.argument("job_id", metavar="ID")
@click.option("--payload", "only_payload", is_flag=True, help="Print only what it was called with, as it was sent.")
@output_option
def show(job_id: str, only_payload: bool, output: str) -> None:
    """Show a failed job: attempts, traceback, payload.

    \b
    Example:
      bananas dead show 019ab1f2-…
      bananas dead show 019ab1f2-… --payload > event.json
    """
    with client() as gateway:
        payload = gateway.payload(job_id).decode(errors="replace")
        record = None if only_payload else gateway.job(job_id)
    if record is None:
        click.echo(payload)
    elif output == "json":
        from json import loads

        print_json({**record, "payload": loads(payload)})
    else:
        print_record(record)
        if traceback := (record.get("error") or {}).get("traceback"):
            click.echo(f"\n{traceback.rstrip()}")
        click.echo(f"\npayload   {payload}")


@dead.command()
@click.argument("ids", metavar="[ID...]", nargs=-1)
@_filter_options
@click.option("--all", "is_all", is_flag=True, help="Every failed job; asks first.")
@click.option("--rate", metavar="N/s", help="Not faster than this, such as 10/s or 30/m.")
@click.option("--payload", metavar="JSON", help="Call one job with this instead: JSON, - for stdin, or @file.")
@click.option("--same-version", is_flag=True, help="Run the version that failed, not the current one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
def replay(
    ids: tuple[str, ...],
    is_all: bool,
    rate: str | None,
    payload: str | None,
    same_version: bool,
    yes: bool,
    output: str,
    **filters: str | None,
) -> int:
    """Put failed jobs back into the queue, with a full set of tries.

    They keep their ids and history, and run the current version of the code.

    \b
    Example:
      bananas dead replay 019ab1f2-… --payload @event.json
      bananas dead replay --function hello --reason permanent --rate 10/s
    """
    _check_choice(ids, filters, is_all)
    version = "same" if same_version else "current"
    per_second = None if rate is None else _per_second(rate)
    if payload is not None:
        if len(ids) != 1 or rate is not None:
            raise click.UsageError("--payload is for one job; give one ID and no --rate")
        body = read_payload(payload)
        with client() as gateway:
            answer = gateway.replay(ids[0], body, version)
        return _told([answer["id"]], [], output)
    if is_all:
        _confirm("Put every failed job back into the queue?", yes)
    what = _what(ids, filters, is_all) | {"per_second": per_second, "version": version}
    with client() as gateway:
        return _replay(gateway, what, output)


def _replay(gateway: Client, what: dict[str, Any], output: str) -> int:
    moved: list[str] = []
    refused: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        answer = gateway.replay_dead(**what, cursor=cursor)
        moved += answer["moved"]
        refused += answer["refused"]
        cursor = answer["cursor"]
        if output == "table":
            for job_id in answer["moved"]:
                click.echo(job_id)
        if cursor is None:
            return _told(moved if output == "json" else [], refused, output, len(moved))


def _told(moved: list[str], refused: list[dict[str, Any]], output: str, count: int | None = None) -> int:
    """What is still to be said of a replay; the exit code is 1 when a job stayed where it was."""
    if output == "json":
        print_json({"moved": moved, "refused": refused})
    else:
        for job_id in moved:
            click.echo(job_id)
    for one in refused:
        click.echo(f"{one['id']}: {one['detail']}", err=True)
    total = len(moved) if count is None else count
    click.echo(f"{total} replayed" + (f", {len(refused)} refused" if refused else ""), err=True)
    return 1 if refused else 0


@dead.command()
@click.argument("ids", metavar="[ID...]", nargs=-1)
@_filter_options
@click.option("--all", "is_all", is_flag=True, help="Every failed job.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
def purge(ids: tuple[str, ...], is_all: bool, yes: bool, output: str, **filters: str | None) -> None:
    """Drop failed jobs for good; asks first, unless by id.

    \b
    Example:
      bananas dead purge 019ab1f2-…
      bananas dead purge --before 2026-11-01T00:00:00Z --yes
    """
    _check_choice(ids, filters, is_all)
    if not ids:
        chosen = ", ".join(f"{name} {value}" for name, value in filters.items() if value is not None)
        _confirm(f"Drop every failed job{f' with {chosen}' if chosen else ''} for good?", yes)
    what = _what(ids, filters, is_all)
    purged, cursor = 0, None
    with client() as gateway:
        while True:
            answer = gateway.purge_dead(**what, cursor=cursor)
            purged += answer["purged"]
            cursor = answer["cursor"]
            if cursor is None:
                break
    if output == "json":
        print_json({"purged": purged})
    else:
        click.echo(f"{purged} purged")


def _check_choice(ids: tuple[str, ...], filters: dict[str, str | None], is_all: bool) -> None:
    given = [bool(ids), any(value is not None for value in filters.values()), is_all]
    if sum(given) != 1:
        raise click.UsageError("say which: IDs, or --function, --reason, --after, --before, or --all")


def _what(ids: tuple[str, ...], filters: dict[str, str | None], is_all: bool) -> dict[str, Any]:
    if ids:
        return {"ids": list(ids)}
    return {**filters, "all": is_all or None, "limit": _PAGE}


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody can be asked here; say so with --yes")
    click.confirm(question, abort=True, err=True)


def _per_second(rate: str) -> float:
    match = _RATE.fullmatch(rate)
    per_second = float(match[1]) / _SECONDS[match[2]] if match else 0.0
    if not 0 < per_second <= 1000:
        raise click.UsageError(f"--rate {rate!r} is no rate from 1/h to 1000/s; write one such as 10/s or 30/m")
    return per_second
