"""The bytes of a chunk file that are not pages; docs/design/chunk-file.md shows them in order. Little-endian."""

from __future__ import annotations

import struct

import numpy as np

__all__ = ["COLUMN", "DESCRIPTION", "GROUP", "HEAD", "HEADER", "INDEX", "PAGE", "TRAILER", "VERSION"]

VERSION = 2
MAGIC = b"ITSCHUNK"
END_MAGIC = b"KNUHCSTI"

# the first bytes of a file: magic, version, nothing
HEADER = struct.Struct("<8sHxxxxxx")

# where a page stands; a page without a cell has length 0 and no bytes
PAGE = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("crc", "<u4"),
        ("count", "<u4"),
        ("codec", "u1"),
        ("version", "u1"),
        ("spare", "<u2"),
    ]
)

# head of a row group: rows, columns, rows of a page, rows of a statistics block (divides the former), order position of
# its first and of its last write (epoch, index each)
HEAD = struct.Struct("<IIIIQQQQ")

# head of a column's description: how its statistics blocks stand there, whether they have times of their own
DESCRIPTION = struct.Struct("<BBxx")
BLOCKS_PLAIN, BLOCKS_PACKED = 0, 1

# a column of a row group: where its description stands, how long it is there and unpacked, its CRC32C,
# and of its cells the count and the first and last time
COLUMN = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("raw", "<u4"),
        ("crc", "<u4"),
        ("kind", "u1"),
        ("spare", "u1", 3),
        ("count", "<u8"),
        ("first_time", "<i8"),
        ("last_time", "<i8"),
    ]
)

# a row group in the file's index: which device, where its head stands, and of its rows the count and times
GROUP = np.dtype(
    [
        ("device", "<u4"),
        ("length", "<u4"),
        ("crc", "<u4"),
        ("rows", "<u4"),
        ("offset", "<u8"),
        ("first_time", "<i8"),
        ("last_time", "<i8"),
    ]
)

# head of the index: devices, row groups, bytes of the names
INDEX = struct.Struct("<III")

# the last bytes of a file: offset, length, unpacked length and CRC32C of the index, version, nothing, magic;
# behind them their own CRC32C (u32)
TRAILER = struct.Struct("<QIIIHxx8s")
