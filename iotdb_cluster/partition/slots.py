"""Which slot a point belongs to: storage group and time partition, hashed."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import overload

import mmh3
import numpy as np
import numpy.typing as npt

from iotdb_cluster.limits import SLOT_SALT, SLOTS

__all__ = ["partition_bounds", "partition_of", "schema_slot_of", "slot_of"]

_INT64 = struct.Struct(">q")
_LOW_32_BITS = 0xFFFF_FFFF


@lru_cache(maxsize=65_536)
def slot_of(storage_group: str, partition: int, salt: int = SLOT_SALT) -> int:
    """0 .. SLOTS - 1: the slot of a storage group's time partition. Fixed for ever: data lies where it says."""
    h1, h2 = mmh3.hash64(storage_group.encode() + _INT64.pack(partition), salt, True, False)
    return ((h1 + h2) & _LOW_32_BITS) % SLOTS


def schema_slot_of(storage_group: str, salt: int = SLOT_SALT) -> int:
    """The slot where the storage group's schema lives: that of its time partition 0."""
    return slot_of(storage_group, 0, salt)


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
