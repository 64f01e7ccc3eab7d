"""Consensus: one replica of a Raft group as a pure function of the time, messages and proposals that it is given.

`RawNode` is the replica; its module says how it is driven. There is no I/O, no clock and no randomness in this room but
what `Config` brings along. Entries travel in `Entries`, parallel lists for a run of them. `LogView` is what the core
needs of a durable log, `MemoryLog` one for tests. `encode_message` and `decode_message` are the form on the wire.
"""

from iotdb_cluster.raft.config import Config
from iotdb_cluster.raft.lone import COMMITTED, NEWS, REFUSED, SPOKEN, TAKEN
from iotdb_cluster.raft.membership import ChangeRefused, Configuration
from iotdb_cluster.raft.memory import MemoryLog
from iotdb_cluster.raft.message import (
    ENTRY_OVERHEAD_BYTES,
    LOCAL_APPEND,
    LOCAL_APPLY,
    NO_ENTRIES,
    NO_LIMIT,
    NO_NODE,
    Compacted,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfState,
    Entries,
    EntryKind,
    HardState,
    LogView,
    Message,
    MessageType,
    NotInMemory,
    ProposalDropped,
    ReadState,
    Role,
    Snapshot,
    SnapshotNotReady,
    Unavailable,
    UnknownPeer,
    decode_conf_change,
    encode_conf_change,
)
from iotdb_cluster.raft.progress import ProgressState
from iotdb_cluster.raft.raw_node import MemberStatus, RawNode, Ready, SoftState, Status
from iotdb_cluster.raft.wire import decode_message, encode_message

__all__ = [
    "COMMITTED",
    "ENTRY_OVERHEAD_BYTES",
    "LOCAL_APPEND",
    "LOCAL_APPLY",
    "NEWS",
    "NO_ENTRIES",
    "NO_LIMIT",
    "NO_NODE",
    "REFUSED",
    "SPOKEN",
    "TAKEN",
    "ChangeRefused",
    "Compacted",
    "ConfChange",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfState",
    "Config",
    "Configuration",
    "Entries",
    "EntryKind",
    "HardState",
    "LogView",
    "MemberStatus",
    "MemoryLog",
    "Message",
    "MessageType",
    "NotInMemory",
    "ProgressState",
    "ProposalDropped",
    "RawNode",
    "ReadState",
    "Ready",
    "Role",
    "Snapshot",
    "SnapshotNotReady",
    "SoftState",
    "Status",
    "Unavailable",
    "UnknownPeer",
    "decode_conf_change",
    "decode_message",
    "encode_conf_change",
    "encode_message",
]
