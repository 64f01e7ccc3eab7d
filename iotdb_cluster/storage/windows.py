"""Statistics of windows of time, from stored statistics blocks where they answer and from points where they must.

All blocks of 1,024 rows of all sources are laid out by time. A block that meets no block of another source and no
tombstone answers as it is if it lies inside one window; otherwise its own points do. Where blocks do meet, the points
are merged first. All partial results are brought together at the end, window by window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import BoolArray, Column, DataType, Int64Array, TextColumn, Values, concat_values, native
from iotdb_cluster.storage.merge import MemorySource, Source, merged
from iotdb_cluster.storage.segments import from_bits, largest_of, segment_bounds, smallest_of
from iotdb_cluster.storage.sums import round_values, segment_sums
from iotdb_cluster.storage.tables import Table
from iotdb_cluster.storage.types import Statistics

__all__ = ["BlockSource", "StoredBlocks", "windows_of"]

Array = npt.NDArray[Any]


REDUCED_ROWS = 65_536  # points that were read are brought to partial results when there are so many
GATHER_ROWS = 131_072  # points of edge blocks that are looked at together


class BlockReader(Source, Protocol):
    """A source whose statistics blocks can be read one by one."""

    def blocks(self, numbers: Int64Array, rows_max: int) -> Iterator[tuple[int, Int64Array, Column]]: ...


@dataclass(slots=True)
class StoredBlocks:
    """The statistics blocks of a source, those without cells left out.

    `touched` is bool[b]: which blocks tombstones may change.
    """

    reader: BlockReader
    numbers: Int64Array  # int64[b]: of each block, its number in the source
    blocks: Array  # BLOCK[b]
    touched: BoolArray | None = None


@dataclass(slots=True)
class BlockSource:
    """A source of rows; `stored` is None where it has no statistics."""

    source: Source
    stored: StoredBlocks | None


@dataclass(slots=True)
class _Partials:
    """Partial results: one row a window and piece."""

    windows: list[Int64Array] = field(default_factory=list)
    count: list[Int64Array] = field(default_factory=list)
    first_times: list[Int64Array] = field(default_factory=list)
    last_times: list[Int64Array] = field(default_factory=list)
    firsts: list[Values] = field(default_factory=list)
    lasts: list[Values] = field(default_factory=list)
    least: list[Array] = field(default_factory=list)
    greatest: list[Array] = field(default_factory=list)
    hi: list[Array] = field(default_factory=list)
    lo: list[Array] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Plan:
    kind: DataType
    starts: Int64Array
    ends: Int64Array
    decimals: int | None
    values: bool
    sums: bool

    @property
    def bounds(self) -> bool:
        return self.values and self.kind.is_numeric

    def rounded(self, values: Array) -> Array:
        return values if self.decimals is None else round_values(values, self.decimals)


def windows_of(
    sources: Sequence[BlockSource],
    kind: DataType,
    starts: Int64Array,
    ends: Int64Array,
    decimals: int | None,
    values: bool,
    sums: bool,
) -> Statistics:
    """As `ReadInterface.window_statistics`; `sources` from the earliest writes to the latest."""
    if kind not in (DataType.FLOAT, DataType.DOUBLE):
        decimals = None
    total = len(starts)
    used = np.flatnonzero(ends >= starts)
    plan = _Plan(kind, starts[used], ends[used], decimals, values, sums and values and kind.is_numeric)
    partials = _Partials()
    if len(used) and sources:
        # a block cannot give the first text of a window, nor the sum of rounded numbers
        blocks_answer = not (values and kind is DataType.TEXT) and not (plan.sums and decimals is not None)
        read = _Read(plan, partials)
        only = sources[0].source
        if len(sources) == 1 and isinstance(only, MemorySource):  # it lies in order of time, and no block answers
            read.begin(int(plan.starts[0]), int(plan.ends[-1]))
            read.add_table(only.table)
        else:
            for low, high in _ranges_to_read(sources, plan, blocks_answer, partials):
                read.begin(low, high)
                for table in merged([source.source for source in sources], low, high):
                    read.add_table(table)
        read.end()
    return _finish(plan, partials, used, total)


class _Read:
    """Points of several ranges, in order of time, reduced many at a time: a range alone is a block or two."""

    def __init__(self, plan: _Plan, partials: _Partials) -> None:
        self._plan, self._partials = plan, partials
        self._ranges: list[tuple[int, int]] = []
        self._times: list[Int64Array] = []
        self._values: list[Values] = []
        self._count = 0

    def begin(self, low: int, high: int) -> None:
        self._ranges.append((low, high))

    def add_table(self, table: Table) -> None:
        """Of one column."""
        column = table.columns[0]
        if column is None:
            return
        times, values = table.times, column.values
        if column.valid is not None:
            times, values = times[column.valid], values[column.valid]
        for at in range(0, len(times), REDUCED_ROWS):
            some = slice(at, at + REDUCED_ROWS)
            self._times.append(times[some])
            self._values.append(native(values[some]))
            self._count += len(self._times[-1])
            if self._count >= REDUCED_ROWS:
                self.end()

    def end(self) -> None:
        if self._count:
            bounds = np.array(self._ranges, np.int64)
            pieces = _pieces(self._plan, bounds[:, 0], bounds[:, 1])
            _add_points(self._plan, self._partials, np.concatenate(self._times), concat_values(self._values), *pieces)
        self._ranges = self._ranges[-1:]
        self._times, self._values, self._count = [], [], 0


def _pieces(plan: _Plan, lows: Int64Array, highs: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """(starts, ends, window) of what ranges (ascending, disjoint, inclusive) have of each window.

    Blocks that answer for themselves may lie between two ranges of one window, so these are not joined.
    """
    first = np.searchsorted(plan.ends, lows, "left")
    counts = np.maximum(np.searchsorted(plan.starts, highs, "right") - first, 0)
    owner = np.repeat(np.arange(len(lows)), counts)
    window = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + first[owner]
    return np.maximum(plan.starts[window], lows[owner]), np.minimum(plan.ends[window], highs[owner]), window


def _ranges_to_read(
    sources: Sequence[BlockSource], plan: _Plan, blocks_answer: bool, partials: _Partials
) -> Iterator[tuple[int, int]]:
    """Adds to `partials` what blocks say by themselves; gives the ranges of time whose points must be merged."""
    low, high = int(plan.starts[0]), int(plan.ends[-1])
    firsts, lasts, whole = [], [], []
    for source in sources:
        stored = source.stored
        if stored is None:
            firsts.append(source.source.firsts)
            lasts.append(source.source.lasts)
            whole.append(np.zeros(len(source.source.firsts), np.bool_))
        else:
            firsts.append(stored.blocks["first_time"])
            lasts.append(stored.blocks["last_time"])
            whole.append(np.ones(len(stored.blocks), np.bool_) if stored.touched is None else ~stored.touched)
    first, last, alone = np.concatenate(firsts), np.concatenate(lasts), np.concatenate(whole)
    inside = np.flatnonzero((last >= low) & (first <= high))
    order = inside[np.argsort(first[inside], kind="stable")]
    if not len(order):
        return
    first, last, alone = first[order], last[order], alone[order]
    reach = np.maximum.accumulate(last)
    alone[1:] &= reach[:-1] < first[1:]
    alone[:-1] &= first[1:] > last[:-1]
    window = np.searchsorted(plan.ends, first, "left")
    latest = np.searchsorted(plan.starts, last, "right") - 1
    needed = window <= latest
    here = np.minimum(window, len(plan.ends) - 1)
    answered = alone & (window == latest) & (plan.starts[here] <= first) & (plan.ends[here] >= last)
    if not blocks_answer:
        answered[:] = False
    _add_blocks(plan, partials, sources, order[answered], window[answered])
    _add_edges(plan, partials, sources, order[needed & alone & ~answered])
    rest = needed & ~alone
    if not rest.any():
        return
    begins = np.flatnonzero(rest & ~np.concatenate(([False], rest[:-1])))
    stops = np.flatnonzero(rest & ~np.concatenate((rest[1:], [False])))
    # blocks between two ranges belong to no window or answer for themselves, so the ranges do not meet, except
    # where a block outside all windows was left out: what was read already is not read again
    done = low - 1
    for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True):
        start = max(int(first[begin]), done + 1, low)
        end = min(int(last[begin : stop + 1].max()), high)
        if start <= end:
            yield start, end
            done = end


def _chosen_of(
    sources: Sequence[BlockSource], chosen: Int64Array
) -> Iterator[tuple[StoredBlocks, Int64Array, Int64Array]]:
    """(blocks of a source, which of `chosen` are its, where in its blocks); `chosen`: places in all sources' blocks."""
    at = 0
    for source in sources:
        size = len(source.source.firsts) if source.stored is None else len(source.stored.blocks)
        mine = np.flatnonzero((chosen >= at) & (chosen < at + size))
        if source.stored is not None and len(mine):
            yield source.stored, mine, chosen[mine] - at
        at += size


def _add_edges(plan: _Plan, partials: _Partials, sources: Sequence[BlockSource], chosen: Int64Array) -> None:
    """The points of blocks that no other source meets, but that lie in several windows or at the edge of one."""
    for stored, _, places in _chosen_of(sources, chosen):
        places = np.sort(places)
        begin = 0
        for count, times, column in stored.reader.blocks(stored.numbers[places], GATHER_ROWS):
            blocks = stored.blocks[places[begin : begin + count]]
            begin += count
            values = column.values
            if column.valid is not None:
                times, values = times[column.valid], values[column.valid]
            pieces = _pieces(plan, blocks["first_time"], blocks["last_time"])
            _add_points(plan, partials, times, native(values), *pieces)


def _add_blocks(
    plan: _Plan, partials: _Partials, sources: Sequence[BlockSource], chosen: Int64Array, windows: Int64Array
) -> None:
    for stored, mine, places in _chosen_of(sources, chosen):
        blocks = stored.blocks[places]
        partials.windows.append(windows[mine])
        partials.count.append(blocks["count"].astype(np.int64))
        partials.first_times.append(blocks["first_time"])
        partials.last_times.append(blocks["last_time"])
        if plan.values and plan.kind is not DataType.TEXT:
            partials.firsts.append(plan.rounded(from_bits(plan.kind, blocks["first"])))
            partials.lasts.append(plan.rounded(from_bits(plan.kind, blocks["last"])))
        if plan.bounds:
            partials.least.append(plan.rounded(from_bits(plan.kind, blocks["min"])))
            partials.greatest.append(plan.rounded(from_bits(plan.kind, blocks["max"])))
        if plan.sums:
            partials.hi.append(blocks["sum_hi"])
            partials.lo.append(blocks["sum_lo"])


def _add_points(
    plan: _Plan,
    partials: _Partials,
    times: Int64Array,
    values: Values,
    starts: Int64Array,
    ends: Int64Array,
    window: Int64Array,
) -> None:
    """Points in order of time, of pieces (ascending, disjoint, ends inclusive) of windows."""
    lows = np.searchsorted(times, starts, "left")
    highs = np.searchsorted(times, ends, "right")
    filled = np.flatnonzero(highs > lows)
    if not len(filled):
        return
    lows, highs = lows[filled], highs[filled]
    partials.windows.append(window[filled])
    partials.count.append(highs - lows)
    partials.first_times.append(times[lows])
    partials.last_times.append(times[highs - 1])
    if not plan.values:
        return
    if isinstance(values, TextColumn):
        partials.firsts.append(values[lows])
        partials.lasts.append(values[highs - 1])
        return
    # cells between windows are cut out, so that each window is one segment
    lengths = highs - lows
    begins = np.cumsum(lengths) - lengths
    if int(lengths.sum()) == int(highs[-1] - lows[0]):
        values = values[int(lows[0]) : int(highs[-1])]
    else:
        values = values[np.repeat(lows - begins, lengths) + np.arange(int(lengths.sum()))]
    values = plan.rounded(values)
    partials.firsts.append(values[begins])
    partials.lasts.append(values[begins + lengths - 1])
    if plan.bounds:
        least, greatest = segment_bounds(values, begins)
        partials.least.append(least)
        partials.greatest.append(greatest)
        if plan.sums:
            hi, lo = segment_sums(values, begins, largest_of(least, greatest), smallest_of(least, greatest))
            partials.hi.append(hi)
            partials.lo.append(lo)


def _spread(part: Array, used: Int64Array, total: int) -> Array:
    whole = np.zeros(total, part.dtype)
    whole[used] = part
    return whole


def _finish(plan: _Plan, partials: _Partials, used: Int64Array, total: int) -> Statistics:
    """Bring the partial results of each window together and spread them over all windows."""
    kind = plan.kind
    result = Statistics(np.zeros(total, np.int64), np.zeros(total, np.int64), np.zeros(total, np.int64))
    if plan.values:
        result.first_values = result.last_values = (
            TextColumn.full(total, b"") if kind is DataType.TEXT else np.zeros(total, kind.dtype)
        )
    if plan.bounds:
        result.min_values, result.max_values = np.zeros(total, kind.dtype), np.zeros(total, kind.dtype)
    if plan.sums:
        result.sum_hi, result.sum_lo = np.zeros(total), np.zeros(total)
    if not partials.windows:
        return result
    windows, times = np.concatenate(partials.windows), np.concatenate(partials.first_times)
    order = np.lexsort((times, windows))
    windows = windows[order]
    starts = np.flatnonzero(np.concatenate(([True], windows[1:] != windows[:-1])))
    lasts = np.append(starts[1:], len(windows)) - 1
    places = used[windows[starts]]
    result.count[places] = np.add.reduceat(np.concatenate(partials.count)[order], starts)
    result.first_times[places] = times[order][starts]
    result.last_times[places] = np.concatenate(partials.last_times)[order][lasts]
    if plan.values:
        result.first_values = _place(concat_values(partials.firsts), order[starts], places, total)
        result.last_values = _place(concat_values(partials.lasts), order[lasts], places, total)
    if plan.bounds:
        least, _ = segment_bounds(np.concatenate(partials.least)[order], starts)
        _, greatest = segment_bounds(np.concatenate(partials.greatest)[order], starts)
        result.min_values, result.max_values = _spread(least, places, total), _spread(greatest, places, total)
    if plan.sums:
        hi, lo = np.concatenate(partials.hi)[order], np.concatenate(partials.lo)[order]
        parts = np.stack([hi, lo], axis=1).ravel()
        with np.errstate(invalid="ignore"):
            peaks = np.maximum.reduceat(np.abs(parts), starts * 2)
        sum_hi, sum_lo = segment_sums(parts, starts * 2, peaks)
        result.sum_hi, result.sum_lo = _spread(sum_hi, places, total), _spread(sum_lo, places, total)
    return result


def _place(values: Values, chosen: Int64Array, places: Int64Array, total: int) -> Values:
    """`values[chosen]` at `places` of `total` cells."""
    if not isinstance(values, TextColumn):
        return _spread(values[chosen], places, total)
    picked = values[chosen]
    lengths = np.zeros(total, np.int64)
    lengths[places] = picked.lengths
    offsets = np.zeros(total + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TextColumn(offsets, picked.packed())
