"""Where the gateway may listen, decided before anything starts."""

from __future__ import annotations

import logging
import socket

import pytest

from bananas.errors import ConfigError
from bananas.settings import Settings
from gateway import listen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_nothing_and_says_nothing(host, caplog):
    """The default is safe and quiet, whatever BANANAS_AUTH says."""
    for auth in ("token", "none"):
        listen.check_exposure(Settings(host=host, auth=auth))
    assert caplog.records == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_beyond_loopback_tokens_are_needed_until_somebody_insists(host, caplog):
    """The override is warned of; without it there must be a token, see tests/integration/test_auth.py."""
    assert listen.needs_tokens(Settings(host=host))
    with caplog.at_level(logging.WARNING):
        listen.check_exposure(Settings(host=host, auth="none"))
    [record] = caplog.records
    assert "no authentication" in record.getMessage()


def test_a_missing_redis_is_named_with_the_two_ways_to_get_one():
    """Nobody has to guess what the gateway needs."""
    with pytest.raises(ConfigError, match=r"BANANAS_REDIS_URL is not set.*bananas up"):
        Settings().require_redis_url()


def test_a_port_in_use_is_named(free_port):
    """The second program on a port is told so at once."""
    settings = Settings(port=free_port)
    with listen.bind(settings) as first:
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {free_port} is in use.*BANANAS_PORT"):
            listen.bind(settings)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_client_that_takes_nothing_of_its_answer_is_given_up(free_port):
    """The kernel does that, for each connection that is accepted."""
    with listen.bind(Settings(port=free_port)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * listen.STUCK_S


def test_an_address_that_is_not_ours_is_named(free_port):
    """203.0.113.0/24 is for documentation, so no machine has it."""
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.1"):
        listen.bind(Settings(host="203.0.113.1", port=free_port))
    with pytest.raises(ConfigError, match="BANANAS_HOST"):
        listen.bind(Settings(host="no.such.host.invalid", port=free_port))


def test_the_address_is_printed_as_a_client_writes_it():
    """IPv6 addresses get their brackets."""
    assert listen.url(Settings(host="::1", port=1)) == "http://[::1]:1"
    assert listen.url(Settings()) == "http://127.0.0.1:8080"
