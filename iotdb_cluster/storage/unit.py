"""One unit in a running store."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Any

from iotdb_cluster.storage.chunk_reader import ChunkFile
from iotdb_cluster.storage.manifest import Manifest, ManifestState
from iotdb_cluster.storage.memtable import Memtable
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import FileInfo, MergeRequest, Position, UnitId

__all__ = ["Sealed", "Unit", "in_force", "settled_at"]


def settled_at(info: FileInfo) -> Position:
    """Tombstones up to this position have been applied to a file."""
    return max(info.high, info.folded)


def in_force(stones: Iterable[Tombstone], infos: Iterable[FileInfo]) -> list[Tombstone]:
    """The tombstones, in the order of their positions, that still hide something of any of the files.

    Of expiries the last one alone where it reaches furthest: it hides what those before it hide.
    """
    oldest = min(map(settled_at, infos), default=None)
    kept: list[Tombstone] = []
    if oldest is None:
        return kept
    expired: int | None = None
    for stone in reversed(list(stones)):
        if stone.position <= oldest:
            break
        if stone.pattern is None:
            if expired is not None and stone.high <= expired:
                continue
            expired = stone.high
        kept.append(stone)
    return kept[::-1]


_NUMBERS = count(1)


class Sealed:
    """A frozen memtable on its way to a file."""

    def __init__(self, memtable: Memtable, meta: dict[str, Any], sequence: int) -> None:
        self.memtable = memtable
        self.sequence = sequence  # of the last write that it has
        self.meta = meta
        self.has_job = False  # a live FlushJob takes care of it
        self.done = False  # durable; set by the worker
        self.file: ChunkFile | None = None  # what it became; none if no point was left


class Unit:
    """State of a unit. The loop owns it but for what `lock` guards.

    `lock` guards the manifest and file numbers (workers take them); `flushing` lets one thread flush, in order.
    """

    def __init__(self, unit: UnitId, directory: str, manifest: Manifest | None, state: ManifestState) -> None:
        self.id = unit
        self.directory = directory
        self.manifest = manifest  # guarded by lock; None until the first flush
        self.state = state  # guarded by lock; the durable one, or the first one
        self.lock = threading.Lock()
        self.flushing = threading.Lock()
        self.dropped = False  # changed under lock
        self.compacting = False
        self.merge = MergeRequest.NONE  # what a user asked for
        self.rests_at: tuple[Position, int] | None = None  # compaction: this state of the unit ...
        self.rests_since_ms: float | None = None  # ... stands since then
        self.busy = 0  # jobs that may touch the directory
        self.readers = 0
        self.adopted: int | None = None  # log index with which it came; to be replayed until there is a manifest
        self.opened = state.opened
        self.flushed = state.flushed
        self.position = state.flushed
        self.meta = state.meta
        self.meta_changed = manifest is None
        self.sequence = 0
        self.settled = 0  # sequence of the last write that is in no memtable of the unit, or of the last deletion
        self.number = next(_NUMBERS)  # which unit of the running program, never used again
        self.files: list[ChunkFile] = []
        self.active = Memtable()
        self.sealed: list[Sealed] = []
        self.tombstones: list[Tombstone] = list(state.tombstones)

    def memtables(self) -> list[Memtable]:
        """From the earliest writes to the latest."""
        return [*(sealed.memtable for sealed in self.sealed), self.active]

    def sort_files(self) -> None:
        self.files.sort(key=lambda file: file.info.high)

    def forget_tombstones(self) -> None:
        """Drop those that hide nothing any more."""
        durable = [stone for stone in self.tombstones if stone.position <= self.flushed]
        for_files = {id(stone) for stone in in_force(durable, (file.info for file in self.files))}
        oldest = min((memtable.low for memtable in self.memtables() if memtable.low is not None), default=None)
        self.tombstones = [
            stone
            for stone in self.tombstones
            if id(stone) in for_files or (oldest is not None and stone.position >= oldest)
        ]

    def next_number(self) -> int:
        """A file number never used before in this directory."""
        with self.lock:
            number = self.state.next_file
            self.state = replace(self.state, next_file=number + 1)
            return number
