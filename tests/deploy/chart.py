"""The Helm chart, rendered by Helm itself without a cluster, as objects to look at; and the values it is tried with."""

from __future__ import annotations

import functools
import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import helm_python
import yaml

from tests.platform import ROOT

FOLDER = ROOT / "deploy/helm/bananas"
RELEASE = "prod"
NAMESPACE = "faas"
DIGEST = "sha256:" + "0123456789abcdef" * 4

_OWN_REDIS = {"valkey": {"enabled": False}, "redis": {"existingSecret": "our-redis"}}
_NODE = {"engine": {"type": "node"}}
#: Every choice that changes what is made, at least once.
MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "node engines, one runner each": {"runner": {"kind": "DaemonSet", **_NODE}},
    "node engines, other paths": {
        "runner": {"engine": {"type": "node", "node": {"socket": "/run/docker.sock", "stateDir": "/srv/bananas"}}}
    },
    "sidecar on every node": {"runner": {"kind": "DaemonSet", "nodeSelector": {"faas": "yes"}}},
    "sidecar with a volume": {
        "runner": {"engine": {"sidecar": {"persistence": {"enabled": True, "storageClass": "fast"}}}}
    },
    "an image of sandboxes": {"runner": {"pythonImage": "registry.example.com/python:3.12.7-slim"}},
    "the same on node engines": {"runner": {"pythonImage": "python:3.12.7-slim", **_NODE}},
    "sentinels": {
        "valkey": {"enabled": False},
        "redis": {
            "url": "rediss+sentinel://u:p@a,b,c/main?ssl_ca_certs=/etc/bananas/redis-tls/ca.crt",
            "tlsSecret": "ca",
        },
        "networkPolicy": {"redisTo": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "redisPorts": [6379, 26379]},
    },
    "secrets of one's own": {
        **_OWN_REDIS,
        "secretKey": {"existingSecret": "our-key"},
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"create": False, "name": "ours"},
    },
    "our password, no key": {"valkey": {"existingSecret": "our-valkey"}, "secretKey": {"create": False}},
    "ingress and no tokens": {
        "auth": "none",
        "hosts": ["bananas.example.com", "bananas.example.org"],
        "gateway": {
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "hosts": ["bananas.example.com", "bananas.example.org"],
                "tlsSecret": "tls",
                "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "64m"},
            },
            "service": {"port": 80, "type": "LoadBalancer"},
        },
    },
    "scaled by KEDA": {
        "gateway": {"autoscaling": {"enabled": True}},
        "runner": {"autoscaling": {"enabled": True}, "pools": ["gpu", "default"], "metrics": {"enabled": True}},
        "serviceMonitor": {"enabled": True, "tokenSecret": {"name": "scrape"}, "labels": {"release": "prometheus"}},
        "networkPolicy": {"metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]},
    },
    "scaled by an adapter": {"runner": {"autoscaling": {"enabled": True, "kind": "hpa"}, "pools": ["gpu"]}},
    "runners of another kind": {
        **_OWN_REDIS,
        "gateway": {"enabled": False},
        "fullnameOverride": "gpu",
        "runner": {
            "pools": ["gpu"],
            "graceSeconds": 7200,
            "extraEnv": {"BANANAS_GPUS": "0,1", "TZ": "Europe/Berlin"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            **_NODE,
        },
    },
    "gateways alone": {**_OWN_REDIS, "runner": {"enabled": False}, "gateway": {"graceSeconds": 300, "replicas": 1}},
    "an image by its digest": {"image": {"repository": "registry.example.com:5000/faas/app", "digest": DIGEST}},
    "open and small": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "valkey": {"persistence": {"enabled": False, "size": "1Gi"}},
        "gateway": {"replicas": 1, "podAnnotations": {"a": "b"}},
        "runner": {"replicas": 1},
    },
}


def install(values: dict[str, Any] | None = None, release: str = RELEASE) -> tuple[list[dict[str, Any]], str]:
    """What one install would make and say: every object, and NOTES. Raises helm_python.HelmError as Helm would."""
    with helm_python.Chart.load(FOLDER) as chart:
        texts = chart.render(values, name=release, namespace=NAMESPACE)
    manifests = [text for path, text in texts.items() if path.endswith(".yaml")]
    objects = [each for text in manifests for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]
    return objects, "".join(text for path, text in texts.items() if path.endswith("NOTES.txt"))


@functools.cache
def _installed(values: str, release: str) -> tuple[list[dict[str, Any]], str]:
    return install(json.loads(values), release)


def render(values: dict[str, Any] | None = None, release: str = RELEASE) -> list[dict[str, Any]]:
    """Every object, to be looked at and not changed: rendered once for each of the values."""
    return _installed(json.dumps(values or {}), release)[0]


def notes(values: dict[str, Any] | None = None) -> str:
    """What Helm says after that install."""
    return _installed(json.dumps(values or {}), RELEASE)[1]


def kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] in kinds]


def workloads(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What starts pods, but for the pod of `helm test`."""
    return kind(objects, "Deployment", "StatefulSet", "DaemonSet")


def component(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The workload of gateway, runner or valkey."""
    [found] = [each for each in workloads(objects) if labels(each)["app.kubernetes.io/component"] == name]
    return found


def labels(found: dict[str, Any]) -> dict[str, str]:
    return dict(found["metadata"]["labels"])


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """(labels, spec) of every pod."""
    for found in workloads(objects):
        yield found["spec"]["template"]["metadata"]["labels"], found["spec"]["template"]["spec"]
    for found in kind(objects, "Pod"):
        yield labels(found), found["spec"]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def env(container: dict[str, Any], secrets: dict[str, str] | None = None) -> dict[str, str]:
    """What the process would find: `secrets` by key stand in for those that a Secret gives, `$(NAME)` filled in."""
    found: dict[str, str] = {}
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            found[entry["name"]] = (secrets or {})[entry["valueFrom"]["secretKeyRef"]["key"]]
            continue
        value = entry["value"]
        for name, text in found.items():
            value = value.replace(f"$({name})", text)
        found[entry["name"]] = value
    return found


def matches(selector: dict[str, Any], pod: dict[str, str]) -> bool:
    """A label selector, as the API defines it; the operators that the chart uses."""
    if any(pod.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for want in selector.get("matchExpressions", []):
        assert want["operator"] == "In", want
        if pod.get(want["key"]) not in want["values"]:
            return False
    return True


def allows(objects: list[dict[str, Any]], source: Any, target: Any, port: int, protocol: str = "TCP") -> bool:
    """Whether the NetworkPolicies let a connection through. Source and target are labels of a pod in the release's
    namespace, `(labels of a namespace, labels of a pod)`, or an address as text.
    """
    found = kind(objects, "NetworkPolicy")
    return _side(found, "egress", "to", source, target, port, protocol) and _side(
        found, "ingress", "from", target, source, port, protocol
    )


def _side(found: list[dict[str, Any]], side: str, peers: str, own: Any, other: Any, port: int, protocol: str) -> bool:
    if not isinstance(own, dict):
        return True  # not a pod of ours: no policy of ours selects it
    chosen = [each["spec"] for each in found if matches(each["spec"]["podSelector"], own)]
    chosen = [spec for spec in chosen if side.capitalize() in spec["policyTypes"]]
    rules = [rule for spec in chosen for rule in spec.get(side) or []]
    return not chosen or any(_rule(rule, peers, other, port, protocol) for rule in rules)


def _rule(rule: dict[str, Any], peers: str, other: Any, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports and not any(each["port"] == port and each["protocol"] == protocol for each in ports):
        return False
    return not rule.get(peers) or any(_peer(peer, other) for peer in rule[peers])


def _peer(peer: dict[str, Any], other: Any) -> bool:
    if isinstance(other, str):
        block = peer.get("ipBlock")
        inside = block and ipaddress.ip_address(other) in ipaddress.ip_network(block["cidr"])
        return bool(inside) and not any(
            ipaddress.ip_address(other) in ipaddress.ip_network(hole) for hole in block.get("except", [])
        )
    if "ipBlock" in peer:
        return False  # addresses of pods are unknown; the tests ask for addresses apart
    namespace, pod = other if isinstance(other, tuple) else (None, other)
    if "namespaceSelector" in peer:
        if namespace is None or not matches(peer["namespaceSelector"], namespace):
            return False
    elif namespace is not None:
        return False
    return matches(peer.get("podSelector", {}), pod)
