"""Reading one unit as it was at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from iotdb_cluster.columns import DataType, Int64Array, RowBatch, TextColumn, Values
from iotdb_cluster.errors import CorruptData, check
from iotdb_cluster.limits import INT64_MAX, INT64_MIN, SCAN_BATCH_ROWS
from iotdb_cluster.storage.chunk_reader import ChunkFile, source_of
from iotdb_cluster.storage.grouping import SeriesKey
from iotdb_cluster.storage.last_cache import LastCache, LastPoint
from iotdb_cluster.storage.memtable import Memtable
from iotdb_cluster.storage.merge import MemorySource, Source, in_batches, merged
from iotdb_cluster.storage.segments import to_bits
from iotdb_cluster.storage.tables import Table, finished, live_rows
from iotdb_cluster.storage.tombstones import Ranges, Tombstone, ranges_of
from iotdb_cluster.storage.types import Point, Statistics, UnitId
from iotdb_cluster.storage.windows import BlockSource, StoredBlocks, windows_of

__all__ = ["Snapshot", "UnitReader"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a unit consists of at one moment; each part from the earliest writes to the latest."""

    unit: UnitId
    files: tuple[ChunkFile, ...]
    memtables: tuple[Memtable, ...]
    tombstones: tuple[Tombstone, ...]
    sequence: int  # of the last write that belongs to it
    settled: int  # ... of the last one that is not in these memtables, or of the last deletion
    number: int  # of the unit in the running program


class UnitReader:
    """A pinned snapshot of a unit; implements `ReadInterface`. Close it: it keeps files and memtables alive."""

    def __init__(
        self,
        snapshot: Snapshot,
        on_close: Callable[[UnitReader], None],
        on_corrupt: Callable[[str], None],
        last_points: LastCache,
    ) -> None:
        self.snapshot = snapshot
        self._on_close = on_close
        self._on_corrupt = on_corrupt
        self._last_points = last_points
        self._closed = False

    def __enter__(self) -> UnitReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def unit(self) -> UnitId:
        return self.snapshot.unit

    def close(self) -> None:
        """Unpin; doing it twice does nothing."""
        if not self._closed:
            self._closed = True
            self._on_close(self)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        check(not self._closed, "a reader of unit %s is used after its close", self.snapshot.unit)
        try:
            yield
        except CorruptData as error:
            self._on_corrupt(str(error))
            raise

    # --- sources ------------------------------------------------------------------------------------------------------

    def _hidden(self, file: ChunkFile, device: str, measurement: str) -> Ranges:
        since = max(file.info.high, file.info.folded)
        path = f"{device}.{measurement}"
        return ranges_of((stone for stone in self.snapshot.tombstones if stone.position > since), path)

    def _group_sources(
        self, file: ChunkFile, device: str, wanted: Sequence[SeriesKey], low: int, high: int
    ) -> Iterator[Source]:
        numbers = file.devices().get(device, ())
        if not numbers:
            return
        hidden = [self._hidden(file, device, name) for name, _ in wanted]
        for number in numbers:
            first, last = file.group_times(number)
            if first <= high and last >= low:
                source = source_of(file, number, wanted, hidden)
                if source is not None:
                    yield source

    def _memory_table(self, memtable: Memtable, device: str, wanted: Sequence[SeriesKey], low: int, high: int) -> Table:
        stones = [stone for stone in self.snapshot.tombstones if stone.sequence]
        return memtable.table(device, wanted, self.snapshot.sequence, stones, low, high)

    def _sources(self, device: str, wanted: Sequence[SeriesKey], low: int, high: int) -> list[Source]:
        found: list[Source] = []
        for file in self.snapshot.files:
            found.extend(self._group_sources(file, device, wanted, low, high))
        for memtable in self.snapshot.memtables:
            table = self._memory_table(memtable, device, wanted, low, high)
            if len(table):
                found.append(MemorySource(table))
        return found

    def rows(
        self, device: str, wanted: Sequence[SeriesKey], low: int, high: int, ascending: bool = True
    ) -> Iterator[Table]:
        """Merged rows with a cell, for storage itself; times are turned (~t) where the scan goes backwards."""
        for table in merged(self._sources(device, wanted, low, high), low, high, ascending):
            live = live_rows(table)
            if live is None:
                yield table
            elif live.any():
                yield table[live]

    # --- the read interface -------------------------------------------------------------------------------------------

    def series(self) -> list[tuple[str, str, DataType]]:
        """(device, measurement, type) of every series with a live point, sorted."""
        with self._guard():
            certain: set[tuple[str, str, DataType]] = set()
            doubtful: set[tuple[str, str, DataType]] = set()
            for file in self.snapshot.files:
                for device, numbers in file.devices().items():
                    for number in numbers:
                        group = file.group(number)
                        for (name, kind), place in group.places.items():
                            column = group.columns[place]
                            if not column["count"] or (device, name, kind) in certain:
                                continue
                            hidden = self._hidden(file, device, name)
                            touched = hidden.touches(int(column["first_time"]), int(column["last_time"]))
                            (doubtful if touched else certain).add((device, name, kind))
            stones = any(stone.sequence for stone in self.snapshot.tombstones)
            for memtable in self.snapshot.memtables:
                for device in memtable.devices():
                    for name, kind in memtable.series(device, self.snapshot.sequence):
                        (doubtful if stones else certain).add((device, name, kind))
            for device, name, kind in doubtful - certain:
                if next(self.rows(device, [(name, kind)], INT64_MIN, INT64_MAX, True), None) is not None:
                    certain.add((device, name, kind))
            return sorted(certain)

    def read(
        self,
        device: str,
        measurement: str,
        kind: DataType,
        low: int,
        high: int,
        ascending: bool = True,
        batch_rows: int = SCAN_BATCH_ROWS,
    ) -> Iterator[tuple[Int64Array, Values]]:
        """See `ReadInterface.read`."""
        with self._guard():
            rows = self.rows(device, [(measurement, kind)], low, high, ascending)
            for table in in_batches(rows, batch_rows):
                column = finished(kind, table.columns[0], len(table))
                yield self._times(table, ascending), column.values

    def read_device(
        self,
        device: str,
        wanted: Sequence[tuple[str, DataType]],
        low: int,
        high: int,
        ascending: bool = True,
        batch_rows: int = SCAN_BATCH_ROWS,
    ) -> Iterator[RowBatch]:
        """See `ReadInterface.read_device`."""
        with self._guard():
            for table in in_batches(self.rows(device, wanted, low, high, ascending), batch_rows):
                columns = [
                    finished(kind, column, len(table)) for (_, kind), column in zip(wanted, table.columns, strict=True)
                ]
                yield RowBatch(self._times(table, ascending), columns)

    def _times(self, table: Table, ascending: bool) -> Int64Array:
        return np.ascontiguousarray(table.times if ascending else ~table.times)

    def window_statistics(
        self,
        device: str,
        measurement: str,
        kind: DataType,
        starts: Int64Array,
        ends: Int64Array,
        decimals: int | None = None,
        *,
        values: bool = True,
        sums: bool = True,
    ) -> Statistics:
        """See `ReadInterface.window_statistics`; `ends` are inclusive."""
        with self._guard():
            starts, ends = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
            low, high = (int(starts.min()), int(ends.max())) if len(starts) else (0, -1)
            key = (measurement, kind)
            sources: list[BlockSource] = []
            for file in self.snapshot.files:
                hidden = self._hidden(file, device, measurement)
                for number in file.devices().get(device, ()):
                    first, last = file.group_times(number)
                    if first > high or last < low:
                        continue
                    source = source_of(file, number, [key], [hidden])
                    if source is not None:
                        group = file.group(number)
                        blocks = file.column(group, group.places[key]).blocks
                        numbers = np.flatnonzero(blocks["count"])
                        blocks = blocks[numbers]
                        touched = hidden.touch_each(blocks["first_time"], blocks["last_time"]) if hidden else None
                        sources.append(BlockSource(source, StoredBlocks(source, numbers, blocks, touched)))
            for memtable in self.snapshot.memtables:
                table = self._memory_table(memtable, device, [key], low, high)
                if len(table):
                    sources.append(BlockSource(MemorySource(table), None))
            return windows_of(sources, kind, starts, ends, decimals, values, sums)

    def _first_point(
        self, device: str, measurement: str, kind: DataType, low: int, high: int, ascending: bool
    ) -> Point | None:
        with self._guard():
            table = next(self.rows(device, [(measurement, kind)], low, high, ascending), None)
            if table is None:
                return None
            time = int(table.times[0])
            value = finished(kind, table[:1].columns[0], 1).values.tolist()[0]
            return (time if ascending else ~time), value

    def last(self, device: str, measurement: str, kind: DataType, low: int) -> Point | None:
        """The latest point with time >= low."""
        snapshot = self.snapshot
        key = (snapshot.number, device, measurement, kind)
        known = self._last_points.get(key)
        if known is None or not known.since <= snapshot.sequence <= known.until:
            known = self._newer_last(known, device, (measurement, kind))
            self._last_points.put(key, known)
        point = known.point
        return point if point is not None and point[0] >= low else None

    def _newer_last(self, known: LastPoint | None, device: str, key: SeriesKey) -> LastPoint:
        """The latest point as of this snapshot, from what was known of an earlier one where that is possible."""
        now = self.snapshot.sequence
        if known is None or not self.snapshot.settled <= known.until < now:
            return LastPoint(now, now, self._first_point(device, *key, INT64_MIN, INT64_MAX, False))
        point = known.point
        with self._guard():
            for memtable in self.snapshot.memtables:
                found = memtable.latest(device, key, known.until, now)
                if found is not None and (point is None or found[0] >= point[0]):
                    point = found
        return LastPoint(known.since if point is known.point else now, now, point)

    def nearest(
        self, device: str, measurement: str, kind: DataType, time: int, before_low: int, after_high: int
    ) -> tuple[Point | None, Point | None]:
        """(the latest point in [before_low, time], the earliest in [time, after_high]): a point at `time` is both."""
        before = self._first_point(device, measurement, kind, before_low, time, False) if before_low <= time else None
        after = self._first_point(device, measurement, kind, time, after_high, True) if time <= after_high else None
        return before, after

    def digest(self) -> int:
        """64 bits over all series, times and value bits, whatever files and memtables they stand in."""
        total = blake2b(digest_size=8)
        for device, measurement, kind in self.series():
            times, values, bytes_ = blake2b(digest_size=16), blake2b(digest_size=16), blake2b(digest_size=16)
            for batch_times, batch_values in self.read(device, measurement, kind, INT64_MIN, INT64_MAX):
                times.update(batch_times.astype("<i8").data)
                if isinstance(batch_values, TextColumn):
                    values.update(batch_values.lengths.astype("<i8").data)
                    bytes_.update(batch_values.packed())
                else:
                    values.update(to_bits(batch_values).astype("<u8").data)
            name = f"{device}\0{measurement}\0{int(kind)}\0".encode()
            total.update(len(name).to_bytes(4, "little") + name)
            total.update(times.digest() + values.digest() + bytes_.digest())
        return int.from_bytes(total.digest(), "big")
