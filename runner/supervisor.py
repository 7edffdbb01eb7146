"""Builds a runner out of its parts, starts them in order, and takes it down without losing a job.

The only place where parts get to know each other. Shutdown: stop claiming, let running attempts finish within the
grace, hand the rest back to the head of their lanes, end every sandbox, leave.
"""

from __future__ import annotations

import gc
import time
from random import SystemRandom

import gevent
import msgspec
from gevent.event import Event

from bananas import events
from bananas.clock import SystemClock
from bananas.errors import BananasError, ConfigError, EngineUnavailable, RedisUnavailable, SandboxStartError
from bananas.follow import Follow
from bananas.health import Health
from bananas.notify import Notifier
from bananas.queue import Queue, Step
from bananas.redis_client import Connections, safe_url
from bananas.registry import Registry
from bananas.secrets import SecretBox, Secrets
from bananas.settings import MIB, Settings
from runner import contracts, gpus, images, metrics, opennet
from runner.access import Access
from runner.alarm import Alarm
from runner.announcer import Announcer
from runner.bundles import BundleCache
from runner.catalog import Catalog
from runner.docker_driver import Engine, describe
from runner.egress import Caps
from runner.enginewatch import EngineWatch
from runner.executor import Executor
from runner.gate import Gate
from runner.gpus import Gpus
from runner.heartbeat import Fence, Heartbeat, InFlight
from runner.holdups import HoldUps
from runner.host import Host
from runner.ledger import Ledger, machine_budget_mb
from runner.maintenance.janitor import HostJanitor
from runner.maintenance.roles import MaintenanceRoles
from runner.maintenance.upkeep import Upkeep
from runner.metrics import MetricsServer, Sources, Vitals
from runner.own_container import Workshop
from runner.pool import SandboxPool, profile_of
from runner.progress import ProgressTeller
from runner.sandbox import DockerSandboxFactory
from runner.service import Every, GreenletService
from runner.stdio import StdioSandboxFactory
from runner.tail import LogTeller
from runner.tally import Tally
from runner.worker import Bell, Inbox, Worker

RUNTIMES_S = 30.0
#: For ending sandboxes and leaving, after the grace.
EXIT_S = 10.0


class Supervisor:
    """One runner process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connections = Connections(settings.redis_url)
        self._queue = Queue(self._connections)
        self._registry = Registry(self._connections)
        self._health = Health(self._connections)
        self._clock = SystemClock()
        self._stop = Event()
        self._crash: str | None = None
        self._pools: dict[str, SandboxPool] = {}
        self._pools_rev = -1
        self._unknown_pools: set[str] = set()
        self._bells: dict[str, Bell] = {}
        self._services: list[GreenletService] = []
        self._in_flight = InFlight()
        self._tally = Tally()
        self._vitals = Vitals()
        self._notifier = Notifier()

    # -- life -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start, serve until ``stop``, shut down; returns the exit code. Raises BananasError when it cannot start."""
        self._build()
        for service in self._services:
            service.start()
        self._refresh_pools()
        self._announcer.run_once()
        gc.collect()
        gc.freeze()  # what is loaded by now stays, so that no full collection looks at it again
        events.RUNNER_READY(runner=self._host.name, pools=", ".join(self._pools))
        print(f"runner {self._host.name} ready, pools: {', '.join(self._pools)}", flush=True)
        self._notifier.ready(f"serves {', '.join(self._pools)}")
        self._stop.wait()
        self._shut_down()
        if self._crash:
            events.RUNNER_CRASHED(error=self._crash)
            return 1
        return 0

    def stop(self) -> None:
        """Begin the shutdown; from a signal handler too."""
        self._stop.set()

    def _build(self) -> None:
        settings = self._settings
        self._metrics = metrics.listen(settings.runner_metrics)
        self._connections.ping()
        for warning in self._health.require():
            events.RUNNER_WARNED(warning=warning)
        engine = Engine()
        self._watch = EngineWatch(self._on_crash, engine.ping, self._engine_is_back)
        self._host = host = Host(settings.state_path, self._registry.instance(), engine)
        host.sweep()
        bundles = BundleCache(host.cache, self._registry.get_bundle)
        self._gate = Gate(settings.parallel_creates)
        self._ledger = Ledger(settings.sandbox_memory_mb or machine_budget_mb())
        access = self._access(engine)
        shop = Workshop(engine, bundles, host.directory, host.labels, access, self._gate, self._ledger)
        self._factory = self._sandboxes(shop)
        self._alarm = Alarm(self._clock)
        secrets = Secrets(self._connections, SecretBox.from_settings(settings))
        catalog = self._catalog = Catalog(
            self._registry.version,
            secrets.fetch,
            lambda: images.discover(engine.client, settings.python_image),
            lambda name: images.id_of(engine.client, name),
        )
        self._maintenance = MaintenanceRoles(self._on_crash, settings, self._connections, self._queue)
        teller = self._build_worker(catalog, host)
        self._upkeep = Upkeep(
            self._on_crash,
            catalog,
            self._pools,
            self._registry.served,
            bundles.ensure,
            self._alarm,
            self._ledger,
        )
        self._services = [teller, *self._roles(host, bundles)]
        self._publish_runtimes()
        self._probe()

    def _build_worker(self, catalog: Catalog, host: Host) -> ProgressTeller:
        """What claims and runs jobs, and tells of it."""
        teller = ProgressTeller(self._on_crash, self._queue, host.name)
        executor = Executor(
            *(host.name, catalog.version, catalog.profile, catalog.secrets, self._clock, SystemRandom()),
            on_progress=teller.told,
            engine_answers=self._watch.doubt,
        )
        hold_ups = HoldUps(self._pools, self._gpus, lambda: self._watch.answers)
        self._worker = Worker(
            *(self._on_crash, self._queue, executor, self._pools, self._in_flight, host.name, self._settings.lease_s),
            self._on_step,
            hold_ups.free,
            self._tally,
        )
        self._announcer = Announcer(
            *(self._on_crash, self._registry, host.name, self._settings.pools, self._pools, self._in_flight),
            self._tally,
            hold_ups,
            len(self._gpus.devices),
            self._vitals,
        )
        return teller

    def _sandboxes(self, shop: Workshop) -> contracts.Contracts:
        """Every kind of sandbox; ``_probe`` may change how they are reached."""
        shims = DockerSandboxFactory(shop.engine, shop.bundles, shop.directory, shop.labels, shop.access)
        factory = contracts.of_runner(
            shims,
            shop,
            lambda: self._catalog.runtimes.get("python"),
            on_missing=lambda: self._catalog.doubt(),
            engine_answers=lambda: self._watch.answers,
        )
        self._over_stdio = StdioSandboxFactory(shop.engine, shop.bundles, shop.directory, shop.labels, shop.access)
        if self._settings.transport == "stdio":
            factory.over_stdio(self._over_stdio)
        return factory

    def _roles(self, host: Host, bundles: BundleCache) -> list[GreenletService]:
        """Everything that runs on its own, in the order in which it starts."""
        settings, lease_s = self._settings, self._settings.lease_s
        tail = LogTeller(self._on_crash, Follow(self._connections))
        inbox = Inbox(
            *(self._on_crash, self._queue, self._in_flight, host.name, self._refresh_pools, self._upkeep.deployed),
            on_followed=tail.follow,
        )
        roles: list[GreenletService] = [
            Heartbeat(
                *(self._on_crash, self._queue, host.name, self._in_flight, lease_s, settings.heartbeat_s),
                on_lag=self._vitals.lagged,
            ),
            Fence(self._on_crash, self._in_flight, settings.fence_s),
            inbox,
            tail,
            *self._maintenance.all,
            HostJanitor(self._on_crash, host, bundles),
            self._announcer,
            self._watch,
            Every(self._on_crash, "runtimes", RUNTIMES_S, self._publish_runtimes),
            self._upkeep,
            self._worker,
        ]
        if self._metrics is not None:
            sources = Sources(
                *(host.name, self._pools, self._in_flight, self._tally, self._ledger, self._gate, self._gpus),
                *(self._vitals, self._watch),
            )
            roles.append(MetricsServer(self._on_crash, self._metrics, lambda: metrics.text(sources)))
        if self._notifier.watchdog_s:
            roles.append(Every(self._on_crash, "watchdog", self._notifier.watchdog_s / 3, self._notifier.alive))
        return roles

    def _access(self, engine: Engine) -> Access:
        """What sandboxes may have of the world outside."""
        settings = self._settings
        found = gpus.discover() if settings.gpus is None else settings.gpus
        self._gpus = Gpus(found, settings.state_path / "gpus")
        self._gpus.on_freed = self._look_again
        self._open_network = opennet.of_runner(
            settings, engine, self._registry.instance(), self._host, lambda: self._catalog.runtimes.get("python")
        )
        caps = Caps(settings.egress_connections, settings.egress_mb * MIB)
        return Access(caps, self._gpus, self._open_network.require, self._tally.add)

    def _probe(self) -> None:
        """Prove with a real sandbox that the engine sees the state directory, before any job depends on it."""
        runtime = self._catalog.runtimes.get("python")
        if runtime is None:
            events.IMAGE_MISSING()
            return
        spec = self._registry.pools()["default"]
        profile = profile_of("default", msgspec.structs.replace(spec, egress=()), runtime.image, runtime.image_id)
        try:
            try:
                self._factory.create(profile).terminate()
            except SandboxStartError as e:
                if self._settings.transport != "auto" or isinstance(e.__cause__, ConfigError):
                    raise
                self._over_stdio.create(profile).terminate()
                self._factory.over_stdio(self._over_stdio)
                events.RUNNER_BY_STDIO(error=e)
        except BananasError as e:
            self._host.leave()
            raise ConfigError(f"this runner cannot start sandboxes on {describe()}: {e}") from e

    def _shut_down(self) -> None:
        self._notifier.stopping()
        grace_s = 0.0 if self._crash else self._settings.grace_s
        if not self._worker.drain(grace_s):
            events.RUNNER_HANDS_BACK(jobs=len(self._in_flight))
            self._worker.hand_back(EXIT_S)
        deadline = time.monotonic() + EXIT_S
        for service in [*self._bells.values(), *reversed(self._services)]:
            service.stop(0.1)
        gevent.joinall([gevent.spawn(pool.close, EXIT_S) for pool in self._pools.values()], timeout=EXIT_S)
        try:
            self._announcer.run_once()  # what was counted since the last time
            self._registry.retire(self._host.name)
        except RedisUnavailable as e:
            events.RUNNER_LEFT_UNHEARD(error=e)
        try:
            self._open_network.close()
        except EngineUnavailable as e:
            events.NETWORK_LEFT(error=e)
        self._host.leave()
        self._connections.close()
        events.RUNNER_LEFT(runner=self._host.name, spare_s=deadline - time.monotonic())

    def _on_crash(self, role: str, error: BaseException) -> None:
        events.ROLE_DIED(error, role=role)
        self._crash = f"{role} died of {type(error).__name__}: {error}"
        self._stop.set()

    # -- upkeep -----------------------------------------------------------------------------------------------

    def _on_step(self, step: Step) -> None:
        self._maintenance.promoter.hint(step.next_due_ms)
        if step.pools_rev != self._pools_rev:
            self._catalog.forget_secrets()  # now: the claims of this step must have the new ones
            gevent.spawn(self._refresh_pools_quietly, step.pools_rev)
            self._pools_rev = step.pools_rev

    def _engine_is_back(self) -> None:
        for pool in self._pools.values():
            pool.setbacks.clear()
        self._upkeep.refresh()
        self._look_again()

    def _look_again(self) -> None:
        """What held pools up is over."""
        for name, pool in self._pools.items():
            pool.freed.set()
            self._worker.rang(name)

    def _refresh_pools_quietly(self, rev: int) -> None:
        try:
            self._refresh_pools()
        except RedisUnavailable as e:
            events.POOLS_STALE(error=e)
            self._pools_rev = rev - 1

    def _refresh_pools(self) -> None:
        self._catalog.forget_secrets()
        served, pools = self._settings.pools, self._registry.pools()
        self._tell_unknown([name for name in served if name not in pools], list(pools))
        for name, spec in pools.items():
            if served and name not in served:
                continue
            spec = self._catalog.pools[name] = self._gpus.fit(spec)
            if spec.network == "open" and (name not in self._pools or self._pools[name].spec.network != "open"):
                gevent.spawn(self._open_network.warm)
            if name in self._pools:
                self._pools[name].reconfigure(spec)
                continue
            pool = self._pools[name] = SandboxPool(
                name,
                spec,
                self._factory,
                self._gate,
                self._clock,
                ledger=self._ledger,
                tally=self._tally,
                alarm=self._alarm,
            )
            bell = self._bells[name] = Bell(self._on_crash, pool, self._worker)
            bell.start()
            self._worker.rang(name)
        self._upkeep.refresh()

    def _tell_unknown(self, names: list[str], known: list[str]) -> None:
        """Once for each: it is a typing error, or made later."""
        for name in names:
            if name not in self._unknown_pools:
                events.POOL_UNKNOWN(pool=name, known=", ".join(known))
        self._unknown_pools = set(names)

    def _publish_runtimes(self) -> None:
        try:
            self._catalog.refresh_runtimes()
        except EngineUnavailable as e:
            events.RUNTIMES_STALE(error=e)
            return
        self._registry.publish_runtimes(self._catalog.runtimes)
        self._upkeep.refresh()  # new images; and the safety net for a message that did not arrive


def describe_start(settings: Settings) -> str:
    """One line for the log."""
    return f"redis={safe_url(settings.redis_url)} state={settings.state_path} engine={describe()}"
