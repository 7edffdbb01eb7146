"""The shim for Python functions: what runs in a sandbox beside user code. Python 3.11 or later, standard library only.

``keeper.py`` is the start script. It loads the other files as a package with a private name, so that a function may
have modules called ``worker`` or ``logs`` of its own. The protocol is in ``docs/shim-protocol.md``.
"""
