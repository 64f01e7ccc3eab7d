"""The columnar storage engine: the storage slice of one replica.

A `Store` is a directory of units; a unit (`UnitId`) holds the points of one storage group and time partition. Writes,
deletions and expiry come in the order of the group's log, each with its position (slot epoch, log index), and go to a
memtable; `seal` freezes memtables and gives `FlushJob`s, which a worker thread turns into immutable chunk files.
`reader` pins a snapshot of a unit: `UnitReader` is the read interface of queries (`ReadInterface`).

Which thread: `write`, `delete`, `expire`, `open_unit`, `drop_unit`, `seal`, `reader`, `pick`, `finish` on the loop;
`run` of a job, and everything of a reader, on any.

Failures: `SystemFault` where the disk fails, `CorruptData` (a SystemFault) where stored bytes are damaged,
`InvariantViolation` where the caller breaks the order of positions.
"""

from iotdb_cluster.storage.chunk_view import chunk_facts
from iotdb_cluster.storage.copies import MirroredUnit, PinnedUnit
from iotdb_cluster.storage.jobs import CompactionJob, FlushJob
from iotdb_cluster.storage.reader import UnitReader
from iotdb_cluster.storage.stage import Stage, StagedUnit, checksum_of
from iotdb_cluster.storage.store import Store
from iotdb_cluster.storage.sums import add_sums, round_values
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import (
    FileInfo,
    MergeRequest,
    Order,
    Point,
    Position,
    ReadInterface,
    Statistics,
    StoreOptions,
    UnitId,
)

__all__ = [
    "CompactionJob",
    "FileInfo",
    "FlushJob",
    "MergeRequest",
    "MirroredUnit",
    "Order",
    "PinnedUnit",
    "Point",
    "Position",
    "ReadInterface",
    "Stage",
    "StagedUnit",
    "Statistics",
    "Store",
    "StoreOptions",
    "Tombstone",
    "UnitId",
    "UnitReader",
    "add_sums",
    "checksum_of",
    "chunk_facts",
    "round_values",
]
