"""The gateway: HTTP in, Redis out. Never talks to Docker; shares nothing with the runner but ``bananas``.

``python -m gateway`` starts it. ``app.py`` wires the parts, ``routes/`` are the calls of docs/http-api.md.
"""
