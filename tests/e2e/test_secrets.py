"""A secret's whole way: set, read by a function, rotated without a deploy, and seen nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bananas.secrets import ensure_key_file
from bananas.spec import RuntimeInfo
from tests.platform import Platform, until

pytestmark = pytest.mark.docker

FIRST, SECOND = "planted-secret-one", "planted-secret-two"
READER = r"""
import os, stat

def handle(event, context):
    path = "/run/secrets/TOKEN"
    value = open(path).read()
    print("printed", value)
    if event == "raise":
        raise ValueError("refused " + value)
    state = os.stat(path)
    return {"length": len(value), "last": value[-3:], "mode": stat.S_IMODE(state.st_mode), "uid": state.st_uid,
            "pid": os.getpid(), "in_env": any(value in text for text in os.environ.values())}
"""


@pytest.fixture(scope="module")
def app(empty_redis: str, base_image: RuntimeInfo) -> Iterator[Platform]:
    with Platform(empty_redis) as platform:
        platform.env["BANANAS_SECRET_KEY_FILE"] = str(ensure_key_file(platform.folder / "secret.key"))
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        platform.client.put_secret("TOKEN", FIRST.encode())
        platform.deploy({"reader": READER}, "    secrets: [TOKEN]\n    retries: 0")
        yield platform


def test_the_function_reads_it_from_a_file_of_its_own(app):
    """Readable by the sandbox user only, and not in the environment."""
    seen = json.loads(app.client.invoke("reader"))
    assert (seen["length"], seen["mode"], seen["uid"], seen["in_env"]) == (len(FIRST), 0o400, 65534, False)


def test_a_new_value_needs_no_deploy(app):
    """The next call has it, in another sandbox: the old one never learns of it."""
    app.client.put_secret("TOKEN", FIRST.encode())
    before = json.loads(app.client.invoke("reader"))
    app.client.put_secret("TOKEN", SECOND.encode())
    after = json.loads(app.client.invoke("reader"))
    assert (before["last"], after["last"]) == ("one", "two")
    job = app.finished(app.client.submit("reader")["id"])
    assert job["history"][-1]["start"] == "warm"


def test_a_sandbox_that_knows_the_old_value_ends_soon(app):
    """Not only when nobody has called for long: the old value is in it."""

    def idle() -> int:
        return app.client.runners()[0]["sandboxes"].get("default/idle", 0)

    app.client.put_secret("TOKEN", FIRST.encode())
    app.client.invoke("reader")
    until(lambda: idle() == 1, 30, "the runner to tell of it")
    app.client.put_secret("TOKEN", SECOND.encode())
    until(lambda: idle() == 0, 30, "the old sandbox to end")
    assert json.loads(app.client.invoke("reader"))["last"] == "two"


def test_it_is_seen_nowhere_else(app, engine: docker.DockerClient):
    """Not in logs, errors, records, what the engine knows, on the disk, or in Redis."""
    app.client.put_secret("TOKEN", SECOND.encode())
    failed = app.finished(app.client.submit("reader", "raise")["id"])
    assert failed["error"]["message"] == "refused ***"
    label = f"bananas.instance={app.registry.instance()}"
    inspected = [engine.api.inspect_container(c.id) for c in engine.containers.list(filters={"label": label})]
    assert inspected
    assert app.client.logs(failed["id"]).strip() == "printed ***"
    places = {
        "record": json.dumps(failed),
        "inspect": json.dumps(inspected),
        "processes": app.logs(),
        "disk": _texts(app.folder),
        "redis": _dump(app),
    }
    for place, text in places.items():
        for secret in (FIRST, SECOND):
            assert secret not in text, place


def _texts(folder: Path) -> str:
    return "\n".join(path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def _dump(app: Platform) -> str:
    client = app.connections.commands
    return "\n".join((client.dump(key) or b"").decode("latin-1") for key in client.keys("*"))


def test_one_that_cannot_be_opened_is_told_by_name(app):
    """The job says what is missing and what to do, and does not run."""
    app.client.put_secret("OTHER", b"x" * 10)
    app.deploy({"other": READER}, "    secrets: [OTHER]\n    retries: 0")
    app.connections.commands.hdel("{bananas}:secrets", "OTHER")
    job = app.client.submit("other")["id"]
    record = until(lambda: (found := app.client.job(job))["history"] and found, 15, "a first attempt")
    assert record["history"][0]["outcome"] == "start"
    assert record["history"][0]["error"]["message"] == "no secret 'OTHER'; set it with `bananas secret set OTHER`"
    app.client.put_secret("OTHER", b"x" * 10)
    app.client.cancel(job)
