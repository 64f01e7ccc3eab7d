"""Bits that flip at rest: in data files anywhere, in the durable log only where it can tell damage from a torn end."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Final

from iotdb_cluster.simulation.disk import PAGE_BYTES, SimulatedDisk

__all__ = ["flip_a_bit"]

LOG: Final = "/data/wal"
BATCH_MAGIC: Final = b"ICLB"
BEHIND: Final = 3  # so many later batches prove that an earlier one was synced
_SEQUENCE = struct.Struct(">Q")
_SEQUENCE_AT: Final = 16


def flip_a_bit(disk: SimulatedDisk, rng: random.Random) -> str:
    """Flip a bit somewhere; where, or "" where there is nothing to flip."""
    places = [(path, 0, size) for path, size in disk.files("/data") if size and not path.startswith(LOG)]
    places += _settled(disk)
    if not places:
        return ""
    path, low, high = rng.choice(places)
    offset = rng.randrange(low, high)
    disk.flip(path, offset, rng.randrange(8))
    return f"{path} at {offset}"


def _settled(disk: SimulatedDisk) -> list[tuple[str, int, int]]:
    """Pages of the log that a batch begins in which is not among the last ones."""
    found = list(_batches(disk))
    newest = max((sequence for _, _, sequence in found), default=0)
    return [(path, at, at + PAGE_BYTES) for path, at, sequence in found if sequence <= newest - BEHIND]


def _batches(disk: SimulatedDisk) -> Iterator[tuple[str, int, int]]:
    for path, size in disk.files(LOG):
        if path.endswith(".log"):
            for at in range(PAGE_BYTES, size, PAGE_BYTES):
                head = disk.peek(path, at, _SEQUENCE_AT + _SEQUENCE.size)
                if head.startswith(BATCH_MAGIC):
                    yield path, at, _SEQUENCE.unpack_from(head, _SEQUENCE_AT)[0]
