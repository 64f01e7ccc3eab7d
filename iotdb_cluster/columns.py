"""Columns of values: the form in which points travel through every room.

A column is a pair (values, valid). `values` is a numpy array of the type's dtype, or a `TextColumn`; `valid` is
bool[n], or None where every cell holds a value. Cells that are not valid hold anything.

Writes arrive as `Tablet` (column by column) or `Rows` (packed rows of a fixed width), both for one device, and keep the
client's own bytes: their arrays may be big-endian views. Arrays that leave storage are native and contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

__all__ = [
    "Block",
    "BoolArray",
    "Column",
    "Compressor",
    "DataType",
    "Encoding",
    "Int64Array",
    "RowBatch",
    "Rows",
    "Shape",
    "Tablet",
    "TextColumn",
    "Values",
    "concat_columns",
    "concat_values",
    "native",
    "shape_of",
]

Array: TypeAlias = npt.NDArray[Any]
Int64Array: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


class DataType(IntEnum):
    """Value types; the numbers are those of the client protocol."""

    BOOLEAN = 0
    INT32 = 1
    INT64 = 2
    FLOAT = 3
    DOUBLE = 4
    TEXT = 5

    @property
    def dtype(self) -> np.dtype[Any]:
        """The native numpy type of a cell; TEXT has none and raises KeyError."""
        return _NATIVE[self]

    @property
    def wire_dtype(self) -> np.dtype[Any]:
        """The big-endian type of a cell on the wire; TEXT has none and raises KeyError."""
        return _WIRE[self]

    @property
    def width(self) -> int:
        """Bytes of a cell; 0 for TEXT."""
        return 0 if self is DataType.TEXT else _NATIVE[self].itemsize

    @property
    def is_numeric(self) -> bool:
        return self in (DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.DOUBLE)


_NATIVE: dict[DataType, np.dtype[Any]] = {
    DataType.BOOLEAN: np.dtype(np.bool_),
    DataType.INT32: np.dtype(np.int32),
    DataType.INT64: np.dtype(np.int64),
    DataType.FLOAT: np.dtype(np.float32),
    DataType.DOUBLE: np.dtype(np.float64),
}
_WIRE: dict[DataType, np.dtype[Any]] = {
    kind: dtype.newbyteorder(">") if dtype.itemsize > 1 else dtype for kind, dtype in _NATIVE.items()
}


class Encoding(IntEnum):
    """Declared encodings; remembered and shown, and RLE and TS_2DIFF decide how floating numbers are read."""

    PLAIN = 0
    PLAIN_DICTIONARY = 1
    RLE = 2
    DIFF = 3
    TS_2DIFF = 4
    BITMAP = 5
    GORILLA_V1 = 6
    REGULAR = 7
    GORILLA = 8


class Compressor(IntEnum):
    """Declared compressors; remembered and shown."""

    UNCOMPRESSED = 0
    SNAPPY = 1
    GZIP = 2
    LZO = 3
    SDT = 4
    PAA = 5
    PLA = 6
    LZ4 = 7


LONG_TEXT = 64  # bytes: longer texts are moved one by one


class TextColumn:
    """Texts as one byte string and offsets: cell i is `data[offsets[i]:offsets[i + 1]]` (UTF-8).

    Takes the index forms that the other arrays take, so that code on columns need not tell them apart.
    """

    __slots__ = ("data", "offsets")

    def __init__(self, offsets: Int64Array, data: bytes | bytearray | memoryview) -> None:
        self.offsets = offsets  # int64[n + 1], ascending; need not start at 0
        self.data = data

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> TextColumn:
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
        return cls(offsets, b"".join(texts))

    @classmethod
    def empty(cls) -> TextColumn:
        return cls(np.zeros(1, np.int64), b"")

    @classmethod
    def full(cls, count: int, text: bytes) -> TextColumn:
        return cls(np.arange(count + 1, dtype=np.int64) * len(text), text * count)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64Array:
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        return int(self.offsets[-1] - self.offsets[0]) + self.offsets.nbytes

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice | Array) -> TextColumn: ...
    def __getitem__(self, index: int | slice | Array) -> bytes | TextColumn:
        if isinstance(index, int | np.integer):
            at = int(index) + (len(self) if index < 0 else 0)
            return bytes(self.data[int(self.offsets[at]) : int(self.offsets[at + 1])])
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return TextColumn(self.offsets[start : max(start, stop) + 1], self.data)
            return self._take(np.arange(start, stop, step))
        if index.dtype == np.bool_:
            return self._take(np.flatnonzero(index))
        return self._take(index)

    def _take(self, where: Array) -> TextColumn:
        lengths = self.lengths[where]
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if offsets[-1] > LONG_TEXT * len(lengths):  # then a piece a cell costs less than an index a byte
            data = memoryview(self.data)
            lows, highs = self.offsets[:-1][where].tolist(), self.offsets[1:][where].tolist()
            return TextColumn(offsets, b"".join([data[low:high] for low, high in zip(lows, highs, strict=True)]))
        source = np.repeat(self.offsets[:-1][where] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TextColumn(offsets, np.frombuffer(self.data, np.uint8)[source].tobytes())

    def packed(self) -> bytes:
        """The bytes of all cells, one after another."""
        return bytes(self.data[int(self.offsets[0]) : int(self.offsets[-1])])

    def tolist(self) -> list[bytes]:
        bounds = (self.offsets - self.offsets[0]).tolist()
        data = self.packed()
        return [data[low:high] for low, high in pairwise(bounds)]

    def equal_to(self, text: bytes) -> BoolArray:
        """bool[n]: which cells are this text."""
        same: BoolArray = self.lengths == len(text)
        where = np.flatnonzero(same)
        if len(text) > LONG_TEXT:
            data, starts = memoryview(self.data), self.offsets[:-1][where].tolist()
            same[where] = np.array([data[low : low + len(text)] == text for low in starts], np.bool_)
        elif len(text) and len(where):
            at = self.offsets[:-1][where][:, None] + np.arange(len(text))
            cells = np.frombuffer(self.data, np.uint8)[at]
            same[where] = (cells == np.frombuffer(text, np.uint8)).all(axis=1)
        return same


Values: TypeAlias = Array | TextColumn


def native(values: Values) -> Values:
    """The same values in the machine's byte order and contiguous."""
    if isinstance(values, TextColumn):
        return values
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def concat_values(parts: Sequence[Values]) -> Values:
    """The parts, all of one type, one after another (at least one part)."""
    if isinstance(parts[0], TextColumn):
        texts = [part for part in parts if isinstance(part, TextColumn)]
        lengths = np.concatenate([part.lengths for part in texts])
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return TextColumn(offsets, b"".join(part.packed() for part in texts))
    return np.concatenate(list(parts))


@dataclass(slots=True)
class Column:
    """`values[n]` and `valid: bool[n]` (None: every cell holds a value) of one type."""

    type: DataType
    values: Values
    valid: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | Array) -> Column:
        return Column(self.type, self.values[index], None if self.valid is None else self.valid[index])

    @classmethod
    def nulls(cls, kind: DataType, count: int) -> Column:
        values: Values = TextColumn.full(count, b"") if kind is DataType.TEXT else np.zeros(count, kind.dtype)
        return cls(kind, values, np.zeros(count, np.bool_))

    @classmethod
    def of(cls, kind: DataType, cells: Sequence[Any]) -> Column:
        """From Python values, None for null; texts as bytes or str. For small columns and tests."""
        valid = np.fromiter((cell is not None for cell in cells), np.bool_, len(cells))
        if kind is DataType.TEXT:
            texts = [cell.encode() if isinstance(cell, str) else cell or b"" for cell in cells]
            return cls(kind, TextColumn.of(texts), None if valid.all() else valid)
        values = np.array([0 if cell is None else cell for cell in cells], kind.dtype)
        return cls(kind, values, None if valid.all() else valid)

    def mask(self) -> BoolArray:
        """bool[n]: which cells hold a value."""
        return np.ones(len(self), np.bool_) if self.valid is None else self.valid

    def tolist(self) -> list[Any]:
        """Python values, None for null, texts as bytes. For small columns and tests."""
        cells = self.values.tolist()
        if self.valid is None:
            return list(cells)
        return [cell if there else None for cell, there in zip(cells, self.valid.tolist(), strict=True)]


def concat_columns(parts: Sequence[Column]) -> Column:
    """The parts, all of one type, one after another (at least one part)."""
    valid = None
    if any(part.valid is not None for part in parts):
        valid = np.concatenate([part.mask() for part in parts])
    return Column(parts[0].type, concat_values([part.values for part in parts]), valid)


@dataclass(frozen=True)
class Shape:
    """The measurements of a write, in its order, and their types. Get one from `shape_of`, which shares them."""

    measurements: tuple[str, ...]
    types: tuple[DataType, ...]

    def __len__(self) -> int:
        return len(self.measurements)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.measurements, self.types))

    @property
    def has_text(self) -> bool:
        return DataType.TEXT in self.types

    @cached_property
    def row_dtype(self) -> np.dtype[Any]:
        """A packed row: time '>i8', then for each column i its type byte and value, field f'c{i}' (big-endian).

        That is the client's own layout of a typed record behind its time. TEXT has no fixed width: KeyError.
        """
        offsets, at = [0], 8
        for kind in self.types:
            offsets.append(at + 1)
            at += 1 + kind.wire_dtype.itemsize
        return np.dtype(
            {
                "names": ["time", *(f"c{i}" for i in range(len(self.types)))],
                "formats": [">i8", *(kind.wire_dtype for kind in self.types)],
                "offsets": offsets,
                "itemsize": at,
            }
        )


@lru_cache(maxsize=65_536)
def shape_of(measurements: tuple[str, ...], types: tuple[DataType, ...]) -> Shape:
    """The one shared `Shape` of these columns."""
    return Shape(measurements, types)


@dataclass(slots=True)
class Tablet:
    """Rows of one device, column by column; in any order of time, a later row wins over an equal time.

    `times: int64[n]` and `columns[i].values[n]` may be big-endian views on received bytes.
    """

    device: str
    shape: Shape
    times: Int64Array
    columns: list[Column]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(slots=True)
class Rows:
    """Packed rows of one device without TEXT: `packed` is n rows of `shape.row_dtype`."""

    device: str
    shape: Shape
    packed: bytes | bytearray | memoryview

    def __len__(self) -> int:
        return len(self.packed) // self.shape.row_dtype.itemsize

    def to_tablet(self) -> Tablet:
        """The same rows column by column (strided views, big-endian)."""
        table = np.frombuffer(self.packed, self.shape.row_dtype)
        columns = [Column(kind, table[f"c{i}"]) for i, kind in enumerate(self.shape.types)]
        return Tablet(self.device, self.shape, table["time"], columns)


Block: TypeAlias = Tablet | Rows


@dataclass(slots=True)
class RowBatch:
    """Rows of a result: `times: int64[n]` and columns of n cells each."""

    times: Int64Array
    columns: list[Column]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def nbytes(self) -> int:
        """Bytes of the times and values, roughly: views of longer columns count what they show."""
        return 8 * len(self.times) + sum(
            column.values.nbytes if isinstance(column.values, TextColumn) else len(column) * column.type.width
            for column in self.columns
        )
