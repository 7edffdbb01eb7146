"""The gateway's HTTP API as typed calls: what the command line, deploys and tests talk through.

Decides timeouts and how a failed call is told; keeps no state but a keep-alive connection. A problem body becomes
ApiError, and a gateway that is not there GatewayUnreachable with the next step in its message. Not for use from
several threads at once, like the requests session below it. Paths and bodies are described in docs/http-api.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from bananas import client_json, spec
from bananas.errors import ApiError, ConfigError, GatewayUnreachable
from bananas.settings import LIMITS, MIB

if TYPE_CHECKING:
    import requests  # takes 100 ms to import, so only a call does it

CONNECT_S: Final = 5.0
#: Until the first byte of an ordinary answer.
ANSWER_S: Final = 30.0
#: What a long wait may take on top of the wait itself.
MARGIN_S: Final = 10.0
#: The largest answer is the log of a job with every attempt's log at its limit.
ANSWER_BYTES: Final = (spec.MAX_RETRIES + LIMITS.max_losses + 1) * LIMITS.log_bytes + 16 * MIB

#: Of the jobs in a batch, without its brackets.
_BATCH_BYTES: Final = LIMITS.batch_bytes - 64

#: Anything that JSON can say, or its text as bytes.
Payload = Any


class Client:
    """One gateway. Every method raises ApiError for a problem and GatewayUnreachable when nothing answers."""

    def __init__(self, url: str, token: str = "") -> None:
        """``url`` is the gateway's base address, e.g. ``http://127.0.0.1:8080``; ``token`` is for one that wants it."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the address of a gateway; write one such as http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._is_loopback = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
        self._session: requests.Session | None = None
        self._token = token

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- jobs -------------------------------------------------------------------------------------------------

    def submit(self, name: str, payload: Payload = None, **options: Any) -> dict[str, Any]:
        """Queue a job; returns ``{"id", "status", "name", "version", "pool", "duplicate"}`` once it is in Redis.

        ``options`` are those of ``POST /jobs``: priority, pool, delay, run_at, retries, timeout, expires_after,
        unique_key; None counts as not given. Times are ``"10s"``-like or numbers of seconds.
        """
        return self._json("POST", "/jobs", client_json.job({"name": name, "payload": payload, **options}))

    def submit_many(self, jobs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Queue many; each is ``{"name", "payload"?, …}`` as for ``submit``, and what comes answers it, in order.

        An answer is that of ``submit``, or ``{"error": problem}`` for a job that was refused. Nothing is sent before
        the first answer is asked for; then as many at a time as a batch holds. When a call fails, the answers before
        it stand, and the jobs of that call may or may not be queued: a ``unique_key`` makes it safe to send them again.
        """
        batch: list[bytes] = []
        size = 0
        for job in jobs:
            raw = client_json.job(job)
            if batch and (len(batch) == LIMITS.batch_items or size + len(raw) + 1 > _BATCH_BYTES):
                yield from self._batch(batch)
                batch, size = [], 0
            batch.append(raw)
            size += len(raw) + 1
        if batch:
            yield from self._batch(batch)

    def _batch(self, jobs: list[bytes]) -> list[dict[str, Any]]:
        return list(self._json("POST", "/jobs/batch", b'{"jobs":[' + b",".join(jobs) + b"]}")["jobs"])

    def job(self, job_id: str, wait_s: float | None = None) -> dict[str, Any]:
        """The job's record; with ``wait_s`` (at most 60) as soon as the job is over, or after that many seconds."""
        query = "" if wait_s is None else f"?wait={wait_s:g}"
        return self._json("GET", f"/jobs/{quote(job_id, safe='')}{query}", timeout_s=ANSWER_S + (wait_s or 0))

    def jobs(self, **query: Any) -> dict[str, Any]:
        """One page of jobs, newest first: ``{"jobs": [{"id", "name", "status", "created_at", …}], "cursor"}``.

        ``query``: status, function, cursor, limit; None counts as not given.
        """
        return self._json("GET", _with_query("/jobs", query))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel the job; ``{"id", "status": "cancelled"}``."""
        return self._json("DELETE", f"/jobs/{quote(job_id, safe='')}")

    def payload(self, job_id: str) -> bytes:
        """What the job is called with: JSON text as it was sent."""
        return self._call("GET", f"/jobs/{quote(job_id, safe='')}/payload")

    def logs(self, job_id: str) -> str:
        """What every attempt printed, oldest first."""
        return self._call("GET", f"/jobs/{quote(job_id, safe='')}/logs").decode(errors="replace")

    def follow_logs(self, job_id: str) -> Iterator[dict[str, Any]]:
        """What the job prints, as it prints it: ``{"event": "log", "attempt", "text"}``, from its first attempt on.

        The last one is ``{"event": "end", "id", "status"}``. Raises GatewayUnreachable when the gateway goes before
        that; then follow it again.
        """
        import requests

        path = f"/jobs/{quote(job_id, safe='')}/logs?follow=1"
        try:
            with self._open().request(
                *("GET", self.url + path), timeout=(CONNECT_S, ANSWER_S), stream=True, allow_redirects=False
            ) as answer:
                if answer.status_code >= 300:
                    raw = self._read(answer)
                    raise ApiError(answer.status_code, client_json.problem(answer.status_code, raw))
                for event in client_json.events(answer.iter_content(None)):
                    if event["event"] == "error":
                        raise ApiError(503, event)
                    yield event
                    if event["event"] == "end":
                        return
        except requests.RequestException as e:
            raise GatewayUnreachable(self._nobody(e)) from e
        raise GatewayUnreachable(f"{self.url} ended before job {job_id} did; follow it again")

    def invoke(
        self, name: str, payload: Payload = None, *, timeout_s: float | None = None, unique_key: str | None = None
    ) -> bytes:
        """Call the function and wait; returns the result's JSON text.

        A second call with the same ``unique_key`` gets the result of the first one.

        The gateway ends the call when the function's own timeout is over. ``timeout_s`` is when this side gives up;
        None asks the gateway for the function's timeout first and waits a little longer than that.
        """
        if timeout_s is None:
            limits = self.function(name)["spec"]
            run_ms = int(limits.get("timeout_ms", 0)) + int(limits.get("init_timeout_ms", 0))
            timeout_s = run_ms / 1000 + LIMITS.sync_queue_s + MARGIN_S
        headers = {} if unique_key is None else {"Idempotency-Key": unique_key}
        path = f"/functions/{_part(name)}/invoke"
        return self._call("POST", path, client_json.encode(payload), timeout_s=timeout_s, headers=headers)

    # -- dead letters -----------------------------------------------------------------------------------------

    def dead(self, **query: Any) -> dict[str, Any]:
        """One page of failed jobs: ``{"letters": [{"id", "name", "reason", "error", "died_at", …}], "cursor"}``.

        ``query``: function, reason, after, before (RFC 3339 with a zone), cursor, limit; None counts as not given.
        """
        return self._json("GET", _with_query("/dead", query))

    def replay(self, job_id: str, payload: bytes | None = None, version: str = "current") -> dict[str, Any]:
        """Put one failed job back, with another payload (JSON text) if one is given; ``{"id", "status"}``."""
        body: dict[str, Any] = {"version": version}
        if payload is not None:
            body["payload"] = msgspec.Raw(payload)
        return self._json("POST", f"/jobs/{quote(job_id, safe='')}/replay", msgspec.json.encode(body))

    def replay_dead(self, **body: Any) -> dict[str, Any]:
        """One call of ``POST /dead/replay``: ``{"moved": [id], "refused": [{"id", "code", "detail"}], "cursor"}``."""
        return self._json("POST", "/dead/replay", client_json.given(body))

    def purge_dead(self, **body: Any) -> dict[str, Any]:
        """One call of ``POST /dead/purge``: ``{"purged": how many, "cursor"}``."""
        return self._json("POST", "/dead/purge", client_json.given(body))

    # -- functions and pools ----------------------------------------------------------------------------------

    def functions(self) -> list[dict[str, Any]]:
        """Every deployed function: ``{"name", "version", "spec", "bundles", "abi", "deployed_at", "running", …}``."""
        return list(self._json("GET", "/functions")["functions"])

    def function(self, name: str) -> dict[str, Any]:
        """One of them; ApiError with the code ``unknown-function`` when it is not deployed."""
        return self._json("GET", f"/functions/{_part(name)}")

    def put_function(self, name: str, deployment: spec.Deployment) -> dict[str, Any]:
        """Make this the version that new jobs run; ``{"name", "version", "changed"}``."""
        return self._json("PUT", f"/functions/{_part(name)}", deployment.encode())

    def versions(self, name: str, diff: str | None = None) -> dict[str, Any]:
        """The kept versions, deployed last first: ``{"versions": […], "diff": …}``; ``diff`` is ``a..b`` or None."""
        return self._json("GET", _with_query(f"/functions/{_part(name)}/versions", {"diff": diff}))

    def rollback(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Back to a kept version, else to the one before; ``{"name", "version", "previous", "changed"}``."""
        return self._json("POST", f"/functions/{_part(name)}/rollback", client_json.given({"version": version}))

    def delete_function(self, name: str) -> None:
        """Remove the function; its queued jobs still run."""
        self._call("DELETE", f"/functions/{_part(name)}")

    def pools(self) -> list[dict[str, Any]]:
        """Every pool: ``{"name", "spec", "queued": {"high", …}, "processing", "runners", "waits_for_runner"}``."""
        return list(self._json("GET", "/pools")["pools"])

    def put_pool(self, name: str, pool: spec.PoolSpec) -> dict[str, Any]:
        """Create or change a pool; ``{"name", "changed"}``."""
        return self._json("PUT", f"/pools/{_part(name)}", pool.encode())

    # -- schedules --------------------------------------------------------------------------------------------

    def schedules(self) -> list[dict[str, Any]]:
        """Every schedule: ``{"function", "cron", "tz", "paused", "last_slot", "next": [five slots], …}``."""
        return list(self._json("GET", "/schedules")["schedules"])

    def pause_schedule(self, function: str) -> dict[str, Any]:
        """Let nothing fire until it is resumed; ``{"function", "paused", "changed"}``."""
        return self._json("POST", f"/schedules/{_part(function)}/pause", b"{}")

    def resume_schedule(self, function: str) -> dict[str, Any]:
        """Let it go on from now; ``{"function", "paused", "changed"}``."""
        return self._json("POST", f"/schedules/{_part(function)}/resume", b"{}")

    # -- secrets ----------------------------------------------------------------------------------------------

    def secrets(self) -> list[dict[str, Any]]:
        """Every secret: ``{"name", "version", "updated_at", "functions"}``; never a value."""
        return list(self._json("GET", "/secrets")["secrets"])

    def put_secret(self, name: str, value: bytes) -> dict[str, Any]:
        """Keep a value; ``{"name", "version", "changed"}``."""
        raw = self._call("PUT", f"/secrets/{_part(name)}", value, media="application/octet-stream")
        return client_json.decode(raw) or {}

    def delete_secret(self, name: str) -> None:
        """Forget a value; ApiError with the code ``secret-in-use`` while a deployed function needs it."""
        self._call("DELETE", f"/secrets/{_part(name)}")

    # -- tokens -----------------------------------------------------------------------------------------------

    def tokens(self) -> list[dict[str, Any]]:
        """Every API token: ``{"id", "name", "scopes", "functions", "created_at", "expires_at"}``; never its text."""
        return list(self._json("GET", "/tokens")["tokens"])

    def create_token(
        self, name: str, scopes: Sequence[str], functions: Sequence[str] = (), expires_in: str | None = None
    ) -> dict[str, Any]:
        """A new token, with its text under ``token``."""
        body = {"name": name, "scopes": scopes, "functions": functions, "expires_in": expires_in}
        return self._json("POST", "/tokens", msgspec.json.encode(body))

    def delete_token(self, token_id: str) -> None:
        """Take a token back."""
        self._call("DELETE", f"/tokens/{_part(token_id)}")

    # -- runners and bundles ----------------------------------------------------------------------------------

    def runtimes(self) -> dict[str, dict[str, Any]]:
        """Runtime name → what runners run it with: ``{"image", "image_id", "python", "machine", "libc", "abi"}``."""
        return dict(self._json("GET", "/runtimes")["runtimes"])

    def runners(self) -> list[dict[str, Any]]:
        """Every runner seen lately: ``{"id", "host", "pid", "pools", "seen_at", "started_at", "busy", "sandboxes"}``

        where ``sandboxes`` maps ``pool/state`` to how many.
        """
        return list(self._json("GET", "/runners")["runners"])

    def metrics(self) -> str:
        """What ``/metrics`` tells: Prometheus text of this moment."""
        return self._call("GET", "/metrics").decode()

    def has_bundle(self, sha256: str) -> bool:
        """True when the gateway has that archive, and will keep it for a while."""
        try:
            self._call("HEAD", f"/bundles/{sha256}")
        except ApiError as e:
            if e.status == 404:
                return False
            raise
        return True

    def put_bundle(self, sha256: str, data: bytes) -> None:
        """Upload an archive under its SHA-256."""
        # 50 MiB over a slow line: as long as it moves, no timeout strikes; then the gateway stores it.
        self._call("PUT", f"/bundles/{sha256}", data, media="application/octet-stream", timeout_s=2 * ANSWER_S)

    # -- the wire ---------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, body: bytes | None = None, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        raw = self._call(method, path, body, timeout_s=timeout_s)
        answer = client_json.decode(raw)
        if answer is None:
            raise ApiError(502, {"title": f"{self.url} answered {method} {path} with something else than JSON"})
        return answer

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        media: str = "application/json",
        timeout_s: float = ANSWER_S,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The answer's body; raises ApiError for a status of 400 and above."""
        import requests

        sent = {**({} if body is None else {"Content-Type": media}), **(headers or {})}
        try:
            with self._open().request(
                *(method, self.url + path),
                data=body,
                headers=sent,
                timeout=(CONNECT_S, timeout_s),
                stream=True,
                allow_redirects=False,
            ) as answer:
                raw = self._read(answer)
        except requests.Timeout as e:
            raise GatewayUnreachable(f"{self.url} did not answer {method} {path} within {timeout_s:g} s") from e
        except requests.RequestException as e:
            raise GatewayUnreachable(self._nobody(e)) from e
        if answer.status_code >= 300:
            raise ApiError(answer.status_code, client_json.problem(answer.status_code, raw))
        return raw

    def _open(self) -> requests.Session:
        import requests

        if self._session is None:
            self._session = requests.Session()
            # A proxy from the environment would be asked for its own loopback address.
            self._session.trust_env = not self._is_loopback
            if self._token:
                # Not as a header of the session: those give way to a netrc entry of the host.
                self._session.auth = self._authorize
        return self._session

    def _authorize(self, wanted: requests.PreparedRequest) -> requests.PreparedRequest:
        wanted.headers["Authorization"] = f"Bearer {self._token}"
        return wanted

    def _read(self, answer: requests.Response) -> bytes:
        parts, size = [], 0
        for part in answer.iter_content(64 * 1024):
            parts.append(part)
            size += len(part)
            if size > ANSWER_BYTES:
                raise ApiError(502, {"title": f"{self.url} answered with more than {ANSWER_BYTES // MIB} MiB"})
        return b"".join(parts)

    def _nobody(self, error: Exception) -> str:
        reason = "" if _is_refused(error) else f" ({_cause(error)})"
        return f"no gateway answers at {self.url}{reason}; start one with `bananas up`, or set BANANAS_URL"


def _is_refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _cause(error: BaseException) -> str:
    """The innermost reason, which is the one that says something."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__


def _part(name: str) -> str:
    return quote(name, safe="")


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = urlencode({key: value for key, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path
