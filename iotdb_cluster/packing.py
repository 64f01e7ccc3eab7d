"""A JSON head and byte buffers in one byte string: the form of what is not hot between nodes and in entries.

Layout, big-endian: u8 version (1), u32 bytes of the head, the head (UTF-8 JSON), then a buffer after another, each
behind its u32 length.
Keys are written sorted, so that equal values give equal bytes on every node.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from iotdb_cluster.columns import Column, DataType, RowBatch, TextColumn, Values, native
from iotdb_cluster.errors import CorruptData

__all__ = ["pack", "pack_columns", "pack_rows", "unpack", "unpack_columns", "unpack_rows"]

VERSION = 1
_HEAD = struct.Struct(">BI")
_LENGTH = struct.Struct(">I")


def pack(head: Any, buffers: Sequence[bytes | bytearray | memoryview] = ()) -> bytes:
    """`head` is anything that JSON can say."""
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    parts: list[bytes | bytearray | memoryview] = [_HEAD.pack(VERSION, len(text)), text]
    for buffer in buffers:
        parts.append(_LENGTH.pack(len(buffer)))
        parts.append(buffer)
    return b"".join(parts)


def unpack(data: bytes | memoryview) -> tuple[Any, list[memoryview]]:
    """(head, buffers); CorruptData where the bytes are cut, or of a version that this program does not know."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise CorruptData(f"a packed message of {len(view)} bytes is too short")
    version, length = _HEAD.unpack_from(view)
    if version != VERSION:
        raise CorruptData(f"a packed message has version {version}, this program knows {VERSION}")
    at = _HEAD.size + length
    if at > len(view):
        raise CorruptData(f"a packed message of {len(view)} bytes says that its head has {length}")
    head = json.loads(bytes(view[_HEAD.size : at]))
    buffers = []
    while at < len(view):
        if at + 4 > len(view):
            raise CorruptData("a packed message is cut within a length")
        (length,) = _LENGTH.unpack_from(view, at)
        at += 4
        if at + length > len(view):
            raise CorruptData(f"a packed message is cut within a buffer of {length} bytes")
        buffers.append(view[at : at + length])
        at += length
    return head, buffers


def pack_columns(columns: Sequence[Column]) -> tuple[list[list[int]], list[bytes]]:
    """(for each column [type, count, 1 if it has nulls], the buffers that follow each other in that order)."""
    kinds: list[list[int]] = []
    buffers: list[bytes] = []
    for column in columns:
        kinds.append([int(column.type), len(column), int(column.valid is not None)])
        values = column.values
        if isinstance(values, TextColumn):
            buffers.append(values.lengths.astype("<i4").tobytes())
            buffers.append(values.packed())
        else:
            buffers.append(np.asarray(native(values)).tobytes())
        if column.valid is not None:
            buffers.append(np.packbits(column.valid).tobytes())
    return kinds, buffers


def unpack_columns(kinds: Sequence[Sequence[int]], buffers: Sequence[memoryview]) -> tuple[list[Column], int]:
    """(the columns, how many buffers they took)."""
    columns: list[Column] = []
    at = 0
    for code, count, has_nulls in kinds:
        kind = DataType(code)
        values: Values
        if kind is DataType.TEXT:
            offsets = np.zeros(count + 1, np.int64)
            np.cumsum(np.frombuffer(buffers[at], "<i4"), out=offsets[1:])
            values = TextColumn(offsets, buffers[at + 1])
            at += 2
        else:
            values = np.frombuffer(buffers[at], kind.dtype)
            at += 1
        valid = None
        if has_nulls:
            valid = np.unpackbits(np.frombuffer(buffers[at], np.uint8), count=count).astype(np.bool_)
            at += 1
        if len(values) != count:
            raise CorruptData(f"a packed column of {count} cells holds {len(values)}")
        columns.append(Column(kind, values, valid))
    return columns, at


def pack_rows(rows: RowBatch) -> tuple[list[list[int]], list[bytes]]:
    """As `pack_columns`, the times as first column."""
    return pack_columns([Column(DataType.INT64, rows.times), *rows.columns])


def unpack_rows(kinds: Sequence[Sequence[int]], buffers: Sequence[memoryview]) -> tuple[RowBatch, int]:
    """(the rows, how many buffers they took)."""
    columns, taken = unpack_columns(kinds, buffers)
    return RowBatch(np.asarray(columns[0].values), columns[1:]), taken
