"""Flush and compaction: what is prepared on the loop, run on a worker thread, and finished on the loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from iotdb_cluster.errors import SystemFault
from iotdb_cluster.limits import COMPACTED_PAGE_ROWS, INT64_MAX, INT64_MIN, PAGE_ROWS
from iotdb_cluster.storage.chunk_reader import Cache, ChunkFile
from iotdb_cluster.storage.chunk_writer import ChunkWriter
from iotdb_cluster.storage.durable import disk_faults, make_directory
from iotdb_cluster.storage.filenames import chunk_name
from iotdb_cluster.storage.grouping import SeriesKey, shared_groups
from iotdb_cluster.storage.manifest import Manifest, ManifestState
from iotdb_cluster.storage.memtable import Memtable
from iotdb_cluster.storage.reader import UnitReader
from iotdb_cluster.storage.tables import live_rows
from iotdb_cluster.storage.types import FileInfo, Position, StoreOptions, UnitId
from iotdb_cluster.storage.unit import Sealed, Unit, in_force
from iotdb_cluster.world import FileSystem

__all__ = ["CompactionJob", "FlushJob", "Surroundings"]

T = TypeVar("T")


class Surroundings(Protocol):
    """What jobs need of the store."""

    files: FileSystem
    options: StoreOptions
    cache: Cache

    def flush_finished(self, unit: Unit, upto: Sealed) -> None: ...
    def compaction_finished(self, unit: Unit, old: Sequence[ChunkFile], new: ChunkFile | None) -> None: ...
    def discard(self, path: str) -> None: ...


class _FileJob:
    """Writes one chunk file of a unit and makes the manifest name it."""

    def __init__(self, store: Surroundings, unit: Unit) -> None:
        self._store = store
        self._unit = unit

    def _write(
        self,
        level: int,
        page_rows: int,
        fill: Callable[[ChunkWriter], Iterator[None]],
        low: Position,
        high: Position,
        folded: Position,
    ) -> Generator[int, None, tuple[int, FileInfo] | None]:
        """Gives a synced chunk file, not in the manifest yet; None if `fill` wrote nothing.

        Rests with the bytes written so far, wherever `fill` rests; to close it then is to give the file up.
        """
        unit, files = self._unit, self._store.files
        number = unit.next_number()
        name = chunk_name(number)
        path = f"{unit.directory}/{name}"
        writer = ChunkWriter(files, path, level, page_rows)
        try:
            for _ in fill(writer):
                yield writer.size
            if writer.is_empty:
                writer.abandon()
                self._store.discard(path)
                return None
            size, crc = writer.finish()
            with disk_faults(unit.directory):
                files.sync_directory(unit.directory)
        except (SystemFault, GeneratorExit):
            writer.abandon()
            self._store.discard(path)
            raise
        return number, FileInfo(name, path, size, crc, low, high, folded, *writer.times)

    def _publish(self, change: Callable[[ManifestState], ManifestState], removed: list[int], added: list[int]) -> bool:
        """Make a change of the manifest durable; False if the unit was dropped meanwhile."""
        unit = self._unit
        with unit.lock:
            if unit.dropped:
                return False
            state = change(unit.state)
            state = replace(state, tombstones=in_force(state.tombstones, state.files.values()))
            if unit.manifest is None:
                unit.manifest = Manifest.create(self._store.files, unit.directory, state)
            else:
                unit.manifest.edit(state, removed, added)
            unit.state = state
            return True


class FlushJob(_FileJob):
    """Turns one sealed memtable into a chunk file (and first those sealed before it that are not files yet)."""

    def __init__(self, store: Surroundings, unit: Unit, sealed: Sealed) -> None:
        super().__init__(store, unit)
        self._sealed = sealed
        self._ended = False
        sealed.has_job = True
        unit.busy += 1

    @property
    def unit(self) -> UnitId:
        return self._unit.id

    @property
    def position(self) -> Position:
        """The unit is flushed to here once the job is finished."""
        return max(self._sealed.memtable.high, self._unit.flushed)

    @property
    def bytes(self) -> int:
        """Memory that the job frees."""
        return self._sealed.memtable.bytes

    def run(self) -> None:
        """Sort, encode, write, sync: on a worker thread. SystemFault where the disk fails: give the job up then."""
        unit = self._unit
        with unit.flushing:
            for sealed in list(unit.sealed):
                if not sealed.done and not unit.dropped:
                    self._flush(sealed)
                if sealed is self._sealed:
                    break

    def _flush(self, sealed: Sealed) -> None:
        unit, memtable = self._unit, sealed.memtable
        if unit.manifest is None:
            make_directory(self._store.files, unit.directory)
        written = None
        if memtable.low is not None:
            written = _at_once(
                self._write(
                    self._store.options.flush_level,
                    PAGE_ROWS,
                    lambda writer: _write_memtable(writer, memtable),
                    memtable.low,
                    memtable.high,
                    (0, 0),
                )
            )

        def change(state: ManifestState) -> ManifestState:
            added = dict([written] if written is not None else [])
            return replace(
                state,
                flushed=max(state.flushed, memtable.high),
                meta=sealed.meta,
                files={**state.files, **added},
                tombstones=[*state.tombstones, *memtable.tombstones],
            )

        if self._publish(change, [], [written[0]] if written is not None else []):
            if written is not None:
                sealed.file = ChunkFile(self._store.files, written[1], self._store.cache)
            sealed.done = True

    def finish(self) -> None:
        """Put the file in the memtable's place: on the loop, after `run` returned or raised; always exactly once."""
        if self._ended:
            return
        self._ended = True
        self._sealed.has_job = False
        if self._sealed.done and not self._unit.dropped:
            self._store.flush_finished(self._unit, self._sealed)
        self._unit.busy -= 1

    give_up = finish  # after a failed `run`: the memtable stays, and the next seal gives a new job for it


def _at_once(work: Generator[int, None, T]) -> T:
    """What a job gives that is not interrupted."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


def _write_memtable(writer: ChunkWriter, memtable: Memtable) -> Iterator[None]:
    low, high = memtable.low, memtable.high
    if low is None:
        return
    for device in memtable.devices():
        for group in memtable.flush_groups(device):
            table = memtable.table(device, group, INT64_MAX, memtable.tombstones)
            live = live_rows(table) if len(table) else None
            if live is not None:
                table = table[live]
            if len(table):
                writer.write_rows(device, group, [table], low, high)
        yield


class CompactionJob(_FileJob):
    """Joins neighbouring files of a unit into one, and folds tombstones in; or drops files that have expired."""

    def __init__(self, store: Surroundings, unit: Unit, inputs: Sequence[ChunkFile], reader: UnitReader | None) -> None:
        """Without a reader nothing of the inputs is alive."""
        super().__init__(store, unit)
        self._inputs = inputs
        self._reader = reader
        self._new: ChunkFile | None = None
        self._work: Generator[int, None, None] | None = None
        self._written = 0
        self._done = self._ended = False
        unit.compacting = True
        unit.busy += 1

    @property
    def unit(self) -> UnitId:
        return self._unit.id

    @property
    def files(self) -> int:
        """How many become one."""
        return len(self._inputs)

    @property
    def bytes(self) -> int:
        """Bytes that the job reads."""
        return sum(file.info.bytes for file in self._inputs)

    @property
    def is_void(self) -> bool:
        """Whether the unit was dropped, or another one took its place."""
        return self._unit.dropped

    @property
    def written(self) -> int:
        """Bytes that the job has written so far."""
        return self._written

    def run(self) -> None:
        """Merge, encode, write, sync: on a worker thread. SystemFault where the disk fails."""
        while not self.step(1 << 62):
            pass

    def step(self, bytes_max: int) -> bool:
        """A part of `run`, so many bytes of the new file (and a page): whether that was the last.

        What lies between two steps bounds the job's speed; `finish` may come instead of the next one.
        """
        if self._work is None:
            self._work = self._steps()
        upto = self._written + bytes_max
        for size in self._work:
            self._written = size
            if size >= upto:
                return False
        return True

    def _steps(self) -> Generator[int, None, None]:
        infos = [file.info for file in self._inputs]
        written = None
        if self._reader is not None:
            stones = [stone.position for stone in self._reader.snapshot.tombstones]
            written = yield from self._write(
                self._store.options.compaction_level,
                COMPACTED_PAGE_ROWS,
                self._merge,
                min(info.low for info in infos),
                max(info.high for info in infos),
                max([*stones, *(info.folded for info in infos)]),
            )
        removed = [number for number, info in self._unit.state.files.items() if info in infos]

        def change(state: ManifestState) -> ManifestState:
            kept = {number: info for number, info in state.files.items() if info not in infos}
            return replace(state, files={**kept, **dict([written] if written is not None else [])})

        if self._publish(change, removed, [written[0]] if written is not None else []):
            if written is not None:
                self._new = ChunkFile(self._store.files, written[1], self._store.cache)
                self._written = written[1].bytes
            self._done = True

    def _merge(self, writer: ChunkWriter) -> Iterator[None]:
        reader = self._reader
        if reader is None:
            return
        devices = sorted({device for file in self._inputs for device in file.devices()})
        infos = [file.info for file in self._inputs]
        low, high = min(info.low for info in infos), max(info.high for info in infos)
        for device in devices:
            for group in self._groups(device):
                rows = reader.rows(device, group, INT64_MIN, INT64_MAX)
                yield from writer.write_pages(device, group, rows, low, high)

    def _groups(self, device: str) -> Iterator[list[SeriesKey]]:
        """The series of a device in groups that are to share a time column."""
        found: list[tuple[Collection[SeriesKey], int, int]] = []
        for file in self._inputs:
            for number in file.devices().get(device, ()):
                group = file.group(number)
                found.append((group.places, group.rows, int(group.columns["count"].sum())))
        return shared_groups(found)

    def finish(self) -> None:
        """Put the new file in the place of the old ones, or give up what is not done.

        On the loop, when no `run` or `step` is under way; exactly once.
        """
        if self._ended:
            return
        self._ended = True
        if self._work is not None:
            self._work.close()
        self._unit.compacting = False
        if self._done and not self._unit.dropped:
            self._store.compaction_finished(self._unit, self._inputs, self._new)
        if self._reader is not None:
            self._reader.close()
        self._unit.busy -= 1

    give_up = finish
