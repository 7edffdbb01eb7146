"""Another Python out of Debian's packages, beside this host's: built, told apart, and used by functions.

Needs mmdebstrap (installed when missing, as root), a Debian mirror and a package index, so no file here is named
test_*: ``make test-bare`` asks for this one by name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bananas import deploy, manifest
from bananas.spec import RuntimeInfo
from runner import debianimage, images
from tests.integration.test_images import USE_THE_LIBRARY
from tests.platform import Platform
from tests.setup.machines import ROOT_S

NAME = "bananas/python:3.13-debian13"
TAG = "bananas/test:debian"
HANDLER = """
import asyncio, sys, markupsafe, markupsafe._speedups
async def handle(event, context):
    asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    return ["%d.%d" % sys.version_info[:2], markupsafe._speedups.__file__.split("/")[-1], str(markupsafe.escape("<"))]
"""
MANIFEST = """
version: 1
functions:
  old: {runtime: python, path: app, handler: handler.handle, requirements: requirements.txt, timeout: 30s}
  new: {runtime: python3.13, path: app, handler: handler.handle, requirements: requirements.txt, timeout: 30s}
"""


@pytest.fixture(scope="module")
def trixie(engine: docker.DockerClient) -> Iterator[RuntimeInfo]:
    """The image of python3.13, under its real name."""
    if not shutil.which("mmdebstrap"):
        install = "apt-get update && apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring"
        subprocess.run(["sh", "-c", install], check=True, timeout=ROOT_S)
    said: list[str] = []
    was_there = images.find(engine, NAME) is not None
    yield debianimage.build(engine, say=said.append)
    assert "Debian trixie" in said[-1]
    if not was_there:
        engine.images.remove(NAME)


def test_the_image_is_told_apart_and_found_by_its_version(engine: docker.DockerClient, trixie: RuntimeInfo) -> None:
    """python3.13 is it, python is still this host's own."""
    assert trixie.image == NAME
    assert (trixie.python, trixie.libc) == ("3.13", "glibc2.41")
    found = images.discover(engine)
    assert found["python3.13"].image_id == trixie.image_id
    assert found["python"].image_id != trixie.image_id
    row = next(row for row in images.list_images(engine) if trixie.image in row.tags)
    assert (row.source, row.python, row.is_default) == ("debian", "3.13", False)
    assert row.size_bytes < 70_000_000


def test_the_same_packages_make_the_same_image(engine: docker.DockerClient, trixie: RuntimeInfo) -> None:
    """Asked again it is kept; forced, every byte of the file system is the same."""
    said: list[str] = []
    assert debianimage.build(engine, say=said.append).image_id == trixie.image_id
    assert said[0].startswith(f"{NAME} is up to date (Debian trixie, Python 3.13.")
    try:
        again = debianimage.build(engine, tag=TAG, force=True, say=said.append)
        layers = [engine.images.get(name).attrs["RootFS"]["Layers"] for name in (again.image, trixie.image)]
        assert layers[0] == layers[1]
    finally:
        engine.images.remove(TAG)


def test_the_whole_standard_library_works_in_it(engine: docker.DockerClient, trixie: RuntimeInfo) -> None:
    """TLS, zones, sqlite, ctypes and the rest, with bytecode, as a user without rights on a read-only root."""
    output = engine.containers.run(
        trixie.image,
        ["python3", "-I", "-c", USE_THE_LIBRARY],
        network_mode="none",
        user="65534:65534",
        read_only=True,
        cap_drop=["ALL"],
        tmpfs={"/tmp": "size=16m,mode=1777"},
        remove=True,
    )
    seen = json.loads(output)
    assert (seen["version"], seen["prefix"], seen["executable"]) == ("3.13", "/usr", "/usr/bin/python3")
    assert (seen["foreign"], seen["packages"]) == ([], [])
    assert (seen["sum"], seen["sql"], seen["libc"], seen["summer_h"]) == (45, 42, 65534, 2.0)
    assert (seen["decimal"], seen["sha"], seen["uuid"], seen["packed"]) == ("0.3", "e3b0c442", 4, [9, 9])
    assert (seen["trusted"], seen["user"], seen["bytecode"]) == (True, "nobody", True)


def test_two_pythons_serve_side_by_side_each_with_its_own_wheels(
    trixie: RuntimeInfo, base_image: RuntimeInfo, redis_url: str
) -> None:
    """Compiled requirements are installed for the runtime of each function, and async handlers work in both."""
    del trixie
    with Platform(redis_url) as platform:
        platform.gateway()
        platform.runner(BANANAS_PYTHON_IMAGE=base_image.image)
        app = platform.folder / "debian"
        (app / "app").mkdir(parents=True)
        (app / "app" / "handler.py").write_text(HANDLER)
        (app / "app" / "requirements.txt").write_text("markupsafe==3.0.2\n")
        (app / "bananas.yaml").write_text(MANIFEST)
        deploy.deploy(platform.client, manifest.load(app / "bananas.yaml", {}), None, lambda line: None)
        host = f"{sys.version_info[0]}{sys.version_info[1]}"
        machine = os.uname().machine
        for name, tag, version in (("old", host, f"{host[0]}.{host[1:]}"), ("new", "313", "3.13")):
            record = platform.client.job(platform.client.submit(name)["id"], wait_s=30)
            assert "left 1 task running, now cancelled: sleep" in platform.client.logs(record["id"])
            assert record["result"] == [version, f"_speedups.cpython-{tag}-{machine}-linux-gnu.so", "&lt;"]


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    """Without mmdebstrap the command names the package, and fails."""
    command = [sys.executable, "-m", "bananas", "images", "build", "--from", "debian"]
    (tmp_path / "uv").symlink_to("/bin/true")
    done = subprocess.run(
        command, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "mmdebstrap is not on PATH" in done.stderr
    assert "apt-get install" in done.stderr
