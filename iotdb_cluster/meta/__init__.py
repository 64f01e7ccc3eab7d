"""The state machine of the meta group: members, groups, slot owners, storage groups, TTLs, users.

`MetaState` is the machine, `commands` builds the payloads of its entries.
"""

from __future__ import annotations

from iotdb_cluster.meta import commands
from iotdb_cluster.meta.records import META_GROUP, Address, Group, Node, Replica, Result, StorageGroup
from iotdb_cluster.meta.state import LEVEL, META_VOTERS_MAX, MetaState

__all__ = [
    "LEVEL",
    "META_GROUP",
    "META_VOTERS_MAX",
    "Address",
    "Group",
    "MetaState",
    "Node",
    "Replica",
    "Result",
    "StorageGroup",
    "commands",
]
