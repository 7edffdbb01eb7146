"""Start script of a Python sandbox: ``python3 -I -B -u keeper.py [root]``, root being ``/run/bananas`` by default."""

import importlib
import os
import sys
import types

PACKAGE = "_bananas_shim"


def main() -> int:
    """Run the keeper until the sandbox is over; returns the status to exit with."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[PACKAGE] = package
    root = sys.argv[1] if len(sys.argv) > 1 else "/run/bananas"
    status: int = importlib.import_module(f"{PACKAGE}.guard").main(root)
    return status


if __name__ == "__main__":
    sys.exit(main())
