"""The keys of bananas.yaml as closed models, and the sentence for each thing that can be wrong with one.

Defaults and bounds are read from ``bananas.spec``, so there is no second truth. Knows nothing about files or places
in the text; ``bananas.manifest`` adds those. ``schema()`` is what editors complete from.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bananas import manifest_values as kinds
from bananas.manifest_key import LEFT_OUT, Key, Keys, spec_key
from bananas.manifest_values import NOT_YET, Bounds, Kind, did_you_mean, shown
from bananas.spec import CONTRACTS, PRIORITIES, FunctionSpec, PoolSpec, RateSpec, RetrySpec, ScheduleSpec
from bananas.spec import Weights as WeightsSpec
from bananas.yamlmap import Loc


def _fn(into: str, kind: Kind, says: str) -> Key:
    return spec_key(FunctionSpec, into, kind, says)


def _pool(into: str, kind: Kind, says: str) -> Key:
    return spec_key(PoolSpec, into, kind, says)


def _retry(into: str, kind: Kind, says: str) -> Key:
    return spec_key(RetrySpec, into, kind, says)


class Retries(Keys):
    """After a failure the job waits base * factor^n, at most cap, and is tried again up to max times."""

    max: Annotated[int, _retry("max", kinds.COUNT, "How many more tries after the first one.")] = LEFT_OUT
    base: Annotated[int, _retry("base_ms", kinds.TIME, "Wait before the first retry.")] = LEFT_OUT
    factor: Annotated[float, _retry("factor", kinds.AMOUNT, "Each wait is this many times the one before.")] = LEFT_OUT
    cap: Annotated[int, _retry("cap_ms", kinds.TIME, "No wait is longer than this.")] = LEFT_OUT
    jitter: Annotated[
        str,
        _retry(
            "jitter",
            kinds.choice("none", "full"),
            "none: exactly the wait; full: a random part of it, so that many failures do not return at once.",
        ),
    ] = LEFT_OUT


def _rate(into: str, kind: Kind, says: str) -> Key:
    return Key(kind, says, Bounds.of(RateSpec, into), into=into)


class Rate(Keys):
    """How many jobs may be submitted: burst of them at once, and then limit."""

    limit: Annotated[str, _rate("limit", kinds.LIMIT, "Jobs per second (/s), minute (/m) or hour (/h).")] = LEFT_OUT
    burst: Annotated[
        int, _rate("burst", kinds.COUNT, "At once, after a pause; as many as limit says unless written.")
    ] = LEFT_OUT


def _plan(into: str, kind: Kind, says: str) -> Key:
    return Key(kind, says, Bounds.of(ScheduleSpec, into), getattr(ScheduleSpec(cron="@daily"), into), into)


class Schedule(Keys):
    """Calls the function by itself: at each slot of the cron expression there is one job."""

    cron: Annotated[
        str,
        Key(
            kinds.CRON,
            "minute hour day-of-month month day-of-week, or @daily and the like; in quotes, for YAML's sake.",
            into="cron",
        ),
    ]
    tz: Annotated[str, _plan("tz", kinds.ZONE, "The time zone whose clock counts, such as Europe/Berlin.")] = LEFT_OUT
    catchup: Annotated[
        str,
        _plan("catchup", kinds.choice("none", "last", "all"), "Which slots fire later that came while no runner ran."),
    ] = LEFT_OUT
    overlap: Annotated[
        str,
        _plan("overlap", kinds.choice("allow", "skip", "queue"), "What a slot does while the job before still runs."),
    ] = LEFT_OUT
    payload: Annotated[
        Any, _plan("payload", kinds.JSON, "What the handler gets as its event; at most 64 KiB as JSON.")
    ] = LEFT_OUT


def _weight(priority: str) -> Key:
    return spec_key(WeightsSpec, priority, kinds.COUNT, f"Share of {priority} jobs.")


class Weights(Keys):
    """How claims are shared among waiting jobs: each priority gets its weight's part of their sum."""

    high: Annotated[int, _weight("high")] = LEFT_OUT
    normal: Annotated[int, _weight("normal")] = LEFT_OUT
    low: Annotated[int, _weight("low")] = LEFT_OUT


class Pool(Keys):
    """A route for jobs with its own sandbox settings."""

    LATER = frozenset({"image"})

    concurrency: Annotated[
        int, _pool("concurrency", kinds.COUNT, "Jobs that run at once, on each runner that serves the pool.")
    ] = LEFT_OUT
    max_concurrency: Annotated[
        int, _pool("max_concurrency", kinds.COUNT, "Jobs that run at once, over all runners; no limit unless written.")
    ] = LEFT_OUT
    weights: Annotated[
        Weights, _pool("weights", kinds.WEIGHTS, "How claims are shared among high, normal and low jobs that wait.")
    ] = LEFT_OUT
    memory: Annotated[
        int, _pool("memory_mb", kinds.SIZE, "Memory of one sandbox, /tmp included; code that needs more is killed.")
    ] = LEFT_OUT
    cpus: Annotated[
        float, _pool("cpus", kinds.AMOUNT, "CPU time that one sandbox may use, in cores; 0.5 is half a core.")
    ] = LEFT_OUT
    pids: Annotated[int, _pool("pids", kinds.COUNT, "Processes and threads in one sandbox.")] = LEFT_OUT
    tmp: Annotated[int, _pool("tmp_mb", kinds.SIZE, "Size of /tmp, the only writable folder; counts as memory.")] = (
        LEFT_OUT
    )
    idle_timeout: Annotated[
        int, _pool("idle_timeout_ms", kinds.TIME, "A sandbox without work is removed after this long.")
    ] = LEFT_OUT
    min_warm: Annotated[
        int, _pool("min_warm", kinds.COUNT, "min_warm of its functions that write none: sandboxes that stay ready.")
    ] = LEFT_OUT
    stems: Annotated[
        int, _pool("stems", kinds.COUNT, "Started sandboxes without a function that each runner keeps for first calls.")
    ] = LEFT_OUT
    egress: Annotated[
        list[Annotated[str, Key(kinds.TARGET, bounds=kinds.TARGET_BOUNDS)]],
        _pool(
            "egress",
            kinds.TARGETS,
            "The only addresses that code in this pool can reach; with none it has no network at all.",
        ),
    ] = LEFT_OUT
    network: Annotated[
        str,
        _pool("network", kinds.choice("none", "open"), "open: everything outside; only where a probe finds it safe."),
    ] = LEFT_OUT
    gpus: Annotated[int, _pool("gpus", kinds.GPUS, "Whole GPUs that each sandbox gets for itself, or all.")] = LEFT_OUT
    runtime: Annotated[
        str,
        _pool(
            "runtime",
            kinds.choice("runc", "runsc"),
            "OCI runtime, runsc being gVisor; the engine's default unless written. Without it no job starts.",
        ),
    ] = LEFT_OUT


_Name = Annotated[str, Key(kinds.NAME, bounds=kinds.NAME_BOUNDS)]


class Function(Keys):
    """One function: where its code is and how it runs."""

    runtime: Annotated[
        str,
        _fn(
            "runtime",
            kinds.RUNTIME,
            "python and node are what a runner's default image has; python3.N and node22 insist on that version.",
        ),
    ] = LEFT_OUT
    path: Annotated[
        str,
        Key(
            kinds.FOLDER,
            "Folder of the code, below that of bananas.yaml; functions/<name> unless written.",
        ),
    ] = LEFT_OUT
    handler: Annotated[
        str,
        _fn(
            "handler",
            kinds.HANDLER,
            "handler.handle is handle() in handler.py; pkg.mod.run is in pkg/mod.py or pkg/mod/__init__.py.",
        ),
    ] = LEFT_OUT
    pool: Annotated[str, _fn("pool", kinds.NAME, "Where its jobs run.")] = LEFT_OUT
    allow_pools: Annotated[
        list[_Name], _fn("allow_pools", kinds.NAMES, "Other pools that a single job may ask for.")
    ] = LEFT_OUT
    priority: Annotated[
        str, _fn("priority", kinds.choice(*PRIORITIES), "Of its jobs, unless a job says otherwise.")
    ] = LEFT_OUT
    timeout: Annotated[int, _fn("timeout_ms", kinds.TIME, "Of one attempt, from the call to the answer.")] = LEFT_OUT
    init_timeout: Annotated[int, _fn("init_timeout_ms", kinds.TIME, "Of loading the code before the first call.")] = (
        LEFT_OUT
    )
    retries: Annotated[Retries, _fn("retries", kinds.RETRIES, "How often a failed job is tried again, and when.")] = (
        LEFT_OUT
    )
    schedule: Annotated[
        Schedule,
        _fn("schedule", kinds.SCHEDULE, "When it is called by itself, as a cron expression; never unless written."),
    ] = LEFT_OUT
    requirements: Annotated[
        str, Key(kinds.FILE, "Requirements file in the folder, which bananas deploy installs; none unless written.")
    ] = LEFT_OUT
    env: Annotated[
        dict[Annotated[str, Key(kinds.ENV_NAME, bounds=kinds.ENV_NAME_BOUNDS)], Annotated[str, Key(kinds.ENV_VALUE)]],
        _fn("env", kinds.ENV, "Environment variables. Values are texts: quote numbers and true."),
    ] = LEFT_OUT
    secrets: Annotated[
        list[Annotated[str, Key(kinds.SECRET_NAME, bounds=kinds.SECRET_NAME_BOUNDS)]],
        _fn("secrets", kinds.SECRETS, "Each is a file /run/secrets/<name> in the sandbox."),
    ] = LEFT_OUT
    egress: Annotated[
        list[Annotated[str, Key(kinds.OWN_TARGET, bounds=kinds.TARGET_BOUNDS)]],
        _fn(
            "egress",
            kinds.OWN_TARGETS,
            "What it may reach of the pool's egress; all of it unless written. [] is nothing.",
        ),
    ] = LEFT_OUT
    result_ttl: Annotated[int, _fn("result_ttl_ms", kinds.TIME, "How long the record of a completed job is kept.")] = (
        LEFT_OUT
    )
    max_concurrency: Annotated[
        int,
        _fn(
            "max_concurrency",
            kinds.COUNT,
            "Its jobs that run at once, over all runners; no limit unless written. More wait without holding a place.",
        ),
    ] = LEFT_OUT
    rate: Annotated[
        Rate,
        _fn(
            "rate",
            kinds.RATE,
            "Jobs that may be submitted, such as 10/s; no limit unless written. More are refused with 429.",
        ),
    ] = LEFT_OUT
    max_uses: Annotated[
        int,
        _fn(
            "max_uses",
            kinds.COUNT,
            "A sandbox is replaced after this many calls, for code that leaks; no limit unless written.",
        ),
    ] = LEFT_OUT
    max_lifetime: Annotated[
        int,
        _fn(
            "max_lifetime_ms",
            kinds.TIME,
            "A sandbox is replaced after this long or a little less, never in a call; no limit unless written.",
        ),
    ] = LEFT_OUT
    single_use: Annotated[
        bool,
        _fn(
            "single_use",
            kinds.FLAG,
            "true: every attempt gets a sandbox that served no other, and it is removed afterwards.",
        ),
    ] = LEFT_OUT
    calls_per_sandbox: Annotated[
        int,
        _fn(
            "calls_per_sandbox",
            kinds.COUNT,
            "Calls that one sandbox runs at once: on one event loop, or in threads for Python that is not async.",
        ),
    ] = LEFT_OUT
    min_warm: Annotated[
        int,
        _fn(
            "min_warm",
            kinds.COUNT,
            "Sandboxes that each runner keeps with the code loaded; what the pool says unless written.",
        ),
    ] = LEFT_OUT
    image: Annotated[
        str,
        _fn(
            "image",
            kinds.IMAGE,
            "An image of your own that is on the runners' engines, instead of a runtime; none unless written.",
        ),
    ] = LEFT_OUT
    contract: Annotated[
        str,
        _fn(
            "contract",
            kinds.choice(*CONTRACTS),
            "How its code is called: a handler, HTTP requests, a process; the last two are for an image.",
        ),
    ] = LEFT_OUT
    command: Annotated[
        list[Annotated[str, Key(kinds.ARGUMENT)]],
        _fn("command", kinds.ARGUMENTS, "Program and arguments in the image; the image's own unless written."),
    ] = LEFT_OUT


class Root(Keys):
    """The file bananas.yaml."""

    version: Annotated[int, Key(kinds.VERSION, "The version of this format.")]
    pools: Annotated[
        dict[_Name, Pool | None],
        Key(kinds.NAMED, "Routes by name. Only those that are written are created or changed; default exists anyway."),
    ] = LEFT_OUT
    functions: Annotated[
        dict[_Name, Function | None],
        Key(kinds.NAMED, "Functions by name; one whose settings are all defaults needs nothing below it."),
    ] = LEFT_OUT


def problems(data: object) -> tuple[Root | None, list[tuple[Loc, str, bool]]]:
    """The file's model, or every problem as ``(where, sentence, is it about the key)``.

    ``data`` is what ``Node.plain`` gives.
    """
    if not isinstance(data, dict):
        return None, [((), f"the file holds {shown(data)}; write a mapping that begins with 'version: 1'", False)]
    try:
        return Root.model_validate(data), []
    except ValidationError as e:
        return None, [_sentence(error["type"], error["loc"], error) for error in e.errors(include_url=False)]


def _sentence(kind: str, loc: Loc, error: Any) -> tuple[Loc, str, bool]:
    is_key = loc[-1] == "[key]"
    if kind == "bananas":
        return (loc[:-1] if is_key else loc), error["msg"], is_key
    if kind == "extra_forbidden":
        return loc, _unknown(loc), True
    if kind == "missing":
        return loc, "is missing; write 'version: 1' at the top", True
    # model_type, dict_type: pydantic's words for a mapping that is none.
    return loc, f"{shown(error['input'])} is not a mapping; write keys and values below it", False


def _unknown(loc: Loc) -> str:
    model: type[Keys] = Root
    if len(loc) > 1:
        inside: dict[Any, type[Keys]] = {"weights": Weights, "retries": Retries, "schedule": Schedule, "rate": Rate}
        model = inside[loc[2]] if len(loc) > 3 else Pool if loc[0] == "pools" else Function
    if loc[-1] in model.LATER:
        return NOT_YET + "; remove the key"
    if model is Function and loc[-1] in Pool.model_fields:
        return f"belongs to a pool; write pools: {{name: {{{loc[-1]}: …}}}} and pool: name here"
    hint = did_you_mean(loc[-1], model.model_fields)
    return f"unknown key{hint or '; known are ' + ', '.join(model.model_fields)}"


class _Editor(GenerateJsonSchema):
    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Without the stand-in for a key that was left out; the real defaults come from Key."""
        return self.generate_inner(schema["schema"])


def schema() -> dict[str, Any]:
    """The JSON Schema of bananas.yaml; what it cannot say (files that must exist, bounds of times) ``load`` checks."""
    described = Root.model_json_schema(schema_generator=_Editor)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described, "title": "bananas.yaml"}
