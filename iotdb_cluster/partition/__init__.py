"""Slots, time partitions, the ring, the partition table, plans of membership: pure functions over values.

The steps of plans are in `plan`, the values that they are made of in `view`.
"""

from __future__ import annotations

from iotdb_cluster.partition.ring import Ring
from iotdb_cluster.partition.slots import SlotMap, SlotStrategy, partition_bounds, partition_of, schema_slot_of, slot_of
from iotdb_cluster.partition.table import PartitionTable

__all__ = [
    "PartitionTable",
    "Ring",
    "SlotMap",
    "SlotStrategy",
    "partition_bounds",
    "partition_of",
    "schema_slot_of",
    "slot_of",
]
