"""Who may do what: the token of a request, against the scope that its call needs.

On where the gateway serves beyond loopback, unless BANANAS_AUTH=none. The table below is the whole policy: a call that
is not in it needs ``admin``. A token that is bound to some functions is checked against the function of each job as
well, by the routes that know it (``require_function``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from bananas import events
from bananas.errors import Forbidden, Unauthorized
from bananas.job import Meter, NewJob
from bananas.tokens import Scope, Tokens
from gateway.asked import Asked, current

#: Flask's endpoint → scope; None: open to everyone.
SCOPES: Final[dict[str, Scope | None]] = {
    "operate.healthz": None,
    "operate.readyz": None,
    "openapi.document": None,
    "jobs.page": "invoke",
    "jobs.submit": "invoke",
    "jobs.submit_many": "invoke",
    "jobs.show": "invoke",
    "jobs.cancel": "invoke",
    "jobs.payload": "invoke",
    "jobs.logs": "invoke",
    "functions.invoke": "invoke",
    "raw.call": "invoke",
    "aws.invoke": "invoke",
    "functions.list": "invoke",
    "functions.show": "invoke",
    "functions.versions": "invoke",
    "functions.deploy": "deploy",
    "functions.rollback": "deploy",
    "functions.remove": "deploy",
    "functions.has_bundle": "deploy",
    "functions.put_bundle": "deploy",
    "operate.runtimes": "deploy",
    "operate.pools": "deploy",
    "operate.put_pool": "deploy",
    "operate.runners": "deploy",
    "operate.metrics": "deploy",
}
#: What a deploy reads, whoever's functions there are.
_SHARED: Final = frozenset({"operate.runtimes", "operate.pools"})
#: Blueprints whose ``name`` is a function.
_NAMED: Final = frozenset({"functions", "raw"})
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def check(tokens: Tokens) -> Callable[[Asked], None]:
    """What to call before every request: raises Unauthorized or Forbidden."""

    def authorize(asked: Asked) -> None:
        endpoint = asked.endpoint
        scope = SCOPES.get(endpoint or "", "admin")
        if scope is None or endpoint is None:  # no such route: a 404 gives nothing away
            return
        token = tokens.check(_bearer(asked))
        if not token.allows(scope):
            raise Forbidden(
                f"{asked.method} {asked.path} needs a token with scope {scope}, and {token.id} has "
                f"{', '.join(token.scopes)}"
            )
        asked.token = token
        if endpoint.partition(".")[0] in _NAMED:
            require_function(asked.args.get("name"))
        elif token.functions and scope != "invoke" and endpoint not in _SHARED:
            raise Forbidden(f"token {token.id} is bound to {', '.join(token.functions)}; this call concerns others too")
        if scope != "invoke" and asked.method not in _READS:
            events.AUDIT(token=token.id, name=token.name, method=asked.method, path=asked.path, request=asked.id)

    return authorize


def is_bound() -> bool:
    """True when the request's token is bound to some functions."""
    token = current().token
    return token is not None and bool(token.functions)


def covers(function: str) -> bool:
    """True when the request may touch the function."""
    token = current().token
    return token is None or token.covers(function)


def metered(job: NewJob) -> NewJob:
    """The job, counting against the rate of the request's token, if that has one."""
    token = current().token
    return job if token is None or token.rate is None else replace(job, meter=Meter(token.id, token.rate))


def require_function(function: str | None) -> None:
    """Raises Forbidden when the request's token is bound to other functions; None is no function."""
    token = current().token
    if function is not None and token is not None and not token.covers(function):
        raise Forbidden(f"token {token.id} is bound to {', '.join(token.functions)} and may not touch {function!r}")


def _bearer(asked: Asked) -> str:
    kind, _, text = (asked.header("Authorization") or "").partition(" ")
    if asked.endpoint == "aws.invoke" and kind.startswith("AWS4-"):  # its clients sign; the token is beside
        kind, text = "bearer", asked.header("X-Amz-Security-Token") or ""
    if kind.lower() != "bearer" or not text.strip():
        raise Unauthorized("a token is needed: Authorization: Bearer bn_…; `bananas token create` makes one")
    return text.strip()
