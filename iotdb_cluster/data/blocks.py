"""The bytes of an INSERT's blocks.

Big-endian, behind the entry's header:

    u16 shapes, u32 blocks
    for each shape: u32 length and the shape's text: u16 columns, u8 type of each, then each name (u16 length, UTF-8)
    for each block: u8 flags, u16 length of the device's name, u16 shape, u32 rows, the device's name (UTF-8), then
      packed rows (flag 1):  rows as the client sent them (`Shape.row_dtype`)
      tablet:                u8 flags of each column, i64 times, and for each column its values (TEXT: u32 length of
                             each cell, then the texts) and, where it has nulls, a bitmap of its valid cells

Block flag 2 and column flag 1 say that the times, or the values, are little-endian: arrays keep the order of bytes they
came with. Column flag 2 says that a bitmap follows (first row: highest bit of the first byte).

The same few shapes come again and again: their text is looked up in a bounded table, so that names are decoded once.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

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
    TextColumn,
    shape_of,
)
from iotdb_cluster.errors import CorruptData, check

__all__ = ["block_overhead", "decode_blocks", "encode_blocks", "encoded_bytes"]

SHAPES_MAX = 65_536  # remembered texts of shapes; emptied when full
_COUNTS = struct.Struct(">HI")
_SHAPE = struct.Struct(">I")
_COLUMNS = struct.Struct(">H")
_BLOCK = struct.Struct(">BHHI")
_PACKED, _TIMES_LITTLE = 1, 2
_LITTLE, _BITMAP = 1, 2
_TIME_WIRE = np.dtype(">i8")
_TIME_LITTLE = np.dtype("<i8")
_LENGTH_WIRE = np.dtype(">u4")
_WIRE: dict[DataType, np.dtype[Any]] = {kind: kind.wire_dtype for kind in DataType if kind is not DataType.TEXT}
_LITTLES: dict[DataType, np.dtype[Any]] = {kind: np.dtype(dtype.str.replace(">", "<")) for kind, dtype in _WIRE.items()}


class _Form:
    """A shape and what decoding needs of it, worked out once."""

    __slots__ = ("codes", "columns", "has_boolean", "has_text", "pick", "row_bytes", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.has_text = shape.has_text
        self.has_boolean = DataType.BOOLEAN in shape.types
        self.columns = [(kind, _WIRE.get(kind), _LITTLES.get(kind), kind.width) for kind in shape.types]
        self.row_bytes = 0 if self.has_text else shape.row_dtype.itemsize
        places, at = [], 8
        for kind in shape.types:
            places.append(at)
            at += 1 + kind.width
        self.pick = itemgetter(*places, 0)  # the type bytes of a packed row, and one byte more: always a tuple
        self.codes = tuple(map(int, shape.types))


_text_of_shape: dict[Shape, bytes] = {}
_form_of_text: dict[bytes, _Form] = {}


def _shape_text(shape: Shape) -> bytes:
    text = _text_of_shape.get(shape)
    if text is None:
        names = [name.encode() for name in shape.measurements]
        check(len(names) == len(shape.types), "%d measurements have %d types", len(names), len(shape.types))
        parts = [_COLUMNS.pack(len(names)), bytes(shape.types)]
        parts.extend(_COLUMNS.pack(len(name)) + name for name in names)
        text = b"".join(parts)
        if len(_text_of_shape) >= SHAPES_MAX:
            _text_of_shape.clear()
        _text_of_shape[shape] = text
    return text


def _read_shape(text: bytes) -> _Form:
    known = _form_of_text.get(text)
    if known is not None:
        return known
    try:
        (columns,) = _COLUMNS.unpack_from(text)
        at = 2 + columns
        types = tuple(DataType(code) for code in text[2:at])
        names = []
        for _ in range(columns):
            (length,) = _COLUMNS.unpack_from(text, at)
            name = text[at + 2 : at + 2 + length]
            at += 2 + length
            names.append(name.decode())
    except (struct.error, ValueError) as error:
        raise CorruptData(f"the columns of an insert cannot be read: {error}") from None
    if at != len(text) or len(types) != columns:
        raise CorruptData(f"the columns of an insert take {at} bytes of {len(text)}")
    if len(set(names)) != columns or not columns:
        raise CorruptData("the columns of an insert are none, or one stands there twice")
    form = _Form(shape_of(tuple(names), types))
    if len(_form_of_text) >= SHAPES_MAX:
        _form_of_text.clear()
    _form_of_text[text] = form
    return form


# --- to bytes ---------------------------------------------------------------------------------------------------------


def encode_blocks(blocks: Sequence[Block], parts: list[Any]) -> None:
    """Append the buffers of the blocks to `parts`; arrays that lie in one piece are not copied.

    InvariantViolation where a block is empty, or has columns of different lengths.
    """
    numbers: dict[int, int] = {}
    shapes: list[bytes] = []
    body: list[Any] = []
    for block in blocks:
        shape = block.shape
        number = numbers.get(id(shape))
        if number is None:
            number = numbers[id(shape)] = len(shapes)
            shapes.append(_shape_text(shape))
        device = block.device.encode()
        if isinstance(block, Rows):
            rows = len(block)
            check(rows, "an insert has a block without rows")
            body.append(_BLOCK.pack(_PACKED, len(device), number, rows))
            body.append(device)
            body.append(block.packed)
        else:
            _encode_tablet(block, device, number, body)
    check(len(shapes) < 65_536, "an insert has %d shapes", len(shapes))
    parts.append(_COUNTS.pack(len(shapes), len(blocks)))
    for text in shapes:
        parts.append(_SHAPE.pack(len(text)))
        parts.append(text)
    parts.extend(body)


def _encode_tablet(block: Tablet, device: bytes, number: int, body: list[Any]) -> None:
    rows = len(block.times)
    check(rows, "an insert has a block without rows")
    flags = bytearray(len(block.columns))
    values: list[Any] = []
    for at, column in enumerate(block.columns):
        check(len(column.values) == rows, "a column of %d cells in a tablet of %d rows", len(column.values), rows)
        cells = column.values
        if isinstance(cells, TextColumn):
            values.append(cells.lengths.astype(_LENGTH_WIRE))
            values.append(memoryview(cells.data)[int(cells.offsets[0]) : int(cells.offsets[-1])])
        else:
            if _is_little(cells.dtype):
                flags[at] = _LITTLE
            values.append(np.ascontiguousarray(cells))
        if column.valid is not None:
            flags[at] |= _BITMAP
            values.append(np.packbits(column.valid))
    times = np.ascontiguousarray(block.times)
    form = _TIMES_LITTLE if _is_little(times.dtype) else 0
    body.append(_BLOCK.pack(form, len(device), number, rows))
    body.append(device)
    body.append(flags)
    body.append(times)
    body.extend(values)


def _is_little(dtype: np.dtype[Any]) -> bool:
    order = dtype.byteorder
    return order == "<" or (order == "=" and sys.byteorder == "little")


def block_overhead(block: Block) -> int:
    """Bytes of a block that do not grow with its rows, its shape's text included."""
    return _BLOCK.size + 4 * len(block.device) + _SHAPE.size + len(_shape_text(block.shape)) + len(block.shape) * 2


def encoded_bytes(block: Block) -> int:
    """An upper bound of what the block adds to an entry, close to the truth."""
    size = block_overhead(block)
    if isinstance(block, Rows):
        return size + len(block.packed)
    rows = len(block.times)
    size += 8 * rows
    for column in block.columns:
        cells = column.values
        if isinstance(cells, TextColumn):
            size += 4 * rows + int(cells.offsets[-1]) - int(cells.offsets[0])
        else:
            size += column.type.width * rows
        if column.valid is not None:
            size += (rows + 7) // 8
    return size


# --- from bytes -------------------------------------------------------------------------------------------------------


def decode_blocks(payload: bytes, at: int, strict: bool) -> list[Block]:
    """The blocks that begin at `at` and fill the rest of `payload`, as views on it; CorruptData where they do not."""
    try:
        shape_count, block_count = _COUNTS.unpack_from(payload, at)
        at += _COUNTS.size
        forms: list[_Form] = []
        for _ in range(shape_count):
            (length,) = _SHAPE.unpack_from(payload, at)
            at += 4
            if at + length > len(payload):
                raise CorruptData("an insert is cut within the names of its columns")
            forms.append(_read_shape(payload[at : at + length]))
            at += length
        blocks: list[Block] = []
        view, end = memoryview(payload), len(payload)
        for _ in range(block_count):
            flags, device_length, number, rows = _BLOCK.unpack_from(payload, at)
            at += _BLOCK.size
            device = payload[at : at + device_length].decode()
            at += device_length
            form = forms[number]
            if flags > 3 or not rows:
                raise CorruptData(f"an insert has a block of {rows} rows with flags {flags}")
            if flags & _PACKED:
                if form.has_text:
                    raise CorruptData("an insert has packed rows with a text")
                size = form.row_bytes * rows
                if at + size > end:
                    raise CorruptData(f"an insert is cut within {rows} packed rows")
                block = Rows(device, form.shape, view[at : at + size])
                if strict:
                    _look_at_rows(form, block)
                blocks.append(block)
                at += size
            else:
                tablet, at = _decode_tablet(payload, at, device, form, rows, flags)
                if strict:
                    _look_at_cells(tablet)
                blocks.append(tablet)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise CorruptData(f"an insert cannot be read: {error}") from None
    if at != len(payload):
        raise CorruptData(f"an insert has {len(payload) - at} bytes behind its end")
    return blocks


def _decode_tablet(
    payload: bytes, at: int, device: str, form: _Form, rows: int, block_flags: int
) -> tuple[Tablet, int]:
    count = len(form.columns)
    flags = payload[at : at + count]
    at += count
    end = len(payload)
    if at + 8 * rows > end or max(flags) > 3:
        raise CorruptData(f"an insert is cut within {rows} times, or has unknown flags")
    times = np.frombuffer(payload, _TIME_LITTLE if block_flags & _TIMES_LITTLE else _TIME_WIRE, rows, at)
    at += 8 * rows
    columns: list[Column] = []
    for (kind, wire, little, width), flag in zip(form.columns, flags, strict=True):
        if wire is None:
            text, at = _decode_text(payload, at, rows)
            column = Column(kind, text)
        else:
            size = width * rows
            if at + size > end:
                raise CorruptData(f"an insert is cut within {rows} values of type {kind.name}")
            column = Column(kind, np.frombuffer(payload, little if flag & _LITTLE else wire, rows, at))
            at += size
        if flag & _BITMAP:
            size = (rows + 7) // 8
            if at + size > end:
                raise CorruptData(f"an insert is cut within the bitmap of {rows} cells")
            bits = np.frombuffer(payload, np.uint8, size, at)
            valid: BoolArray = np.unpackbits(bits, count=rows).view(np.bool_)
            column.valid = valid
            at += size
        columns.append(column)
    return Tablet(device, form.shape, times, columns), at


def _decode_text(payload: bytes, at: int, rows: int) -> tuple[TextColumn, int]:
    if at + 4 * rows > len(payload):
        raise CorruptData(f"an insert is cut within the lengths of {rows} texts")
    offsets: Int64Array = np.zeros(rows + 1, np.int64)
    np.cumsum(np.frombuffer(payload, _LENGTH_WIRE, rows, at), out=offsets[1:])
    at += 4 * rows
    size = int(offsets[-1])
    if at + size > len(payload):
        raise CorruptData(f"an insert is cut within {rows} texts of {size} bytes")
    return TextColumn(offsets, memoryview(payload)[at : at + size]), at + size


def _look_at_rows(form: _Form, block: Rows) -> None:
    """CorruptData where a packed row's type bytes are not those of its columns, or a boolean is neither 0 nor 1."""
    view, width, pick, codes = memoryview(block.packed), form.row_bytes, form.pick, form.codes
    for at in range(0, len(view), width):
        if pick(view[at : at + width])[:-1] != codes:
            raise CorruptData(f"a packed row of {block.device} names other types than its columns have")
    if form.has_boolean:
        _look_at_cells(block.to_tablet())


def _look_at_cells(block: Tablet) -> None:
    """CorruptData where a boolean is neither 0 nor 1, or a text no UTF-8."""
    for name, column in zip(block.shape.measurements, block.columns, strict=True):
        cells = column.values
        if isinstance(cells, TextColumn):
            _look_at_texts(name, cells)
        elif column.type is DataType.BOOLEAN and len(cells) and int(np.max(cells.view(np.uint8))) > 1:
            raise CorruptData(f"a value of {name} is neither true nor false")


def _look_at_texts(name: str, cells: TextColumn) -> None:
    data = cells.packed()
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise CorruptData(f"a text of {name} is not UTF-8: {error}") from None
    starts = cells.offsets[:-1] - cells.offsets[0]
    bytes_at = np.frombuffer(data, np.uint8)[starts[starts < len(data)]]
    if ((bytes_at & 0xC0) == 0x80).any():  # the whole is UTF-8, yet a cell begins within a character
        raise CorruptData(f"a text of {name} is not UTF-8: it begins within a character")
