"""Images of Node: from where they come, what the runner finds, and what is said when there is none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound

from bananas.errors import ConfigError, ImageMissing, SandboxStartError
from bananas.spec import RuntimeInfo
from runner import images, images_cli, nodeimage
from tests.contract.node_host import extract_node

pytestmark = pytest.mark.docker


@pytest.fixture
def tag(engine: docker.DockerClient) -> Iterator[str]:
    """A name for an image that is gone afterwards."""
    name = f"bananas/node-test:{os.urandom(6).hex()}"
    yield name
    with suppress(ImageNotFound):
        engine.images.remove(name, force=True)


def test_an_image_is_built_once_and_found_by_its_runtime(engine: docker.DockerClient, node_image: RuntimeInfo) -> None:
    """Nothing is fetched for what is there; `node22` finds it, and so does whoever asks what can be run."""
    said: list[str] = []
    again = nodeimage.build_node(engine, make_default=False, say=said.append)
    assert (again, len(said)) == (node_image, 1)
    assert "is up to date (Node 22." in said[0]
    found = images.resolve(engine, "node22")
    assert (found.node.partition(".")[0], found.python, found.shim) == ("22", "", "node")
    assert found.abi == f"node22-{found.machine}-{found.libc}"
    assert images.discover(engine)["node22"] == found


def test_the_list_shows_it(
    engine: docker.DockerClient, node_image: RuntimeInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tag, version, origin."""
    row = next(row for row in images.list_images(engine) if row.image_id == node_image.image_id)
    assert (row.node, row.python, row.libc) == (node_image.node, "", node_image.libc)
    assert row.source in nodeimage.SOURCES
    assert images_cli.main(["ls"]) == 0
    assert f"node {node_image.node}" in capsys.readouterr().out


def test_a_node_of_this_host_becomes_an_image(
    engine: docker.DockerClient,
    node_image: RuntimeInfo,
    tag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With `--from host`, whichever is first on PATH."""
    extract_node(engine, node_image, tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    arguments = ["build", "--runtime", "node22", "--from", "host", "--tag", tag, "--keep-default"]
    assert images_cli.main(arguments) == 0
    assert capsys.readouterr().out.split()[::2] == [tag, node_image.abi]
    info = images.describe(engine, tag, "node")
    assert (info.node, info.libc) == (node_image.node, node_image.libc)
    assert engine.images.get(tag).labels["org.bananas.from"] == "host"


def test_what_is_not_there_is_told_for_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without npm, without an index and without a Node: what each of them said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"no Node 22 for an image: npm: no npm is on PATH; wheel: uv failed"):
        nodeimage.fetch("22", None, tmp_path, said.append)
    assert [line.partition(":")[0] for line in said] == ["npm", "wheel", "host"]


def test_a_node_of_another_version_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the path and both versions."""
    (tmp_path / "node").write_text("#!/bin/sh\necho v20.1.0\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"/node is Node 20\.1\.0; 22 is needed"):
        nodeimage.fetch("22", "host", tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match="images are made for Node 22, not 19"):
        nodeimage.fetch("19", None, tmp_path, lambda _: None)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on PATH")
def test_npms_own_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that the registry cannot be reached."""
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"npm: npm failed: (.|\n)*ENOTCACHED"):
        nodeimage.fetch("22", "npm", tmp_path, lambda _: None)


def test_an_image_without_labels_is_asked_what_it_is(
    engine: docker.DockerClient, node_image: RuntimeInfo, base_image: RuntimeInfo, tag: str
) -> None:
    """An image made elsewhere runs one probe; one without Node is refused with the reason."""
    container = engine.containers.create(node_image.image_id, ["node"])
    with tempfile.TemporaryFile() as file:
        for chunk in container.export():
            file.write(chunk)
        container.remove()
        images.import_tar(engine, tag, file, ['CMD ["node"]'])
    info = images.describe(engine, tag, "node")
    assert (info.node, info.abi) == (node_image.node, node_image.abi)
    with pytest.raises(SandboxStartError, match="does not start node"):
        images.describe(engine, base_image.image, "node")


def test_a_missing_image_names_the_command(engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The person is told what to run."""
    monkeypatch.setattr(images, "tags", lambda *_: [])
    with pytest.raises(ImageMissing, match="`bananas images build --runtime node22`, or tag one"):
        images.resolve(engine, "node22")


def test_the_command_refuses_what_does_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    """A source that the language does not have, a version that is not supported."""
    assert images_cli.main(["build", "--runtime", "node20"]) == 1
    assert "node22" in capsys.readouterr().err
    assert images_cli.main(["build", "--runtime", "node22", "--python", "/usr/bin/python3"]) == 1
    assert "--python" in capsys.readouterr().err
