"""Every way to talk to the code in a sandbox, by name: the shims, and the contracts of images that are not ours.

``SandboxProfile.shim`` names one. The supervisor gives ``Contracts`` to the pools as their factory. Another contract is
another entry in ``of_runner``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bananas.errors import ImageMissing
from bananas.protocols import Sandbox, SandboxFactory, SandboxProfile
from bananas.spec import RuntimeInfo
from runner.contract_exec import ExecFactory
from runner.contract_http import HttpFactory
from runner.own_container import Workshop


class Contracts:
    """See ``bananas.protocols.SandboxFactory``."""

    def __init__(
        self, shims: SandboxFactory, others: Mapping[str, SandboxFactory], on_missing: Callable[[], None]
    ) -> None:
        """``shims`` makes whatever ``others`` has no entry for; ``on_missing`` hears of each ImageMissing."""
        self._shims = shims
        self._others = others
        self._on_missing = on_missing

    def create(self, profile: SandboxProfile) -> Sandbox:
        """A started stem. Raises SandboxStartError, ImageMissing or EngineUnavailable."""
        try:
            return self._others.get(profile.shim, self._shims).create(profile)
        except ImageMissing:
            self._on_missing()
            raise

    def over_stdio(self, shims: SandboxFactory) -> None:
        """From now on have ``shims`` make everything: the other contracts share files with the engine."""
        self._shims, self._others = shims, {}


def of_runner(
    shims: SandboxFactory,
    workshop: Workshop,
    python: Callable[[], RuntimeInfo | None],
    on_missing: Callable[[], None] = lambda: None,
) -> Contracts:
    """The contracts of a real runner; ``python`` says which image helpers are of."""
    return Contracts(shims, {"http": HttpFactory(workshop, python), "exec": ExecFactory(workshop)}, on_missing)
