"""``python -m runner doctor``: what the engine is, and what its sandboxes really keep apart.

``command`` is the entry; ``engine`` and ``runc`` judge what the engine says of itself, ``inside`` judges what ``probe``
found in a sandbox. Nothing here changes an installation.
"""
