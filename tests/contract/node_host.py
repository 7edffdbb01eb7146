"""The Node shim as a subprocess on this host, with the binary out of the image that sandboxes run."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker

from bananas.spec import RuntimeInfo
from runner.shims import SHIMS
from tests.contract.shim_host import ShimHost


def extract_node(engine: docker.DockerClient, image: RuntimeInfo, folder: Path) -> Path:
    """The image's own Node, as a file of this host: both have the same C library."""
    container = engine.containers.create(image.image_id, ["node"])
    try:
        chunks, _ = container.get_archive("/usr/bin/node")
        with tempfile.TemporaryFile() as file:
            for chunk in chunks:
                file.write(chunk)
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                tar.extract("node", folder, filter="data")
    finally:
        container.remove()
    (folder / "node").chmod(0o755)
    return folder / "node"


class NodeHost(ShimHost):
    """See ShimHost; ``source`` is ``code/handler.js``."""

    def __init__(
        self,
        node: Path,
        source: str = "",
        *,
        files: dict[str, str] | None = None,
        egress: Sequence[dict[str, Any]] = (),
    ) -> None:
        files = files or {}
        if source:
            files = {"code/handler.js": source, **files}
        super().__init__(files=files, egress=egress)
        (self.root / "code" / "handler.py").unlink()
        (self.root / "shim").unlink()
        (self.root / "shim").symlink_to(SHIMS["node"].files)
        script = str(self.root / "shim" / "keeper.cjs")
        self._command = [str(node), *SHIMS["node"].command[1:-1], script, str(self.root)]
