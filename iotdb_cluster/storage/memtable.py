"""Points that are not in a file yet.

Per device and shape (the measurements of a write) a list of the tablets as they came, and one byte buffer of packed
rows. Whoever first reads or flushes a shape sorts it into a run; runs of like size are merged, so a shape that is
read after each write costs n log n in all. A run keeps for each row the sequence number of its write: a view of the
memtable as it was at some write leaves out the rows with higher ones.

The loop alone writes. Readers are on any thread: `_gate` guards the hand-over of what was written (a few instructions),
`_sorting` lets one thread sort.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from operator import itemgetter

import numpy as np

from iotdb_cluster.columns import (
    Block,
    BoolArray,
    Column,
    DataType,
    Int64Array,
    Rows,
    Shape,
    Tablet,
    concat_columns,
)
from iotdb_cluster.errors import check
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.storage.grouping import SeriesKey, shared_groups
from iotdb_cluster.storage.tables import Table, collapse, concat_optional, finished, is_ascending
from iotdb_cluster.storage.tombstones import Tombstone
from iotdb_cluster.storage.types import Point, Position

__all__ = ["Memtable"]

TABLET_OVERHEAD_BYTES = 400  # Python objects of a tablet and its columns, roughly
DEVICE_OVERHEAD_BYTES = 600
SERIES_OVERHEAD_BYTES = 250
JOIN_FACTOR = 2  # a run is merged with the one before it unless that has more than so many times its rows


class _Run:
    """Rows sorted by (time, sequence); `distinct` if no time is there twice."""

    __slots__ = ("columns", "distinct", "newest", "sequences", "times")

    def __init__(self, times: Int64Array, sequences: Int64Array, columns: list[Column]) -> None:
        if not is_ascending(times):
            if (sequences[1:] >= sequences[:-1]).all():
                order = np.argsort(times, kind="stable")
            else:
                order = np.lexsort((sequences, times))
            times, sequences = times[order], sequences[order]
            columns = [column[order] for column in columns]
        self.times = times
        self.sequences = sequences
        self.columns = columns
        self.distinct = is_ascending(times)
        self.newest = int(sequences.max())


def _joined(parts: Sequence[Tablet]) -> tuple[Int64Array, list[Column]]:
    """Tablets of one shape one after another, in native byte order."""
    count = sum(map(len, parts))
    times = np.empty(count, np.int64)
    at = 0
    for part in parts:
        times[at : at + len(part)] = part.times
        at += len(part)
    columns = []
    for place, kind in enumerate(parts[0].shape.types):
        pieces = [part.columns[place] for part in parts]
        if kind is DataType.TEXT:
            columns.append(concat_columns(pieces))
            continue
        values = np.empty(count, kind.dtype)
        at = 0
        for piece in pieces:
            values[at : at + len(piece)] = piece.values
            at += len(piece)
        valid = None
        if any(piece.valid is not None for piece in pieces):
            valid = np.concatenate([piece.mask() for piece in pieces])
        columns.append(Column(kind, values, valid))
    return times, columns


class _ShapeTable:
    """The rows of one device that have the same measurements."""

    __slots__ = ("oldest", "packed", "packed_sequences", "places", "runs", "sequences", "shape", "tablets")

    def __init__(self, shape: Shape, sequence: int) -> None:
        self.shape = shape
        self.places = {key: place for place, key in enumerate(zip(shape.measurements, shape.types, strict=True))}
        self.oldest = sequence
        self.tablets: list[Tablet] = []
        self.sequences: list[int] = []
        self.packed = bytearray()
        self.packed_sequences = array("q")
        self.runs: list[_Run] = []

    def take(self) -> tuple[list[Tablet], list[int]]:
        """What was written since the last take; the caller holds the gate."""
        tablets, sequences = self.tablets, self.sequences
        if tablets:
            self.tablets, self.sequences = [], []
        return tablets, sequences

    def take_packed(self) -> tuple[bytearray, array[int]]:
        packed, sequences = self.packed, self.packed_sequences
        if packed:
            self.packed, self.packed_sequences = bytearray(), array("q")
        return packed, sequences

    def sort(self, gate: threading.Lock) -> list[_Run]:
        """All rows as runs; the caller holds the sorting lock."""
        with gate:
            tablets, numbers = self.take()
            packed, packed_numbers = self.take_packed()
        if packed:
            tablets = [*tablets, Rows("", self.shape, packed).to_tablet()]
        if tablets:
            lengths = [len(tablet) for tablet in tablets[: len(numbers)]]
            sequences = np.repeat(np.array(numbers, np.int64), lengths)
            if packed:
                sequences = np.concatenate([sequences, np.frombuffer(packed_numbers, np.int64)])
            self.runs.append(_Run(*_merge_arguments(tablets, sequences)))
            while len(self.runs) > 1 and len(self.runs[-2].times) <= JOIN_FACTOR * len(self.runs[-1].times):
                newer, older = self.runs.pop(), self.runs.pop()
                self.runs.append(
                    _Run(
                        np.concatenate([older.times, newer.times]),
                        np.concatenate([older.sequences, newer.sequences]),
                        [concat_columns(pair) for pair in zip(older.columns, newer.columns, strict=True)],
                    )
                )
        return list(self.runs)

    def has_cells(self, gate: threading.Lock, place: int, limit: int) -> bool:
        """Whether column `place` got any cell up to sequence number `limit`; the caller holds the sorting lock."""
        with gate:
            if self.packed and self.packed_sequences[0] <= limit:
                return True
            tablets, sequences = list(self.tablets), list(self.sequences)
        for tablet, sequence in zip(tablets, sequences, strict=True):
            if sequence <= limit and _any_cell(tablet.columns[place]):
                return True
        for run in self.runs:
            column = run.columns[place]
            if _any_cell(column if run.newest <= limit else column[run.sequences <= limit]):
                return True
        return False

    def latest(self, gate: threading.Lock, place: int, after: int, limit: int) -> tuple[int, int, Column] | None:
        """(time, sequence, its one cell) of the latest cell of column `place` among the writes after < number <= limit.

        The caller holds the sorting lock, so that nothing goes from the waiting ones to the runs meanwhile.
        """
        with gate:
            begin, end = bisect_right(self.sequences, after), bisect_right(self.sequences, limit)
            tablets, numbers = self.tablets[begin:end], self.sequences[begin:end]
            first, last = bisect_right(self.packed_sequences, after), bisect_right(self.packed_sequences, limit)
            width = self.shape.row_dtype.itemsize if first < last else 0
            packed = bytes(self.packed[first * width : last * width])
            packed_numbers = self.packed_sequences[first:last]
        found: list[tuple[int, int, Column]] = []
        for run in self.runs:
            if run.newest > after:
                there = np.flatnonzero((run.sequences > after) & (run.sequences <= limit) & run.columns[place].mask())
                if len(there):
                    row = int(there[-1])
                    found.append((int(run.times[row]), int(run.sequences[row]), run.columns[place][row : row + 1]))
        for tablet, number in zip(tablets, numbers, strict=True):
            row = _latest_row(tablet, place)
            if row >= 0:
                found.append((int(tablet.times[row]), number, tablet.columns[place][row : row + 1]))
        if packed:
            rows = Rows("", self.shape, packed).to_tablet()
            row = _latest_row(rows, place)
            found.append((int(rows.times[row]), packed_numbers[row], rows.columns[place][row : row + 1]))
        return max(found, key=itemgetter(0, 1), default=None)

    def size(self, gate: threading.Lock) -> int:
        """How many rows."""
        with gate:
            waiting = sum(map(len, self.tablets)) + len(self.packed_sequences)
        return waiting + sum(len(run.times) for run in self.runs)


def _latest_row(tablet: Tablet, place: int) -> int:
    """The row of the latest cell, of equal times the last one; -1 where there is none."""
    times, valid = tablet.times, tablet.columns[place].valid
    there = np.arange(len(times)) if valid is None else np.flatnonzero(valid)
    if not len(there):
        return -1
    some = times[there]
    return int(there[np.flatnonzero(some == some.max())[-1]])


def _any_cell(column: Column) -> bool:
    return len(column) > 0 if column.valid is None else bool(column.valid.any())


class _Device:
    """What was written of one device: its shapes, and in which of them each series is."""

    __slots__ = ("newest", "shapes", "tables")

    def __init__(self) -> None:
        self.newest = 0  # sequence number of the last write
        self.shapes: dict[Shape, _ShapeTable] = {}
        self.tables: dict[SeriesKey, list[_ShapeTable]] = {}

    def add(self, shape: Shape, sequence: int) -> _ShapeTable:
        """A new shape; the caller holds the gate."""
        table = self.shapes[shape] = _ShapeTable(shape, sequence)
        for key in table.places:
            self.tables.setdefault(key, []).append(table)
        return table


def _merge_arguments(tablets: Sequence[Tablet], sequences: Int64Array) -> tuple[Int64Array, Int64Array, list[Column]]:
    times, columns = _joined(tablets)
    return times, sequences, columns


class Memtable:
    """The unflushed writes of one unit since the last seal."""

    def __init__(self) -> None:
        self.low: Position | None = None
        self.high: Position = (0, 0)
        self.bytes = 0
        self.pins = 0  # readers; Store alone changes it
        self.tombstones: list[Tombstone] = []
        self._devices: dict[str, _Device] = {}
        self._gate = threading.Lock()
        self._sorting = threading.Lock()

    @property
    def is_empty(self) -> bool:
        return self.low is None

    def touch(self, position: Position) -> None:
        """Note that something was written at a position."""
        if self.low is None:
            self.low = position
        self.high = position

    def add_tombstone(self, tombstone: Tombstone) -> None:
        self.touch(tombstone.position)
        self.tombstones.append(tombstone)
        self.bytes += TABLET_OVERHEAD_BYTES

    def write(self, position: Position, blocks: Sequence[Block], sequence: int) -> int:
        """Attach blocks, the i-th under the number sequence + i; returns the bytes they pin."""
        self.touch(position)
        before = self.bytes
        with self._gate:
            for number, block in enumerate(blocks, sequence):
                if len(block) > 0:
                    self._attach(block, number)
        return self.bytes - before

    def _attach(self, block: Block, sequence: int) -> None:
        device = self._devices.get(block.device)
        if device is None:
            device = self._devices[block.device] = _Device()
            self.bytes += DEVICE_OVERHEAD_BYTES
        device.newest = sequence
        table = device.shapes.get(block.shape)
        if table is None:
            table = device.add(block.shape, sequence)
            self.bytes += DEVICE_OVERHEAD_BYTES + SERIES_OVERHEAD_BYTES * len(block.shape)
        if isinstance(block, Rows):
            table.packed += block.packed
            count = len(block)
            check(
                len(block.packed) == count * block.shape.row_dtype.itemsize,
                "packed rows of %d bytes",
                len(block.packed),
            )
            if count == 1:
                table.packed_sequences.append(sequence)
            else:
                table.packed_sequences.extend([sequence] * count)
            self.bytes += len(block.packed) + 8 * count
            return
        table.tablets.append(block)
        table.sequences.append(sequence)
        self.bytes += TABLET_OVERHEAD_BYTES + 16 * len(block)
        for column in block.columns:
            self.bytes += column.values.nbytes + (0 if column.valid is None else len(column.valid))

    # --- reading ------------------------------------------------------------------------------------------------------

    def devices(self) -> list[str]:
        with self._gate:
            return sorted(self._devices)

    def series(self, device: str, limit: int) -> list[SeriesKey]:
        """What was written of a device up to sequence number `limit`, with at least one cell; tombstones apart."""
        with self._gate:
            found = self._devices.get(device)
            series = [(key, list(tables)) for key, tables in found.tables.items()] if found is not None else []
        with self._sorting:
            return sorted(
                key
                for key, tables in series
                if any(
                    table.oldest <= limit and table.has_cells(self._gate, table.places[key], limit) for table in tables
                )
            )

    def latest(self, device: str, key: SeriesKey, after: int, limit: int) -> Point | None:
        """The latest point of a series among the writes after < sequence number <= limit; tombstones apart."""
        with self._gate:
            found = self._devices.get(device)
            if found is None or found.newest <= after:
                return None
        with self._sorting:
            cells = [
                cell
                for table in self._tables(device, [key], limit)
                if (cell := table.latest(self._gate, table.places[key], after, limit)) is not None
            ]
        if not cells:
            return None
        time, _, column = max(cells, key=itemgetter(0, 1))
        return time, finished(key[1], column, 1).values.tolist()[0]

    def _tables(self, device: str, wanted: Sequence[SeriesKey], limit: int) -> list[_ShapeTable]:
        """Those that hold any of the series, each once."""
        with self._gate:
            found = self._devices.get(device)
            if found is None:
                return []
            tables = dict.fromkeys(table for key in wanted for table in found.tables.get(key, ()))
        return [table for table in tables if table.oldest <= limit]

    def table(
        self,
        device: str,
        wanted: Sequence[SeriesKey],
        limit: int,
        tombstones: Sequence[Tombstone],
        low: int = INT64_MIN,
        high: int = INT64_MAX,
    ) -> Table:
        """The rows of some series as they are after the writes up to sequence number `limit`.

        `tombstones` are those up to `limit`; rows may come without any cell.
        """
        parts: list[tuple[Int64Array, Int64Array, list[Column | None]]] = []
        distinct = True
        for table in self._tables(device, wanted, limit):
            with self._sorting:
                runs = table.sort(self._gate)
            for run in runs:
                part = _part_of(run, [table.places.get(key) for key in wanted], limit, low, high)
                if len(part[0]):
                    parts.append(part)
                    distinct = distinct and run.distinct
        if not parts:
            return Table(np.empty(0, np.int64), [None] * len(wanted))
        times, sequences, columns = _concat_parts(parts)
        if len(parts) > 1 and not is_ascending(times):
            order = np.lexsort((sequences, times))
            times, sequences = times[order], sequences[order]
            columns = [None if column is None else column[order] for column in columns]
            distinct = False
        elif len(parts) > 1:
            distinct = True
        columns = [
            column if column is None else _without_deleted(f"{device}.{name}", column, times, sequences, tombstones)
            for column, (name, _) in zip(columns, wanted, strict=True)
        ]
        return Table(times, columns) if distinct else collapse(times, columns)

    def flush_groups(self, device: str) -> Iterator[list[SeriesKey]]:
        """The series of a device in groups that are to share a time column in a file."""
        parts: list[tuple[Collection[SeriesKey], int, int]] = []
        for table in self._devices[device].shapes.values():
            rows = table.size(self._gate)
            parts.append((table.places, rows, rows * len(table.places)))
        return shared_groups(parts)


def _part_of(
    run: _Run, places: Sequence[int | None], limit: int, low: int, high: int
) -> tuple[Int64Array, Int64Array, list[Column | None]]:
    begin = int(np.searchsorted(run.times, low, "left"))
    end = int(np.searchsorted(run.times, high, "right"))
    index: slice | BoolArray = slice(begin, end)
    if run.newest > limit:
        seen = np.zeros(len(run.times), np.bool_)
        seen[begin:end] = run.sequences[begin:end] <= limit
        index = seen
    columns = [None if place is None else run.columns[place][index] for place in places]
    return run.times[index], run.sequences[index], columns


def _concat_parts(
    parts: Sequence[tuple[Int64Array, Int64Array, list[Column | None]]],
) -> tuple[Int64Array, Int64Array, list[Column | None]]:
    if len(parts) == 1:
        return parts[0]
    columns = [
        concat_optional([(len(times), columns[at]) for times, _, columns in parts]) for at in range(len(parts[0][2]))
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), columns


def _without_deleted(
    path: str, column: Column, times: Int64Array, sequences: Int64Array, tombstones: Sequence[Tombstone]
) -> Column:
    valid = column.valid
    for stone in tombstones:
        if not stone.covers(path):
            continue
        begin = int(np.searchsorted(times, stone.low, "left"))
        end = int(np.searchsorted(times, stone.high, "right"))
        dead = sequences[begin:end] < stone.sequence
        if dead.any():
            valid = column.mask().copy() if valid is column.valid else valid
            if valid is not None:
                valid[begin:end] &= ~dead
    return Column(column.type, column.values, valid)
