"""The seal of secrets: who can open what, and what is never told."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bananas import errors
from bananas.protocols import Secret
from bananas.secrets import SecretBox, ensure_key_file, new_key
from bananas.settings import Settings

VALUE = b"hunter2-hunter2"


def box(*texts: str) -> SecretBox:
    found = SecretBox.from_settings(Settings(secret_key=",".join(texts)))
    assert found is not None
    return found


def test_a_value_opens_under_its_name_only():
    """A value that somebody moves to another name in Redis is refused."""
    sealed = box(key := new_key()).seal("A", VALUE)
    assert VALUE not in sealed
    assert box(key).open("A", sealed) == VALUE
    with pytest.raises(errors.SecretUnavailable, match="'B' was changed in Redis"):
        box(key).open("B", sealed)


def test_a_changed_value_is_refused():
    """Every bit of the stored text counts."""
    mine = box(new_key())
    sealed = mine.seal("A", VALUE)
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(errors.SecretUnavailable) as caught:
            mine.open("A", changed)
        assert VALUE.decode() not in str(caught.value)


def test_equal_values_have_different_seals():
    """Nothing about a value can be learnt from what is stored."""
    mine = box(new_key())
    assert mine.seal("A", VALUE) != mine.seal("A", VALUE)


def test_a_key_is_replaced_without_a_stop():
    """The new key goes in front: it seals, and the old one still opens."""
    old, new = new_key(), new_key()
    sealed = box(old).seal("A", VALUE)
    both = box(new, old)
    assert both.open("A", sealed) == VALUE
    with pytest.raises(errors.SecretUnavailable, match="a key that this process does not have"):
        box(new).open("A", sealed)
    assert box(new).open("A", both.seal("A", VALUE)) == VALUE


def test_the_key_file_is_made_once_and_for_its_owner(tmp_path: Path):
    """A restart finds the same key; nobody else may read it."""
    path = ensure_key_file(tmp_path / "state/secret.key")
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_key_file(path).read_text() == first
    made = SecretBox.from_settings(Settings(secret_key_file=str(path)))
    assert made is not None
    assert box(first.strip()).open("A", made.seal("A", VALUE)) == VALUE


@pytest.mark.parametrize("text", ["short", "é" * 44, "A" * 44 + "!", ","], ids=["short", "accents", "long", "none"])
def test_a_wrong_key_is_refused_without_being_told(text: str):
    """The message names the variable and the way to a right one, and never the key."""
    with pytest.raises(errors.ConfigError, match=r"BANANAS_SECRET_KEY .*bananas secret new-key") as caught:
        SecretBox.from_settings(Settings(secret_key=text))
    assert text == "," or text not in str(caught.value)


def test_a_missing_key_file_is_named(tmp_path: Path):
    """And both settings at once are one too many."""
    with pytest.raises(errors.ConfigError, match=r"gone\.key"):
        SecretBox.from_settings(Settings(secret_key_file=str(tmp_path / "gone.key")))
    with pytest.raises(errors.ConfigError, match="not both"):
        SecretBox.from_settings(Settings(secret_key_file="x", secret_key=new_key()))
    assert SecretBox.from_settings(Settings()) is None


def test_values_and_keys_stay_out_of_reprs():
    """What is logged by accident tells nothing."""
    key = new_key()
    assert key not in repr(Settings(secret_key=key))
    assert "hunter2" not in repr(Secret("v1", VALUE))
