"""``python -m runner``: a runner. ``python -m runner --only maintenance``: its maintenance roles alone.
``python -m runner images …``: the base images (see ``runner.images_cli``).
``python -m runner call …``: one call without a server (see ``runner.call``).
``python -m runner doctor``: what the engine and its sandboxes are like (see ``runner.doctor``).
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import gevent  # noqa: E402

from bananas import events, logs  # noqa: E402
from bananas.errors import BananasError  # noqa: E402
from bananas.redis_client import safe_url  # noqa: E402
from bananas.settings import Settings  # noqa: E402

if TYPE_CHECKING:
    from runner.maintenance.process import MaintenanceProcess
    from runner.supervisor import Supervisor

ONLY_MAINTENANCE = ["--only", "maintenance"]


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 after a clean shutdown, 1 when it could not start or a role died."""
    if argv[:1] == ["images"]:
        from runner import images_cli

        return images_cli.main(argv[1:])
    if argv[:1] == ["call"]:
        from runner import call

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return call.main(argv[1:])
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
    if argv == ["doctor"]:
        from runner.doctor import command

        return command.main()
    if argv and argv != ONLY_MAINTENANCE:
        known = f"images, call, doctor and {' '.join(ONLY_MAINTENANCE)}"
        print(f"error: python -m runner takes no arguments but {known}, got {argv}", file=sys.stderr)
        return 2
    try:
        settings = Settings.from_env()
        settings.require_redis_url()
        process = maintenance(settings) if argv else runner(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, process.stop)
        return process.run()
    except BananasError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def runner(settings: Settings) -> Supervisor:
    """The whole."""
    from runner.supervisor import Supervisor, describe_start

    logs.set_up(settings, "runner")
    events.RUNNER_STARTING(what=describe_start(settings))
    return Supervisor(settings)


def maintenance(settings: Settings) -> MaintenanceProcess:
    """What needs no engine."""
    from runner.maintenance.process import MaintenanceProcess

    logs.set_up(settings, "maintenance")
    events.RUNNER_STARTING(what=f"maintenance redis={safe_url(settings.redis_url)}")
    return MaintenanceProcess(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
