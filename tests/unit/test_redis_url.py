"""What BANANAS_REDIS_URL may say, what its errors tell, and that no message has a secret in it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from bananas.errors import ConfigError, RedisUnavailable
from bananas.redis_client import Connections, safe_url
from bananas.redis_url import parse
from bananas.settings import Settings

SECRETS = ("us3r", "hunter2", "s3ntinel", "k3ypass")


@pytest.mark.parametrize(
    ("url", "shown", "nodes"),
    [
        ("redis://localhost", "redis://localhost:6379/0", [("localhost", 6379)]),
        ("redis://us3r:hunter2@h:1/3", "redis://***@h:1/3", [("h", 1)]),
        ("redis://h?db=4&password=hunter2", "redis://***@h:6379/4", [("h", 6379)]),
        ("rediss://:hunter2@[::1]:7/0?ssl_cert_reqs=none", "rediss://***@[::1]:7/0", [("::1", 7)]),
        ("unix:///run/a b@c.sock?db=1", "unix:///run/a b@c.sock", []),
        ("unix://us3r:hunter2@/run/r.sock", "unix://***@/run/r.sock", []),
        (
            "redis+sentinel://:hunter2@a,b:2,[fe80::1]/main/5?sentinel_username=us3r&sentinel_password=s3ntinel",
            "redis+sentinel://***@a:26379,b:2,[fe80::1]:26379/main/5",
            [("a", 26379), ("b", 2), ("fe80::1", 26379)],
        ),
        ("rediss+sentinel://a/main?ssl_password=k3ypass", "rediss+sentinel://***@a:26379/main/0", [("a", 26379)]),
        ("redis+cluster://a,b:2/0", "redis+cluster://a:6379,b:2", [("a", 6379), ("b", 2)]),
        ("rediss+cluster://us3r:hunter2@a", "rediss+cluster://***@a:6379", [("a", 6379)]),
    ],
)
def test_every_form_is_read_and_shown_without_its_secrets(url: str, shown: str, nodes: list[tuple[str, int]]) -> None:
    """Hosts, service and database help whoever reads a log; users, passwords and options stay out of it."""
    parsed = parse(url)
    assert (parsed.shown, safe_url(url), list(parsed.nodes)) == (shown, shown, nodes)
    assert not [secret for secret in SECRETS if secret in repr(parsed)]
    assert Settings.from_env({"BANANAS_REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("hunter2", "must begin with one of redis://"),
        ("http://:hunter2@h", "must begin with one of redis://"),
        ("redis://", "host 1 must be a name"),
        ("redis://:hunter2@h:99999", "a port of 1 to 65535"),
        ("redis://h/hunter2", "the database must be a number"),
        ("redis://:hun/ter2@h", "%2F"),
        ("redis://:hun?hunter2@h", "%3F"),
        ("redis://:hun#hunter2@h", "%23"),
        ("redis://:hun@hunter2@h", "%40"),
        ("redis://:hunter2@h\n", "line break"),
        ("redis://:hunter2@a,b", r"redis\+sentinel:// or redis\+cluster://"),
        ("redis://h?password=x&hunter2", "option 2 after the"),
        ("redis://h?socket_timeout=1", "known are username, password, db"),
        ("redis://h?db=", "db has no value"),
        ("redis://h?db=1&db=2", "db is given twice"),
        ("redis://h?ssl_ca_certs=/x", "begin with rediss"),
        ("rediss://h?ssl_ca_cert=/x", "did you mean ssl_ca_certs"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false"),
        ("rediss://h?ssl_cert_reqs=maybe", "none, optional or required"),
        ("unix://run/redis.sock", "absolute path"),
        ("redis+sentinel://:hunter2@a,b", "the name of the master"),
        ("redis+sentinel://a/main/0/1", "too many /"),
        ("redis+sentinel://a,,b/main", "host 2 must be"),
        ("redis+cluster://a/1", "only database 0"),
        ("redis+cluster://" + ",".join(f"h{n}" for n in range(51)), "51 hosts"),
    ],
)
def test_what_is_wrong_with_a_url_is_told_without_quoting_it(url: str, why: str) -> None:
    """The variable, the mistake and the right form; never a piece that may be a password."""
    with pytest.raises(ConfigError, match=f"BANANAS_REDIS_URL.*{why}") as caught:
        Settings.from_env({"BANANAS_REDIS_URL": url})
    assert "hunter2" not in str(caught.value) + safe_url(url)
    assert "://" in str(caught.value)
    with pytest.raises(ConfigError):
        Connections(url)


@given(st.text(min_size=1, max_size=30))
def test_a_password_that_was_not_escaped_is_never_shown(password: str) -> None:
    """Whatever it is made of, and whether the URL is then right, wrong or something else."""
    secret = f"Zq7{password}Zq7"
    for url in (
        f"redis://:{secret}@h/0",
        f"redis+sentinel://u:x@a/m?sentinel_password={secret}",
        f"unix://:{secret}@/s",
    ):
        assert "Zq7" not in safe_url(url)
        assert "Zq7" not in problem(url)


def problem(url: str) -> str:
    try:
        return parse(url).shown
    except ConfigError as e:
        return str(e)


def test_certificates_must_be_readable_before_anything_starts(tmp_path: Path) -> None:
    """Told at the start, not at the first connection; the command line does not need them."""
    settings = Settings.from_env({"BANANAS_REDIS_URL": f"rediss://:hunter2@h?ssl_ca_certs={tmp_path}/ca.pem"})
    with pytest.raises(ConfigError, match=r"rediss://\*\*\*@h:6379/0: ssl_ca_certs='.*/ca.pem' cannot be read"):
        settings.require_redis_url()
    with pytest.raises(ConfigError, match="cannot be read"):
        Connections(settings.redis_url)


@pytest.mark.parametrize(
    "error",
    [
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("Error running script (call to f_1): @user_script:1: -MISCONF Errors writing to the AOF file"),
        ClusterDownError("The cluster is down"),
        TryAgainError("Multiple keys request during rehashing of slot"),
        MasterDownError("Link with MASTER is down"),
        AskError("1750 h:7"),
        MovedError("1750 h:7"),
        NoPermissionError("this user has no permissions to run the 'eval' command"),
        AuthenticationError("invalid username-password pair or user is disabled."),
    ],
    ids=lambda error: str(error)[:12],
)
def test_whatever_a_failover_or_a_cluster_answers_is_redis_unavailable(error: Exception) -> None:
    """Callers try again; none of it is a fault of theirs."""
    connections = Connections("redis://h")
    with pytest.raises(RedisUnavailable, match="Redis at redis://h:6379/0 "), connections.guard():
        raise error


def test_our_own_mistakes_are_not_hidden() -> None:
    """An error in a script or a call is a bug, and not a Redis that is away."""
    with pytest.raises(ResponseError), Connections("redis://h").guard():
        raise ResponseError("wrong number of arguments")


def test_a_server_that_repeats_the_password_does_not_get_it_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Some answer AUTH with what they were sent; neither the message nor the traceback has it then."""
    try:
        with Connections("redis://:hunt%65r2@h").guard():
            raise AuthenticationError("unknown command 'AUTH', with args beginning with: 'hunter2'")
    except RedisUnavailable:
        logging.getLogger("test").exception("Redis is away")
    assert "'***'" in caplog.text
    assert "hunter2" not in caplog.text
