"""Value types of the consensus core: entries, states, snapshots, configuration changes, messages; the log's contract.

None of these is changed after it has been handed over: a follower's message may share the lists of the leader's log.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from iotdb_cluster.errors import CorruptData, check

__all__ = [
    "ENTRY_OVERHEAD_BYTES",
    "LOCAL_APPEND",
    "LOCAL_APPLY",
    "NO_ENTRIES",
    "NO_LIMIT",
    "NO_NODE",
    "Compacted",
    "ConfChange",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfState",
    "Entries",
    "EntryKind",
    "HardState",
    "LogView",
    "Message",
    "MessageType",
    "NotInMemory",
    "ProposalDropped",
    "ReadState",
    "Role",
    "Snapshot",
    "SnapshotNotReady",
    "Unavailable",
    "UnknownPeer",
    "decode_conf_change",
    "encode_conf_change",
]

NO_NODE: Final = 0
NO_LIMIT: Final = (1 << 64) - 1
LOCAL_APPEND: Final = (1 << 64) - 1  # the replica's own log writer
LOCAL_APPLY: Final = (1 << 64) - 2  # the replica's own state machine
ENTRY_OVERHEAD_BYTES: Final = 16  # what an entry costs beside its payload; so that empty entries are not free


class Compacted(Exception):
    """The index lies before the first one that the log still holds."""


class Unavailable(Exception):
    """The index lies behind the last one that the log holds."""


class NotInMemory(Exception):
    """The entries are being read from the disk; the log tells its owner when they can be had (`entries_read`)."""


class SnapshotNotReady(Exception):
    """The log cannot hand out a snapshot yet; the core asks again later."""


class ProposalDropped(Exception):
    """The proposal was not taken: no leader, no forwarding, a hand-over under way, or too much is uncommitted."""


class UnknownPeer(Exception):
    """A response from a replica that is not in the configuration, or a local message that came from outside."""


class Role(IntEnum):
    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    PRE_CANDIDATE = 3


class EntryKind(IntEnum):
    NORMAL = 0
    CONF_CHANGE_SINGLE = 1  # one change of one member
    CONF_CHANGE = 2  # any number of changes; with none it leaves a joint configuration


class MessageType(IntEnum):
    """The numbers go over the wire: add at the end only."""

    HUP = 0
    BEAT = 1
    PROP = 2
    APP = 3
    APP_RESP = 4
    VOTE = 5
    VOTE_RESP = 6
    SNAP = 7
    HEARTBEAT = 8
    HEARTBEAT_RESP = 9
    UNREACHABLE = 10
    SNAP_STATUS = 11
    CHECK_QUORUM = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14
    READ_INDEX = 15
    READ_INDEX_RESP = 16
    PRE_VOTE = 17
    PRE_VOTE_RESP = 18
    STORAGE_APPEND = 19
    STORAGE_APPEND_RESP = 20
    STORAGE_APPLY = 21
    STORAGE_APPLY_RESP = 22
    FORGET_LEADER = 23


class Entries:
    """A run of consecutive log entries: parallel lists, the i-th has index `first + i`. Never changed once made."""

    __slots__ = ("_payload_bytes", "data", "first", "kinds", "terms")

    def __init__(self, first: int, terms: list[int], kinds: list[int], data: list[bytes]) -> None:
        self.first = first
        self.terms = terms
        self.kinds = kinds
        self.data = data
        self._payload_bytes = -1  # not counted yet

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def last(self) -> int:
        """Index of the last entry; `first - 1` where there is none."""
        return self.first + len(self.terms) - 1

    def slice(self, low: int, high: int) -> Entries:
        """The entries with log indexes [low, high), which must all be here."""
        first = self.first
        check(first <= low <= high <= first + len(self.terms), "slice [%d, %d) of entries from %d", low, high, first)
        if low == first and high == first + len(self.terms):
            return self
        a = low - first
        b = high - first
        return Entries(low, self.terms[a:b], self.kinds[a:b], self.data[a:b])

    def concat(self, other: Entries) -> Entries:
        """These and then `other`, which must follow on."""
        if not other.terms:
            return self
        if not self.terms:
            return other
        check(other.first == self.first + len(self.terms), "entries from %d do not follow %d", other.first, self.last)
        return Entries(self.first, self.terms + other.terms, self.kinds + other.kinds, self.data + other.data)

    def term_at(self, index: int) -> int:
        """Term of the entry at a log index that must be here."""
        check(0 <= index - self.first < len(self.terms), "no entry %d in [%d, %d]", index, self.first, self.last)
        return self.terms[index - self.first]

    @property
    def payload_bytes(self) -> int:
        size = self._payload_bytes
        if size < 0:
            size = self._payload_bytes = sum(map(len, self.data))
        return size

    @property
    def byte_size(self) -> int:
        """Bytes that the limits count: the payloads and `ENTRY_OVERHEAD_BYTES` an entry."""
        size = self._payload_bytes
        return (self.payload_bytes if size < 0 else size) + ENTRY_OVERHEAD_BYTES * len(self.data)

    def limit(self, bytes_max: int) -> Entries:
        """The longest head within `bytes_max` bytes, at least one entry where there is one."""
        if len(self.terms) < 2 or self.byte_size <= bytes_max:
            return self
        total = count = 0
        for payload in self.data:
            total += len(payload) + ENTRY_OVERHEAD_BYTES
            if total > bytes_max and count:
                break
            count += 1
        return self.slice(self.first, self.first + count)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Entries)
            and self.terms == other.terms
            and (self.first == other.first or not self.terms)
            and self.kinds == other.kinds
            and self.data == other.data
        )

    def __hash__(self) -> int:
        raise TypeError("entries are compared, not hashed")

    def __repr__(self) -> str:
        if not self.terms:
            return "Entries()"
        return (
            f"Entries({self.first}..{self.last}, terms {self.terms[0]}..{self.terms[-1]}, {self.payload_bytes} bytes)"
        )


NO_ENTRIES: Final = Entries(0, [], [], [])


class HardState(NamedTuple):
    """What must be on disk before the messages that depend on it go out."""

    term: int = 0
    vote: int = NO_NODE
    commit: int = 0


@dataclass(frozen=True, slots=True)
class ConfState:
    """Members of a group as of an index; `voters_outgoing` is empty unless the configuration is joint."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the machine as of (index, term); `data` is opaque here, in production a reference to staged files."""

    index: int = 0
    term: int = 0
    conf_state: ConfState = field(default_factory=ConfState)
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read asked for with `context` may be answered once `index` is applied."""

    index: int
    context: bytes


class ConfChangeType(IntEnum):
    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER = 3


class ConfChangeTransition(IntEnum):
    AUTO = 0  # simple where one voter changes, else joint and left by the leader
    JOINT_IMPLICIT = 1  # always joint, left by the leader
    JOINT_EXPLICIT = 2  # always joint, left by an empty change that somebody proposes


class ConfChangeSingle(NamedTuple):
    type: ConfChangeType
    node: int


@dataclass(frozen=True, slots=True)
class ConfChange:
    """Changes that take effect together when the entry is applied; none means: leave the joint configuration."""

    changes: tuple[ConfChangeSingle, ...] = ()
    transition: ConfChangeTransition = ConfChangeTransition.AUTO
    context: bytes = b""

    @property
    def leaves_joint(self) -> bool:
        return not self.changes and self.transition is ConfChangeTransition.AUTO

    @property
    def enters_joint(self) -> bool:
        return self.transition is not ConfChangeTransition.AUTO or len(self.changes) > 1

    @property
    def auto_leave(self) -> bool:
        return self.transition is not ConfChangeTransition.JOINT_EXPLICIT


_CONF_CHANGE_VERSION = 1
_CONF_CHANGE_HEAD = struct.Struct(">BBH")  # version, transition, number of changes
_CONF_CHANGE_PART = struct.Struct(">BQ")  # type, node


def encode_conf_change(change: ConfChange) -> bytes:
    """Payload of a configuration entry; nothing at all for the bare change that leaves a joint configuration."""
    if change.leaves_joint and not change.context:
        return b""
    parts = [_CONF_CHANGE_HEAD.pack(_CONF_CHANGE_VERSION, change.transition, len(change.changes))]
    parts.extend(_CONF_CHANGE_PART.pack(kind, node) for kind, node in change.changes)
    parts.append(change.context)
    return b"".join(parts)


def decode_conf_change(payload: bytes) -> ConfChange:
    """CorruptData where the payload is cut or of an unknown version."""
    if not payload:
        return ConfChange()
    try:
        version, transition, count = _CONF_CHANGE_HEAD.unpack_from(payload)
        if version != _CONF_CHANGE_VERSION:
            raise CorruptData(f"a configuration entry has version {version}, this program knows {_CONF_CHANGE_VERSION}")
        at = _CONF_CHANGE_HEAD.size
        changes = []
        for _ in range(count):
            kind, node = _CONF_CHANGE_PART.unpack_from(payload, at)
            changes.append(ConfChangeSingle(ConfChangeType(kind), node))
            at += _CONF_CHANGE_PART.size
        return ConfChange(tuple(changes), ConfChangeTransition(transition), bytes(payload[at:]))
    except (struct.error, ValueError) as exception:
        raise CorruptData(f"a configuration entry of {len(payload)} bytes is damaged: {exception}") from exception


@dataclass(slots=True)
class Message:
    """What the core takes in and gives out; which fields count depends on the type.

    `source` and `to` are replica ids, or LOCAL_APPEND / LOCAL_APPLY. `term` 0 means a message of no term. A message to
    one of the local targets carries `responses`: the messages to hand on (to peers, or to the core itself) once its
    work is durable or applied.
    """

    type: MessageType
    to: int = NO_NODE
    source: int = NO_NODE
    term: int = 0
    log_term: int = 0
    index: int = 0
    commit: int = 0
    vote: int = 0
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    entries: Entries = NO_ENTRIES
    snapshot: Snapshot | None = None
    responses: Sequence[Message] = ()


class LogView(Protocol):
    """The stable part of one replica's log, as the core reads it. Indexes count from 1."""

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Hard state and configuration as of the start."""

    def first_index(self) -> int:
        """Index of the first entry that can be read; one more than the newest compaction or installed snapshot."""

    def last_index(self) -> int:
        """Index of the last entry; `first_index() - 1` where there is none."""

    def term(self, index: int) -> int:
        """Term of the entry, known from `first_index() - 1` on. Raises Compacted, Unavailable."""

    def entries(self, low: int, high: int, bytes_max: int) -> Entries:
        """Entries [low, high) as far as `bytes_max` (`Entries.byte_size`) allows, at least one.

        Fewer where only some are in memory. Raises Compacted, NotInMemory.
        """

    def has_changes(self, low: int, high: int) -> bool:
        """Whether there is an entry of another kind than NORMAL within [low, high); nothing is read for it."""

    def snapshot(self) -> Snapshot:
        """A snapshot as of an applied index, behind the entry that made the newest member one. Raises SnapshotNotReady.

        A member that is not in the snapshot's configuration refuses it.
        """
