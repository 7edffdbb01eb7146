"""HTTP between ``bananas.client`` and a gateway: one keep-alive connection, deadlines, and what is sent again.

A call that did not work is sent again for ``patience_s`` if that cannot do harm: nothing reached a gateway, the gateway
said that it did nothing (429, 503), or the call may be repeated. How long to wait is what ``Retry-After`` says, else a
little, doubled each time. What counts as a failure of the call itself, never of a job that it asks for.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from bananas import client_json, spec
from bananas.errors import ApiError, BananasError, ConfigError, GatewayUnreachable
from bananas.settings import LIMITS, MIB

if TYPE_CHECKING:
    import requests  # takes 100 ms to import, so only a call does it

CONNECT_S: Final = 5.0
#: Until the first byte of an ordinary answer.
ANSWER_S: Final = 30.0
#: The largest answer is the log of a job with every attempt's log at its limit.
ANSWER_BYTES: Final = (spec.MAX_RETRIES + LIMITS.max_losses + 1) * LIMITS.log_bytes + 16 * MIB
#: Methods that do the same thing when they come twice.
_REPEATABLE: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class Wire:
    """Calls of one gateway. Not for several threads at once, like the requests session below it."""

    def __init__(self, url: str, token: str, patience_s: float) -> None:
        """Raises ConfigError for an ``url`` that is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not the address of a gateway; write one such as http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._is_loopback = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
        self._session: requests.Session | None = None
        self._token = token

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout_s: float = ANSWER_S,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool | None = None,
    ) -> dict[str, Any]:
        """The object that is answered; see ``call``."""
        raw = self.call(method, path, body, timeout_s=timeout_s, headers=headers, is_repeatable=is_repeatable)
        answer = client_json.decode(raw)
        if answer is None:
            raise ApiError(502, {"title": f"{self.url} answered {method} {path} with something else than JSON"})
        return answer

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        media: str = "application/json",
        timeout_s: float = ANSWER_S,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool | None = None,
        is_removal: bool = False,
        on_sent: Callable[[int], None] | None = None,
    ) -> bytes:
        """The answer's body; raises ApiError for a status of 300 and above, GatewayUnreachable without an answer.

        Args:
            timeout_s: of one try, until its answer begins.
            is_repeatable: whether it may be sent again when its answer was lost; None: as its method says.
            on_sent: gets the number of bytes of the body that go out, piece by piece; again from the start in each try.
            is_removal: what is not there any more when it is sent again is removed.
        """
        may_repeat = method in _REPEATABLE if is_repeatable is None else is_repeatable
        sent = {**({} if body is None else {"Content-Type": media}), **(headers or {})}
        patience = Patience(self.patience_s)
        was_lost = False
        while True:
            try:
                data = body if body is None or on_sent is None else _Told(body, on_sent)
                return self._once(method, path, data, timeout_s, sent)
            except (ApiError, GatewayUnreachable) as e:
                if is_removal and was_lost and isinstance(e, ApiError) and e.status == 404:
                    return b""  # the try before did it, and its answer was lost
                is_harmless = _did_nothing(e)
                wished_s = e.retry_after_s if isinstance(e, ApiError) else None
                if not (is_harmless or (may_repeat and is_passing(e))) or not patience.wait(wished_s):
                    raise
                was_lost = was_lost or not is_harmless

    def _once(
        self, method: str, path: str, body: bytes | _Told | None, timeout_s: float, headers: Mapping[str, str]
    ) -> bytes:
        import requests

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
        except requests.ConnectTimeout as e:
            raise GatewayUnreachable(self._nobody(e), is_unsent=True) from e
        except requests.Timeout as e:
            raise GatewayUnreachable(f"{self.url} did not answer {method} {path} within {timeout_s:g} s") from e
        except requests.RequestException as e:
            raise GatewayUnreachable(self._nobody(e), is_unsent=_is_refused(e)) from e
        if answer.status_code >= 300:
            raise _problem(answer, raw)
        return raw

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Server-sent events of one answer, until it ends; the same errors as ``call``, but nothing is sent again."""
        import requests

        try:
            with self._open().request(
                *("GET", self.url + path), timeout=(CONNECT_S, ANSWER_S), stream=True, allow_redirects=False
            ) as answer:
                if answer.status_code >= 300:
                    raise _problem(answer, self._read(answer))
                yield from client_json.events(answer.iter_content(None))
        except requests.RequestException as e:
            raise GatewayUnreachable(self._nobody(e)) from e

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


class _Told(io.BytesIO):
    """A body that tells how much of it was read, which is when it is sent."""

    def __init__(self, data: bytes, on_sent: Callable[[int], None]) -> None:
        super().__init__(data)
        self._on_sent = on_sent

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self._on_sent(len(part))
        return part


class Patience:
    """How long something is tried, and the pauses between two tries."""

    def __init__(self, total_s: float) -> None:
        """``total_s`` begins now."""
        self._deadline_s = time.monotonic() + total_s
        self._pause_s = _FIRST_PAUSE_S

    def wait(self, wanted_s: float | None = None) -> bool:
        """Wait as long as was asked for, else a little longer than the last time; False at once when the time is over.

        Without a wish a part of the pause is left to chance, so that many clients do not come back together.
        """
        pause_s = wanted_s
        if pause_s is None:
            pause_s = self._pause_s * (0.5 + random.random() / 2)  # noqa: S311 - nobody has to guess it
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        if time.monotonic() + pause_s > self._deadline_s:
            return False
        time.sleep(pause_s)
        return True


def _did_nothing(error: BananasError) -> bool:
    """True when no gateway was reached, or it said that it did nothing and may do it later."""
    if not isinstance(error, ApiError):
        return bool(error.details.get("is_unsent"))
    return error.status == 429 or error.problem.get("code") == "no-live-runner"


def is_passing(error: BananasError) -> bool:
    """True for a failure of the call that may be over soon: of the gateway, its Redis, or a proxy between."""
    if not isinstance(error, ApiError):
        return isinstance(error, GatewayUnreachable)
    code = error.problem.get("code")
    return (
        _did_nothing(error)
        or code in ("redis-unavailable", "unavailable")
        or (code is None and error.status in (502, 503, 504))
    )


def _problem(answer: requests.Response, raw: bytes) -> ApiError:
    error = ApiError(answer.status_code, client_json.problem(answer.status_code, raw))
    error.retry_after_s = _retry_after_s(answer.headers.get("Retry-After"))
    return error


def _retry_after_s(text: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which may also be a date."""
    if not text:
        return None
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


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


def part(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(name, safe="")


def with_query(path: str, query: Mapping[str, Any]) -> str:
    """The path with what is given of a query."""
    given = urlencode({key: value for key, value in query.items() if value is not None})
    return f"{path}?{given}" if given else path
