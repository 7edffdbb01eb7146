"""What is planted in settings, calls and functions is in no line of the log, however badly things go."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from bananas.client import Client
from bananas.errors import ApiError, GatewayUnreachable
from bananas.secrets import new_key
from bananas.spec import RuntimeInfo
from bananas.tokens import Tokens
from tests.platform import Platform, until
from tests.tools.redis_servers import Server, Servers

pytestmark = pytest.mark.docker

SOON_S = 60.0
REDIS_PASSWORD = "planted/redis-password"
OTHER_PASSWORD = "planted-other-password"
FUNCTION_SECRET = "planted-function-secret"
ARGUMENT = "planted-argument-of-a-call"
WRONG_TOKEN = "bn_planted-and-wrong-token"
LEAKY = r"""
import os, time
secret = open("/run/secrets/TOKEN").read()

def handle(event, context):
    print("printed", secret, event)
    if event["do"] == "raise":
        raise ValueError(secret + " " + event["what"])
    if event["do"] == "die":
        os.kill(os.getpid(), 9)
    if event["do"] == "wait":
        time.sleep(60)
    return event
"""
BROKEN = r"""
secret = open("/run/secrets/TOKEN").read()
raise RuntimeError("cannot be loaded with " + secret)

def handle(event, context):
    return event
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis with a password."""
    with Servers(tmp_path_factory.mktemp("redis")) as servers:
        yield servers.server("--requirepass", REDIS_PASSWORD, password=REDIS_PASSWORD)


@pytest.fixture(scope="module")
def planted() -> dict[str, str]:
    """Name → what must not be seen; filled by the fixtures that make it."""
    return {
        "password": REDIS_PASSWORD,
        "password as written": REDIS_PASSWORD.replace("/", "%2F"),
        "other password": OTHER_PASSWORD,
        "function secret": FUNCTION_SECRET,
        "wrong token": WRONG_TOKEN,
    }


@pytest.fixture(scope="module")
def app(server: Server, base_image: RuntimeInfo, planted: dict[str, str]) -> Iterator[Platform]:
    """A gateway that asks for tokens and a runner, with secrets in every place that has some."""
    url = f"redis://:{REDIS_PASSWORD.replace('/', '%2F')}@127.0.0.1:{server.port}/0"
    env = {"BANANAS_LEASE_S": "2", "BANANAS_GRACE_S": "1", "BANANAS_PYTHON_IMAGE": base_image.image}
    with Platform(url, **env) as platform:
        _, token = Tokens(platform.connections).create("planted", ("admin",))
        key = new_key()
        planted |= {"token": token, "secret key": key}
        platform.env |= {"BANANAS_SECRET_KEY": key, "BANANAS_TOKEN": token}
        platform.client.close()
        platform.client = Client(platform.url, token)
        platform.gateway(BANANAS_HOST="0.0.0.0")
        platform.runner()
        platform.client.put_secret("TOKEN", FUNCTION_SECRET.encode())
        settings = "    secrets: [TOKEN]\n    retries: 0\n    timeout: 2s"
        platform.deploy({"leaky": LEAKY}, settings)
        platform.deploy({"broken": BROKEN}, f"{settings}\n    min_warm: 1")
        yield platform
        platform.client.close()


def seen(texts: dict[str, str], planted: dict[str, str]) -> list[str]:
    """What was found, and where."""
    return [f"{name} in {place}" for place, text in texts.items() for name, word in planted.items() if word in text]


def send(app: Platform, path: str, body: bytes, token: str) -> int:
    """A POST with that token; its status."""
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=30)
    with contextlib.closing(connection):
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {token}", "Traceparent": WRONG_TOKEN}
        connection.request("POST", path, body, head)
        return connection.getresponse().status


def fail(app: Platform, do: str) -> dict[str, Any]:
    """The record of a call that goes wrong like that."""
    return app.finished(app.client.submit("leaky", {"do": do, "what": ARGUMENT})["id"], SOON_S)


@contextlib.contextmanager
def locked_out(server: Server) -> Iterator[None]:
    """For the time of the block Redis has another password, and connections are lost."""
    server.ask("CONFIG", "SET", "requirepass", OTHER_PASSWORD)
    server.password = OTHER_PASSWORD
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    try:
        yield
    finally:
        server.ask("CONFIG", "SET", "requirepass", REDIS_PASSWORD)
        server.password = REDIS_PASSWORD


def test_no_line_holds_a_secret_or_an_argument(app: Platform, server: Server, planted: dict[str, str]) -> None:
    """Handlers that quote both, die, hang; requests that are refused; a runner that is killed; Redis that refuses."""
    runner, arguments = app.processes[1], {"argument": ARGUMENT}
    assert app.client.invoke("leaky", {"do": "nothing", "what": ARGUMENT}, timeout_s=30)
    assert fail(app, "raise")["error"]["message"] == f"*** {ARGUMENT}"
    assert fail(app, "die")["status"] == fail(app, "wait")["status"] == "failed"
    until(lambda: runner.events("sandbox.min_warm_failed"), SOON_S, "the function that cannot be loaded to be told")
    assert "cannot be loaded with ***" in runner.events("sandbox.min_warm_failed")[0]["error"]
    assert send(app, "/jobs", json.dumps({"name": "leaky", "payload": ARGUMENT}).encode(), WRONG_TOKEN) == 401
    assert send(app, "/jobs", f'{{"name": "leaky", "{ARGUMENT}'.encode(), planted["token"]) == 422
    broke = {event["outcome"]: event for event in runner.events("attempt.broke")}
    assert broke.keys() == {"crashed", "timeout"}
    assert {"job", "function", "version", "pool", "token"} <= broke["timeout"].keys()

    # Its jobs go to another one, which tells more.
    app.client.submit("leaky", {"do": "wait", "what": ARGUMENT})
    until(lambda: app.queue.counts().leased, SOON_S, "a job in flight")
    runner.kill9()
    debugging = app.runner(BANANAS_LOG_LEVEL="debug")
    until(lambda: debugging.events("leases.reaped"), SOON_S, "the lease to run out")
    fail(app, "raise")
    assert [event["error"] for event in debugging.events("attempt.failed")] == ["ValueError"]

    told = app.client.metrics()
    with locked_out(server):
        with pytest.raises((ApiError, GatewayUnreachable)):
            app.client.invoke("leaky", {"do": "nothing", "what": ARGUMENT}, timeout_s=30)
        until(lambda: debugging.events("role.waits"), SOON_S, "the runner to say that Redis refuses it")
        gateway = app.processes[0]
        until(lambda: gateway.events("request.failed"), SOON_S, "the gateway to say so")
    assert all(event["request"] for event in gateway.events("request.failed"))

    texts = {process.name: process.text for process in app.processes} | {"metrics": told}
    assert seen(texts, planted) == []
    assert seen({place: text for place, text in texts.items() if place != debugging.name}, arguments) == []
