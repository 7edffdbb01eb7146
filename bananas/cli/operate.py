"""``bananas functions``, ``pools`` and ``runners``: what is deployed and who is there."""

from __future__ import annotations

from typing import Any

import rich_click as click

from bananas.cli.output import ago, client, output_option, print_json, print_table, waits_for_runner
from bananas.units import show_time


@click.group()
def functions() -> None:
    """List and remove deployed functions.

    \b
    Example:
      bananas functions ls
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
        for name in names:
            gateway.delete_function(name)
            if output == "table":
                click.echo(f"{name} removed")
    if output == "json":
        print_json({"removed": list(names)})


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


def _sandboxes(runner: dict[str, Any]) -> object:
    sandboxes = runner["sandboxes"]
    return sum(sandboxes.values()) if isinstance(sandboxes, dict) else sandboxes
