"""Bare machines for the tests of the set-up: containers made of minimal Debian roots, and nothing else.

A root comes from mmdebstrap with this host's own mirror; no image registry is involved. What reaches the network
inside is what reaches it here: the host's apt options, its CA bundle and pip's settings. The checkout is a fresh clone
in a folder that has the same path for the engine, since sandboxes mount from it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from runner import images

ROOT = Path(__file__).parents[2]
REPOSITORY = "bananas/bare"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CA_BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))
CA_INSIDE = "/etc/host-ca.crt"
ROOT_S = 300
COMMAND_S = 600
#: What an administrator would have installed for an ordinary user.
PREINSTALLED = "python3 python3-venv ca-certificates tzdata curl"
#: Further packages of an image, by the word after its suite. Podman comes with what it recommends, as apt gives it to
#: everybody; Debian's other runtime, crun, starts nothing on hosts with cgroups of version 1.
EXTRAS = {
    "python": "sudo make",
    "systemd": "systemd-sysv dbus",
    "host": "systemd-sysv dbus docker.io iptables redis-server",
    "podman": "--install-recommends podman runc",
}
#: Where the engines keep their images: a file system that can be overlaid has to be there.
DOCKER_STORE, PODMAN_STORE = "/var/lib/docker", "/var/lib/containers"
START_S = 120
USER_ID = 1000
#: A variable in this environment that pip reads and that means something on another machine as well.
_PIP_VARIABLE = re.compile(r"PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT)")


def mirror() -> str:
    """The Debian mirror of this host's apt configuration."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.is_file() and path.suffix in ("", ".list", ".sources"):
            found = re.search(r"^(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(\S+/debian/?)\s*", path.read_text(), re.MULTILINE)
            if found:
                return found[1]
    raise AssertionError("this host's apt configuration names no Debian mirror")


def apt_options() -> list[Path]:
    """The host's apt settings that decide whether and how a mirror is reached."""
    wanted = re.compile(r"^Acquire::(Check|http|https|Retries)", re.MULTILINE | re.IGNORECASE)
    return [path for path in sorted(Path("/etc/apt/apt.conf.d").glob("*")) if wanted.search(path.read_text())]


def build_root(client: docker.DockerClient, suite: str, tag: str, folder: Path) -> None:
    """Import a minimal root as ``tag``: dpkg, apt and what is essential, no Python, no curl, no certificates."""
    if not shutil.which("mmdebstrap") or not KEYRING.exists():
        install = "apt-get update && apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring"
        subprocess.run(["sh", "-c", install], check=True, timeout=ROOT_S)
    tar = folder / f"{suite}.tar"
    options = [f"--aptopt={line}" for path in apt_options() for line in path.read_text().splitlines() if line.strip()]
    command = ["mmdebstrap", "--variant=apt", f"--keyring={KEYRING}", *options, suite, str(tar)]
    subprocess.run([*command, f"deb {mirror()} {suite} main"], check=True, timeout=ROOT_S, capture_output=True)
    with tar.open("rb") as file:
        images.import_tar(client, tag, file, [])
    tar.unlink()


@dataclass(frozen=True)
class Done:
    """How a command inside ended."""

    status: int
    text: str
    took_s: float


class Machine:
    """A running container with a fresh clone of this repository at ``checkout``."""

    def __init__(
        self,
        client: docker.DockerClient,
        image: str,
        checkout: Path,
        labels: dict[str, str],
        *,
        with_engine: bool = True,
        nested: str = "",
        systemd: bool = False,
        init: bool = True,
        network: str = "bridge",
        shares: Sequence[Path] = (),
    ) -> None:
        """``with_engine`` lends it the host's engine; ``nested`` lets it run one of its own, which stores there.

        ``systemd`` boots it (with ``nested`` only). ``init`` is the engine's own init, of which an image made from the
        machine would keep an empty file. ``shares`` are further folders that it sees at their own paths.
        """
        self.checkout = checkout
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True, timeout=60)
        binds = {str(path): {"bind": str(path), "mode": "rw"} for path in (checkout, *shares)}
        if with_engine:
            binds["/var/run/docker.sock"] = {"bind": "/var/run/docker.sock", "mode": "rw"}
        for path in apt_options():
            binds[str(path)] = {"bind": f"/etc/apt/apt.conf.d/{path.name}", "mode": "ro"}
        self._env = {name: value for name, value in os.environ.items() if _PIP_VARIABLE.fullmatch(name)}
        bundle = next((path for path in CA_BUNDLES if path.exists()), None)
        if bundle:
            binds[str(bundle)] = {"bind": CA_INSIDE, "mode": "ro"}
            self._env |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), CA_INSIDE)
        options: dict[str, Any] = {}
        if nested:
            # Not ``privileged``: hosts that are machines in a sandbox themselves lack this one capability.
            options = {"cap_add": ["ALL"], "cap_drop": ["SYS_RESOURCE"]}
            options["security_opt"] = ["seccomp=unconfined", "apparmor=unconfined"]
            options["mounts"] = [docker.types.Mount(nested, None)]
            binds["/sys/fs/cgroup"] = {"bind": "/sys/fs/cgroup", "mode": "rw"}
        command = ["sleep", "infinity"]
        if systemd:
            command = ["/sbin/init"]
            options |= {"environment": {"container": "docker"}, "tmpfs": {"/run": "mode=755", "/run/lock": ""}}
        self._container: Container = client.containers.create(
            image, command, init=init and not systemd, network_mode=network, labels=labels, volumes=binds, **options
        )
        try:
            self._container.start()
            if systemd:
                self._wait_for_boot()
        except BaseException:
            self.close()
            raise

    def cut_power(self) -> None:
        """End everything in a booted machine at once, and boot it again; its disk stays."""
        self._container.kill()
        self._container.wait(timeout=START_S)
        self._container.start()
        self._wait_for_boot()

    def _wait_for_boot(self) -> None:
        self.until("systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'")

    def sh(self, script: str, *, user: str = "root", **env: str) -> Done:
        """Run a script in the checkout, without a terminal. ``user`` is a name, or ``uid:gid`` for no other groups."""
        settings = {**self._env, **env}
        command = ["timeout", str(COMMAND_S), "sh", "-c", script]
        began_s = time.monotonic()
        status, out = self._container.exec_run(command, user=user, environment=settings, workdir=str(self.checkout))
        return Done(status, out.decode(errors="replace"), time.monotonic() - began_s)

    def must(self, script: str) -> str:
        """Run a script as root that has to work; returns its output."""
        done = self.sh(script)
        assert done.status == 0, done.text
        return done.text

    def until(self, test: str) -> None:
        """Return when the shell command ``test`` works, which has to be within START_S seconds."""
        self.must(f"timeout {START_S} sh -c {shlex.quote(f'until {test}; do sleep 0.1; done')}")

    def unmask(self) -> None:
        """Take away what Docker lays over /proc and /sys of a container, and a machine does not.

        Under it a user's namespace may have no /proc of its own, and no network can be made.
        """
        masks = """awk '$2 ~ "^/(proc|sys/firmware)" && $2 != "/proc" {print $2}' /proc/self/mounts"""
        self.must(f"{masks} | xargs -r -n 1 umount && mount --make-rshared /")

    def start_podman(self, user: str = "root") -> None:
        """Start Podman's Docker API at its usual socket, of the machine or of this user; it ends with the machine."""
        home = "/run" if user == "root" else f"/run/user/{USER_ID}"
        self.must(f"mkdir -p {home}/podman && {{ [ {user} = root ] || chown -R {user}: {home}; }}")
        # No systemd in here, so it has to be told who makes the groups of processes.
        service = "podman --runtime runc --cgroup-manager cgroupfs system service --time=0"
        address = f"unix://{home}/podman/podman.sock"
        done = self.sh(f"setsid {service} {address} >/tmp/podman-{user}.log 2>&1 </dev/null & sleep 0", user=user)
        assert done.status == 0, done.text
        self.until(f"curl -fs -o /dev/null --unix-socket {home}/podman/podman.sock http://podman/_ping")

    def add_user(self, *groups: str) -> None:
        """The user ada (1000), owner of the checkout, listed in these groups, with an account that has not ended."""
        # A bare root may have no useradd. Without a line in shadow, sudo takes the account for a locked one.
        self.must(
            f"echo ada:x:{USER_ID}:{USER_ID}::/home/ada:/bin/sh >>/etc/passwd && echo ada:x:{USER_ID}: >>/etc/group"
            " && echo 'ada:*:20000:0:99999:7:::' >>/etc/shadow"
            " && for file in subuid subgid; do echo ada:100000:65536 >>/etc/$file; done"
            f" && mkdir -p /home/ada && chown -R {USER_ID}:{USER_ID} /home/ada {self.checkout}"
        )
        for group in groups:
            self.must(f"usermod --append --groups {group} ada")

    def add_engine_group(self) -> None:
        """The group docker with the id that the host's socket has."""
        self.must("groupadd --gid $(stat -c %g /var/run/docker.sock) docker")

    def commit(self, tag: str) -> None:
        """Keep what was installed as an image."""
        repository, _, name = tag.partition(":")
        self._container.commit(repository, name)

    def close(self) -> None:
        """Remove the container, its volume and its checkout."""
        self._container.remove(force=True, v=True)
        shutil.rmtree(self.checkout)


def default_images(client: docker.DockerClient) -> dict[str, str]:
    """Tag → image id of the base images; demos on the host's engine move them."""
    return {
        tag: image["Id"]
        for image in client.api.images(name="bananas/python")
        for tag in image["RepoTags"] or []
        if tag.startswith("bananas/python:")
    }


def restore_images(client: docker.DockerClient, before: dict[str, str]) -> None:
    """Put the tags back to where they were."""
    for tag in default_images(client):
        if tag not in before:
            client.api.remove_image(tag, force=True)
    for tag, image_id in before.items():
        repository, _, name = tag.partition(":")
        client.api.tag(image_id, repository, name)


def one_line(done: Done, code: int, *parts: str) -> None:
    """Assert that a script ended with ``code`` and one last line that holds ``parts``, and with no traceback."""
    last = done.text.strip().splitlines()[-1] if done.text.strip() else ""
    missing: Sequence[str] = [part for part in parts if part not in last]
    assert (done.status, missing) == (code, []), done.text
    assert "Traceback" not in done.text
