"""Runtime names and ABI strings."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bananas.errors import InvalidRequest
from bananas.runtimes import Abi, host_abi, parse_runtime

ABIS = st.builds(
    Abi,
    st.integers(0, 99).map("3.{}".format),
    st.sampled_from(["x86_64", "aarch64", "riscv64"]),
    st.sampled_from(["glibc", "musl"]),
    st.tuples(st.integers(0, 9), st.integers(0, 99)),
)


@given(ABIS)
def test_an_abi_survives_being_written_and_read(abi: Abi) -> None:
    """What a runner publishes, a deploy reads back unchanged."""
    assert Abi.parse(str(abi)) == abi


@pytest.mark.parametrize("text", ["", "cp311", "cp27-x86_64-glibc2.36", "cp311-x86_64-glibc2", "cp311-x86_64-bsd1.0"])
def test_an_abi_that_says_too_little_is_refused(text: str) -> None:
    """The error shows what one looks like."""
    with pytest.raises(InvalidRequest, match=r"cp311-x86_64-glibc2\.36"):
        Abi.parse(text)


@pytest.mark.parametrize(
    ("abi", "platform"),
    [
        ("cp311-x86_64-glibc2.36", "x86_64-manylinux_2_36"),
        ("cp313-aarch64-glibc2.41", "aarch64-manylinux_2_40"),
        ("cp311-x86_64-glibc2.30", "x86_64-manylinux_2_28"),
        ("cp311-x86_64-glibc2.17", "x86_64-manylinux_2_17"),
        ("cp312-x86_64-musl1.2", "x86_64-unknown-linux-musl"),
    ],
)
def test_wheels_are_chosen_for_the_newest_level_that_still_runs(abi: str, platform: str) -> None:
    """A wheel for a newer glibc than the image's would not load; an older one does."""
    assert Abi.parse(abi).uv_platform == platform


@pytest.mark.parametrize("abi", ["cp311-x86_64-glibc2.12", "cp311-riscv64-glibc2.36"])
def test_an_abi_without_wheels_is_refused(abi: str) -> None:
    """Better no deploy than one that cannot start."""
    with pytest.raises(InvalidRequest, match=r"wheels"):
        Abi.parse(abi).uv_platform  # noqa: B018


def test_runtime_names_pin_a_version_or_leave_it_open() -> None:
    """`python` takes what the runner has."""
    assert parse_runtime("python") == ("python", None)
    assert parse_runtime("python3.11") == ("python", "3.11")
    assert parse_runtime("node") == ("node", None)
    assert parse_runtime("node22") == ("node", "22")


@pytest.mark.parametrize("name", ["", "Python", "python3", "python2.7", "python3.13.1", "python3.10", "node20", "deno"])
def test_other_runtime_names_are_refused_by_name(name: str) -> None:
    """The error repeats what was written."""
    with pytest.raises(InvalidRequest, match=f"'{name}'"):
        parse_runtime(name)


def test_the_abi_of_this_host_names_this_interpreter() -> None:
    """Used where a deploy and a runner share a machine."""
    assert host_abi().python == f"{sys.version_info[0]}.{sys.version_info[1]}"
