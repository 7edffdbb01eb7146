"""What ``bananas dev`` does when files are edited: deploy again, or restart the process whose code it is.

Decides which change means what; ``bananas.watch`` notices, ``bananas.stack`` deploys and restarts. Everything but the
notice itself runs in the supervisor's loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bananas.watch import Watch, own_sources


class DevLoop:
    """Watches bananas.yaml, the functions' folders and, in a source checkout, our own packages."""

    def __init__(
        self,
        manifest: Path,
        folders: Callable[[], list[Path]],
        *,
        post: Callable[[Callable[[], None]], None],
        redeploy: Callable[[], None],
        restart: Callable[[Sequence[str]], None],
        runners: Sequence[str],
        sources: dict[str, Path] | None = None,
    ) -> None:
        """``folders`` gives the functions' folders as bananas.yaml has them now; ``post`` runs a call in the loop.

        ``sources`` maps package names to folders; None looks for our own.
        """
        self._manifest = manifest
        self._folders = folders
        self._post = post
        self._redeploy = redeploy
        self._restart = restart
        self._sources = own_sources() if sources is None else sources
        #: Which processes run the code of which package.
        self._processes = {
            "bananas": ["gateway", *runners],
            "gateway": ["gateway"],
            "runner": list(runners),
        }
        self._manifest_watch = Watch([manifest.parent], self._noticed, recursive=False)
        self._code_watch: Watch | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._manifest_watch.start()
        self._watch_code()

    def stop(self) -> None:
        """Stop watching."""
        self._manifest_watch.stop()
        if self._code_watch is not None:
            self._code_watch.stop()

    def _watch_code(self) -> None:
        """Watch the folders that there are now, if they are others than before."""
        paths = sorted({path for path in (*self._folders(), *self._sources.values()) if path.is_dir()})
        if self._code_watch is not None:
            if self._code_watch.paths == paths:
                return
            self._code_watch.stop()
            self._code_watch = None
        if paths:
            self._code_watch = Watch(paths, self._noticed)
            self._code_watch.start()

    def _noticed(self, paths: set[Path]) -> None:
        self._post(lambda: self._changed(paths))

    def _changed(self, paths: set[Path]) -> None:
        folders = self._folders()
        if self._manifest in paths or any(path.is_relative_to(folder) for path in paths for folder in folders):
            self._redeploy()
        names: list[str] = []
        for package, folder in self._sources.items():
            if any(path.is_relative_to(folder) for path in paths):
                names += [name for name in self._processes.get(package, []) if name not in names]
        if names:
            self._restart(names)
        if self._manifest in paths:
            self._watch_code()
