"""What every scenario works with: one Redis, the platform with warm functions, and another revision to compare with.

Everything runs with its default settings. Nothing is started before a scenario asks for it; ``close`` ends it all.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from bananas.embedded import EmbeddedRedis
from runner import images
from tests.bench.table import Kind, Round, Row, interleaved
from tests.platform import ROOT, Platform, until

#: What every function of the benchmark does.
NOOP = "def handle(event, context):\n    return event\n"
#: Made by ``make bench``, removed by ``make clean``: environments of the references, trees of other revisions.
CACHE = ROOT / ".bench"
#: The pools of the drains, and how many sandboxes they have.
POOLS = {"ten": 10, "twenty": 20}
POOLS_YAML = "pools:\n" + "".join(f"  {name}: {{concurrency: {n}, memory: 128M}}\n" for name, n in POOLS.items())
WARM_S = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured."""

    rounds: int = 5
    #: Small numbers, for a look whether everything works: its figures mean nothing.
    quick: bool = False
    #: A git revision that the code of this checkout is compared with.
    against: str = ""

    def n(self, full: int, quick: int) -> int:
        """How many of something."""
        return quick if self.quick else full


class Bench:
    """One run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="bn-")
        self.redis = EmbeddedRedis(Path(self._folder.name) / "redis", unix_socket=Path(self._folder.name) / "r")
        self._platforms: list[Platform] = []
        self._sides: dict[str, Platform] = {}
        self._image = ""

    @property
    def image(self) -> str:
        """The base image of this host, which all sandboxes use."""
        if not self._image:
            self._image = images.build_from_host(images.connect()).image
        return self._image

    def database(self, number: int) -> str:
        """The URL of one database of the run's Redis."""
        self.redis.start()
        return f"{self.redis.url}?db={number}"

    def platform(self, root: Path = ROOT, **env: str) -> Platform:
        """A gateway on a database of its own; runners are the scenario's to start."""
        # References have the databases from 10 on.
        url = self.database(len(self._platforms) % 10)
        defaults = {"BANANAS_PYTHON_IMAGE": self.image, "BANANAS_GATEWAY_WORKERS": "0", "BANANAS_LOG_LEVEL": "info"}
        platform = Platform(url, root=root, **{**defaults, **env})
        self._platforms.append(platform)
        platform.connections.commands.flushdb()
        platform.gateway()
        return platform

    @property
    def sides(self) -> dict[str, Platform]:
        """What is compared, by name: this checkout (""), and the other revision if one is asked for."""
        if not self._sides:
            roots = {"": ROOT}
            if self.options.against:
                roots |= {self.options.against: tree_of(self.options.against)}
            for name, root in roots.items():
                platform = self.platform(root)
                platform.runner()
                platform.deploy({"noop": NOOP})
                platform.client.invoke("noop", 1)
                self._sides[name] = platform
        return self._sides

    @property
    def ours(self) -> Platform:
        """The platform of this checkout."""
        return self.sides[""]

    def rows(
        self,
        scenario: str,
        kind: Kind,
        what: str,
        measure: Callable[[Platform], Round],
        references: Mapping[str, Callable[[], Round]] | None = None,
        ratio_of: Literal["p50_ms", "per_s"] = "p50_ms",
        rounds: int | None = None,
    ) -> list[Row]:
        """Measure each side, and in the same rounds the references, the first of which is what ratios are against.

        With another revision to compare with, that is the reference, and the others are left out.
        """
        subjects = {what + (f" @{side}" if side else ""): bound(measure, p) for side, p in self.sides.items()}
        reference = f"{what} @{self.options.against}" if self.options.against else None
        if references and reference is None:
            reference = next(iter(references))
            subjects = {**references, **subjects}
        return interleaved(scenario, kind, subjects, rounds or self.options.rounds, reference, ratio_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for platform in self._platforms:
                platform.close()
        finally:
            self.redis.stop()
            self._folder.cleanup()


def bound(measure: Callable[[Platform], Round], platform: Platform) -> Callable[[], Round]:
    """The measurement of one platform."""
    return lambda: measure(platform)


def wait_warm(platform: Platform, pool: str, number: int) -> None:
    """Until the runners tell of that many idle sandboxes of a pool."""

    def count() -> int:
        return sum(runner.sandboxes.get(f"{pool}/idle", 0) for runner in platform.registry.runners())

    until(lambda: count() >= number, WARM_S, f"{number} warm sandboxes in pool {pool}")


def tree_of(revision: str) -> Path:
    """The code of a revision, unpacked; raises SystemExit for one that git does not know."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--verify", f"{revision}^{{commit}}"], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"git knows no revision {revision!r}: {found.stderr.strip()}")
    tree = CACHE / "trees" / found.stdout.strip()
    if not (tree / "bananas").is_dir():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run([*git, "archive", found.stdout.strip()], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree
