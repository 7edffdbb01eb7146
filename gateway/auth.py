"""Who may do what: the token of a request, against the scope that its call needs.

On where the gateway serves beyond loopback, unless BANANAS_AUTH=none. The table below is the whole policy: a call that
is not in it needs ``admin``. A token that is bound to some functions is checked against the function of each job as
well, by the routes that know it (``require_function``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from flask import g, request

from bananas import events
from bananas.errors import Forbidden, Unauthorized
from bananas.job import Meter, NewJob
from bananas.tokens import Scope, Token, Tokens
from gateway import requestid

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


def check(tokens: Tokens) -> Callable[[], None]:
    """What to call before every request: raises Unauthorized or Forbidden."""

    def authorize() -> None:
        scope = SCOPES.get(request.endpoint or "", "admin")
        if scope is None or request.endpoint is None:  # no such route: a 404 gives nothing away
            return
        token = tokens.check(_bearer())
        if not token.allows(scope):
            raise Forbidden(
                f"{request.method} {request.path} needs a token with scope {scope}, and {token.id} has "
                f"{', '.join(token.scopes)}"
            )
        g.token = token
        name = (request.view_args or {}).get("name")
        if request.blueprint in _NAMED:
            require_function(name)
        elif token.functions and scope != "invoke" and request.endpoint not in _SHARED:
            raise Forbidden(f"token {token.id} is bound to {', '.join(token.functions)}; this call concerns others too")
        if scope != "invoke" and request.method not in _READS:
            events.AUDIT(
                token=token.id,
                name=token.name,
                method=request.method,
                path=request.path,
                request=requestid.current(),
            )

    return authorize


def is_bound() -> bool:
    """True when the request's token is bound to some functions."""
    token: Token | None = g.get("token")
    return token is not None and bool(token.functions)


def covers(function: str) -> bool:
    """True when the request may touch the function."""
    token: Token | None = g.get("token")
    return token is None or token.covers(function)


def metered(job: NewJob) -> NewJob:
    """The job, counting against the rate of the request's token, if that has one."""
    token: Token | None = g.get("token")
    return job if token is None or token.rate is None else replace(job, meter=Meter(token.id, token.rate))


def require_function(function: str | None) -> None:
    """Raises Forbidden when the request's token is bound to other functions; None is no function."""
    if function is not None and not covers(function):
        token: Token = g.token
        raise Forbidden(f"token {token.id} is bound to {', '.join(token.functions)} and may not touch {function!r}")


def _bearer() -> str:
    header = request.headers.get("Authorization", "")
    kind, _, text = header.partition(" ")
    if request.endpoint == "aws.invoke" and kind.startswith("AWS4-"):  # its clients sign; the token is beside
        kind, text = "bearer", request.headers.get("X-Amz-Security-Token", "")
    if kind.lower() != "bearer" or not text.strip():
        raise Unauthorized("a token is needed: Authorization: Bearer bn_…; `bananas token create` makes one")
    return text.strip()
