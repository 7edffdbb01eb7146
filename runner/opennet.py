"""``network: open``: a bridge for the sandboxes of such pools, and the proof that it leads to nothing inside.

The bridge is shared by this installation's runners on this machine; sandboxes on it do not see each other. None is
started there before a probe from inside has found that Redis, the gateway, the machine's own addresses, another sandbox
and the cloud's metadata addresses cannot be reached. Any answer counts as reached, also a refusal: only silence does
not. A good result holds for ``GOOD_S``, a bad one for ``BAD_S``, so that a firewall rule helps without a restart. This
never changes the machine's firewall; it says which rules are missing. ``runner.sandbox`` asks before each such start.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gevent.lock import BoundedSemaphore

from bananas import events, pack, redis_nodes, redis_url
from bananas.errors import BananasError, ProtocolError, SandboxDied, SandboxStartError
from bananas.protocols import Binding, HandlerLoadError, Invocation, Sandbox
from bananas.settings import Settings
from bananas.spec import PoolSpec, RuntimeInfo
from runner.access import Access
from runner.bundles import BundleCache
from runner.docker_driver import LABEL_INSTANCE, Engine
from runner.host import Host
from runner.sandbox import DockerSandboxFactory
from runner.slot import profile_of

GOOD_S = 600.0
BAD_S = 15.0
#: One try to connect; all run at once.
CONNECT_S = 2.0
CALL_S = 15.0
INIT_S = 20.0
#: Of one machine; more would be a router.
MAX_ADDRESSES = 64
#: Where clouds keep credentials for whoever asks from the machine: the common one, and those of containers.
METADATA = ("169.254.169.254", "169.254.170.2", "169.254.0.1")
METADATA_NET = "169.254.0.0/16"
SSH = 22

HANDLER = "probe.handle"
#: What runs inside. ``listen`` keeps its socket open: the kernel accepts without it.
SOURCE = """
import socket

from look import connect

kept = []

def handle(event, context):
    if event["do"] == "listen":
        kept.append(socket.create_server(("0.0.0.0", 0)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(("192.0.2.1", 9))
            return [out.getsockname()[0], kept[0].getsockname()[1]]
    with open("/proc/net/if_inet6") as file:
        ipv6 = [line.split()[-1] for line in file if line.split()[-1] != "lo"]
    return {"ipv6": ipv6, "answers": connect(event["targets"], event["timeout_s"])}
"""
#: How it tries to connect is what ``bananas doctor`` tries too.
LOOK = Path(__file__).parent / "doctor" / "probe.py"


@dataclass(frozen=True, slots=True)
class Place:
    """Something that code on the bridge must not reach."""

    what: str
    address: str
    port: int
    #: The firewall rule that closes it; ``{bridge}`` is filled in.
    rule: str


def places(redis: Sequence[tuple[str, int]], gateway_port: int, own: Sequence[str]) -> list[Place]:
    """What to probe: Redis (address, port), the gateway's port, and ``own``, the addresses of this machine."""
    host_rule = "iptables -I INPUT -i {bridge} -j DROP"
    found: list[Place] = []
    ports = dict.fromkeys([*(port for _, port in redis), gateway_port, SSH])
    for address in dict.fromkeys(own):
        found += [Place("this machine", address, port, host_rule) for port in ports]
    for address, port in redis:
        if not ipaddress.ip_address(address).is_loopback and address not in own and ":" not in address:
            rule = f"iptables -I DOCKER-USER -i {{bridge}} -d {address} -j DROP"
            found.append(Place("Redis", address, port, rule))
    for address in METADATA:
        rule = f"iptables -I DOCKER-USER -i {{bridge}} -d {METADATA_NET} -j DROP"
        found.append(Place("the cloud's metadata", address, 80, rule))
    return found


def redis_places(url: str) -> list[tuple[str, int]]:
    """Addresses and ports of the servers that a Redis URL leads to now, sentinels included; none for a socket.

    Raises OSError when a name does not resolve, RedisUnavailable when no sentinel or node answers.
    """
    parsed = redis_url.parse(url)
    finder = redis_nodes.finder_of(parsed)
    nodes = dict.fromkeys([*parsed.nodes, *([finder.locate()] if finder is not None else [])])
    return [
        (str(sockaddr[0]), port)
        for host, port in nodes
        for *_, sockaddr in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    ]


def own_addresses(table: Path = Path("/proc/net/fib_trie")) -> list[str]:
    """This machine's IPv4 addresses but loopback ones, at most MAX_ADDRESSES; raises OSError."""
    found: dict[str, None] = {}
    last = ""
    for line in table.read_text("ascii").splitlines():
        text = line.strip()
        if text.startswith("|--"):
            last = text[3:].strip()
        elif text.endswith("host LOCAL") and not last.startswith("127."):
            found[last] = None
    return list(found)[:MAX_ADDRESSES]


def of_runner(
    settings: Settings, engine: Engine, instance: str, host: Host, image: Callable[[], RuntimeInfo | None]
) -> OpenNetwork:
    """The open network of a real runner; nothing is made or probed before it is asked for."""
    name = "bno-" + hashlib.sha256(instance.encode()).hexdigest()[:8]  # an interface's name has at most 15 bytes

    def find(bridge: list[str]) -> list[Place]:
        return places(redis_places(settings.require_redis_url()), settings.port, [*bridge, *own_addresses()])

    def create(network: str) -> tuple[Sandbox, Binding]:
        runtime = image()
        if runtime is None:
            raise SandboxStartError(
                "network: open cannot be probed without an image of runtime 'python'; `bananas images build` makes one"
            )
        with tempfile.TemporaryDirectory(prefix="bananas-probe-") as folder:
            (Path(folder) / "probe.py").write_text(SOURCE, "utf-8")
            (Path(folder) / "look.py").write_bytes(LOOK.read_bytes())
            bundle = pack.pack(Path(folder), ignore=())
        bundles = BundleCache(host.cache, {bundle.digest: bundle.data}.__getitem__)
        factory = DockerSandboxFactory(
            engine, bundles, host.directory, host.labels, Access(open_network=lambda: network)
        )
        profile = profile_of("probe", PoolSpec(network="open", memory_mb=64), runtime.image, runtime.image_id)
        return factory.create(profile), Binding("probe", bundle.digest[:12], HANDLER, bundle.digest, None)

    return OpenNetwork(engine, name, {LABEL_INSTANCE: instance}, find, create)


class OpenNetwork:
    """See the module."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        labels: dict[str, str],
        find: Callable[[list[str]], list[Place]],
        create: Callable[[str], tuple[Sandbox, Binding]],
    ) -> None:
        """``find`` gets the machine's addresses on the bridge and says what to probe; ``create`` starts a sandbox on
        the named network, unasked, and says what binds it to ``SOURCE``.
        """
        self.name = name
        self._engine = engine
        self._labels = labels
        self._find = find
        self._create = create
        self._lock = BoundedSemaphore(1)
        self._is_made = False
        self._verdict = ""
        self._until_s = 0.0

    def require(self) -> str:
        """The network's name, if nothing inside can be reached from it.

        Raises SandboxStartError naming what was reached and how to close it, or EngineUnavailable.
        """
        with self._lock:
            self._is_made = True
            gateways = self._engine.open_network(self.name, self._labels)
            if time.monotonic() >= self._until_s:
                self._verdict = self._probe(gateways)
                self._until_s = time.monotonic() + (BAD_S if self._verdict else GOOD_S)
                if not self._verdict:
                    events.NETWORK_PROVEN(network=self.name)
        if self._verdict:
            raise SandboxStartError(self._verdict)
        return self.name

    def warm(self) -> None:
        """Probe now, so that the first job does not wait for it and the log tells early; never raises for a bad one."""
        try:
            self.require()
        except BananasError as e:
            events.NETWORK_REFUSED(error=e)

    def close(self) -> None:
        """Remove the bridge, if this runner ever asked for it and no sandbox uses it. Raises EngineUnavailable."""
        if self._is_made:
            self._engine.remove_network(self.name)

    def _probe(self, gateways: list[str]) -> str:
        """Empty, or what is wrong and how to put it right."""
        sandboxes: list[Sandbox] = []
        try:
            peer = self._start(sandboxes)
            address, port = json.loads(self._call(peer, {"do": "listen"}))
            targets = [*self._find(gateways), Place("another sandbox", address, port, "modprobe br_netfilter")]
            prober = self._start(sandboxes)
            asked = [[place.address, place.port] for place in targets]
            found = json.loads(self._call(prober, {"do": "connect", "targets": asked, "timeout_s": CONNECT_S}))
        except (HandlerLoadError, SandboxDied, ProtocolError, TimeoutError, OSError) as e:
            raise SandboxStartError(f"network: open could not be probed: {e}") from e
        finally:
            for sandbox in sandboxes:
                sandbox.terminate()
        reached = [
            place
            for place, answer in zip(targets, found["answers"], strict=True)
            if answer in ("connected", "ECONNREFUSED", "ECONNRESET")
        ]
        if found["ipv6"]:
            reached.append(Place("IPv6", "::", 0, "docker network rm {bridge}"))
        return self._complaint(reached) if reached else ""

    def _complaint(self, reached: list[Place]) -> str:
        named = ", ".join(dict.fromkeys(f"{place.what} at {place.address}:{place.port}" for place in reached))
        rules = "; ".join(dict.fromkeys(place.rule.format(bridge=self.name) for place in reached))
        return (
            f"network: open is refused, because code in its sandboxes can reach {named}. Close that for the bridge "
            f"{self.name}, and jobs start within {BAD_S:g} s: {rules}"
        )

    def _start(self, sandboxes: list[Sandbox]) -> Sandbox:
        sandbox, binding = self._create(self.name)
        sandboxes.append(sandbox)
        sandbox.bind(binding, INIT_S, lambda _: None)
        return sandbox

    @staticmethod
    def _call(sandbox: Sandbox, event: dict[str, object]) -> bytes:
        call = Invocation(1, "probe", 1, json.dumps(event).encode(), CALL_S)
        reply = sandbox.invoke(call, lambda _: None, lambda _: None)
        if reply.result is None:
            raise SandboxStartError(f"network: open could not be probed: {(reply.error or {}).get('message')}")
        return reply.result
