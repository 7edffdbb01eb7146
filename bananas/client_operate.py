"""The calls of ``bananas.client`` that operate a gateway: dead letters, functions, pools, schedules, secrets, tokens.

One method for each call of docs/http-api.md; how they fail and what is sent again is up to ``bananas.client_wire``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import uuid4

import msgspec

from bananas import client_json, spec
from bananas.client_types import LetterPage, Moved
from bananas.client_wire import ANSWER_S, Wire, part, with_query
from bananas.errors import ApiError


class OperateCalls:
    """To be inherited by ``bananas.client.Client``."""

    _wire: Wire

    # -- dead letters -----------------------------------------------------------------------------------------

    def dead(self, **query: Any) -> LetterPage:
        """One page of failed jobs, oldest first.

        ``query``: function, reason, after, before (RFC 3339 with a zone), cursor, limit; None counts as not given.
        """
        return cast("LetterPage", self._wire.json("GET", with_query("/dead", query)))

    def replay(self, job_id: str, payload: bytes | None = None, version: str = "current") -> Moved:
        """Put one failed job back, with another payload (JSON text) if one is given."""
        body: dict[str, Any] = {"version": version}
        if payload is not None:
            body["payload"] = msgspec.Raw(payload)
        answer = self._wire.json(
            *("POST", f"/jobs/{part(job_id)}/replay", msgspec.json.encode(body)), headers=_key(), is_repeatable=True
        )
        return cast("Moved", answer)

    def replay_dead(self, **body: Any) -> dict[str, Any]:
        """One call of ``POST /dead/replay``: ``{"moved": [id], "refused": [{"id", "code", "detail"}], "cursor"}``."""
        by_id = body.get("ids") is not None
        headers = _key() if by_id else {}
        return self._wire.json("POST", "/dead/replay", client_json.given(body), headers=headers, is_repeatable=by_id)

    def purge_dead(self, **body: Any) -> dict[str, Any]:
        """One call of ``POST /dead/purge``: ``{"purged": how many, "cursor"}``."""
        return self._wire.json("POST", "/dead/purge", client_json.given(body))

    # -- functions and pools ----------------------------------------------------------------------------------

    def functions(self) -> list[dict[str, Any]]:
        """Every deployed function: ``{"name", "version", "spec", "bundles", "abi", "deployed_at", "running", …}``."""
        return list(self._wire.json("GET", "/functions")["functions"])

    def function(self, name: str) -> dict[str, Any]:
        """One of them; ApiError with the code ``unknown-function`` when it is not deployed."""
        return self._wire.json("GET", f"/functions/{part(name)}")

    def put_function(self, name: str, deployment: spec.Deployment) -> dict[str, Any]:
        """Make this the version that new jobs run; ``{"name", "version", "changed"}``."""
        return self._wire.json("PUT", f"/functions/{part(name)}", deployment.encode())

    def versions(self, name: str, diff: str | None = None) -> dict[str, Any]:
        """The kept versions, deployed last first: ``{"versions": […], "diff": …}``; ``diff`` is ``a..b`` or None."""
        return self._wire.json("GET", with_query(f"/functions/{part(name)}/versions", {"diff": diff}))

    def rollback(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Back to a kept version, else to the one before; ``{"name", "version", "previous", "changed"}``."""
        return self._wire.json(
            "POST",
            f"/functions/{part(name)}/rollback",
            client_json.given({"version": version}),
            is_repeatable=version is not None,
        )

    def delete_function(self, name: str) -> None:
        """Remove the function; its queued jobs still run."""
        self._wire.call("DELETE", f"/functions/{part(name)}", is_removal=True)

    def pools(self) -> list[dict[str, Any]]:
        """Every pool: ``{"name", "spec", "queued": {"high", …}, "processing", "runners", "waits_for_runner"}``."""
        return list(self._wire.json("GET", "/pools")["pools"])

    def put_pool(self, name: str, pool: spec.PoolSpec) -> dict[str, Any]:
        """Create or change a pool; ``{"name", "changed"}``."""
        return self._wire.json("PUT", f"/pools/{part(name)}", pool.encode())

    # -- schedules --------------------------------------------------------------------------------------------

    def schedules(self) -> list[dict[str, Any]]:
        """Every schedule: ``{"function", "cron", "tz", "paused", "last_slot", "next": [five slots], …}``."""
        return list(self._wire.json("GET", "/schedules")["schedules"])

    def pause_schedule(self, function: str) -> dict[str, Any]:
        """Let nothing fire until it is resumed; ``{"function", "paused", "changed"}``."""
        return self._wire.json("POST", f"/schedules/{part(function)}/pause", b"{}", is_repeatable=True)

    def resume_schedule(self, function: str) -> dict[str, Any]:
        """Let it go on from now; ``{"function", "paused", "changed"}``."""
        return self._wire.json("POST", f"/schedules/{part(function)}/resume", b"{}", is_repeatable=True)

    # -- secrets ----------------------------------------------------------------------------------------------

    def secrets(self) -> list[dict[str, Any]]:
        """Every secret: ``{"name", "version", "updated_at", "functions"}``; never a value."""
        return list(self._wire.json("GET", "/secrets")["secrets"])

    def put_secret(self, name: str, value: bytes) -> dict[str, Any]:
        """Keep a value; ``{"name", "version", "changed"}``."""
        raw = self._wire.call("PUT", f"/secrets/{part(name)}", value, media="application/octet-stream")
        return client_json.decode(raw) or {}

    def delete_secret(self, name: str) -> None:
        """Forget a value; ApiError with the code ``secret-in-use`` while a deployed function needs it."""
        self._wire.call("DELETE", f"/secrets/{part(name)}", is_removal=True)

    def callback_keys(self) -> list[str]:
        """What callbacks are signed with, the latest first; for ``bananas.webhooks.verify``."""
        return list(self._wire.json("GET", "/callback-keys")["keys"])

    # -- tokens -----------------------------------------------------------------------------------------------

    def tokens(self) -> list[dict[str, Any]]:
        """Every API token: ``{"id", "name", "scopes", "functions", "rate", "created_at", "expires_at"}``; no text."""
        return list(self._wire.json("GET", "/tokens")["tokens"])

    def create_token(
        self,
        name: str,
        scopes: Sequence[str],
        functions: Sequence[str] = (),
        expires_in: str | None = None,
        rate: str | None = None,
        burst: int | None = None,
    ) -> dict[str, Any]:
        """A new token, with its text under ``token``; ``rate`` is such as ``10/s``, ``burst`` how many at once."""
        body = {"name": name, "scopes": scopes, "functions": functions, "expires_in": expires_in}
        return self._wire.json("POST", "/tokens", msgspec.json.encode({**body, "rate": rate, "burst": burst}))

    def delete_token(self, token_id: str) -> None:
        """Take a token back."""
        self._wire.call("DELETE", f"/tokens/{part(token_id)}", is_removal=True)

    # -- runners and bundles ----------------------------------------------------------------------------------

    def runtimes(self) -> dict[str, dict[str, Any]]:
        """Runtime name → what runners run it with: ``{"image", "image_id", "python", "machine", "libc", "abi"}``."""
        return dict(self._wire.json("GET", "/runtimes")["runtimes"])

    def runners(self) -> list[dict[str, Any]]:
        """Every runner seen lately: ``{"id", "host", "pid", "pools", "seen_at", "started_at", "busy", "sandboxes"}``

        where ``sandboxes`` maps ``pool/state`` to how many.
        """
        return list(self._wire.json("GET", "/runners")["runners"])

    def metrics(self) -> str:
        """What ``/metrics`` tells: Prometheus text of this moment."""
        return self._wire.call("GET", "/metrics").decode()

    def has_bundle(self, sha256: str) -> bool:
        """True when the gateway has that archive, and will keep it for a while."""
        try:
            self._wire.call("HEAD", f"/bundles/{sha256}")
        except ApiError as e:
            if e.status == 404:
                return False
            raise
        return True

    def put_bundle(self, sha256: str, data: bytes, on_sent: Callable[[int], None] | None = None) -> None:
        """Upload an archive under its SHA-256; ``on_sent`` gets how many more bytes of it are on their way."""
        # 50 MiB over a slow line: as long as it moves, no timeout strikes; then the gateway stores it.
        self._wire.call(
            "PUT", f"/bundles/{sha256}", data, media="application/octet-stream", timeout_s=2 * ANSWER_S, on_sent=on_sent
        )


def _key() -> dict[str, str]:
    """What makes a call that is sent again the first one."""
    return {"Idempotency-Key": f"client-{uuid4().hex}"}
