"""The Helm chart over its matrix of values: what Kubernetes would get is valid, and does what the chart's page says."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from bananas import __version__, metrics
from bananas.secrets import SecretBox
from bananas.settings import Settings
from gateway.auth import SCOPES
from runner.supervisor import EXIT_S
from tests.deploy.chart import (
    FOLDER,
    MATRIX,
    component,
    containers,
    env,
    install,
    kind,
    labels,
    matches,
    notes,
    pods,
    render,
    workloads,
)
from tests.platform import ROOT

#: The oldest that Chart.yaml takes, and the newest that is known.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
#: Kinds of other projects, whose schemas are not among Kubernetes' own.
FOREIGN = {"ScaledObject", "ServiceMonitor", "PodMonitor"}
SECRETS = {"password": "pw", "url": "redis://elsewhere:6379/0"}
#: Of the kubelet's own: it starts, looks and leaves beside what the pod does.
SPARE_S = 10
EVERY = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)


@EVERY
def test_helm_finds_nothing_to_complain_about(values: dict[str, Any]) -> None:
    """`helm lint --strict` has no warning and no error."""
    report = helm_python.lint(FOLDER, values, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    """Each object fits the strict schema of its kind, where an unknown or misspelt field is an error."""
    everything = [json.dumps(found, sort_keys=True) for values in MATRIX.values() for found in render(values)]
    for text in dict.fromkeys(everything):
        found = json.loads(text)
        if found["kind"] not in FOREIGN:
            kubernetes_validate.validate(found, version, strict=True)


@EVERY
def test_every_setting_exists_and_its_value_is_one(values: dict[str, Any]) -> None:
    """What a process finds in its environment starts it: the product's own check of all BANANAS_ variables passes."""
    names = set()
    for _, spec in pods(render(values)):
        for container in containers(spec):
            found = env(container, SECRETS)
            settings = Settings.from_env({name: value for name, value in found.items() if name != "TZ"})
            names |= {name for name in found if name.startswith("BANANAS_")}
            if container["name"] in ("gateway", "runner"):
                assert settings.redis_url
                assert spec["terminationGracePeriodSeconds"] > settings.grace_s
    assert "BANANAS_REDIS_URL" in names


@EVERY
def test_selectors_and_names_lead_to_what_is_made(values: dict[str, Any]) -> None:
    """Workloads, services, budgets, policies and scalers select pods of this chart and no others; names are unique."""
    objects = render(values)
    everyone = [pod for pod, _ in pods(objects)]
    for found in workloads(objects):
        template = found["spec"]["template"]["metadata"]["labels"]
        assert [pod for pod in everyone if matches(found["spec"]["selector"], pod)] == [template]
    for found in kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = found["spec"]
        selector = {"matchLabels": spec["selector"]} if found["kind"] == "Service" else spec.get("selector")
        selected = [pod for pod in everyone if matches(selector or spec["podSelector"], pod)]
        assert [pod["app.kubernetes.io/component"] for pod in selected] == [
            labels(found)["app.kubernetes.io/component"]
        ]
    for found in kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        target = found["spec"]["scaleTargetRef"]
        [scaled] = [each for each in kind(objects, target["kind"]) if each["metadata"]["name"] == target["name"]]
        assert "replicas" not in scaled["spec"], "the chart and the scaler would both set the number"
    identities = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(identities) == len(set(identities))
    assert {found["metadata"]["namespace"] for found in objects} == {"faas"}


@EVERY
def test_every_volume_and_secret_that_is_named_is_there(values: dict[str, Any]) -> None:
    """A mount has its volume; a Secret is made by the chart with that key, or its name was given."""
    objects = render(values)
    made = {found["metadata"]["name"]: found.get("data") or found["stringData"] for found in kind(objects, "Secret")}
    given = re.findall(r'"(our-\w+|ca)"', json.dumps(values))
    for found in workloads(objects):
        spec = found["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        volumes |= {claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for container in containers(spec) for mount in container["volumeMounts"]}
        assert mounted == volumes
        for volume in spec.get("volumes", []):
            if "secret" in volume and (name := volume["secret"]["secretName"]) not in given:
                assert {item["key"] for item in volume["secret"]["items"]} <= set(made[name])
        for container in containers(spec):
            for entry in container.get("env", []):
                if (ref := entry.get("valueFrom", {}).get("secretKeyRef")) and ref["name"] not in given:
                    assert ref["key"] in made[ref["name"]]


@EVERY
def test_probes_ask_what_the_product_answers(values: dict[str, Any]) -> None:
    """Paths are routes that need no token, ports are ports of the container, commands are in the image."""
    for _, spec in pods(render(values)):
        for container in containers(spec):
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for name in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container.get(name, {})
                if get := probe.get("httpGet"):
                    assert SCOPES[f"operate.{get['path'].removeprefix('/')}"] is None
                    assert {"name": "Host", "value": "localhost"} in get["httpHeaders"]
                    assert ports[get["port"]] == int(env(container, SECRETS)["BANANAS_PORT"])
                elif run := probe.get("exec"):
                    program, *words = run["command"]
                    assert program in ("redis-cli", "docker", "python3")
                    if "/opt/healthcheck.py" in words:
                        assert "deploy/healthcheck.py /opt/healthcheck.py" in (ROOT / "deploy/Dockerfile").read_text()
                    elif program == "python3":
                        port = env(container, SECRETS)["BANANAS_RUNNER_METRICS"].rpartition(":")[2]
                        assert f"http://127.0.0.1:{port}/metrics" in words[-1]
                elif probe:
                    assert probe["tcpSocket"]["port"] in ports
            if container["name"] in ("gateway", "runner", "valkey"):
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)


@EVERY
def test_only_the_engine_is_privileged(values: dict[str, Any]) -> None:
    """Every other container has a root it cannot write, no capability, no way to more rights, and no API token."""
    for pod, spec in pods(render(values)):
        assert not spec["automountServiceAccountToken"]
        assert not spec["enableServiceLinks"], "a service called bananas would set BANANAS_PORT"
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(spec)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        is_runner = pod["app.kubernetes.io/component"] == "runner"
        assert is_runner or spec["securityContext"]["runAsNonRoot"]
        for container in containers(spec):
            context = container["securityContext"]
            if context.get("privileged"):
                assert (container["name"], is_runner) == ("engine", True)
                continue
            assert not context["allowPrivilegeEscalation"]
            assert context["readOnlyRootFilesystem"]
            assert context["capabilities"] == {"drop": ["ALL"]}


@EVERY
def test_the_host_is_in_a_pod_only_for_a_node_s_engine(values: dict[str, Any]) -> None:
    """With a sidecar nothing of the node is mounted; with its engine exactly the socket and the state directory."""
    for pod, spec in pods(render(values)):
        host = [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
        is_node = pod["app.kubernetes.io/component"] == "runner" and not any(
            container["name"] == "engine" for container in containers(spec)
        )
        assert [volume["name"] for volume in host] == (["engine-socket", "state"] if is_node else [])


@EVERY
def test_runner_and_engine_see_the_same_path(values: dict[str, Any]) -> None:
    """The state directory is where BANANAS_STATE_DIR says, in the runner and where the engine looks; sockets fit."""
    for pod, spec in pods(render(values)):
        if pod["app.kubernetes.io/component"] != "runner":
            continue
        [runner] = spec["containers"]
        state = env(runner, SECRETS)["BANANAS_STATE_DIR"]
        assert mount_of(runner, "state") == state
        assert len(f"{state}/12345678/12345678/") + 40 < 107
        engines = [container for container in spec["initContainers"] if container["name"] == "engine"]
        [volume] = [volume for volume in spec["volumes"] if volume["name"] == "state"]
        if engines:
            assert mount_of(engines[0], "state") == state
            assert mount_of(engines[0], "engine-socket") == mount_of(runner, "engine-socket") == "/run/engine"
            assert engines[0]["restartPolicy"] == "Always", "it would end before the runner"
            assert engines[0]["args"][0] == "dockerd", "the image's entry point would open a port"
            assert engines[0]["args"][1] == f"--host={env(runner, SECRETS)['DOCKER_HOST']}"
        else:
            assert volume["hostPath"]["path"] == state
            assert mount_of(runner, "engine-socket") == "/var/run/docker.sock"
            assert "DOCKER_HOST" not in env(runner, SECRETS)


def mount_of(container: dict[str, Any], volume: str) -> str:
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == volume]
    return str(mount["mountPath"])


@EVERY
def test_a_pod_may_end_slower_than_what_is_in_it(values: dict[str, Any]) -> None:
    """Kubernetes kills no sooner than after the drain, the whole grace, and the time to hand back and leave."""
    for pod, spec in pods(render(values)):
        name = pod["app.kubernetes.io/component"]
        if name not in ("gateway", "runner"):
            continue
        [container] = spec["containers"]
        grace_s = Settings.from_env(
            {key: value for key, value in env(container, SECRETS).items() if key != "TZ"}
        ).grace_s
        drain_s = 0
        if name == "gateway":
            command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
            drain_s = int(command.removeprefix("import time; time.sleep(").removesuffix(")"))
        own_s = drain_s + grace_s + (3 * EXIT_S if name == "runner" else SPARE_S)
        assert spec["terminationGracePeriodSeconds"] >= own_s + SPARE_S


@EVERY
def test_budgets_never_hold_up_a_node(values: dict[str, Any]) -> None:
    """A budget counts what may be away, at least one, so that a single pod can be moved; sick ones do not count."""
    for found in kind(objects := render(values), "PodDisruptionBudget"):
        assert found["spec"]["maxUnavailable"] >= 1
        assert "minAvailable" not in found["spec"]
        assert found["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        owner = component(objects, labels(found)["app.kubernetes.io/component"])
        assert owner["kind"] in ("Deployment", "StatefulSet"), "others have no scale that maxUnavailable could count"


@EVERY
def test_no_secret_is_where_it_can_be_read(values: dict[str, Any]) -> None:
    """A password is in a Secret, never in another object, an annotation or NOTES."""
    objects = render(values)
    assert kind(objects, "ConfigMap") == []
    hidden = [text for found in kind(objects, "Secret") for text in found.get("stringData", {}).values()]
    hidden += [decoded(text) for found in kind(objects, "Secret") for text in found.get("data", {}).values()]
    open_text = json.dumps([found for found in objects if found["kind"] != "Secret"]) + notes(values)
    assert all(text not in open_text for text in hidden)
    assert not re.search(r"redis[a-z+]*://[^$@\s]+:[^$@\s]+@", open_text)


@EVERY
def test_images_are_of_one_version(values: dict[str, Any]) -> None:
    """Every image has a tag that is not latest, or a digest; ours is the release's."""
    for _, spec in pods(render(values)):
        for container in containers(spec):
            name, _, tag = container["image"].rpartition(":")
            assert name
            assert tag not in ("", "latest")
            is_ours = container["name"] in ("gateway", "runner", "ready")
            assert not is_ours or tag == __version__ or "@sha256" in name
            assert {"requests", "limits"} <= set(container["resources"])


def test_the_chart_is_of_this_release() -> None:
    """Chart, program and image have one version."""
    chart = yaml.safe_load((FOLDER / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gatway": {}}, "gatway"),
        ({"gateway": {"replica": 3}}, "replica"),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"valkey": {"image": "valkey/valkey:latest"}}, "/valkey/image"),
        ({"valkey": {"image": "valkey/valkey"}}, "/valkey/image"),
        ({"auth": "off"}, "/auth"),
        ({"runner": {"graceSeconds": 90000}}, "/runner/graceSeconds"),
        ({"runner": {"pools": ["GPU"]}}, "/runner/pools"),
        ({"runner": {"engine": {"node": {"stateDir": "/" + "x" * 60}}}}, "/runner/engine/node/stateDir"),
        ({"gateway": {"extraEnv": {"x y": "z"}}}, "'x y'"),
        ({"valkey": {"enabled": False}}, "redis.url or redis.existingSecret"),
        ({"redis": {"url": "redis://a"}}, "the bundled Valkey is on"),
        ({"valkey": {"enabled": False}, "redis": {"url": "redis://a", "existingSecret": "b"}}, "one of the two"),
        ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.hosts"),
        ({"runner": {"kind": "DaemonSet", "autoscaling": {"enabled": True}}}, "kind StatefulSet"),
        (
            {"runner": {"kind": "DaemonSet", "engine": {"sidecar": {"persistence": {"enabled": True}}}}},
            "kind StatefulSet",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    """A value that is misspelt, out of its bounds or against another one stops the install and is named."""
    with pytest.raises(helm_python.HelmError, match=re.escape(said)):
        render(values)


def test_keys_that_are_made_fit_what_reads_them() -> None:
    """Secrets made by the chart are a password for a URL and a key that seals; each install has others."""
    seen = set()
    for _ in range(20):
        secrets = {found["metadata"]["name"]: found["data"] for found in kind(install()[0], "Secret")}
        password = decoded(secrets["prod-bananas-valkey"]["password"])
        assert re.fullmatch(r"[A-Za-z0-9]{40}", password)
        key = decoded(secrets["prod-bananas-key"]["secret-key"])
        box = SecretBox.from_settings(Settings(secret_key=key))
        assert box is not None
        assert box.open("N", box.seal("N", b"value")) == b"value"
        seen |= {password, key}
    assert len(seen) == 40
    assert [found["metadata"]["annotations"] for found in kind(render(), "Secret")] == [
        {"helm.sh/resource-policy": "keep"}
    ] * 2


def decoded(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("ascii")


def test_sandboxes_fit_into_their_engine() -> None:
    """What a runner gives to sandboxes is less than its engine's pod may have, by half a gigabyte for the engine."""
    [runner], [engine] = (
        [each for each in containers(spec) if each["name"] == name]
        for name in ("runner", "engine")
        for spec in [component(render(), "runner")["spec"]["template"]["spec"]]
    )
    given_mb = Settings.from_env(env(runner, SECRETS)).sandbox_memory_mb
    assert engine["resources"]["limits"]["memory"] == engine["resources"]["requests"]["memory"]
    assert int(engine["resources"]["limits"]["memory"].removesuffix("Mi")) >= given_mb + 512


def test_valkey_keeps_what_it_takes() -> None:
    """The bundled Valkey writes its append-only file to a volume, evicts nothing, and stays below its memory limit."""
    spec = component(render(), "valkey")["spec"]
    [valkey] = spec["template"]["spec"]["containers"]
    options = dict(zip(valkey["args"][::2], valkey["args"][1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == "$(REDISCLI_AUTH)"
    assert options["--dir"] == mount_of(valkey, spec["volumeClaimTemplates"][0]["metadata"]["name"])
    assert int(options["--maxmemory"].removesuffix("mb")) * 1.5 < 1024
    assert valkey["resources"]["limits"]["memory"] == "1Gi"


def test_runners_scale_by_a_metric_that_the_gateway_has() -> None:
    """KEDA and HPA ask for the oldest waiting job, by the name and the label that /metrics gives it."""
    [measure] = [each for each in metrics.GATEWAY if each.name == "bananas_queue_oldest_seconds"]
    assert measure.labels == ("pool", "priority")
    [keda] = kind(render(MATRIX["scaled by KEDA"]), "ScaledObject")
    [trigger] = keda["spec"]["triggers"]
    assert trigger["metadata"]["query"] == 'max(bananas_queue_oldest_seconds{pool=~"gpu|default"})'
    assert trigger["metricType"] == "Value", "a time is not shared out among the runners"
    [adapter] = kind(render(MATRIX["scaled by an adapter"]), "HorizontalPodAutoscaler")
    [metric] = adapter["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == "bananas_queue_oldest_seconds"
    for found in (keda["spec"], adapter["spec"]):
        assert found.get("minReplicas", found.get("minReplicaCount")) >= 1, "nobody would promote delayed jobs"


def test_the_ingress_leads_to_the_gateway() -> None:
    """Each host goes to the service's port, and TLS covers all of them."""
    objects = render(MATRIX["ingress and no tokens"])
    [ingress] = kind(objects, "Ingress")
    for rule in ingress["spec"]["rules"]:
        [path] = rule["http"]["paths"]
        service = path["backend"]["service"]
        [found] = [each for each in kind(objects, "Service") if each["metadata"]["name"] == service["name"]]
        assert service["port"]["name"] in [port["name"] for port in found["spec"]["ports"]]
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"] for rule in ingress["spec"]["rules"]]


@EVERY
def test_notes_say_what_is_granted(values: dict[str, Any]) -> None:
    """After an install it says how the first token is made, that none is asked for, and what the engine grants."""
    text = notes(values)
    has_gateway = values.get("gateway", {}).get("enabled", True)
    assert ("token create me --scope admin --direct" in text) == (has_gateway and values.get("auth") != "none")
    assert ("WITHOUT AUTHENTICATION" in text) == (values.get("auth") == "none")
    runner = values.get("runner", {})
    is_node = runner.get("engine", {}).get("type") == "node"
    assert ("AS GOOD AS ROOT ON THE NODE" in text) == is_node
    assert ("PRIVILEGED Docker Engine" in text) == (not is_node and runner.get("enabled", True))
