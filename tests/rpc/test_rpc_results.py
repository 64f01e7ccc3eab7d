"""Packed blocks against a cell-by-cell packing."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.columns import Column, DataType, RowBatch, TextColumn
from iotdb_cluster.rpc.results import pack_aligned, pack_columns, rows_within, split_columns, split_rows

FORMATS = {
    DataType.INT32: ">i",
    DataType.INT64: ">q",
    DataType.FLOAT: ">f",
    DataType.DOUBLE: ">d",
    DataType.BOOLEAN: ">?",
}
CELLS: dict[DataType, st.SearchStrategy[Any]] = {
    DataType.BOOLEAN: st.booleans(),
    DataType.INT32: st.integers(-(2**31), 2**31 - 1),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.FLOAT: st.floats(width=32),
    DataType.DOUBLE: st.floats(),
    DataType.TEXT: st.text(max_size=9).map(str.encode) | st.binary(min_size=200, max_size=300),
}


@st.composite
def batches(draw: st.DrawFn) -> RowBatch:
    count = draw(st.integers(0, 20))
    times = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count))
    columns = []
    for kind in draw(st.lists(st.sampled_from(list(DataType)), max_size=4)):
        cells = draw(st.lists(st.none() | CELLS[kind], min_size=count, max_size=count))
        columns.append(Column.of(kind, cells))
    return RowBatch(np.array(times, np.int64), columns)


def slow(column: Column) -> tuple[bytes, bytes]:
    data, bits = b"", ""
    for cell in column.tolist():
        bits += "0" if cell is None else "1"
        if cell is None:
            continue
        data += (
            struct.pack(">i", len(cell)) + cell
            if column.type is DataType.TEXT
            else struct.pack(FORMATS[column.type], cell)
        )
    bits += "0" * (-len(bits) % 8)
    return data, bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


@settings(max_examples=200, deadline=None)
@given(rows=batches(), swapped=st.booleans())
def test_aligned(rows: RowBatch, swapped: bool) -> None:
    if swapped:  # columns may come in the wire's byte order, and from the middle of others
        for column in rows.columns:
            if not isinstance(column.values, TextColumn):
                column.values = column.values.astype(column.type.wire_dtype)
        rows = RowBatch(rows.times[1:], [column[1:] for column in rows.columns])
    packed = pack_aligned(rows)
    assert packed.time == struct.pack(f">{len(rows)}q", *rows.times.tolist())
    assert list(zip(packed.values, packed.bitmaps, strict=True)) == [slow(column) for column in rows.columns]


@settings(max_examples=100, deadline=None)
@given(rows=batches())
def test_not_aligned(rows: RowBatch) -> None:
    packed = pack_columns([(rows.times, column) for column in rows.columns])
    for times, values, column in zip(packed.times, packed.values, rows.columns, strict=True):
        assert values == slow(column)[0]
        kept = rows.times[column.mask()].tolist()
        assert times == struct.pack(f">{len(kept)}q", *kept)


@settings(max_examples=200, deadline=None)
@given(rows=batches(), room=st.integers(0, 400), count=st.integers(1, 30))
def test_split_rows(rows: RowBatch, room: int, count: int) -> None:
    seen: list[Any] = []
    rest: RowBatch | None = rows
    while rest is not None:
        first, rest = split_rows(rest, count, room)
        packed = pack_aligned(first)
        size = sum(map(len, [packed.time, *packed.values, *packed.bitmaps]))
        assert len(first) <= count
        assert size <= room or len(first) <= 1
        if len(rows):
            assert len(first) >= 1
        seen += zip(first.times.tolist(), *(column.tolist() for column in first.columns), strict=True)
    whole = zip(rows.times.tolist(), *(column.tolist() for column in rows.columns), strict=True)
    assert repr(seen) == repr(list(whole))


def test_bitmaps_count() -> None:
    rows = RowBatch(np.arange(2), [Column.nulls(DataType.INT32, 2)] * 3)
    assert [len(part) for part in split_rows(rows, 2, 18) if part is not None] == [1, 1]


def test_room_is_used() -> None:
    rows = RowBatch(np.arange(1000), [Column(DataType.INT64, np.arange(1000))])
    assert rows_within(rows, 10**6) == 1000
    assert 90 <= rows_within(rows, 17 * 100) <= 100


@settings(max_examples=100, deadline=None)
@given(rows=batches(), room=st.integers(0, 300), count=st.integers(1, 30))
def test_split_columns(rows: RowBatch, room: int, count: int) -> None:
    series = [(rows.times[i:], column[i:]) for i, column in enumerate(rows.columns)]
    seen: list[list[Any]] = [[] for _ in series]
    rest: Any = series
    while rest is not None:
        first, rest = split_columns(rest, count, room)
        assert len(first) == len(series)
        for i, (times, column) in enumerate(first):
            assert len(times) <= count
            seen[i] += zip(times.tolist(), column.tolist(), strict=True)
    assert repr(seen) == repr([list(zip(times.tolist(), column.tolist(), strict=True)) for times, column in series])
