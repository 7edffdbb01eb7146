"""``bananas up`` and ``bananas dev``: which programs make a Bananas on one machine, with which settings.

``up`` is Redis, the gateway and one runner; a manifest, if given, is deployed once they are ready. ``dev`` has three
runners and a mail sink, deploys and restarts what is edited (``bananas.devloop``), stops sooner, and keeps its data in
``./.bananas``. Decides names, ports, directories and order; ``bananas.supervise`` does the work. A Redis that
BANANAS_REDIS_URL names is used and never stopped. Called by the command line, the demo and tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from bananas import manifest as manifest_file
from bananas.devloop import DevLoop
from bananas.errors import ConfigError, ManifestError
from bananas.notify import Notifier
from bananas.own_redis import OwnRedis
from bananas.ports import check_port, free_port, taken
from bananas.process import Program, describe
from bananas.redis_client import safe_url
from bananas.secrets import ensure_key_file
from bananas.settings import Settings
from bananas.supervise import Supervisor

Mode = Literal["up", "dev"]

MAIL_PORT = 2525
DEV_RUNNERS = 3
GATEWAY_START_S = 30.0
#: After its grace, in which open calls may finish.
GATEWAY_EXIT_S = 10.0
#: The first start proves the state directory with a sandbox.
RUNNER_START_S = 60.0
#: After its grace, a runner ends its sandboxes and leaves.
RUNNER_EXIT_S = 25.0
#: Whoever stops ``dev`` wants the prompt back; unfinished jobs go back to the queue.
DEV_GRACE_S = 5.0
READYZ_TIMEOUT_S = 1.0


class Stack:
    """One Bananas on this machine. ``run`` blocks; ``stop`` may come from another thread or a signal handler."""

    def __init__(
        self,
        mode: Mode,
        manifest: Path | None,
        environ: Mapping[str, str],
        emit: Callable[[str], None],
        notifier: Notifier | None = None,
    ) -> None:
        """``emit`` takes each finished line of the log. Raises ConfigError for a wrong setting."""
        self.mode = mode
        self._notifier = notifier or Notifier({})
        #: Set when the first functions are live; and when there is nothing more to deploy. Both at the end of ``run``.
        self.live = threading.Event()
        self.settled = threading.Event()
        #: Exit status of the latest deploy; None before the first one.
        self.deploy_status: int | None = None
        self._manifest = manifest.absolute() if manifest else None
        settings = Settings.from_env(environ)
        self.state = settings.state_path
        if mode == "dev" and not settings.state_dir:
            self.state = Path(".bananas").absolute()
        self.host, self.port = settings.host, settings.port
        is_ours = _wants_own_redis(environ) or not settings.redis_url
        given = "" if is_ours else settings.require_redis_url()
        self.supervisor = Supervisor(emit, self._on_ready)
        self._say = self.supervisor.say
        redis_port = settings.redis_port if mode == "dev" else 0
        self._redis = None if given else OwnRedis(self.state / "redis", redis_port)
        self.redis_url = given or (self._redis.server.url if self._redis else "")
        self._mail_wish = _mail_wish(environ)
        self._runners = [f"runner{n}" for n in range(1, DEV_RUNNERS + 1)] if mode == "dev" else ["runner"]
        self._loop: DevLoop | None = None
        #: A deploy is under way; and something changed since it began.
        self._is_deploying = False
        self._is_stale = False
        self._mail_port = _mail_port(self._mail_wish) if mode == "dev" else 0
        self._seals = not (settings.secret_key or settings.secret_key_file)
        grace_s = DEV_GRACE_S if mode == "dev" and not environ.get("BANANAS_GRACE_S") else settings.grace_s
        self._env = self._environment(environ, grace_s)
        self._add_parts(grace_s)

    def _environment(self, environ: Mapping[str, str], grace_s: float) -> dict[str, str]:
        """What the parts are started with: what is given, and what they have in common."""
        env = {
            **environ,
            "BANANAS_REDIS_URL": self.redis_url,
            "BANANAS_STATE_DIR": str(self.state),
            "BANANAS_URL": self.url,
            "BANANAS_GRACE_S": f"{grace_s:g}",
        }
        if not env.get("BANANAS_LOG_FORMAT") and sys.stdout.isatty():
            env["BANANAS_LOG_FORMAT"] = "pretty"  # what the parts write goes through a pipe to our terminal
        if self._seals:
            env["BANANAS_SECRET_KEY_FILE"] = str(self.state / "secret.key")
        if self.mode == "dev":
            env |= {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(self._mail_port)}
            env["BANANAS_LOG_LEVEL"] = env.get("BANANAS_LOG_LEVEL") or "debug"  # what handlers say when they fail
        return env

    @property
    def url(self) -> str:
        """The gateway's address as people write it."""
        host = "localhost" if self._connect_host == "127.0.0.1" else self._connect_host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def mail_dir(self) -> Path:
        """Where the mail sink keeps what it received."""
        return self.state / "mail"

    def run(self) -> int:
        """Run until stopped; the exit code. Raises ConfigError when the port or the state directory is taken."""
        try:
            with _sole_owner(self.state):
                check_port(self.host, self.port)
                if self._seals:
                    ensure_key_file(self.state / "secret.key")
                code = self.supervisor.run()
        finally:
            if self._loop is not None:
                self._loop.stop()
            self.supervisor.close()
            self.live.set()
            self.settled.set()
        if self.supervisor.problem:
            self._say(f"error: {self.supervisor.problem}; everything is stopped", "")
        return code

    def stop(self) -> None:
        """Stop everything in order; a second call kills."""
        self._notifier.stopping()
        self.supervisor.stop()

    @property
    def _connect_host(self) -> str:
        if self.host in ("0.0.0.0", "localhost"):  # noqa: S104 - compared, not bound
            return "127.0.0.1"
        return "::1" if self.host == "::" else self.host

    def _add_parts(self, grace_s: float) -> None:
        add = self.supervisor.add
        needs = []
        if self._redis:
            add(self._redis)
            needs = [self._redis.name]
        if self.mode == "dev":
            argv = _module("bananas.mailsink", "--port", str(self._mail_port), "--dir", str(self.mail_dir))
            add(Program("mail", argv, self._env, ready_line="mail sink listening on"))
        gateway = Program(
            "gateway",
            _module("gateway"),
            self._env,
            ready_line="gateway listening on",
            check=self._gateway_is_ready,
            start_s=GATEWAY_START_S,
            stop_s=grace_s + GATEWAY_EXIT_S,
        )
        add(gateway, needs)
        for name in self._runners:
            runner = Program(
                name,
                _module("runner"),
                self._env,
                ready_line="ready, pools:",
                start_s=RUNNER_START_S,
                stop_s=grace_s + RUNNER_EXIT_S,
            )
            add(runner, needs)

    def _gateway_is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self._connect_host, self.port, timeout=READYZ_TIMEOUT_S)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):  # not up yet; the part's deadline decides
            return False
        finally:
            connection.close()

    # -- once everything runs ---------------------------------------------------------------------------------

    def _on_ready(self) -> None:
        self._notifier.ready(f"serves {self.url}")
        if self._manifest is None:
            self.live.set()
            self._settle()
        else:
            self._deploy(self._manifest, self._without_requirements())
            if self.mode == "dev":
                self._watch(self._manifest)

    def _functions(self) -> dict[str, manifest_file.ManifestFunction]:
        """What the manifest declares; nothing when it is wrong (the deploy says what)."""
        if self._manifest is None:
            return {}
        try:
            return manifest_file.load(self._manifest, self._env).functions
        except ManifestError:
            return {}

    def _without_requirements(self) -> list[str]:
        """Functions that can be live at once, when there are others that wait for their packages."""
        functions = self._functions()
        names = [name for name, function in functions.items() if function.requirements is None]
        return names if len(names) < len(functions) else []

    def _deploy(self, manifest: Path, first: list[str]) -> None:
        """Deploy the functions in ``first``, then all; a failure is told, and ends it."""

        def over(status: int) -> None:
            self.deploy_status = status
            self._is_deploying = False
            if status == 0:
                self.live.set()
            if self._is_stale or (status == 0 and first):
                self._deploy(manifest, [])
                return
            if status != 0:
                self._say(f"the deploy of {manifest} ended with {describe(status)}; what was live before still is")
                mend = "save it" if self._loop else f"then: {self._again(manifest)}"
                self._say(f"mend it, {mend}")
            if not self.settled.is_set():
                self._settle()

        self._is_deploying, self._is_stale = True, False
        argv = _module("bananas", "deploy", "--file", str(manifest), *first)
        self.supervisor.add(Program("deploy", argv, self._env), on_end=over)

    def _watch(self, manifest: Path) -> None:
        self._loop = DevLoop(
            manifest,
            lambda: [function.folder for function in self._functions().values()],
            post=self.supervisor.post,
            redeploy=lambda: self._redeploy(manifest),
            restart=self.supervisor.restart,
            runners=self._runners,
        )
        self._loop.start()

    def _redeploy(self, manifest: Path) -> None:
        """Something was edited: deploy all, after the deploy that is under way."""
        if self._is_deploying:
            self._is_stale = True
        else:
            self._say("something changed; deploying")
            self._deploy(manifest, [])

    def _again(self, manifest: Path) -> str:
        names = ("BANANAS_URL", "SMTP_HOST", "SMTP_PORT") if self.mode == "dev" else ("BANANAS_URL",)
        settings = [f"{name}={shlex.quote(self._env[name])}" for name in names]
        return " ".join([*settings, "bananas deploy --file", shlex.quote(str(manifest))])

    def _settle(self) -> None:
        """Say what runs and how to try it."""
        redis = str(self._redis.server.log_path) if self._redis else "not ours"
        rows = [("gateway", self.url), ("redis", f"{safe_url(self.redis_url)} ({redis})"), ("data", str(self.state))]
        rows.insert(1, ("runners", f"{', '.join(self._runners)}; each does the maintenance too"))
        if self.mode == "dev":
            moved = "" if self._mail_port == self._mail_wish else f" ({self._mail_wish} is taken)"
            rows.insert(3, ("mail", f"smtp://127.0.0.1:{self._mail_port}{moved}, mails in {self.mail_dir}"))
        for name, what in rows:
            self._say(f"{name:<8} {what}")
        if self.mode == "dev":
            self._say("try:")
            for line in self._examples():
                self._say(f"  {line}")
        self._say("Ctrl-C stops everything")
        self.live.set()
        self.settled.set()

    def _examples(self) -> list[str]:
        names = list(self._functions())
        name = "hello" if "hello" in names or not names else names[0]
        payload = '{"name": "Ada"}' if name == "hello" else "{}"
        job = f'{{"name": "{name}", "payload": {payload}}}'
        calls = [(f"/functions/{name}/invoke", payload), ("/jobs", job)]
        return [
            f"""curl -X POST {self.url}{path} -H "Content-Type: application/json" -d '{body}'""" for path, body in calls
        ]


def run(mode: str, manifest: Path | None) -> int:
    """Run the stack in the foreground until Ctrl-C or SIGTERM; returns the exit code.

    ``mode`` is ``up`` or ``dev``; ``manifest`` is deployed once everything is ready, None deploys nothing. Raises
    ConfigError for a wrong setting, a taken port or a state directory in use.
    """
    if mode not in ("up", "dev"):
        raise ConfigError(f"mode {mode!r} is unknown; there are up and dev")
    notifier = Notifier()  # before the environment is handed on: none of the parts speaks to systemd itself
    stack = Stack("dev" if mode == "dev" else "up", manifest, os.environ, _to_stdout, notifier)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stack.stop())
    return stack.run()


def _wants_own_redis(environ: Mapping[str, str]) -> bool:
    """BANANAS_REDIS=embedded: our own server, whatever BANANAS_REDIS_URL says."""
    wanted = environ.get("BANANAS_REDIS", "")
    if wanted not in ("", "embedded"):
        raise ConfigError(f"BANANAS_REDIS={wanted!r} is not valid: embedded, or empty; a URL goes to BANANAS_REDIS_URL")
    return wanted == "embedded"


def _mail_wish(environ: Mapping[str, str]) -> int:
    wanted = environ.get("SMTP_PORT", "")
    return int(wanted) if wanted.isdecimal() and 0 < int(wanted) < 65536 else MAIL_PORT


def _mail_port(wish: int) -> int:
    return free_port() if taken("127.0.0.1", wish) else wish


@contextlib.contextmanager
def _sole_owner(state: Path) -> Iterator[None]:
    """Hold the state directory; the lock ends with this process, however it ends."""
    try:
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock = (state / "stack.lock").open("a+")
    except OSError as e:
        raise ConfigError(f"BANANAS_STATE_DIR: {state} cannot be used: {e}") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            lock.seek(0)
            owner = lock.read(20).strip() or "unknown"
            raise ConfigError(
                f"{state} is in use by process {owner} (bananas up or dev); stop that, or set BANANAS_STATE_DIR"
            ) from e
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _module(name: str, *args: str) -> list[str]:
    # -P: a folder of the user's own that is called gateway or runner must not come before ours.
    return [sys.executable, "-P", "-m", name, *args]


def _to_stdout(line: str) -> None:
    """Whole lines, unbuffered, to the descriptor: nothing is left to flush when the reader has gone."""
    data = f"{line}\n".encode(errors="replace")
    while data:
        data = data[os.write(1, data) :]
