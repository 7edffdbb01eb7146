"""The whole platform for end-to-end tests: one gateway and one runner, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from bananas.spec import RuntimeInfo
from tests.platform import Platform


@pytest.fixture(scope="module")
def platform(redis_server: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner with short leases, on an empty Redis."""
    with redis.Redis.from_url(redis_server, socket_timeout=5) as client:
        client.flushall()
    with Platform(redis_server, BANANAS_LEASE_S="2", BANANAS_GRACE_S="5") as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        yield platform
