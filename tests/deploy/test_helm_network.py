"""The chart's NetworkPolicies let through what the product needs, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.chart import MATRIX, allows, component, kind, labels, render

DNS = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"})
STRANGER = {"app": "shop"}
ELSEWHERE = ({"kubernetes.io/metadata.name": "shop"}, {"app": "shop"})
PUBLIC = "93.184.216.34"
METADATA = "169.254.169.254"
PRIVATE = "10.1.2.3"


def pod(objects: list[dict[str, Any]], name: str) -> dict[str, str]:
    found: dict[str, str] = component(objects, name)["spec"]["template"]["metadata"]["labels"]
    return found


@pytest.fixture
def objects() -> list[dict[str, Any]]:
    return render()


def test_the_straight_line_of_a_job_is_open(objects: list[dict[str, Any]]) -> None:
    """Callers reach the gateway's port; gateway and runner reach Valkey and name servers."""
    gateway, runner, valkey = (pod(objects, name) for name in ("gateway", "runner", "valkey"))
    for caller in (STRANGER, ELSEWHERE, PUBLIC):
        assert allows(objects, caller, gateway, 8080)
    for own in (gateway, runner):
        assert allows(objects, own, valkey, 6379)
        assert allows(objects, own, DNS, 53, "UDP")
        assert allows(objects, own, DNS, 53)


def test_nothing_else_gets_in(objects: list[dict[str, Any]]) -> None:
    """Nobody reaches a runner, only gateways and runners reach Valkey, and the gateway has one port."""
    gateway, runner, valkey = (pod(objects, name) for name in ("gateway", "runner", "valkey"))
    for caller in (STRANGER, ELSEWHERE, PUBLIC, PRIVATE, gateway, valkey):
        assert not allows(objects, caller, runner, 8080)
    for caller in (STRANGER, ELSEWHERE, PUBLIC, PRIVATE, valkey):
        assert not allows(objects, caller, valkey, 6379)
    assert not allows(objects, STRANGER, gateway, 22)
    assert not allows(objects, gateway, valkey, 22)


def test_nothing_else_gets_out(objects: list[dict[str, Any]]) -> None:
    """A runner reaches public addresses for `egress`, and no private or metadata address; the others reach nothing."""
    gateway, runner, valkey = (pod(objects, name) for name in ("gateway", "runner", "valkey"))
    assert allows(objects, runner, PUBLIC, 587)
    for target in (METADATA, PRIVATE, "192.168.0.1", "172.20.0.1", "100.64.0.1", STRANGER, ELSEWHERE, gateway):
        assert not allows(objects, runner, target, 80)
    for own in (gateway, valkey):
        for target in (PUBLIC, METADATA, PRIVATE, STRANGER, ELSEWHERE, runner):
            assert not allows(objects, own, target, 443)
    assert not allows(objects, valkey, DNS, 53, "UDP")


def test_callers_of_the_gateway_can_be_named() -> None:
    """With gatewayFrom only these reach it."""
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}]
    objects = render({"networkPolicy": {"gatewayFrom": peers}})
    assert allows(objects, ({"kubernetes.io/metadata.name": "ingress"}, {}), pod(objects, "gateway"), 8080)
    for caller in (STRANGER, ELSEWHERE, PUBLIC):
        assert not allows(objects, caller, pod(objects, "gateway"), 8080)


def test_runners_tell_their_metrics_to_whom_is_named() -> None:
    """Where they are enabled, on their port and to nobody else."""
    objects = render(MATRIX["scaled by KEDA"])
    runner = pod(objects, "runner")
    assert allows(objects, {"app": "prometheus"}, runner, 9464)
    assert not allows(objects, {"app": "prometheus"}, runner, 8080)
    assert not allows(objects, STRANGER, runner, 9464)
    assert (
        component(objects, "runner")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] == 9464
    )
    closed = render()
    assert not allows(closed, {"app": "prometheus"}, pod(closed, "runner"), 9464)
    assert "127.0.0.1:9464" in str(component(closed, "runner"))


def test_a_redis_elsewhere_is_reached_where_it_is() -> None:
    """Gateway and runner reach the addresses and ports that were given, and no other."""
    objects = render(MATRIX["sentinels"])
    for name in ("gateway", "runner"):
        assert allows(objects, pod(objects, name), "10.9.0.7", 6379)
        assert allows(objects, pod(objects, name), "10.9.0.7", 26379)
        assert not allows(objects, pod(objects, name), "10.9.0.7", 22)
        assert not allows(objects, pod(objects, name), "10.8.0.7", 6379)


def test_runners_of_a_second_release_reach_the_first_one_s_valkey(objects: list[dict[str, Any]]) -> None:
    """A release without gateway and Valkey brings runners of another kind in the same namespace."""
    second = pod(render(MATRIX["runners of another kind"], release="gpu"), "runner")
    policies = [
        found for found in kind(objects, "NetworkPolicy") if labels(found)["app.kubernetes.io/component"] == "valkey"
    ]
    assert allows(policies, second, pod(objects, "valkey"), 6379)
