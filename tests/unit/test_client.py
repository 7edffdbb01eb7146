"""The HTTP client: what it sends, and how it tells what went wrong."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from bananas.client import Client
from bananas.errors import ApiError, ConfigError, GatewayUnreachable, InvalidRequest
from bananas.spec import PoolSpec
from tests.tools.stub_gateway import StubGateway, problem


@pytest.fixture
def client(gateway: StubGateway) -> Iterator[Client]:
    """Talks to it."""
    with Client(gateway.url + "/", patience_s=0) as client:
        yield client


def test_submit_sends_the_payload_untouched_and_only_the_options_given(gateway: StubGateway, client: Client) -> None:
    """Bytes are JSON text already: their numbers and spaces are not rewritten."""
    job = client.submit("hello", b'{"n": 1.10, "big": 123456789012345678901234567890}', priority="low", delay=None)
    assert job["id"] == "job-1"
    assert gateway.bodies == [
        b'{"name":"hello","payload":{"n": 1.10, "big": 123456789012345678901234567890},"priority":"low"}'
    ]
    client.submit("hello", {"ü": [1, None, True]})
    assert json.loads(gateway.bodies[-1]) == {"name": "hello", "payload": {"ü": [1, None, True]}}


@pytest.mark.parametrize("payload", [float("nan"), {1, 2}, object()])
def test_a_payload_that_json_cannot_say_is_refused_here(gateway: StubGateway, client: Client, payload: object) -> None:
    """Nothing is sent."""
    with pytest.raises(InvalidRequest, match="the payload is not JSON"):
        client.submit("hello", payload)
    assert gateway.calls == []


def test_invoke_returns_the_result_text_and_waits_as_long_as_the_function_may(
    gateway: StubGateway, client: Client
) -> None:
    """The function's own timeout is looked up, unless one is given."""
    gateway.deploy("hello")
    assert client.invoke("hello", b"[1, 2]") == b"[1, 2]"
    assert client.invoke("hello", {"a": 1}, timeout_s=3) == b'{"a": 1}'
    assert gateway.calls == ["GET /functions/hello", "POST /functions/hello/invoke", "POST /functions/hello/invoke"]


def test_jobs_are_read_waited_for_cancelled_and_their_logs_read(gateway: StubGateway, client: Client) -> None:
    """Each call has its path; an id cannot lead to another one."""
    gateway.record("j1")
    assert client.job("j1")["status"] == "completed"
    assert client.job("j1", wait_s=2.5)["result"] == {"n": 1}
    assert client.cancel("j1") == {"id": "j1", "status": "cancelled"}
    assert client.logs("j1") == "printed by j1\n"
    with pytest.raises(ApiError):
        client.job("../functions?x")
    assert gateway.calls == [
        "GET /jobs/j1",
        "GET /jobs/j1?wait=2.5",
        "DELETE /jobs/j1",
        "GET /jobs/j1/logs",
        "GET /jobs/..%2Ffunctions%3Fx",
    ]


def test_functions_pools_runtimes_runners_and_bundles(gateway: StubGateway, client: Client) -> None:
    """The lists come without their envelope; a missing bundle is an answer, not an error."""
    gateway.deploy("hello")
    gateway.runners.append({"id": "r1"})
    assert [f["name"] for f in client.functions()] == ["hello"]
    assert client.put_pool("gpu", PoolSpec(concurrency=1)) == {"name": "gpu", "changed": True}
    assert client.pools()[0]["spec"]["concurrency"] == 1
    assert client.runtimes()["python"]["abi"] == "cp311-x86_64-glibc2.36"
    assert client.runners() == [{"id": "r1"}]
    assert not client.has_bundle("b" * 64)
    with pytest.raises(ApiError, match="another digest"):
        client.put_bundle("b" * 64, b"x")
    client.delete_function("hello")
    assert client.functions() == []


def test_a_problem_becomes_an_error_with_its_status_code_and_facts(gateway: StubGateway, client: Client) -> None:
    """Callers may match on the code; people read the detail."""
    gateway.override["GET /functions/x"] = problem(404, "unknown-function", "no function x", hint=3)
    with pytest.raises(ApiError, match="no function x") as caught:
        client.function("x")
    assert (caught.value.status, caught.value.problem["code"], caught.value.details["hint"]) == (
        404,
        "unknown-function",
        3,
    )


def test_an_answer_that_is_not_ours_is_told_as_such(gateway: StubGateway, client: Client) -> None:
    """A proxy's page, an empty body, a redirect: short, and never a traceback."""
    gateway.override["GET /runners"] = (503, b"<html>busy</html>")
    with pytest.raises(ApiError, match="HTTP 503: <html>busy</html>"):
        client.runners()
    gateway.override["GET /runners"] = (200, b"<html>hello</html>")
    with pytest.raises(ApiError, match="something else than JSON"):
        client.runners()
    gateway.override["GET /runners"] = (302, b"")
    with pytest.raises(ApiError, match="HTTP 302"):
        client.runners()


def test_when_nothing_listens_the_error_says_what_to_do(free_port: int) -> None:
    """The address, and both ways on."""
    with Client(f"http://127.0.0.1:{free_port}", patience_s=0) as client, pytest.raises(GatewayUnreachable) as caught:
        client.runners()
    assert str(caught.value) == (
        f"no gateway answers at http://127.0.0.1:{free_port}; start one with `bananas up`, or set BANANAS_URL"
    )


def test_a_name_that_does_not_resolve_says_why() -> None:
    """The reason is the innermost one."""
    with (
        Client("http://gateway.invalid:80", patience_s=0) as client,
        pytest.raises(GatewayUnreachable, match=r"80 \(.*\); start one"),
    ):
        client.runners()


def test_every_call_has_a_deadline() -> None:
    """A gateway that accepts and stays silent does not hang its client."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(server.accept()[0]))
        thread.start()
        with (
            Client(f"http://127.0.0.1:{port}", patience_s=0) as client,
            pytest.raises(GatewayUnreachable, match=r"did not answer POST /functions/x/invoke within 0.2 s"),
        ):
            client.invoke("x", timeout_s=0.2)
        thread.join(10)
        accepted[0].close()


def test_a_proxy_from_the_environment_is_not_asked_for_loopback(
    gateway: StubGateway, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 means this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert client.runners() == []


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://"])
def test_a_wrong_address_is_refused_at_once(url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match=r"is not the address of a gateway; write one such as"):
        Client(url)


def test_an_endless_answer_is_cut_off(gateway: StubGateway, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read into memory is bounded."""
    monkeypatch.setattr("bananas.client_wire.ANSWER_BYTES", 1000)
    gateway.override["GET /runners"] = (200, b" " * 2000)
    with pytest.raises(ApiError, match="answered with more than"):
        client.runners()
