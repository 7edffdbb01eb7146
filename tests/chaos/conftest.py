"""A platform of its own for each chaos test, and the tables of all storms at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Every table that a test recorded, passed or not."""
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    tables = [text for report in reports for name, text in getattr(report, "user_properties", []) if name == "table"]
    if tables:
        terminalreporter.section("chaos")
        for text in dict.fromkeys(tables):
            terminalreporter.write_line(text)
