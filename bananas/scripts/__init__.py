"""The Lua scripts of the queue, one transition each, and how they are called.

EVALSHA is addressed by content, so old and new runners coexist on one server during an upgrade. A server that
does not know a script (fresh, or after SCRIPT FLUSH) is sent its text once.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from functools import cache
from importlib import resources
from typing import Any, Final

import redis

from bananas import keys
from bananas.redis_client import Connections
from bananas.redis_wire import Wire

NAMES: Final = (
    *("enqueue", "step", "extend", "wait", "cancel", "promote", "reap", "sweep"),
    *("expire", "progress", "unpark", "replay", "purge", "audit", "unlist", "follow"),
    *("plan", "fire"),
    *("take_callbacks", "told"),
)
_FIXED: Final = [
    *(keys.SCHEDULE, keys.LEASES, keys.DEAD, keys.DONE, keys.COUNTERS, keys.POOLS_REV, keys.EXPIRING),
    *(keys.CALLBACKS, keys.CALLS),
]
#: A line whose place the named libraries take.
_USE: Final = re.compile(r"^( *)-- use: (.*)\n", re.MULTILINE)
#: A definition of a library: from ``local`` at the begin of a line to the next one.
_DEFINITION: Final = re.compile(r"^local .*\n(?:(?!local ).*\n)*", re.MULTILINE)
_DEFINED: Final = re.compile(r"local (?:function )?([\w, ]+)")
_WORD: Final = re.compile(r"\w+")
_COMMENT: Final = re.compile(r"^ *--(?! use: ).*\n", re.MULTILINE)


class Script:
    """One script with what it needs of the shared libraries."""

    def __init__(self, name: str) -> None:
        body = _with_libraries(_read(name))
        self.text = _needed(_with_libraries(_read("_lib")), body) + body
        # Redis itself addresses scripts by SHA-1; nothing here depends on its strength.
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def call(self, wire: Wire, keys: list[str], args: list[Any], *, repeatable: bool) -> Any:
        """Run it; returns what the script returns, undecoded."""
        try:
            return wire.call("EVALSHA", self.sha, len(keys), *keys, *args, repeatable=repeatable)
        except redis.exceptions.NoScriptError:
            return wire.call("EVAL", self.text, len(keys), *keys, *args, repeatable=repeatable)


def _read(name: str) -> str:
    """Without the comments, which would be sent and kept with each script."""
    return _COMMENT.sub("", resources.files(__name__).joinpath(f"{name}.lua").read_text("utf-8"))


def _with_libraries(text: str) -> str:
    def used(use: re.Match[str]) -> str:
        indent, names = use.groups()
        library = "".join(_with_libraries(_read(name)) for name in names.split())
        return textwrap.indent(_needed(library, text), indent)

    return _USE.sub(used, text)


def _needed(library: str, text: str) -> str:
    """The definitions that the text names, and those that these name. A server makes the functions of a script anew at
    each call, and for a short script that is a third of its work."""
    words, needed = set(_WORD.findall(text)), []
    for definition in reversed(_DEFINITION.findall(library)):
        defined = _DEFINED.match(definition)
        if defined and words & set(_WORD.findall(defined[1])):
            needed.append(definition)
            words |= set(_WORD.findall(definition))
    return "".join(reversed(needed))


@cache
def load() -> dict[str, Script]:
    """All scripts by name."""
    return {name: Script(name) for name in NAMES}


class Caller:
    """Runs scripts with the fixed keys and the prefix, over one set of connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._scripts = load()

    def run(self, name: str, *args: Any, once: bool = False) -> Any:
        """What the script answers, undecoded; raises RedisUnavailable. ``once``: never send it twice by itself."""
        with self._connections.guard():
            return self._scripts[name].call(self._connections.wire, _FIXED, [keys.PREFIX, *args], repeatable=not once)

    def run_after(self, wait: tuple[Any, ...], name: str, *args: Any) -> Any:
        """Send a command that blocks and the script in one go: the script runs in the moment in which the wait ends,
        whatever it ended with. Returns what the script answers; raises RedisUnavailable. Never sent twice by itself."""
        script, wire = self._scripts[name], self._connections.blocking_wire
        with self._connections.guard():
            waited, answer = wire.together(wait, ("EVALSHA", script.sha, len(_FIXED), *_FIXED, keys.PREFIX, *args))
            if isinstance(answer, redis.exceptions.NoScriptError):
                answer = script.call(wire, _FIXED, [keys.PREFIX, *args], repeatable=False)
            for refused in (answer, waited):
                if isinstance(refused, Exception):
                    raise refused
            return answer

    # Any: a pipeline of redis-py, see bananas.registry.
    def add(self, pipe: Any, name: str, *args: Any) -> None:
        """Make it a part of a transaction; its text is sent, since a transaction cannot be asked to learn it."""
        pipe.eval(self._scripts[name].text, len(_FIXED), *_FIXED, keys.PREFIX, *args)
