"""AWS's invoke call, by way of boto3 against a real gateway process; the runner is played by the test."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from bananas import keys
from bananas.job import Outcome
from bananas.tokens import Tokens
from tests.integration.gateway_player import Player, call
from tests.platform import Platform, until

pytestmark = pytest.mark.redis


@pytest.fixture
def player(platform: Platform, redis_url: str) -> Player:
    """``hello`` is deployed and a runner is live."""
    player = Player(platform.queue, platform.registry)
    player.deploy("hello")
    player.announce()
    return player


@pytest.fixture
def serve(player: Player) -> Iterator[Callable[..., None]]:
    """Ends the next call as it is told."""
    pool = ThreadPoolExecutor(1)
    yield lambda *args, **kwargs: pool.submit(lambda: player.settle(player.claim(), *args, **kwargs)) and None
    pool.shutdown()


def aws(url: str, token: str | None = None) -> Any:
    return boto3.client(
        "lambda",
        endpoint_url=url,
        region_name="any",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        aws_session_token=token,
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_a_result_comes_with_version_request_id_and_log_tail(platform, player, serve):
    """As code written for AWS expects it."""
    serve(result=b'{"hi": "Ada"}', logs=b"x" * 5000 + b"last words\n")
    answer = aws(platform.url).invoke(FunctionName="hello", Payload=b'{"name": "Ada"}', LogType="Tail")
    assert (answer["StatusCode"], json.loads(answer["Payload"].read())) == (200, {"hi": "Ada"})
    assert "FunctionError" not in answer
    log = base64.b64decode(answer["LogResult"])
    assert (len(log), log[-11:]) == (4096, b"last words\n")
    assert answer["ExecutedVersion"] == player.registry.current("hello").version
    assert platform.queue.show(answer["ResponseMetadata"]["RequestId"]).function == "hello"


@pytest.mark.parametrize(
    ("outcome", "error", "has_trace"),
    [
        (Outcome.ERROR, {"type": "ValueError", "message": "boom", "traceback": "line 1\nline 2\n"}, True),
        (Outcome.TIMEOUT, {"type": "Timeout", "message": "the attempt took longer"}, False),
        (Outcome.OOM, {"type": "OutOfMemory", "message": "too much"}, False),
    ],
)
def test_a_failed_function_is_200_with_awss_error(platform, serve, outcome, error, has_trace):
    """The header tells it; the body has errorMessage, errorType and the trace of the handler's own error."""
    serve(outcome, error=error)
    answer = aws(platform.url).invoke(FunctionName="hello")
    body = json.loads(answer["Payload"].read())
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert (body["errorType"], body["errorMessage"]) == (error["type"], error["message"])
    assert body.get("stackTrace") == (["line 1\n", "line 2\n"] if has_trace else None)


def test_an_event_is_queued_with_the_functions_retries_and_a_dry_run_is_not(platform, player):
    """202 and 204."""
    client = aws(platform.url)
    assert client.invoke(FunctionName="hello", InvocationType="DryRun")["StatusCode"] == 204
    answer = client.invoke(FunctionName="hello", InvocationType="Event", Payload=b"[1]")
    assert answer["StatusCode"] == 202
    claim = player.claim()
    assert (claim.id, claim.payload) == (answer["ResponseMetadata"]["RequestId"], b"[1]")
    assert platform.queue.show(claim.id).max_retries == 3


def test_the_name_may_be_an_arn_and_have_a_qualifier(platform, player):
    """Only what runs now can be asked for."""
    client, now = aws(platform.url), player.registry.current("hello").version
    for name in ("hello:$LATEST", f"hello:{now}", f"arn:aws:lambda:eu-west-1:123456789012:function:hello:{now}"):
        assert client.invoke(FunctionName=name, InvocationType="DryRun")["StatusCode"] == 204
    assert client.invoke(FunctionName="hello", Qualifier=now, InvocationType="DryRun")["StatusCode"] == 204
    with pytest.raises(client.exceptions.ResourceNotFoundException, match="not 'old'"):
        client.invoke(FunctionName="hello", Qualifier="old")


def test_errors_have_awss_names(platform, player):
    """So that except clauses written for AWS catch them."""
    client = aws(platform.url)
    with pytest.raises(client.exceptions.ResourceNotFoundException, match="'nobody'"):
        client.invoke(FunctionName="nobody")
    with pytest.raises(client.exceptions.InvalidRequestContentException, match="not valid JSON"):
        client.invoke(FunctionName="hello", Payload=b"{")
    platform.connections.commands.delete(keys.RUNNERS)
    # A gateway believes for up to a second what it last saw.
    job = platform.client.submit("hello")["id"]
    until(lambda: platform.client.job(job)["waiting_for"] == "runner", 5, "the gateway to miss the runner")
    with pytest.raises(client.exceptions.ServiceException, match="no live runner"):
        client.invoke(FunctionName="hello")


def test_another_sites_page_is_refused(platform, player):
    """Though any media type is taken."""
    path = "/2015-03-31/functions/hello/invocations"
    answer = call(platform.port, "POST", path, b"1", Content_Type="text/plain", Origin="https://evil.example")
    assert (answer.status, answer.headers["x-amzn-ErrorType"]) == (403, "AccessDeniedException")


def test_where_a_token_is_wanted_it_is_the_session_token(redis_server, redis_url, connections):
    """Without one, or for another function, the call is refused in AWS's words."""
    with Platform(redis_server, BANANAS_HOST="0.0.0.0") as platform:
        player = Player(platform.queue, platform.registry)
        player.deploy("hello")
        player.deploy("other")
        token = Tokens(connections).create("t", ("invoke",), ("hello",))[1]
        platform.gateway()
        with pytest.raises(ClientError, match="UnrecognizedClientException"):
            aws(platform.url).invoke(FunctionName="hello", InvocationType="Event")
        client = aws(platform.url, token)
        assert client.invoke(FunctionName="hello", InvocationType="Event")["StatusCode"] == 202
        with pytest.raises(ClientError, match="AccessDeniedException"):
            client.invoke(FunctionName="other", InvocationType="Event")
