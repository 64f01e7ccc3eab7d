"""What a loop turn has to say to each peer, as one batch a connection; and reading such a batch.

A batch, big-endian: u8 version (2), u32 node and u64 incarnation of the sender, then for each message
u32 group, u32 generation, u64 replica that is meant, u32 length, and the message as the Raft room writes it. Replica 0
means the node: what comes is a beat (group 0) or the answer to one (group 1), as `beats` writes them. A message for a
replica that the receiver does not have, or from an incarnation that it does not know, is dropped there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from iotdb_cluster.cluster.beats import Answer, Beat
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.raft import Message, decode_message, encode_message

__all__ = ["Channel", "Envelope", "PeerOutbox", "read_batch"]

VERSION = 2
_HEAD = struct.Struct(">BIQ")
_MESSAGE = struct.Struct(">IIQI")
_BEAT, _ANSWER = 0, 1


class Channel(Enum):
    """A peer's connections: each kind of traffic has one of its own, so that none delays another."""

    META = "meta"
    META_HEARTBEAT = "meta heartbeat"
    DATA = "data"
    DATA_HEARTBEAT = "data heartbeat"
    SNAPSHOT = "snapshot"  # calls alone, to the data port


class Envelope(NamedTuple):
    """A received message and the replica that it is for, 0 for the node."""

    group: int
    generation: int
    replica: int
    message: Message | Beat | Answer


class PeerOutbox:
    """Gathers a turn's messages by peer and connection; `send(node, channel, batch)` takes them at `flush`."""

    def __init__(self, node: int, incarnation: int, send: Callable[[int, Channel, bytes], bool]) -> None:
        self._head = _HEAD.pack(VERSION, node, incarnation)
        self._send = send
        self._parts: dict[tuple[int, Channel], list[bytes]] = {}

    def post(self, node: int, group: Group, message: Message, heartbeat: bool) -> None:
        if group.id:
            channel = Channel.DATA_HEARTBEAT if heartbeat else Channel.DATA
        else:
            channel = Channel.META_HEARTBEAT if heartbeat else Channel.META
        parts = self._parts.setdefault((node, channel), [self._head])
        data = encode_message(message)
        parts.append(_MESSAGE.pack(group.id, group.generation, message.to, len(data)))
        parts.append(data)

    def tell(self, node: int, word: Beat | Answer) -> None:
        """Say something of all groups to a node."""
        parts = self._parts.setdefault((node, Channel.DATA_HEARTBEAT), [self._head])
        data = word.encode()
        parts.append(_MESSAGE.pack(_BEAT if isinstance(word, Beat) else _ANSWER, 0, 0, len(data)))
        parts.append(data)

    def flush(self) -> None:
        if not self._parts:
            return
        batches, self._parts = self._parts, {}
        for (node, channel), parts in batches.items():
            self._send(node, channel, b"".join(parts))


def read_batch(batch: bytes | memoryview) -> tuple[int, int, Iterator[Envelope]]:
    """(sender's node, its incarnation, the messages); CorruptData where the bytes are cut or of an unknown version."""
    view = memoryview(batch)
    if len(view) < _HEAD.size:
        raise CorruptData(f"a batch of Raft messages has {len(view)} bytes")
    version, node, incarnation = _HEAD.unpack_from(view)
    if version != VERSION:
        raise CorruptData(f"a batch of Raft messages has version {version}, this program knows {VERSION}")
    return node, incarnation, _messages(view)


def _messages(view: memoryview) -> Iterator[Envelope]:
    at = _HEAD.size
    while at < len(view):
        if at + _MESSAGE.size > len(view):
            raise CorruptData("a batch of Raft messages is cut within a header")
        group, generation, replica, length = _MESSAGE.unpack_from(view, at)
        at += _MESSAGE.size
        if at + length > len(view):
            raise CorruptData(f"a batch of Raft messages is cut within a message of {length} bytes")
        yield Envelope(group, generation, replica, _read(group, replica, view[at : at + length]))
        at += length


def _read(group: int, replica: int, data: memoryview) -> Message | Beat | Answer:
    if replica:
        return decode_message(data)
    if group == _BEAT:
        return Beat.decode(data)
    if group == _ANSWER:
        return Answer.decode(data)
    raise CorruptData(f"a batch of Raft messages has a word {group} to the node")
