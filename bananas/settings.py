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
from bananas.addresses import place
from bananas.errors import ConfigError
from bananas.units import parse_size_mb

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that every part shares."""

    #: What a job is called with, as JSON text.
    payload_bytes: int = 1 * MIB
    #: What a handler returns, as JSON text.
    result_bytes: int = 1 * MIB
    #: Captured stdout and stderr of one attempt.
    log_bytes: int = 256 * KIB
    #: One uploaded archive, of a function's code or of its requirements.
    bundle_bytes: int = 50 * MIB
    #: The same unpacked.
    bundle_unpacked_bytes: int = 250 * MIB
    #: Files in it.
    bundle_files: int = 20_000
    #: Jobs waiting in one pool's lanes, and in the schedule.
    queued_jobs: int = 1_000_000
    #: Results up to this size are pushed to waiters, larger ones are read from the record.
    push_bytes: int = 64 * KIB
    #: Messages kept for a gateway process that does not read them.
    reply_list: int = 20_000
    #: Longest ``?wait=``.
    wait_s: int = 60
    #: How long a synchronous call may wait for its turn.
    sync_queue_s: int = 30
    #: How long the record of a failed job (a dead letter) is kept.
    dead_ttl_s: int = 14 * 24 * 3600
    #: Dead letters; the oldest go first.
    dead_jobs: int = 100_000
    #: Records of failed synchronous calls, whose callers have the error; kept for a day.
    failed_calls: int = 10_000
    #: After a record is gone, its id still answers 410 for this long.
    tombstone_s: int = 24 * 3600
    #: Lost leases before a job is poisoned.
    max_losses: int = 3
    #: Start-up failures before a job fails.
    max_starts: int = 5
    #: Attempts shown in a job's record (the oldest are dropped first).
    history: int = 30
    #: Logs shown in a record; all of them are at ``/jobs/{id}/logs``.
    log_tail_bytes: int = 8 * KIB
    #: A bundle that no version refers to is dropped after this long.
    orphan_bundle_s: int = 3600
    #: Of a Unix socket's path: what the kernel has room for, without the final NUL.
    socket_path_bytes: int = 107
    #: What a handler tells of its progress, as JSON text.
    progress_bytes: int = 4 * KIB
    #: Jobs in one batch.
    batch_items: int = 1000
    #: The body of a batch.
    batch_bytes: int = 8 * MIB
    #: What a schedule calls its function with, as JSON text.
    schedule_payload_bytes: int = 64 * KIB
    #: Slots of a schedule that wait for the job of the slot before.
    schedule_held: int = 1000
    #: An idempotency or unique key.
    unique_key_chars: int = 200
    #: One secret's value.
    secret_bytes: int = 32 * KIB
    #: Secrets of one function: together they fit into a sandbox's /run/secrets.
    secrets: int = 16
    #: The latest versions of each function are kept for a rollback.
    versions: int = 20
    #: A version that is not kept any more stays this long after the janitor last saw a live job of it; so long all
    #: runners may be away.
    old_version_s: int = 7 * 24 * 3600
    #: Ends of jobs that are not told to their callback_url yet.
    callbacks: int = 100_000
    #: Tries to tell one, within a day.
    callback_tries: int = 15
    #: A callback_url.
    callback_url_chars: int = 2000
    #: A result or error that goes along with a callback.
    callback_value_bytes: int = 256 * KIB
    #: Until a delay or ``run_at``.
    delay_s: int = 366 * 24 * 3600
    #: One frame of the shim protocol.
    frame_bytes: int = 4 * MIB


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Reader:
    """How a variable's text becomes a value: ``takes`` says what may stand there, ``read`` raises ValueError."""

    takes: str
    read: Callable[[str], Any]


def _redis_url(raw: str) -> str:
    redis_url.parse(raw)
    return raw


def _seconds(low: float, high: float) -> Reader:
    def parse(raw: str) -> float:
        value = float(raw)
        if not low <= value <= high:
            raise ValueError(f"must be {low:g} to {high:g} seconds")
        return value

    return Reader(f"{low:g} to {high:g} seconds", parse)


def _count(low: int, high: int) -> Reader:
    def parse(raw: str) -> int:
        value = int(raw)
        if not low <= value <= high:
            raise ValueError(f"must be {low} to {high}")
        return value

    return Reader(f"{low} to {high}", parse)


def _memory(raw: str) -> int:
    value = parse_size_mb(raw)
    if value < 64:
        raise ValueError("must be at least 64M")
    return value


def _choice(*allowed: str) -> Reader:
    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return raw

    return Reader(", ".join(f"``{word}``" for word in allowed), parse)


def _names(raw: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in raw.split(",") if part.strip())
    if not names:
        raise ValueError("must hold at least one name")
    return names


def _places(raw: str) -> tuple[str, ...]:
    found = []
    for name in _names(raw):
        match = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", name)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise ValueError(f"{name!r} is not host:port; write for example 10.0.0.5:8000,hooks.local:443")
        found.append(place(match[1].strip("[]"), int(match[2])))
    return tuple(found)


def _devices(raw: str) -> tuple[str, ...]:
    names = () if raw == "none" else _names(raw)
    for name in names:
        if not re.fullmatch(r"\d{1,2}|(GPU|MIG)-[0-9a-f-]{1,64}", name):
            raise ValueError(f"{name!r} is not the number or UUID of a device; write for example 0,1 or none")
    if len(set(names)) != len(names):
        raise ValueError("names a device twice")
    return names


def _address(raw: str) -> tuple[str, int]:
    host, _, port = raw.rpartition(":")
    if not host.strip("[]") or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:9464")
    return host.strip("[]"), int(port)


_TEXT = Reader("text", str)
_FILE = Reader("a path", str)
_NAMES = Reader("names with commas between them", _names)


def _setting(env: str, reader: Reader, default: Any, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"env": env, "reader": reader}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may set; the metadata of each field names its environment variable.

    The comments are what docs/settings.md says of it, "Unset: …" of its default.
    """

    #: A server, a socket, sentinels or a cluster (docs/deployment.md); may hold passwords. Unset: a server of our own.
    redis_url: str = _setting("BANANAS_REDIS_URL", Reader("a URL", _redis_url), "", secret=True)
    #: Where ``bananas dev`` has its own Redis, on 127.0.0.1 and if nobody else is there; 0: on a Unix socket.
    redis_port: int = _setting("BANANAS_REDIS_PORT", _count(0, 65535), 6379)
    #: The address that the gateway listens on; beyond loopback it wants API tokens (docs/security.md).
    host: str = _setting("BANANAS_HOST", _TEXT, "127.0.0.1")
    #: The port that the gateway listens on.
    port: int = _setting("BANANAS_PORT", _count(1, 65535), 8080)
    #: Names that the gateway answers to besides loopback ones. Unset: loopback ones; beyond loopback any.
    hosts: tuple[str, ...] = _setting("BANANAS_HOSTS", _NAMES, ())
    #: ``token`` needs API tokens beyond loopback; ``none`` serves anyone who can reach the port.
    auth: str = _setting("BANANAS_AUTH", _choice("token", "none"), "token")
    #: Gateway processes. Unset: one per core, at most 4.
    gateway_workers: int = _setting("BANANAS_GATEWAY_WORKERS", _count(0, 64), 0)
    #: The address of the gateway that the command line talks to.
    url: str = _setting("BANANAS_URL", _TEXT, "http://127.0.0.1:8080")
    #: The API token of the command line, where the gateway asks for one.
    token: str = _setting("BANANAS_TOKEN", _TEXT, "", secret=True)
    #: Bundles, sockets and the data of our own Redis; a runner and its engine must see it at the same path. Unset:
    #: /var/lib/bananas as root, else ~/.local/state/bananas.
    state_dir: str = _setting("BANANAS_STATE_DIR", _FILE, "")
    #: Pools that a runner serves. Unset: every pool.
    pools: tuple[str, ...] = _setting("BANANAS_POOLS", _NAMES, ())
    #: A claim not extended for this long goes to another runner; equal on all runners.
    lease_s: float = _setting("BANANAS_LEASE_S", _seconds(0.5, 3600), 30.0)
    #: After SIGTERM, running jobs may take this long before they are handed back.
    grace_s: float = _setting("BANANAS_GRACE_S", _seconds(0, 86400), 30.0)
    #: How sandboxes are reached: ``socket``, in a directory that engine and runner share; ``stdio``, their standard
    #: streams, for Docker Desktop and engines elsewhere (Python only, no ``egress``, no images of your own); ``auto``:
    #: the runner's first sandbox shows which works.
    transport: str = _setting("BANANAS_TRANSPORT", _choice("auto", "socket", "stdio"), "auto")
    #: Containers created at the same time; more adds latency and little throughput.
    parallel_creates: int = _setting("BANANAS_PARALLEL_CREATES", _count(1, 64), 2)
    #: What a runner's sandboxes may have together, by the ``memory`` of their pools. Idle ones and spares stay within
    #: it; work is bounded by ``concurrency`` and not refused. Set it where several runners share a machine. Unset:
    #: three quarters of the machine's.
    sandbox_memory_mb: int = _setting("BANANAS_SANDBOX_MEMORY", Reader("a size such as 8G", _memory), 0)
    #: GPUs that pools may lease; ``none``: there are none. Unset: those of NVIDIA's driver.
    gpus: tuple[str, ...] | None = _setting("BANANAS_GPUS", Reader("numbers or UUIDs such as 0,1", _devices), None)
    #: Connections at a time of one sandbox to its ``egress``.
    egress_connections: int = _setting("BANANAS_EGRESS_CONNECTIONS", _count(1, 256), 32)
    #: MiB that pass one such connection, in both directions together, before it is cut.
    egress_mb: int = _setting("BANANAS_EGRESS_MB", _count(1, 1_048_576), 1024)
    #: Receivers of callbacks that are not at a public address. Unset: none.
    callback_allow: tuple[str, ...] = _setting(
        "BANANAS_CALLBACK_ALLOW", Reader("``host:port``, of names or addresses", _places), ()
    )
    #: The image of ``runtime: python``. Unset: the local default image.
    python_image: str = _setting("BANANAS_PYTHON_IMAGE", _TEXT, "")
    #: Keys that seal secrets, the sealing one first; the same for every gateway and runner (docs/security.md).
    secret_key: str = _setting("BANANAS_SECRET_KEY", _TEXT, "", secret=True)
    #: A file with these keys, instead of the text. Unset: none; ``bananas up`` makes one.
    secret_key_file: str = _setting("BANANAS_SECRET_KEY_FILE", _FILE, "")
    #: Where a runner answers ``GET /metrics``, without a token; one for each runner of a machine (docs/metrics.md).
    #: Unset: nowhere.
    runner_metrics: tuple[str, int] | None = _setting(
        "BANANAS_RUNNER_METRICS", Reader("``host:port`` such as 127.0.0.1:9464", _address), None
    )
    #: How much gateways and runners log.
    log_level: str = _setting("BANANAS_LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info")
    #: Lines as JSON objects or as text for people; ``auto``: text on a terminal (docs/events.md).
    log_format: str = _setting("BANANAS_LOG_FORMAT", _choice("auto", "json", "pretty"), "auto")

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
                values[spec.name] = spec.metadata["reader"].read(env[name])
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
