"""Every limit and every setting, in one place.

``Limits`` are fixed by the product. ``Settings`` come from ``BANANAS_*`` environment variables; a wrong value
refuses to start and names the variable, and an unknown ``BANANAS_*`` name is refused too, since a misspelt
setting that is silently ignored is worse than a stop. Secrets never appear in ``repr``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bananas import redis_url
from bananas.errors import ConfigError
from bananas.units import parse_size_mb

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that every part shares."""

    payload_bytes: int = 1 * MIB
    result_bytes: int = 1 * MIB
    #: Captured stdout and stderr of one attempt.
    log_bytes: int = 256 * KIB
    #: Of one uploaded bundle, compressed; and unpacked.
    bundle_bytes: int = 50 * MIB
    bundle_unpacked_bytes: int = 250 * MIB
    bundle_files: int = 20_000
    #: Jobs waiting in one pool's lanes, and in the schedule.
    queued_jobs: int = 1_000_000
    #: Results up to this size are pushed to waiters, larger ones are read from the record.
    push_bytes: int = 64 * KIB
    #: Messages kept for a gateway process that does not read them.
    reply_list: int = 20_000
    #: Longest ``?wait=`` in seconds.
    wait_s: int = 60
    #: How long a synchronous call may wait for its turn.
    sync_queue_s: int = 30
    #: Records of failed jobs (dead letters), and how many of them.
    dead_ttl_s: int = 14 * 24 * 3600
    dead_jobs: int = 100_000
    #: After a record is gone, its id still answers 410 for this long.
    tombstone_s: int = 24 * 3600
    #: Lost leases before a job is poisoned; start-up failures before a job fails.
    max_losses: int = 3
    max_starts: int = 5
    #: Attempts shown in a job's record (the oldest are dropped first).
    history: int = 30
    #: Bytes of logs shown in a record; all of them are at /jobs/{id}/logs.
    log_tail_bytes: int = 8 * KIB
    #: A bundle that no version refers to is dropped after this long.
    orphan_bundle_s: int = 3600
    #: Of a Unix socket's path: what the kernel has room for, without the final NUL.
    socket_path_bytes: int = 107
    #: What a handler tells of its progress, as JSON text.
    progress_bytes: int = 4 * KIB
    #: Jobs in one batch, and bytes of its body.
    batch_items: int = 1000
    batch_bytes: int = 8 * MIB
    #: What a schedule calls its function with; and slots that wait for the job of the slot before.
    schedule_payload_bytes: int = 64 * KIB
    schedule_held: int = 1000
    #: An idempotency or unique key.
    unique_key_chars: int = 200
    #: One secret's value, and secrets of one function: together they fit into a sandbox's /run/secrets.
    secret_bytes: int = 32 * KIB
    secrets: int = 16
    #: The latest versions of each function are kept for a rollback.
    versions: int = 20
    #: A version that is not kept any more stays this long after the janitor last saw a live job of it; so long all
    #: runners may be away.
    old_version_s: int = 7 * 24 * 3600
    #: Ends of jobs that are not told to their callback_url yet; tries for each, within a day (``_lib.lua``).
    callbacks: int = 100_000
    callback_tries: int = 15
    #: Of a callback_url; and of a result or error that goes along with a callback.
    callback_url_chars: int = 2000
    callback_value_bytes: int = 256 * KIB
    #: Until a delay or ``run_at``.
    delay_s: int = 366 * 24 * 3600
    #: One frame of the shim protocol.
    frame_bytes: int = 4 * MIB


LIMITS = Limits()


def _text(raw: str) -> str:
    return raw


def _redis_url(raw: str) -> str:
    redis_url.parse(raw)
    return raw


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        value = float(raw)
        if not low <= value <= high:
            raise ValueError(f"must be {low:g} to {high:g} seconds")
        return value

    return parse


def _count(low: int, high: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        value = int(raw)
        if not low <= value <= high:
            raise ValueError(f"must be {low} to {high}")
        return value

    return parse


def _memory(raw: str) -> int:
    value = parse_size_mb(raw)
    if value < 64:
        raise ValueError("must be at least 64M")
    return value


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return raw

    return parse


def _names(raw: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in raw.split(",") if part.strip())
    if not names:
        raise ValueError("must hold at least one name")
    return names


def _places(raw: str) -> tuple[str, ...]:
    names = tuple(name.lower() for name in _names(raw))
    for name in names:
        if not re.fullmatch(r"([a-z0-9._-]+|\[[0-9a-f:.]+\]):[0-9]{1,5}", name):
            raise ValueError(f"{name!r} is not host:port; write for example 10.0.0.5:8000,hooks.local:443")
    return names


def _devices(raw: str) -> tuple[str, ...]:
    names = () if raw == "none" else _names(raw)
    for name in names:
        if not re.fullmatch(r"\d{1,2}|(GPU|MIG)-[0-9a-f-]{1,64}", name):
            raise ValueError(f"{name!r} is not the number or UUID of a device; write for example 0,1 or none")
    if len(set(names)) != len(names):
        raise ValueError("names a device twice")
    return names


def _setting(env: str, parse: Callable[[str], Any], default: Any, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"env": env, "parse": parse}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may set; the metadata of each field names its environment variable."""

    #: What ``bananas.redis_url`` reads: a server, a socket, sentinels or a cluster. Empty: our own server
    #: (``bananas.embedded``). May hold passwords.
    redis_url: str = _setting("BANANAS_REDIS_URL", _redis_url, "", secret=True)
    #: Where ``bananas dev`` has its own Redis, on 127.0.0.1 and if nobody else is there; 0: on a Unix socket.
    redis_port: int = _setting("BANANAS_REDIS_PORT", _count(0, 65535), 6379)
    host: str = _setting("BANANAS_HOST", _text, "127.0.0.1")
    port: int = _setting("BANANAS_PORT", _count(1, 65535), 8080)
    #: Names that the gateway answers to besides loopback ones. Empty: beyond loopback, any name.
    hosts: tuple[str, ...] = _setting("BANANAS_HOSTS", _names, ())
    #: ``token`` needs API tokens beyond loopback; ``none`` serves anyone who can reach the port.
    auth: str = _setting("BANANAS_AUTH", _choice("token", "none"), "token")
    #: Gateway processes; 0 means one per core, at most 4.
    gateway_workers: int = _setting("BANANAS_GATEWAY_WORKERS", _count(0, 64), 0)
    #: The address of the gateway that the command line talks to.
    url: str = _setting("BANANAS_URL", _text, "http://127.0.0.1:8080")
    #: The API token of the command line, where the gateway asks for one.
    token: str = _setting("BANANAS_TOKEN", _text, "", secret=True)
    #: Empty: /var/lib/bananas as root, else the user's state home.
    state_dir: str = _setting("BANANAS_STATE_DIR", _text, "")
    #: Pools that this runner serves; empty means every pool that exists.
    pools: tuple[str, ...] = _setting("BANANAS_POOLS", _names, ())
    #: A claim not extended for this long goes to another runner.
    lease_s: float = _setting("BANANAS_LEASE_S", _seconds(0.5, 3600), 30.0)
    #: After SIGTERM, running jobs may take this long before they are handed back.
    grace_s: float = _setting("BANANAS_GRACE_S", _seconds(0, 86400), 30.0)
    #: How sandboxes are reached: by a socket in a shared directory, by their standard streams, or whichever works.
    transport: str = _setting("BANANAS_TRANSPORT", _choice("auto", "socket", "stdio"), "auto")
    #: Containers created at the same time; more adds latency and little throughput.
    parallel_creates: int = _setting("BANANAS_PARALLEL_CREATES", _count(1, 64), 2)
    #: MiB that all sandboxes of a runner may have together by their limits; 0: three quarters of the machine's memory.
    sandbox_memory_mb: int = _setting("BANANAS_SANDBOX_MEMORY", _memory, 0)
    #: GPUs of this machine, by number or UUID; ``none``: it has none. Unset: those of NVIDIA's driver.
    gpus: tuple[str, ...] | None = _setting("BANANAS_GPUS", _devices, None)
    #: What one sandbox may use of ``egress``: connections at a time, and MiB that pass one connection.
    egress_connections: int = _setting("BANANAS_EGRESS_CONNECTIONS", _count(1, 256), 32)
    egress_mb: int = _setting("BANANAS_EGRESS_MB", _count(1, 1_048_576), 1024)
    #: ``host:port`` of callbacks' receivers that are not at a public address.
    callback_allow: tuple[str, ...] = _setting("BANANAS_CALLBACK_ALLOW", _places, ())
    #: The image of ``runtime: python``; empty means the local default.
    python_image: str = _setting("BANANAS_PYTHON_IMAGE", _text, "")
    #: Keys that seal secrets (see ``bananas.secrets``), the sealing one first; or a file that holds them.
    secret_key: str = _setting("BANANAS_SECRET_KEY", _text, "", secret=True)
    secret_key_file: str = _setting("BANANAS_SECRET_KEY_FILE", _text, "")
    log_level: str = _setting("BANANAS_LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment; raises ConfigError naming the variable, its value and what is right."""
        env = os.environ if environ is None else environ
        known = {f.metadata["env"]: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name in sorted(env):
            if not name.startswith("BANANAS_") or name in _OTHER_VARIABLES:
                continue
            if name not in known:
                close = difflib.get_close_matches(name, [*known, *_OTHER_VARIABLES], n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
                raise ConfigError(f"{name} is not a setting of Bananas{hint}")
            if env[name] == "":
                continue
            spec = known[name]
            try:
                values[spec.name] = spec.metadata["parse"](env[name])
            except ValueError as e:
                shown = "(hidden)" if not spec.repr else repr(env[name])
                raise ConfigError(f"{name}={shown} is not valid: {e}") from e
        return cls(**values)

    @property
    def state_path(self) -> Path:
        """The state directory, absolute. Runner and engine must see it at the same path."""
        if self.state_dir:
            return Path(self.state_dir).absolute()
        if os.geteuid() == 0:
            return Path("/var/lib/bananas")
        home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
        return Path(home) / "bananas"

    def require_redis_url(self) -> str:
        """The URL of the Redis to use; raises ConfigError when none is set, or its certificates cannot be read."""
        if not self.redis_url:
            raise ConfigError(
                "BANANAS_REDIS_URL is not set; set it to a running Redis such as redis://127.0.0.1:6379/0, or start "
                "everything with `bananas up`, which brings its own"
            )
        redis_url.parse(self.redis_url).check_files()
        return self.redis_url

    @property
    def worker_count(self) -> int:
        """Gateway processes to start."""
        return self.gateway_workers or min(len(os.sched_getaffinity(0)), 4)

    @property
    def heartbeat_s(self) -> float:
        """Between two extensions of the leases: three chances within one lease."""
        return self.lease_s / 3

    @property
    def fence_s(self) -> float:
        """Without a successful extension for this long, a runner ends its own attempts (25 s of a 30 s lease)."""
        return self.lease_s * 5 / 6

    @property
    def reap_s(self) -> float:
        """Between two looks for expired leases (5 s for a 30 s lease)."""
        return self.lease_s / 6


#: Variables that other parts read: set-up scripts, the test suite, the engine's own.
_OTHER_VARIABLES = frozenset(
    {
        "BANANAS_YES",
        "BANANAS_REDIS",
        "BANANAS_WHEELS",
        "BANANAS_ALLOW_SKIP",
        "BANANAS_TEST_EXAMPLES",
        "BANANAS_HYPOTHESIS",
        "BANANAS_CHAOS_OUTAGE_S",
        "BANANAS_CHAOS_LEASE_S",
        "BANANAS_CHAOS_SIZE",
        "BANANAS_CHAOS_SEED",
        "BANANAS_CHAOS_MIX",
        "BANANAS_CHAOS_KILL_EVERY_S",
        "BANANAS_CHAOS_JOBS",
        "BANANAS_CHAOS_RUNNERS",
        "BANANAS_CHAOS_SPREAD_S",
        "BANANAS_CHAOS_PLATFORM_JOBS",
        "BANANAS_CHAOS_PLATFORM_RUNNERS",
        "BANANAS_CHAOS_GATEWAYS",
        "BANANAS_CHAOS_PLATFORM_SPREAD_S",
        "BANANAS_CHAOS_REDIS_KILL_EVERY_S",
        "BANANAS_CHAOS_REDIS_KILLS",
        "BANANAS_CHAOS_PARTITION_S",
        "BANANAS_CHAOS_RESTARTS",
        "BANANAS_CHAOS_HISTORIES",
    }
)
