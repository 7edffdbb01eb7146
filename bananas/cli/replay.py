"""``bananas replay``: run a job again with the same input and the same version of the code.

A failed job goes back into the queue itself, with its id and history. One that completed or was cancelled stays what
it is, so a new job is made of it; the command says which of the two happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click

from bananas.cli.output import client, output_option, print_json
from bananas.errors import ApiError, InvalidRequest

if TYPE_CHECKING:
    from bananas.client import Client
    from bananas.client_types import Job, JobOptions


@click.command("replay")
@click.argument("job_id", metavar="JOB")
@click.option("--current", is_flag=True, help="Run the current version of the code, whichever ran then.")
@output_option
def replay(job_id: str, current: bool, output: str) -> None:
    """Run a job again: same input, same version; print its id.

    A failed job is put back and keeps its id. One that completed or was cancelled
    stays as it is; a new job is made with its input, pool, priority and limits.
    For many failed jobs at once, or another input, see bananas dead replay.

    \b
    Example:
      bananas replay 019ab1f2-…
      bananas replay 019ab1f2-… --current
    """
    with client() as gateway:
        record = gateway.job(job_id)
        told = _put_back(gateway, record, current) if record["status"] == "failed" else _anew(gateway, record, current)
    if output == "json":
        print_json(told)
        return
    click.echo(told["id"])
    if told["is_new"]:
        click.echo(f"a new job with the same input; {job_id} stays {record['status']}", err=True)
    else:
        click.echo("the same job, back in the queue", err=True)


@contextmanager
def _offering_current(job_id: str) -> Iterator[None]:
    try:
        yield
    except ApiError as e:
        if e.problem.get("code") != "version-gone":
            raise
        raise InvalidRequest(f"{e}: `bananas replay {job_id} --current`") from e


def _put_back(gateway: Client, record: Job, current: bool) -> dict[str, Any]:
    with _offering_current(record["id"]):
        answer = gateway.replay(record["id"], version="current" if current else "same")
    return {"id": answer["id"], "is_new": False, "replayed": record["id"], "status": answer["status"]}


def _anew(gateway: Client, record: Job, current: bool) -> dict[str, Any]:
    """Submit a new job like that one; raises InvalidRequest when that job is not over or its version is gone."""
    job_id = record["id"]
    if record["status"] not in ("completed", "cancelled"):
        raise InvalidRequest(
            f"job {job_id} is {record['status']}, and only one that is over can run again; wait for it with "
            f"`bananas jobs show {job_id} --wait 1m`, or end it with `bananas jobs cancel {job_id}`"
        )
    options: JobOptions = {"priority": record["priority"], "pool": record["pool"]}
    if not current:
        options["like"] = job_id
    with _offering_current(job_id):
        answer = gateway.submit(record["name"], gateway.payload(job_id), **options)
    return {"id": answer["id"], "is_new": True, "replayed": job_id, "status": answer["status"]}
