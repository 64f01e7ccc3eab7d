"""From the blocks of one call to entries: by time partition, without equal (series, time), then by bytes.

Everything works on whole arrays; the common call (one tablet, one partition, below 4 MB) passes through untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from iotdb_cluster.columns import Block, BoolArray, Int64Array, Rows, Tablet, TextColumn
from iotdb_cluster.data.blocks import block_overhead, encoded_bytes
from iotdb_cluster.data.entries import HEADER_BYTES
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import ENTRY_BYTES_MAX

__all__ = ["Piece", "cut", "deduplicate", "split_by_partition", "times_of"]

RowsOf: TypeAlias = Int64Array | None
_OVERHEAD = HEADER_BYTES + 6
_BLOCKS_MAX = 65_000  # blocks, hence shapes, of one entry


@dataclass(slots=True, eq=False)
class Piece:
    """A part of a call's block: `rows: int64[n]` are its rows within block `origin` of the call (None: all of them).

    After a de-duplication a cell that lost against a later one of the call is no longer valid here, and a row without
    any valid cell is gone.
    """

    block: Block
    origin: int
    rows: RowsOf = None


def times_of(block: Block) -> Int64Array:
    """The block's times, a view in its own order of bytes."""
    if isinstance(block, Rows):
        return np.frombuffer(block.packed, block.shape.row_dtype)["time"]
    return block.times


def _take(piece: Piece, where: Int64Array | slice) -> Piece:
    block = piece.block
    taken: Block
    if isinstance(block, Rows):
        if isinstance(where, slice):
            width = block.shape.row_dtype.itemsize
            start, stop, _ = where.indices(len(block))
            taken = Rows(block.device, block.shape, memoryview(block.packed)[start * width : stop * width])
        else:
            whole = np.dtype((np.void, block.shape.row_dtype.itemsize))  # with the type bytes, which are no fields
            taken = Rows(block.device, block.shape, np.frombuffer(block.packed, whole)[where].tobytes())
    else:
        taken = Tablet(block.device, block.shape, block.times[where], [column[where] for column in block.columns])
    if piece.rows is None:
        if isinstance(where, slice):
            where = np.arange(*where.indices(len(block)), dtype=np.int64)
        return Piece(taken, piece.origin, where)
    return Piece(taken, piece.origin, piece.rows[where])


# --- by time partition ------------------------------------------------------------------------------------------------


def split_by_partition(blocks: Sequence[Block], interval: int) -> dict[int, list[Piece]]:
    """The blocks by time partition (floor of time / `interval`, also below zero), rows in the call's order.

    `interval` is in the server's time units. Partitions come in the order of their first row.
    """
    found: dict[int, list[Piece]] = {}
    for origin, block in enumerate(blocks):
        times = times_of(block)
        if not len(times):
            continue
        first, last = int(times.min()) // interval, int(times.max()) // interval
        whole = Piece(block, origin)
        if first == last:
            found.setdefault(first, []).append(whole)
            continue
        partitions = np.floor_divide(times.astype(np.int64), interval)
        order = np.argsort(partitions, kind="stable")
        numbers, starts = np.unique(partitions[order], return_index=True)
        bounds = [*starts.tolist(), len(order)]
        for at in np.argsort(order[starts], kind="stable").tolist():
            rows = order[bounds[at] : bounds[at + 1]]
            found.setdefault(int(numbers[at]), []).append(_take(whole, rows.astype(np.int64)))
    return found


# --- equal series and time --------------------------------------------------------------------------------------------


def deduplicate(pieces: Sequence[Piece]) -> list[Piece]:
    """Of the points of equal series and time only the last goes on; rows of other columns stay.

    The order of `pieces`, and of the rows in each, is the call's.
    """
    by_device: dict[str, list[int]] = {}
    for at, piece in enumerate(pieces):
        by_device.setdefault(piece.block.device, []).append(at)
    result: list[Piece | None] = list(pieces)
    for places in by_device.values():
        times = [times_of(pieces[at].block) for at in places]
        if len(places) == 1 and bool((times[0][1:] > times[0][:-1]).all()):
            continue
        together = np.concatenate(times).astype(np.int64)
        if len(np.unique(together)) == len(together):
            continue
        for at, thinner in zip(places, _last_cells([pieces[at] for at in places], together), strict=True):
            result[at] = thinner
    return [piece for piece in result if piece is not None]


def _last_cells(pieces: list[Piece], times: Int64Array) -> list[Piece | None]:
    """The pieces of one device without the cells that a later one of the same series and time replaces."""
    tablets = [piece.block.to_tablet() if isinstance(piece.block, Rows) else piece.block for piece in pieces]
    starts = np.cumsum([0, *(len(tablet) for tablet in tablets)])
    holders: dict[str, list[tuple[int, int]]] = {}
    for at, tablet in enumerate(tablets):
        for column, name in enumerate(tablet.shape.measurements):
            holders.setdefault(name, []).append((at, column))
    masks: list[list[BoolArray]] = [[column.mask().copy() for column in tablet.columns] for tablet in tablets]
    for places in holders.values():
        valid = np.zeros(len(times), np.bool_)
        for at, column in places:
            valid[starts[at] : starts[at + 1]] = masks[at][column]
        where = np.flatnonzero(valid)
        order = where[np.argsort(times[where], kind="stable")]
        ordered = times[order]
        valid[order[:-1][ordered[1:] == ordered[:-1]]] = False
        for at, column in places:
            masks[at][column] = valid[starts[at] : starts[at + 1]]
    return [_masked(piece, tablet, mask) for piece, tablet, mask in zip(pieces, tablets, masks, strict=True)]


def _masked(piece: Piece, tablet: Tablet, masks: list[BoolArray]) -> Piece | None:
    table = np.stack(masks)
    if bool(table.all()):
        return piece
    columns = []
    for column, mask in zip(tablet.columns, masks, strict=True):
        columns.append(type(column)(column.type, column.values, None if bool(mask.all()) else mask))
    thinner = Piece(Tablet(tablet.device, tablet.shape, tablet.times, columns), piece.origin, piece.rows)
    alive = table.any(axis=0)
    if bool(alive.all()):
        return thinner
    where = np.flatnonzero(alive).astype(np.int64)
    return _take(thinner, where) if len(where) else None


# --- by bytes ---------------------------------------------------------------------------------------------------------


def cut(pieces: Sequence[Piece], bytes_max: int = ENTRY_BYTES_MAX) -> list[list[Piece]]:
    """The pieces of one (storage group, partition) as the contents of entries of at most `bytes_max`, by rows.

    Where one entry holds all, its rows keep their order and the later one wins when they are read. Else equal series
    and times are decided first, because nothing says in which order several entries are logged. CallerError 413 where
    a single row is too large.
    """
    if len(pieces) <= _BLOCKS_MAX and sum(encoded_bytes(piece.block) for piece in pieces) + _OVERHEAD <= bytes_max:
        return [list(pieces)] if pieces else []
    entries: list[list[Piece]] = []
    current: list[Piece] = []
    room = bytes_max - _OVERHEAD
    for piece in _small(deduplicate(pieces), bytes_max - _OVERHEAD):
        size = encoded_bytes(piece.block)
        if current and (size > room or len(current) >= _BLOCKS_MAX):
            entries.append(current)
            current = []
            room = bytes_max - _OVERHEAD
        current.append(piece)
        room -= size
    if current:
        entries.append(current)
    return entries


def _small(pieces: Iterable[Piece], bytes_max: int) -> Iterable[Piece]:
    """The pieces, those that are too large cut by rows."""
    for piece in pieces:
        if encoded_bytes(piece.block) <= bytes_max:
            yield piece
            continue
        fixed = block_overhead(piece.block)
        ends = np.cumsum(_row_bytes(piece.block))
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + bytes_max - fixed, side="right"))
            if stop == start:
                raise CallerError(
                    Status.WRITE_PROCESS_REJECT,
                    f"a row of {piece.block.device} takes {int(ends[start]) - before} bytes; the limit is {bytes_max}",
                )
            yield _take(piece, slice(start, stop))
            start = stop


def _row_bytes(block: Block) -> Int64Array:
    """int64[n]: an upper bound of the bytes of each row in an entry."""
    rows = len(block)
    if isinstance(block, Rows):
        return np.full(rows, block.shape.row_dtype.itemsize, np.int64)
    fixed = 8
    sizes = np.zeros(rows, np.int64)
    for column in block.columns:
        if isinstance(column.values, TextColumn):
            fixed += 4
            sizes += column.values.lengths
        else:
            fixed += column.type.width
        if column.valid is not None:
            fixed += 1
    return sizes + fixed
