"""What a new sandbox gets of the world outside it: its relay, its network, its GPUs. And the audit log of the relays.

Decided by the pool's profile and by what this machine has; nothing of it is a sandbox's own choice. Called by
``runner.sandbox``; the supervisor makes one for the whole runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bananas import events
from bananas.errors import SandboxStartError
from bananas.protocols import SandboxProfile
from runner.egress import Caps
from runner.gpus import Gpus, Lease
from runner.relay import Event, Relay


def _no_network() -> str:
    raise SandboxStartError("network: open is not offered by this runner")


class Access:
    """See the module."""

    def __init__(
        self,
        caps: Caps | None = None,
        gpus: Gpus | None = None,
        open_network: Callable[[], str] = _no_network,
        count: Callable[[Counter[str]], None] = lambda _: None,
    ) -> None:
        """``open_network`` proves and names the bridge; ``count`` takes counters by their field name in Redis."""
        self.caps = caps or Caps()
        self._gpus = gpus
        self._open_network = open_network
        self._count = count

    def network(self, profile: SandboxProfile) -> str:
        """The engine's name of the network; raises SandboxStartError when an open one would not be safe."""
        return self._open_network() if profile.network == "open" else "none"

    def lease(self, profile: SandboxProfile) -> Lease | None:
        """The sandbox's devices, None when its pool asks for none; raises SandboxStartError."""
        if not profile.gpus:
            return None
        return (self._gpus or Gpus((), Path())).lease(profile.gpus, profile.pool)

    def relay(self, sandbox_id: str, profile: SandboxProfile, path: Path) -> Relay | None:
        """The relay that listens at ``path``, None when the pool has no egress; raises OSError."""
        if not profile.egress:
            return None

        def on_event(event: Event) -> None:
            self._count(
                Counter(
                    {
                        f"egress:{profile.pool}:{event.verdict}": 1,
                        f"egress_bytes:{profile.pool}:sent": event.sent_bytes,
                        f"egress_bytes:{profile.pool}:received": event.received_bytes,
                    }
                )
            )
            # What the sandbox chose is quoted in every form of a line, so that it cannot forge a field or a line.
            events.EGRESS(
                verdict=event.verdict,
                pool=profile.pool,
                function=event.function,
                jobs=event.jobs,
                sandbox=sandbox_id,
                target=event.target,
                address=event.address,
                sent_bytes=event.sent_bytes,
                received_bytes=event.received_bytes,
                ms=event.ms,
                reason=event.reason,
            )

        return Relay(path, profile.egress, on_event, caps=self.caps)
