"""What several contract tests need and is slow to make."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from bananas.spec import RuntimeInfo
from tests.contract.node_host import extract_node


@pytest.fixture(scope="session")
def node(engine: docker.DockerClient, node_image: RuntimeInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node of the image, for tests that run the shim as a process of this host."""
    return extract_node(engine, node_image, tmp_path_factory.mktemp("node"))
