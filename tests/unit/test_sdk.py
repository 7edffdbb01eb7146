"""What user code may import: errors that say what a retry is worth, and progress outside of a sandbox."""

from __future__ import annotations

import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

import bananas_sdk
from bananas_sdk import Permanent, Retry, progress


def test_retry_carries_its_delay_and_a_message():
    """The delay is where any exception may have one; the message says it unless there is a better one."""
    assert (Retry().retry_after_s, str(Retry())) == (None, "try again")
    assert (Retry(5).retry_after_s, str(Retry(5))) == (5, "try again in 5 s")
    busy = Retry(after_s=0.5, message="busy")
    assert (busy.retry_after_s, str(busy)) == (0.5, "busy")


@pytest.mark.parametrize(
    "value", [-1, -0.5, float("nan"), float("inf"), 10**400, True, "5", "soon", [], Decimal(5)], ids=repr
)
def test_a_delay_that_is_none_is_refused_where_it_is_written(value):
    """Not later and not silently: the traceback shows the line."""
    with pytest.raises(ValueError, match="after_s is a number of seconds from 0 on, not "):
        Retry(after_s=value)


def test_permanent_is_marked_like_any_exception_may_be():
    """One attribute, no magic."""
    assert Permanent("why").permanent is True
    assert str(Permanent("why")) == "why"
    assert not hasattr(Retry(), "permanent")


@pytest.mark.parametrize("error", [Retry(5, "busy"), Retry(), Permanent("why")], ids=repr)
def test_they_cross_processes(error):
    """A pool of worker processes raises them in the parent again."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_progress_outside_of_a_sandbox_checks_and_does_nothing_else(capfd):
    """Unit tests of user code fail where the sandbox would, and print nothing."""
    progress({"done": 3, "of": 10})
    progress("x" * 4094)
    with pytest.raises(ValueError, match="at most 4096 bytes of JSON, got 4097"):
        progress("x" * 4095)
    with pytest.raises(TypeError, match="progress takes JSON"):
        progress({1, 2})
    assert capfd.readouterr() == ("", "")


def test_it_needs_nothing_but_the_standard_library(tmp_path):
    """A copy works alone, in an isolated interpreter."""
    (tmp_path / "bananas_sdk.py").write_bytes(Path(bananas_sdk.__file__).read_bytes())
    code = "import sys; sys.path.append(sys.argv[1]); import bananas_sdk; bananas_sdk.progress(1); print('fine')"
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "fine\n"
