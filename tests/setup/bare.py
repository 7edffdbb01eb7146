"""The two commands on machines that have nothing: Debian 12 and 13, as root and as an ordinary user.

Minutes long, so no file here is named test_*: ``make test-bare`` asks for this one by name. Needs root, a Docker
Engine, mmdebstrap (installed when missing), a Debian mirror and a package index.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.setup.conftest import MakeMachine
from tests.setup.machines import DOCKER_STORE, PODMAN_STORE, USER_ID, one_line

SUITES = {"bookworm": "3.11", "trixie": "3.13"}
FIRST_S = 120.0
AGAIN_S = 20.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a root needs root")


def note(record: Callable[[str, object], None], name: str, took_s: float) -> None:
    record(name, round(took_s, 1))
    print(f"\n{name}: {took_s:.1f} s")


@pytest.mark.parametrize("suite", SUITES)
def test_the_demo_runs_on_a_bare_root(suite: str, machine: MakeMachine, record_property) -> None:
    """With an engine present: answered calls within 120 s, within 20 s the second time, nothing changed then."""
    bare = machine(suite)
    first = bare.sh("sh scripts/demo")
    assert first.status == 0, first.text
    note(record_property, f"{suite} first", first.took_s)
    said = first.text.index("on this system I am going to install with apt-get: python3")
    assert said < first.text.index("installing system packages") < first.text.index("making .venv")
    assert "Everything is stopped" in first.text
    again = bare.sh("sh scripts/demo")
    assert again.status == 0, again.text
    note(record_property, f"{suite} again", again.took_s)
    assert "going to" not in again.text
    assert "installing" not in again.text
    assert f"Python {SUITES[suite]}" in again.text
    assert first.took_s < FIRST_S
    assert again.took_s < AGAIN_S


@pytest.mark.parametrize("suite", SUITES)
def test_without_an_engine_one_is_installed_started_and_stopped(
    suite: str, machine: MakeMachine, record_property
) -> None:
    """docker.io comes by apt; dockerd is started by hand, said to be left running, and ended by ``down``."""
    bare = machine(suite, with_engine=False, nested=DOCKER_STORE)
    done = bare.sh("sh scripts/demo")
    assert done.status == 0, done.text
    note(record_property, f"{suite} with docker.io", done.took_s)
    assert "docker.io iptables; start the Docker Engine" in done.text
    assert "is left running; make down stops it" in done.text
    pid = bare.must("cat .bananas/dockerd.pid").strip()
    assert bare.must(f"cat /proc/{pid}/comm").strip() == "dockerd"
    bare.must("sh scripts/down")
    assert bare.sh(f"grep -qx dockerd /proc/{pid}/comm").status != 0
    assert "nothing to stop" in bare.must("sh scripts/down")


def test_under_systemd_the_engine_is_a_service_that_is_started_and_stopped(
    machine: MakeMachine, record_property
) -> None:
    """A booted Debian: docker.io is installed and started by systemctl, ended by ``down``, started again by a demo."""
    bare = machine("bookworm+systemd", with_engine=False, nested=DOCKER_STORE, systemd=True)
    done = bare.sh("sh scripts/setup")
    assert done.status == 0, done.text
    note(record_property, "systemd and docker.io", done.took_s)
    for said in ("docker.io iptables; start the Docker Engine", "systemctl start docker", "make down stops it"):
        assert said in done.text
    assert bare.must("systemctl is-active docker").strip() == "active"
    assert bare.sh("test -e .bananas/dockerd.pid").status == 1
    again = bare.sh("sh scripts/setup")
    assert (again.status, "start" in again.text) == (0, False), again.text

    bare.must("sh scripts/down")
    assert bare.sh("systemctl is-active docker docker.socket").text.split() == ["inactive", "inactive"]
    assert "nothing to stop" in bare.must("sh scripts/down")

    demo = bare.sh("sh scripts/demo")
    assert demo.status == 0, demo.text
    assert "on this system I am going to start the Docker Engine" in demo.text
    bare.must("sh scripts/down && systemctl mask docker")
    one_line(bare.sh("sh scripts/setup"), 14, "systemctl could not start docker", "journalctl -u docker")


def test_the_demo_runs_on_podman(machine: MakeMachine, record_property) -> None:
    """Podman's Docker API at its usual socket is used as it is: nothing to set, no Docker installed, nothing left."""
    bare = machine("bookworm+podman", with_engine=False, nested=PODMAN_STORE)
    bare.start_podman()
    done = bare.sh("sh scripts/demo")
    assert done.status == 0, done.text
    note(record_property, bare.must("podman --version").strip(), done.took_s)
    assert "using the engine at unix:///run/podman/podman.sock" in done.text
    assert "docker.io" not in done.text
    again = bare.sh("sh scripts/demo", DOCKER_HOST="unix:///run/podman/podman.sock")
    assert again.status == 0, again.text
    assert "is up to date" in again.text
    assert bare.must("podman ps --all --quiet") == ""
    assert "bananas/python:default" in bare.must("sh scripts/run .venv/bin/bananas images ls")


def test_images_and_isolation_hold_on_podman(machine: MakeMachine) -> None:
    """Base images, the sandbox contract, what can be reached, what crashes: as on Docker, and no container is left."""
    bare = machine("bookworm+podman", with_engine=False, nested=PODMAN_STORE)
    bare.unmask()
    # Where the machine below lacks a capability, no container starts with the limits that Podman gives by itself.
    # Sandboxes bring their own; the other containers of these tests do not.
    bare.must(
        "mkdir -p /etc/containers/containers.conf.d && printf '[containers]\\ndefault_ulimits=%s\\n'"
        """ '["nofile=1024:1024","nproc=9000:9000"]' >/etc/containers/containers.conf.d/limits.conf"""
    )
    bare.start_podman()
    misbehaves = "tests/e2e/test_hostile.py::test_misbehaviour_has_a_clear_error_and_harms_nobody"
    chosen = [
        "tests/integration/test_images.py",
        "tests/contract/test_sandbox_contract.py",
        "tests/e2e/test_isolation.py::test_from_inside_there_is_nothing_to_reach_or_write",
        *(f"{misbehaves}[{how}]" for how in ("exits", "hangs", "segfaults")),
    ]
    done = bare.sh(f"sh scripts/run --dev .venv/bin/python -m pytest -q {shlex.join(chosen)}", CI="1")
    assert done.status == 0, done.text
    assert bare.must("podman ps --all --quiet") == ""


def test_the_demo_runs_on_podman_of_an_ordinary_user(machine: MakeMachine, record_property) -> None:
    """No root anywhere; that such an engine enforces no limits with cgroups of version 1 is said."""
    bare = machine("bookworm+podman", with_engine=False, nested=PODMAN_STORE)
    bare.add_user()
    bare.unmask()
    bare.start_podman("ada")
    done = bare.sh("sh scripts/demo", user="ada")
    assert done.status == 0, done.text
    note(record_property, "rootless podman", done.took_s)
    assert f"using the engine at unix:///run/user/{USER_ID}/podman/podman.sock" in done.text
    version = bare.must("stat -f -c %T /sys/fs/cgroup").strip()
    said = bare.sh("sh scripts/run .venv/bin/python -c 'from runner.docker_driver import Engine; Engine()'", user="ada")
    assert said.status == 0, said.text
    assert ("enforces no limits" in said.text) == (version != "cgroup2fs")


def test_a_user_of_the_docker_group_gets_in_by_sg(machine: MakeMachine, record_property) -> None:
    """A session older than the membership needs no new login, and no right on the socket changes."""
    bare = machine("bookworm+python")
    bare.add_engine_group()
    bare.add_user("docker")
    mode = bare.must("stat -c '%a %U %G' /var/run/docker.sock")
    # uid:gid alone: what a session has that began before the user was put into the group.
    done = bare.sh("sh scripts/demo", user=f"{USER_ID}:{USER_ID}")
    assert done.status == 0, done.text
    note(record_property, "user of the group docker", done.took_s)
    assert "entering the group docker with sg" in done.text
    assert bare.must("stat -c '%a %U %G' /var/run/docker.sock") == mode


def test_a_user_outside_the_docker_group_gets_the_line_to_paste(machine: MakeMachine) -> None:
    """Nothing is changed, and no socket is opened up; after the line is run, the same command works."""
    bare = machine("bookworm+python")
    bare.add_engine_group()
    bare.add_user()
    done = bare.sh("sh scripts/setup", user="ada")
    one_line(done, 18, "may not use the Docker Engine", "usermod -aG docker ada", "then the same command again")
    assert bare.sh("test -e .venv || test -e .bananas").status == 1
    bare.must("usermod -aG docker ada")
    assert bare.sh("sh scripts/setup", user=f"{USER_ID}:{USER_ID}").status == 0


def test_a_user_of_a_bare_machine_gets_one_line_to_paste(machine: MakeMachine) -> None:
    """Without sudo: all that is missing in one line for su; it does what it says, the engine's group included."""
    bare = machine("trixie", with_engine=False)
    bare.add_user()
    done = bare.sh("sh scripts/demo", user="ada")
    line = "su -c 'apt-get update && apt-get install -y python3 python3-venv ca-certificates tzdata curl docker.io"
    one_line(done, 11, line, "usermod -aG docker ada")
    assert bare.sh("test -e .venv || test -e .bananas").status == 1
    command = done.text.rpartition("Run: su -c '")[2].partition("'")[0]
    bare.must(command)
    stopped = bare.sh("sh scripts/demo", user="ada")
    one_line(stopped, 13, "no Docker Engine answers", "dockerd")


def test_sudo_that_asks_nothing_installs_what_is_missing(machine: MakeMachine) -> None:
    """An ordinary user with passwordless sudo needs no line to paste for packages."""
    bare = machine("bookworm+python")
    bare.must("dpkg --purge --force-depends curl && echo 'ada ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ada")
    bare.add_engine_group()
    bare.add_user("docker")
    done = bare.sh("sh scripts/setup", user="ada")
    assert done.status == 0, done.text
    assert "install with apt-get: curl" in done.text
    assert bare.must("stat -c %U .venv/bin/python .bananas/apt.log").split() == ["ada", "ada"]


def test_without_an_engine_the_tests_say_what_did_not_run(machine: MakeMachine) -> None:
    """A set-up that cannot give an engine fails the test command and lists the tests, unless skipping is accepted."""
    bare = machine("bookworm+python", with_engine=False)
    bare.add_user()
    chosen = "tests/unit/test_units.py tests/integration/test_images.py"
    done = bare.sh(f"sh scripts/test {chosen}", user="ada")
    one_line(done, 13, "BANANAS_ALLOW_SKIP=1")
    assert "tests/integration/test_images.py" in done.text.partition("did not run:")[2]
    assert "test_units" not in done.text.partition("did not run:")[2]
    accepted = bare.sh(f"sh scripts/test {chosen}", user="ada", BANANAS_ALLOW_SKIP="1")
    assert accepted.status == 0, accepted.text


def test_a_taken_port_is_named_before_anything_is_changed(machine: MakeMachine) -> None:
    """The line has the process and a free port, and with that port the demo runs."""
    bare = machine("bookworm+python")
    bare.must("setsid python3 -m http.server 8080 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 0")
    bare.must("until curl -s -o /dev/null http://127.0.0.1:8080/; do sleep 0.1; done")
    done = bare.sh("sh scripts/demo")
    one_line(done, 20, "port 8080 on 127.0.0.1 is taken by python3 (process ", "BANANAS_PORT=8081")
    assert bare.sh("test -e .venv").status == 1
    assert bare.sh("sh scripts/demo", BANANAS_PORT="8081").status == 0


def test_a_folder_of_wheels_replaces_the_index(machine: MakeMachine, folder: Path, record_property) -> None:
    """Without any network: set-up, demo, and a function's own requirements come from ``make wheels``."""
    wheels = folder / "wheels"
    wheels.mkdir()
    online = machine("bookworm+python", with_engine=False, shares=[wheels])
    online.must(f"make wheels BANANAS_WHEELS={wheels}")
    offline = machine("bookworm+python", network="none", shares=[wheels])
    one_line(offline.sh("sh scripts/setup", PIP_RETRIES="0"), 17, "pip failed", "BANANAS_WHEELS")
    done = offline.sh("sh scripts/demo", BANANAS_WHEELS=str(wheels))
    assert done.status == 0, done.text
    note(record_property, "offline", done.took_s)
    install = (
        "from pathlib import Path; from bananas.requirements import install;"
        "install(Path('functions/thumbnail/requirements.txt'), 'cp311-x86_64-glibc2.36', Path('packages'))"
    )
    done = offline.sh(f'sh scripts/run .venv/bin/python -c "{install}" && ls packages', BANANAS_WHEELS=str(wheels))
    assert done.status == 0, done.text
    assert "PIL" in done.text.split()
    shutil.rmtree(wheels)


def test_no_python_and_no_rights_says_so(machine: MakeMachine) -> None:
    """A Python that is too old is named with its version; one that does not run is named too."""
    bare = machine("bookworm")
    bare.add_user()
    one_line(bare.sh("sh scripts/setup", user="ada", PYTHON="/bin/false"), 10, "PYTHON=/bin/false does not run")
    bare.must(
        "printf '#!/bin/sh\\necho old 3.9.2 /usr/bin/python3.9\\n' >/usr/bin/python3 && chmod +x /usr/bin/python3"
    )
    one_line(bare.sh("sh scripts/setup", user="ada"), 10, "found Python 3.9.2", "3.11 or newer")
