"""Thousands of requests that Schemathesis makes of the OpenAPI document, to a real gateway over a real Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bananas.job import NewJob
from bananas.secrets import new_key
from bananas.spec import RuntimeInfo, ScheduleSpec
from gateway import openapi
from tests.integration.gateway_player import Player, playing
from tests.platform import Platform

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("untraced")]

#: Requests for each call. BANANAS_HYPOTHESIS=long: many more, and others every time.
IS_LONG = os.environ.get("BANANAS_HYPOTHESIS") == "long"
EXAMPLES = 1000 if IS_LONG else 30
#: What there is, by the name of the parameter in the path.
KNOWN = {"name": "hello", "function": "hello", "job_id": "01a20c00-0000-7000-8000-000000000001"}

SCHEMA = schemathesis.openapi.from_dict(openapi.document())
#: A request that breaks the schema may be longer than what is read at all, and is refused for that.
_REJECTION = SCHEMA.config.checks.negative_data_rejection
_REJECTION.expected_statuses = [*_REJECTION.expected_statuses, "413", "414", "431"]


@SCHEMA.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Half of the functions and jobs are such as there are."""
    given = dict(path_parameters or {})
    for name in KNOWN.keys() & given.keys():
        if len(str(given[name])) % 2:
            given[name] = KNOWN[name]
    return given


@pytest.fixture(scope="module")
def platform(empty_redis: str) -> Iterator[Platform]:
    """One gateway process over the shared Redis."""
    with Platform(empty_redis, BANANAS_SECRET_KEY=new_key()) as platform:
        platform.gateway()
        yield platform


@pytest.fixture
def api(platform: Platform, redis_url: str) -> Iterator[str]:
    """The address of a gateway that has something of everything; a runner completes each job with its own payload."""
    player = Player(platform.queue, platform.registry)
    player.deploy("hello", schedule=ScheduleSpec(cron="@daily"))
    info = RuntimeInfo(image="i", image_id="sha256:1", python="3.11", machine="x86_64", libc="glibc2.36")
    player.registry.publish_runtimes({"python": info})
    platform.client.put_secret("KEY", b"v")
    platform.client.create_token("t", ["invoke"])
    player.queue.enqueue(NewJob("hello", b"1", id=KNOWN["job_id"]))
    player.queue.enqueue(NewJob("hello", b"1", delay_ms=3_600_000))
    player.announce()
    with playing(redis_url, lambda player, claim: player.settle(claim, result=claim.payload)):
        yield platform.url


@SCHEMA.exclude(tag="raw").exclude(tag="aws").parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=not IS_LONG,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_generated_requests_are_answered_as_the_document_says(api, case):
    """Right and wrong ones: a documented status, type, headers and shape, and never a failure of the gateway.

    Not checked: that all that fits the schema is taken. Rules between fields, and of times, are beyond a schema.
    """
    case.call_and_validate(base_url=api, excluded_checks=[positive_data_acceptance])
