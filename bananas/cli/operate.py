"""``bananas functions``, ``pools`` and ``runners``: what is deployed and who is there."""

from __future__ import annotations

from json import dumps
from typing import Any

import rich_click as click

from bananas.cli.output import ago, client, output_option, print_json, print_table, remove_each, waits_for_runner
from bananas.errors import InvalidRequest
from bananas.units import show_time

#: By the gateway's word for it: why a runner takes no jobs of a pool for now.
_HELD_UP = {"engine": "its Docker Engine does not answer", "gpus": "other sandboxes have the GPUs"}


@click.group()
def functions() -> None:
    """List deployed functions and their versions, roll back, remove.

    \b
    Example:
      bananas functions ls
      bananas functions rollback hello
    """


@functions.command("ls")
@output_option
def ls(output: str) -> None:
    """List what is deployed, and how many jobs of it run.

    PARKED counts jobs that wait for their function's max_concurrency.

    \b
    Example:
      bananas functions ls -o json
    """
    with client() as gateway:
        found = gateway.functions()
    if output == "json":
        print_json(found)
        return
    rows = (
        (
            f["name"],
            f["version"],
            f["spec"].get("runtime"),
            f["spec"].get("pool"),
            _time(f["spec"]),
            _running(f),
            f["parked"],
            ago(f["deployed_at"]),
        )
        for f in found
    )
    print_table(("NAME", "VERSION", "RUNTIME", "POOL", "TIMEOUT", "RUNNING", "PARKED", "DEPLOYED"), rows)


def _running(function: dict[str, Any]) -> str:
    most = function["spec"].get("max_concurrency")
    return f"{function['running']} of {most}" if most else str(function["running"])


def _time(spec: dict[str, Any]) -> str:
    return show_time(spec["timeout_ms"]) if "timeout_ms" in spec else ""


@functions.command("versions")
@click.argument("name")
@output_option
def versions(name: str, output: str) -> None:
    """List a function's kept versions, deployed last first.

    The one marked * is what new jobs run.

    \b
    Example:
      bananas functions versions hello
    """
    with client() as gateway:
        found = gateway.versions(name)["versions"]
    if output == "json":
        print_json(found)
        return
    rows = (
        (
            "*" if v["current"] else " ",
            v["version"],
            v["spec"].get("runtime"),
            v["bundles"]["code"][:12],
            v["deployed_at"],
        )
        for v in found
    )
    print_table(("", "VERSION", "RUNTIME", "CODE", "DEPLOYED"), rows)


@functions.command("diff")
@click.argument("name")
@click.argument("old", metavar="[FROM]", required=False)
@click.argument("new", metavar="[TO]", required=False)
@output_option
def diff(name: str, old: str | None, new: str | None, output: str) -> None:
    """Show which settings differ between two kept versions.

    Without versions: the current one and the one before it. With one: that
    one and the current one.

    \b
    Example:
      bananas functions diff hello
      bananas functions diff hello 103c89f0cdda 5e7a90b1c2d3
    """
    with client() as gateway:
        if old is None or new is None:
            kept = gateway.versions(name)["versions"]
            at = next((n for n, version in enumerate(kept) if version["current"]), 0)
            if old is None and at + 1 >= len(kept):
                raise InvalidRequest(f"no version of {name} from before the current one is kept")
            old, new = old or kept[at + 1]["version"], kept[at]["version"]
        found = gateway.versions(name, f"{old}..{new}")["diff"]
    if output == "json":
        print_json(found)
        return
    if not found["changes"]:
        click.echo(f"{old} and {new} do not differ")
        return
    rows = ((c["setting"], _value(c["from"]), _value(c["to"])) for c in found["changes"])
    print_table(("SETTING", str(old), str(new)), rows)


def _value(value: object) -> str | None:
    return None if value is None else value if isinstance(value, str) else dumps(value, ensure_ascii=False)


@functions.command("rollback")
@click.argument("name")
@click.argument("version", required=False)
@output_option
def rollback(name: str, version: str | None, output: str) -> None:
    """Go back to the version before, or to the one that is named.

    Jobs that are queued keep the version they were queued with. To go
    forward again, name the version.

    \b
    Example:
      bananas functions rollback hello
    """
    with client() as gateway:
        answer = gateway.rollback(name, version)
    if output == "json":
        print_json(answer)
    elif answer["changed"]:
        click.echo(f"{name} is back at {answer['version']} (was {answer['previous']})")
    else:
        click.echo(f"{name} already is at {answer['version']}")


@functions.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@output_option
def rm(names: tuple[str, ...], output: str) -> None:
    """Remove functions; their queued jobs still run.

    \b
    Example:
      bananas functions rm hello
    """
    with client() as gateway:
        remove_each(names, gateway.delete_function, output)


@click.command()
@output_option
def pools(output: str) -> None:
    """List pools, their queues and runners.

    QUEUED counts high, normal and low priority. SLOTS are those of each
    runner, MAX is the most at once over all of them.

    \b
    Example:
      bananas pools
    """
    with client() as gateway:
        found = gateway.pools()
    if output == "json":
        print_json(found)
        return
    headings = ("NAME", "SLOTS", "MAX", "MEMORY", "CPUS", "QUEUED H/N/L", "RUNNING", "RUNNERS")
    print_table(headings, map(_pool, found))
    for pool in found:
        if pool["waits_for_runner"]:
            click.echo(waits_for_runner(pool), err=True)


def _pool(pool: dict[str, Any]) -> tuple[object, ...]:
    spec, queued = pool["spec"], pool["queued"]
    lanes = "/".join(str(queued.get(priority, 0)) for priority in ("high", "normal", "low"))
    runners = pool["runners"]
    count = len(runners) if isinstance(runners, list) else runners
    return (
        pool["name"],
        spec.get("concurrency"),
        spec.get("max_concurrency"),
        f"{spec.get('memory_mb')}M",
        spec.get("cpus"),
        lanes,
        pool["processing"],
        count,
    )


@click.command()
@output_option
def runners(output: str) -> None:
    """List runners and what they are doing (also: ps).

    \b
    Example:
      bananas runners -o json
    """
    with client() as gateway:
        found = gateway.runners()
    if output == "json":
        print_json(found)
        return
    rows = (
        (r["id"], r["host"], r["pid"], ",".join(r["pools"]) or "all", r["busy"], _sandboxes(r), ago(r["seen_at"]))
        for r in found
    )
    print_table(("ID", "HOST", "PID", "POOLS", "BUSY", "SANDBOXES", "SEEN"), rows)
    for runner in found:
        # A gateway of the release before does not tell.
        held_up = runner.get("held_up", {})
        for reason in sorted(set(held_up.values())):
            pools = ", ".join(sorted(pool for pool in held_up if held_up[pool] == reason))
            why = _HELD_UP.get(reason, reason)
            click.echo(f"{runner['id']} takes no jobs of {pools} for now: {why}", err=True)


def _sandboxes(runner: dict[str, Any]) -> object:
    sandboxes = runner["sandboxes"]
    return sum(sandboxes.values()) if isinstance(sandboxes, dict) else sandboxes
