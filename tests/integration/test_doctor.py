"""``bananas doctor`` against a real Redis and gateway; ``tests/e2e/test_doctor.py`` has the engine."""

from __future__ import annotations

from bananas.cli import checks
from bananas.settings import Settings
from tests.platform import Platform


def test_a_real_installation_is_found_well(redis_url: str) -> None:
    """Redis with its clock, gateway; Redis without persistence and a missing runner are warnings."""
    settings = Settings(redis_url=redis_url)
    redis = {finding.name: finding for finding in checks.look_at_redis(settings)}
    assert {name: finding.status for name, finding in redis.items()} == {
        "redis": "ok",
        "eviction": "ok",
        "persistence": "warning",
        "clock": "ok",
    }
    with Platform(redis_url) as platform:
        platform.gateway()
        gateway = [(finding.name, finding.status) for finding in checks.look_at_gateway(settings, platform.url)]
    assert gateway == [
        ("gateway", "ok"),
        ("its persistence", "warning"),
        ("its runners", "warning"),
        ("clock", "ok"),
    ]
