"""The border for what is not hot: a struct is walked by its declaration, then decoded by thriftpy2.

thriftpy2's compiled reader trusts every length and count; what passes `check_struct` cannot lead it beyond the frame,
and has every required field, UTF-8 texts and the declared element types. A field of another type than declared is
skipped, as Thrift does, and counts as missing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from thriftpy2.protocol.compact import TCompactProtocol
from thriftpy2.protocol.cybin import TCyBinaryProtocol  # type: ignore[attr-defined]
from thriftpy2.transport.memory import TCyMemoryBuffer  # type: ignore[attr-defined]

from iotdb_cluster.limits import NESTING_DEPTH_MAX
from iotdb_cluster.rpc.wire import (
    BINARY,
    BOOL,
    FALSE_FIELD,
    I16,
    I32,
    I64,
    LIST,
    MAP,
    SET,
    STOP,
    STRING,
    STRUCT,
    TRUE_FIELD,
    Buffer,
    Malformed,
    Wire,
    guarded,
)

__all__ = ["check_struct", "decode", "encode"]

BYTES = 18  # how thriftpy2 marks `binary` in a declaration
T = TypeVar("T")

_Field = tuple[int, str, Any, bool]  # type on the wire, name, what containers and structs hold, whether it is text


@cache
def _fields(declared: type) -> tuple[dict[int, _Field], frozenset[int]]:
    """(the fields by number, the numbers of those that must be there); all of a call's arguments must."""
    fields: dict[int, _Field] = {}
    required = set()
    arguments = declared.__name__.endswith("_args")
    for number, spec in declared.thrift_spec.items():  # type: ignore[attr-defined]
        kind, name = spec[0], spec[1]
        inner = spec[2] if len(spec) > 3 else None
        fields[number] = (STRING if kind == BYTES else kind, name, inner, kind == STRING)
        if spec[-1] or arguments:
            required.add(number)
    return fields, frozenset(required)


def check_struct(wire: Wire, declared: type, frame: Buffer, at: int, depth: int = 1) -> int:
    """Walk a struct; the offset behind it. Malformed, IndexError or struct.error where the bytes are not one."""
    if depth > NESTING_DEPTH_MAX:
        raise Malformed(f"nested more than {NESTING_DEPTH_MAX} deep")
    fields, required = _fields(declared)
    missing = set(required)
    last = 0
    while True:
        kind, last, at = wire.field(frame, at, last)
        if kind == STOP:
            break
        field = fields.get(last)
        if field is None or (kind != field[0] and not (field[0] == BOOL and kind in (TRUE_FIELD, FALSE_FIELD))):
            at = wire.skip(frame, at, kind, depth)
            continue
        missing.discard(last)
        if kind != TRUE_FIELD and kind != FALSE_FIELD:
            at = _check_value(wire, field[0], field[2], field[3], frame, at, depth)
    if missing:
        names = ", ".join(f"{number} ({fields[number][1]})" for number in sorted(missing))
        raise Malformed(f"{declared.__name__} comes without its field {names}")
    return at


def _check_value(wire: Wire, kind: int, inner: Any, is_text: bool, frame: Buffer, at: int, depth: int) -> int:
    if kind == STRING:
        (start, stop), at = wire.blob(frame, at)
        if is_text:
            frame[start:stop].decode()
        return at
    if kind == STRUCT:
        return check_struct(wire, inner, frame, at, depth + 1)
    if kind in (LIST, SET):
        element, below, text = _element(inner)
        count, at = wire.sequence(frame, at, element)
        width = wire.fixed(element)
        if width:
            return at + count * width
        for _ in range(count):
            at = _check_value(wire, element, below, text, frame, at, depth + 1)
        return at
    if kind == MAP:
        key, value = _element(inner[0]), _element(inner[1])
        first, second, count, at = wire.mapping(frame, at)
        if count and (first, second) != (key[0], value[0]):
            raise Malformed(f"a map has types {first} and {second}, {key[0]} and {value[0]} are asked for")
        for _ in range(count):
            at = _check_value(wire, *key, frame, at, depth + 1)
            at = _check_value(wire, *value, frame, at, depth + 1)
        return at
    if kind == I64:
        return wire.i64(frame, at)[1]
    if kind in (I16, I32):
        return wire.skip(frame, at, kind, depth) if wire is BINARY else wire.i32(frame, at)[1]
    return wire.skip(frame, at, kind, depth)


def _element(spec: Any) -> tuple[int, Any, bool]:
    """(type on the wire, what is inside, whether it is text) of a container's declaration."""
    kind, inner = (spec, None) if isinstance(spec, int) else (spec[0], spec[1])
    return STRING if kind == BYTES else kind, inner, kind == STRING


def decode(wire: Wire, declared: type[T], frame: Buffer, at: int) -> T:
    """The struct at that offset, checked and then decoded; Malformed where it is not one."""
    stop = guarded(lambda: check_struct(wire, declared, frame, at))
    memory = TCyMemoryBuffer(bytes(frame[at:stop]))
    found = declared()
    _protocol(wire, memory).read_struct(found)
    return found


def encode(wire: Wire, value: Any) -> bytes:
    """The bytes of a struct."""
    memory = TCyMemoryBuffer()
    _protocol(wire, memory).write_struct(value)
    return bytes(memory.getvalue())


def _protocol(wire: Wire, memory: TCyMemoryBuffer) -> Any:
    return TCyBinaryProtocol(memory) if wire is BINARY else TCompactProtocol(memory)  # type: ignore[no-untyped-call]
