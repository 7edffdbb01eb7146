"""Small Python sandboxes of ours that help a container of a user's own image: with its network, or with its secrets.

What runs in them is ours (``shim/http``, ``shim/holder``), but they are sandboxes like any other, because they hear
from code that is not. Secrets get into an image of one's own by a volume in the engine's memory: a helper fills it, and
the container has it at /run/secrets, read-only. So no value is in an environment, on a disk or in what the engine tells
of a container. Called by ``contract_http`` and ``contract_exec``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bananas import events, pack
from bananas.errors import EngineUnavailable, ProtocolError, SandboxDied, SandboxStartError
from bananas.protocols import Binding, HandlerLoadError, SandboxProfile
from bananas.spec import RuntimeInfo
from runner import memory_volumes
from runner.bundles import BundleCache
from runner.ledger import HELPER_MB
from runner.own_container import Workshop
from runner.sandbox import DockerSandbox, DockerSandboxFactory

PIDS, TMP_MB = 32, 1
#: For a helper to take what it is given: it loads a few lines.
BIND_S = 30.0
_SHIM = Path(__file__).parent / "shim"


class Helpers:
    """Makes them, for one runner."""

    def __init__(self, workshop: Workshop, python: Callable[[], RuntimeInfo | None]) -> None:
        """``python`` says which image they are of; None while there is none."""
        self._workshop = workshop
        self._python = python
        #: Names of volumes whose sandboxes are over and that are not removed yet.
        self._left: set[str] = set()
        adapter, holder = (pack.pack(_SHIM / name, ignore=("__pycache__",)) for name in ("http", "holder"))
        #: Digests of their code: of the one that speaks HTTP, and of the one that does nothing.
        self.adapter, self.holder = adapter.digest, holder.digest
        code = {bundle.digest: bundle.data for bundle in (adapter, holder)}
        cache = BundleCache(workshop.directory / "helpers", code.__getitem__)
        shop = workshop
        self._factory = DockerSandboxFactory(shop.engine, cache, shop.directory, shop.labels, shop.access)

    def create(self, profile: SandboxProfile, secrets_volume: str | None = None) -> DockerSandbox:
        """A helper with the network of ``profile``, not bound yet."""
        python = self._python()
        if python is None:
            raise SandboxStartError(
                f"image {profile.image} needs an image of runtime 'python' for the helper beside it; "
                "`bananas images build` makes one"
            )
        small = dataclasses.replace(
            profile,
            image=python.image,
            image_id=python.image_id,
            shim="python",
            gpus=0,
            memory_mb=HELPER_MB,
            pids=PIDS,
            tmp_mb=TMP_MB,
        )
        return self._factory.create(small, secrets_volume)

    def hold(self, helper: DockerSandbox, binding: Binding) -> None:
        """Bind a helper that does nothing: its network is the function's then, its volume has the binding's secrets.

        Raises SandboxStartError: whatever goes wrong here is not the function's fault.
        """
        plain = dataclasses.replace(binding, handler="holder.handle", code=self.holder, deps=None, env={}, calls=1)
        try:
            helper.bind(plain, BIND_S, lambda _: None)
        except (HandlerLoadError, ProtocolError, SandboxDied, TimeoutError) as e:
            raise SandboxStartError(f"the helper beside function {binding.function!r} did not come up: {e}") from e

    def secrets(self, name: str, profile: SandboxProfile, binding: Binding) -> SecretVolume | None:
        """The binding's secrets for a container that is about to be made, None when it has none. ``name`` is unique.

        Whatever fails, nothing is left behind. Errors as of ``create`` and ``hold``.
        """
        if not binding.secrets:
            return None
        shop = self._workshop
        volume = SecretVolume(shop, f"bananas-{name}", self._left)
        try:
            memory_volumes.create(shop.engine, volume.name, shop.labels)
            shop.ledger.make_room(HELPER_MB)
            with shop.gate.place():
                volume.hold(self.create(dataclasses.replace(profile, egress=(), network="none"), volume.name))
            assert volume.helper is not None
            self.hold(volume.helper, binding)
        except BaseException:
            volume.close()
            raise
        return volume


class SecretVolume:
    """A volume in memory, which keeps what is in it while a container runs that has it: at first that is the helper."""

    def __init__(self, workshop: Workshop, name: str, left: set[str]) -> None:
        """``left``: the runner's volumes that are to be removed, shared by all."""
        self.name = name
        self.helper: DockerSandbox | None = None
        self._workshop = workshop
        self._left = left
        self._is_closed = False

    def hold(self, helper: DockerSandbox) -> None:
        """The helper fills it and is closed with it."""
        self.helper = helper
        self._workshop.ledger.take(HELPER_MB)

    def let_go(self) -> None:
        """End the helper: another container that runs has the volume now. Idempotent."""
        if self.helper is not None:
            self.helper.terminate()
            self.helper = None
            self._workshop.ledger.give(HELPER_MB)

    def close(self) -> None:
        """Remove it, after the containers that had it, and those that could not be removed before: the engine was
        away, or they had a container that it left behind. Idempotent.
        """
        self.let_go()
        if self._is_closed:
            return
        self._is_closed = True
        self._left.add(self.name)
        try:
            for name in sorted(self._left):
                if memory_volumes.remove(self._workshop.engine, name):
                    self._left.discard(name)
        except EngineUnavailable as e:
            events.SANDBOX_LEFT(error=e)
