"""Result-set bytes: columns of a block packed with numpy, never cell by cell.

A value list holds the cells that are not null, big-endian, a TEXT as its 4 byte length and its bytes; a bitmap has a
bit a row, the most significant first, 1 where there is a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iotdb_cluster.columns import Column, DataType, Int64Array, RowBatch, TextColumn
from iotdb_cluster.limits import RESPONSE_BYTES_MAX

__all__ = [
    "PackedColumns",
    "PackedRows",
    "is_long",
    "pack_aligned",
    "pack_columns",
    "rows_within",
    "split_columns",
    "split_rows",
]

INLINE_BYTES_MAX = 1 << 20  # of the values that are packed on the loop
INLINE_COLUMNS_MAX = 500  # columns that are packed on the loop
INLINE_TEXTS_MAX = 20_000  # texts that are packed on the loop
_LONG_TEXT = 64  # bytes
_ROOM = RESPONSE_BYTES_MAX - RESPONSE_BYTES_MAX // 16  # the rest is for headers and names


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The three parts of a TSQueryDataSet."""

    time: bytes
    values: list[bytes]
    bitmaps: list[bytes]


@dataclass(frozen=True, slots=True)
class PackedColumns:
    """The two parts of a TSQueryNonAlignDataSet."""

    times: list[bytes]
    values: list[bytes]


def is_long(columns: Sequence[Column]) -> bool:
    """Whether packing these columns may take milliseconds."""
    if len(columns) > INLINE_COLUMNS_MAX:
        return True
    if sum(map(_bytes_at_most, columns)) > INLINE_BYTES_MAX:
        return True
    return sum(len(column) for column in columns if column.type is DataType.TEXT) > INLINE_TEXTS_MAX


def pack_cells(column: Column) -> bytes:
    """The cells that are not null."""
    values = column.values
    if column.valid is not None:
        values = values[column.valid]
    if not isinstance(values, TextColumn):
        return np.ascontiguousarray(values, column.type.wire_dtype).tobytes()
    lengths = values.lengths
    count = len(lengths)
    start, stop = int(values.offsets[0]), int(values.offsets[-1])
    if stop - start > _LONG_TEXT * count:  # then a piece a cell costs less than a mask over all bytes
        sizes = lengths.astype(">u4").tobytes()
        pieces: list[bytes] = []
        for i, text in enumerate(values.tolist()):
            pieces += (sizes[4 * i : 4 * i + 4], text)
        return b"".join(pieces)
    heads = np.zeros(count + 1, np.int64)
    np.cumsum(lengths + 4, out=heads[1:])
    packed = np.empty(int(heads[-1]), np.uint8)
    is_text = np.ones(len(packed), np.bool_)
    places = (heads[:-1, None] + np.arange(4)).ravel()
    is_text[places] = False
    packed[places] = lengths.astype(">u4").view(np.uint8)
    packed[is_text] = np.frombuffer(values.data, np.uint8, stop - start, start) if stop > start else 0
    return packed.tobytes()


def _times(times: Int64Array) -> bytes:
    return np.ascontiguousarray(times, ">i8").tobytes()


def pack_aligned(rows: RowBatch) -> PackedRows:
    """All rows of the batch, which `split_rows` has cut to what a response may carry."""
    values = [pack_cells(column) for column in rows.columns]
    bitmaps = [np.packbits(column.mask()).tobytes() for column in rows.columns]
    return PackedRows(_times(rows.times), values, bitmaps)


def pack_columns(series: Sequence[tuple[Int64Array, Column]]) -> PackedColumns:
    """Each series' points; a series without any has empty buffers."""
    times: list[bytes] = []
    values: list[bytes] = []
    for at, column in series:
        times.append(_times(at if column.valid is None else at[column.valid]))
        values.append(pack_cells(column))
    return PackedColumns(times, values)


def _cell_bytes(column: Column) -> Int64Array:
    """int64[n]: wire bytes of each cell."""
    sizes: Int64Array
    if isinstance(column.values, TextColumn):
        sizes = column.values.lengths + 4
    else:
        sizes = np.full(len(column), column.type.width, np.int64)
    return sizes if column.valid is None else sizes * column.valid


def _bytes_at_most(column: Column) -> int:
    values = column.values
    return values.nbytes if isinstance(values, TextColumn) else len(column) * column.type.width


def rows_within(rows: RowBatch, room: int) -> int:
    """How many first rows fit into so many bytes; at least one, if there is one."""
    bits = len(rows.columns) // 8 + 1  # bytes of bitmaps a row; each column's last byte may be filled by one row
    room -= len(rows.columns)
    if len(rows) * (8 + bits) + sum(map(_bytes_at_most, rows.columns)) <= room:
        return len(rows)
    sizes = np.full(len(rows), 8 + bits, np.int64)
    for column in rows.columns:
        sizes += _cell_bytes(column)
    return max(1, int(np.searchsorted(np.cumsum(sizes), room, "right")))


def split_rows(rows: RowBatch, count: int, room: int = _ROOM) -> tuple[RowBatch, RowBatch | None]:
    """(at most `count` first rows that fit into one response, the rest or None)"""
    kept = min(count, rows_within(rows, room))
    if kept >= len(rows):
        return rows, None
    first, rest = slice(0, kept), slice(kept, None)
    return (
        RowBatch(rows.times[first], [column[first] for column in rows.columns]),
        RowBatch(rows.times[rest], [column[rest] for column in rows.columns]),
    )


Series = list[tuple[Int64Array, Column]]


def split_columns(series: Series, count: int, room: int = _ROOM) -> tuple[Series, Series | None]:
    """(at most `count` first points of each series that together fit into one response, the rest or None)"""
    kept = min(count, max((len(times) for times, _ in series), default=0))
    sizes = [np.cumsum(_cell_bytes(column) + 8) for _, column in series]
    while kept > 1 and sum(int(size[min(kept, len(size)) - 1]) for size in sizes if len(size)) > room:
        kept //= 2
    if all(len(times) <= kept for times, _ in series):
        return series, None
    first, rest = slice(0, kept), slice(kept, None)
    return (
        [(times[first], column[first]) for times, column in series],
        [(times[rest], column[rest]) for times, column in series],
    )
