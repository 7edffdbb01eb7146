"""A process with nothing of a runner but who tells callbacks: ``python -m tests.tools.callback_process LEASE_MS``.

Settings come from the environment, as in a runner.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import logging  # noqa: E402 - everything below must see the patched standard library
import sys  # noqa: E402

from bananas.callbacks import Callbacks  # noqa: E402
from bananas.redis_client import Connections  # noqa: E402
from bananas.secrets import SecretBox  # noqa: E402
from bananas.settings import Settings  # noqa: E402
from runner.maintenance.callbacks import CallbackTeller  # noqa: E402
from runner.webhook import Sender  # noqa: E402


def main(lease_ms: int) -> None:
    """Runs until it is killed."""
    settings = Settings.from_env()
    box = SecretBox.from_settings(settings)
    assert box is not None
    logging.basicConfig(level="INFO", stream=sys.stderr)

    def crashed(role: str, error: BaseException) -> None:
        logging.getLogger(role).critical("crashed", exc_info=error)
        sys.exit(1)

    callbacks = Callbacks(Connections(settings.require_redis_url()))
    teller = CallbackTeller(crashed, callbacks, Sender(settings.callback_allow), box.callback_keys, lease_ms)
    print("callbacks ready", flush=True)
    teller.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
