"""The state machine of the meta group: members, groups, slot owners, storage groups, TTLs, users.

`MetaState` is the machine, `commands` builds the payloads of its entries.
"""

from __future__ import annotations

from iotdb_cluster.meta import commands
from iotdb_cluster.meta.changes import UNDER_WAY
from iotdb_cluster.meta.cluster import META_VOTERS_MAX
from iotdb_cluster.meta.records import (
    META_GROUP,
    Address,
    Change,
    ChangeKind,
    Group,
    Move,
    Node,
    NodeState,
    Replica,
    Result,
    Role,
    StorageGroup,
    WantedMove,
)
from iotdb_cluster.meta.state import LEVEL, MetaState
from iotdb_cluster.meta.view import cluster_view

__all__ = [
    "LEVEL",
    "META_GROUP",
    "META_VOTERS_MAX",
    "UNDER_WAY",
    "Address",
    "Change",
    "ChangeKind",
    "Group",
    "MetaState",
    "Move",
    "Node",
    "NodeState",
    "Replica",
    "Result",
    "Role",
    "StorageGroup",
    "WantedMove",
    "cluster_view",
    "commands",
]
