"""A runner that cannot do its work says why in one line and does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from bananas.ports import free_port
from tests.platform import ROOT


def start(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BANANAS_")}
    return subprocess.run(
        [sys.executable, "-m", "runner"],
        env=plain | {"BANANAS_STATE_DIR": str(folder / "state")} | env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in last


@pytest.fixture
def evicting(redis_url: str) -> Iterator[str]:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        yield redis_url
        client.config_set("maxmemory-policy", "noeviction")


def test_a_redis_that_evicts_is_refused(evicting: str, tmp_path: Path) -> None:
    """Jobs are not given to a store that may drop them without a word."""
    assert_refused(start(tmp_path, BANANAS_REDIS_URL=evicting), "allkeys-lru", "noeviction")


def test_a_redis_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    """The address helps, the password stays secret."""
    done = start(tmp_path, BANANAS_REDIS_URL=f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    assert_refused(done, "does not answer")
    assert "hunter2" not in done.stdout + done.stderr


def test_settings_are_checked_before_anything_starts(tmp_path: Path, redis_url: str) -> None:
    """A missing URL, a wrong value, a name that does not exist."""
    assert_refused(start(tmp_path), "BANANAS_REDIS_URL is not set", "bananas up")
    assert_refused(start(tmp_path, BANANAS_REDIS_URL=redis_url, BANANAS_LEASE_S="0"), "BANANAS_LEASE_S='0'", "0.5")
    assert_refused(start(tmp_path, BANANAS_REDIS_URL=redis_url, BANANAS_LEASE="9"), "did you mean BANANAS_LEASE_S?")


def test_an_engine_that_is_not_there_is_named(tmp_path: Path, redis_url: str) -> None:
    """With the next step."""
    done = start(tmp_path, BANANAS_REDIS_URL=redis_url, DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    assert_refused(done, "Docker Engine does not answer")
