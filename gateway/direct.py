"""The direct way to the calls that are made most, past Flask, whose contexts, routing, hooks and responses cost more
than these calls themselves.

Decides which requests take it: those to a path that is named here letter by letter, with the method of its call and
nothing unusual about them. All others go on to Flask untouched. Both ways make the same checks and end in the same
routes (``gateway.front``), so a client sees no difference; a test compares them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from gateway.answers import Answer
from gateway.asked import ID_HEADER, Asked, begin
from gateway.front import Front

View = Callable[..., Answer]
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_INVOKE: Final = re.compile(r"/functions/([A-Za-z0-9_.-]+)/invoke")
#: Names that Flask's routing has no objection to.
_PLAIN_HOST: Final = re.compile(r"([A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class Direct:
    """In front of Flask; a WSGI application. Every request begins here."""

    def __init__(self, front: Front, calls: Mapping[str, tuple[str, View]], invoke: View, flask: Wsgi) -> None:
        """``calls``: path → Flask's name of its call, and its view; all of them are POST, as is ``invoke``."""
        self._front = front
        self._calls = calls
        self._invoke = invoke
        #: The way of all other requests, once ``answer`` has seen them.
        self.flask = flask

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        answer = self.answer(environ)
        return self.flask(environ, start_response) if answer is None else answer(environ, start_response)

    def answer(self, environ: dict[str, Any]) -> Answer | None:
        """The whole answer; None: nothing was done but to begin, and Flask must go on."""
        asked = begin(environ)
        view = self._view(asked) if environ["REQUEST_METHOD"] == "POST" else None
        if view is None:
            return None
        try:
            self._front.check(asked)
            answer = view(**asked.args)
        except Exception as e:  # noqa: BLE001 - the top of the request, as in Flask
            answer = self._front.problem(e)
        answer.headers.append((ID_HEADER, self._front.finish(asked, answer.status, answer.media)))
        return answer

    def _view(self, asked: Asked) -> View | None:
        """The view of the call that is asked for, which is then known to ``asked``; None when Flask must look."""
        environ = asked.environ
        path = environ["PATH_INFO"]
        if "HTTP_UPGRADE" in environ or not _is_plain(environ.get("HTTP_HOST", "")):
            return None
        if match := _INVOKE.fullmatch(path):
            asked.endpoint, asked.args = "functions.invoke", {"name": match[1]}
            return self._invoke
        asked.endpoint, view = self._calls.get(path, (None, None))
        return view


@functools.lru_cache(maxsize=64)
def _is_plain(host: str) -> bool:
    return _PLAIN_HOST.fullmatch(host) is not None
