"""The first process of a sandbox whose engine lets no socket through: carries the shim's frames over standard streams.

It is started as ``python3 -c <this text>`` and gets everything else by its standard input: sections of a length and so
many bytes. First the shim's files and boot.json; then it starts the keeper, which connects to a socket as always, and
says so with one byte. Then the function's code and its packages (a section of no bytes if there are none). From
there on it only moves bytes, both ways, until both sides have ended. What user code prints never comes here.
"""

from __future__ import annotations

import io
import os
import select
import socket
import struct
import subprocess
import sys
import tarfile
import threading

ROOT = "/run/bananas"
READY = b"\x01"
CHUNK_BYTES = 64 * 1024
#: Larger sections than the runner ever sends.
MAX_BYTES = 64 * 1024 * 1024
CONNECT_S, END_S = 15.0, 5.0
STATUS_IO = 74


def read_exactly(fd: int, count: int) -> bytes:
    """So many bytes; ends the process when the runner sends no more."""
    parts = []
    while count:
        data = os.read(fd, min(count, CHUNK_BYTES))
        if not data:
            os._exit(STATUS_IO)
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def read_section(fd: int) -> bytes:
    """One section's bytes."""
    (length,) = struct.unpack(">Q", read_exactly(fd, 8))
    if length > MAX_BYTES:
        raise ValueError(f"a section of {length} bytes; at most {MAX_BYTES} are taken")
    return read_exactly(fd, length)


def unpack(archive: bytes, target: str) -> None:
    """Files of an archive that the runner has checked; afterwards nothing in it is writable."""
    os.makedirs(target, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as tar:
        for member in tar:
            path = os.path.join(target, member.name)
            if member.isdir():
                os.makedirs(path, exist_ok=True)
            elif member.isfile():
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "xb") as out:
                    out.write(tar.extractfile(member).read())  # type: ignore[union-attr] # a file has content
                os.chmod(path, 0o555 if member.mode & 0o100 else 0o444)


def close_up(target: str) -> None:
    """Make the folders below and the folder itself read-only."""
    for folder, _, _ in os.walk(target, topdown=False):
        os.chmod(folder, 0o555)  # noqa: S103 - to read, by nobody but this user


def start_keeper(root: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The keeper, and its connection."""
    path = os.path.join(root, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(CONNECT_S)
        command = [sys.executable, "-I", "-B", "-u", os.path.join(root, "shim", "keeper.py"), root]
        keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        sock, _ = listener.accept()
    os.unlink(path)
    sock.settimeout(None)
    return keeper, sock


def wait_for_input(fd: int, sock: socket.socket) -> bool:
    """True when the runner has sent something, False when the keeper has ended."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(sock, select.POLLRDHUP)
    return all(ready == fd for ready, _ in poller.poll())


def send_on(fd: int, sock: socket.socket) -> None:
    """What the runner sends, to the keeper; then its end."""
    try:
        while data := os.read(fd, CHUNK_BYTES):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the keeper has ended, which the other direction notices


def main(root: str = ROOT) -> int:
    """Returns the status to exit with: the keeper's, or 128 + its signal."""
    source, sink = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    unpack(read_section(source), root)
    with open(os.path.join(root, "boot.json"), "wb") as file:
        file.write(read_section(source))
    keeper, sock = start_keeper(root)
    os.write(sink, READY)
    if wait_for_input(source, sock):
        for name in ("code", "deps"):
            if archive := read_section(source):
                unpack(archive, os.path.join(root, name))
        close_up(root)
        threading.Thread(target=send_on, args=(source, sock), daemon=True).start()
    while data := sock.recv(CHUNK_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(sink, view) :]
    status = keeper.wait(END_S)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    code = STATUS_IO
    try:
        code = main()
    except BaseException:  # noqa: BLE001 - the top of the process: print it and end, whatever threads do
        sys.excepthook(*sys.exc_info())
    os._exit(code)
