"""The state machine of one data group: a schema slice and a storage slice, fed by the group's log.

* `encode`, `encode_insert`, `decode`: entries, format version 1 (`entries`, `blocks`).
* `split_by_partition`, `cut`: from a call's blocks to the contents of entries (`cutting`).
* `DataGroup`: applies entries, validates proposals, answers reads, makes checkpoints (`group`) and pins
  their files for a copy (`copies`).
* `fenced`, `export`, `pin_fenced`, `imports`, `stage` of a `DataGroup`: slots that move (`view`, `handoff`, `moves`).
* `due_actions`, `DeleteProgress`: what drives deletes to their end (`deletes`).
* `Result`, `NotReady`, `Retiring`, `StaleRequest`: outcomes, beside `Moved` and `StaleSchema` of room errors.
"""

from iotdb_cluster.data.checkpoints import Checkpoint, newest_index
from iotdb_cluster.data.content import Content, PinnedContent, merged_digests
from iotdb_cluster.data.copies import CopiedFile, GroupCopy
from iotdb_cluster.data.cutting import Piece, cut, deduplicate, split_by_partition, times_of
from iotdb_cluster.data.deletes import DeleteAction, DeleteProgress, Intent, due_actions
from iotdb_cluster.data.digests import Pinned
from iotdb_cluster.data.entries import (
    AlterSeries,
    Body,
    CreateSeries,
    DeleteIntent,
    DeleteRetire,
    DeleteUnit,
    Discard,
    Dissolve,
    DropSlots,
    DropStorageGroup,
    EnsureSeries,
    Entry,
    Expire,
    Fence,
    Header,
    Import,
    IntentKind,
    Kind,
    ListPartition,
    OpenUnit,
    Own,
    Ready,
    decode,
    decode_header,
    decode_insert,
    encode,
    encode_insert,
)
from iotdb_cluster.data.group import DataGroup, GroupOptions
from iotdb_cluster.data.handoff import Export
from iotdb_cluster.data.moves import Runs, runs_of, slots_in
from iotdb_cluster.data.outcomes import DONE, NotReady, Result, Retiring, StaleRequest
from iotdb_cluster.data.state import ImportState, Listed, StorageGroupState, UnitState
from iotdb_cluster.data.view import Held

__all__ = [
    "DONE",
    "AlterSeries",
    "Body",
    "Checkpoint",
    "Content",
    "CopiedFile",
    "CreateSeries",
    "DataGroup",
    "DeleteAction",
    "DeleteIntent",
    "DeleteProgress",
    "DeleteRetire",
    "DeleteUnit",
    "Discard",
    "Dissolve",
    "DropSlots",
    "DropStorageGroup",
    "EnsureSeries",
    "Entry",
    "Expire",
    "Export",
    "Fence",
    "GroupCopy",
    "GroupOptions",
    "Header",
    "Held",
    "Import",
    "ImportState",
    "Intent",
    "IntentKind",
    "Kind",
    "ListPartition",
    "Listed",
    "NotReady",
    "OpenUnit",
    "Own",
    "Piece",
    "Pinned",
    "PinnedContent",
    "Ready",
    "Result",
    "Retiring",
    "Runs",
    "StaleRequest",
    "StorageGroupState",
    "UnitState",
    "cut",
    "decode",
    "decode_header",
    "decode_insert",
    "deduplicate",
    "due_actions",
    "encode",
    "encode_insert",
    "merged_digests",
    "newest_index",
    "runs_of",
    "slots_in",
    "split_by_partition",
    "times_of",
]
