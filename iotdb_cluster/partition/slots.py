"""Which slot a point belongs to: by the hash of storage group and time partition, or by the group's number."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import overload

import mmh3
import numpy as np
import numpy.typing as npt

from iotdb_cluster.limits import SLOT_SALT, SLOTS

__all__ = ["SlotMap", "SlotStrategy", "partition_bounds", "partition_of", "schema_slot_of", "slot_of"]

_INT64 = struct.Struct(">q")
_LOW_32_BITS = 0xFFFF_FFFF
_NUMBERED = re.compile(r"_([0-9]{1,18})\Z", re.ASCII)
_GOLDEN = (6_180_339_887, 10_000_000_000)  # its multiples, cut to their fraction, spread evenly however many there are


@lru_cache(maxsize=65_536)
def slot_of(storage_group: str, partition: int, salt: int = SLOT_SALT) -> int:
    """0 .. SLOTS - 1: the slot of a storage group's time partition. Fixed for ever: data lies where it says."""
    h1, h2 = mmh3.hash64(storage_group.encode() + _INT64.pack(partition), salt, True, False)
    return ((h1 + h2) & _LOW_32_BITS) % SLOTS


def schema_slot_of(storage_group: str, salt: int = SLOT_SALT) -> int:
    """The slot where the storage group's schema lives: that of its time partition 0."""
    return slot_of(storage_group, 0, salt)


class SlotStrategy(StrEnum):
    """Where storage groups lie, fixed when the cluster is founded; the values are those of the key `slot_strategy`."""

    HASH = "hash"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Slots under a strategy. `founders`: how many nodes the cluster began with, each with an even run of slots."""

    strategy: SlotStrategy = SlotStrategy.HASH
    founders: int = 1

    def slot_of(self, storage_group: str, partition: int) -> int:
        """0 .. SLOTS - 1: the slot of a storage group's time partition.

        By `round_robin` all partitions of a storage group named `..._N` lie in one slot of the founder N mod
        `founders`; other names are hashed.
        """
        if self.strategy is SlotStrategy.ROUND_ROBIN:
            slot = _numbered_slot_of(storage_group, self.founders)
            if slot is not None:
                return slot
        return slot_of(storage_group, partition)

    def schema_slot_of(self, storage_group: str) -> int:
        """The slot where the storage group's schema lives: that of its time partition 0."""
        return self.slot_of(storage_group, 0)


@lru_cache(maxsize=65_536)
def _numbered_slot_of(storage_group: str, founders: int) -> int | None:
    """A slot in the run of the founder N mod `founders`, or None where the name ends in no number.

    Within the run the slots of one founder's storage groups are spread: when nodes join, runs give up their last slots.
    """
    found = _NUMBERED.search(storage_group)
    if found is None:
        return None
    turn, founder = divmod(int(found[1]), founders)
    first, end = -(-founder * SLOTS // founders), -(-(founder + 1) * SLOTS // founders)
    return first + turn * _GOLDEN[0] % _GOLDEN[1] * (end - first) // _GOLDEN[1]


@overload
def partition_of(time: int, interval: int) -> int: ...
@overload
def partition_of(time: npt.NDArray[np.int64], interval: int) -> npt.NDArray[np.int64]: ...
def partition_of(time: int | npt.NDArray[np.int64], interval: int) -> int | npt.NDArray[np.int64]:
    """The time partition of a time, or of int64[n] of any byte order: floor division, so that -1 is in partition -1."""
    return time // interval


def partition_bounds(partition: int, interval: int) -> tuple[int, int]:
    """(first, last) time of a partition, both inclusive, not clipped to int64."""
    return partition * interval, (partition + 1) * interval - 1
