"""Real servers for the tests of high availability: single ones, replica sets with sentinels, clusters, and TLS.

Every process is ours, started on a free port of loopback with its own folder, and ended by its process id; the kernel
ends it when the test run dies. The server program is the one that ``bananas.embedded`` finds, which may have been
built without TLS: then TLS ends in a small proxy of ours, whose certificates ``openssl`` makes.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from bananas import embedded
from bananas.ports import free_port
from tests.platform import until

START_S = 20.0
#: Of sentinels and cluster nodes until a silent server counts as down.
DOWN_AFTER_MS = 600
SERVICE = "jobs"


class Server:
    """One process: a server or a sentinel."""

    def __init__(self, folder: Path, words: list[str], password: str = "") -> None:
        """``words``: after the program's name; port and folder are ours to say."""
        folder.mkdir()
        self.port = free_port()
        self.password = password
        self.log = folder / "log"
        prefix, preexec = embedded._die_with_parent()
        server = str(embedded.find_server())
        command = [*prefix, server, *words, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=preexec
            )
        until(self._answers, START_S, f"{server} to answer; its log is {self.log}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text("utf-8", "replace")
        with self.client() as client, contextlib.suppress(redis.exceptions.RedisError):
            return bool(client.ping())
        return False

    def client(self) -> Any:
        """A plain client of this very process."""
        return redis.Redis("127.0.0.1", self.port, password=self.password or None, socket_timeout=5, protocol=2)

    def ask(self, *words: Any) -> Any:
        """One command, on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*words)

    def facts(self, section: str) -> dict[str, Any]:
        """INFO."""
        with self.client() as client:
            return dict(client.info(section))

    def kill9(self) -> None:
        """As if its host had died."""
        self.process.kill()
        self.process.wait(10)


class Servers:
    """Everything that one test started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Server] = []
        self._numbers = itertools.count()

    def server(self, *words: str, password: str = "") -> Server:
        """A server without files; ``words`` are further options."""
        login = ["--requirepass", password, "--masterauth", password] if password else []
        return self._start(["--save", "", "--repl-diskless-sync-delay", "0", *login, *words], password)

    def sentinel(self, port: int, quorum: int, password: str = "", own_password: str = "") -> Server:
        """A sentinel that watches the master at ``port``; ``own_password`` is what it asks of clients and sentinels."""
        path = self.folder / f"sentinel{next(self._numbers)}.conf"
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {port} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        lines += [f"sentinel auth-pass {SERVICE} {password}"] if password else []
        lines += [f"requirepass {own_password}", f"sentinel sentinel-pass {own_password}"] if own_password else []
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return self._start([str(path), "--sentinel"], own_password)

    def _start(self, words: list[str], password: str) -> Server:
        server = Server(self.folder / f"s{next(self._numbers)}", words, password)
        self._all.append(server)
        return server

    def replica_set(self, *words: str, password: str = "", own_password: str = "") -> ReplicaSet:
        """One master, two replicas, three sentinels, all of which know each other."""
        return ReplicaSet(self, words, password, own_password)

    def cluster(self, masters: int, replicas: int = 0) -> list[Server]:
        """Nodes of a cluster, masters first, the slots in equal parts; replica i follows master i."""
        nodes = []
        for _ in range(masters + replicas):
            bus = free_port()
            nodes.append(
                self.server(
                    *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
                    *("--cluster-node-timeout", str(DOWN_AFTER_MS), "--cluster-replica-validity-factor", "0"),
                )
            )
            nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", nodes[-1].port, bus)
        edges = [16384 * n // masters for n in range(masters + 1)]
        for node, first, last in zip(nodes, edges, edges[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        until(lambda: all(known_nodes(node) == len(nodes) for node in nodes), START_S, "the nodes to know each other")
        for master, replica in zip(nodes, nodes[masters:], strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID").decode())
            until(lambda r=replica: r.facts("replication").get("master_link_status") == "up", START_S, "a replica")
        until(lambda: all(b"state:ok" in node.ask("CLUSTER", "INFO") for node in nodes), START_S, "the cluster")
        return nodes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._all:
            server.kill9()


def known_nodes(node: Server) -> int:
    """Nodes that this one is connected to, itself among them."""
    flags = [line.split()[2] for line in node.ask("CLUSTER", "NODES").decode().splitlines()]
    return sum("handshake" not in words and "noaddr" not in words for words in flags)


class ReplicaSet:
    """A master with two replicas and three sentinels."""

    def __init__(self, servers: Servers, words: tuple[str, ...], password: str, own_password: str) -> None:
        self.master = servers.server(*words, password=password)
        follow = ("--replicaof", f"127.0.0.1 {self.master.port}")
        self.replicas = [servers.server(*follow, *words, password=password) for _ in range(2)]
        until(lambda: self.master.facts("replication")["connected_slaves"] == 2, START_S, "two replicas")
        until(lambda: all(self._is_in_sync(r) for r in self.replicas), START_S, "the replicas to be in sync")
        self.sentinels = [servers.sentinel(self.master.port, 2, password, own_password) for _ in range(3)]
        until(lambda: all(self._knows_all(s) for s in self.sentinels), START_S, "the sentinels to know everybody")

    def hosts(self) -> str:
        """The sentinels, for a URL."""
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    def named(self) -> set[int]:
        """Ports of the masters that the sentinels name."""
        return {int(s.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]) for s in self.sentinels}

    def _is_in_sync(self, replica: Server) -> bool:
        return replica.facts("replication").get("master_link_status") == "up"

    def _knows_all(self, sentinel: Server) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(SERVICE)
        return state["num-slaves"] == 2 and state["num-other-sentinels"] == 2


class TlsProxy:
    """TLS in front of a port; a connection that does not begin with TLS is passed on as it is (sentinels do that)."""

    def __init__(self, folder: Path, target: int) -> None:
        """Makes its own authority in ``folder`` unless it is there: ``ca.pem``."""
        self.ca = make_certificates(folder)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: Connections that came with TLS.
        self.encrypted = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(client)
            client.settimeout(60)
            if client.recv(1, socket.MSG_PEEK) == b"\x16":  # a TLS handshake
                client = stack.enter_context(self._context.wrap_socket(client, server_side=True))
                self.encrypted += 1
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target), 5))
            server.settimeout(60)
            self._open |= {client, server}
            stack.callback(self._open.difference_update, {client, server})
            _relay(client, server)


def _relay(client: socket.socket, server: socket.socket) -> None:
    """Both directions in one thread: OpenSSL's connections are not for two at once."""
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in selector.select():
                source: Any = key.fileobj
                while True:
                    data = source.recv(65536)
                    if not data:
                        return
                    key.data.sendall(data)
                    # What OpenSSL has decrypted already makes no socket readable.
                    if not (isinstance(source, ssl.SSLSocket) and source.pending()):
                        break


def make_certificates(folder: Path) -> Path:
    """An authority of our own and a server certificate for 127.0.0.1 and localhost; returns the authority's."""
    ca, done = folder / "ca.pem", folder / "server.pem"
    if done.exists():
        return ca
    assert shutil.which("openssl"), "the test of TLS makes its certificates with the openssl command; install it"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n", "utf-8")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    sign = ["openssl", "x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
    for command in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"],
        [*sign, "-in", "server.csr", "-extfile", "names", "-out", "server.pem"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=30)
    return ca


@contextlib.contextmanager
def tls_in_front(folder: Path, port: int) -> Iterator[TlsProxy]:
    """A TlsProxy for a while."""
    proxy = TlsProxy(folder, port)
    try:
        yield proxy
    finally:
        proxy.close()
