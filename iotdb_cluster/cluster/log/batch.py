"""One batch: what is written and synced at once. It starts on a 4 kB boundary of a segment.

Layout, big-endian: the head (48 bytes: u32 magic, u8 version (1), three zero bytes, u64 log id, u64 sequence, u64
oldest sequence still needed, u32 bytes behind the head, u32 records, u32 CRC32C of the table, u32 CRC32C of the 44
bytes before), the table (a record head each, which carries the CRC32C of its content), the contents, zeros up to the
next boundary. The CRC of the head alone tells that a batch was begun here, even where the rest is torn.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from crc32c import crc32c

from iotdb_cluster.cluster.log.record import (
    HEAD_BYTES,
    Append,
    Buffer,
    Kind,
    Record,
    content_pieces,
    lone_pieces,
    pack_head,
    unpack_heads,
)
from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.limits import LOG_BLOCK_BYTES

__all__ = [
    "BATCH_HEAD_BYTES",
    "MAGIC",
    "BatchHead",
    "Placed",
    "batch_bytes",
    "encode_batch",
    "padded",
    "read_head",
    "read_table",
]

MAGIC: Final = 0x49434C42  # "ICLB"
VERSION: Final = 1
_APPEND: Final = Kind.APPEND
_HEAD: Final = struct.Struct(">IBxxxQQQIII")
_CRC: Final = struct.Struct(">I")
BATCH_HEAD_BYTES: Final = _HEAD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class BatchHead:
    log_id: int
    sequence: int
    oldest: int
    length: int  # bytes behind the head
    records: int
    table_crc: int

    @property
    def total_bytes(self) -> int:
        return BATCH_HEAD_BYTES + self.length


class Placed(NamedTuple):
    """Where a record's content lies: its offset from the batch's start, its length and CRC32C."""

    kind: Kind
    replica: int
    offset: int
    length: int
    crc: int


def padded(length: int) -> int:
    """Up to the next boundary."""
    return -(-length // LOG_BLOCK_BYTES) * LOG_BLOCK_BYTES


def batch_bytes(records: int, contents: int) -> int:
    """Bytes of a batch with so many records, whose contents have so many bytes; without padding."""
    return BATCH_HEAD_BYTES + HEAD_BYTES * records + contents


def encode_batch(log_id: int, sequence: int, oldest: int, records: Sequence[Record]) -> tuple[bytes, list[Placed]]:
    """(the bytes, padded to a boundary; where each content lies). Payloads are copied once, by the last join.

    They are at most as many as `batch_bytes` says, fewer where payloads are compressed.
    """
    heads: list[bytes] = []
    contents: list[Buffer] = []
    placed: list[Placed] = []
    offset = BATCH_HEAD_BYTES + HEAD_BYTES * len(records)
    for record in records:
        if type(record) is Append and len(record.entries.terms) == 1 and (lone := lone_pieces(record)) is not None:
            head, front, length, crc = lone
            heads.append(head)
            contents += (front, record.entries.data[0])
            placed.append(Placed(_APPEND, record.replica, offset, length, crc))
            offset += length
            continue
        version, pieces = content_pieces(record)
        length = sum(map(len, pieces))
        head, crc = pack_head(record, version, length, pieces)
        heads.append(head)
        contents.extend(pieces)
        placed.append(Placed(Kind(head[0]), record.replica, offset, length, crc))
        offset += length
    table = b"".join(heads)
    head = _HEAD.pack(MAGIC, VERSION, log_id, sequence, oldest, offset - BATCH_HEAD_BYTES, len(records), crc32c(table))
    data = b"".join((head, _CRC.pack(crc32c(head)), table, *contents, bytes(padded(offset) - offset)))
    check(len(data) == padded(offset), "a batch has %d bytes, not %d", len(data), padded(offset))
    return data, placed


def read_head(data: Buffer, offset: int) -> BatchHead | None:
    """The head at a boundary; None where none was written whole. Raises CorruptData for an unknown version."""
    if offset + BATCH_HEAD_BYTES > len(data):
        return None
    magic, version, log_id, sequence, oldest, length, records, table_crc = _HEAD.unpack_from(data, offset)
    if magic != MAGIC:
        return None
    (crc,) = _CRC.unpack_from(data, offset + _HEAD.size)
    if crc32c(memoryview(data)[offset : offset + _HEAD.size]) != crc:
        return None
    if version != VERSION:
        raise CorruptData(f"a log batch has version {version}, this program knows {VERSION}")
    return BatchHead(log_id, sequence, oldest, length, records, table_crc)


def read_table(data: Buffer, offset: int, head: BatchHead) -> list[Placed] | None:
    """The records of the batch at `offset`, their contents checked; None where the batch is torn or damaged.

    Raises CorruptData for records that are whole and of an unknown version or kind.
    """
    if offset + head.total_bytes > len(data) or HEAD_BYTES * head.records > head.length:
        return None
    view = memoryview(data)[offset : offset + head.total_bytes]
    at = BATCH_HEAD_BYTES + HEAD_BYTES * head.records
    table = view[BATCH_HEAD_BYTES:at]
    if crc32c(table) != head.table_crc:
        return None
    placed: list[Placed] = []
    for kind, length, replica, crc in unpack_heads(table):
        if crc32c(view[at : at + length]) != crc:
            return None
        placed.append(Placed(kind, replica, at, length, crc))
        at += length
    return placed if at == head.total_bytes else None
