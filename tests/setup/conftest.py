"""Fixtures of the tests on bare machines: images of them, made once for a run, and the machines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.setup.machines import (
    EXTRAS,
    PREINSTALLED,
    REPOSITORY,
    Machine,
    build_root,
    default_images,
    restore_images,
)
from tests.tools.leftovers import Run

MakeMachine = Callable[..., Machine]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder with a short path that users inside may pass through."""
    path = Path(tempfile.mkdtemp(prefix="bn-bare-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient, run: Run, folder: Path) -> Iterator[Callable[[str], str]]:
    """``image("trixie")`` is a bare root, ``image("trixie+python")`` one with what an administrator installs."""
    made: list[str] = []
    before = default_images(engine)

    def make(name: str) -> str:
        suite, _, extra = name.partition("+")
        tag = f"{REPOSITORY}:{name.replace('+', '-')}"
        if tag in made:
            return tag
        if not extra:
            build_root(engine, suite, tag, folder)
        else:
            machine = Machine(engine, make(suite), folder / "preinstall", run.labels, with_engine=False, init=False)
            machine.must("apt-get update")
            for packages in (PREINSTALLED, EXTRAS[extra]):
                machine.must(f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages}")
            machine.commit(tag)
            machine.close()
        made.append(tag)
        return tag

    yield make
    restore_images(engine, before)
    for tag in reversed(made):
        engine.api.remove_image(tag, force=True)


@pytest.fixture
def machine(engine: docker.DockerClient, run: Run, folder: Path, image: Callable[[str], str]) -> Iterator[MakeMachine]:
    """Makes machines; all are gone after the test."""
    made: list[Machine] = []

    def make(name: str, **options: object) -> Machine:
        own = Path(tempfile.mkdtemp(prefix="", dir=folder))
        own.chmod(0o755)
        made.append(Machine(engine, image(name), own / "c", run.labels, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
