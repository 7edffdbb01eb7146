"""The whole platform for end-to-end tests: one gateway and one runner, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform


@pytest.fixture(scope="module")
def platform(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and a runner with short leases, on an empty Redis."""
    with Platform(empty_redis, BANANAS_LEASE_S="2", BANANAS_GRACE_S="5") as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        yield platform
