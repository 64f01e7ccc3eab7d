"""Who a node is: identifier, random incarnation, and the number of its starts.

The log directory holds `identity` (big-endian: "ICID", u8 version (1), u8 flags, two zero bytes, u64 identifier, u64
incarnation, u64 start number, u32 CRC32C), every data directory holds `incarnation` ("ICIN", u8 version (1), three zero
bytes, u64 incarnation, u32 CRC32C). All have it or none, and all the same. The first flag says that the data
directories are still being marked, so that a crash in the middle of a first start can be continued.
"""

from __future__ import annotations

import posixpath
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from crc32c import crc32c

from iotdb_cluster.cluster.log.atomic import make_durable_directories, replace_file
from iotdb_cluster.errors import CorruptData, SystemFault, check
from iotdb_cluster.world import FileSystem

__all__ = ["Identity", "open_identity", "read_identity", "set_identifier"]

VERSION: Final = 1
_NODE_FILE: Final = "identity"
_MARK_FILE: Final = "incarnation"
_NODE: Final = struct.Struct(">4sBBxxQQQ")
_MARK: Final = struct.Struct(">4sBxxxQ")
_MARKING: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """`identifier` is 0 until the node was given one; `incarnation` > 0; `start_number` counts from 1."""

    identifier: int
    incarnation: int
    start_number: int


def open_identity(
    files: FileSystem, log_directory: str, data_directories: Sequence[str], random: random.Random
) -> Identity:
    """The node's identity for this start, counted up and synced; a new one where all directories are without.

    Raises SystemFault where some directories have an incarnation and some not, or another one; CorruptData; OSError.
    """
    make_durable_directories(files, log_directory)
    found = _read_node(files, log_directory)
    marks = {directory: _read_mark(files, directory) for directory in data_directories}
    if found is None:
        marked = sorted(directory for directory, mark in marks.items() if mark is not None)
        if marked:
            raise SystemFault(
                f"{', '.join(marked)} belongs to a node, but the log directory {log_directory} is empty: give the node "
                "its log directory back, or replace it"
            )
        identity, marking = Identity(0, random.getrandbits(63) | 1, 0), True
        _write_node(files, log_directory, identity, marking)
    else:
        identity, marking = found
    for directory, mark in marks.items():
        if mark is not None and mark != identity.incarnation:
            raise SystemFault(
                f"{directory} belongs to incarnation {mark:x} of a node, the log directory {log_directory} to "
                f"{identity.incarnation:x}: these directories were mixed up"
            )
        if mark is None and not marking:
            raise SystemFault(
                f"{directory} is without the mark of this node (incarnation {identity.incarnation:x}), which the log "
                f"directory {log_directory} has: a disk is missing or was exchanged; give it back, or replace the node"
            )
    if marking:
        for directory in marks:  # also what is marked already: its name may not be synced
            _write_mark(files, directory, identity.incarnation)
    identity = replace(identity, start_number=identity.start_number + 1)
    _write_node(files, log_directory, identity, False)
    return identity


def read_identity(files: FileSystem, log_directory: str) -> Identity | None:
    """What the log directory says, read only; None where it says nothing. Raises CorruptData, OSError."""
    found = _read_node(files, log_directory)
    return None if found is None else found[0]


def set_identifier(files: FileSystem, log_directory: str, identity: Identity, identifier: int) -> Identity:
    """Give the node its identifier, once and for all; durable when it returns."""
    check(identifier > 0, "a node identifier of %d", identifier)
    check(identity.identifier in (0, identifier), "node %d is to become %d", identity.identifier, identifier)
    identity = replace(identity, identifier=identifier)
    _write_node(files, log_directory, identity, False)
    return identity


def _checked(files: FileSystem, path: str, shape: struct.Struct, magic: bytes) -> tuple[int, ...] | None:
    """The numbers of a small file, behind its magic; None where there is no such file."""
    if not files.exists(path):
        return None
    file = files.open(path)
    try:
        data = file.read(0, shape.size + 5)
    finally:
        file.close()
    if len(data) != shape.size + 4 or int.from_bytes(data[-4:], "big") != crc32c(data[:-4]):
        raise CorruptData(f"{path} offset 0: the node's identity is damaged")
    found, version, *numbers = shape.unpack(data[:-4])
    if found != magic or version != VERSION:
        raise CorruptData(f"{path} offset 0: version {version} of a node's identity; this program knows {VERSION}")
    return tuple(numbers)


def _read_node(files: FileSystem, directory: str) -> tuple[Identity, bool] | None:
    """(identity, whether the data directories are still being marked)."""
    numbers = _checked(files, posixpath.join(directory, _NODE_FILE), _NODE, b"ICID")
    if numbers is None:
        return None
    flags, identifier, incarnation, start_number = numbers
    return Identity(identifier, incarnation, start_number), bool(flags & _MARKING)


def _write_node(files: FileSystem, directory: str, identity: Identity, marking: bool) -> None:
    flags = _MARKING if marking else 0
    data = _NODE.pack(b"ICID", VERSION, flags, identity.identifier, identity.incarnation, identity.start_number)
    replace_file(files, posixpath.join(directory, _NODE_FILE), data + crc32c(data).to_bytes(4, "big"))


def _read_mark(files: FileSystem, directory: str) -> int | None:
    numbers = _checked(files, posixpath.join(directory, _MARK_FILE), _MARK, b"ICIN")
    return None if numbers is None else numbers[0]


def _write_mark(files: FileSystem, directory: str, incarnation: int) -> None:
    make_durable_directories(files, directory)
    data = _MARK.pack(b"ICIN", VERSION, incarnation)
    replace_file(files, posixpath.join(directory, _MARK_FILE), data + crc32c(data).to_bytes(4, "big"))
