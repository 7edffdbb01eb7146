"""Images of one's own in bananas.yaml, in the spec, and in the runner's catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from bananas.errors import ImageMissing, InvalidRequest, ManifestError
from bananas.manifest import load
from bananas.spec import Bundles, FunctionSpec, Version
from runner.catalog import Catalog
from runner.slot import binding_of


def problems_of(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "bananas.yaml").write_text(f"version: 1\nfunctions:\n{text}")
    with pytest.raises(ManifestError) as caught:
        load(tmp_path / "bananas.yaml", {})
    return [line.split(": ", 1)[1] for line in str(caught.value).split("\n") if "functions." in line]


def test_an_image_needs_no_folder_and_no_handler(tmp_path: Path) -> None:
    """Contract and command end in the spec."""
    text = "version: 1\nfunctions:\n  f: {image: 'reg:5000/a/b:1', contract: exec, command: [sh, -c, 'cat']}\n"
    (tmp_path / "bananas.yaml").write_text(text)
    spec = load(tmp_path / "bananas.yaml", {}).functions["f"].spec
    assert (spec.image, spec.contract, spec.command) == ("reg:5000/a/b:1", "exec", ("sh", "-c", "cat"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  f: {image: a}", "functions.f.image: an image needs a contract; write contract: http, or contract: exec"),
        ("  f: {image: a, contract: handler}", "functions.f.image: an image needs a contract"),
        ("  f: {contract: http}", "functions.f.contract: contract http is of an image; write image: as well"),
        ("  f: {command: [sh]}", "functions.f.command: is of an image"),
        ("  f: {image: a, contract: http, runtime: python}", "functions.f.runtime: means nothing to an image"),
        ("  f: {image: a, contract: lambda}", "functions.f.contract: 'lambda' is not valid; write one of handler"),
        ("  f: {image: 'a b', contract: http}", "functions.f.image: 'a b' is not valid; write an image's name"),
    ],
)
def test_keys_that_do_not_go_together_are_named(tmp_path: Path, text: str, said: str) -> None:
    """With what to write instead."""
    assert any(line.startswith(said) for line in problems_of(tmp_path, text + "\n")), problems_of(tmp_path, text)


@pytest.mark.parametrize(
    "fields",
    ['"image": "a"', '"contract": "exec"', '"command": ["x"]'],
)
def test_the_gateway_refuses_what_does_not_go_together(fields: str) -> None:
    """Also without bananas.yaml."""
    with pytest.raises(InvalidRequest):
        FunctionSpec.decode(f"{{{fields}}}")


def test_an_image_is_looked_up_once_until_runtimes_are_looked_at_again() -> None:
    """A reference may get another image; one that is missing is asked for each time."""
    asked: list[str] = []
    ids = {"a:1": "sha256:1"}

    def find(name: str) -> str | None:
        asked.append(name)
        return ids.get(name)

    spec = FunctionSpec(image="a:1", contract="http", command=("serve",))
    version = Version(
        function="f", version="v", spec=spec, bundles=Bundles(code="0" * 64), abi="image", deployed_at_ms=0
    )
    catalog = Catalog(lambda *_: version, lambda _: {}, dict, find)
    for _ in range(2):
        profile = catalog.profile("p", version)
    assert (profile.image, profile.image_id, profile.shim, asked) == ("a:1", "sha256:1", "http", ["a:1"])
    assert binding_of(version, {}).command == ("serve",)
    ids["a:1"] = "sha256:2"
    catalog.refresh_runtimes()
    assert catalog.profile("p", version).image_id == "sha256:2"
    ids.clear()
    catalog.refresh_runtimes()
    with pytest.raises(ImageMissing, match="docker pull a:1"):
        catalog.profile("p", version)
