"""Any manifest that is right survives the way through YAML, and no text at all breaks the reader."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bananas.errors import ManifestError
from bananas.manifest import load
from bananas.spec import FunctionSpec, PoolSpec, RetrySpec
from bananas.units import show_time

names = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)
hosts = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,5}[A-Za-z0-9])?", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
times_ms = st.integers(1000, 600_000)

retries = st.builds(
    RetrySpec,
    max=st.integers(0, 20),
    base_ms=st.integers(1, 86_400_000),
    factor=st.floats(1, 10),
    cap_ms=st.integers(1, 86_400_000),
    jitter=st.sampled_from(["none", "full"]),
)
functions = st.builds(
    FunctionSpec,
    runtime=st.sampled_from(["python", "python3.11", "python3.13", "node", "node22"]),
    priority=st.sampled_from(["high", "normal", "low"]),
    timeout_ms=times_ms,
    init_timeout_ms=times_ms,
    retries=retries,
    env=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), texts, max_size=4),
    result_ttl_ms=times_ms,
    max_uses=st.none() | st.integers(1, 10_000),
    max_lifetime_ms=st.none() | times_ms,
    single_use=st.booleans(),
    min_warm=st.none() | st.integers(0, 512),
) | st.builds(FunctionSpec, runtime=st.sampled_from(["python3.11", "node"]), calls_per_sandbox=st.integers(1, 100))
ports = st.integers(1, 65535)
targets = (
    st.builds("{}.example.com:{}".format, hosts, ports)
    | st.builds("{}.example.com={}:{}".format, hosts, st.ip_addresses(v=4), ports)
    | st.builds("{}.example.com=[{}]:{}".format, hosts, st.ip_addresses(v=6), ports)
)
reaches = st.fixed_dictionaries({"egress": st.lists(targets, max_size=3).map(tuple)}) | st.just({"network": "open"})
pools = st.builds(
    lambda reach, **settings: PoolSpec(**settings, **reach),
    reach=reaches,
    gpus=st.integers(0, 64) | st.just("all"),
    concurrency=st.integers(1, 512),
    memory_mb=st.integers(32, 1_048_576),
    cpus=st.floats(0.01, 512),
    pids=st.integers(8, 32_768),
    tmp_mb=st.integers(1, 65_536),
    idle_timeout_ms=times_ms,
    min_warm=st.integers(0, 512),
    stems=st.integers(0, 64),
)


class Quoting(yaml.SafeDumper):
    """Quotes every text, as a careful person would: PyYAML leaves ``08`` bare, and it is not plain to every reader."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def written_function(spec: FunctionSpec) -> dict[str, Any]:
    """How a person would write it."""
    keys = {
        "path": "app",
        "runtime": spec.runtime,
        "priority": spec.priority,
        "timeout": show_time(spec.timeout_ms),
        "init_timeout": show_time(spec.init_timeout_ms),
        "retries": {
            "max": spec.retries.max,
            "base": show_time(spec.retries.base_ms),
            "factor": spec.retries.factor,
            "cap": show_time(spec.retries.cap_ms),
            "jitter": spec.retries.jitter,
        },
        "env": {name: value.replace("$", "$$") for name, value in spec.env.items()},
        "result_ttl": show_time(spec.result_ttl_ms),
        "max_uses": spec.max_uses,
        "max_lifetime": spec.max_lifetime_ms and show_time(spec.max_lifetime_ms),
        "single_use": spec.single_use,
        "calls_per_sandbox": spec.calls_per_sandbox,
        "min_warm": spec.min_warm,
    }
    return {key: value for key, value in keys.items() if value is not None}


def written_pool(spec: PoolSpec) -> dict[str, Any]:
    """How a person would write it."""
    return {
        "concurrency": spec.concurrency,
        "memory": f"{spec.memory_mb}M",
        "cpus": spec.cpus,
        "pids": spec.pids,
        "tmp": f"{spec.tmp_mb}M",
        "idle_timeout": show_time(spec.idle_timeout_ms),
        "min_warm": spec.min_warm,
        "stems": spec.stems,
        "egress": list(spec.egress),
        "network": spec.network,
        "gpus": spec.gpus,
    }


@pytest.fixture(scope="module")
def app() -> Iterator[Path]:
    """A folder with one function's code, shared because nothing writes to it but the manifest."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app").mkdir()
        (Path(folder) / "app" / "handler.py").touch()
        (Path(folder) / "app" / "handler.js").touch()
        yield Path(folder)


@settings(deadline=None)  # disks are slow at times
@given(st.dictionaries(names, functions, max_size=3), st.dictionaries(names, pools, max_size=3))
def test_what_is_written_is_what_is_read(
    app: Path, functions: dict[str, FunctionSpec], pools: dict[str, PoolSpec]
) -> None:
    """load(write(specs)) == specs, whatever the names, numbers and texts."""
    data = {
        "version": 1,
        "pools": {name: written_pool(pool) for name, pool in pools.items()},
        "functions": {name: written_function(function) for name, function in functions.items()},
    }
    (app / "bananas.yaml").write_text(yaml.dump(data, Dumper=Quoting), "utf-8")
    manifest = load(app / "bananas.yaml", {})
    assert {name: function.spec for name, function in manifest.functions.items()} == functions
    assert manifest.pools == pools


pieces = st.sampled_from(
    [
        *(
            "version: 1\n",
            "functions:\n",
            "pools:\n",
            "  a:\n",
            "  path: app\n",
            "    timeout: ",
            "30",
            "[",
            "]",
            "{",
            "}",
        ),
        *(
            "\n",
            " ",
            "\t",
            ": ",
            "- ",
            "&a ",
            "*a ",
            "<<: ",
            "'",
            '"',
            "${X}",
            "${",
            "# c\n",
            "|\n",
            "> \n",
            "!!x ",
            "? ",
        ),
        *("\0", "é", "---\n", "...\n", "%YAML 1.1\n", "~", "0x1", "1e999", "\x85", "\ufeff", "@", "`", "\\x"),
    ]
)


@settings(deadline=None)  # disks are slow at times
@given(st.lists(pieces | st.text(max_size=4), max_size=30).map("".join))
def test_any_text_is_read_or_refused_with_places(app: Path, text: str) -> None:
    """No input ends in anything but a manifest or lines of file:line:column."""
    path = app / "junk.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    problems = []
    try:
        load(path, {"X": "x"})
    except ManifestError as e:
        problems = e.problems or ["an error without a problem"]
    for problem in problems:
        assert re.match(rf"{re.escape(str(path))}:[1-9]\d*:[1-9]\d*: .", problem), problem
