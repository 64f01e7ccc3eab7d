"""Value buffers of inserts -> columns: tablets stay views on the frame, typed records keep the client's bytes.

Failures of a buffer are the caller's: `CallerError`, never an exception of another kind, however the bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np

from iotdb_cluster.columns import Block, BoolArray, Column, DataType, Rows, Shape, Tablet, TextColumn, Values, shape_of
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import RPC_PLANS_MAX, TABLET_COLUMNS_MAX, TABLET_ROWS_MAX
from iotdb_cluster.rpc.handler import InsertKind, TextRow
from iotdb_cluster.rpc.wire import Buffer, Extent

__all__ = ["Insert", "RecordReader", "read_tablet"]

UNTYPED, NULL = 255, 254  # type bytes -1 and -2 of a record's value: text to be inferred; no value (0.13)
_CODES = {int(kind): kind for kind in DataType}
_WIDTH = {int(kind): kind.width for kind in DataType if kind is not DataType.TEXT}
_WIRE = {int(kind): kind.wire_dtype for kind in DataType if kind is not DataType.TEXT}
_U32 = struct.Struct(">I").unpack_from
_TIME = struct.Struct(">q").pack
_LONG_TEXT = 64  # bytes
_BOOLEAN, _TEXT = int(DataType.BOOLEAN), int(DataType.TEXT)


def _refused(message: str) -> CallerError:
    return CallerError(Status.ILLEGAL_PARAMETER, message)


@dataclass(slots=True)
class Insert:
    """A decoded insert call of `count` records or tablets.

    Part i of what `blocks` hold (a row each for records, a block each for tablets), in their order, is item
    `block_items[i]` of the client's call; `rows[i]` is item `row_items[i]`. `errors` holds the items that were refused
    here. Items found nowhere had nothing to write.
    """

    session_id: int
    kind: InsertKind
    count: int
    blocks: list[Block] = field(default_factory=list)
    block_items: list[int] = field(default_factory=list)
    rows: list[TextRow] = field(default_factory=list)
    row_items: list[int] = field(default_factory=list)
    errors: dict[int, CallerError] = field(default_factory=dict)


# --- tablets ----------------------------------------------------------------------------------------------------------

_shapes: dict[tuple[tuple[str, ...], tuple[int, ...]], Shape] = {}


def _shape(measurements: tuple[str, ...], codes: tuple[int, ...]) -> Shape:
    shape = _shapes.get((measurements, codes))
    if shape is not None:
        return shape
    if len(measurements) != len(codes):
        raise _refused(f"a tablet has {len(measurements)} measurements and {len(codes)} types")
    if not measurements:
        raise CallerError(Status.QUERY_PROCESS_ERROR, "Measurements are null")
    if len(measurements) > TABLET_COLUMNS_MAX:
        raise _refused(f"a tablet has {len(measurements)} columns, at most {TABLET_COLUMNS_MAX} are taken")
    unknown = [code for code in codes if code not in _CODES]
    if unknown:
        raise _refused(f"unknown data type {unknown[0]}")
    shape = shape_of(measurements, tuple([_CODES[code] for code in codes]))
    if len(_shapes) >= RPC_PLANS_MAX:
        _shapes.clear()
    _shapes[measurements, codes] = shape
    return shape


def read_tablet(
    frame: Buffer,
    device: str,
    measurements: tuple[str, ...],
    codes: tuple[int, ...],
    values: Extent,
    times: Extent,
    size: int,
) -> Tablet | None:
    """The tablet whose buffers lie at these places of the frame, as views on it; None if it has no rows."""
    if size == 0:
        return None
    if not 0 < size <= TABLET_ROWS_MAX:
        raise _refused(f"a tablet says that it has {size} rows, at most {TABLET_ROWS_MAX} are taken")
    if times[1] - times[0] != 8 * size:
        raise _refused(f"the times of a tablet of {size} rows have {times[1] - times[0]} bytes, not {8 * size}")
    shape = _shape(measurements, codes)
    at, stop = values
    columns: list[Column] = []
    for kind in shape.types:
        found: Values
        width = _WIDTH.get(kind)
        if width is None:
            found, at = _read_texts(frame, at, stop, size)
        else:
            after = at + width * size
            if after > stop:
                raise _refused(
                    f"the values of a tablet end within column {len(columns)} ({shape.measurements[len(columns)]}): "
                    f"{size} rows of {kind.name} need {width * size} bytes, {stop - at} are left"
                )
            if kind == _BOOLEAN:
                found = np.frombuffer(frame, np.uint8, size, at) == 1
            else:
                found = np.frombuffer(frame, _WIRE[kind], size, at)
            at = after
        columns.append(Column(kind, found))
    if at != stop:
        _read_nulls(frame, at, stop, size, columns)
    return Tablet(device, shape, np.frombuffer(frame, ">i8", size, times[0]), columns)


def _read_texts(frame: Buffer, at: int, stop: int, size: int) -> tuple[TextColumn, int]:
    """(`size` length-prefixed texts, the offset behind them)"""
    if 4 * size > stop - at:
        raise _refused(f"{size} texts of a tablet need at least {4 * size} bytes, {stop - at} are left")
    start = at
    (first,) = _U32(frame, at)
    stride = 4 + first
    if stride * size <= stop - at:  # all of one length, as codes and identifiers are
        table = np.frombuffer(frame, np.uint8, stride * size, at).reshape(size, stride)
        if (table[:, :4] == table[0, :4]).all():
            data = table[:, 4:].tobytes()
            offsets = np.arange(size + 1, dtype=np.int64) * first
            _check_texts(data, offsets)
            return TextColumn(offsets, data), at + stride * size
    heads: list[int] = []
    try:
        for _ in range(size):
            heads.append(at)
            at += 4 + _U32(frame, at)[0]
    except struct.error:
        at = stop + 1
    if at > stop:
        raise _refused(f"the values of a tablet end within text {len(heads)} of {size}")
    places = np.array(heads, np.int64) - start
    offsets = np.empty(size + 1, np.int64)
    offsets[:size] = places
    offsets[size] = at - start
    offsets -= 4 * np.arange(size + 1)
    if at - start > _LONG_TEXT * size:  # then a piece a cell costs less than a mask over all bytes
        data = b"".join([frame[low + 4 : high] for low, high in pairwise([*heads, at])])
        _check_texts(data, offsets)
        return TextColumn(offsets, data), at
    kept = np.ones(at - start, np.bool_)
    kept[(places[:, None] + np.arange(4)).ravel()] = False
    data = np.frombuffer(frame, np.uint8, at - start, start)[kept].tobytes()
    _check_texts(data, offsets)
    return TextColumn(offsets, data), at


def _check_texts(data: bytes, offsets: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    """Refuse texts that are not UTF-8: each is, if all together are and none begins within a character."""
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _refused(f"a text value is not UTF-8: {error.reason}") from None
    filled = offsets[:-1][np.diff(offsets) > 0]
    if (np.frombuffer(data, np.uint8)[filled] & 0xC0 == 0x80).any():
        raise _refused("a text value is not UTF-8: it begins within a character")


def _read_nulls(frame: Buffer, at: int, stop: int, size: int, columns: list[Column]) -> None:
    """The null bitmaps that 0.13 clients append: a flag a column, and behind a 1 its bits, lowest first, 1 = null."""
    width = size // 8 + 1
    for column in columns:
        flag = frame[at] if at < stop else -1
        at += 1
        if flag == 1 and at + width <= stop:
            bits = np.frombuffer(frame, np.uint8, width, at)
            valid: BoolArray = np.unpackbits(bits, count=size, bitorder="little") == 0
            column.valid = valid
            at += width
        elif flag != 0:
            raise _refused(f"{stop - at + 1} bytes behind the columns of a tablet are no null bitmaps")
    if at != stop:
        raise _refused(f"{stop - at} bytes are left behind the null bitmaps of a tablet")


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class _Plan:
    """How a record of these measurements and types looks: where its type bytes stand and what they are."""

    length: int
    pick: Callable[[Buffer], Any]
    types: Any
    booleans: tuple[int, ...]
    shape: Shape


def _plan(shape: Shape) -> _Plan:
    heads: list[int] = []
    at = 0
    for kind in shape.types:
        heads.append(at)
        at += 1 + kind.width
    booleans = tuple(head + 1 for head, kind in zip(heads, shape.types, strict=True) if kind is DataType.BOOLEAN)
    pick = itemgetter(*heads)
    kinds = tuple(int(kind) for kind in shape.types)
    return _Plan(at, pick, kinds if len(kinds) > 1 else kinds[0], booleans, shape)


class _Group:
    """Consecutive records of one device and shape."""

    __slots__ = ("device", "items", "records", "shape")

    def __init__(self, device: str, shape: Shape) -> None:
        self.device = device
        self.shape = shape
        self.records: list[Any] = []  # packed rows, or (time, cells) where there are texts
        self.items: list[int] = []


class RecordReader:
    """Reads the value buffers of records; remembers how the records of each list of measurements look."""

    def __init__(self) -> None:
        self._plans: dict[tuple[str, ...], list[_Plan]] = {}

    def read(
        self,
        insert: Insert,
        frame: Buffer,
        devices: list[str] | tuple[str, ...],
        measurements: list[tuple[str, ...]] | tuple[tuple[str, ...], ...],
        values: list[Extent],
        times: list[int],
    ) -> None:
        """Put all records into `insert`; its `count` is the length of the lists, which are equally long."""
        plans = self._plans
        groups: list[_Group] = []
        open_groups: dict[str, _Group] = {}  # a device's last group: only that may grow, the order of rows decides
        for item in range(insert.count):
            names, (start, stop), device = measurements[item], values[item], devices[item]
            cells = frame[start:stop]
            shape: Shape
            record: Any
            for plan in plans.get(names, ()):
                if plan.length == stop - start and plan.pick(cells) == plan.types:
                    shape = plan.shape
                    if plan.booleans:
                        cells = _mend_booleans(cells, plan.booleans)
                    record = _TIME(times[item]) + cells
                    break
            else:
                try:
                    slow = self._read_slowly(insert, item, device, names, cells, times[item])
                except CallerError as error:
                    insert.errors[item] = error
                    continue
                if slow is None:
                    continue
                shape, record = slow
            group = open_groups.get(device)
            if group is None or group.shape is not shape:
                group = open_groups[device] = _Group(device, shape)
                groups.append(group)
            group.records.append(record)
            group.items.append(item)
        for group in groups:
            insert.blocks.append(_block(group))
            insert.block_items.extend(group.items)

    def _read_slowly(
        self, insert: Insert, item: int, device: str, names: tuple[str, ...], cells: Buffer, time: int
    ) -> tuple[Shape, Any] | None:
        """(shape, record) of a record of types not met before, or with texts; None: nothing for a block."""
        if not names:
            raise CallerError(Status.QUERY_PROCESS_ERROR, "Measurements are null")
        if len(names) > TABLET_COLUMNS_MAX:
            raise _refused(f"a record has {len(names)} measurements, at most {TABLET_COLUMNS_MAX} are taken")
        codes, extents = _walk(names, cells)
        if NULL in codes:
            there = [i for i, code in enumerate(codes) if code != NULL]
            names = tuple([names[i] for i in there])
            cells = b"".join([cells[extents[i][0] : extents[i][2]] for i in there])
            if not names:
                return None
            codes, extents = _walk(names, cells)
        if UNTYPED in codes:
            insert.rows.append(_text_row(device, names, codes, extents, cells, time))
            insert.row_items.append(item)
            return None
        shape = shape_of(names, tuple([_CODES[code] for code in codes]))
        if shape.has_text:
            for code, (_, start, stop) in zip(codes, extents, strict=True):
                if code == _TEXT:
                    _text(cells, start, stop)
            return shape, (time, [cells[start:stop] for _, start, stop in extents])
        plan = _plan(shape)
        if len(self._plans) >= RPC_PLANS_MAX:
            self._plans.clear()
        known = self._plans.setdefault(names, [])
        if plan not in known:
            known.insert(0, plan)
            del known[8:]
        return shape, _TIME(time) + _mend_booleans(cells, plan.booleans)


def _walk(names: tuple[str, ...], cells: Buffer) -> tuple[list[int], list[tuple[int, int, int]]]:
    """(type bytes, for each value [offset of its type byte, of its value, behind it)) of a record's values."""
    codes: list[int] = []
    extents: list[tuple[int, int, int]] = []
    at, end = 0, len(cells)
    for name in names:
        head = at
        code = cells[at] if at < end else -1
        at += 1
        if code in (_TEXT, UNTYPED):
            start = at + 4
            at = start + (_U32(cells, at)[0] if start <= end else 0)
        else:
            width = 0 if code == NULL else _WIDTH.get(code)
            if width is None:
                if code < 0:
                    raise _refused(f"the values of a record end before measurement {name}")
                raise _refused(f"unknown data type {code - 256 if code > 127 else code} of measurement {name}")
            start = at
            at += width
        if at > end:
            raise _refused(f"the values of a record end within measurement {name}")
        codes.append(code)
        extents.append((head, start, at))
    if at != end:
        raise _refused(f"the values of a record have {end - at} bytes more than its {len(names)} measurements need")
    return codes, extents


def _text(cells: Buffer, start: int, stop: int) -> str:
    try:
        return cells[start:stop].decode()
    except UnicodeDecodeError as error:
        raise _refused(f"a text value is not UTF-8: {error.reason}") from None


def _text_row(
    device: str,
    names: tuple[str, ...],
    codes: list[int],
    extents: list[tuple[int, int, int]],
    cells: Buffer,
    time: int,
) -> TextRow:
    texts: list[str] = []
    for code, (_, start, stop) in zip(codes, extents, strict=True):
        if code in (_TEXT, UNTYPED):
            texts.append(_text(cells, start, stop))
        elif code == _BOOLEAN:
            texts.append("true" if cells[start] == 1 else "false")
        else:
            texts.append(str(np.frombuffer(cells, _WIRE[code], 1, start)[0]))
    types = tuple([_CODES.get(code) for code in codes])
    return TextRow(device, names, texts, time, types if any(kind is not None for kind in types) else None)


def _mend_booleans(cells: Buffer, places: tuple[int, ...]) -> Buffer:
    """The same bytes with true as 1 and anything else as 0."""
    if all(cells[place] <= 1 for place in places):
        return cells
    mended = bytearray(cells)
    for place in places:
        mended[place] = mended[place] == 1
    return bytes(mended)


def _block(group: _Group) -> Block:
    shape = group.shape
    if not shape.has_text:
        return Rows(group.device, shape, group.records[0] if len(group.records) == 1 else b"".join(group.records))
    times = np.array([time for time, _ in group.records], np.int64)
    columns: list[Column] = []
    for i, kind in enumerate(shape.types):
        cells = [bytes(found[i]) for _, found in group.records]
        values: Values
        if kind is DataType.TEXT:
            values = TextColumn.of(cells)
        elif kind is DataType.BOOLEAN:
            values = np.frombuffer(b"".join(cells), np.uint8) == 1
        else:
            values = np.frombuffer(b"".join(cells), kind.wire_dtype)
        columns.append(Column(kind, values))
    return Tablet(group.device, shape, times, columns)
