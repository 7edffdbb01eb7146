"""What the routes work with, made once for each gateway process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from bananas.counters import Counters
from bananas.dead_letters import DeadLetters
from bananas.follow import Follow
from bananas.health import Health
from bananas.listing import JobLists
from bananas.queue import Queue
from bananas.redis_client import Connections
from bananas.registry import Registry
from bananas.schedules import Schedules
from bananas.secrets import SecretBox, Secrets
from bananas.settings import Settings
from bananas.tokens import Tokens
from gateway.traffic import Traffic
from gateway.wait import Waiters


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything over one set of connections."""

    queue: Queue
    lists: JobLists
    registry: Registry
    waiters: Waiters
    follow: Follow
    health: Health
    counters: Counters
    traffic: Traffic
    secrets: Secrets
    dead: DeadLetters
    schedules: Schedules
    tokens: Tokens

    @classmethod
    def of(cls, settings: Settings, connections: Connections, waiters: Waiters | None = None) -> Self:
        """Raises ConfigError for a key of secrets that is not one."""
        queue, counters = Queue(connections), Counters(connections)
        return cls(
            queue=queue,
            lists=JobLists(connections),
            registry=Registry(connections),
            waiters=Waiters(queue) if waiters is None else waiters,
            follow=Follow(connections),
            health=Health(connections),
            counters=counters,
            traffic=Traffic(counters.add_traffic),
            secrets=Secrets(connections, SecretBox.from_settings(settings)),
            dead=DeadLetters(connections),
            schedules=Schedules(connections),
            tokens=Tokens(connections),
        )
