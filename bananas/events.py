"""The catalogue of events: everything that gateways and runners log. docs/events.md is made of it.

One line for each: ``NAME = level("area.what_happened", "sentence with {facts}", "more facts")``. A call gives exactly
these facts (a test compares every call with its event). Facts that are None or empty are left out of a line; job,
function, version, pool, request and trace are added where something is done for one (``logs.bind``). Names are stable,
sentences are not.

The level says who needs it: ``error`` a defect or a loss, ``warning`` somebody should look, ``info`` what an operator
wants to read later, ``debug`` the rest. Nothing below ``warning`` happens once for each call of a warm sandbox.
"""

from __future__ import annotations

from bananas import logs
from bananas.logs import Event


def _debug(name: str, sentence: str, more: str = "") -> Event:
    return logs.event(name, logs.DEBUG, sentence, more)


def _info(name: str, sentence: str, more: str = "") -> Event:
    return logs.event(name, logs.INFO, sentence, more)


def _warning(name: str, sentence: str, more: str = "") -> Event:
    return logs.event(name, logs.WARNING, sentence, more)


def _error(name: str, sentence: str, more: str = "") -> Event:
    return logs.event(name, logs.ERROR, sentence, more)


def _critical(name: str, sentence: str, more: str = "") -> Event:
    return logs.event(name, logs.CRITICAL, sentence, more)


# -- attempts ----------------------------------------------------------------------------------------------------------

ATTEMPT_FAILED = _debug(
    "attempt.failed",
    "function {function!r} failed: {outcome}, {error}: {detail}",
    "job token pool where",
)
ATTEMPT_BROKE = _warning(
    "attempt.broke",
    "function {function!r} ended with {outcome}: {detail}",
    "job token pool error",
)
ATTEMPT_UNREPORTED = _info("attempt.unreported", "attempt ended unreported job={job} token={token} reason={reason}")
ATTEMPT_REFUSED = _info(
    "attempt.refused",
    "report refused job={job} token={token}: the attempt was not the job's any more",
)
ATTEMPT_DEFECT = _error("attempt.defect", "attempt of job={job} function={function} met a defect of the runner")
ATTEMPT_FENCED = _warning("attempt.fenced", "ending job={job}: its lease could not be extended")
LEASES_REAPED = _warning(
    "leases.reaped",
    "leases ran out: {returned} jobs go back to their lanes, {poisoned} are poisoned",
)
PROGRESS_WAITS = _warning("progress.waits", "progress waits for Redis: {error}")
TAIL_WAITS = _warning("tail.waits", "output that is followed waits for Redis: {error}")

# -- sandboxes ---------------------------------------------------------------------------------------------------------

SANDBOX_STARTED = _info(
    "sandbox.started",
    "sandbox {sandbox} started in pool {pool!r}: {start}",
    "function reason wait_ms",
)
SANDBOX_ENDED = _info("sandbox.ended", "sandbox {sandbox} of pool {pool!r} ended: {reason}", "function uses")
SANDBOX_NOT_REUSED = _warning("sandbox.not_reused", "sandbox {sandbox} takes no more calls: {why}")
SANDBOX_CLOSED_ALREADY = _debug("sandbox.closed_already", "sandbox {sandbox} was already closed: {error}")
SANDBOX_NOT_REMOVED = _warning("sandbox.not_removed", "sandbox {sandbox}: {error}")
SANDBOX_LEFT = _warning("sandbox.left", "left for the sweep: {error}")
SPARE_FAILED = _warning("sandbox.spare_failed", "no spare sandbox pool={pool}: {error}")
SPARE_DEFECT = _error("sandbox.spare_defect", "making a sandbox of pool {pool} met a defect of the runner")
MIN_WARM_FAILED = _warning("sandbox.min_warm_failed", "min_warm of function {function} pool={pool}: {error}")
STREAM_CLOSED = _debug("sandbox.stream_closed", "the attach stream was closed already: {error}")
STREAM_BROKE = _debug("sandbox.stream_broke", "the attach stream broke: {error}")
BRIDGE_WROTE = _debug("sandbox.bridge_wrote", "a bridge wrote: {data!r}")
EGRESS = _info(
    "egress.connection",
    "egress {verdict} to {target!r} from pool {pool!r}",
    "function jobs sandbox address sent_bytes received_bytes ms reason",
)
GPUS_LEASED = _info("gpus.leased", "gpus leased pool={pool} devices={devices}")

# -- engine, images, bundles -------------------------------------------------------------------------------------------

ENGINE_AWAY = _warning("engine.away", "no job is taken until the engine answers again: {error}")
ENGINE_BACK = _warning("engine.back", "the engine answers again, after {away_s:.1f} s")
ENGINE_NO_LIMITS = _warning(
    "engine.no_limits",
    "Podman without root enforces no limits of memory, CPU and processes with cgroups of version 1; run "
    "it as root, or boot with systemd.unified_cgroup_hierarchy=1",
)
ENGINE_NO_STATUS = _info("engine.no_status", "no exit status of container {container}: {error}")
ENGINE_REMOVE_AGAIN = _debug("engine.remove_again", "removing container {container} again: {error}")
CONTAINER_ORPHANED = _warning("container.orphaned", "removing container {container} of runner {runner}, which is gone")
CONTAINER_LEFT = _warning("container.left", "removing container {container}, which was left behind")
IMAGE_STEP = _info("image.step", "{step}")
IMAGE_MISSING = _warning("image.missing", "no image for runtime 'python' yet; `bananas images build` makes it")
RUNTIMES_FOUND = _info("runtimes.found", "runtimes: {runtimes}")
RUNTIMES_STALE = _warning("runtimes.stale", "runtimes not refreshed: {error}")
RUNTIME_NOT_OFFERED = _warning("runtimes.not_offered", "runtime {runtime} is not offered: {error}")
BUNDLE_DROPPED = _info("bundle.dropped", "bundle cache: dropping {bundle}")
BUNDLE_NOT_FETCHED = _warning("bundle.not_fetched", "bundle of function {function} not fetched ahead: {error}")
BUNDLES_LET_GO = _info("bundle.let_go", "{archives} archives that no version needs go in an hour")
BUNDLES_KEPT = _warning("bundle.kept", "no archive is let go: a version cannot be read by this release: {error}")
NETWORK_PROVEN = _info("network.proven", "network {network}: a probe from inside reached nothing that it must not")
NETWORK_REFUSED = _warning("network.refused", "{error}")
NETWORK_LEFT = _warning("network.left", "{error}")
RUNC_PACKAGE_UNKNOWN = _debug("doctor.no_package", "no package of runc is known: {error}")
RUNC_CHANGES_UNKNOWN = _debug("doctor.no_changes", "the change log of runc's package cannot be read: {error}")
DOCTOR_NO_SOCKET = _info("doctor.no_socket", "no sandbox by a shared directory, trying without: {error}")

# -- runners -----------------------------------------------------------------------------------------------------------

RUNNER_STARTING = _info("runner.starting", "starting {what}")
RUNNER_READY = _info("runner.ready", "runner {runner} serves pools {pools}")
MAINTENANCE_READY = _info("maintenance.ready", "looks after the queue, and takes no jobs")
RUNNER_WARNED = _warning("runner.warned", "{warning}")
RUNNER_NO_CALLBACKS = _info(
    "runner.no_callbacks",
    "no BANANAS_SECRET_KEY_FILE: callbacks of jobs are left to runners that have the key",
)
RUNNER_BY_STDIO = _warning(
    "runner.by_stdio",
    "sandboxes are reached by their standard streams, since sockets do not work: {error}",
)
RUNNER_HANDS_BACK = _warning("runner.hands_back", "handing back {jobs} unfinished jobs")
RUNNER_LEFT_UNHEARD = _warning("runner.left_unheard", "leaving without saying so: {error}")
RUNNER_LEFT = _info("runner.left", "runner {runner} left {spare_s:.1f} s before its deadline")
RUNNER_CRASHED = _critical("runner.crashed", "{error}")
RUNNER_HELD_UP = _warning("runner.held_up", "the event loop was held up for {lag_s:.1f} s")
ROLE_DIED = _critical("role.died", "{role} died")
ROLE_WAITS = _warning("role.waits", "{role}: {error}")
WORKER_WAITS = _warning("role.worker_waits", "waiting for Redis: {error}")
SYSTEMD_NOT_TOLD = _warning("runner.systemd_not_told", "systemd was not told {message}: {error}")
METRICS_SLOW_CLIENT = _debug("metrics.slow_client", "a client of /metrics is too slow: {error}")
POOL_UNKNOWN = _warning(
    "pool.unknown",
    "pool {pool!r} of BANANAS_POOLS does not exist; it is served as soon as it is made; there are {known}",
)
RECORD_NEWER = _warning("record.newer", "{error}")
POOLS_STALE = _warning("pool.stale", "pools not refreshed: {error}")
UPKEEP_WAITS = _warning("upkeep.waits", "not prepared for what is deployed now: {error}")
UPKEEP_SKIPPED = _info("upkeep.skipped", "function {function} is not prepared: {error}")
UPKEEP_ADVICE = _warning("upkeep.advice", "{warning}")
QUEUE_REPAIRED = _warning("queue.repaired", "the queue held what should not exist; repaired {repaired}")
SWEEP_FAILED = _warning("janitor.sweep_failed", "janitor: {error}")

# -- schedules and callbacks -------------------------------------------------------------------------------------------

SCHEDULE_FIRED = _info("schedule.fired", "fired {slots} slots of schedules")
SCHEDULE_WAITS = _warning("schedule.waits", "slot {slot_ms} of {function} waits: the queue is full")
SCHEDULE_BROKEN = _error("schedule.broken", "the schedule of {function} does not fire here: {error}")
CALLBACKS_WAIT = _warning("callback.waits", "callbacks: {error}")
CALLBACK_UNSETTLED = _warning("callback.unsettled", "callback={job} could not be settled: {error}")
CALLBACK_DELIVERED = _debug("callback.delivered", "callback={job} to={to} try={number} {became}")
CALLBACK_FAILED = _warning("callback.failed", "callback={job} to={to} try={number} {became}: {error}")

# -- gateways ----------------------------------------------------------------------------------------------------------

GATEWAY_OPEN = _warning(
    "gateway.open",
    "no authentication: everyone who can reach {host} port {port} can deploy and run code",
)
AUDIT = _info("audit.changed", "token={token} name={name!r} {method} {path} request={request}")
REQUEST_REFUSED = _debug("request.refused", "request={request} {method} {path}: {status}")
REQUEST_FAILED = _warning("request.failed", "request={request} {method} {path}: {status}")
REQUEST_UNREADABLE = _info("request.unreadable", "request={request} {code}: {detail}")
REQUEST_DEFECT = _error("request.defect", "request={request} {method} {path} failed")
CALL_NOT_CANCELLED = _warning(
    "call.not_cancelled",
    "job={job} was given up by its caller but could not be cancelled: {error}",
)
FOLLOW_WAITS = _warning("follow.waits", "output that is followed cannot be read: {error}")
FOLLOW_DEFECT = _error("follow.defect", "the reader of followed output failed and goes on")
FOLLOWER_SLOW = _debug("follow.slow", "a follower of job={job} is slow")
REPLIES_AWAY = _warning("replies.away", "replies cannot be read: {error}")
REPLIES_BACK = _warning("replies.back", "replies are read again")
REPLIES_DEFECT = _error("replies.defect", "the reply reader failed and starts again")

#: By name, in the order of this page.
CATALOGUE: dict[str, Event] = {value.name: value for value in list(globals().values()) if isinstance(value, Event)}
