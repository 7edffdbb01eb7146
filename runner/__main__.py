"""``python -m runner``: a runner. ``python -m runner images …``: the base images (see ``runner.images_cli``).
``python -m runner call …``: one call without a server (see ``runner.call``).
``python -m runner doctor``: what the engine and its sandboxes are like (see ``runner.doctor``).
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402

import gevent  # noqa: E402

from bananas import events, logs  # noqa: E402
from bananas.errors import BananasError  # noqa: E402
from bananas.settings import Settings  # noqa: E402


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
    if argv:
        print(f"error: python -m runner takes no arguments but images, call and doctor, got {argv}", file=sys.stderr)
        return 2
    from runner.supervisor import Supervisor, describe_start

    try:
        settings = Settings.from_env()
        settings.require_redis_url()
        logs.set_up(settings, "runner")
        events.RUNNER_STARTING(what=describe_start(settings))
        supervisor = Supervisor(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, supervisor.stop)
        return supervisor.run()
    except BananasError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
