"""Tell ``bananas dev`` what was edited. Decides which files count and that a burst of writes is told once.

Never acts on it: ``bananas.stack`` does. Each ``Watch`` is a thread that ends when told to, or with the process.
"""

from __future__ import annotations

import importlib.util
import sysconfig
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import watchfiles

from bananas.pack import IGNORE

#: A burst of writes is told once it pauses for the first, at the latest after the second; in ms.
STEP_MS, DEBOUNCE_MS = 50, 300
_EDITOR_LEFTOVERS = ("~", ".swp", ".swx", ".tmp", "4913")


class Watch:
    """Calls ``on_change`` with the changed paths, from its own thread."""

    def __init__(
        self, paths: Iterable[Path], on_change: Callable[[set[Path]], None], *, recursive: bool = True
    ) -> None:
        """``paths`` are folders that exist."""
        self.paths = sorted(paths)
        self._on_change = on_change
        self._recursive = recursive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; what changes from now on is told."""
        self._thread.start()

    def stop(self) -> None:
        """Nothing is told any more. Does not wait for the thread."""
        self._stop.set()

    def _run(self) -> None:
        changes = watchfiles.watch(
            *self.paths,
            watch_filter=counts,
            step=STEP_MS,
            debounce=DEBOUNCE_MS,
            stop_event=self._stop,
            recursive=self._recursive,
            raise_interrupt=False,
        )
        for changed in changes:
            if self._stop.is_set():
                return
            self._on_change({Path(path) for _, path in changed})


def counts(_: watchfiles.Change, path: str) -> bool:
    """False for what editors and Python leave beside the sources."""
    parts = Path(path).parts
    return not any(name in IGNORE or name.endswith((".pyc", *_EDITOR_LEFTOVERS)) for name in parts)


def own_sources() -> dict[str, Path]:
    """Our packages that run from a source checkout: name → folder. Empty for an installed wheel, which nobody edits."""
    installed = Path(sysconfig.get_paths()["purelib"]).resolve()
    found = {}
    for name in ("bananas", "gateway", "runner"):
        spec = importlib.util.find_spec(name)
        folder = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if folder is not None and not folder.is_relative_to(installed):
            found[name] = folder
    return found
