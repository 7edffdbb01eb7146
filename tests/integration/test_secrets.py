"""Secrets over HTTP and in Redis: what goes in, what comes out, and what never does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from bananas import errors, keys
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry, RunnerInfo
from bananas.secrets import SecretBox, Secrets, new_key
from bananas.settings import LIMITS, Settings
from tests.integration.gateway_player import Player, assert_problem

pytestmark = pytest.mark.redis
OCTETS = {"content_type": "application/octet-stream"}
VALUE = b"hunter2-\x00\xff"


@pytest.fixture
def key() -> str:
    return new_key()


@pytest.fixture
def secrets(connections: Connections, key: str) -> Secrets:
    return Secrets(connections, SecretBox.from_settings(Settings(secret_key=key)))


@pytest.fixture
def registry(connections: Connections) -> Registry:
    return Registry(connections)


@pytest.fixture
def client(app_client: Callable[..., FlaskClient], connections: Connections, key: str) -> FlaskClient:
    return app_client(connections, secret_key=key)


def dump(connections: Connections) -> bytes:
    """Everything that is in Redis."""
    return b"\n".join(connections.commands.dump(key) or b"" for key in connections.commands.keys("*"))


def test_a_value_goes_in_and_never_comes_out(client, secrets, connections):
    """The list tells names and times; Redis holds nothing readable; only the key opens it."""
    assert client.put("/secrets/TOKEN", data=VALUE, **OCTETS).get_json()["changed"] is True
    [listed] = client.get("/secrets").get_json()["secrets"]
    assert listed.keys() == {"name", "version", "updated_at", "functions"}
    assert VALUE not in dump(connections)
    assert secrets.fetch(["TOKEN"])["TOKEN"].value == VALUE


def test_a_new_value_is_a_new_version_and_the_same_value_is_not(client, connections, registry):
    """Setting what is there changes nothing; a change is told to every runner."""
    registry.announce(RunnerInfo(id="r1", host="h", pid=1, started_at_ms=0, seen_at_ms=registry.now_ms()))
    first = client.put("/secrets/TOKEN", data=b"one", **OCTETS).get_json()
    again = client.put("/secrets/TOKEN", data=b"one", **OCTETS).get_json()
    second = client.put("/secrets/TOKEN", data=b"two", **OCTETS).get_json()
    assert (first["version"], False) == (again["version"], again["changed"])
    assert second["version"] != first["version"]
    assert connections.commands.lrange(keys.inbox("r1"), 0, -1) == [b"pools", b"pools"]


def test_a_function_needs_its_secrets_to_be_deployed_and_keeps_them(client, connections, registry):
    """Nothing is deployed that could not start, and nothing is taken away that something needs."""
    player = Player(Queue(connections), registry)
    with pytest.raises(errors.UnknownSecret, match=r"'mail' needs secret 'TOKEN'.*bananas secret set TOKEN"):
        player.deploy("mail", secrets=("TOKEN",))
    client.put("/secrets/TOKEN", data=b"one", **OCTETS)
    player.deploy("mail", secrets=("TOKEN",))
    assert client.get("/secrets").get_json()["secrets"][0]["functions"] == ["mail"]
    assert_problem(client.delete("/secrets/TOKEN"), 409, "secret-in-use", "mail")
    registry.remove("mail")
    assert client.delete("/secrets/TOKEN").status_code == 204
    assert_problem(client.delete("/secrets/TOKEN"), 422, "unknown-secret", "TOKEN")


def test_wrong_names_sizes_and_bodies_are_told(client):
    """Each with what would be right."""
    assert_problem(client.put("/secrets/no-dash", data=b"x", **OCTETS), 422, "invalid-request", "letters, digits and _")
    assert_problem(
        client.put("/secrets/A", data=b"x" * (LIMITS.secret_bytes + 1), **OCTETS), 413, "too-large", "secret"
    )
    assert_problem(client.put("/secrets/A", json="x"), 415, "unsupported-media-type", "octet-stream")


def test_without_a_key_nothing_is_kept(connections, registry):
    """The next step is named; names can still be listed."""
    bare = Secrets(connections, None)
    with pytest.raises(errors.SecretKeyMissing, match="bananas secret new-key"):
        bare.put("A", b"x")
    with pytest.raises(errors.SecretUnavailable, match="this runner has no key"):
        bare.fetch(["A"])
    assert bare.list() == []


def test_a_missing_secret_is_named_when_a_runner_needs_it(secrets):
    """With the command that sets it."""
    with pytest.raises(errors.SecretUnavailable, match="bananas secret set GONE"):
        secrets.fetch(["GONE"])
