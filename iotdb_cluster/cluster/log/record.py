"""What the log records, and the bytes of each record.

A record is a head and a content; the heads of a batch stand together in its table. All numbers are big-endian.
Head (24 bytes): u8 kind, u8 version (1; 2 where payloads are compressed), u16 flags (0), u32 bytes of the content,
u64 replica, u32 CRC32C of the content, u32 zero. Contents:

* Append (1): u64 first index, u8 codec of the payloads, u24 count, then for all entries their terms u64, kinds u8,
  payload lengths u32, payloads. Codec 0: the payloads as they are, 1: all of them together as one lz4 block.
* State (2): u64 term, u64 vote, u64 commit.
* Configuration (3): u8 auto_leave, four lists of replica ids as u16 count and u64 each: voters, learners, outgoing
  voters, next learners; then u64 index of the entry that made it so, u64 generation of the group, u64 replica whose log
  won that generation (absent, before members could change).
* Compact (4): u64 index, u64 term.
* Install (5): u64 index, u64 term, then the five fields of a configuration as above.
* Remove (6): nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

import lz4.block
from crc32c import crc32c

from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.limits import LOG_COMPRESS_BYTES_MIN, LOG_COMPRESS_RATIO_MAX, LOG_SAMPLE_BYTES
from iotdb_cluster.raft import ConfState, Entries, EntryKind, HardState

__all__ = [
    "HEAD_BYTES",
    "Append",
    "Compact",
    "Configuration",
    "Install",
    "Kind",
    "Record",
    "Remove",
    "State",
    "changes",
    "content_bytes",
    "content_pieces",
    "decode_content",
    "decode_entries",
    "decode_terms",
    "lone_pieces",
    "pack_head",
    "unpack_heads",
]

VERSION: Final = 1
COMPRESSED_VERSION: Final = 2
_HEAD: Final = struct.Struct(">BBHIQII")
HEAD_BYTES: Final = _HEAD.size
_APPEND: Final = struct.Struct(">QI")
_APPEND_ONE: Final = struct.Struct(">QIQBI")  # and the head of its one entry
_STATE: Final = struct.Struct(">QQQ")
_MARK: Final = struct.Struct(">QQ")
_SINCE: Final = struct.Struct(">QQQ")  # index, generation, chosen
_ENTRY_BYTES: Final = 13  # term, kind, length
_KIND_MAX: Final = max(EntryKind)
_COUNT_MAX: Final = (1 << 24) - 1
_PLAIN, _LZ4 = 0, 1

Buffer: TypeAlias = bytes | bytearray | memoryview


class Kind(IntEnum):
    APPEND = 1
    STATE = 2
    CONFIGURATION = 3
    COMPACT = 4
    INSTALL = 5
    REMOVE = 6


@dataclass(slots=True)
class Append:
    """Entries; the first, of index i, cancels the replica's earlier entries with an index >= i. Never changed."""

    replica: int
    entries: Entries


@dataclass(frozen=True, slots=True)
class State:
    """The replica's hard state."""

    replica: int
    hard_state: HardState


@dataclass(frozen=True, slots=True)
class Configuration:
    """The replica's group has these members since the entry at `index`, which it has applied.

    `generation` is the group's; `chosen` the replica whose log a forced reconfiguration began it with, among several.
    """

    replica: int
    conf_state: ConfState
    index: int = 0
    generation: int = 1
    chosen: int = 0


@dataclass(frozen=True, slots=True)
class Compact:
    """The replica's entries up to `index` (which has `term`) are not needed any more."""

    replica: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Install:
    """A received snapshot counts from here on; it cancels all earlier entries of the replica."""

    replica: int
    index: int
    term: int
    conf_state: ConfState


@dataclass(frozen=True, slots=True)
class Remove:
    """The replica is gone; so is everything recorded for it before."""

    replica: int


Record: TypeAlias = Append | State | Configuration | Compact | Install | Remove

_KINDS: Final[dict[type, Kind]] = {
    Append: Kind.APPEND,
    State: Kind.STATE,
    Configuration: Kind.CONFIGURATION,
    Compact: Kind.COMPACT,
    Install: Kind.INSTALL,
    Remove: Kind.REMOVE,
}


_BY_NUMBER: Final = (Kind.APPEND, *Kind)  # the first is never used


def _conf_bytes(state: ConfState) -> int:
    members = len(state.voters) + len(state.learners) + len(state.voters_outgoing) + len(state.learners_next)
    return 9 + 8 * members


def content_bytes(record: Record) -> int:
    """Length of the content, known before it is encoded; with compressed payloads it comes out shorter."""
    if isinstance(record, Append):
        entries = record.entries
        return _APPEND.size + _ENTRY_BYTES * len(entries.data) + entries.payload_bytes
    if isinstance(record, State):
        return _STATE.size
    if isinstance(record, Configuration):
        return _conf_bytes(record.conf_state) + _SINCE.size
    if isinstance(record, Compact):
        return _MARK.size
    if isinstance(record, Install):
        return _MARK.size + _conf_bytes(record.conf_state)
    return 0


def lone_pieces(record: Append) -> tuple[bytes, bytes, int, int] | None:
    """Of an append of one entry: (the head, what stands before the payload, length and CRC32C of the content).

    As `pack_head` and `content_pieces` have it; None where its payload may be compressed.
    """
    entries = record.entries
    payload = entries.data[0]
    size = len(payload)
    if size >= LOG_COMPRESS_BYTES_MIN:
        return None
    front = _APPEND_ONE.pack(entries.first, 1, entries.terms[0], entries.kinds[0], size)
    crc = crc32c(payload, crc32c(front))
    length = _APPEND_ONE.size + size
    return _HEAD.pack(Kind.APPEND, VERSION, 0, length, record.replica, crc, 0), front, length, crc


def content_pieces(record: Record) -> tuple[int, list[Buffer]]:
    """(the record's version, the content); payloads as they are, or compressed where that pays."""
    if isinstance(record, Append):
        entries = record.entries
        count = len(entries.terms)
        check(0 < count <= _COUNT_MAX, "replica %d appends %d entries", record.replica, count)
        packed = _compressed(entries.data)
        codec = _PLAIN if packed is None else _LZ4
        head = _append_bytes(entries, codec << 24 | count)
        return (VERSION, [head, *entries.data]) if packed is None else (COMPRESSED_VERSION, [head, packed])
    return VERSION, _small_pieces(record)


def _append_bytes(entries: Entries, word: int) -> bytes:
    """What stands before the payloads; `word` has codec and count."""
    terms = entries.terms
    count = len(terms)
    if count == 1:  # as below, at once
        return _APPEND_ONE.pack(entries.first, word, terms[0], entries.kinds[0], len(entries.data[0]))
    return b"".join(
        (
            _APPEND.pack(entries.first, word),
            struct.pack(f">{count}Q", *terms),
            bytes(entries.kinds),
            struct.pack(f">{count}I", *map(len, entries.data)),
        )
    )


def _compressed(payloads: Sequence[bytes]) -> bytes | None:
    """The payloads as one lz4 block; None where they are few, or a sample says that it would not pay."""
    size = sum(map(len, payloads))
    if size < LOG_COMPRESS_BYTES_MIN:
        return None
    longest = max(payloads, key=len)
    middle = max(0, len(longest) - LOG_SAMPLE_BYTES) // 2
    sample = longest[middle : middle + LOG_SAMPLE_BYTES]
    if len(lz4.block.compress(sample, store_size=False)) > LOG_COMPRESS_RATIO_MAX * len(sample):
        return None
    packed: bytes = lz4.block.compress(b"".join(payloads), store_size=False)
    return packed if len(packed) <= LOG_COMPRESS_RATIO_MAX * size else None


def _small_pieces(record: State | Configuration | Compact | Install | Remove) -> list[Buffer]:
    if isinstance(record, State):
        return [_STATE.pack(*record.hard_state)]
    if isinstance(record, Configuration):
        return [_encode_conf(record.conf_state) + _SINCE.pack(record.index, record.generation, record.chosen)]
    if isinstance(record, Compact):
        return [_MARK.pack(record.index, record.term)]
    if isinstance(record, Install):
        return [_MARK.pack(record.index, record.term) + _encode_conf(record.conf_state)]
    return []


def _encode_conf(state: ConfState) -> bytes:
    parts = [b"\1" if state.auto_leave else b"\0"]
    lists = (state.voters, state.learners, state.voters_outgoing, state.learners_next)
    parts.extend(struct.pack(f">H{len(ids)}Q", len(ids), *ids) for ids in lists)
    return b"".join(parts)


def pack_head(record: Record, version: int, length: int, pieces: Sequence[Buffer]) -> tuple[bytes, int]:
    """(the head, the CRC32C of the content)."""
    crc = 0
    for piece in pieces:
        crc = crc32c(piece, crc)
    return _HEAD.pack(_KINDS[type(record)], version, 0, length, record.replica, crc, 0), crc


def unpack_heads(table: Buffer) -> Iterator[tuple[Kind, int, int, int]]:
    """(kind, bytes of the content, replica, CRC32C of the content) of each record. Raises CorruptData."""
    for kind, version, flags, length, replica, crc, _ in _HEAD.iter_unpack(table):
        if not VERSION <= version <= COMPRESSED_VERSION or flags or not 0 < kind < len(_BY_NUMBER):
            raise CorruptData(
                f"a log record has kind {kind}, version {version} and flags {flags}; "
                f"this program knows kinds 1 to {Kind.REMOVE:d} of versions up to {COMPRESSED_VERSION}"
            )
        yield _BY_NUMBER[kind], length, replica, crc


def decode_content(kind: Kind, replica: int, content: Buffer) -> Record:
    """The record. Raises CorruptData."""
    try:
        if kind is Kind.APPEND:
            return Append(replica, decode_entries(content))
        if kind is Kind.STATE:
            return State(replica, HardState(*_STATE.unpack(content)))
        if kind is Kind.CONFIGURATION:
            conf_state, end = _decode_conf(content, 0)
            return Configuration(replica, conf_state, *(_SINCE.unpack(content[end:]) if end < len(content) else ()))
        if kind is Kind.COMPACT:
            return Compact(replica, *_MARK.unpack(content))
        if kind is Kind.INSTALL:
            index, term = _MARK.unpack_from(content)
            conf_state, end = _decode_conf(content, _MARK.size)
            if end != len(content):
                raise CorruptData(f"an INSTALL record of {len(content)} bytes ends at {end}")
            return Install(replica, index, term, conf_state)
        return Remove(replica)
    except struct.error as exception:
        raise CorruptData(f"a {kind.name} record of replica {replica} is damaged: {exception}") from exception


def _decode_conf(content: Buffer, at: int) -> tuple[ConfState, int]:
    """The configuration that stands at `at`, and where it ends."""
    (auto_leave,) = struct.unpack_from(">B", content, at)
    at += 1
    lists: list[tuple[int, ...]] = []
    for _ in range(4):
        (count,) = struct.unpack_from(">H", content, at)
        lists.append(struct.unpack_from(f">{count}Q", content, at + 2))
        at += 2 + 8 * count
    voters, learners, outgoing, following = lists
    return ConfState(voters, learners, outgoing, following, bool(auto_leave)), at


def _append_head(content: Buffer) -> tuple[int, int, int]:
    """(first index, codec, count), checked against the length."""
    if len(content) < _APPEND.size:
        raise CorruptData(f"an append record has {len(content)} bytes")
    first, word = _APPEND.unpack_from(content)
    codec, count = word >> 24, word & _COUNT_MAX
    if codec > _LZ4:
        raise CorruptData(f"an append record has codec {codec}; this program knows {_PLAIN} and {_LZ4}")
    if not count or _APPEND.size + _ENTRY_BYTES * count > len(content):
        raise CorruptData(f"an append record of {len(content)} bytes says that it has {count} entries")
    return first, codec, count


def decode_entries(content: Buffer) -> Entries:
    """The entries of an append record. Raises CorruptData."""
    data = content if isinstance(content, bytes) else bytes(content)
    first, codec, count = _append_head(data)
    at = _APPEND.size
    terms = list(struct.unpack_from(f">{count}Q", data, at))
    at += 8 * count
    kinds = list(data[at : at + count])
    if max(kinds) > _KIND_MAX:
        raise CorruptData(f"an append record has an entry of kind {max(kinds)}")
    at += count
    lengths = struct.unpack_from(f">{count}I", data, at)
    at += 4 * count
    if codec == _LZ4:
        data, at = _decompressed(data, at, sum(lengths)), 0
    ends = list(accumulate(lengths, initial=at))
    if ends[-1] != len(data):
        raise CorruptData(f"an append record of {len(data)} bytes ends at {ends[-1]}")
    return Entries(first, terms, kinds, [data[a:b] for a, b in pairwise(ends)])


def _decompressed(data: bytes, at: int, size: int) -> bytes:
    """The payloads, which stand as a block from `at` on."""
    try:
        payloads: bytes = lz4.block.decompress(memoryview(data)[at:], uncompressed_size=size)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise CorruptData(f"an append record of {len(data)} bytes cannot be decompressed: {error}") from None
    return payloads


def decode_terms(content: Buffer) -> tuple[int, int, list[tuple[int, int]], list[int]]:
    """(first index, count, [(index, term) where a term begins], [index of what is not NORMAL]) of an append record."""
    first, _, count = _append_head(content)
    at = _APPEND.size
    (low,) = struct.unpack_from(">Q", content, at)
    (high,) = struct.unpack_from(">Q", content, at + 8 * (count - 1))
    kinds = content[at + 8 * count : at + 9 * count]
    starts = [(first, low)]
    if low != high:
        starts = term_starts(first, struct.unpack_from(f">{count}Q", content, at))
    return first, count, starts, changes(first, kinds)


def changes(first: int, kinds: Sequence[int]) -> list[int]:
    """Indexes of the entries, the first of which is `first`, that change the configuration."""
    return [first + at for at, kind in enumerate(kinds) if kind] if any(kinds) else []


def term_starts(first: int, terms: Sequence[int]) -> list[tuple[int, int]]:
    """[(index, term)] where a term begins among consecutive entries."""
    if terms[0] == terms[-1]:
        return [(first, terms[0])]
    changes = (at for at in range(1, len(terms)) if terms[at] != terms[at - 1])
    return [(first, terms[0]), *((first + at, terms[at]) for at in changes)]
