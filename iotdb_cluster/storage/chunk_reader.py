"""Reading chunk files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import lz4.block
import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from iotdb_cluster.columns import Column, DataType, Int64Array, TextColumn, Values, concat_columns
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.limits import MIB
from iotdb_cluster.storage import chunk_layout as layout
from iotdb_cluster.storage.codec_ids import take_nested
from iotdb_cluster.storage.codecs import decode_bits, decode_values
from iotdb_cluster.storage.durable import disk_faults
from iotdb_cluster.storage.number_codecs import Parts, decode_some
from iotdb_cluster.storage.segments import unpack_blocks
from iotdb_cluster.storage.tables import Table
from iotdb_cluster.storage.tombstones import Ranges
from iotdb_cluster.storage.types import FileInfo, Position
from iotdb_cluster.world import File, FileSystem

__all__ = ["Cache", "ChunkFile", "ColumnIndex", "Group", "GroupSource", "source_of"]

Array = npt.NDArray[Any]
T = TypeVar("T")
INDEX_RAW_FACTOR = 260  # lz4 does not shrink by more: bounds what a damaged length may ask for


class Cache:
    """Parsed parts of files, the least recently used leave first. For any thread."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], tuple[T, int]]) -> T:
        """The cached value, or what `load` gives as (value, bytes)."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                found: T = entry[0]
                return found
        value, size = load()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = (value, size)
                self._bytes += size
            while self._bytes > self._bytes_max and len(self._entries) > 1:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
        return value

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0


Place = tuple[int, ...]  # a PAGE record: offset, length, CRC32C, cells, codec, version, spare


@dataclass(slots=True)
class ColumnIndex:
    """Where the pages of a column stand, and its statistics blocks."""

    pages: list[Place]
    bitmaps: list[Place]
    blocks: Array  # BLOCK[b]


@dataclass(slots=True)
class Group:
    """The head of a row group."""

    number: int
    rows: int
    low: Position
    high: Position
    places: dict[tuple[str, DataType], int]
    columns: Array  # COLUMN[m]
    rows_of_page: int
    blocks_of_page: int
    time_pages: list[Place]
    first_times: Int64Array  # [b]
    last_times: Int64Array  # [b]

    def page_rows(self, page: int) -> int:
        return min(self.rows_of_page, self.rows - page * self.rows_of_page)


class _Cut:
    """Takes parts off the front of bytes; CorruptData where they are too short."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._at = 0
        self._name = name

    def take(self, length: int) -> bytes:
        part = self._data[self._at : self._at + length]
        if len(part) != length:
            raise CorruptData(f"{self._name} is {len(self._data)} bytes long, too short for what it says it holds")
        self._at += length
        return part

    def rest(self) -> bytes:
        return self._data[self._at :]

    def times(self, count: int) -> Int64Array:
        """A page of INT64 inside these bytes."""
        codec, version, inner, self._at = take_nested(self._data, self._at)
        values = decode_values(DataType.INT64, codec, version, inner, count)
        if isinstance(values, TextColumn):
            raise CorruptData(f"{self._name} has texts for times")
        return values

    def array(self, dtype: Any, count: int) -> Array:
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(kind.itemsize * count), kind)

    def names(self, count: int) -> list[str]:
        lengths = self.array("<u4", count).tolist()
        try:
            return [self.take(length).decode() for length in lengths]
        except UnicodeDecodeError as error:
            raise CorruptData(f"{self._name} has a name that is not UTF-8") from error


class ChunkFile:
    """An immutable file of a unit, opened at its first use. For any thread.

    `pins` counts the readers (and the unit itself) that may still read it; `Store` alone changes it.
    """

    def __init__(self, files: FileSystem, info: FileInfo, cache: Cache) -> None:
        self.info = info
        self.pins = 1
        self._files = files
        self._cache = cache
        self._lock = threading.Lock()
        self._file: File | None = None
        self._devices: dict[str, list[int]] | None = None
        self._groups: Array = np.empty(0, layout.GROUP)

    def __repr__(self) -> str:
        return f"ChunkFile({self.info.path})"

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _read(self, offset: int, length: int, crc: int, what: str) -> bytes:
        with self._lock:
            if self._file is None:
                with disk_faults(self.info.path):
                    self._file = self._files.open(self.info.path)
            file = self._file
        with disk_faults(self.info.path):
            data = file.read(offset, length)
        if len(data) != length or crc32c(data) != crc:
            raise CorruptData(f"{self.info.path}: {what} at {offset} ({length} bytes) does not match its checksum")
        return data

    def verify(self) -> None:
        """Read the whole file and compare it with its checksum; CorruptData."""
        crc = 0
        with disk_faults(self.info.path):
            file = self._files.open(self.info.path)
            try:
                for offset in range(0, self.info.bytes, MIB):
                    crc = crc32c(file.read(offset, MIB), crc)
            finally:
                file.close()
        if crc != self.info.crc32c:
            raise CorruptData(f"{self.info.path}: does not match its checksum")

    # --- index --------------------------------------------------------------------------------------------------------

    def devices(self) -> dict[str, list[int]]:
        """The numbers of the row groups of each device, in the order of time."""
        devices = self._devices
        return self._load_index() if devices is None else devices

    def group_times(self, number: int) -> tuple[int, int]:
        """(first, last) time of a row group."""
        self.devices()
        row = self._groups[number]
        return int(row["first_time"]), int(row["last_time"])

    def _load_index(self) -> dict[str, list[int]]:
        path, size = self.info.path, self.info.bytes
        length = layout.TRAILER.size + 4
        with disk_faults(path):
            file = self._files.open(path)
            try:
                real_size = file.size()
                head = file.read(0, layout.HEADER.size)
                trailer = file.read(max(0, size - length), length)
            finally:
                file.close()
        if real_size != size:
            raise CorruptData(f"{path}: is {real_size} bytes long, the manifest says {size}")
        if head != layout.HEADER.pack(layout.MAGIC, layout.VERSION):
            raise CorruptData(f"{path}: not a chunk file of version {layout.VERSION}: it begins with {head.hex()}")
        if len(trailer) != length or crc32c(trailer[:-4]) != int.from_bytes(trailer[-4:], "little"):
            raise CorruptData(f"{path}: the trailer does not match its checksum")
        offset, packed_bytes, raw, crc, version, magic = layout.TRAILER.unpack(trailer[:-4])
        if magic != layout.END_MAGIC or version != layout.VERSION:
            raise CorruptData(f"{path}: has version {version}, this program knows {layout.VERSION}")
        packed = self._read(offset, packed_bytes, crc, "the index")
        cut = _Cut(_unpack(packed, raw, path), path)
        device_count, group_count, _ = layout.INDEX.unpack(cut.take(layout.INDEX.size))
        names = cut.names(device_count)
        groups = cut.array(layout.GROUP, group_count)
        devices: dict[str, list[int]] = {name: [] for name in names}
        for number, device in enumerate(groups["device"].tolist()):
            devices[names[device]].append(number)
        with self._lock:
            self._groups = groups
            self._devices = devices
        return devices

    def group(self, number: int) -> Group:
        self.devices()
        return self._cache.get((self.info.path, number), lambda: self._load_group(number))

    def _load_group(self, number: int) -> tuple[Group, int]:
        row = self._groups[number]
        data = self._read(int(row["offset"]), int(row["length"]), int(row["crc"]), "a row group")
        cut = _Cut(data, self.info.path)
        rows, column_count, page_rows, block_rows, *bounds = layout.HEAD.unpack(cut.take(layout.HEAD.size))
        if not page_rows or not block_rows or page_rows % block_rows:
            raise CorruptData(f"{self.info.path}: a row group has pages of {page_rows} and blocks of {block_rows} rows")
        names = cut.names(column_count)
        columns = cut.array(layout.COLUMN, column_count)
        kinds = [DataType(kind) for kind in columns["kind"].tolist()]
        pages, blocks = -(-rows // page_rows), -(-rows // block_rows)
        group = Group(
            number,
            rows,
            (bounds[0], bounds[1]),
            (bounds[2], bounds[3]),
            {key: place for place, key in enumerate(zip(names, kinds, strict=True))},
            columns,
            page_rows,
            page_rows // block_rows,
            cut.array(layout.PAGE, pages).tolist(),
            cut.times(blocks),
            cut.times(blocks),
        )
        return group, len(data) + 16 * blocks + 120 * column_count + 1000

    def column(self, group: Group, place: int) -> ColumnIndex:
        return self._cache.get((self.info.path, group.number, place), lambda: self._load_column(group, place))

    def _load_column(self, group: Group, place: int) -> tuple[ColumnIndex, int]:
        row = group.columns[place]
        packed = self._read(int(row["offset"]), int(row["length"]), int(row["crc"]), "a column's description")
        cut = _Cut(_unpack(packed, int(row["raw"]), self.info.path), self.info.path)
        pages = len(group.time_pages)
        places, bitmaps = cut.array(layout.PAGE, pages).tolist(), cut.array(layout.PAGE, pages).tolist()
        try:
            blocks = unpack_blocks(DataType(int(row["kind"])), cut.rest(), group.first_times, group.last_times)
        except CorruptData as error:
            raise CorruptData(f"{self.info.path}: {error}") from error
        return ColumnIndex(places, bitmaps, blocks), blocks.nbytes + 600 * pages + 600

    # --- pages --------------------------------------------------------------------------------------------------------

    def times(self, group: Group, page: int) -> Int64Array:
        """The times of a page of rows."""
        values = self._values(DataType.INT64, group.time_pages[page], group.page_rows(page))
        if isinstance(values, TextColumn) or len(values) != group.page_rows(page):
            raise CorruptData(f"{self.info.path}: a page of times has {len(values)} rows")
        return values

    def some_times(self, group: Group, page: int, parts: Parts, out: Int64Array) -> None:
        """Some of the times of a page, one after another, into `out: int64[parts.cells]`."""
        self._some(DataType.INT64, group.time_pages[page], parts, out)

    def some_cells(self, group: Group, place: int, kind: DataType, page: int, parts: Parts, out: Array) -> bool:
        """Some of the numbers of a page, as `some_times`; False where rows have no cell, or these are no numbers."""
        index = self.column(group, place)
        if not kind.is_numeric or index.bitmaps[page][1] or not index.pages[page][1]:
            return False
        self._some(kind, index.pages[page], parts, out)
        return True

    def _some(self, kind: DataType, place: Place, parts: Parts, out: Array) -> None:
        offset, length, crc, count, codec, version, _ = place
        if count != parts.rows:
            raise CorruptData(f"{self.info.path}: the page at {offset} has {count} cells of {parts.rows} rows")
        data = self._read(offset, length, crc, "a page")
        try:
            decode_some(kind.dtype, codec, version, data, count, parts, out)
        except CorruptData as error:
            raise CorruptData(f"{self.info.path}: the page at {offset}: {error}") from error

    def _values(self, kind: DataType, place: Place, rows: int) -> Values:
        """`rows`: so many cells it may have at most."""
        offset, length, crc, count, codec, version, _ = place
        if count > rows:
            raise CorruptData(f"{self.info.path}: the page at {offset} has {count} cells of {rows} rows")
        data = self._read(offset, length, crc, "a page")
        try:
            return decode_values(kind, codec, version, data, count)
        except CorruptData as error:
            raise CorruptData(f"{self.info.path}: the page at {offset}: {error}") from error

    def cells(self, group: Group, place: int, kind: DataType, page: int) -> Column | None:
        """The cells of one column in one page of rows; None if the page has none."""
        index, rows = self.column(group, place), group.page_rows(page)
        offset, length, crc, count, codec, version, _ = index.bitmaps[page]
        if not index.pages[page][1]:
            return None
        values = self._values(kind, index.pages[page], rows)
        if not length:
            if len(values) != rows:
                raise CorruptData(f"{self.info.path}: a page of {rows} rows has {len(values)} cells and no bitmap")
            return Column(kind, values)
        valid = decode_bits(codec, version, self._read(offset, length, crc, "a bitmap"), rows)
        places = np.cumsum(valid) - 1
        if count != len(values) or int(places[-1]) + 1 != count:
            raise CorruptData(f"{self.info.path}: a page of {count} cells has a bitmap of {int(places[-1]) + 1}")
        return Column(kind, values[np.maximum(places, 0)], valid)


def _unpack(packed: bytes, raw: int, path: str) -> bytes:
    if raw > INDEX_RAW_FACTOR * len(packed) + 64:
        raise CorruptData(f"{path}: {len(packed)} bytes of index cannot hold {raw}")
    try:
        return bytes(lz4.block.decompress(packed, uncompressed_size=raw))
    except lz4.block.LZ4BlockError as error:
        raise CorruptData(f"{path}: an index cannot be unpacked: {error}") from error


class GroupSource:
    """Some columns of a row group as a source of rows, less what tombstones hide (`hidden[i]` of column i)."""

    def __init__(
        self, file: ChunkFile, group: Group, wanted: Sequence[tuple[str, DataType]], hidden: Sequence[Ranges]
    ) -> None:
        self._file = file
        self._group = group
        self._wanted = wanted
        self._hidden = hidden
        self._loaded: tuple[int, Table] | None = None
        self.firsts = group.first_times[:: group.blocks_of_page]
        ends = np.minimum(np.arange(1, len(self.firsts) + 1) * group.blocks_of_page, len(group.last_times))
        self.lasts = group.last_times[ends - 1]

    def load(self, page: int) -> Table:
        """The rows of a page; the last one is remembered."""
        if self._loaded is not None and self._loaded[0] == page:
            return self._loaded[1]
        table = self._load(page)
        self._loaded = (page, table)
        return table

    def blocks(self, numbers: Int64Array, rows_max: int) -> Iterator[tuple[int, Int64Array, Column]]:
        """(how many blocks, their times, their cells) of statistics blocks of the one wanted column, ascending.

        They come page by page, pages gathered up to `rows_max` rows. Rows may be without a cell, and tombstones are
        not regarded.
        """
        group = self._group
        block_rows = group.rows_of_page // group.blocks_of_page
        some: list[tuple[int, Parts]] = []
        count = 0
        for part in np.split(numbers, np.flatnonzero(np.diff(numbers // group.blocks_of_page)) + 1):
            page = int(part[0]) // group.blocks_of_page
            parts = Parts((part - page * group.blocks_of_page) * block_rows, block_rows, group.page_rows(page))
            some.append((page, parts))
            count += parts.cells
            if count >= rows_max:
                yield self._gathered(some, count)
                some, count = [], 0
        if some:
            yield self._gathered(some, count)

    def _gathered(self, some: Sequence[tuple[int, Parts]], count: int) -> tuple[int, Int64Array, Column]:
        """As `blocks` gives it, of some blocks of some pages, `count` rows together."""
        kind, place = self._wanted[0][1], self._group.places[self._wanted[0]]
        times = np.empty(count, np.int64)
        numbers = np.empty(count, kind.dtype) if kind.is_numeric else times
        columns: list[Column] | None = None
        at = blocks = 0
        for page, parts in some:
            here = slice(at, at + parts.cells)
            self._file.some_times(self._group, page, parts, times[here])
            if columns is None and not self._file.some_cells(self._group, place, kind, page, parts, numbers[here]):
                columns = [Column(kind, numbers[:at])] if at else []
            if columns is not None:
                columns += self._cells_of(page, parts)
            at, blocks = at + parts.cells, blocks + len(parts.starts)
        return blocks, times, Column(kind, numbers) if columns is None else concat_columns(columns)

    def _cells_of(self, page: int, parts: Parts) -> list[Column]:
        key = self._wanted[0]
        column = self._file.cells(self._group, self._group.places[key], key[1], page)
        if column is None:
            raise CorruptData(f"{self._file.info.path}: a page without cells has statistics that count some")
        return [column[part] for part in parts.slices()]

    def _load(self, page: int) -> Table:
        first, last = int(self.firsts[page]), int(self.lasts[page])
        columns: list[Column | None] = []
        touched = False
        for key, hidden in zip(self._wanted, self._hidden, strict=True):
            place = self._group.places.get(key)
            if place is None or (hidden and hidden.hides(first, last)):
                columns.append(None)
                continue
            columns.append(self._file.cells(self._group, place, key[1], page))
            touched = touched or bool(hidden)
        if all(column is None for column in columns):
            return Table(np.empty(0, np.int64), [None] * len(columns))
        times = self._file.times(self._group, page)
        if touched:
            columns = [
                column if column is None or not hidden else _without(column, hidden, times)
                for column, hidden in zip(columns, self._hidden, strict=True)
            ]
        return Table(times, columns)


def _without(column: Column, hidden: Ranges, times: Int64Array) -> Column:
    dead = hidden.mask(times)
    return Column(column.type, column.values, column.mask() & ~dead) if dead.any() else column


def source_of(
    file: ChunkFile, number: int, wanted: Sequence[tuple[str, DataType]], hidden: Sequence[Ranges]
) -> GroupSource | None:
    """A row group as a source; None if it has no cell of what is wanted."""
    group = file.group(number)
    for key, ranges in zip(wanted, hidden, strict=True):
        place = group.places.get(key)
        if place is None:
            continue
        row = group.columns[place]
        if row["count"] and not (ranges and ranges.hides(int(row["first_time"]), int(row["last_time"]))):
            return GroupSource(file, group, wanted, hidden)
    return None
