"""What the chart has Kubernetes run, run by Docker: each container with user, rights, files, variables and commands as
rendered. There is no cluster here, so what Kubernetes itself does (scheduling, services, policies) is not tried.

The image's files are this checkout's, mounted into the base image; the image itself is built in test_compose.py.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from bananas import deploy, manifest
from bananas.client import Client
from bananas.spec import RuntimeInfo
from tests.deploy.chart import component, containers, env, kind, notes, render
from tests.platform import ROOT, until
from tests.tools.leftovers import Run

READY_S = 60
SOURCE = "def handle(event, context):\n    return [event, open('/run/secrets/WORD').read()]\n"


class Pods:
    """One release, its containers on a network where Valkey has its service's name."""

    def __init__(self, engine: docker.DockerClient, run: Run, base: RuntimeInfo, server: str, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.values: dict[str, Any] = {
            "leaseSeconds": 5,
            "runner": {
                "engine": {"type": "node", "node": {"stateDir": str(folder / "s")}},
                "pythonImage": base.image,
                "sandboxMemory": "512M",
                "graceSeconds": 5,
            },
            "gateway": {"workers": 1, "drainSeconds": 1, "graceSeconds": 5},
        }
        self.objects = render(self.values)
        self.secrets = {
            name: base64.b64decode(text).decode()
            for found in kind(self.objects, "Secret")
            for name, text in found["data"].items()
        }
        self.base = base
        self._run = run
        self._images = {"valkey": server}
        self.network = engine.networks.create(f"bn-{run.id[-8:]}-pods", labels=run.labels)
        self.running: list[Any] = []

    def start(self, name: str) -> Any:
        """The main container of a component, as the kubelet would start it."""
        return self.start_in(component(self.objects, name)["spec"]["template"]["spec"], name)

    def start_in(self, pod: dict[str, Any], name: str, *more: str) -> Any:
        """One container of a pod; ``more`` are further words of its command."""
        [spec] = [each for each in containers(pod) if each["name"] == name]
        context = {**pod["securityContext"], **spec["securityContext"]}
        volumes, tmpfs = self._mounts(pod, spec)
        container = self.engine.containers.create(
            self._images.get(name, self.base.image),
            command=[*spec.get("command", []), *self._args(spec), *more],
            user=f"{context['runAsUser']}:{context.get('runAsGroup', 0)}",
            group_add=[str(context["fsGroup"])] if "fsGroup" in context else [],
            read_only=context["readOnlyRootFilesystem"],
            cap_drop=context["capabilities"]["drop"],
            security_opt=["no-new-privileges:true"],
            environment={**self._of_image(name), **env(spec, self.secrets)},
            volumes=volumes,
            tmpfs=tmpfs,
            hostname=f"prod-bananas-{name}-0",
            labels=self._run.labels,
        )
        self.running.append(container)
        self.network.connect(container, aliases=[f"prod-bananas-{name}"])
        container.start()
        return container

    def _args(self, spec: dict[str, Any]) -> list[str]:
        found = env(spec, self.secrets)
        return [found.get(arg[2:-1], arg) if arg.startswith("$(") else arg for arg in spec.get("args", [])]

    def _of_image(self, name: str) -> dict[str, str]:
        """The ENV lines of deploy/Dockerfile, which finds its packages elsewhere."""
        return {} if name == "valkey" else {"PYTHONPATH": "/opt/bananas:/opt/site", "PYTHONUNBUFFERED": "1"}

    def _mounts(self, pod: dict[str, Any], spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        tmpfs = {mount["mountPath"]: "mode=1777" for mount in spec.get("volumeMounts", [])}
        image = {
            **{str(ROOT / name): f"/opt/bananas/{name}" for name in ("bananas", "gateway", "runner", "bananas_sdk.py")},
            sysconfig.get_path("purelib"): "/opt/site",
            str(ROOT / "deploy/healthcheck.py"): "/opt/healthcheck.py",
        }
        binds = {} if spec["name"] == "valkey" else {path: {"bind": to, "mode": "ro"} for path, to in image.items()}
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for mount in spec.get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            if "hostPath" in volume:
                Path(volume["hostPath"]["path"]).mkdir(exist_ok=True) if mount["name"] == "state" else None
                binds[volume["hostPath"]["path"]] = {"bind": mount["mountPath"], "mode": "rw"}
            elif "secret" in volume:
                group = pod["securityContext"].get("fsGroup", 0)
                binds[str(self._secret(volume, group))] = {"bind": mount["mountPath"], "mode": "ro"}
            else:
                continue
            del tmpfs[mount["mountPath"]]
        return binds, tmpfs

    def _secret(self, volume: dict[str, Any], group: int) -> Path:
        folder = self.folder / f"secret-{group}"
        folder.mkdir(exist_ok=True)
        for item in volume["secret"]["items"]:
            path = folder / item["path"]
            path.write_text(self.secrets[item["key"]])
            if os.geteuid() == 0:
                os.chown(path, 0, group)
                path.chmod(volume["secret"]["defaultMode"])
        return folder

    def address(self, container: Any) -> str:
        container.reload()
        return str(container.attrs["NetworkSettings"]["Networks"][self.network.name]["IPAddress"])

    def said(self, container: Any) -> str:
        return str(container.logs().decode(errors="replace"))

    def probe(self, container: Any, name: str, which: str) -> None:
        """Ask until it answers as the kubelet wants it, or fail with what the container said."""
        [spec] = component(self.objects, name)["spec"]["template"]["spec"]["containers"]
        probe = spec[which]

        def passes() -> bool:
            container.reload()
            assert container.status == "running", self.said(container)
            if "exec" in probe:
                return container.exec_run(probe["exec"]["command"]).exit_code == 0
            ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
            get = probe["httpGet"]
            headers = {each["name"]: each["value"] for each in get["httpHeaders"]}
            try:
                with closing(
                    http.client.HTTPConnection(self.address(container), ports[get["port"]], timeout=5)
                ) as link:
                    link.request("GET", get["path"], headers=headers)
                    return link.getresponse().status == 200
            except OSError:
                return False

        until(passes, READY_S, f"the {which} of {name}: {self.said(container)[-2000:]}")

    def close(self) -> None:
        for container in reversed(self.running):
            container.remove(force=True, v=True)
        self.network.remove()
        for sandbox in self.sandboxes():
            sandbox.remove(force=True)
        # Files in there belong to root, this process perhaps not.
        self.engine.containers.run(
            self.base.image,
            ["python3", "-c", "import shutil; shutil.rmtree('/x/s', ignore_errors=True)"],
            volumes={str(self.folder): {"bind": "/x", "mode": "rw"}},
            network_mode="none",
            remove=True,
        )

    def sandboxes(self) -> list[Any]:
        found = self.engine.containers.list(all=True, filters={"label": "bananas.instance"}, ignore_removed=True)
        prefix = f"{self.folder}/s/"
        return [c for c in found if any(b.startswith(prefix) for b in c.attrs["HostConfig"]["Binds"] or ())]


@pytest.fixture
def release(engine: docker.DockerClient, run: Run, base_image: RuntimeInfo, redis_image: str) -> Iterator[Pods]:
    with tempfile.TemporaryDirectory(prefix="bn-", ignore_cleanup_errors=True) as folder:
        pods = Pods(engine, run, base_image, redis_image, Path(folder))
        try:
            yield pods
        finally:
            print(*(f"--- {c.attrs['Config']['Hostname']}\n{pods.said(c)[-3000:]}" for c in pods.running), sep="\n")
            pods.close()


@pytest.mark.timeout(300)
def test_the_release_runs_as_rendered(release: Pods) -> None:
    """From nothing by the steps of NOTES to a call that reads a secret; then all leave within their grace."""
    release.start("valkey")
    runner = release.start("runner")
    release.probe(runner, "runner", "startupProbe")

    early = release.start("gateway")
    assert early.wait(timeout=READY_S)["StatusCode"] == 1
    assert "there is no API token" in release.said(early)
    token = runner.exec_run(notes_command(release.values)).output.decode().strip()
    assert token.startswith("bn_")

    gateway = release.start("gateway")
    for which in ("startupProbe", "livenessProbe", "readinessProbe"):
        release.probe(gateway, "gateway", which)
    for which in ("livenessProbe", "readinessProbe"):
        release.probe(runner, "runner", which)
    [ready] = kind(release.objects, "Pod")
    asked = release.start_in(ready["spec"], "ready")
    assert asked.wait(timeout=READY_S)["StatusCode"] == 0, release.said(asked)

    with Client(f"http://{release.address(gateway)}:8080", token=token) as client:
        client.put_secret("WORD", b"sesame")
        deploy_one(client, release.folder)
        assert client.invoke("tell", {"n": 1}) == b'[{"n":1},"sesame"]'
    for name, container in (("gateway", gateway), ("runner", runner)):
        pod = component(release.objects, name)["spec"]["template"]["spec"]
        if hook := pod["containers"][0].get("lifecycle"):
            assert container.exec_run(hook["preStop"]["exec"]["command"]).exit_code == 0
        container.stop(timeout=pod["terminationGracePeriodSeconds"])
        assert container.wait(timeout=READY_S)["StatusCode"] == 0, release.said(container)
    assert release.sandboxes() == []


def test_the_image_of_sandboxes_is_made_in_the_pod(release: Pods) -> None:
    """By the init container, out of the app's own image and without any registry; here under another name."""
    objects = render({"runner": {"engine": {"type": "node"}}})
    tag = f"bananas/{release.network.name}:made"
    try:
        pod = component(objects, "runner")["spec"]["template"]["spec"]
        made = release.start_in(pod, "sandbox-image", "--tag", tag, "--keep-default")
        assert made.wait(timeout=READY_S)["StatusCode"] == 0, release.said(made)
        found = release.engine.images.get(tag)
        assert found.labels["org.bananas.runtime"] == "python"
    finally:
        with contextlib.suppress(docker.errors.ImageNotFound):
            release.engine.images.remove(tag, force=True)


def notes_command(values: dict[str, Any]) -> list[str]:
    """What NOTES have run inside the runner."""
    [line] = [line for line in notes(values).splitlines() if "python3 -P -m bananas token create" in line]
    return line.split()


def deploy_one(client: Client, folder: Path) -> None:
    function = folder / "app/tell"
    function.mkdir(parents=True)
    (function / "handler.py").write_text(SOURCE, "utf-8")
    app = folder / "app/bananas.yaml"
    app.write_text("version: 1\nfunctions:\n  tell:\n    path: tell\n    secrets: [WORD]\n", "utf-8")
    deploy.deploy(client, manifest.load(app, {}), None, lambda line: None)
