"""The two Thrift protocols, read with every bound checked.

A frame is an object of its own (bytes or bytearray) and a reader takes (frame, offset) and gives (value, next offset).
A read beyond the end raises IndexError or struct.error, a length or count that cannot be raises `Malformed`; `guarded`
makes all of them `Malformed`. Nothing here allocates more than a small multiple of the bytes that are really there.

Types are numbered as in the binary protocol. A bool that is a struct's field has its value in the field's head in the
compact protocol: `field` then gives TRUE_FIELD or FALSE_FIELD, behind which no bytes follow.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from iotdb_cluster.limits import NESTING_DEPTH_MAX

__all__ = [
    "BINARY",
    "COMPACT",
    "Binary",
    "Buffer",
    "Compact",
    "Extent",
    "Malformed",
    "Message",
    "MessageKind",
    "Wire",
    "guarded",
    "wire_of",
]

Buffer: TypeAlias = bytes | bytearray
Extent: TypeAlias = tuple[int, int]  # [start, stop) within the frame
T = TypeVar("T")

STOP, BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST = 0, 2, 3, 4, 6, 8, 10, 11, 12, 13, 14, 15
TRUE_FIELD, FALSE_FIELD = 33, 34
TYPES = frozenset((BOOL, BYTE, DOUBLE, I16, I32, I64, STRING, STRUCT, MAP, SET, LIST))

_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from
_S32 = struct.Struct(">i").unpack_from
_S64 = struct.Struct(">q").unpack_from


class Malformed(Exception):
    """The bytes are not a message of the protocol, or not of the method's arguments."""


class MessageKind:
    CALL = 1
    REPLY = 2
    EXCEPTION = 3
    ONEWAY = 4


class Message(NamedTuple):
    """The head of a message; `body` is the offset of the arguments. `seqid` is unsigned."""

    kind: int
    name: str
    seqid: int
    body: int


class Wire(Protocol):
    """Readers of one protocol; see the module's text."""

    probe_bytes: int  # so many first bytes of a list tell most lists apart and never reach into a following value

    def __hash__(self) -> int: ...
    def message(self, frame: Buffer, at: int) -> Message: ...
    def head(self, kind: int, name: str, seqid: int) -> bytes: ...
    def field(self, frame: Buffer, at: int, last: int) -> tuple[int, int, int]: ...
    def skip(self, frame: Buffer, at: int, kind: int, depth: int) -> int: ...
    def i32(self, frame: Buffer, at: int) -> tuple[int, int]: ...
    def i64(self, frame: Buffer, at: int) -> tuple[int, int]: ...
    def text(self, frame: Buffer, at: int) -> tuple[str, int]: ...
    def blob(self, frame: Buffer, at: int) -> tuple[Extent, int]: ...
    def sequence(self, frame: Buffer, at: int, kind: int) -> tuple[int, int]: ...
    def mapping(self, frame: Buffer, at: int) -> tuple[int, int, int, int]: ...
    def texts(self, frame: Buffer, at: int) -> tuple[tuple[str, ...], int]: ...
    def i32s(self, frame: Buffer, at: int) -> tuple[tuple[int, ...], int]: ...
    def i64s(self, frame: Buffer, at: int) -> tuple[list[int], int]: ...
    def blobs(self, frame: Buffer, at: int) -> tuple[list[Extent], int]: ...
    def fixed(self, kind: int) -> int: ...


def guarded(read: Callable[[], T]) -> T:
    """What `read` gives; `Malformed` where it runs over the end of the frame or into text that is not UTF-8."""
    try:
        return read()
    except (IndexError, struct.error):
        raise Malformed("the message is cut: a value reaches beyond the end of its frame") from None
    except UnicodeDecodeError as error:
        raise Malformed(f"a text of the message is not UTF-8: {error}") from None


def wire_of(frame: Buffer, at: int) -> Wire:
    """The protocol of a frame by its first byte."""
    first = frame[at] if at < len(frame) else -1
    if first == 0x80:
        return BINARY
    if first == 0x82:
        return COMPACT
    raise Malformed(f"a frame of {len(frame) - at} bytes begins with {first}, neither strict binary nor compact Thrift")


def _too_many(count: int, frame: Buffer, at: int) -> Malformed:
    return Malformed(f"a container says that it holds {count} elements, {len(frame) - at} bytes are left")


def _too_long(length: int, frame: Buffer, at: int) -> Malformed:
    return Malformed(f"a value says that it has {length} bytes, {len(frame) - at} are left")


def _wrong_element(found: int, wanted: int) -> Malformed:
    return Malformed(f"a container has elements of type {found}, {wanted} is asked for")


class _Skipping(ABC):
    """What both protocols share: passing over a value of any type, whatever it holds."""

    _FIXED: ClassVar[dict[int, int]]

    @abstractmethod
    def field(self, frame: Buffer, at: int, last: int) -> tuple[int, int, int]: ...

    @abstractmethod
    def blob(self, frame: Buffer, at: int) -> tuple[Extent, int]: ...

    @abstractmethod
    def mapping(self, frame: Buffer, at: int) -> tuple[int, int, int, int]: ...

    @abstractmethod
    def _elements(self, frame: Buffer, at: int) -> tuple[int, int, int]: ...

    def fixed(self, kind: int) -> int:
        """Bytes of a value of that type, 0 where they vary."""
        return self._FIXED.get(kind, 0)

    def skip(self, frame: Buffer, at: int, kind: int, depth: int) -> int:
        """The offset behind a value; `depth` is that of what holds it."""
        if kind not in (STRUCT, LIST, SET, MAP):
            return self._scalar_end(frame, at, kind)
        if depth >= NESTING_DEPTH_MAX:
            raise Malformed(f"nested more than {NESTING_DEPTH_MAX} deep")
        if kind == STRUCT:
            last = 0
            while True:
                inner, last, at = self.field(frame, at, last)
                if inner == STOP:
                    return at
                at = self.skip(frame, at, inner, depth + 1)
        if kind == MAP:
            first, second, count, at = self.mapping(frame, at)
            return self._skip_many(frame, at, (first, second), count, depth)
        count, element, at = self._elements(frame, at)
        return self._skip_many(frame, at, (element,), count, depth)

    def _skip_many(self, frame: Buffer, at: int, kinds: tuple[int, ...], count: int, depth: int) -> int:
        """Behind so many elements; `_elements` and `mapping` have made sure that their bytes can be there."""
        if count and all(map(self.fixed, kinds)):
            return at + count * sum(map(self.fixed, kinds))
        for _ in range(count):
            for kind in kinds:
                at = self.skip(frame, at, kind, depth + 1)
        return at

    def _scalar_end(self, frame: Buffer, at: int, kind: int) -> int:
        if kind == STRING:
            return self.blob(frame, at)[1]
        width = self.fixed(kind)
        if not width:
            raise Malformed(f"unknown type {kind}")
        if at + width > len(frame):
            raise _too_long(width, frame, at)
        return at + width


class Binary(_Skipping):
    """The strict binary protocol."""

    probe_bytes = 16

    _FIXED: ClassVar[dict[int, int]] = {BOOL: 1, BYTE: 1, I16: 2, I32: 4, I64: 8, DOUBLE: 8}
    _LEAST: ClassVar[dict[int, int]] = {**_FIXED, STRING: 4, STRUCT: 1, MAP: 6, SET: 5, LIST: 5}

    def message(self, frame: Buffer, at: int) -> Message:
        (version,) = _U32(frame, at)
        if version & 0xFFFFFF00 != 0x80010000:
            raise Malformed(f"unknown protocol version {version:#x}")
        name, after = self.text(frame, at + 4)
        (seqid,) = _U32(frame, after)
        return Message(version & 0xFF, name, seqid, after + 4)

    def head(self, kind: int, name: str, seqid: int) -> bytes:
        text = name.encode()
        return struct.pack(f">II{len(text)}sI", 0x80010000 | kind, len(text), text, seqid)

    def field(self, frame: Buffer, at: int, last: int) -> tuple[int, int, int]:  # noqa: ARG002 - a compact field needs it
        kind = frame[at]
        if kind == 0:
            return 0, 0, at + 1
        if kind not in self._LEAST:
            raise Malformed(f"unknown type {kind}")
        return kind, frame[at + 1] << 8 | frame[at + 2], at + 3

    def i32(self, frame: Buffer, at: int) -> tuple[int, int]:
        return _S32(frame, at)[0], at + 4

    def i64(self, frame: Buffer, at: int) -> tuple[int, int]:
        return _S64(frame, at)[0], at + 8

    def blob(self, frame: Buffer, at: int) -> tuple[Extent, int]:
        start = at + 4
        stop = start + _U32(frame, at)[0]
        if stop > len(frame):
            raise _too_long(stop - start, frame, start)
        return (start, stop), stop

    def text(self, frame: Buffer, at: int) -> tuple[str, int]:
        start = at + 4
        stop = start + _U32(frame, at)[0]
        if stop > len(frame):
            raise _too_long(stop - start, frame, start)
        return frame[start:stop].decode(), stop

    def _elements(self, frame: Buffer, at: int) -> tuple[int, int, int]:
        """(count, element type, next offset)"""
        kind = frame[at]
        (count,) = _U32(frame, at + 1)
        at += 5
        if count and kind not in TYPES:
            raise Malformed(f"unknown element type {kind}")
        if count and count * self._LEAST[kind] > len(frame) - at:
            raise _too_many(count, frame, at)
        return count, kind, at

    def sequence(self, frame: Buffer, at: int, kind: int) -> tuple[int, int]:
        """(count, next offset) of a list or set of that element type."""
        count, found, at = self._elements(frame, at)
        if count and found != kind:
            raise _wrong_element(found, kind)
        return count, at

    def mapping(self, frame: Buffer, at: int) -> tuple[int, int, int, int]:
        """(key type, value type, count, next offset)"""
        first, second = frame[at], frame[at + 1]
        (count,) = _U32(frame, at + 2)
        at += 6
        if count and (first not in TYPES or second not in TYPES):
            raise Malformed(f"unknown element types {first} and {second}")
        if count and count * (self._LEAST[first] + self._LEAST[second]) > len(frame) - at:
            raise _too_many(count, frame, at)
        return first, second, count, at

    def texts(self, frame: Buffer, at: int) -> tuple[tuple[str, ...], int]:
        count, at = self.sequence(frame, at, STRING)
        found: list[str] = []
        end = len(frame)
        for _ in range(count):
            start = at + 4
            at = start + _U32(frame, at)[0]
            if at > end:
                raise _too_long(at - start, frame, start)
            found.append(frame[start:at].decode())
        return tuple(found), at

    def i32s(self, frame: Buffer, at: int) -> tuple[tuple[int, ...], int]:
        count, at = self.sequence(frame, at, I32)
        return struct.unpack_from(f">{count}i", frame, at), at + 4 * count

    def i64s(self, frame: Buffer, at: int) -> tuple[list[int], int]:
        count, at = self.sequence(frame, at, I64)
        if count == 0:
            return [], at
        return np.frombuffer(frame, ">i8", count, at).tolist(), at + 8 * count

    def blobs(self, frame: Buffer, at: int) -> tuple[list[Extent], int]:
        count, at = self.sequence(frame, at, STRING)
        found: list[Extent] = []
        end = len(frame)
        for _ in range(count):
            start = at + 4
            at = start + _U32(frame, at)[0]
            if at > end:
                raise _too_long(at - start, frame, start)
            found.append((start, at))
        return found, at


class Compact(_Skipping):
    """The compact protocol."""

    probe_bytes = 6

    _TYPES: ClassVar[dict[int, int]] = {
        1: BOOL,
        2: BOOL,
        3: BYTE,
        4: I16,
        5: I32,
        6: I64,
        7: DOUBLE,
        8: STRING,
        9: LIST,
        10: SET,
        11: MAP,
        12: STRUCT,
    }
    _FIXED: ClassVar[dict[int, int]] = {BOOL: 1, BYTE: 1, DOUBLE: 8}

    def message(self, frame: Buffer, at: int) -> Message:
        kind = frame[at + 1]
        if frame[at] != 0x82 or kind & 0x1F != 1:
            raise Malformed(f"unknown protocol version {frame[at]:#x} {kind & 0x1F}")
        seqid, after = self._varint(frame, at + 2, 5)
        name, after = self.text(frame, after)
        return Message(kind >> 5, name, seqid & 0xFFFFFFFF, after)

    def head(self, kind: int, name: str, seqid: int) -> bytes:
        text = name.encode()
        head = bytearray((0x82, kind << 5 | 1))
        for number in (seqid, len(text)):
            while number > 0x7F:
                head.append(number & 0x7F | 0x80)
                number >>= 7
            head.append(number)
        return bytes(head) + text

    def field(self, frame: Buffer, at: int, last: int) -> tuple[int, int, int]:
        head = frame[at]
        code = head & 0x0F
        at += 1
        if code == 0:
            return 0, 0, at
        if head > 0x0F:
            number = last + (head >> 4)
        else:
            number, at = self._zigzag(frame, at, 3)
        if code <= 2:
            return TRUE_FIELD if code == 1 else FALSE_FIELD, number, at
        if code > 12:
            raise Malformed(f"unknown type {code}")
        return self._TYPES[code], number, at

    def _scalar_end(self, frame: Buffer, at: int, kind: int) -> int:
        if kind in (TRUE_FIELD, FALSE_FIELD):
            return at
        if kind in (I16, I32, I64):
            return self._varint(frame, at, 10)[1]
        return super()._scalar_end(frame, at, kind)

    def _varint(self, frame: Buffer, at: int, bytes_max: int) -> tuple[int, int]:
        byte = frame[at]
        if byte < 0x80:
            return byte, at + 1
        number, shift = byte & 0x7F, 7
        for place in range(at + 1, at + bytes_max):
            byte = frame[place]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, place + 1
            shift += 7
        raise Malformed(f"a number has more than {bytes_max} bytes")

    def _zigzag(self, frame: Buffer, at: int, bytes_max: int) -> tuple[int, int]:
        number, at = self._varint(frame, at, bytes_max)
        return number >> 1 ^ -(number & 1), at

    def i32(self, frame: Buffer, at: int) -> tuple[int, int]:
        number, at = self._zigzag(frame, at, 5)
        if not -0x80000000 <= number <= 0x7FFFFFFF:
            raise Malformed(f"{number} is no 32 bit number")
        return number, at

    def i64(self, frame: Buffer, at: int) -> tuple[int, int]:
        number, at = self._zigzag(frame, at, 10)
        if not -0x8000000000000000 <= number <= 0x7FFFFFFFFFFFFFFF:
            raise Malformed(f"{number} is no 64 bit number")
        return number, at

    def blob(self, frame: Buffer, at: int) -> tuple[Extent, int]:
        length, start = self._varint(frame, at, 5)
        stop = start + length
        if stop > len(frame):
            raise _too_long(length, frame, start)
        return (start, stop), stop

    def text(self, frame: Buffer, at: int) -> tuple[str, int]:
        (start, stop), _ = self.blob(frame, at)
        return frame[start:stop].decode(), stop

    def _elements(self, frame: Buffer, at: int) -> tuple[int, int, int]:
        """(count, element type, next offset)"""
        head = frame[at]
        count, at = head >> 4, at + 1
        if count == 15:
            count, at = self._varint(frame, at, 5)
        kind = self._TYPES.get(head & 0x0F, 0)
        if not kind and (count or head & 0x0F):
            raise Malformed(f"unknown element type {head & 0x0F}")
        if count * (self._FIXED.get(kind) or 1) > len(frame) - at:
            raise _too_many(count, frame, at)
        return count, kind, at

    def sequence(self, frame: Buffer, at: int, kind: int) -> tuple[int, int]:
        """(count, next offset) of a list or set of that element type."""
        count, found, at = self._elements(frame, at)
        if count and found != kind:
            raise _wrong_element(found, kind)
        return count, at

    def mapping(self, frame: Buffer, at: int) -> tuple[int, int, int, int]:
        """(key type, value type, count, next offset); both types are 0 where the map is empty."""
        count, at = self._varint(frame, at, 5)
        if count == 0:
            return 0, 0, 0, at
        first, second = self._TYPES.get(frame[at] >> 4, 0), self._TYPES.get(frame[at] & 0x0F, 0)
        at += 1
        if not first or not second:
            raise Malformed(f"unknown element types {frame[at - 1]:#x}")
        if count * 2 > len(frame) - at:
            raise _too_many(count, frame, at)
        return first, second, count, at

    def texts(self, frame: Buffer, at: int) -> tuple[tuple[str, ...], int]:
        extents, at = self.blobs(frame, at)
        return tuple([frame[start:stop].decode() for start, stop in extents]), at

    def i32s(self, frame: Buffer, at: int) -> tuple[tuple[int, ...], int]:
        count, at = self.sequence(frame, at, I32)
        found: list[int] = []
        for _ in range(count):
            number, at = self.i32(frame, at)
            found.append(number)
        return tuple(found), at

    def i64s(self, frame: Buffer, at: int) -> tuple[list[int], int]:
        count, at = self.sequence(frame, at, I64)
        found: list[int] = []
        for _ in range(count):
            number, at = self.i64(frame, at)
            found.append(number)
        return found, at

    def blobs(self, frame: Buffer, at: int) -> tuple[list[Extent], int]:
        count, at = self.sequence(frame, at, STRING)
        found: list[Extent] = []
        end = len(frame)
        for _ in range(count):
            length = frame[at]
            start = at + 1
            if length > 0x7F:
                length, start = self._varint(frame, at, 5)
            at = start + length
            if at > end:
                raise _too_long(length, frame, start)
            found.append((start, at))
        return found, at


BINARY: Wire = Binary()
COMPACT: Wire = Compact()
