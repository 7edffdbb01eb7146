"""``bananas token`` and ``bananas secret`` against a real gateway: what they print, refuse and keep."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bananas import secrets
from bananas.cli import main
from bananas.errors import SecretUnavailable
from bananas.redis_client import Connections
from bananas.settings import LIMITS, Settings
from bananas.spec import RateSpec
from bananas.tokens import Tokens
from tests.platform import Platform

pytestmark = pytest.mark.redis

Cli = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def platform(empty_redis: str) -> Iterator[Platform]:
    """One gateway process with a key for secrets, over the shared Redis."""
    with Platform(empty_redis, BANANAS_SECRET_KEY=secrets.new_key()) as platform:
        platform.gateway()
        yield platform


@pytest.fixture
def bananas(
    platform: Platform, redis_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    """Runs one command over an empty Redis; gives code, out and err."""
    monkeypatch.setenv("BANANAS_URL", platform.url)
    monkeypatch.setenv("BANANAS_REDIS_URL", redis_url)

    def run(*args: str, stdin: bytes = b"") -> SimpleNamespace:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(args)
        captured = capfd.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.mark.parametrize("way", [[], ["--direct"]])
def test_a_token_is_printed_once_and_taken_back(bananas: Cli, connections: Connections, way: list[str]) -> None:
    """By the gateway as straight in Redis: the text alone on stdout, then only in lists without it."""
    options = ["--scope", "deploy", "--function", "hello", "--expires-in", "30d", *way]
    made = bananas("token", "create", "ci", *options)
    assert (made.code, made.err, made.out.count("\n")) == (0, "", 1)
    token = Tokens(connections).check(made.out.strip())
    assert (token.name, token.scopes, token.functions) == ("ci", ("deploy",), ("hello",))
    listed = bananas("token", "ls").out
    assert listed.splitlines()[0].split() == ["ID", "NAME", "SCOPES", "FUNCTIONS", "RATE", "ENDS"]
    assert listed.splitlines()[1].split()[:4] == [token.id, "ci", "deploy", "hello"]
    assert "never" not in listed
    assert made.out.strip() not in listed
    assert bananas("token", "rm", token.id).out == f"{token.id} removed\n"
    assert json.loads(bananas("token", "ls", "-o", "json").out) == []


@pytest.mark.parametrize("way", [[], ["--direct"]])
def test_a_token_as_json_says_what_it_may(bananas: Cli, connections: Connections, way: list[str]) -> None:
    """Unless told otherwise it submits jobs of every function, and never ends."""
    made = json.loads(bananas("token", "create", "shop", "-o", "json", *way).out)
    assert Tokens(connections).check(made["token"]).id == made["id"]
    assert (made["name"], made["scopes"], made["functions"]) == ("shop", ["invoke"], [])
    row = bananas("token", "ls").out.splitlines()[1].split()
    assert (row[3], row[-1]) == ("all", "never")
    assert json.loads(bananas("token", "rm", made["id"], "-o", "json").out) == {"removed": [made["id"]]}


@pytest.mark.parametrize("way", [[], ["--direct"]])
def test_a_token_gets_a_rate(bananas: Cli, connections: Connections, way: list[str]) -> None:
    """Jobs per second, minute or hour; what is no rate is refused with what is right."""
    made = bananas("token", "create", "shop", "--rate", "10/s", "--burst", "20", *way)
    assert Tokens(connections).check(made.out.strip()).rate == RateSpec(limit="10/s", burst=20)
    for wrong, said in ((["--rate", "10"], "'10' is not a rate"), (["--burst", "3"], "a burst is of a rate")):
        refused = bananas("token", "create", "shop", *wrong, *way)
        assert refused.code in (1, 2)
        assert said in refused.err
        assert refused.out == ""


def test_a_token_that_is_not_there_cannot_be_removed(bananas: Cli) -> None:
    """The id is named."""
    done = bananas("token", "rm", "0123456789ab")
    assert done.code == 1
    assert "0123456789ab" in done.err


def test_a_secret_is_set_from_stdin_or_a_file(bananas: Cli, tmp_path: Path) -> None:
    """One newline at the end of stdin does not count; the same value again changes nothing."""
    assert bananas("secret", "set", "TOKEN", stdin=b"sesame\n").out == "TOKEN set\n"
    assert bananas("secret", "set", "TOKEN", stdin=b"sesame").out == "TOKEN unchanged\n"
    (tmp_path / "key.pem").write_bytes(b"sesame\n")
    answer = json.loads(bananas("secret", "set", "TOKEN", "--from-file", str(tmp_path / "key.pem"), "-o", "json").out)
    assert (answer["name"], answer["changed"]) == ("TOKEN", True)
    heads, row = bananas("secret", "ls").out.splitlines()
    assert (heads.split(), row.split()[0]) == (["NAME", "SET", "FUNCTIONS"], "TOKEN")
    assert "sesame" not in bananas("secret", "ls", "-o", "json").out
    assert bananas("secret", "rm", "TOKEN").out == "TOKEN removed\n"
    assert json.loads(bananas("secret", "ls", "-o", "json").out) == []


def test_secrets_that_are_removed_are_told_as_json(bananas: Cli) -> None:
    """A script reads what went, and nothing else."""
    for name in ("A", "B"):
        bananas("secret", "set", name, stdin=b"x")
    assert json.loads(bananas("secret", "rm", "A", "B", "-o", "json").out) == {"removed": ["A", "B"]}


def test_what_cannot_be_a_secret_is_refused_before_it_is_sent(bananas: Cli, tmp_path: Path) -> None:
    """Too long, or in a file that is not there: the limit or the path is named, and nothing is set."""
    limit = LIMITS.secret_bytes
    assert bananas("secret", "set", "BIG", stdin=b"x" * limit + b"\n").code == 0
    assert bananas("secret", "rm", "BIG").code == 0
    done = bananas("secret", "set", "BIG", stdin=b"x" * (limit + 1))
    assert done.code != 0
    assert f"more than {limit} bytes" in done.err
    missing = tmp_path / "missing.pem"
    done = bananas("secret", "set", "KEY", "--from-file", str(missing))
    assert done.code != 0
    assert f"{missing} cannot be read: No such file" in done.err
    assert json.loads(bananas("secret", "ls", "-o", "json").out) == []


def test_a_fresh_key_seals(bananas: Cli) -> None:
    """What new-key prints is a key, another one each time."""
    first, second = (
        secrets.SecretBox.from_settings(Settings(secret_key=bananas("secret", "new-key").out)) for _ in range(2)
    )
    assert first is not None
    assert second is not None
    sealed = first.seal("A", b"value")
    assert first.open("A", sealed) == b"value"
    with pytest.raises(SecretUnavailable):
        second.open("A", sealed)
