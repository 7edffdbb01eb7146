"""One suite over every runtime and contract: the same cases, whatever is inside (``subjects.py``)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from bananas.errors import SandboxDied
from bananas.settings import LIMITS
from runner import own_container
from tests.contract.subjects import LACKS, SUBJECTS, Rig

pytestmark = pytest.mark.docker


@pytest.fixture(params=list(SUBJECTS))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A rig whose sandboxes are gone afterwards, with all that belongs to them."""
    image = labels = None
    if request.param != "fake":
        image = request.getfixturevalue("node_image" if request.param == "node" else "base_image")
        labels = request.getfixturevalue("run").labels
    with SUBJECTS[request.param](image, labels) as rig:
        try:
            yield rig
        finally:
            rig.close()


def test_a_payload_comes_back_as_the_result(rig):
    """Any JSON value, text beyond ASCII too; one sandbox serves one call after the other."""
    sandbox = rig.bound("echo")
    for payload in (b"null", b"0", b'"text"', b'{"a":[1,2.5,true,null]}', '"grüße 🍌"'.encode()):
        reply = rig.call(sandbox, payload)
        assert (reply.error, reply.reusable) == (None, True)
        assert json.loads(reply.result) == json.loads(payload)


def test_a_payload_near_the_limit_comes_back(rig):
    """Nearly 1 MiB in, and out again."""
    payload = json.dumps("é" * ((LIMITS.payload_bytes - 100) // 2), ensure_ascii=False).encode()
    assert json.loads(rig.call(rig.bound("echo"), payload).result) == json.loads(payload)


def test_a_failure_is_an_answer_and_the_sandbox_goes_on(rig):
    """The message says what the code said."""
    sandbox = rig.bound("fails")
    for _ in range(2):
        reply = rig.call(sandbox)
        assert reply.result is None
        assert "no" in reply.error["message"]
        assert reply.reusable


def test_a_failure_has_the_codes_own_type(rig):
    """What clients tell failures apart by."""
    rig.needs("type of error")
    error = rig.call(rig.bound("fails")).error
    assert (error["type"], error["message"]) == ("ValueError", "no")
    assert "adapter" not in json.dumps(error), "nothing of ours"


def test_a_failure_may_forbid_or_delay_retries(rig):
    """permanent and retry_after_s."""
    rig.needs("permanent")
    gone, later = rig.call(rig.bound("gone")).error, rig.call(rig.bound("later")).error
    assert (gone["type"], gone["permanent"]) == ("Gone", True)
    assert (later["type"], later["retry_after_s"], "permanent" in later) == ("Later", 2.5, False)


def test_the_call_knows_its_job(rig):
    """Job id and number of the attempt."""
    rig.needs("attempt")
    assert json.loads(rig.call(rig.bound("attempt")).result) == ["job", 1]


def test_a_result_that_is_not_json_is_an_error(rig):
    """It is the function's, and the sandbox goes on."""
    sandbox = rig.bound("babbles")
    for _ in range(2):
        reply = rig.call(sandbox)
        assert reply.result is None
        assert "JSON" in reply.error["message"]
        assert reply.reusable


def test_a_result_over_the_limit_is_an_error(rig):
    """Up to 1 MiB arrives; more is ResultTooLarge, with the limit in the message."""
    rig.needs("too large")
    sandbox = rig.bound("large")
    assert len(rig.call(sandbox, b"%d" % (LIMITS.result_bytes - 2)).result) == LIMITS.result_bytes
    for size in (LIMITS.result_bytes - 1, 3 * LIMITS.result_bytes):
        error = rig.call(sandbox, b"%d" % size).error
        assert error["type"] == "ResultTooLarge"
        assert str(LIMITS.result_bytes) in error["message"]


def test_output_is_captured_in_order(rig):
    """What a call prints arrives with it, and not in the next one."""
    sandbox = rig.bound("prints")
    for _ in range(2):
        rig.printed.clear()
        rig.call(sandbox)
        assert b"".join(rig.printed).decode() == "eins\ngrüße\n"


def test_output_is_capped_and_says_so(rig):
    """The beginning, up to 256 KiB, then one empty piece; the call goes on."""
    rig.needs("cap")
    assert rig.call(rig.bound("floods"), b"600").error is None
    assert sum(map(len, rig.printed)) == LIMITS.log_bytes
    assert rig.printed[-1] == b""


def test_the_deadline_ends_a_call_and_everything_in_it(rig):
    """TimeoutError at the deadline; afterwards the sandbox takes no call."""
    sandbox = rig.bound("hangs")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        rig.call(sandbox, timeout_s=1.0)
    assert time.monotonic() - began < 30  # the call takes longer
    sandbox.terminate()
    assert not sandbox.is_alive
    with pytest.raises(SandboxDied):
        rig.call(sandbox)


def test_a_process_that_is_killed_is_not_an_answer(rig, tmp_path, monkeypatch):
    """SandboxDied; terminate tells the signal, and nothing of memory where the kernel killed nothing for that."""
    (tmp_path / "vmstat").write_text("oom_kill 7\n")  # the real one may count what happens beside this test
    monkeypatch.setattr(own_container, "VMSTAT", tmp_path / "vmstat")
    sandbox = rig.bound("killed")
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
    info = sandbox.terminate()
    assert (info.signal, info.oom) == (9, False)


def test_a_process_that_exits_is_not_a_result(rig):
    """Its status is told, by terminate or in the error."""
    sandbox = rig.bound("exits")
    try:
        error = rig.call(sandbox).error
    except SandboxDied:
        assert sandbox.terminate().status == 3
    else:
        assert error == {"type": "ExitStatus", "message": "exited with status 3"}


def test_more_memory_than_allowed_is_out_of_memory(rig):
    """The kernel ends it, and terminate says why."""
    sandbox = rig.bound("hoards")
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
    info = sandbox.terminate()
    assert info.oom


def test_the_environment_is_the_functions(rig):
    """What it declares is there, nothing of the platform is."""
    rig.needs("env")
    assert json.loads(rig.call(rig.bound("env", GREETING="grüße"), b'["GREETING"]').result) == {"GREETING": "grüße"}
    names = json.loads(rig.call(rig.bound("names")).result)
    assert not [name for name in names if name.startswith(("BANANAS", "REDIS", "DOCKER"))]


def test_only_tmp_can_be_written(rig):
    """Neither the root, nor the code, nor the system's folders."""
    rig.needs("walls")
    paths = ["/x", "/tmp/x", "/etc/x", "/usr/bin/x", "/var/tmp/x", "/run/bananas/x", "/run/bananas/code/x"]
    assert json.loads(rig.call(rig.bound("writes"), json.dumps(paths).encode()).result) == ["/tmp/x"]


def test_code_is_nobody(rig):
    """Never root."""
    rig.needs("user")
    assert json.loads(rig.call(rig.bound("user")).result) == [65534, 65534]


def test_there_is_no_network_but_loopback(rig):
    """Nothing to send a packet through, so no address of anybody."""
    rig.needs("walls")
    assert json.loads(rig.call(rig.bound("interfaces")).result) == ["lo"]


def test_a_second_call_finds_what_the_first_one_left_in_memory(rig):
    """That is what a warm sandbox is for."""
    rig.needs("warm")
    sandbox = rig.bound("count")
    assert [rig.call(sandbox).result for _ in range(3)] == [b"1", b"2", b"3"]


def test_two_sandboxes_do_not_see_each_other(rig):
    """What one writes to /tmp, another of the same function does not find; both work at the same time."""
    rig.needs("walls")
    first, second = rig.bound("writes"), rig.bound("reaches")
    replies: dict[str, bytes | None] = {}

    def call(name: str, sandbox: object, payload: bytes) -> None:
        replies[name] = rig.call(sandbox, payload).result

    threads = [
        threading.Thread(target=call, args=("first", first, b'["/tmp/mine"]')),
        threading.Thread(target=call, args=("second", second, b'[["127.0.0.1", 22], ["172.17.0.1", 22]]')),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert replies == {"first": b'["/tmp/mine"]', "second": b"[]"}


def test_terminate_is_idempotent_and_interrupt_ends_calls(rig):
    """Ending what has ended says the same; an interrupted sandbox refuses calls."""
    sandbox = rig.bound("echo")
    sandbox.interrupt()
    with pytest.raises(SandboxDied):
        rig.call(sandbox)
    assert sandbox.terminate() == sandbox.terminate()


@pytest.mark.parametrize("case", ["meets", "awaits"])
def test_several_calls_run_at_once_in_one_sandbox(rig, case):
    """Four calls in threads, or as tasks of one loop: each waits for the others inside, and has its own answer and
    output."""
    rig.needs("several calls")
    sandbox = rig.bound(case, calls=4)
    calls = rig.calls(sandbox, *((job, 25.0) for job in "abcd"), payload=b"4")
    replies = [json.loads(call.ended().result) for call in calls]
    assert [job for _, job in replies] == list("abcd")
    assert len({pid for pid, _ in replies}) == 1
    assert [call.text for call in calls] == [f"in {job}\nout {job}\n" for job in "abcd"]


def test_the_end_of_a_shared_sandbox_ends_every_call_in_it(rig):
    """At the deadline of one, the others get SandboxDied when it is ended, and what they printed so far."""
    rig.needs("several calls")
    rig.needs("shared end")
    sandbox = rig.bound("parts", calls=3)
    late, *others = rig.calls(sandbox, ("a", 3.0), ("b", 60.0), ("c", 60.0))
    assert isinstance(late.ended(), TimeoutError)
    assert all(other.is_alive() for other in others)
    sandbox.terminate()
    for other in others:
        assert isinstance(other.ended(), SandboxDied)
    assert [call.text for call in (late, *others)] == ["waits\n"] * 3


def test_a_crash_in_a_shared_sandbox_is_everyones(rig):
    """And terminate tells how the process ended."""
    rig.needs("several calls")
    rig.needs("shared end")
    sandbox = rig.bound("parts", calls=3)
    calls = [*rig.calls(sandbox, ("a", 25.0), ("b", 25.0)), *rig.calls(sandbox, ("c", 25.0), payload=b'"exit"')]
    assert all(isinstance(call.ended(), SandboxDied) for call in calls)
    assert sandbox.terminate().status == 3


def test_what_a_subject_lacks_is_a_thing_that_a_case_asks_for():
    """The list of exceptions names no subject and no case that does not exist."""
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    assert {subject for subject, _ in LACKS} <= SUBJECTS.keys()
    assert [thing for _, thing in LACKS if f'("{thing}")' not in text] == []
