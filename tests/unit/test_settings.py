"""What the environment may say, and what is told of what it may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bananas import settings
from bananas.errors import ConfigError
from bananas.settings import Settings


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("PORT", "0", "must be 1 to 65535"),
        ("PORT", "web", "invalid literal"),
        ("GATEWAY_WORKERS", "65", "must be 0 to 64"),
        ("AUTH", "no", "must be one of token, none"),
        ("LEASE_S", "0.1", "must be 0.5 to 3600 seconds"),
        ("GRACE_S", "nan", "must be 0 to 86400 seconds"),
        ("SANDBOX_MEMORY", "63M", "must be at least 64M"),
        ("POOLS", " , ", "must hold at least one name"),
        ("CALLBACK_ALLOW", "10.0.0.5", "'10.0.0.5' is not host:port; write for example 10.0.0.5:8000"),
        ("CALLBACK_ALLOW", "a:1,b:99999", "'b:99999' is not host:port"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(name: str, value: str, right: str) -> None:
    """The variable, the value as it was written, and the rule."""
    with pytest.raises(ConfigError, match=rf"^BANANAS_{name}={re.escape(repr(value))} is not valid: .*{right}"):
        Settings.from_env({f"BANANAS_{name}": value})


def test_a_misspelt_variable_is_refused_with_the_closest_one() -> None:
    """A setting that nothing reads would be worse than none; without a close one, all are listed."""
    with pytest.raises(ConfigError, match="BANANAS_PROT is not a setting of Bananas; did you mean BANANAS_PORT"):
        Settings.from_env({"BANANAS_PROT": "1"})
    with pytest.raises(ConfigError, match=r"; known are BANANAS_AUTH, .*BANANAS_URL"):
        Settings.from_env({"BANANAS_0123456789": "1"})


def test_an_empty_variable_means_the_default() -> None:
    """As compose files write what is not set."""
    assert Settings.from_env({"BANANAS_PORT": "", "PORT": "1", "BANANAS_YES": "1"}) == Settings()


def test_the_state_is_where_the_user_may_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is set, made absolute; else the system's place for root, and the user's state home for others."""
    monkeypatch.chdir(tmp_path)
    assert Settings(state_dir="here").state_path == tmp_path / "here"
    monkeypatch.setattr(settings.os, "geteuid", lambda: 0)
    assert Settings().state_path == Path("/var/lib/bananas")
    monkeypatch.setattr(settings.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().state_path == tmp_path / "bananas"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().state_path == tmp_path / ".local/state/bananas"


@pytest.mark.parametrize(
    ("raw", "address"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80)), ("0.0.0.0:1", ("0.0.0.0", 1))],
)
def test_an_address_is_a_host_and_a_port(raw: str, address: tuple[str, int]) -> None:
    """As they are written everywhere."""
    assert Settings.from_env({"BANANAS_RUNNER_METRICS": raw}).runner_metrics == address


@pytest.mark.parametrize("raw", ["9464", ":9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x"])
def test_what_is_no_address_is_refused(raw: str) -> None:
    """With an example."""
    with pytest.raises(ConfigError, match=r"BANANAS_RUNNER_METRICS.*such as 127\.0\.0\.1:9464"):
        Settings.from_env({"BANANAS_RUNNER_METRICS": raw})


def test_receivers_of_callbacks_are_kept_in_one_spelling() -> None:
    """However an address or a name is written, it is the same place."""
    settings = Settings.from_env({"BANANAS_CALLBACK_ALLOW": "Hooks.Local:80, [FD00:0::5]:443,10.0.0.5:8000"})
    assert settings.callback_allow == ("hooks.local:80", "[fd00::5]:443", "10.0.0.5:8000")
