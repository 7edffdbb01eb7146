"""Which files of ours go into a sandbox, and what starts them there: one shim per language.

A kit is a folder that the sandboxes of one runner link their ``shim/`` and ``sdk/`` from. Never talks to the engine;
``sandbox.py`` is the only user. The protocol that every shim speaks is in ``docs/shim-protocol.md``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import bananas_sdk
from bananas import pack
from runner.bundles import link_tree
from runner.docker_driver import MOUNT

_HERE = Path(__file__).parent / "shim"


@dataclass(frozen=True, slots=True)
class Shim:
    """How one language runs in a sandbox."""

    command: list[str]
    #: Our own files, which become ``shim/``.
    files: Path
    #: What user code may import, which becomes ``sdk/``.
    sdk: Path | None
    #: Where the installed requirements go, in the sandbox's directory.
    deps: str


SHIMS = {
    "python": Shim(
        command=["python3", "-I", "-B", "-u", f"{MOUNT}/shim/keeper.py"],
        files=_HERE / "python",
        sdk=Path(bananas_sdk.__file__),
        deps="deps",
    ),
    # The keeper stays small: its heap, and no threads to compile in. The worker's heap follows the sandbox's memory.
    "node": Shim(
        command=["node", "--max-old-space-size=64", "--v8-pool-size=0", f"{MOUNT}/shim/keeper.cjs"],
        files=_HERE / "node",
        sdk=None,
        # Node looks for packages in node_modules beside the code, and beside each folder above.
        deps="node_modules",
    ),
}


class Kit:
    """The files of every shim, once per runner: below one folder, readable for the sandbox's user."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is kept as it is when it exists."""
        self._folder = folder
        if folder.exists():
            return
        for name, shim in SHIMS.items():
            shutil.copytree(shim.files, folder / name / "shim", ignore=shutil.ignore_patterns("__pycache__", "*.md"))
            if shim.sdk is not None:
                (folder / name / "sdk").mkdir()
                shutil.copyfile(shim.sdk, folder / name / "sdk" / shim.sdk.name)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o444)

    def archive(self, name: str) -> bytes:
        """One shim's folders as a compressed tar."""
        return pack.pack(self._folder / name, ignore=()).data

    def link_into(self, name: str, directory: Path) -> None:
        """Make one shim's folders appear in a sandbox's directory."""
        for part in (self._folder / name).iterdir():
            link_tree(part, directory / part.name)
