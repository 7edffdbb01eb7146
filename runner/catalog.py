"""What this runner knows of functions and runtimes: versions by id, images by runtime name, profiles for both.

Versions are immutable, so they are read from Redis once. Runtimes are what the engine has right now; they are looked up
again when one is missing, so that an image built after the start is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from bananas import events
from bananas.errors import ImageMissing
from bananas.protocols import SandboxProfile, Secret
from bananas.runtimes import build_hint
from bananas.spec import PoolSpec, RuntimeInfo, Version
from runner.slot import profile_of

_MAX_VERSIONS = 2000


class Catalog:
    """See the module."""

    def __init__(
        self,
        fetch_version: Callable[[str, str], Version],
        fetch_secrets: Callable[[Sequence[str]], dict[str, Secret]],
        discover: Callable[[], dict[str, RuntimeInfo]],
        find_image: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        """What each raises: UnknownFunction, SecretUnavailable, EngineUnavailable. ``find_image`` gives the id of an
        image of somebody's own, None when it is not on the engine."""
        self._fetch_version = fetch_version
        self._fetch_secrets = fetch_secrets
        self._secrets: dict[str, Secret] = {}
        self._discover = discover
        self._find_image = find_image
        #: Reference → id; forgotten with each look at the runtimes, since a reference may get another image.
        self._images: dict[str, str] = {}
        #: True when an image that is named here was not there: one of that name may have another id now.
        self._is_doubtful = False
        self._versions: OrderedDict[tuple[str, str], Version] = OrderedDict()
        self.runtimes: dict[str, RuntimeInfo] = {}
        #: The profile last made for a pool and an image, with what it was made of: equal ones are one object, so that
        #: comparing them costs nothing.
        self._profiles: dict[tuple[str, str, str], tuple[PoolSpec | None, RuntimeInfo, SandboxProfile]] = {}
        self.pools: dict[str, PoolSpec] = {}

    def version(self, function: str, version: str) -> Version:
        """One version of a function."""
        key = (function, version)
        if key in self._versions:
            self._versions.move_to_end(key)
            return self._versions[key]
        found = self._versions[key] = self._fetch_version(function, version)
        if len(self._versions) > _MAX_VERSIONS:
            self._versions.popitem(last=False)
        return found

    def secrets(self, version: Version) -> dict[str, Secret]:
        """The secrets that the version needs; raises SecretUnavailable."""
        wanted = version.spec.secrets
        if missing := [name for name in wanted if name not in self._secrets]:
            # Kept under the names that were asked for: a change that is told meanwhile empties the new dictionary.
            known = self._secrets
            known |= self._fetch_secrets(missing)
            return {name: known[name] for name in wanted}
        return {name: self._secrets[name] for name in wanted}

    def forget_secrets(self) -> None:
        """Some secret may have changed: read each again when it is needed next."""
        self._secrets = {}

    def doubt(self) -> None:
        """An image was not on the engine when it was needed: see what there is before the next one is named."""
        self._is_doubtful = True

    def refresh_runtimes(self) -> None:
        """See which runtimes the engine can run now."""
        self._images.clear()
        self._is_doubtful = False
        found = self._discover()
        if found != self.runtimes:
            self.runtimes = found
            names = ", ".join(f"{name} ({info.image}, {info.abi})" for name, info in found.items())
            events.RUNTIMES_FOUND(runtimes=names or "none; `bananas images build` makes the default one")

    def profile(self, pool: str, version: Version) -> SandboxProfile:
        """The profile of a stem that may serve the version in the pool; raises ImageMissing or EngineUnavailable."""
        if self._is_doubtful:
            self.refresh_runtimes()
        if version.spec.image is not None:
            spec = self.pools.get(pool, PoolSpec())
            image_id = self._own_image(version.function, version.spec.image)
            return profile_of(pool, spec, version.spec.image, image_id, version.spec.contract)
        runtime = version.spec.runtime
        if runtime not in self.runtimes:
            self.refresh_runtimes()
        if runtime not in self.runtimes:
            raise ImageMissing(
                f"no image for runtime {runtime!r} of function {version.function!r} on this engine; "
                f"{build_hint(runtime)} makes one"
            )
        return self.profile_on(pool, self.runtimes[runtime])

    def _own_image(self, function: str, image: str) -> str:
        if image not in self._images:
            found = self._find_image(image)
            if found is None:
                raise ImageMissing(
                    f"image {image} of function {function!r} is not on this runner's engine, and none is pulled by "
                    f"itself; run `docker pull {image}` or `docker load` on that machine"
                )
            self._images[image] = found
        return self._images[image]

    def profile_on(self, pool: str, info: RuntimeInfo) -> SandboxProfile:
        """The profile of a stem of that runtime in the pool."""
        spec = self.pools.get(pool)
        made = self._profiles.get((pool, info.image, info.shim))
        if made is None or made[0] is not spec or made[1] is not info:
            profile = profile_of(pool, spec or PoolSpec(), info.image, info.image_id, info.shim)
            made = self._profiles[pool, info.image, info.shim] = (spec, info, profile)
        return made[2]
