"""Writing chunk files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lz4.block
import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from iotdb_cluster.columns import Column, DataType, Int64Array, TextColumn, native
from iotdb_cluster.errors import SystemFault, check
from iotdb_cluster.limits import PAGE_ROWS, STATISTICS_ROWS
from iotdb_cluster.storage import chunk_layout as layout
from iotdb_cluster.storage.codec_ids import pack_nested
from iotdb_cluster.storage.codecs import CODEC_VERSION, Codec, PageEncoder, encode_bits, encode_values
from iotdb_cluster.storage.durable import SyncedWriter
from iotdb_cluster.storage.merge import pages_of
from iotdb_cluster.storage.number_codecs import Hints
from iotdb_cluster.storage.segments import BLOCK, block_statistics, pack_blocks
from iotdb_cluster.storage.tables import Table
from iotdb_cluster.storage.types import Position
from iotdb_cluster.world import FileSystem

__all__ = ["ChunkWriter", "GroupWriter"]

STACK_ROWS_MAX = 2_048  # columns of shorter pages have their statistics computed together ...
STACK_COLUMNS = 32  # ... so many at a time
GROUP_ROWS_MAX = 1 << 20  # rows of one row group; its description is read as a whole
PAGE_BYTES_MAX = 32 << 20  # a page of rows that takes more memory ends early, and its row group with it
WIDE_COLUMNS = 64  # row groups of more columns have pages of PAGE_ROWS at most
Array = npt.NDArray[Any]


class ChunkWriter:
    """One new chunk file: groups of rows, then `finish`."""

    def __init__(self, files: FileSystem, path: str, level: int, page_rows: int) -> None:
        self._page_rows = page_rows
        self._out = SyncedWriter(files, path)
        self._level = level
        self.hints: Hints = {}
        self._crc = 0
        self._devices: dict[str, int] = {}
        self._groups: list[tuple[int, int, int, int, int, int, int]] = []
        self._append(layout.HEADER.pack(layout.MAGIC, layout.VERSION))

    @property
    def is_empty(self) -> bool:
        return not self._groups

    @property
    def size(self) -> int:
        return self._out.position

    @property
    def times(self) -> tuple[int, int]:
        """(first, last) time of all rows; not of an empty file."""
        return min(group[5] for group in self._groups), max(group[6] for group in self._groups)

    def _append(self, data: bytes) -> int:
        """Returns the offset."""
        offset = self._out.position
        self._crc = crc32c(data, self._crc)
        self._out.append(data)
        return offset

    def page(self, count: int, codec: Codec, data: bytes) -> tuple[int, int, int, int, int, int, int]:
        """Write a page; returns its PAGE record."""
        return (self._append(data), len(data), crc32c(data), count, int(codec), CODEC_VERSION, 0)

    def write_rows(
        self,
        device: str,
        series: Sequence[tuple[str, DataType]],
        tables: Iterable[Table],
        low: Position,
        high: Position,
    ) -> None:
        """Rows of a device, in the order of time; none, no group."""
        for _ in self.write_pages(device, series, tables, low, high):
            pass

    def write_pages(
        self,
        device: str,
        series: Sequence[tuple[str, DataType]],
        tables: Iterable[Table],
        low: Position,
        high: Position,
    ) -> Iterator[None]:
        """As `write_rows`, resting after each page for as long as the caller likes."""
        page_rows = self._page_rows if len(series) <= WIDE_COLUMNS else min(self._page_rows, PAGE_ROWS)
        group: GroupWriter | None = None
        for table in pages_of(tables, page_rows, PAGE_BYTES_MAX):
            if group is not None and (group.rows >= GROUP_ROWS_MAX or group.rows % page_rows):
                self._finish_group(group)
                group = None
            if group is None:
                group = GroupWriter(self, device, series, (*low, *high), self._level, page_rows)
            group.append(table)
            yield
        if group is not None:
            self._finish_group(group)

    def _finish_group(self, group: GroupWriter) -> None:
        head = group.finish(self._append)
        number = self._devices.setdefault(group.device, len(self._devices))
        offset = self._append(head)
        self._groups.append((number, len(head), crc32c(head), group.rows, offset, group.first_time, group.last_time))

    def finish(self) -> tuple[int, int]:
        """Write the index and sync; returns (bytes, CRC32C) of the file."""
        names = [device.encode() for device in self._devices]
        lengths = np.array([len(name) for name in names], "<u4").tobytes()
        plain = b"".join(
            (
                layout.INDEX.pack(len(names), len(self._groups), sum(map(len, names))),
                lengths,
                *names,
                np.array(self._groups, layout.GROUP).tobytes(),
            )
        )
        packed: bytes = lz4.block.compress(plain, store_size=False)
        offset = self._append(packed)
        trailer = layout.TRAILER.pack(offset, len(packed), len(plain), crc32c(packed), layout.VERSION, layout.END_MAGIC)
        self._append(trailer + crc32c(trailer).to_bytes(4, "little"))
        self._out.close_synced()
        return self._out.position, self._crc

    def abandon(self) -> None:
        """Give the file up; what stands of it is removed at the next start at the latest."""
        self._out.abandon()


class GroupWriter:
    """One row group on its way into a file."""

    def __init__(
        self,
        writer: ChunkWriter,
        device: str,
        series: Sequence[tuple[str, DataType]],
        bounds: tuple[int, int, int, int],
        level: int,
        page_rows: int,
    ) -> None:
        self.device = device
        self.rows = 0
        self.first_time = self.last_time = 0
        self._writer = writer
        self._series = series
        self._bounds = bounds  # order positions of the first and of the last write
        self._level = level
        self._page_rows = page_rows
        self._time_encoder = PageEncoder(DataType.INT64, level)
        self._encoders = [PageEncoder(kind, level, writer.hints) for _, kind in series]
        self._time_pages: list[tuple[int, ...]] = []
        self._time_blocks: list[tuple[Int64Array, Int64Array]] = []
        self._pages: list[list[tuple[int, ...]]] = [[] for _ in series]
        self._bitmaps: list[list[tuple[int, ...]]] = [[] for _ in series]
        self._blocks: list[list[Array]] = [[] for _ in series]

    def append(self, table: Table) -> None:
        """The next page of rows."""
        count = len(table)
        check(0 < count <= self._page_rows, "a page of %d rows", count)
        check(self.rows % self._page_rows == 0, "a page of %d rows behind %d", count, self.rows)
        times = np.ascontiguousarray(table.times)
        if not self.rows:
            self.first_time = int(times[0])
        self.rows += count
        self.last_time = int(times[-1])
        starts = np.arange(0, count, STATISTICS_ROWS)
        codec, data = self._time_encoder.encode(times)
        self._time_pages.append(self._writer.page(count, codec, data))
        self._time_blocks.append((times[starts], times[np.append(starts[1:], count) - 1]))
        full: dict[DataType, list[tuple[int, Array]]] = {}
        for at, column in enumerate(table.columns):
            kind = self._series[at][1]
            if column is None or (column.valid is not None and not column.valid.all()):
                self._append_sparse(at, kind, column, times, starts)
                continue
            values = native(column.values)
            self._append_page(at, values)
            self._bitmaps[at].append((0, 0, 0, count, 0, CODEC_VERSION, 0))
            if isinstance(values, TextColumn):
                self._blocks[at].append(block_statistics(kind, None, times, starts)[0])
            else:
                full.setdefault(kind, []).append((at, values))
        self._append_statistics(full, times, starts)

    def _append_statistics(
        self, full: dict[DataType, list[tuple[int, Array]]], times: Int64Array, starts: Int64Array
    ) -> None:
        width = STACK_COLUMNS if len(times) <= STACK_ROWS_MAX else 1
        for kind, columns in full.items():
            for begin in range(0, len(columns), width):
                part = columns[begin : begin + width]
                matrix = part[0][1][None, :] if len(part) == 1 else np.stack([values for _, values in part])
                blocks = block_statistics(kind, matrix, times, starts)
                for (at, _), row in zip(part, blocks, strict=True):
                    self._blocks[at].append(row)

    def _append_page(self, at: int, values: Array | TextColumn) -> None:
        if not len(values):
            self._pages[at].append((0, 0, 0, 0, 0, CODEC_VERSION, 0))
            return
        codec, data = self._encoders[at].encode(values)
        self._pages[at].append(self._writer.page(len(values), codec, data))

    def _append_sparse(
        self, at: int, kind: DataType, column: Column | None, times: Int64Array, starts: Int64Array
    ) -> None:
        """A page with nulls: a bitmap, and the cells that have a value."""
        blocks = np.zeros(len(starts), BLOCK)
        self._blocks[at].append(blocks)
        if column is None or column.valid is None or not column.valid.any():
            self._bitmaps[at].append((0, 0, 0, 0, 0, CODEC_VERSION, 0))
            self._pages[at].append((0, 0, 0, 0, 0, CODEC_VERSION, 0))
            return
        places = np.flatnonzero(column.valid)
        values = native(column.values[places])
        self._append_page(at, values)
        codec, data = encode_bits(column.valid, self._level)
        self._bitmaps[at].append(self._writer.page(len(places), codec, data))
        begins = np.searchsorted(places, starts)
        used = np.flatnonzero(np.diff(begins, append=len(places)))
        matrix = None if isinstance(values, TextColumn) else values[None, :]
        blocks[used] = block_statistics(kind, matrix, times[places], begins[used])[0]

    def finish(self, append: Any) -> bytes:
        """Write the columns' descriptions through `append`; returns the head."""
        if self.rows <= 0:
            raise SystemFault("a row group without rows")
        first_times = np.concatenate([first for first, _ in self._time_blocks])
        last_times = np.concatenate([last for _, last in self._time_blocks])
        columns = np.zeros(len(self._series), layout.COLUMN)
        for at, (_, kind) in enumerate(self._series):
            blocks = np.concatenate(self._blocks[at])
            plain = b"".join(
                (
                    np.array(self._pages[at], layout.PAGE).tobytes(),
                    np.array(self._bitmaps[at], layout.PAGE).tobytes(),
                    pack_blocks(kind, blocks, first_times, last_times, self._level),
                )
            )
            packed: bytes = lz4.block.compress(plain, store_size=False)
            used = blocks[blocks["count"] > 0]
            count = int(used["count"].sum())
            first, last = (used["first_time"][0], used["last_time"][-1]) if count else (0, 0)
            columns[at] = (append(packed), len(packed), len(plain), crc32c(packed), kind, 0, count, first, last)
        names = [measurement.encode() for measurement, _ in self._series]
        return b"".join(
            (
                layout.HEAD.pack(self.rows, len(names), self._page_rows, STATISTICS_ROWS, *self._bounds),
                np.array([len(name) for name in names], "<u4").tobytes(),
                *names,
                columns.tobytes(),
                np.array(self._time_pages, layout.PAGE).tobytes(),
                *(
                    pack_nested(encode_values(DataType.INT64, times, self._level))
                    for times in (first_times, last_times)
                ),
            )
        )
