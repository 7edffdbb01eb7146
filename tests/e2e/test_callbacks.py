"""A callback's whole way: asked for in the shell, the job run in a sandbox, its end told and checked by a receiver."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bananas import webhooks
from bananas.cli import main
from bananas.secrets import ensure_key_file
from bananas.spec import RuntimeInfo
from tests.platform import Platform, until
from tests.tools.receiver import Receiver

pytestmark = pytest.mark.docker


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def app(redis_url: str, base_image: RuntimeInfo, receiver: Receiver) -> Iterator[Platform]:
    with Platform(redis_url, BANANAS_CALLBACK_ALLOW=receiver.place) as platform:
        platform.env["BANANAS_SECRET_KEY_FILE"] = str(ensure_key_file(platform.folder / "secret.key"))
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        platform.deploy({"twice": "def handle(event, context):\n    return event * 2\n"})
        yield platform


def test_the_end_of_a_job_is_told_and_can_be_checked(app, receiver, capfd, monkeypatch):
    """By the commands alone: submit with a callback, print the secret, check what came with it."""
    monkeypatch.setenv("BANANAS_URL", app.url)

    def run(*args: str) -> str:
        assert main(args) == 0
        return capfd.readouterr().out.strip()

    job = run("jobs", "submit", "twice", "21", "--callback", receiver.url)
    secret = run("secret", "callback-keys")
    assert json.loads(run("secret", "callback-keys", "-o", "json")) == [secret]
    [got] = receiver.wait(1)
    assert webhooks.verify(secret, got.headers, got.body) == f"{job}.1"
    told = json.loads(got.body)
    assert (told["type"], told["data"]["result"], told["data"]["attempts"]) == ("job.completed", 42, 1)
    until(lambda: app.client.job(job)["callback"]["status"] == "delivered", 30, "the record to say so")
    assert f"callback  {receiver.url} delivered" in run("jobs", "show", job)
