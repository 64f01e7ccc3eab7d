"""Names and values that storage shares with those who call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import DataType, Int64Array, RowBatch, Values
from iotdb_cluster.limits import MEMTABLE_FLUSH_BYTES, MIB, SCAN_BATCH_ROWS

__all__ = [
    "FileInfo",
    "MergeRequest",
    "Order",
    "Point",
    "Position",
    "ReadInterface",
    "Statistics",
    "StoreOptions",
    "UnitId",
]

Position: TypeAlias = tuple[int, int]  # (slot epoch, log index)
Point: TypeAlias = tuple[int, Any]  # (time, value): bool, int, float (float32 widened), or bytes for TEXT
Float64Array: TypeAlias = npt.NDArray[np.float64]


class UnitId(NamedTuple):
    """What is stored, flushed, moved and dropped as one."""

    storage_group_id: int
    partition: int


class Order(NamedTuple):
    """Which of two writes of one cell is the later one; `row` only breaks ties inside an entry."""

    slot_epoch: int
    log_index: int
    row: int


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Settings of a `Store`; the defaults are those of production."""

    flush_bytes: int = MEMTABLE_FLUSH_BYTES  # advice to the caller: a unit's memtable of this size is to be sealed
    flush_level: int = 4  # pcodec level at flush
    compaction_level: int = 8  # pcodec level at compaction
    compaction_files_min: int = 4  # so many neighbours of like size are joined
    compaction_bytes_max: int = 512 * MIB  # a join stops growing here
    tombstones_max: int = 16  # a unit with more of them has them folded in
    cache_bytes_max: int = 32 * MIB  # parsed indexes of chunk files


class MergeRequest(IntEnum):
    """What a user asked of a unit: MERGE joins files that overlap, FULL MERGE makes one file of all."""

    NONE = 0
    OVERLAPPING = 1
    FULL = 2


class FileInfo(NamedTuple):
    """One immutable file of a unit. `low` and `high` are the positions of its first and last write.

    Its rows lie in first_time <= time <= last_time. Tombstones up to `folded` have been applied to it.
    """

    name: str
    path: str
    bytes: int
    crc32c: int
    low: Position
    high: Position
    folded: Position
    first_time: int
    last_time: int


@dataclass(slots=True)
class Statistics:
    """What aggregations need to know of the points in each of w windows.

    Where `count` is 0 the other arrays hold anything. The sum is `sum_hi + sum_lo`, unrounded: to merge two partial
    sums add them as double-doubles (`add_sums`), and round once, at the end. `min_values` and `max_values` follow
    Java's Double.compare (NaN greatest, -0.0 below 0.0); they and the sums are None for BOOLEAN and TEXT, and what was
    not asked for is None.
    """

    count: Int64Array  # int64[w]
    first_times: Int64Array  # int64[w]
    last_times: Int64Array  # int64[w]
    first_values: Values | None = None  # [w] of the series' type
    last_values: Values | None = None  # [w] of the series' type
    min_values: npt.NDArray[Any] | None = None  # [w] of the series' type
    max_values: npt.NDArray[Any] | None = None  # [w] of the series' type
    sum_hi: Float64Array | None = None  # float64[w]
    sum_lo: Float64Array | None = None  # float64[w]


class ReadInterface(Protocol):
    """How points are read: `UnitReader` for one unit; anything else that merges or fakes several.

    Every method may be called from a worker thread. A series is named by device, measurement *and* type; points that
    were written under another type are not seen. Bounds are inclusive. SystemFault (CorruptData) where a file of the
    unit is damaged.
    """

    def series(self) -> list[tuple[str, str, DataType]]:
        """(device, measurement, type) of every series with a live point, sorted."""
        ...

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
        """The points with low <= time <= high: non-empty batches (times int64[n], values[n]), n <= batch_rows.

        Times are strictly ascending (descending) over all batches; arrays are native and contiguous, and not to be
        written to. Pages are decoded as they are needed.
        """
        ...

    def read_device(
        self,
        device: str,
        wanted: Sequence[tuple[str, DataType]],
        low: int,
        high: int,
        ascending: bool = True,
        batch_rows: int = SCAN_BATCH_ROWS,
    ) -> Iterator[RowBatch]:
        """Rows of several series of one device, joined by time: one column for each wanted, null where it has no point.

        Rows in which every wanted series is null do not appear. Otherwise as `read`.
        """
        ...

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
        """Statistics of the points in each window starts[i] <= time <= ends[i] (ends are INCLUSIVE).

        Windows are int64[w], ascending and disjoint; gaps are fine, and a window with end < start is empty. `decimals`
        rounds values of FLOAT and DOUBLE first, as `round_values` does. With `values` False only counts and times are
        given (TEXT is then not decoded); with `sums` False no sums (which `decimals` makes dear).
        """
        ...

    def last(self, device: str, measurement: str, kind: DataType, low: int) -> Point | None:
        """The latest point with time >= low."""
        ...

    def nearest(
        self, device: str, measurement: str, kind: DataType, time: int, before_low: int, after_high: int
    ) -> tuple[Point | None, Point | None]:
        """(the latest point in [before_low, time], the earliest in [time, after_high]): a point at `time` is both."""
        ...
