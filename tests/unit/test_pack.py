"""Bundles: equal folders have equal digests, nothing leaves the folder, and no archive can hurt who unpacks it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import stat
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bananas import pack as module
from bananas.errors import DeployError
from bananas.pack import Bundle, pack, unpack
from bananas.settings import MIB, Limits

Tree = dict[str, tuple[bytes, bool]]

parts = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..", ".bananasignore") and len(name.encode()) < 200
)
trees: st.SearchStrategy[Tree] = st.dictionaries(
    st.lists(parts, min_size=1, max_size=4).map("/".join),
    st.tuples(st.binary(max_size=2000), st.booleans()),
    max_size=8,
).filter(lambda tree: not any(other.startswith(name + "/") for name in tree for other in tree))


def write(folder: Path, tree: Tree) -> None:
    """Create the files in the order of the dict."""
    for name, (data, is_executable) in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if is_executable else 0o640)


def read(folder: Path) -> Tree:
    """The files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), bool(p.stat().st_mode & stat.S_IXUSR)) for p in files}


def names(bundle: Bundle) -> list[str]:
    """What is in the archive, in its order."""
    with tarfile.open(fileobj=io.BytesIO(bundle.data)) as archive:
        return archive.getnames()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to pack."""
    path = tmp_path / "app"
    path.mkdir()
    return path


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lowers the product's limits, so that a test need not write 250 MiB."""
    return lambda **changed: monkeypatch.setattr(module, "LIMITS", Limits(**changed))


# -- packing ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # disks are slow at times
@given(trees)
def test_what_is_packed_unpacks_to_the_same_files_and_the_same_digest(tree: Tree) -> None:
    """pack(unpack(pack(tree))) is pack(tree), whatever the names, contents and modes."""
    with tempfile.TemporaryDirectory() as work:
        source, target = Path(work) / "a", Path(work) / "b"
        source.mkdir()
        write(source, tree)
        bundle = pack(source, ignore=())
        unpack(bundle.data, target)
        assert read(target) == tree
        assert pack(target, ignore=()) == bundle
        assert bundle.digest == hashlib.sha256(bundle.data).hexdigest()
        assert (bundle.files, bundle.unpacked_bytes) == (len(tree), sum(len(data) for data, _ in tree.values()))


@settings(deadline=None)  # disks are slow at times
@given(trees, st.randoms(use_true_random=False))
def test_order_of_creation_times_and_modes_do_not_change_the_digest(tree: Tree, random: Any) -> None:
    """Only names, contents and the executable bit count."""
    with tempfile.TemporaryDirectory() as work:
        first, second = Path(work) / "a", Path(work) / "elsewhere" / "b"
        first.mkdir()
        second.mkdir(parents=True)
        write(first, tree)
        shuffled = list(tree.items())
        random.shuffle(shuffled)
        write(second, dict(shuffled))
        for path in [*second.rglob("*")]:
            os.utime(path, (random.randrange(2**31), random.randrange(2**31)))
            path.chmod(path.stat().st_mode | random.choice([0, 0o004, 0o040]))
        (second / "an empty" / "folder").mkdir(parents=True)
        assert pack(first, ignore=()) == pack(second, ignore=())


def test_the_archive_says_nothing_about_who_packed_it_and_when(folder: Path) -> None:
    """No times, owners or group names; modes 0644 and 0755."""
    write(folder, {"a.py": (b"1", False), "run": (b"2", True), "ü/" + "l" * 120 + ".py": (b"3", False)})
    data = pack(folder).data
    assert data[4:8] == b"\0\0\0\0"  # the time in the gzip header
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert [m.mode for m in members] == [0o644, 0o755, 0o644]


def test_caches_and_version_control_are_left_out(folder: Path) -> None:
    """What a tool wrote is not part of a version."""
    kept = ["handler.py", "lib/x.py"]
    dropped = [
        "__pycache__/a.pyc",
        "lib/__pycache__/b.pyc",
        "lib/c.pyc",
        ".git/HEAD",
        ".venv/bin/python",
        "node_modules/x",
    ]
    write(folder, dict.fromkeys([*kept, *dropped], (b"", False)))
    assert names(pack(folder)) == kept


def test_bananasignore_adds_patterns_for_names_and_for_paths(folder: Path) -> None:
    """Without a slash a pattern meets names everywhere, with one the path from the folder."""
    write(
        folder,
        dict.fromkeys(["a.csv", "d/b.csv", "d/e/f.txt", "d/g.txt", "tests/t.py", "d/tests/u.py", "k"], (b"", False)),
    )
    (folder / ".bananasignore").write_text("# comment\n\n*.csv\nd/e/*\n/tests\n")
    assert names(pack(folder)) == ["d/g.txt", "d/tests/u.py", "k"]


def test_a_change_of_bananasignore_alone_is_no_new_version(folder: Path) -> None:
    """The file itself is not deployed."""
    write(folder, {"a": (b"", False)})
    before = pack(folder)
    (folder / ".bananasignore").write_text("nothing-here\n")
    assert pack(folder) == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"!keep\n", "which is not supported"), (b"\xff", "cannot be read"), (b"#" * 70_000, "64 KiB")],
)
def test_a_bad_bananasignore_is_refused(folder: Path, content: bytes, problem: str) -> None:
    """A rule that would not do what it says stops the deploy."""
    (folder / ".bananasignore").write_bytes(content)
    with pytest.raises(DeployError, match=problem):
        pack(folder)


def test_a_link_inside_is_stored_as_what_it_leads_to(folder: Path) -> None:
    """Files and folders alike; the archive itself holds no links."""
    write(folder, {"real/a.py": (b"a", False)})
    (folder / "b.py").symlink_to("real/a.py")
    (folder / "alias").symlink_to("real")
    bundle = pack(folder)
    assert names(bundle) == ["alias/a.py", "b.py", "real/a.py"]
    with tarfile.open(fileobj=io.BytesIO(bundle.data)) as archive:
        assert all(member.isreg() for member in archive.getmembers())


def test_a_link_that_leads_out_is_refused(folder: Path, tmp_path: Path) -> None:
    """A deploy cannot carry off a file from elsewhere."""
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to("../secret")
    with pytest.raises(DeployError, match=r"link is a link that leads out of .*app; copy the file into the folder"):
        pack(folder)


def test_a_link_that_leads_out_through_a_link_inside_is_refused(folder: Path, tmp_path: Path) -> None:
    """What counts is where the chain ends."""
    (folder / "out").symlink_to(tmp_path)
    (folder / "in").symlink_to("out/secret")
    (tmp_path / "secret").write_text("s")
    with pytest.raises(DeployError, match="leads out of"):
        pack(folder, ignore=["out"])


@pytest.mark.parametrize("target", ["..", ".", "gone", "loop"])
def test_loops_and_broken_links_are_refused(folder: Path, target: str) -> None:
    """Neither an endless walk nor a silently missing file."""
    (folder / "sub").mkdir()
    (folder / "sub" / "loop").symlink_to({"..": "../", ".": "../sub"}.get(target, target))
    with pytest.raises(DeployError, match=r"is a link to a folder that it is in|cannot be read"):
        pack(folder)


def test_sockets_and_pipes_are_refused(folder: Path) -> None:
    """Only files can be packed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
        with pytest.raises(DeployError, match=r"/s is a socket, pipe or device; only files can be packed"):
            pack(folder)
    (folder / "s").unlink()
    os.mkfifo(folder / "p")
    with pytest.raises(DeployError, match=r"/p is a socket, pipe or device"):
        pack(folder)


def test_a_name_that_is_not_utf8_is_refused(folder: Path) -> None:
    """The archive's names are text."""
    (folder / os.fsdecode(b"\xff.py")).touch()
    with pytest.raises(DeployError, match=r"the name is not UTF-8; rename the file"):
        pack(folder)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """No traceback for a path that does not exist."""
    with pytest.raises(DeployError, match=r"nowhere cannot be packed: No such file or directory"):
        pack(tmp_path / "nowhere")


def test_too_many_files_too_much_and_too_large_are_refused(folder: Path, limits: Callable[..., None]) -> None:
    """Each limit names what was too much, how much it was, and what to do."""
    write(folder, {f"{n}.bin": (os.urandom(300_000), False) for n in range(5)})
    limits(bundle_files=4)
    with pytest.raises(DeployError, match=r"app holds more than 4 files; list what is not needed in .bananasignore"):
        pack(folder)
    limits(bundle_unpacked_bytes=MIB)
    with pytest.raises(DeployError, match=r"more than 1 MiB of files \(the last one was 3.bin, 0.3 MiB\)"):
        pack(folder)
    limits(bundle_bytes=MIB)
    with pytest.raises(DeployError, match=r"app is larger than 1 MiB when packed"):
        pack(folder)


# -- unpacking --------------------------------------------------------------------------------------------------------


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A bundle as a stranger would make it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    """One entry with whatever a stranger may claim of it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_modes_are_normal_and_nobody_may_write(tmp_path: Path) -> None:
    """Files 0444 or 0555, folders 0755, whatever the archive says; set-uid does not survive."""
    data = archive(
        (member("d/a", mode=0o4777), b"a"), (member("d/b", mode=0o000), b"b"), (member("e", tarfile.DIRTYPE), b"")
    )
    before = os.umask(0o077)
    try:
        unpack(data, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert modes == {"out": 0o755, "out/d": 0o755, "out/d/a": 0o555, "out/d/b": 0o444, "out/e": 0o755}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([(member("/etc/x"), b"")], "not a name below the folder"),
        ([(member("../x"), b"")], "not a name below the folder"),
        ([(member("a/../../x"), b"")], "not a name below the folder"),
        ([(member("a//x"), b"")], "not a name below the folder"),
        ([(member("./x"), b"")], "not a name below the folder"),
        ([(member("/".join("d" * 70)), b"")], "not a name below the folder"),
        ([(member("x", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")], "neither a file nor a folder"),
        ([(member("x", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")], "neither a file nor a folder"),
        ([(member("x", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")], "neither a file nor a folder"),
        ([(member("x", tarfile.FIFOTYPE), b"")], "neither a file nor a folder"),
        ([(member("x", tarfile.CONTTYPE), b"")], "neither a file nor a folder"),
        ([(member("x"), b"1"), (member("x"), b"2")], "twice"),
        ([(member("x"), b"1"), (member("x/y"), b"2")], "cannot unpack"),
        ([(member("x" * 300), b"1")], "cannot unpack"),
        ([(member("x", pax_headers={"comment": "c" * 2_000_000}), b"1")], "a header of more than 256 KiB"),
        ([(member("x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"}), b"1")], "neither a file nor"),
    ],
)
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], problem: str
) -> None:
    """No entry can be anything but a new regular file or folder below the target."""
    data = archive((member("first"), b"1"), *entries)
    with pytest.raises(DeployError, match=problem):
        unpack(data, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"not an archive",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-200] + b"\xff" * 200,
        lambda data: gzip.compress(b"x" * 2000),
        lambda data: gzip.compress(gzip.decompress(data)[:700]),
    ],
)
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Truncated, overwritten or other bytes end in a DeployError."""
    data = archive((member("a"), os.urandom(5000)), (member("b"), os.urandom(5000)))
    with pytest.raises(DeployError):
        unpack(spoil(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_limits_hold_while_the_bytes_come_out(tmp_path: Path, limits: Callable[..., None]) -> None:
    """A small archive of a large file is stopped before it is written."""
    bomb = archive((member("zeros"), bytes(30 * MIB)))
    assert len(bomb) < 100_000
    limits(bundle_unpacked_bytes=20 * MIB)
    tracemalloc.start()
    with pytest.raises(DeployError, match=r"the bundle holds more than 20 MiB \(at zeros\)"):
        unpack(bomb, tmp_path / "out")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 5 * MIB
    limits(bundle_files=2)
    with pytest.raises(DeployError, match=r"more than 2 entries"):
        unpack(archive(*[(member(str(n)), b"") for n in range(3)]), tmp_path / "out")
    limits(bundle_bytes=10)
    with pytest.raises(DeployError, match=r"the bundle has \d+ bytes; at most 10 bytes are taken"):
        unpack(bomb, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nothing is mixed with what was there."""
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DeployError, match=r"cannot unpack into .*: is not empty"):
        unpack(archive((member("a"), b"")), tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
