"""The function of the helper sandbox that has a network or secrets for a container of a user's own image beside it.

It does nothing but be there. Its secrets are in a folder that the container sees as well, and read-only; the user there
may be another one, so that everybody in the two may read them.
"""

from __future__ import annotations

import os

SECRETS = "/run/secrets"

for name in os.listdir(SECRETS):
    os.chmod(os.path.join(SECRETS, name), 0o444)
os.chmod(SECRETS, 0o755)  # noqa: S103 - nobody else has the volume


def handle(event: object, context: object) -> None:
    """Nobody calls it."""
