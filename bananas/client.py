"""The gateway's HTTP API as typed calls: what the command line, deploys and tests talk through.

Decides timeouts and how a failed call is told; keeps no state but a keep-alive connection. A problem body becomes
ApiError, and a gateway that is not there GatewayUnreachable with the next step in its message. Not for use from
several threads at once, like the requests session below it. Paths and bodies are described in docs/http-api.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlsplit

import msgspec

from bananas import spec
from bananas.errors import ApiError, ConfigError, GatewayUnreachable, InvalidRequest
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

#: Anything that JSON can say, or its text as bytes.
Payload = Any


class Client:
    """One gateway. Every method raises ApiError for a problem and GatewayUnreachable when nothing answers."""

    def __init__(self, url: str) -> None:
        """``url`` is the gateway's base address, e.g. ``http://127.0.0.1:8080``."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the address of a gateway; write one such as http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._is_loopback = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
        self._session: requests.Session | None = None

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
        """Queue a job; returns ``{"id", "status", "name", "version", "pool"}`` once it is in Redis.

        ``options`` are those of ``POST /jobs``: priority, pool, delay, run_at, retries, timeout, expires_after; None
        counts as not given. Times are ``"10s"``-like or numbers of seconds.
        """
        given = {key: value for key, value in options.items() if value is not None}
        body = msgspec.json.encode({"name": name, "payload": msgspec.Raw(_json(payload)), **given})
        return self._json("POST", "/jobs", body)

    def job(self, job_id: str, wait_s: float | None = None) -> dict[str, Any]:
        """The job's record; with ``wait_s`` (at most 60) as soon as the job is over, or after that many seconds."""
        query = "" if wait_s is None else f"?wait={wait_s:g}"
        return self._json("GET", f"/jobs/{quote(job_id, safe='')}{query}", timeout_s=ANSWER_S + (wait_s or 0))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel the job; ``{"id", "status": "cancelled"}``."""
        return self._json("DELETE", f"/jobs/{quote(job_id, safe='')}")

    def logs(self, job_id: str) -> str:
        """What every attempt printed, oldest first."""
        return self._call("GET", f"/jobs/{quote(job_id, safe='')}/logs").decode(errors="replace")

    def invoke(self, name: str, payload: Payload = None, *, timeout_s: float | None = None) -> bytes:
        """Call the function and wait; returns the result's JSON text.

        The gateway ends the call when the function's own timeout is over. ``timeout_s`` is when this side gives up;
        None asks the gateway for the function's timeout first and waits a little longer than that.
        """
        if timeout_s is None:
            limits = self.function(name)["spec"]
            run_ms = int(limits.get("timeout_ms", 0)) + int(limits.get("init_timeout_ms", 0))
            timeout_s = run_ms / 1000 + LIMITS.sync_queue_s + MARGIN_S
        return self._call("POST", f"/functions/{_part(name)}/invoke", _json(payload), timeout_s=timeout_s)

    # -- functions and pools ----------------------------------------------------------------------------------

    def functions(self) -> list[dict[str, Any]]:
        """Every deployed function: ``{"name", "version", "spec", "bundles", "abi", "deployed_at"}``."""
        return list(self._json("GET", "/functions")["functions"])

    def function(self, name: str) -> dict[str, Any]:
        """One of them; ApiError with the code ``unknown-function`` when it is not deployed."""
        return self._json("GET", f"/functions/{_part(name)}")

    def put_function(self, name: str, deployment: spec.Deployment) -> dict[str, Any]:
        """Make this the version that new jobs run; ``{"name", "version", "changed"}``."""
        return self._json("PUT", f"/functions/{_part(name)}", deployment.encode())

    def delete_function(self, name: str) -> None:
        """Remove the function; its queued jobs still run."""
        self._call("DELETE", f"/functions/{_part(name)}")

    def pools(self) -> list[dict[str, Any]]:
        """Every pool: ``{"name", "spec", "queued": {"high", "normal", "low"}, "processing", "runners"}``."""
        return list(self._json("GET", "/pools")["pools"])

    def put_pool(self, name: str, pool: spec.PoolSpec) -> dict[str, Any]:
        """Create or change a pool; ``{"name", "changed"}``."""
        return self._json("PUT", f"/pools/{_part(name)}", pool.encode())

    # -- secrets ----------------------------------------------------------------------------------------------

    def secrets(self) -> list[dict[str, Any]]:
        """Every secret: ``{"name", "version", "updated_at", "functions"}``; never a value."""
        return list(self._json("GET", "/secrets")["secrets"])

    def put_secret(self, name: str, value: bytes) -> dict[str, Any]:
        """Keep a value; ``{"name", "version", "changed"}``."""
        raw = self._call("PUT", f"/secrets/{_part(name)}", value, media="application/octet-stream")
        return _decode(raw) or {}

    def delete_secret(self, name: str) -> None:
        """Forget a value; ApiError with the code ``secret-in-use`` while a deployed function needs it."""
        self._call("DELETE", f"/secrets/{_part(name)}")

    # -- runners and bundles ----------------------------------------------------------------------------------

    def runtimes(self) -> dict[str, dict[str, Any]]:
        """Runtime name → what runners run it with: ``{"image", "image_id", "python", "machine", "libc", "abi"}``."""
        return dict(self._json("GET", "/runtimes")["runtimes"])

    def runners(self) -> list[dict[str, Any]]:
        """Every runner seen lately: ``{"id", "host", "pid", "pools", "seen_at", "started_at", "busy", "sandboxes"}``

        where ``sandboxes`` maps ``pool/state`` to how many.
        """
        return list(self._json("GET", "/runners")["runners"])

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
        answer = _decode(raw)
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
    ) -> bytes:
        """The answer's body; raises ApiError for a status of 400 and above."""
        import requests

        headers = {} if body is None else {"Content-Type": media}
        try:
            with self._open().request(
                *(method, self.url + path),
                data=body,
                headers=headers,
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
            raise ApiError(answer.status_code, _decode(raw) or _no_problem(answer.status_code, raw))
        return raw

    def _open(self) -> requests.Session:
        import requests

        if self._session is None:
            self._session = requests.Session()
            # A proxy from the environment would be asked for its own loopback address.
            self._session.trust_env = not self._is_loopback
        return self._session

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


def _json(payload: Payload) -> bytes:
    if isinstance(payload, bytes):
        return payload
    try:
        return json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as e:
        raise InvalidRequest(f"the payload is not JSON: {e}") from e


def _decode(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _no_problem(status: int, raw: bytes) -> dict[str, Any]:
    """For an answer that is not from our gateway, such as a proxy's page."""
    return {"title": f"HTTP {status}", "detail": f"HTTP {status}: {raw[:200].decode(errors='replace').strip()}"}
