"""Decoders of the hot insert calls, from the frame straight to blocks of columns, in both protocols.

Lists of names repeat from call to call: their bytes are remembered with what they mean, and the same bytes are not read
twice. A message that is not one raises `Malformed`; what is wrong within the value buffers of an item stands in the
call's `errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import MIB, RPC_MEMO_BYTES_MAX
from iotdb_cluster.rpc.handler import InsertKind
from iotdb_cluster.rpc.values import Insert, RecordReader, read_tablet
from iotdb_cluster.rpc.wire import (
    BINARY,
    COMPACT,
    I32,
    I64,
    LIST,
    STOP,
    STRING,
    STRUCT,
    Buffer,
    Malformed,
    Wire,
    guarded,
)

__all__ = ["HOT_CALLS", "InsertDecoder"]

Reader: TypeAlias = Callable[[Buffer, int], tuple[Any, int]]
_SECTION_BYTES_MAX = MIB // 16
_BUCKET_MAX = 64


class _Memo:
    """Sections of frames that were read before: first bytes -> [(all bytes, what they mean)]."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, bytes], list[tuple[bytes, Any]]] = {}
        self._bytes = 0

    def wrap(self, tag: int, probe: int, read: Reader) -> Reader:
        """`read`, asked only for bytes not met before; its values must not be changed by anybody."""
        buckets = self._buckets

        def remembered(frame: Buffer, at: int) -> tuple[Any, int]:
            key = (tag, bytes(frame[at : at + probe]))
            for section, value in buckets.get(key, ()):
                if frame.startswith(section, at):
                    return value, at + len(section)
            value, stop = read(frame, at)
            if stop - at <= _SECTION_BYTES_MAX:
                self._keep(key, bytes(frame[at:stop]), value)
            return value, stop

        return remembered

    def _keep(self, key: tuple[int, bytes], section: bytes, value: Any) -> None:
        cost = 12 * len(section) + 200  # a short text costs 60 bytes as an object
        self._bytes += cost
        if self._bytes > RPC_MEMO_BYTES_MAX:
            self._buckets.clear()
            self._bytes = cost
        bucket = self._buckets.setdefault(key, [])
        if len(bucket) >= _BUCKET_MAX:
            del bucket[: _BUCKET_MAX // 2]
        bucket.append((section, value))


class _Readers:
    """The field readers of one protocol, keyed by field number << 8 | type."""

    def __init__(self, wire: Wire, memo: _Memo, tag: int) -> None:
        probe = wire.probe_bytes
        texts = memo.wrap(tag, probe, wire.texts)
        codes = memo.wrap(tag + 1, probe, wire.i32s)

        def lists(read: Reader) -> Reader:
            def read_all(frame: Buffer, at: int) -> tuple[tuple[Any, ...], int]:
                count, at = wire.sequence(frame, at, LIST)
                found = []
                for _ in range(count):
                    value, at = read(frame, at)
                    found.append(value)
                return tuple(found), at

            return read_all

        name_lists = memo.wrap(tag + 2, 4 * probe, lists(texts))
        code_lists = memo.wrap(tag + 3, 4 * probe, lists(codes))
        session = {1 << 8 | I64: wire.i64}
        one = {2 << 8 | STRING: wire.text, 3 << 8 | LIST: texts, 4 << 8 | STRING: wire.blob}
        many = {2 << 8 | LIST: texts, 3 << 8 | LIST: name_lists, 4 << 8 | LIST: wire.blobs}
        self.record: dict[int, Reader] = {**session, **one, 5 << 8 | I64: wire.i64}
        self.records: dict[int, Reader] = {**session, **many, 5 << 8 | LIST: wire.i64s}
        self.of_one_device: dict[int, Reader] = {**self.records, 2 << 8 | STRING: wire.text}
        self.tablet: dict[int, Reader] = {**session, **one, 5 << 8 | STRING: wire.blob}
        self.tablet.update({6 << 8 | LIST: codes, 7 << 8 | I32: wire.i32})
        self.tablets: dict[int, Reader] = {**session, **many, 5 << 8 | LIST: wire.blobs}
        self.tablets.update({6 << 8 | LIST: code_lists, 7 << 8 | LIST: wire.i32s})


def _fields(wire: Wire, readers: dict[int, Reader], frame: Buffer, at: int, count: int) -> list[Any]:
    """Fields 1 to `count` of the request, which is the one argument of the message."""
    field = wire.field
    kind, number, at = field(frame, at, 0)
    while number != 1 or kind != STRUCT:
        if kind == STOP:
            raise Malformed("the message comes without its argument 1 (req)")
        at = wire.skip(frame, at, kind, 1)
        kind, number, at = field(frame, at, number)
    values: list[Any] = [None] * (count + 1)
    number = 0
    while True:
        kind, number, at = field(frame, at, number)
        if kind == STOP:
            break
        read = readers.get(number << 8 | kind)
        if read is None:
            at = wire.skip(frame, at, kind, 1)
        else:
            values[number], at = read(frame, at)
    number = 1
    while frame[at]:  # further arguments, up to the end of the message
        kind, number, at = field(frame, at, number)
        at = wire.skip(frame, at, kind, 1)
    for number in range(1, count + 1):
        if values[number] is None:
            raise Malformed(f"the request comes without its field {number}")
    return values


def _equally_long(lists: list[Any]) -> CallerError | None:
    lengths = [len(values) for values in lists]
    if len(set(lengths)) == 1:
        return None
    return CallerError(
        Status.ILLEGAL_PARAMETER, f"the lists of a call differ in length: {', '.join(map(str, lengths))} entries"
    )


class InsertDecoder:
    """One a server. `decode` may run on any thread."""

    def __init__(self) -> None:
        memo = _Memo()
        self._readers = {BINARY: _Readers(BINARY, memo, 0), COMPACT: _Readers(COMPACT, memo, 10)}
        self._records = RecordReader()

    def decode(self, wire: Wire, name: str, frame: Buffer, at: int) -> Insert:
        """The call of that name (one of HOT_CALLS) whose arguments begin at that offset."""
        call = _CALLS[name]
        return guarded(lambda: call(self, wire, frame, at))

    def _record(self, wire: Wire, frame: Buffer, at: int) -> Insert:
        _, session, device, names, values, time = _fields(wire, self._readers[wire].record, frame, at, 5)
        insert = Insert(session, InsertKind.RECORD, 1)
        self._records.read(insert, frame, (device,), (names,), [values], [time])
        return insert

    def _many_records(self, wire: Wire, frame: Buffer, at: int) -> Insert:
        _, session, *lists = _fields(wire, self._readers[wire].records, frame, at, 5)
        insert = Insert(session, InsertKind.RECORDS, len(lists[0]))
        return self._read_records(insert, frame, lists)

    def _records_of_one_device(self, wire: Wire, frame: Buffer, at: int) -> Insert:
        _, session, device, *lists = _fields(wire, self._readers[wire].of_one_device, frame, at, 5)
        insert = Insert(session, InsertKind.RECORDS_OF_ONE_DEVICE, len(lists[0]))
        return self._read_records(insert, frame, [(device,) * len(lists[0]), *lists])

    def _read_records(self, insert: Insert, frame: Buffer, lists: list[Any]) -> Insert:
        error = _equally_long(lists)
        if error is not None:
            insert.errors[-1] = error
        else:
            self._records.read(insert, frame, *lists)
        return insert

    def _tablet(self, wire: Wire, frame: Buffer, at: int) -> Insert:
        _, session, device, names, values, times, codes, size = _fields(wire, self._readers[wire].tablet, frame, at, 7)
        insert = Insert(session, InsertKind.TABLET, 1)
        self._add_tablet(insert, 0, frame, device, names, codes, values, times, size)
        return insert

    def _tablets(self, wire: Wire, frame: Buffer, at: int) -> Insert:
        _, session, *lists = _fields(wire, self._readers[wire].tablets, frame, at, 7)
        devices, names, values, times, codes, sizes = lists
        insert = Insert(session, InsertKind.TABLETS, len(devices))
        error = _equally_long(lists)
        if error is not None:
            insert.errors[-1] = error
            return insert
        for i, device in enumerate(devices):
            self._add_tablet(insert, i, frame, device, names[i], codes[i], values[i], times[i], sizes[i])
        return insert

    def _add_tablet(self, insert: Insert, item: int, frame: Buffer, *parts: Any) -> None:
        try:
            tablet = read_tablet(frame, *parts)
        except CallerError as error:
            insert.errors[item] = error
            return
        if tablet is not None:
            insert.blocks.append(tablet)
            insert.block_items.append(item)


_CALLS: dict[str, Callable[[InsertDecoder, Wire, Buffer, int], Insert]] = {
    "insertRecord": InsertDecoder._record,
    "insertRecords": InsertDecoder._many_records,
    "insertRecordsOfOneDevice": InsertDecoder._records_of_one_device,
    "insertTablet": InsertDecoder._tablet,
    "insertTablets": InsertDecoder._tablets,
}
HOT_CALLS = frozenset(_CALLS)
