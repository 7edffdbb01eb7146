"""The Lua scripts of the queue, one transition each, and how they are called.

EVALSHA is addressed by content, so old and new runners coexist on one server during an upgrade. A server that
does not know a script (fresh, or after SCRIPT FLUSH) is sent its text once.
"""

from __future__ import annotations

import hashlib
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
#: Those that make jobs; each holds a second library.
_MAKERS: Final = ("enqueue", "fire")


class Script:
    """One script with the shared libraries in front of it."""

    def __init__(self, name: str) -> None:
        folder = resources.files(__name__)
        parts = ["_lib", *(["_create"] if name in _MAKERS else []), name]
        self.text = "".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in parts)
        # Redis itself addresses scripts by SHA-1; nothing here depends on its strength.
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def call(self, wire: Wire, keys: list[str], args: list[Any], *, repeatable: bool) -> Any:
        """Run it; returns what the script returns, undecoded."""
        try:
            return wire.call("EVALSHA", self.sha, len(keys), *keys, *args, repeatable=repeatable)
        except redis.exceptions.NoScriptError:
            return wire.call("EVAL", self.text, len(keys), *keys, *args, repeatable=repeatable)


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
            parts = [len(_FIXED), *_FIXED, keys.PREFIX, *args]
            waited, answer = wire.together(wait, ("EVALSHA", script.sha, *parts))
            if isinstance(answer, redis.exceptions.NoScriptError):
                answer = wire.call("EVAL", script.text, *parts)
            for refused in (answer, waited):
                if isinstance(refused, Exception):
                    raise refused
            return answer

    # Any: a pipeline of redis-py, see bananas.registry.
    def add(self, pipe: Any, name: str, *args: Any) -> None:
        """Make it a part of a transaction; its text is sent, since a transaction cannot be asked to learn it."""
        pipe.eval(self._scripts[name].text, len(_FIXED), *_FIXED, keys.PREFIX, *args)
