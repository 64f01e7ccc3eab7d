"""What a loop turn has to say to each peer, as one batch a connection; and reading such a batch.

A batch, big-endian: u8 version (3), u32 node and u64 incarnation of the sender, then for each message
u32 group, u32 generation, u64 replica that is meant, u32 length, and the message as the Raft room writes it. Replica 0
means the node: what comes is a beat (group 0), the answer to one (1) or commit indexes (2), as `beats` writes them;
or lone entries (3) or acknowledgements (4), as `lone` does. A message for a replica that the receiver does not have,
or from an incarnation that it does not know, is dropped there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple, TypeAlias

from iotdb_cluster.cluster.beats import Answer, Beat, Commits, Covered
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.lone import AckRow, Acks, AppendRow, Appends
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.raft import Message, decode_message, encode_message

__all__ = ["Channel", "Envelope", "PeerOutbox", "Word", "read_batch"]

VERSION = 3
Word: TypeAlias = Beat | Answer | Commits | Appends | Acks  # what one node says to another of many groups
_HEAD = struct.Struct(">BIQ")
_MESSAGE = struct.Struct(">IIQI")
_WORDS: dict[int, type[Word]] = {0: Beat, 1: Answer, 2: Commits, 3: Appends, 4: Acks}
_NUMBERS = {kind: number for number, kind in _WORDS.items()}


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
    message: Message | Word


class _Words:
    """What a turn says to a node of many groups."""

    __slots__ = ("acks", "commits", "groups", "payloads", "rows")

    def __init__(self) -> None:
        self.rows: list[AppendRow] = []
        self.payloads: list[bytes] = []
        self.groups: list[Group] = []  # of `rows`
        self.acks: list[AckRow] = []
        self.commits: list[Covered] = []


class PeerOutbox:
    """Gathers a turn's messages by peer and connection; `send(node, channel, batch)` takes them at `flush`."""

    def __init__(self, node: int, incarnation: int, send: Callable[[int, Channel, bytes], bool]) -> None:
        self._head = _HEAD.pack(VERSION, node, incarnation)
        self._send = send
        self._parts: dict[tuple[int, Channel], list[bytes]] = {}
        self._entries: dict[tuple[int, Channel], list[tuple[Group, int]]] = {}  # for which members there are any
        self._words: dict[int, _Words] = {}  # to a node, and with a negative sign what goes to it of the meta group

    def post(self, node: int, group: Group, message: Message, heartbeat: bool) -> None:
        if group.id:
            channel = Channel.DATA_HEARTBEAT if heartbeat else Channel.DATA
        else:
            channel = Channel.META_HEARTBEAT if heartbeat else Channel.META
        if not heartbeat:
            words = self._words.get(node if group.id else -node)
            if words is not None and words.rows:
                self._tell_entries(node, channel, words)  # what comes first goes first
        parts = self._parts.setdefault((node, channel), [self._head])
        if message.entries.terms:
            self._entries.setdefault((node, channel), []).append((group, message.to))
        data = encode_message(message)
        parts.append(_MESSAGE.pack(group.id, group.generation, message.to, len(data)))
        parts.append(data)

    def tell(self, node: int, word: Word) -> None:
        """Say something of many groups to a node, on the heartbeats' connection."""
        self._word(node, Channel.DATA_HEARTBEAT, word)

    def committed(self, node: int, group: Group, pair: Covered) -> None:
        """Tell a member the commit index, behind what it was sent before; all of a turn go together."""
        self._words_to(node, group).commits.append(pair)

    def append(self, node: int, group: Group, row: AppendRow, payload: bytes) -> None:
        """Send a member a lone entry; all of a turn go together."""
        words = self._words_to(node, group)
        words.rows.append(row)
        words.payloads.append(payload)
        words.groups.append(group)

    def acknowledge(self, node: int, group: Group, row: AckRow) -> None:
        """Acknowledge a lone entry to the leader; all of a turn go together."""
        self._words_to(node, group).acks.append(row)

    def _words_to(self, node: int, group: Group) -> _Words:
        key = node if group.id else -node
        found = self._words.get(key)
        if found is None:
            found = self._words[key] = _Words()
        return found

    def _word(self, node: int, channel: Channel, word: Word) -> None:
        parts = self._parts.setdefault((node, channel), [self._head])
        data = word.encode()
        parts.append(_MESSAGE.pack(_NUMBERS[type(word)], 0, 0, len(data)))
        parts.append(data)

    def _tell_entries(self, node: int, channel: Channel, words: _Words) -> None:
        members = [(group, row[2]) for group, row in zip(words.groups, words.rows, strict=True)]
        self._entries.setdefault((node, channel), []).extend(members)
        self._word(node, channel, Appends(words.rows, words.payloads))
        words.rows, words.payloads, words.groups = [], [], []

    def flush(self) -> list[tuple[Group, int]]:
        """Send what was gathered; the members for which log entries were dropped."""
        gathered, self._words = self._words, {}
        for key, words in gathered.items():
            node, channel = abs(key), Channel.DATA if key > 0 else Channel.META
            if words.rows:
                self._tell_entries(node, channel, words)
            if words.acks:
                self._word(node, channel, Acks(words.acks))
            if words.commits:
                self._word(node, channel, Commits(tuple(words.commits)))
        lost: list[tuple[Group, int]] = []
        if self._parts:
            batches, self._parts = self._parts, {}
            entries, self._entries = self._entries, {}
            for (node, channel), parts in batches.items():
                if not self._send(node, channel, b"".join(parts)):
                    lost += entries.get((node, channel), ())
        return lost


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


def _read(group: int, replica: int, data: memoryview) -> Message | Word:
    if replica:
        return decode_message(data)
    kind = _WORDS.get(group)
    if kind is None:
        raise CorruptData(f"a batch of Raft messages has a word {group} to the node")
    return kind.decode(data)
