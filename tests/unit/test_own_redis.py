"""Which Redis a stack uses: the one that a URL names, or our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bananas.errors import ConfigError
from bananas.stack import Stack

URL = "redis://192.0.2.1:6379/0"


def stack(folder: Path, **env: str) -> Stack:
    return Stack("up", None, {"BANANAS_STATE_DIR": str(folder), **env}, print)


def test_a_url_names_the_redis(tmp_path: Path) -> None:
    """With BANANAS_REDIS_URL no server of ours is part of the stack."""
    used = stack(tmp_path, BANANAS_REDIS_URL=URL)
    assert used.redis_url == URL
    used.supervisor.close()


def test_embedded_is_our_own_whatever_the_url_says(tmp_path: Path) -> None:
    """BANANAS_REDIS=embedded never touches the server that BANANAS_REDIS_URL names."""
    used = stack(tmp_path, BANANAS_REDIS_URL=URL, BANANAS_REDIS="embedded")
    assert used.redis_url == f"unix://{tmp_path}/redis/redis.sock"
    used.supervisor.close()


def test_another_word_is_refused(tmp_path: Path) -> None:
    """A URL in the wrong variable is named, with the right one."""
    with pytest.raises(ConfigError, match=r"BANANAS_REDIS='redis://.*a URL goes to BANANAS_REDIS_URL"):
        stack(tmp_path, BANANAS_REDIS=URL)
