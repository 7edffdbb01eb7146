"""``bananas schedules``: what fires when, and pausing it."""

from __future__ import annotations

from typing import Any

import rich_click as click

from bananas.cli.output import client, output_option, print_json, print_table


@click.group(invoke_without_command=True)
@output_option
@click.pass_context
def schedules(ctx: click.Context, output: str) -> None:
    """List schedules, pause and resume them.

    \b
    Example:
      bananas schedules
    """
    if ctx.invoked_subcommand is None:
        _list(output)


@schedules.command("ls")
@output_option
def ls(output: str) -> None:
    """List schedules and when they fire next.

    Times are UTC. HELD slots wait for the job before.

    \b
    Example:
      bananas schedules ls -o json
    """
    _list(output)


def _list(output: str) -> None:
    with client() as gateway:
        found = gateway.schedules()
    if output == "json":
        print_json(found)
        return
    headings = ("FUNCTION", "CRON", "ZONE", "NEXT", "FIRED", "SKIP/MISS/HELD")
    print_table(headings, map(_row, found))
    for schedule in found:
        if schedule["problem"]:
            click.echo(f"{schedule['function']} does not fire: {schedule['problem']}", err=True)


def _row(schedule: dict[str, Any]) -> tuple[object, ...]:
    following = "paused" if schedule["paused"] else "".join(map(_minute, schedule["next"][:1]))
    others = "/".join(str(schedule[name]) for name in ("skipped", "missed", "held"))
    return (schedule["function"], schedule["cron"], schedule["tz"], following, schedule["fired"], others)


def _minute(slot: str) -> str:
    """``2026-11-24T06:00:00.000Z`` without what is always zero."""
    return slot[:16].replace("T", " ")


@schedules.command("pause")
@click.argument("names", metavar="FUNCTION...", nargs=-1, required=True)
@output_option
def pause(names: tuple[str, ...], output: str) -> None:
    """Let schedules fire nothing until they are resumed.

    Deploys do not end the pause.

    \b
    Example:
      bananas schedules pause nightly_report
    """
    _switch(names, output, True)


@schedules.command("resume")
@click.argument("names", metavar="FUNCTION...", nargs=-1, required=True)
@output_option
def resume(names: tuple[str, ...], output: str) -> None:
    """Let paused schedules go on from now.

    What was due meanwhile is not made up for.

    \b
    Example:
      bananas schedules resume nightly_report
    """
    _switch(names, output, False)


def _switch(names: tuple[str, ...], output: str, is_paused: bool) -> None:
    answers = []
    with client() as gateway:
        for name in names:
            answers.append(gateway.pause_schedule(name) if is_paused else gateway.resume_schedule(name))
            if output == "table":
                same = "" if answers[-1]["changed"] else "already "
                click.echo(f"{name} {same}{'paused' if is_paused else 'resumed'}")
    if output == "json":
        print_json(answers)
