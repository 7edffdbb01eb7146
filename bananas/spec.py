"""The deployed shape of functions and pools: what the API takes, Redis stores and runners read.

``manifest.py`` turns the friendly YAML into these; here every size and time is a plain number with its unit in
the name, the structs are frozen and closed (an unknown field is an error), and decoding checks every bound.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, Self

import msgspec

from bananas import errors, storage
from bananas.settings import LIMITS
from bananas.targets import TARGET_PATTERN, parse_target
from bananas.units import parse_rate

Priority = Literal["high", "normal", "low"]
#: How a sandbox is talked to: ``handler`` is our own shim, the others are contracts of a user's own image.
Contract = Literal["handler", "http", "exec"]
CONTRACTS: tuple[Contract, ...] = ("handler", "http", "exec")
#: The ABI in a deployment of a user's own image, for which nothing is installed.
OWN_IMAGE_ABI = "image"
#: A reference as engines take it: ``name``, ``registry:5000/team/name:tag``, ``name@sha256:…``.
IMAGE_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]{0,254}(?![\s\S])"
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

#: The very end: ``$`` would let a newline follow. Understood by Python's and by JSON Schema's expressions.
_END = r"(?![\s\S])"
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,62}" + _END
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
SECRET_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,62}" + _END
SecretName = Annotated[str, msgspec.Meta(pattern=SECRET_NAME_PATTERN)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}" + _END)]
#: ``host:port`` or ``name=address:port`` (see ``bananas.targets``).
EgressTarget = Annotated[str, msgspec.Meta(pattern=TARGET_PATTERN)]
EgressTargets = Annotated[tuple[EgressTarget, ...], msgspec.Meta(max_length=32)]

#: One word of a command.
Argument = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*(?![\s\S])", max_length=4096)]

#: Why a function of single use has no ``calls_per_sandbox``.
NOT_SINGLE_USE = "with single_use a sandbox serves one call; leave one of the two out"

DAY_MS = 24 * 3600 * 1000
MAX_RETRIES = 20


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    @classmethod
    def decode(cls, raw: bytes | str) -> Self:
        """Parse JSON; raises InvalidRequest naming the field and what would be right."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise errors.InvalidRequest(f"{cls.__name__}: {e}") from e

    def encode(self) -> bytes:
        """Canonical JSON without defaults, so equal specs have equal bytes (see ``bananas.storage``)."""
        return storage.encode(self)


class RetrySpec(_Spec, frozen=True, kw_only=True):
    """How often and after how long a failed attempt is tried again (see ``bananas.retry``)."""

    #: More tries after the first one.
    max: Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)] = 3
    base_ms: Annotated[int, msgspec.Meta(ge=1, le=DAY_MS)] = 2000
    factor: Annotated[float, msgspec.Meta(ge=1, le=10)] = 2.0
    cap_ms: Annotated[int, msgspec.Meta(ge=1, le=30 * DAY_MS)] = 3_600_000
    jitter: Literal["none", "full"] = "none"


class RateSpec(_Spec, frozen=True, kw_only=True):
    """How many jobs may be submitted: a bucket that is full at first and gets one more again and again."""

    #: ``10/s``, ``100/m`` or ``1000/h``
    limit: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,6}/[smh]" + _END)]
    #: At once, after a pause; None: as many as ``limit`` has in one of its periods.
    burst: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None

    @property
    def interval_ms(self) -> float:
        """Until there is one more."""
        number, period_ms = parse_rate(self.limit)
        return period_ms / number

    @property
    def most(self) -> int:
        """That the bucket holds."""
        return parse_rate(self.limit)[0] if self.burst is None else self.burst


def rate_of(limit: str | None, burst: int | None) -> RateSpec | None:
    """The rate of the two as somebody writes them; None for none. Raises ValueError saying what is right."""
    if limit is None:
        if burst is not None:
            raise ValueError("a burst is of a rate; give that too, such as 10/s")
        return None
    parse_rate(limit)
    return msgspec.convert({"limit": limit.strip(), "burst": burst}, RateSpec)


class ScheduleSpec(_Spec, frozen=True, kw_only=True):
    """When a function is called by itself (see ``bananas.schedules``)."""

    #: Five fields or ``@daily`` and the like; read by ``bananas.cron``, and checked when it is deployed.
    cron: str
    #: IANA name.
    tz: str = "UTC"
    #: Of slots that became due while no runner was there: none of them, the newest, or each.
    catchup: Literal["none", "last", "all"] = "none"
    #: While the job of the slot before is not over: fire all the same, leave the slot out, or fire it afterwards.
    overlap: Literal["allow", "skip", "queue"] = "allow"
    #: Any JSON value; what the handler gets as its event.
    payload: Any = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """What a type cannot say; msgspec turns the ValueError into its own."""
        size = len(msgspec.json.encode(self.payload))
        if size > LIMITS.schedule_payload_bytes:
            raise ValueError(f"a payload of {size} bytes is too large; at most {LIMITS.schedule_payload_bytes}")


class FunctionSpec(_Spec, frozen=True, kw_only=True):
    """What one function is, apart from its code. Part of the version digest."""

    runtime: Annotated[str, msgspec.Meta(pattern=r"^(python|python3\.\d{1,2}|node|node22)" + _END)] = "python"
    #: ``module.function`` below the function's folder, e.g. ``handler.handle``.
    handler: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+" + _END)] = "handler.handle"
    pool: Name = "default"
    #: Other pools a single job may name instead.
    allow_pools: tuple[Name, ...] = ()
    priority: Priority = "normal"
    #: Of one attempt, from the invoke frame to the answer.
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=DAY_MS)] = 30_000
    #: Of loading the code and importing the handler.
    init_timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=600_000)] = 20_000
    retries: RetrySpec = msgspec.field(default_factory=RetrySpec)
    schedule: ScheduleSpec | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    #: Names of secrets (``bananas.secrets``) that its sandboxes find in /run/secrets.
    secrets: Annotated[tuple[SecretName, ...], msgspec.Meta(max_length=LIMITS.secrets)] = ()
    #: How long the record of a completed job is kept; a failed one is kept for the dead letters' time.
    result_ttl_ms: Annotated[int, msgspec.Meta(ge=1000, le=30 * DAY_MS)] = 3_600_000
    #: Attempts of this function at once, over all runners; None means as many as there are places.
    max_concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    #: Jobs that may be submitted; None means no such limit. Schedules and replays do not count.
    rate: RateSpec | None = None
    #: The most attempts one sandbox serves; None means no such limit.
    max_uses: Annotated[int, msgspec.Meta(ge=1)] | None = None
    #: How long one sandbox serves; it ends after the call of that moment. None means no such limit.
    max_lifetime_ms: Annotated[int, msgspec.Meta(ge=1000, le=30 * DAY_MS)] | None = None
    #: A sandbox serves one attempt and is gone.
    single_use: bool = False
    #: Attempts that one sandbox runs at once: on one event loop, or in threads for Python that is not async.
    calls_per_sandbox: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    #: Sandboxes with the code loaded that each runner keeps, also without calls; None means what the pool says.
    min_warm: Annotated[int, msgspec.Meta(ge=0, le=512)] | None = None
    #: Of the pool's targets those that this function may reach, as ``host:port``; None means all of them.
    egress: EgressTargets | None = None
    contract: Contract = "handler"
    #: An image on the runners' engines that takes the place of the runtime's; needs a contract but ``handler``.
    image: Annotated[str, msgspec.Meta(pattern=IMAGE_PATTERN)] | None = None
    #: Program and arguments, instead of the image's own; empty: those.
    command: Annotated[tuple[Argument, ...], msgspec.Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        """What a pattern cannot say; msgspec turns the ValueError into its own."""
        if (self.image is None) != (self.contract == "handler"):
            raise ValueError("image and contract go together: an image needs contract http or exec, and they need one")
        if self.command and self.image is None:
            raise ValueError("command: is for an image; what a handler needs is in its module")
        if self.calls_per_sandbox > 1:
            if self.image is not None:
                raise ValueError("calls_per_sandbox: an image of one's own gets one call at a time; leave it out")
            if self.single_use:
                raise ValueError(f"calls_per_sandbox: {NOT_SINGLE_USE}")
        for target in self.egress or ():
            if parse_target(target).key != target:
                raise ValueError(f"egress: {target} of a function is host:port; the pool says which address that is")


class Weights(_Spec, frozen=True, kw_only=True):
    """How a pool's claims are shared among its waiting jobs.

    Of every ``high + normal + low`` claims, each priority gets as many as its weight while all have jobs.
    """

    high: Annotated[int, msgspec.Meta(ge=1, le=100)] = 16
    normal: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    low: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class PoolSpec(_Spec, frozen=True, kw_only=True):
    """A route with its own sandbox settings; ``concurrency`` counts per runner."""

    concurrency: Annotated[int, msgspec.Meta(ge=1, le=512)] = 8
    #: Attempts in this pool at once, over all runners; None means as many as there are places.
    max_concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    weights: Weights = msgspec.field(default_factory=Weights)
    memory_mb: Annotated[int, msgspec.Meta(ge=32, le=1_048_576)] = 256
    cpus: Annotated[float, msgspec.Meta(gt=0, le=512)] = 1.0
    pids: Annotated[int, msgspec.Meta(ge=8, le=32_768)] = 128
    tmp_mb: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 64
    #: An idle sandbox is removed after this long.
    idle_timeout_ms: Annotated[int, msgspec.Meta(ge=1000, le=DAY_MS)] = 300_000
    #: ``min_warm`` of its functions that name none themselves.
    min_warm: Annotated[int, msgspec.Meta(ge=0, le=512)] = 0
    #: Started sandboxes without a function, per runtime in use, that each runner keeps for first calls.
    stems: Annotated[int, msgspec.Meta(ge=0, le=64)] = 2
    #: The only addresses that code in this pool can reach.
    egress: EgressTargets = ()
    #: ``none``: no network but ``egress``. ``open``: a bridge of its own, if a probe finds nothing inside.
    network: Literal["none", "open"] = "none"
    #: Whole devices that each sandbox gets for itself.
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] | Literal["all"] = 0
    #: OCI runtime of its sandboxes, where the engine has it; None: the engine's default.
    runtime: Literal["runc", "runsc"] | None = None

    def __post_init__(self) -> None:
        """What a pattern cannot say; msgspec turns the ValueError into its own."""
        for target in self.egress:
            try:
                parse_target(target)
            except ValueError as e:
                raise ValueError(f"egress: {e}") from e
        if self.network == "open" and self.egress:
            raise ValueError("egress: network 'open' reaches everything outside; leave one of the two out")


class Bundles(_Spec, frozen=True, kw_only=True):
    """The content-addressed archives of a version (see ``bananas.pack``)."""

    code: Sha256
    #: Installed requirements; None when the function has none.
    deps: Sha256 | None = None
    #: SHA-256 of the requirements text; None when there is none.
    requirements: Sha256 | None = None

    @property
    def archives(self) -> tuple[Sha256, ...]:
        """Those that are uploaded."""
        return (self.code,) if self.deps is None else (self.code, self.deps)


class Deployment(_Spec, frozen=True, kw_only=True):
    """The body of ``PUT /functions/{name}``."""

    spec: FunctionSpec
    bundles: Bundles
    #: ABI that ``deps`` was installed for, as published by runners, e.g. ``cp311-x86_64-glibc2.36``.
    abi: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}" + _END)]

    def version(self) -> str:
        """The version id: 12 hex digits over sources, settings, requirements text and ABI.

        The digest of the installed requirements is left out on purpose: the same text resolved a week later may
        give other wheels, and that alone is not another version. The image id is left out because a base image made
        from the host has another id on each machine.
        """
        material = [self.bundles.code, self.bundles.requirements or "", self.abi]
        digest = hashlib.sha256("\n".join(material).encode() + b"\n" + self.spec.encode())
        return digest.hexdigest()[:12]


class Version(_Spec, frozen=True, kw_only=True):
    """One immutable version of a function, as stored."""

    function: Name
    version: str
    spec: FunctionSpec
    bundles: Bundles
    abi: str
    deployed_at_ms: int


class RuntimeInfo(_Spec, frozen=True, kw_only=True):
    """What a runner can run a runtime name with; published so that deploys can install for it."""

    image: str
    image_id: str
    #: ``3.11``; empty for another language.
    python: str = ""
    #: ``22.23.3``, of Node; empty for another language.
    node: str = ""
    #: ``x86_64`` or ``aarch64``
    machine: str
    #: ``glibc2.36``
    libc: str

    @property
    def abi(self) -> str:
        """``cp311-x86_64-glibc2.36`` or ``node22-x86_64-glibc2.36``: enough to choose compiled packages."""
        tag = f"node{self.node.partition('.')[0]}" if self.node else f"cp{self.python.replace('.', '')}"
        return f"{tag}-{self.machine}-{self.libc}"

    @property
    def shim(self) -> str:
        """Which shim runs in it: ``python`` or ``node``."""
        return "node" if self.node else "python"
