"""Messages as bytes.

Layout, big-endian. Head: u8 version (1), u8 type, u8 flags, u64 to, u64 source, u64 term, u64 log_term, u64 index,
u64 commit, u64 vote, u64 reject_hint, u32 context bytes, u32 entries. Flags: 1 rejected, 2 has a snapshot. Then the
context, the entries where there are any (u64 first index; all terms u64; all kinds u8; all payload lengths u32; the
payloads), and the snapshot (u64 index, u64 term, u8 auto_leave, four id lists as u16 count and u64 each: voters,
learners, outgoing voters, next learners; u32 length and the data). Nothing may follow. Messages with responses stay
inside a process and have no encoding.
"""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise

from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.limits import FRAME_BYTES_MAX
from iotdb_cluster.raft.message import NO_ENTRIES, ConfState, Entries, EntryKind, Message, MessageType, Snapshot

__all__ = ["decode_message", "encode_message"]

VERSION = 1
_HEAD = struct.Struct(">BBB8QII")
_SNAPSHOT = struct.Struct(">QQB")
_ONE_ENTRY = struct.Struct(">QQBI")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_REJECT = 1
_SNAPSHOT_FOLLOWS = 2
_TYPES = tuple(MessageType)
_KIND_MAX = max(EntryKind)
_ENTRY_HEAD_BYTES = 13  # term, kind, length
_TERMLESS_TYPES = frozenset((int(MessageType.PROP), int(MessageType.READ_INDEX)))
_LOCAL_TYPES = frozenset(
    int(kind)
    for kind in (
        MessageType.HUP,
        MessageType.BEAT,
        MessageType.UNREACHABLE,
        MessageType.SNAP_STATUS,
        MessageType.CHECK_QUORUM,
        MessageType.STORAGE_APPEND,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY,
        MessageType.STORAGE_APPLY_RESP,
        MessageType.FORGET_LEADER,
    )
)


def encode_message(message: Message) -> bytes:
    """Bytes of a message to another replica; local ones have none (InvariantViolation)."""
    check(not message.responses and int(message.type) not in _LOCAL_TYPES, "message type %d is local", message.type)
    entries = message.entries
    count = len(entries.terms)
    flags = (_REJECT if message.reject else 0) | (_SNAPSHOT_FOLLOWS if message.snapshot is not None else 0)
    head = _HEAD.pack(
        VERSION,
        message.type,
        flags,
        message.to,
        message.source,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.vote,
        message.reject_hint,
        len(message.context),
        count,
    )
    if not flags & _SNAPSHOT_FOLLOWS and not count:
        return head + message.context
    if count == 1 and not flags & _SNAPSHOT_FOLLOWS:  # as below, at once: most appends under load to many groups
        (data,) = entries.data
        one = _ONE_ENTRY.pack(entries.first, entries.terms[0], entries.kinds[0], len(data))
        return b"".join((head, message.context, one, data))
    parts = [head, message.context]
    if count:
        parts.append(struct.pack(f">{count + 1}Q", entries.first, *entries.terms))
        parts.append(bytes(entries.kinds))
        parts.append(struct.pack(f">{count}I", *map(len, entries.data)))
        parts.extend(entries.data)
    if message.snapshot is not None:
        parts.append(_encode_snapshot(message.snapshot))
    return b"".join(parts)


def _encode_snapshot(snapshot: Snapshot) -> bytes:
    state = snapshot.conf_state
    parts = [_SNAPSHOT.pack(snapshot.index, snapshot.term, state.auto_leave)]
    lists = (state.voters, state.learners, state.voters_outgoing, state.learners_next)
    parts.extend(struct.pack(f">H{len(ids)}Q", len(ids), *ids) for ids in lists)
    parts.append(_U32.pack(len(snapshot.data)))
    parts.append(snapshot.data)
    return b"".join(parts)


def decode_message(data: bytes | bytearray | memoryview) -> Message:
    """The message; CorruptData where the bytes are cut, too long, of another version, or make no sense."""
    frame = data if isinstance(data, bytes) else bytes(data)
    if not _HEAD.size <= len(frame) <= FRAME_BYTES_MAX:
        raise CorruptData(f"a raft message has {len(frame)} bytes")
    version, kind, flags, to, source, term, log_term, index, commit, vote, hint, context_bytes, count = (
        _HEAD.unpack_from(frame)
    )
    if version != VERSION:
        raise CorruptData(f"a raft message has version {version}, this program knows {VERSION}")
    if kind >= len(_TYPES) or kind in _LOCAL_TYPES or flags > 3:
        raise CorruptData(f"a raft message has type {kind} and flags {flags}")
    if not term and kind not in _TERMLESS_TYPES:
        raise CorruptData(f"a raft message of type {kind} has no term")
    at = _HEAD.size + context_bytes
    if at > len(frame):
        raise CorruptData(f"a raft message of {len(frame)} bytes is cut within a context of {context_bytes}")
    entries = NO_ENTRIES
    if count:
        entries, at = _decode_entries(frame, at, count)
        if kind == MessageType.APP and entries.first != index + 1:
            raise CorruptData(f"a raft message appends from {entries.first} behind {index}")
    snapshot = None
    if flags & _SNAPSHOT_FOLLOWS:
        snapshot, at = _decode_snapshot(frame, at)
    if at != len(frame):
        raise CorruptData(f"a raft message of {len(frame)} bytes ends at {at}")
    return Message(
        _TYPES[kind],
        to,
        source,
        term,
        log_term,
        index,
        commit,
        vote,
        bool(flags & _REJECT),
        hint,
        frame[_HEAD.size : _HEAD.size + context_bytes] if context_bytes else b"",
        entries,
        snapshot,
    )


def _decode_entries(frame: bytes, at: int, count: int) -> tuple[Entries, int]:
    if count * _ENTRY_HEAD_BYTES + 8 > len(frame) - at:
        raise CorruptData(f"a raft message of {len(frame)} bytes says that it has {count} entries")
    if count == 1:
        first, term, kind, length = _ONE_ENTRY.unpack_from(frame, at)
        at += _ONE_ENTRY.size
        if kind > _KIND_MAX or at + length > len(frame):
            raise CorruptData(f"a raft message has an entry of kind {kind} and {length} bytes at {at}")
        return Entries(first, [term], [kind], [frame[at : at + length]]), at + length
    first, *terms = struct.unpack_from(f">{count + 1}Q", frame, at)
    at += 8 * (count + 1)
    kinds = list(frame[at : at + count])
    if max(kinds) > _KIND_MAX:
        raise CorruptData(f"a raft message has an entry of kind {max(kinds)}")
    at += count
    lengths = struct.unpack_from(f">{count}I", frame, at)
    at += 4 * count
    ends = list(accumulate(lengths, initial=at))
    if ends[-1] > len(frame):
        raise CorruptData(f"a raft message of {len(frame)} bytes is cut within {count} entries of {sum(lengths)} bytes")
    return Entries(first, terms, kinds, [frame[a:b] for a, b in pairwise(ends)]), ends[-1]


def _decode_snapshot(frame: bytes, at: int) -> tuple[Snapshot, int]:
    try:
        index, term, auto_leave = _SNAPSHOT.unpack_from(frame, at)
        at += _SNAPSHOT.size
        lists: list[tuple[int, ...]] = []
        for _ in range(4):
            (number,) = _U16.unpack_from(frame, at)
            lists.append(struct.unpack_from(f">{number}Q", frame, at + 2))
            at += 2 + 8 * number
        (length,) = _U32.unpack_from(frame, at)
    except struct.error as exception:
        raise CorruptData(f"a raft message of {len(frame)} bytes is cut within a snapshot") from exception
    at += 4
    if auto_leave > 1 or at + length > len(frame):
        raise CorruptData(f"a raft message of {len(frame)} bytes has a snapshot of {length} bytes at {at}")
    voters, learners, outgoing, following = lists
    state = ConfState(voters, learners, outgoing, following, bool(auto_leave))
    return Snapshot(index, term, state, frame[at : at + length]), at + length
