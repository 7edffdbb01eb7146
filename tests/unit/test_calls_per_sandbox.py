"""``calls_per_sandbox`` in bananas.yaml and in the spec: what goes together with it, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bananas.errors import InvalidRequest, ManifestError
from bananas.manifest import load
from bananas.spec import Bundles, Deployment, FunctionSpec, Version
from runner.slot import Reuse, binding_of


def written(tmp_path: Path, keys: str) -> Path:
    for name in ("handler.py", "handler.js"):
        (tmp_path / "functions/f").mkdir(parents=True, exist_ok=True)
        (tmp_path / "functions/f" / name).write_text("")
    path = tmp_path / "bananas.yaml"
    path.write_text(f"version: 1\nfunctions:\n  f: {{{keys}}}\n")
    return path


@pytest.mark.parametrize("keys", ["calls_per_sandbox: 4", "calls_per_sandbox: '${CALLS}'"])
def test_it_ends_in_the_spec_and_from_there_in_the_sandbox(tmp_path: Path, keys: str) -> None:
    """As a number, also out of a variable; another number is another version."""
    spec = load(written(tmp_path, keys), {"CALLS": "4"}).functions["f"].spec
    assert spec.calls_per_sandbox == 4
    bundles = Bundles(code="0" * 64)
    version = Version(function="f", version="v", spec=spec, bundles=bundles, abi="x", deployed_at_ms=0)
    assert (binding_of(version, {}).calls, Reuse.of(spec).calls) == (4, 4)
    ids = {Deployment(spec=s, bundles=bundles, abi="x").version() for s in (spec, FunctionSpec())}
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("single_use: true", "calls_per_sandbox: with single_use a sandbox serves one call"),
        ("image: a, contract: http", "calls_per_sandbox: means nothing to an image of your own"),
    ],
)
def test_what_runs_one_call_at_a_time_refuses_it(tmp_path: Path, keys: str, says: str) -> None:
    """With its place in the file; one is what everything has."""
    path = written(tmp_path, f"{keys}, calls_per_sandbox: 2")
    with pytest.raises(ManifestError) as caught:
        load(path, {})
    assert [line for line in str(caught.value).splitlines() if f": functions.f.{says}" in line]
    if "image" not in keys:
        assert load(written(tmp_path, f"{keys}, calls_per_sandbox: 1"), {}).functions["f"].spec.calls_per_sandbox == 1


@pytest.mark.parametrize(
    "fields", ['"single_use": true', '"image": "a", "contract": "exec"', '"runtime": "node", "timeout_ms": 100']
)
def test_the_gateway_refuses_the_same(fields: str) -> None:
    """Also without bananas.yaml, and numbers beyond 1 to 100."""
    FunctionSpec.decode(f'{{{fields}, "calls_per_sandbox": 1}}')
    for calls in (0, 101) if "timeout" in fields else (2,):
        with pytest.raises(InvalidRequest, match="calls_per_sandbox"):
            FunctionSpec.decode(f'{{{fields}, "calls_per_sandbox": {calls}}}')
