"""A group's checkpoint with the files of its units, pinned for a copy: what a snapshot of the group consists of.

The files lie in the copy as in a group's directory: the checkpoint's own at the top, `units/<unit>/<file>` below. Units
may be flushed beyond the checkpoint, as after any restart: the storage passes over what it meets again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import crc32c

from iotdb_cluster.storage import Store
from iotdb_cluster.world import FileSystem

__all__ = ["CopiedFile", "GroupCopy", "copy_of"]

MANIFEST = "manifest"


@dataclass(frozen=True, slots=True)
class CopiedFile:
    """One file: `path` in the copy, its size and CRC32C, and where it is read: memory, or a pinned file."""

    path: str
    size: int
    crc32c: int
    source: str = ""
    data: bytes = b""

    def read(self, files: FileSystem, offset: int, length: int) -> bytes:
        """Bytes of it; for a worker thread. OSError."""
        if not self.source:
            return self.data[offset : offset + length]
        file = files.open(self.source)
        try:
            return file.read(offset, length)
        finally:
            file.close()


@dataclass(slots=True)
class GroupCopy:
    """The group at log position (index, term). `release` lets the files go; on the loop."""

    index: int
    term: int
    files: tuple[CopiedFile, ...]
    releases: list[Callable[[], None]]

    def release(self) -> None:
        releases, self.releases = self.releases, []
        for release in releases:
            release()


def _in_memory(path: str, data: bytes) -> CopiedFile:
    return CopiedFile(path, len(data), crc32c.crc32c(data), data=data)


def copy_of(store: Store, index: int, term: int, checkpoint: Sequence[tuple[str, bytes]]) -> GroupCopy:
    """Pin every unit of the store beside the files of a checkpoint that it is flushed up to; on the loop.

    CorruptData where a unit is damaged: then the group cannot be copied from here.
    """
    found = [_in_memory(name, data) for name, data in checkpoint]
    copy = GroupCopy(index, term, (), [])
    try:
        for unit in store.units():
            pinned = store.pin_files(unit)
            copy.releases.append(pinned.release)
            at = f"units/{pinned.name}"
            found.extend(CopiedFile(f"{at}/{one.name}", one.bytes, one.crc32c, source=one.path) for one in pinned.files)
            found.append(_in_memory(f"{at}/{MANIFEST}", pinned.manifest))
    except BaseException:
        copy.release()
        raise
    copy.files = tuple(found)
    return copy
