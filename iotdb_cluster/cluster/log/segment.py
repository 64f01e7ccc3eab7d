"""Segment files: made once, zeroed, synced, and used again and again.

The first block holds, big-endian: 4 bytes "ICLS", u8 version (1), three zero bytes, u64 log id, u64 bytes of the file,
u32 CRC32C of these. Batches stand behind it. A segment is made under a temporary name, so that one with its final name
is whole.
"""

from __future__ import annotations

import posixpath
import struct
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import LOG_BLOCK_BYTES, MIB
from iotdb_cluster.world import File, FileSystem

__all__ = [
    "FIRST_BATCH",
    "Segment",
    "create_segment",
    "open_segment",
    "segment_number",
    "segment_numbers",
    "segment_path",
]

FIRST_BATCH: Final = LOG_BLOCK_BYTES  # offset of the first batch
VERSION: Final = 1
_MAGIC: Final = b"ICLS"
_HEAD: Final = struct.Struct(">4sBxxxQQ")
_CRC: Final = struct.Struct(">I")
_PREFIX: Final = "segment-"
_SUFFIX: Final = ".log"
TEMPORARY: Final = ".tmp"


@dataclass(slots=True, eq=False)
class Segment:
    """An open segment. `first_sequence` is that of its first batch in the present use, 0 where it is free."""

    number: int
    path: str
    file: File
    size: int
    log_id: int
    first_sequence: int = 0


def segment_path(directory: str, number: int) -> str:
    return posixpath.join(directory, f"{_PREFIX}{number:08d}{_SUFFIX}")


def segment_number(name: str) -> int | None:
    """Of a file's name; None where it is no segment's."""
    middle = name[len(_PREFIX) : -len(_SUFFIX)]
    return int(middle) if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and middle.isdigit() else None


def segment_numbers(files: FileSystem, directory: str) -> list[int]:
    """Numbers of the segments in a directory, ascending."""
    return sorted(number for name in files.list(directory) if (number := segment_number(name)) is not None)


def create_segment(files: FileSystem, directory: str, number: int, size: int, log_id: int) -> Segment:
    """Make a zeroed segment, durable with its name. Raises OSError; then nothing of it counts."""
    path = segment_path(directory, number)
    temporary = path + TEMPORARY
    file = files.open(temporary, create=True)
    try:
        file.truncate(0)
        zeros = bytes(min(size, MIB))
        offset = 0
        while offset < size:
            file.write(offset, zeros[: size - offset])
            offset += len(zeros)
            if offset % (4 * MIB) == 0:
                file.sync()  # in portions, so that the syncs of batches beside it do not wait for all of it
        head = _HEAD.pack(_MAGIC, VERSION, log_id, size)
        file.write(0, head + _CRC.pack(crc32c(head)))
        file.sync()
        files.rename(temporary, path)
        files.sync_directory(directory)
    except OSError:
        file.close()
        if files.exists(temporary):
            files.remove(temporary)
        raise
    return Segment(number, path, file, size, log_id)


def open_segment(files: FileSystem, directory: str, number: int) -> Segment:
    """Raises CorruptData where the first block is damaged, of another version, or the file is too short."""
    path = segment_path(directory, number)
    file = files.open(path)
    head = file.read(0, _HEAD.size + _CRC.size)
    size = file.size()
    if len(head) < _HEAD.size + _CRC.size or _CRC.unpack_from(head, _HEAD.size)[0] != crc32c(head[: _HEAD.size]):
        raise CorruptData(f"{path} offset 0: the head of this log segment is damaged")
    magic, version, log_id, written = _HEAD.unpack_from(head)
    if magic != _MAGIC or version != VERSION:
        raise CorruptData(f"{path} offset 0: a log segment of version {version}; this program knows {VERSION}")
    if written != size:
        raise CorruptData(f"{path} offset {size}: the log segment is cut, it had {written} bytes")
    return Segment(number, path, file, size, log_id)
