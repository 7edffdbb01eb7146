"""How engines spell image names: what one engine shows and another one stores is the same name."""

from __future__ import annotations

import pytest

from runner.image_names import short, spellings


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("bananas/python:3.11-host", "bananas/python:3.11-host"),
        ("docker.io/bananas/python:3.11-host", "bananas/python:3.11-host"),
        ("localhost/bananas/python:3.11-host", "bananas/python:3.11-host"),
        ("docker.io/library/python:3.11-slim", "python:3.11-slim"),
        ("registry.example.com/bananas/python:3.11", "registry.example.com/bananas/python:3.11"),
        ("localhost:5000/bananas/python:3.11", "localhost:5000/bananas/python:3.11"),
    ],
)
def test_a_name_is_shown_without_the_registry_that_an_engine_put_before_it(stored: str, shown: str) -> None:
    """Podman's spelling and Docker's become the one that a person gave; a real registry stays."""
    assert short(stored) == shown


@pytest.mark.parametrize("name", ["bananas/python:default", "python:3.13-slim", "bananas/python", "python"])
def test_a_short_name_is_also_looked_up_under_localhost(name: str) -> None:
    """`podman tag` files a short name there, and Podman's Docker API does not look there by itself."""
    assert spellings(name) == (name, f"localhost/{name}")


@pytest.mark.parametrize(
    "name",
    ["docker.io/bananas/python:default", "localhost/python:1", "registry:5000/python:1", f"sha256:{'0' * 64}"],
)
def test_a_full_name_or_an_id_is_only_itself(name: str) -> None:
    """Whoever names a registry gets that image or an error, never another one."""
    assert spellings(name) == (name,)
