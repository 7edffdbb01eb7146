"""``bananas doctor`` against a real engine, Redis and gateway."""

from __future__ import annotations

from bananas.cli import checks
from bananas.settings import Settings
from bananas.spec import RuntimeInfo
from tests.platform import Platform


def test_a_real_installation_is_found_well(redis_url: str, base_image: RuntimeInfo) -> None:
    """Engine, image, Redis with its clock, gateway; Redis without persistence and a missing runner are warnings."""
    settings = Settings(redis_url=redis_url, python_image=base_image.image)
    assert [finding.status for finding in checks.look_at_engine(settings)] == ["ok", "ok"]
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
