"""The Docker Engine, behind the few calls that sandboxes need. With ``images.py`` the only user of the Docker SDK.

The hardened profile is decided here and nowhere else: no network, no capabilities, no new privileges, uid 65534,
read-only root, sized tmpfs, bounded memory, CPU, processes and descriptors, and an environment of its own. The lists
are allow-lists: nothing from ``bananas.yaml`` reaches the engine except the numbers of ``SandboxProfile``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Ulimit

from bananas import events
from bananas.errors import BananasError, EngineUnavailable, ImageMissing, SandboxStartError
from bananas.protocols import SandboxProfile

#: Everything the engine does for us is quick; an engine that takes longer is in trouble.
ENGINE_TIMEOUT_S = 30
#: For a mere sign of life.
PING_TIMEOUT_S = 10
LABEL_INSTANCE = "bananas.instance"
LABEL_RUNNER = "bananas.runner"
LABEL_POOL = "bananas.pool"
MOUNT = "/run/bananas"
SECRETS = "/run/secrets"
SANDBOX_UID = 65534
#: As many process ids as a kernel has unless told otherwise; Podman keeps its own limit at that.
PODMAN_PROCESSES = 32768
PODMAN_EXIT_S = 10
#: A user that an image may bring: numbers, and not root.
_OWN_USER = re.compile(r"[1-9]\d{0,9}(:[1-9]\d{0,9})?")
_NO_SPACE = "no space left on device"
_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 - inside the sandbox


@dataclass(frozen=True, slots=True)
class Exited:
    """What the engine says of a container that ended."""

    status: int
    oom: bool


@contextmanager
def translate(doing: str, refused: type[BananasError] = EngineUnavailable) -> Iterator[None]:
    """``refused`` is what an error that the engine answers becomes."""
    try:
        yield
    except ImageNotFound as e:
        raise ImageMissing(f"{doing}: {e.explanation}; `bananas images build` makes the default image") from e
    except APIError as e:
        hint = "; make room on the disk of the engine's data (docker system df)" if _NO_SPACE in str(e) else ""
        raise refused(f"{doing}: the engine answered {e.status_code}: {e.explanation}{hint}") from e
    except (DockerException, requests.RequestException, OSError) as e:
        raise EngineUnavailable(f"{doing}: the Docker Engine does not answer ({e}); is it running?") from e


class Engine:
    """One connection pool to the engine named by DOCKER_HOST or the usual socket."""

    def __init__(self, client: Any | None = None) -> None:
        with translate("connecting"):
            self.client: Any = client or docker.from_env(timeout=ENGINE_TIMEOUT_S, max_pool_size=64)
            info = self.client.info()
            self._pulse: Any = docker.from_env(timeout=PING_TIMEOUT_S).api if client is None else client.api
        self._api = self.client.api
        self.left: set[str] = set()  # containers that may run on and are to be removed: they could not be, it was away
        self._cpus = float(info["NCPU"])
        self._runtimes = frozenset(info.get("Runtimes") or ())
        #: Podman's Docker API answers this key, Docker does not.
        self._is_podman = "BuildahVersion" in info
        if info.get("Rootless") and str(info.get("CgroupVersion")) == "1":
            events.ENGINE_NO_LIMITS()

    def ping(self) -> None:
        """Raise EngineUnavailable unless it answers soon, on a new connection: one that stops still answers on those
        that it has."""
        with translate("asking the engine for a sign of life"):
            self._pulse.close()
            self._pulse.ping()

    def facts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the engine says of itself: the answers of ``docker info`` and ``docker version``.

        Raises EngineUnavailable.
        """
        with translate("asking the engine what it is"):
            return self._api.info(), self._api.version()

    def create(
        self,
        profile: SandboxProfile,
        directory: Path,
        command: list[str],
        labels: dict[str, str],
        extra_hosts: dict[str, str],
        *,
        network: str = "none",
        gpus: Sequence[str] = (),
        secrets_volume: str | None = None,
    ) -> str:
        """Create and start a container with ``directory`` at /run/bananas; returns its id.

        ``network`` is ``none`` or what ``open_network`` made; ``gpus`` are ids of devices, as the engine knows them.
        ``secrets_volume``, of ``runner.memory_volumes``, is at /run/secrets instead of memory of its own.
        """
        host = _with_secrets(self._hardened(profile, directory, network, gpus, extra_hosts), secrets_volume, "rw")
        with translate(f"creating a sandbox of pool {profile.pool!r}", SandboxStartError):
            container = self._api.create_container(
                profile.image_id,
                command=command,
                user=f"{SANDBOX_UID}:{SANDBOX_UID}",
                environment=_ENV,
                working_dir="/",
                hostname="sandbox",
                labels=labels,
                host_config=host,
                stdin_open=False,
            )
            container_id = str(container["Id"])
        try:
            self.start(container_id, profile.pool)
        except Exception:
            try:
                self.remove(container_id)
            except EngineUnavailable as e:
                events.SANDBOX_LEFT(error=e)
            raise
        return container_id

    def _hardened(
        self,
        profile: SandboxProfile,
        directory: Path | None,
        network: str,
        gpus: Sequence[str],
        extra_hosts: dict[str, str] | None,
    ) -> dict[str, Any]:
        """The walls around any sandbox. Without a directory its files go into its memory."""
        self._require_runtime(profile)
        tmpfs = self._tmpfs(profile.tmp_mb)
        if directory is None:
            owner = "U" if self._is_podman else f"uid={SANDBOX_UID}"
            tmpfs[MOUNT] = f"size={profile.memory_mb}m,mode=0755,{owner},nosuid,nodev,exec"
        config: dict[str, Any] = self._api.create_host_config(
            network_mode=network,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            read_only=True,
            init=True,
            ipc_mode="private",
            binds={str(directory): {"bind": MOUNT, "mode": "ro"}} if directory is not None else None,
            tmpfs=tmpfs,
            mem_limit=f"{profile.memory_mb}m",
            memswap_limit=f"{profile.memory_mb}m",
            nano_cpus=int(min(profile.cpus, self._cpus) * 1e9),
            pids_limit=profile.pids,
            ulimits=self._ulimits(),
            extra_hosts=extra_hosts or None,
            log_config=LogConfig(type="none"),
            device_requests=_devices(gpus),
            runtime=profile.runtime,
        )
        return config

    def _require_runtime(self, profile: SandboxProfile) -> None:
        """Raise SandboxStartError unless the engine has the OCI runtime; it may have learned of one meanwhile."""
        if profile.runtime is None or profile.runtime in self._runtimes:
            return
        with translate(f"looking for runtime {profile.runtime}"):
            self._runtimes = frozenset(self.client.info().get("Runtimes") or ())
        if profile.runtime not in self._runtimes:
            raise SandboxStartError(
                f"pool {profile.pool!r} has runtime: {profile.runtime}, and the engine at {describe()} has "
                f"{', '.join(sorted(self._runtimes)) or 'no names for any'}; install {profile.runtime} there and name "
                "it under runtimes in the engine's daemon.json, or remove runtime from the pool"
            )

    def create_own(
        self,
        profile: SandboxProfile,
        directory: Path,
        command: Sequence[str],
        env: dict[str, str],
        labels: dict[str, str],
        *,
        network: str,
        gpus: Sequence[str] = (),
        stdin: bool = False,
        secrets_volume: str | None = None,
    ) -> str:
        """Create a container of a user's own image, behind the same walls; returns its id. ``start`` runs it.

        ``command`` stands for the image's entrypoint and command, empty: those. ``env`` comes on top of the image's.
        ``network`` may be ``container:<id>``. The user is the image's own if that is a number and not 0, else 65534.
        """
        host = _with_secrets(self._hardened(profile, directory, network, gpus, None), secrets_volume, "ro")
        with translate(f"creating a container of image {profile.image}", SandboxStartError):
            user = self._api.inspect_image(profile.image_id)["Config"].get("User") or ""
            container = self._api.create_container(
                profile.image_id,
                entrypoint=list(command[:1]) or None,
                command=list(command[1:]) or None,
                user=user if _OWN_USER.fullmatch(user) else f"{SANDBOX_UID}:{SANDBOX_UID}",
                environment={"HOME": "/tmp", **env},  # noqa: S108 - inside the sandbox
                labels={**labels, LABEL_POOL: profile.pool},
                host_config=host,
                stdin_open=stdin,
            )
        return str(container["Id"])

    def create_bare(
        self,
        profile: SandboxProfile,
        command: Sequence[str],
        labels: dict[str, str],
        *,
        network: str = "none",
        gpus: Sequence[str] = (),
    ) -> str:
        """Create a container that shares no files with the runner: /run/bananas is in its memory, for what comes by
        its standard input. Returns its id; ``start`` runs it."""
        with translate(f"creating a sandbox of pool {profile.pool!r}", SandboxStartError):
            container = self._api.create_container(
                profile.image_id,
                command=list(command),
                user=f"{SANDBOX_UID}:{SANDBOX_UID}",
                environment=_ENV,
                working_dir="/",
                hostname="sandbox",
                labels=labels,
                host_config=self._hardened(profile, None, network, gpus, None),
                stdin_open=True,
            )
        return str(container["Id"])

    def start(self, container_id: str, pool: str) -> None:
        """Start a created container. Raises SandboxStartError with the engine's words, or EngineUnavailable."""
        with translate(f"starting a sandbox of pool {pool!r}", SandboxStartError):
            self._api.start(container_id)

    def attach(self, container_id: str, *, stdin: bool = False) -> socket.socket:
        """The standard streams of a created container, as one connection: what is sent is its input; what it prints
        comes in pieces behind a header (see ``runner.streams``). Raises SandboxStartError or EngineUnavailable.
        """
        wanted = {"stdout": 1, "stderr": 1, "stream": 1, "stdin": int(stdin)}
        with translate(f"attaching to container {container_id[:12]}", SandboxStartError):
            raw = self._api.attach_socket(container_id, params=wanted)
            # A copy of the descriptor: ours to close, while the one inside the engine's answer goes with it.
            inner: socket.socket = getattr(raw, "_sock", raw)
            sock = inner.dup()
            raw.close()
            inner.close()
        return sock

    def _tmpfs(self, tmp_mb: int) -> dict[str, str]:
        """What can be written inside: path → mount options. Only /tmp and /run/secrets are the sandbox user's."""
        private, closed = "size=1m,mode=0700,{},nosuid,nodev,noexec", "size=64k,mode=0755,nosuid,nodev,noexec"
        tmpfs = {"/tmp": f"size={tmp_mb}m,mode=1777,nosuid,nodev"}  # noqa: S108 - inside the sandbox
        if not self._is_podman:
            # Empty files take kernel memory, which the size does not bound: no more of them than pages.
            tmpfs["/tmp"] += f",nr_inodes={tmp_mb * 256}"  # noqa: S108
            return {**tmpfs, SECRETS: private.format(f"uid={SANDBOX_UID},nr_inodes=64")}
        # Podman knows neither that nor uid= but U, the container's user; and beside a read-only root it would mount
        # these two open to everybody and as large as half of the memory.
        return {**tmpfs, SECRETS: private.format("U"), "/run": closed, "/var/tmp": closed}  # noqa: S108

    def _ulimits(self) -> list[Ulimit]:
        limits = [Ulimit(name="nofile", soft=1024, hard=1024), Ulimit(name="core", soft=0, hard=0)]
        if self._is_podman:
            # Podman would raise it to a million, which takes a capability that it may lack. Processes are counted per
            # user, over all sandboxes, so what bounds one sandbox is its pids_limit.
            limits.append(Ulimit(name="nproc", soft=PODMAN_PROCESSES, hard=PODMAN_PROCESSES))
        return limits

    def wait_exit(self, container_id: str, timeout_s: int) -> Exited | None:
        """How the container ended, waiting up to ``timeout_s``; None when it still runs or is gone."""
        try:
            self._api.wait(container_id, timeout=timeout_s)
            state = self._api.inspect_container(container_id)["State"]
        except NotFound:
            return None
        except (requests.RequestException, DockerException) as e:
            events.ENGINE_NO_STATUS(container=container_id[:12], error=e)
            return None
        return Exited(int(state["ExitCode"]), bool(state["OOMKilled"]))

    def is_running(self, container_id: str) -> bool:
        """False once it has ended or is gone; raises EngineUnavailable."""
        try:
            with translate(f"looking at container {container_id[:12]}"):
                return bool(self._api.inspect_container(container_id)["State"]["Running"])
        except EngineUnavailable as e:
            if isinstance(e.__cause__, NotFound):
                return False
            raise

    def remove(self, container_id: str) -> None:
        """Kill and remove it; a container that is gone is fine. Raises EngineUnavailable."""
        try:
            self._remove(container_id)
        except EngineUnavailable as e:
            # Podman refuses to kill a container that ends in this moment, and keeps it; once it has ended, it may go.
            if not (self._is_podman and isinstance(e.__cause__, APIError) and e.__cause__.status_code == 500):
                raise
            events.ENGINE_REMOVE_AGAIN(container=container_id[:12], error=e)
            self.wait_exit(container_id, PODMAN_EXIT_S)
            self._remove(container_id)

    def _remove(self, container_id: str) -> None:
        try:
            with translate(f"removing container {container_id[:12]}"):
                self._api.remove_container(container_id, force=True, v=True)
        except (EngineUnavailable, ImageMissing) as e:
            # 404: gone; 409: its removal is under way.
            cause = e.__cause__
            if not isinstance(cause, APIError) or cause.status_code not in (404, 409):
                raise

    def open_network(self, name: str, labels: dict[str, str]) -> list[str]:
        """Make sure that there is a bridge ``name`` whose containers do not see each other; the host's addresses on it.

        The bridge has the network's name, so that firewall rules can name it.
        """
        with translate(f"making the network {name}", SandboxStartError):
            if not self._api.networks(names=[f"^{name}$"]):
                self._create_bridge(name, labels)
            found = self._api.inspect_network(name)
        if found["Labels"] != labels or found["Options"].get("com.docker.network.bridge.enable_icc") != "false":
            raise SandboxStartError(
                f"a network {name} that is not ours is on this engine; remove it: docker network rm {name}"
            )
        return [str(pool["Gateway"]) for pool in found["IPAM"]["Config"] or () if pool.get("Gateway")]

    def _create_bridge(self, name: str, labels: dict[str, str]) -> None:
        options = {"com.docker.network.bridge.name": name, "com.docker.network.bridge.enable_icc": "false"}
        try:
            self._api.create_network(name, driver="bridge", options=options, labels=labels, check_duplicate=True)
        except APIError as e:
            if e.status_code != 409:  # another runner of this machine was faster
                raise

    def remove_network(self, name: str) -> None:
        """Remove it unless something is connected to it, or it is gone. Raises EngineUnavailable."""
        try:
            with translate(f"removing the network {name}"):
                self._api.remove_network(name)
        except (EngineUnavailable, ImageMissing) as e:
            cause = e.__cause__
            if not isinstance(cause, APIError) or cause.status_code not in (403, 404, 409):
                raise

    def sandboxes(self, instance: str) -> dict[str, str]:
        """Every container of this installation, running or not: id → runner."""
        with translate("listing sandboxes"):
            found = self._api.containers(all=True, filters={"label": f"{LABEL_INSTANCE}={instance}"})
        return {str(c["Id"]): str(c["Labels"].get(LABEL_RUNNER, "")) for c in found}

    def ended(self, instance: str, runner: str) -> list[str]:
        """The containers of one runner that do not run: ended, or not started yet."""
        filters = {
            "label": [f"{LABEL_INSTANCE}={instance}", f"{LABEL_RUNNER}={runner}"],
            "status": ["created", "exited", "dead"],
        }
        with translate("listing sandboxes"):
            return [str(c["Id"]) for c in self._api.containers(all=True, filters=filters)]


def _with_secrets(host: dict[str, Any], volume: str | None, mode: str) -> dict[str, Any]:
    """The same with a volume, if there is one, at /run/secrets in place of memory of the container's own."""
    if volume is not None:
        del host["Tmpfs"][SECRETS]
        host["Binds"] = [*(host.get("Binds") or ()), f"{volume}:{SECRETS}:{mode}"]
    return host


def _devices(gpus: Sequence[str]) -> list[DeviceRequest] | None:
    """What asks the engine for NVIDIA devices; it then mounts the driver's files as well."""
    if not gpus:
        return None
    return [DeviceRequest(device_ids=list(gpus), capabilities=[["gpu", "compute", "utility"]])]


def describe() -> str:
    """The engine's address, for messages."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
