"""Small volumes in the engine's memory, which two containers of one sandbox share; ``runner.helpers`` fills them.

One is empty again as soon as no container runs that has it. Swept like containers, by their labels.
"""

from __future__ import annotations

from typing import Any

from bananas.errors import EngineUnavailable, ImageMissing, SandboxStartError
from runner.docker_driver import LABEL_INSTANCE, LABEL_RUNNER, SANDBOX_UID, Engine, translate

_OPTIONS = f"size=1m,nr_inodes=64,uid={SANDBOX_UID},mode=0700,nosuid,nodev,noexec"


def create(engine: Engine, name: str, labels: dict[str, str]) -> str:
    """A volume of the sandbox's user; returns its name. Raises SandboxStartError or EngineUnavailable."""
    options = {"type": "tmpfs", "device": "tmpfs", "o": _OPTIONS}
    with translate(f"making the volume {name}", SandboxStartError):
        engine.client.api.create_volume(name, driver="local", driver_opts=options, labels=labels)
    return name


def remove(engine: Engine, name: str) -> bool:
    """Remove it; False while a container has it, True also when it was gone. Raises EngineUnavailable."""
    try:
        with translate(f"removing the volume {name}"):
            engine.client.api.remove_volume(name)
    except (EngineUnavailable, ImageMissing) as e:
        status = getattr(e.__cause__, "status_code", None)
        if status not in (404, 409):
            raise
        return bool(status == 404)
    return True


def of_instance(engine: Engine, instance: str) -> dict[str, str]:
    """Every volume of this installation: name → runner. Raises EngineUnavailable."""
    with translate("listing volumes"):
        found: list[dict[str, Any]] = (
            engine.client.api.volumes(filters={"label": f"{LABEL_INSTANCE}={instance}"})["Volumes"] or []
        )
    return {str(volume["Name"]): str((volume["Labels"] or {}).get(LABEL_RUNNER, "")) for volume in found}
