"""``bananas invoke`` and ``bananas jobs``: call functions, and follow what became of the calls."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import rich_click as click

from bananas.cli.output import (
    ago,
    client,
    file_option,
    output_option,
    pages,
    print_json,
    print_record,
    print_table,
    read_jobs,
    read_payload,
    time_option,
)
from bananas.job import JobState
from bananas.spec import MAX_RETRIES, PRIORITIES
from bananas.units import parse_time_ms

if TYPE_CHECKING:
    from bananas.client import Client
    from bananas.client_types import Job, Submitted

_OVER = ("completed", "failed", "cancelled")
#: Who waits for a job, or follows it, outlives a gateway that is started anew.
_PATIENCE_S = 30.0
_key_option = click.option(
    "--unique-key", metavar="KEY", help="With the same key again, it is the first job that is meant."
)


@click.command()
@click.argument("name")
@click.argument("payload", required=False)
@click.option("--async", "is_async", is_flag=True, help="Queue it as a job and return at once.")
@click.option("--local", is_flag=True, help="Call it here, in a real sandbox, without a server.")
@file_option
@_key_option
@output_option
def invoke(
    name: str, payload: str | None, is_async: bool, local: bool, file: Path, unique_key: str | None, output: str
) -> int:
    """Call a function and print its result.

    PAYLOAD is JSON, - for stdin, or @file; without it the event is {}.
    A call that fails is not tried again; with --async the function's retries apply.
    --local packs the function of the manifest (-f) and calls it under the same
    limits as a runner would; it needs an engine and nothing else.

    \b
    Example:
      bananas invoke hello '{"name": "Ada"}'
      bananas invoke hello @event.json --async
      bananas invoke hello --local
    """
    if local and (is_async or unique_key is not None):
        raise click.UsageError("--local is without a queue; leave out --async and --unique-key")
    body = read_payload(payload)
    if local:
        from bananas.cli.local import call

        call(name, file, body)
    with client() as gateway, client() as asking:
        if is_async:
            return _submitted(gateway.submit(name, body, unique_key=unique_key), output)
        from bananas.cli.patience import Patience

        with Patience(asking, name):
            result = gateway.invoke(name, body, unique_key=unique_key)
    click.echo(result.decode(errors="replace"))
    return 0


@click.group()
def jobs() -> None:
    """Queue, list, show and cancel jobs; read their logs.

    \b
    Example:
      bananas jobs submit hello '{"name": "Ada"}' --delay 10s
    """


@jobs.command()
@click.argument("name")
@click.argument("payload", required=False)
@click.option("--priority", type=click.Choice(PRIORITIES), help="Else the function's.")
@click.option("--pool", help="Another pool, if the function allows it.")
@time_option("--delay", "Run it after this time, such as 10s.")
@click.option("--run-at", metavar="WHEN", help="Run it at this time (RFC 3339 with a zone).")
@click.option("--retries", type=click.IntRange(0, MAX_RETRIES), help="Fewer retries than the function's.")
@time_option("--timeout", "A shorter timeout than the function's.")
@time_option("--expires-after", "Give up if it has not begun after this time.")
@click.option("--callback", "callback_url", metavar="URL", help="Have its end told there by a signed HTTP request.")
@_key_option
@time_option("--wait", "Wait this long for its end; exit code 4 when it failed.")
@output_option
def submit(name: str, payload: str | None, wait: str | None, output: str, **options: Any) -> int:
    """Queue a job and print its id.

    \b
    Example:
      bananas jobs submit report @month.json --priority low --wait 5m
    """
    if options["delay"] and options["run_at"]:
        raise click.UsageError("--delay and --run-at exclude each other; give one of them")
    body = read_payload(payload)
    with client() as gateway:
        job = gateway.submit(name, body, **options)
        if wait is None:
            return _submitted(job, output)
        record = _until_over(job["id"], wait)
    _print(record, output)
    return _verdict(record, wait)


@jobs.command()
@click.argument("file", metavar="FILE", type=click.File("rb"))
@output_option
def batch(file: BinaryIO, output: str) -> int:
    """Queue many jobs, one JSON object a line, and print their ids.

    Each line is a body of POST /jobs; FILE may be - for stdin. A line that is
    refused is told and does not stop the others.

    \b
    Example:
      echo '{"name": "hello", "payload": {"name": "Ada"}}' > jobs.jsonl
      bananas jobs batch jobs.jsonl
    """
    counted = Counter[str]()
    answers: list[dict[str, Any]] = []
    numbers: deque[int] = deque()

    def refuse(number: int, why: str) -> None:
        counted["refused"] += 1
        click.echo(f"line {number}: {why}", err=True)

    def wanted() -> Iterator[dict[str, Any]]:
        for number, job in read_jobs(file):
            if isinstance(job, str):
                refuse(number, job)
            else:
                numbers.append(number)
                yield job

    with client() as gateway:
        for answer in gateway.submit_many(wanted()):
            number = numbers.popleft()
            answers += [{"line": number, **answer}] if output == "json" else []
            if "error" in answer:
                refuse(number, answer["error"]["detail"])
                continue
            counted["queued"] += 1
            if output == "table":
                click.echo(answer["id"])
    if output == "json":
        print_json(answers)
    refused = f", {counted['refused']} refused" if counted["refused"] else ""
    click.echo(f"{counted['queued']} queued{refused}", err=True)
    return 1 if refused else 0


@jobs.command("ls")
@click.option("--status", type=click.Choice([state.value for state in JobState]), help="Jobs of this state.")
@click.option("--function", metavar="NAME", help="Jobs of this function.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@output_option
def ls(status: str | None, function: str | None, limit: int, output: str) -> None:
    """List jobs, newest first.

    \b
    Example:
      bananas jobs ls --status failed --function hello
      bananas jobs ls --limit 1000 -o json
    """
    with client() as gateway:
        found, has_more = pages(
            lambda cursor, most: gateway.jobs(status=status, function=function, cursor=cursor, limit=most),
            "jobs",
            limit,
        )
    if output == "json":
        print_json(found)
    else:
        rows = ((j["id"], j["name"], _state(j), j["attempts"], ago(j["created_at"])) for j in found)
        print_table(("ID", "FUNCTION", "STATUS", "TRIES", "CREATED"), rows)
    if has_more:
        click.echo(f"there are more than {limit}; see them with --limit", err=True)


def _state(job: dict[str, Any]) -> str:
    return f"{job['status']} ({job['reason']})" if job["reason"] else str(job["status"])


@jobs.command()
@click.argument("job_id", metavar="ID")
@time_option("--wait", "Wait this long for its end.")
@output_option
def show(job_id: str, wait: str | None, output: str) -> None:
    """Show a job: state, attempts, result.

    \b
    Example:
      bananas jobs show 019ab1f2-… --wait 30s
    """
    with client() as gateway:
        record = gateway.job(job_id)  # at once when nobody is there, or there is no such job
        if wait and record["status"] not in _OVER:
            record = _until_over(job_id, wait)
    _print(record, output)


@jobs.command()
@click.argument("job_id", metavar="ID")
@output_option
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over; exit code 4 when it failed.")
def logs(job_id: str, output: str, follow: bool) -> int:
    """Print what a job's attempts wrote to stdout and stderr.

    With -o json, --follow prints one object a line.

    \b
    Example:
      bananas jobs logs -f 019ab1f2-…
    """
    with client() as gateway:
        if follow:
            gateway.job(job_id)  # at once when nobody is there, or there is no such job
            with client(_PATIENCE_S) as patient:
                return _follow(patient, job_id, output)
        text = gateway.logs(job_id)
    if output == "json":
        print_json({"id": job_id, "logs": text})
    else:
        click.echo(text, nl=bool(text) and not text.endswith("\n"))
    return 0


def _follow(gateway: Client, job_id: str, output: str) -> int:
    status = ""
    for event in gateway.follow_logs(job_id):
        if output == "json":
            click.echo(json.dumps(event, ensure_ascii=False))
        elif event["event"] == "log":
            click.echo(event["text"], nl=False)
        if event["event"] == "end":
            status = event["status"]
    return 0 if status == "completed" else 4


@jobs.command()
@click.argument("job_id", metavar="ID")
@output_option
def cancel(job_id: str, output: str) -> None:
    """Cancel a job; one that runs is stopped.

    \b
    Example:
      bananas jobs cancel 019ab1f2-…
    """
    with client() as gateway:
        answer = gateway.cancel(job_id)
    if output == "json":
        print_json(answer)
    else:
        click.echo(f"{answer['id']} {answer['status']}")


def _submitted(job: Submitted, output: str) -> int:
    if output == "json":
        print_json(job)
    else:
        click.echo(job["id"])
    return 0


def _until_over(job_id: str, wait: str) -> Job:
    """The record at the job's end, or as it is after that time."""
    from bananas.errors import JobNotOver

    with client(_PATIENCE_S) as gateway:
        try:
            return gateway.wait(job_id, parse_time_ms(wait) / 1000)
        except JobNotOver as e:
            return cast("Job", e.job)


def _print(record: Job, output: str) -> None:
    if output == "json":
        print_json(record)
    else:
        print_record(record)


def _verdict(record: Job, wait: str) -> int:
    from bananas.errors import JobFailed, JobNotOver

    if record["status"] == "completed":
        return 0
    if record["status"] not in _OVER:
        raise JobNotOver(record, parse_time_ms(wait) / 1000)
    raise JobFailed(record)
