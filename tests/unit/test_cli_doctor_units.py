"""What ``bananas doctor`` says of units, by what ``systemctl`` says; ``tests/setup/units.py`` asks a real systemd."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bananas.cli import units
from bananas.findings import Finding
from bananas.settings import Settings

RUNNER = {
    "Id": "bananas-runner@gpu.service",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "NRestarts": "0",
    "TimeoutStopUSec": "1min 15s",
    "Environment": "BANANAS_POOLS=gpu BANANAS_STATE_DIR=/var/lib/bananas",
}


def found(*env_files: Path, **facts: str) -> list[Finding]:
    """The findings of a good runner's unit, but for ``facts``."""
    files = [f"{path} (ignore_errors=yes)" for path in env_files]
    return list(
        units.unit({**{name: [value] for name, value in {**RUNNER, **facts}.items()}, "EnvironmentFiles": files})
    )


def env_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "bananas.env"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("facts", "status", "says"),
    [
        ({}, "ok", "active (running)"),
        ({"NRestarts": "1"}, "ok", "active (running), restarted 1 time"),
        ({"ActiveState": "failed", "SubState": "failed"}, "failed", "failed (failed)"),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "4"},
            "failed",
            "activating (auto-restart), restarted 4 times",
        ),
        ({"ActiveState": "activating", "SubState": "start"}, "warning", "activating (start)"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "warning", "inactive (dead)"),
    ],
)
def test_a_unit_is_told_by_its_state(facts: dict[str, str], status: str, says: str) -> None:
    """One that systemd starts over and over is a failure, although it is active now and then."""
    [finding] = found(**facts)
    assert (finding.name, finding.status, finding.detail) == ("bananas-runner@gpu.service", status, says)
    assert (finding.next == "") == (status == "ok")


def test_what_a_boot_or_an_edit_would_change_is_a_warning() -> None:
    """Not enabled, or edited without a reload; with the command that mends it."""
    [_, finding] = found(UnitFileState="disabled")
    assert (finding.status, finding.next) == ("warning", "systemctl enable bananas-runner@gpu.service")
    [_, finding] = found(NeedDaemonReload="yes")
    assert (finding.status, "systemctl daemon-reload" in finding.next) == ("warning", True)


def test_a_stop_shorter_than_the_grace_is_a_failure(tmp_path: Path) -> None:
    """The grace is the one in the unit's env files; what else the unit needs to leave is added."""
    [_, finding] = found(TimeoutStopUSec="45s")
    assert finding.detail == "it is killed 45 s after a stop began, and may need 50 s (BANANAS_GRACE_S + 20)"
    assert finding.next == "TimeoutStopSec=55 by `systemctl edit bananas-runner@gpu.service`"
    grace = env_file(tmp_path, "# long jobs\nBANANAS_GRACE_S='300'\n")
    [_, finding] = found(grace)
    assert (finding.status, "may need 320 s" in finding.detail) == ("failed", True)
    assert len(found(grace, TimeoutStopUSec="infinity")) == 1
    assert len(found(grace, TimeoutStopUSec="5min 20s")) == 1


def test_settings_that_others_can_read_are_a_failure(tmp_path: Path) -> None:
    """They hold Redis' password and the key of secrets."""
    [_, finding] = found(env_file(tmp_path, "", 0o640))
    assert (finding.status, finding.next) == ("failed", f"chmod 0600 {tmp_path / 'bananas.env'}")
    assert len(found(env_file(tmp_path, "", 0o600), tmp_path / "runner-gpu.env")) == 1


def test_wrong_settings_are_named_and_no_secret_is(tmp_path: Path) -> None:
    """Before a restart finds them."""
    path = env_file(tmp_path, 'BANANAS_REDIS_URL="redis://:pass-word@host/x"\n')
    [_, finding] = found(path)
    assert (finding.status, "its settings are wrong: BANANAS_REDIS_URL" in finding.detail) == ("failed", True)
    assert "pass-word" not in finding.detail + finding.next
    [_, finding] = found(env_file(tmp_path, "BANANAS_GRACES=1\n"))
    assert "did you mean BANANAS_GRACE_S" in finding.detail


def test_a_file_that_this_user_may_not_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is claimed of settings that were not seen."""

    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "read_text", refuse)  # these tests may run as root, who may read everything
    [_, finding] = found(env_file(tmp_path, ""), TimeoutStopUSec="1s")
    assert (finding.status, finding.next) == ("warning", "run `bananas doctor` as root")


def systemctl(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a ``systemctl`` before the real one, which this machine may not have."""
    path = folder / "systemctl"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_units_that_are_installed_and_not_in_use_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody forgot the last step; without any of ours, or without a systemd, nothing is said."""
    systemctl(tmp_path, "'list-unit-files' in sys.argv and print('bananas.service disabled enabled')", monkeypatch)
    [finding] = units.look_at_units(Settings())
    assert (finding.status, finding.detail) == ("warning", "installed and not in use: bananas.service")
    systemctl(tmp_path, "sys.exit('System has not been booted with systemd as init system (PID 1)')", monkeypatch)
    assert units.look_at_units(Settings()) == []
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert units.look_at_units(Settings()) == []


def test_a_systemd_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other looks go on."""
    monkeypatch.setattr(units, "_SYSTEMCTL_S", 0.2)
    systemctl(tmp_path, "import time; time.sleep(60)", monkeypatch)
    [finding] = units.look_at_units(Settings())
    assert (finding.status, finding.detail) == ("warning", "systemctl gave no answer within 0.2 s")


def test_the_properties_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block that ``systemctl show`` prints is one unit."""
    blocks = "\n\n".join(
        "\n".join(f"{key}={value}" for key, value in {**RUNNER, "Id": name}.items())
        for name in ("bananas-runner@a.service", "bananas-runner@b.service")
    )
    body = f"""if 'list-units' in sys.argv: print('bananas-runner@a.service x\\nbananas-runner@b.service x')
elif 'show' in sys.argv: print({blocks!r})"""
    systemctl(tmp_path, body, monkeypatch)
    assert [(finding.name, finding.status) for finding in units.look_at_units(Settings())] == [
        ("bananas-runner@a.service", "ok"),
        ("bananas-runner@b.service", "ok"),
    ]


def test_time_spans_are_read_as_systemd_prints_them() -> None:
    """Also the longest ones."""
    assert [units.seconds(span) for span in ("1min 30s", "1h 5min", "2d", "1.5s", "", "1month")] == [
        *(90.0, 3900.0, 172800.0, 1.5),
        *(float("inf"), 2.63e6),
    ]
