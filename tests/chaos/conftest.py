"""A platform of its own for each chaos test. What the storms recorded is printed by tests/conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bananas.spec import RuntimeInfo
from tests.platform import Platform


@pytest.fixture
def platform(redis_url: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    """A gateway and no runner yet, with a 2 s lease, on an empty Redis."""
    env = {"BANANAS_LEASE_S": "2", "BANANAS_GRACE_S": "1", "BANANAS_PYTHON_IMAGE": base_image.image}
    with Platform(redis_url, **env) as platform:
        platform.gateway()
        yield platform
