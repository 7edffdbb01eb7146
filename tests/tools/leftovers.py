"""Containers of test runs: which run made them, and which run is provably dead.

Every container that the suite starts carries ``bananas.test=<run id>``. A run holds a lock on a file named after its
id for as long as it lives; the kernel lets go of the lock however the run ends. So a run is dead exactly when its
file exists and can be locked, and only then are its containers removed by another run. This does the work of
testcontainers' Ryuk, whose image cannot be pulled without a registry.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from pathlib import Path

import docker
from docker.errors import APIError, NotFound

LABEL = "bananas.test"
#: Not the temporary directory of this process: every run on this machine must look in the same place, and it must
#: outlive a reboot as stopped containers do.
LOCKS = Path("/var/tmp/bananas-tests")


class Run:
    """This test run: its id, alive until ``close``."""

    def __init__(self) -> None:
        LOCKS.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):  # made by another user, who has done it
            LOCKS.chmod(0o1777)
        self.id = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._path = LOCKS / self.id
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def labels(self) -> dict[str, str]:
        """What a container of this run must carry."""
        return {LABEL: self.id}

    def close(self) -> None:
        """End the run; its containers must be gone by now."""
        self._path.unlink(missing_ok=True)
        os.close(self._lock)


def remove_containers(client: docker.DockerClient, run_id: str) -> int:
    """Remove every container of one run, running or not; returns how many there were."""
    containers = client.api.containers(all=True, filters={"label": f"{LABEL}={run_id}"})
    for container in containers:
        try:
            client.api.remove_container(container["Id"], force=True, v=True)
        except NotFound:
            pass  # it ended by itself, or another run sweeps too
        except APIError as e:
            if e.status_code != 409:  # its removal is already in progress
                raise
    return len(containers)


def sweep(client: docker.DockerClient) -> dict[str, int]:
    """Remove what dead runs left behind: run id → containers. Runs that are not provably dead are not touched."""
    swept = {}
    for path in sorted(LOCKS.iterdir()):
        try:
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            continue  # ended a moment ago, or belongs to another user
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # alive
        else:
            swept[path.name] = remove_containers(client, path.name)
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)
    return swept
