"""Every way to talk to the code in a sandbox, by name: the shims, and the contracts of images that are not ours.

``SandboxProfile.shim`` names one. The supervisor gives ``Contracts`` to the pools as their factory. Another contract is
another entry in ``of_runner``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bananas.errors import EngineUnavailable, ImageMissing
from bananas.protocols import Sandbox, SandboxFactory, SandboxProfile
from bananas.spec import RuntimeInfo
from runner.contract_exec import ExecFactory
from runner.contract_http import HttpFactory
from runner.helpers import Helpers
from runner.own_container import Workshop


class Contracts:
    """See ``bananas.protocols.SandboxFactory``."""

    def __init__(
        self,
        shims: SandboxFactory,
        others: Mapping[str, SandboxFactory],
        on_missing: Callable[[], None] = lambda: None,
        engine_answers: Callable[[], bool] = lambda: True,
    ) -> None:
        """``shims`` makes whatever ``others`` has no entry for; ``on_missing`` hears of each ImageMissing. While
        ``engine_answers`` says no, the engine is not asked: each call to one that hangs would take half a minute."""
        self._shims = shims
        self._others = others
        self._on_missing = on_missing
        self._engine_answers = engine_answers

    def create(self, profile: SandboxProfile) -> Sandbox:
        """A started stem. Raises SandboxStartError, ImageMissing or EngineUnavailable."""
        if not self._engine_answers():
            raise EngineUnavailable("the Docker Engine does not answer; the runner waits until it does")
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
    engine_answers: Callable[[], bool] = lambda: True,
) -> Contracts:
    """The contracts of a real runner; ``python`` says which image helpers are of."""
    helpers = Helpers(workshop, python)
    others: dict[str, SandboxFactory] = {"http": HttpFactory(workshop, helpers), "exec": ExecFactory(workshop, helpers)}
    return Contracts(shims, others, on_missing, engine_answers)
