"""This runner's place on its host: its directory, the lock that proves it alive, the sweep of what dead runners left.

``<state>/<instance>/<runner>/`` holds the sandboxes of one runner, ``<runner>.lock`` beside it is locked while the
runner lives. A lock that can be taken is proof that its owner is gone, whatever its pid is now; so only own-instance
leftovers of provably dead runners are ever touched, and this runner's own that could not be removed while the engine
was away. Any number of instances and runners share an engine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from pathlib import Path

from bananas import events
from bananas.errors import ConfigError, EngineUnavailable
from runner import memory_volumes
from runner.docker_driver import LABEL_INSTANCE, LABEL_RUNNER, Engine

#: A container of this runner that does not run for this long was left behind; one that ends is removed in 3 s.
LEFT_S = 20.0


class Host:
    """See the module."""

    def __init__(self, state: Path, instance: str, engine: Engine) -> None:
        """Takes a fresh runner id and its lock; raises ConfigError when the state directory cannot be used."""
        self.id = os.urandom(4).hex()
        self.name = f"{socket.gethostname()[:32]}-{self.id}"
        self._instance = instance
        self._engine = engine
        self._base = state / instance
        #: Containers of this runner that do not run, and the monotonic second at which that was seen first.
        self._ended: dict[str, float] = {}
        self.directory = self._base / self.id
        try:
            # Above the sandboxes' directories nobody but this user may look in: their sockets are open to every uid.
            state.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._base.mkdir(mode=0o700, exist_ok=True)
            # Locked before it gets its name: under it, an open lock is proof of death.
            unnamed = self._base / f"{self.id}.new"
            self._lock = unnamed.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self._lock_path(self.id))
            self.directory.mkdir(mode=0o700)
        except OSError as e:
            raise ConfigError(f"BANANAS_STATE_DIR: {state} cannot be used: {e}") from e

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every container of this runner."""
        return {LABEL_INSTANCE: self._instance, LABEL_RUNNER: self.id}

    @property
    def cache(self) -> Path:
        """The bundle cache, shared by the runners of this instance on this host."""
        return self._base / "bundles"

    def sweep(self) -> int:
        """Remove containers, volumes and directories of dead runners of this instance, and what this one left; returns
        how many containers."""
        dead: dict[str, bool] = {}
        removed = self._sweep_own()
        for container, owner in self._engine.sandboxes(self._instance).items():
            if owner not in dead:
                dead[owner] = owner != self.id and self._is_gone(owner)
            if dead[owner]:
                events.CONTAINER_ORPHANED(container=container[:12], runner=owner)
                self._engine.remove(container)
                removed += 1
        for volume, owner in memory_volumes.of_instance(self._engine, self._instance).items():
            if owner != self.id and (dead.get(owner) or self._is_gone(owner)):
                memory_volumes.remove(self._engine, volume)
        for lock in self._base.glob("*.lock"):
            owner = lock.stem
            if owner != self.id and (dead.get(owner) or self._is_gone(owner)):
                shutil.rmtree(self._base / owner, ignore_errors=True)
                lock.unlink(missing_ok=True)
        return removed

    def _sweep_own(self) -> int:
        now_s, seen = time.monotonic(), self._ended
        ended = self._engine.ended(self._instance, self.id)
        self._ended = {container: seen.get(container, now_s) for container in ended}
        left = self._engine.left | {c for c, since_s in self._ended.items() if now_s - since_s >= LEFT_S}
        for container in left:
            events.CONTAINER_LEFT(container=container[:12])
            self._engine.remove(container)
            self._engine.left.discard(container)
        return len(left)

    def leave(self) -> None:
        """Remove what this runner has here. If a sandbox of its own may be left, the lock stays behind, open, so that
        another runner's sweep removes both.
        """
        try:
            for volume, owner in memory_volumes.of_instance(self._engine, self._instance).items():
                if owner == self.id:
                    memory_volumes.remove(self._engine, volume)
            is_clean = self.id not in self._engine.sandboxes(self._instance).values()
        except EngineUnavailable:
            is_clean = False
        if is_clean:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._lock_path(self.id).unlink(missing_ok=True)
        self._lock.close()

    def _lock_path(self, runner: str) -> Path:
        return self._base / f"{runner}.lock"

    def _is_gone(self, runner: str) -> bool:
        """True when the runner is provably dead: its lock exists here and nobody holds it."""
        try:
            with self._lock_path(runner).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        except BlockingIOError:
            return False
        except FileNotFoundError:
            # Another host's, another state directory's, or never ours: no proof, so hands off.
            return False
