"""The durable log: one file-backed log a node, shared by all of its Raft groups, and the node's identity beside it.

`DurableLog.open` recovers it, `view(replica)` is a replica's log as the consensus core reads it, `submit` takes one
Ready's records. See docs/design/durable-log.md for the format and the rules.
"""

from __future__ import annotations

from iotdb_cluster.cluster.log.atomic import make_durable_directories, replace_file
from iotdb_cluster.cluster.log.durable_log import DurableLog, LogFault, LogOptions, Pin
from iotdb_cluster.cluster.log.identity import Identity, open_identity, read_identity, set_identifier
from iotdb_cluster.cluster.log.record import Append, Compact, Configuration, Install, Record, Remove, State
from iotdb_cluster.cluster.log.replica_log import ReplicaLog
from iotdb_cluster.cluster.log.viewer import describe, fact_line, log_facts
from iotdb_cluster.cluster.log.waiting import submitted

__all__ = [
    "Append",
    "Compact",
    "Configuration",
    "DurableLog",
    "Identity",
    "Install",
    "LogFault",
    "LogOptions",
    "Pin",
    "Record",
    "Remove",
    "ReplicaLog",
    "State",
    "describe",
    "fact_line",
    "log_facts",
    "make_durable_directories",
    "open_identity",
    "read_identity",
    "replace_file",
    "set_identifier",
    "submitted",
]
