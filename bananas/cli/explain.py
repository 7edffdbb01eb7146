"""``bananas explain``: where a job's time went, why its sandbox was not warm, what it waits for and why it failed.

``explain`` makes all of it out of the job's record and is pure; the words for people come from the same values as the
JSON. Which words a record can hold is said in docs/states.md and docs/concepts.md; a word that is new here is shown
as it is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from bananas.cli.hints import hint
from bananas.cli.output import client, output_option, print_json
from bananas.units import show_time

if TYPE_CHECKING:
    from bananas.client import Client

_WIDTH: Final = 80
_OUTCOMES: Final = {
    "ok": "the handler returned",
    "error": "the handler raised, or could not be loaded",
    "permanent": "the handler raised and said that no retry will help",
    "timeout": "there was no answer within the timeout of {timeout}",
    "oom": "it used more memory than its sandbox may have",
    "crashed": "its process ended without an answer",
    "start": "no sandbox could be started; no retry was used",
    "lost": "its runner died or was cut off, so its lease ran out; no retry was used",
    "handed_back": "its runner was stopped and gave it back; no retry was used",
    "held_up": "it had not begun: its runner's engine did not answer, or others had the GPUs; no retry was used",
    "displaced": "another call in the same sandbox ended both; no retry was used",
    "cancelled": "somebody cancelled the job",
    "expired": "the job had not begun within its expires_after",
}
_STARTS: Final = {
    "warm": "a sandbox with the code loaded took it",
    "stem": "a started sandbox without code was bound to it",
    "cold": "it waited for a container",
}
_START_REASONS: Final = {
    "freed": "it came free while the attempt waited for a container",
    "shared": "it ran other calls at the same time",
    "none_idle": "the runner had none with this version; min_warm keeps some ready",
    "all_busy": "those with this version were all at work; a larger min_warm keeps more ready",
    "no_stem": "the spare ones were used up; min_warm keeps some ready",
    "stems_off": "the pool keeps no spare ones",
}
#: Why a job failed for good, and what to do.
_REASONS: Final = {
    "retries_exhausted": ("every try failed, and no retry is left", "mend the cause"),
    "permanent": ("the handler said that no retry will help", "mend the function or what it was called with"),
    "poisoned": ("runner after runner was lost while the job ran", "look into the runners' logs"),
    "start_failed": ("no sandbox could be started, time after time", "run `bananas doctor` on a runner's host"),
    "expired": ("it had not begun within its expires_after", "start more runners, or give it more time"),
}
#: What mends the cause of the last attempt.
_CURES: Final = {
    "timeout": "raise the function's timeout, or have it do less",
    "oom": "raise the memory of its pool, or have it use less",
    "crashed": "look at its logs",
}
_PARTS: Final = (
    ("queued_ms", "queued"),
    ("wait_sandbox_ms", "sandbox"),
    ("init_ms", "loading"),
    ("run_ms", "running"),
    ("other_ms", "other"),
)


@click.command("explain")
@click.argument("job_id", metavar="JOB")
@output_option
def explain_job(job_id: str, output: str) -> None:
    """Say where a job's time went, and why it is where it is.

    For each attempt: how long it was queued, waited for a sandbox, loaded the code
    and ran, and why its sandbox was not warm. What a waiting job waits for, and why
    a failed one failed.

    \b
    Example:
      bananas explain 019ab1f2-…
      bananas explain 019ab1f2-… -o json | jq .attempts[0].run_ms
    """
    with client() as gateway:
        record = gateway.job(job_id)
        turn = _turn(gateway, record) if record["status"] == "pending" and not record.get("waiting_for") else None
    told = explain(record, turn)
    if output == "json":
        print_json(told)
        return
    for line in words(told):
        click.echo(line)


def explain(record: Mapping[str, Any], turn: str | None = None) -> dict[str, Any]:
    """The explanation of a job's record, as ``-o json`` prints it; times are milliseconds, unknown ones None.

    ``turn`` says what is before a pending job that waits for nothing but its turn, when that is known.
    """
    attempts = [_attempt(attempt, record) for attempt in record.get("history") or []]
    elapsed_ms = _between(record["created_at"], record.get("finished_at"))
    in_attempts_ms = sum(attempt["total_ms"] or 0.0 for attempt in attempts)
    return {
        "id": record["id"],
        "function": record["name"],
        "version": record["version"],
        "status": record["status"],
        "elapsed_ms": elapsed_ms,
        # Until it was due, and until each retry was.
        "between_ms": None if elapsed_ms is None else round(max(0.0, elapsed_ms - in_attempts_ms), 3),
        "waits_for": _waits_for(record, turn),
        "runs": _runs(record),
        "failure": _failure(record, attempts),
        "attempts_made": record["attempts"],
        "attempts": attempts,
    }


def _attempt(attempt: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """One attempt of the history, with its words and the time that nothing else names."""
    timings = attempt.get("timings") or {}
    outcome, start = attempt["outcome"], attempt.get("start")
    times = {name: timings.get(name) for name in ("queued_ms", "wait_sandbox_ms", "init_ms", "run_ms")}
    total_ms = timings.get("total_ms")
    other_ms = None if total_ms is None else round(max(0.0, total_ms - sum(ms or 0.0 for ms in times.values())), 3)
    detail = _OUTCOMES.get(outcome, outcome).format(timeout=show_time(record["timeout_ms"]))
    return {
        "attempt": attempt["attempt"],
        "outcome": outcome,
        "detail": detail,
        "error": attempt.get("error"),
        "start": start,
        "start_reason": attempt.get("start_reason") or None,
        "start_detail": _start_detail(attempt) if start else None,
        **times,
        "other_ms": other_ms,
        "total_ms": total_ms,
        "runner": attempt.get("runner"),
    }


def _start_detail(attempt: Mapping[str, Any]) -> str:
    text = _STARTS.get(attempt["start"], str(attempt["start"]))
    if reason := attempt.get("start_reason"):
        text += f"; {_START_REASONS.get(reason, reason)}"
    return text + (f" (its use number {attempt['nth_use']})" if attempt.get("nth_use") else "")


def _waits_for(record: Mapping[str, Any], turn: str | None) -> dict[str, str] | None:
    """What a job that is neither running nor over waits for."""
    if record["status"] == "scheduled":
        due = record.get("scheduled_for")
        if record["attempts"]:
            return {"what": "retry", "detail": f"try {record['attempts'] + 1} begins at {due} or later"}
        return {"what": "time", "detail": f"it is to run at {due} or later"}
    if record["status"] != "pending":
        return None
    if record.get("waiting_for"):
        return {"what": record["waiting_for"], "detail": record["waiting_detail"]}
    return {"what": "turn", "detail": turn or f"its turn in pool {record['pool']}"}


def _runs(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Since when the attempt that runs does, and how long its job had been there then; None when none runs."""
    since = record.get("started_at")
    if record["status"] != "processing" or since is None:
        return None
    return {"attempt": record["attempts"], "since": since, "after_ms": _between(record["created_at"], since)}


def _failure(record: Mapping[str, Any], attempts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Why a failed job failed, and what to do; None for others."""
    if record["status"] != "failed":
        return None
    reason = record.get("reason")
    detail, cure = _REASONS.get(str(reason), (str(reason), "mend the cause"))
    if reason == "retries_exhausted" and attempts:
        cure = _CURES.get(attempts[-1]["outcome"]) or hint(record.get("error")) or cure
    return {
        "reason": reason,
        "detail": detail,
        "error": record.get("error"),
        "next": f"{cure}, then `bananas replay {record['id']}`",
    }


def _turn(gateway: Client, record: Mapping[str, Any]) -> str | None:
    """What is before it in its pool; None when the gateway does not tell us that."""
    from bananas.errors import ApiError

    try:
        pool = next((pool for pool in gateway.pools() if pool["name"] == record["pool"]), None)
    except ApiError as e:
        if e.status != 403:
            raise
        return None  # the token may look at its jobs only
    if pool is None:
        return f"pool {record['pool']} is not there any more"
    queued, runners, slots = sum(pool["queued"].values()), pool["runners"], pool["spec"].get("concurrency")
    where = f"on {runners} runner{'s'[: runners != 1]} with {slots} slots each"
    return f"its turn; {queued} queued in pool {pool['name']}, {pool['processing']} running, {where}"


def _between(start: str, end: str | None) -> float | None:
    if end is None:
        return None
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() * 1000, 3)


def words(told: dict[str, Any]) -> Iterator[str]:
    """The explanation as lines of at most 80 columns."""
    made = told["attempts_made"]
    took = f" in {_ms(told['elapsed_ms'])}" if told["elapsed_ms"] is not None else ""
    tries = f", {made} attempt{'s'[: made != 1]}"
    yield from _wrap(f"{told['function']} @ {told['version']}: {told['status']}{took}{tries}")
    if told["waits_for"]:
        yield from _wrap(f"waits ({told['waits_for']['what']}): {told['waits_for']['detail']}")
    if runs := told["runs"]:
        after = f"{_ms(runs['after_ms'])} after the job was made"
        yield from _wrap(f"attempt {runs['attempt']} runs since {runs['since']}, {after}")
    if told["failure"]:
        failure = told["failure"]
        yield from _wrap(f"failed ({failure['reason']}): {failure['detail']}")
        yield from _wrap(f"next: {failure['next']}")
    for attempt in told["attempts"]:
        yield ""
        yield from _wrap(f"attempt {attempt['attempt']}: {attempt['outcome']}, {attempt['detail']}")
        yield from _attempt_words(attempt)
    hidden = made - len(told["attempts"]) - (told["status"] == "processing")
    if hidden > 0:
        yield from ("", f"{hidden} older attempts are not in the record any more")
    if (told["between_ms"] or 0) >= 1:
        yield from ("", f"outside of attempts   {_ms(told['between_ms']):>10}  until it was due, and between tries")


def _attempt_words(attempt: dict[str, Any]) -> Iterator[str]:
    error = attempt["error"]
    if error:
        yield from _wrap(f"  {error.get('type')}: {error.get('message')}", "    ")
    if attempt["total_ms"] is None:
        yield "  no times: nobody was there to tell them"
        return
    for key, name in _PARTS:
        if attempt[key] is not None:
            is_start = key == "wait_sandbox_ms" and attempt["start"]
            note = f"  {attempt['start']}: {attempt['start_detail']}" if is_start else ""
            yield from _wrap(f"  {name:<8}  {_ms(attempt[key]):>10}{note}", " " * 24)
    yield f"  {'together':<8}  {_ms(attempt['total_ms']):>10}"


def _wrap(text: str, indent: str = "  ") -> list[str]:
    """Lines that fit; what comes from a handler cannot steer the terminal."""
    from bananas.cli.output import cell

    head = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        cell(text.lstrip()), _WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )


def _ms(value: float) -> str:
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value:.1f} ms"
