"""Cutting a call into entries loses nothing, doubles nothing and lets the last value of a cell win."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.columns import Block, Column, DataType, Rows, Tablet, TextColumn, shape_of
from iotdb_cluster.data import Header, Piece, cut, deduplicate, encode_insert, split_by_partition
from iotdb_cluster.errors import CallerError
from iotdb_cluster.requests import RequestId

HEADER = Header(RequestId(1, 1, 1, 1))
NUMBERS = (DataType.INT64, DataType.DOUBLE)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    measurements = tuple(draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)))
    types = tuple(DataType.TEXT if name == "c" else DataType.INT32 for name in measurements)
    shape = shape_of(measurements, types)
    times = draw(st.lists(st.integers(-30, 30), min_size=1, max_size=12))
    device = draw(st.sampled_from(["d1", "d2"]))
    if not shape.has_text and draw(st.booleans()):
        table = np.zeros(len(times), shape.row_dtype)
        table["time"] = times
        for at in range(len(types)):
            table[f"c{at}"] = draw(st.lists(st.integers(0, 99), min_size=len(times), max_size=len(times)))
        return Rows(device, shape, table.tobytes())
    columns = []
    for kind in types:
        cell: st.SearchStrategy[Any] = st.text(max_size=40) if kind is DataType.TEXT else st.integers(0, 99)
        columns.append(Column.of(kind, draw(st.lists(st.none() | cell, min_size=len(times), max_size=len(times)))))
    return Tablet(device, shape, np.array(times, np.int64), columns)


Cells = dict[tuple[str, str, int], Any]


def play(pieces: list[Piece], into: Cells) -> int:
    """Write cell by cell, the later one winning; how many cells there were."""
    count = 0
    for piece in pieces:
        block = piece.block.to_tablet() if isinstance(piece.block, Rows) else piece.block
        for name, column in zip(block.shape.measurements, block.columns, strict=True):
            for time, cell in zip(block.times.tolist(), column.tolist(), strict=True):
                if cell is not None:
                    into[block.device, name, time] = cell
                    count += 1
    return count


@given(st.lists(blocks(), max_size=5), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_partitions_are_exact_and_point_back(call: list[Block], interval: int) -> None:
    found = split_by_partition(call, interval)
    expected: Cells = {}
    together: Cells = {}
    total = play([Piece(block, 0) for block in call], expected)
    seen = 0
    for partition, pieces in found.items():
        seen += play(pieces, together)
        for piece in pieces:
            block = piece.block.to_tablet() if isinstance(piece.block, Rows) else piece.block
            assert set((block.times // interval).tolist()) == {partition}
            original = call[piece.origin]
            source = original.to_tablet() if isinstance(original, Rows) else original
            rows = np.arange(len(source)) if piece.rows is None else piece.rows
            assert source.times[rows].tolist() == block.times.tolist()
    assert together == expected
    assert seen == total


@given(st.lists(blocks(), max_size=6))
@settings(max_examples=120, deadline=None)
def test_last_cell_wins_and_is_alone(call: list[Block]) -> None:
    pieces = [Piece(block, at) for at, block in enumerate(call)]
    expected: Cells = {}
    play(pieces, expected)
    thinner = deduplicate(pieces)
    for order in (thinner, thinner[::-1]):
        found: Cells = {}
        assert play(order, found) == len(expected)
        assert found == expected
    for piece in thinner:
        if not isinstance(piece.block, Rows):
            assert np.stack([column.mask() for column in piece.block.columns]).any(axis=0).all() or any(
                piece is one for one in pieces
            )


@given(st.lists(blocks(), min_size=1, max_size=6), st.integers(260, 900))
@settings(max_examples=120, deadline=None)
def test_entries_are_small_and_in_any_order_the_same(call: list[Block], bytes_max: int) -> None:
    expected: Cells = {}
    play([Piece(block, 0) for block in call], expected)
    entries = cut([Piece(block, at) for at, block in enumerate(call)], bytes_max)
    for order in (entries, entries[::-1]):
        found: Cells = {}
        for entry in order:
            assert len(encode_insert(HEADER, [piece.block for piece in entry])) <= bytes_max
            play(entry, found)
        assert found == expected


def test_the_common_tablet_passes_untouched() -> None:
    shape = shape_of(("a", "b"), NUMBERS)
    tablet = Tablet("d", shape, np.arange(1000), [Column(kind, np.zeros(1000, kind.dtype)) for kind in NUMBERS])
    [(partition, [piece])] = split_by_partition([tablet], 604_800_000).items()
    assert (partition, piece.block, piece.rows) == (0, tablet, None)
    assert piece.block is tablet
    assert deduplicate([piece])[0] is piece
    assert cut([piece]) == [[piece]]


def test_negative_times_are_floored() -> None:
    shape = shape_of(("a",), (DataType.INT32,))
    tablet = Tablet("d", shape, np.array([-1, 0, 99, 100, -100, -101]), [Column.of(DataType.INT32, [1, 2, 3, 4, 5, 6])])
    found = split_by_partition([tablet], 100)
    assert {
        partition: pieces[0].rows.tolist() for partition, pieces in found.items() if pieces[0].rows is not None
    } == {
        -1: [0, 4],
        0: [1, 2],
        1: [3],
        -2: [5],
    }
    assert list(found) == [-1, 0, 1, -2]


def test_a_row_that_no_entry_can_carry() -> None:
    shape = shape_of(("t",), (DataType.TEXT,))
    tablet = Tablet("d", shape, np.arange(2), [Column(DataType.TEXT, TextColumn.of([b"x", b"y" * 2000]))])
    with pytest.raises(CallerError, match="takes 2"):
        cut([Piece(tablet, 0)], 1000)
