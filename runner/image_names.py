"""How engines spell the name of one local image: Docker ``bananas/python:default``, Podman with a registry before it.

Podman's Docker API puts ``docker.io/`` before every short name that it is given, and ``podman tag`` puts
``localhost/``, which that API does not look under. Pure text for ``images.py``; never asks an
engine or a registry.
"""

from __future__ import annotations


def short(tag: str) -> str:
    """The name that a person gave: ``docker.io/bananas/python:3.11`` → ``bananas/python:3.11``."""
    return tag.removeprefix("docker.io/library/").removeprefix("docker.io/").removeprefix("localhost/")


def spellings(image: str) -> tuple[str, ...]:
    """The names to look an image up by, in this order; an id or a name that has its registry is only itself."""
    first, slash, _ = image.partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    if has_registry or image.startswith("sha256:"):
        return (image,)
    return (image, f"localhost/{image}")
