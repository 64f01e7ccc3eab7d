"""Writing files so that they are there after a power cut: each function says what it promises.

OSError becomes SystemFault with the path in it: the caller cannot mend a disk.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from iotdb_cluster.errors import SystemFault
from iotdb_cluster.world import File, FileSystem

__all__ = [
    "SyncedWriter",
    "append_and_sync",
    "disk_faults",
    "make_directory",
    "read_bytes",
    "read_text",
    "replace_atomically",
    "write_and_sync",
]

BUFFER_BYTES = 1 << 20  # bytes gathered before a write


@contextmanager
def disk_faults(path: str) -> Iterator[None]:
    """Turn OSError into SystemFault naming the path."""
    try:
        yield
    except OSError as error:
        raise SystemFault(f"{path}: {error}") from error


class SyncedWriter:
    """A new file written from front to back; after `close_synced` its bytes are durable, its name is not yet."""

    def __init__(self, files: FileSystem, path: str) -> None:
        self.path = path
        self.position = 0
        self._pending: list[bytes | memoryview] = []
        self._pending_bytes = 0
        with disk_faults(path):
            self._file: File = files.open(path, create=True)
            self._file.truncate(0)

    def append(self, data: bytes | memoryview) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.position += len(data)
        if self._pending_bytes >= BUFFER_BYTES:
            self._write()

    def _write(self) -> None:
        start = self.position - self._pending_bytes
        with disk_faults(self.path):
            self._file.write(start, b"".join(self._pending))
        self._pending = []
        self._pending_bytes = 0

    def close_synced(self) -> None:
        self._write()
        with disk_faults(self.path):
            self._file.sync()
            self._file.close()

    def abandon(self) -> None:
        """Close without any promise."""
        with disk_faults(self.path):
            self._file.close()


def write_and_sync(files: FileSystem, path: str, data: bytes) -> None:
    """A new file of these bytes, durable but for its name."""
    writer = SyncedWriter(files, path)
    try:
        writer.append(data)
    except SystemFault:
        writer.abandon()
        raise
    writer.close_synced()


def append_and_sync(file: File, path: str, offset: int, data: bytes) -> None:
    """Bytes at the end of an open file, durable on return."""
    with disk_faults(path):
        file.write(offset, data)
        file.sync()


def replace_atomically(files: FileSystem, path: str, temporary: str, data: bytes) -> None:
    """After a power cut the file is whole: the old one or the new one, and on return durably the new one."""
    write_and_sync(files, temporary, data)
    with disk_faults(path):
        files.rename(temporary, path)
        files.sync_directory(posixpath.dirname(path))


def make_directory(files: FileSystem, path: str) -> None:
    """A directory whose name is durable in its parent, as are those above it that this makes."""
    parent = posixpath.dirname(path) or "."
    with disk_faults(path):
        if not files.exists(parent):
            make_directory(files, parent)
        files.make_directories(path)
        files.sync_directory(parent)


def read_bytes(files: FileSystem, path: str) -> bytes:
    """A small file whole."""
    with disk_faults(path):
        file = files.open(path)
        try:
            return file.read(0, file.size())
        finally:
            file.close()


def read_text(files: FileSystem, path: str) -> str:
    """A small file whole; what is no UTF-8 is replaced."""
    return read_bytes(files, path).decode(errors="replace")
