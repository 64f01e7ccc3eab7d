"""The hot decoders against a slow reading of the same values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.columns import DataType, Rows, Tablet, TextColumn
from iotdb_cluster.errors import CallerError
from iotdb_cluster.rpc.checker import encode
from iotdb_cluster.rpc.idl import client as idl
from iotdb_cluster.rpc.inserts import InsertDecoder
from iotdb_cluster.rpc.values import Insert
from iotdb_cluster.rpc.wire import BINARY, COMPACT, Wire

FORMATS = {0: "b", 1: "i", 2: "q", 3: "f", 4: "d"}
DECODER = InsertDecoder()  # shared, as in a server: what one example leaves behind must not change another

values = {
    0: st.booleans(),
    1: st.integers(-(2**31), 2**31 - 1),
    2: st.integers(-(2**63), 2**63 - 1),
    3: st.floats(width=32, allow_nan=False),
    4: st.floats(allow_nan=False),
    5: st.text(max_size=6).map(str.encode),
}
times = st.integers(-(2**63), 2**63 - 1)
names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), min_size=1, max_size=5)
wires = st.sampled_from((BINARY, COMPACT))


def cell(code: int, value: Any) -> bytes:
    if code == 5:
        return struct.pack(">i", len(value)) + value  # type: ignore[no-any-return]
    return struct.pack(">" + FORMATS[code], value)


def send(wire: Wire, method: str, request: Any, decoder: InsertDecoder = DECODER) -> Insert:
    arguments = getattr(idl().TSIService, method + "_args")(request)
    return decoder.decode(wire, method, b"head" + encode(wire, arguments), 4)


def rows_of(insert: Insert) -> dict[int, tuple[str, tuple[str, ...], tuple[int, ...], int, list[Any]]]:
    """What each record of the call became: (device, measurements, types, time, values)."""
    found = {}
    items = iter(insert.block_items)
    for block in insert.blocks:
        tablet = block.to_tablet() if isinstance(block, Rows) else block
        cells = [column.tolist() for column in tablet.columns]
        for row, time in enumerate(tablet.times.tolist()):
            shape = tablet.shape
            values = [column[row] for column in cells]
            found[next(items)] = (tablet.device, shape.measurements, tuple(map(int, shape.types)), time, values)
    assert next(items, None) is None
    return found


@st.composite
def record_lists(draw: st.DrawFn) -> list[tuple[str, list[str], list[int], list[Any], int]]:
    shapes = []
    for _ in range(draw(st.integers(1, 3))):
        measurements = draw(names)
        shapes.append((measurements, [draw(st.integers(0, 5)) for _ in measurements]))
    found = []
    for _ in range(draw(st.integers(1, 8))):
        measurements, codes = draw(st.sampled_from(shapes))
        device = draw(st.sampled_from(["root.a.d1", "root.a.d2"]))
        found.append((device, measurements, codes, [draw(values[code]) for code in codes], draw(times)))
    return found


@settings(max_examples=150, deadline=None)
@given(
    records=record_lists(),
    wire=wires,
    method=st.sampled_from(("insertRecord", "insertRecords", "insertRecordsOfOneDevice")),
)
def test_records(records: list[Any], wire: Wire, method: str) -> None:
    packed = [
        b"".join(bytes((code,)) + cell(code, value) for code, value in zip(codes, cells, strict=True))
        for _, _, codes, cells, _ in records
    ]
    c = idl()
    measurements, stamps = [record[1] for record in records], [record[4] for record in records]
    if method == "insertRecord":
        records = records[:1]
        request = c.TSInsertRecordReq(3, records[0][0], measurements[0], packed[0], stamps[0])
    elif method == "insertRecords":
        request = c.TSInsertRecordsReq(3, [record[0] for record in records], measurements, packed, stamps)
    else:
        records = [("root.one", *record[1:]) for record in records]
        request = c.TSInsertRecordsOfOneDeviceReq(3, "root.one", measurements, packed, stamps)
    insert = send(wire, method, request)
    assert (insert.session_id, insert.count, insert.errors, insert.rows) == (3, len(records), {}, [])
    assert rows_of(insert) == {
        i: (device, tuple(names), tuple(codes), time, cells)
        for i, (device, names, codes, cells, time) in enumerate(records)
    }
    seen: dict[str, int] = {}
    for item in insert.block_items:  # the rows of a device keep their order: a later one wins
        device = records[item][0]
        assert seen.get(device, -1) < item
        seen[device] = item


@st.composite
def tablets(draw: st.DrawFn) -> tuple[str, list[str], list[int], list[int], list[list[Any]], list[list[bool]] | None]:
    measurements = draw(names)
    codes = [draw(st.integers(0, 5)) for _ in measurements]
    count = draw(st.integers(1, 20))
    columns = [draw(st.lists(values[code], min_size=count, max_size=count)) for code in codes]
    stamps = draw(st.lists(times, min_size=count, max_size=count))
    nulls = None
    if draw(st.booleans()):
        nulls = [draw(st.lists(st.booleans(), min_size=count, max_size=count)) for _ in codes]
    return draw(st.sampled_from(["root.a", "root.ä.b"])), measurements, codes, stamps, columns, nulls


def pack_tablet(tablet: Any) -> tuple[bytes, bytes]:
    _, _, codes, stamps, columns, nulls = tablet
    data = b"".join(cell(code, value) for code, column in zip(codes, columns, strict=True) for value in column)
    if nulls is not None:
        for column in nulls:
            data += (
                b"\1" + np.packbits([*column, False] if len(column) % 8 == 0 else column, bitorder="little").tobytes()
            )
            data = data if any(column) else data[: -(len(column) // 8 + 2)] + b"\0"
    return data, struct.pack(f">{len(stamps)}q", *stamps)


def check_tablet(found: Any, tablet: Any) -> None:
    device, measurements, codes, stamps, columns, nulls = tablet
    assert isinstance(found, Tablet)
    assert (found.device, found.shape.measurements, list(found.shape.types)) == (device, tuple(measurements), codes)
    assert found.times.tolist() == stamps
    for i, column in enumerate(columns):
        expected = column if nulls is None else [None if null else v for v, null in zip(column, nulls[i], strict=True)]
        assert found.columns[i].tolist() == expected


@settings(max_examples=150, deadline=None)
@given(found=st.lists(tablets(), min_size=1, max_size=3), wire=wires)
def test_tablets(found: list[Any], wire: Wire) -> None:
    packed = [pack_tablet(tablet) for tablet in found]
    c = idl()
    one = c.TSInsertTabletReq(3, found[0][0], found[0][1], *packed[0], found[0][2], len(found[0][3]))
    insert = send(wire, "insertTablet", one)
    assert (insert.errors, insert.block_items) == ({}, [0])
    check_tablet(insert.blocks[0], found[0])
    many = c.TSInsertTabletsReq(
        3,
        [tablet[0] for tablet in found],
        [tablet[1] for tablet in found],
        [data for data, _ in packed],
        [stamps for _, stamps in packed],
        [tablet[2] for tablet in found],
        [len(tablet[3]) for tablet in found],
    )
    insert = send(wire, "insertTablets", many)
    assert (insert.errors, insert.block_items) == ({}, list(range(len(found))))
    for block, tablet in zip(insert.blocks, found, strict=True):
        check_tablet(block, tablet)


def test_numbers_are_views_on_the_frame(wire: Wire) -> None:
    stamps = np.arange(4, dtype=">i8").tobytes()
    request = idl().TSInsertTabletReq(1, "root.a", ["x", "y"], stamps + stamps[:16], stamps, [2, 1], 4)
    (block,) = send(wire, "insertTablet", request).blocks
    assert isinstance(block, Tablet)
    for array in (block.times, *(column.values for column in block.columns)):
        assert isinstance(array, np.ndarray)
        assert array.base is not None
        assert array.dtype.byteorder == ">"


@pytest.mark.parametrize("long", [False, True])
def test_texts_of_equal_and_of_mixed_length(wire: Wire, long: bool) -> None:
    equal = [f"text {i:04}".encode() for i in range(500)]
    mixed = [b"x" * (i % 7) for i in range(500)]
    if long:
        mixed = [b"y" * (1000 + i) for i in range(500)]
    stamps = np.arange(500, dtype=">i8").tobytes()
    data = b"".join(cell(5, text) for text in equal + mixed)
    (block,) = send(wire, "insertTablet", idl().TSInsertTabletReq(1, "d", ["x", "y"], data, stamps, [5, 5], 500)).blocks
    assert isinstance(block, Tablet)
    assert isinstance(block.columns[0].values, TextColumn)
    assert [column.tolist() for column in block.columns] == [equal, mixed]


def test_rows_keep_the_clients_bytes(wire: Wire) -> None:
    cells = struct.pack(">bdbibb", 4, 2.5, 1, -7, 0, 1)
    request = idl().TSInsertRecordReq(1, "root.a", ["x", "y", "z"], cells, -9)
    for _ in range(2):  # the first is walked, the second known
        (rows,) = send(wire, "insertRecord", request, DECODER).blocks
        assert isinstance(rows, Rows)
        assert bytes(rows.packed) == struct.pack(">q", -9) + cells
        assert [column.tolist() for column in rows.to_tablet().columns] == [[2.5], [-7], [True]]
    request.values = cells[:-1] + b"\x05"  # neither 0 nor 1: false
    for decoder in (DECODER, InsertDecoder()):
        (rows,) = send(wire, "insertRecord", request, decoder).blocks
        assert isinstance(rows, Rows)
        assert bytes(rows.packed)[-1] == 0


def test_a_new_type_of_known_measurements(wire: Wire) -> None:
    decoder = InsertDecoder()
    for _ in range(2):
        for code, value in ((4, 1.5), (2, 7), (3, 0.5), (1, 9), (5, b"text")):
            request = idl().TSInsertRecordReq(1, "root.a", ["x"], bytes((code,)) + cell(code, value), 1)
            assert rows_of(send(wire, "insertRecord", request, decoder))[0][2:] == ((code,), 1, [value])


def test_order_of_rows_across_shapes() -> None:
    cells = {name: b"\x02" + struct.pack(">q", i) for i, name in enumerate("abc")}
    shapes = [["a"], ["b"], ["a"]]
    request = idl().TSInsertRecordsReq(1, ["root.d"] * 3, shapes, [cells[shape[0]] for shape in shapes], [1, 1, 1])
    insert = send(BINARY, "insertRecords", request)
    assert [block.shape.measurements for block in insert.blocks] == [("a",), ("b",), ("a",)]
    assert insert.block_items == [0, 1, 2]


def test_nulls_and_untyped_values_of_records(wire: Wire) -> None:
    double = b"\x04" + struct.pack(">d", 1.5)
    untyped = b"\xff" + cell(5, b"12")
    request = idl().TSInsertRecordsReq(
        1,
        ["d1", "d2", "d3", "d4"],
        [["x", "y"]] * 4,
        [double + b"\xfe", b"\xfe\xfe", untyped + double, untyped + b"\xfe"],
        [1, 2, 3, 4],
    )
    insert = send(wire, "insertRecords", request)
    assert rows_of(insert) == {0: ("d1", ("x",), (4,), 1, [1.5])}
    assert insert.row_items == [2, 3]
    assert [(row.measurements, row.values, row.types) for row in insert.rows] == [
        (("x", "y"), ["12", "1.5"], (None, DataType.DOUBLE)),
        (("x",), ["12"], None),
    ]


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (b"", "end before measurement x"),
        (b"\x04\x00", "end within measurement x"),
        (b"\x09\x00", "unknown data type 9"),
        (b"\xf0\x00", "unknown data type -16"),
        (b"\x05\xff\xff\xff\xff", "end within measurement x"),
        (b"\x05\x00\x00", "end within measurement x"),
        (b"\x05\x00\x00\x00\x01\xff", "not UTF-8"),
        (b"\xff\x00\x00\x00\x01\xff", "not UTF-8"),
        (b"\x00\x01\x00", "1 bytes more"),
    ],
)
def test_records_that_are_wrong(cells: bytes, text: str, wire: Wire) -> None:
    good = b"\x00\x01"
    request = idl().TSInsertRecordsReq(1, ["d"] * 3, [["x"]] * 3, [good, cells, good], [1, 2, 3])
    insert = send(wire, "insertRecords", request)
    assert list(insert.errors) == [1]
    assert text in insert.errors[1].message
    assert sorted(rows_of(insert)) == [0, 2]
    insert = send(wire, "insertRecord", idl().TSInsertRecordReq(1, "d", ["x"], cells, 1))
    assert isinstance(insert.errors[0], CallerError)
    assert insert.blocks == []


LONGS = np.arange(4, dtype=">i8").tobytes()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 5}, "not 40"),
        ({"size": -1}, "-1 rows"),
        ({"size": 2_000_000}, "at most"),
        ({"values": LONGS[:-1]}, "end within column 0"),
        ({"values": LONGS + b"\0\0"}, "1 bytes are left"),
        ({"values": LONGS + b"\1"}, "no null bitmaps"),
        ({"values": LONGS + b"\2"}, "no null bitmaps"),
        ({"types": [6]}, "unknown data type 6"),
        ({"types": [2, 2]}, "1 measurements and 2 types"),
        ({"types": [], "measurements": []}, "null"),
        ({"types": [5]}, "left behind"),
        ({"types": [5], "values": b"\0\0\0\1a" * 3 + b"\0\0\0\2a"}, "end within text"),
        ({"types": [5], "values": b"\0\0\0\1a" * 3 + b"\xff\xff\xff\xff"}, "end within text"),
        ({"types": [5], "values": b"\0\0\0\1\xc3\0\0\0\1\xa4" * 2}, "begins within a character"),
        ({"types": [5], "values": b"\0\0\0\1\xff" * 4}, "not UTF-8"),
    ],
)
def test_tablets_that_are_wrong(change: dict[str, Any], text: str, wire: Wire) -> None:
    request = idl().TSInsertTabletReq(1, "root.a", ["x"], LONGS, LONGS, [2], 4)
    assert send(wire, "insertTablet", request).errors == {}
    for name, value in change.items():
        setattr(request, name, value)
    insert = send(wire, "insertTablet", request)
    assert insert.blocks == []
    with pytest.raises(AssertionError if insert.errors == {} else CallerError, match=text):
        raise insert.errors[0]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=80), codes=st.lists(st.integers(0, 6), min_size=1, max_size=3), size=st.integers(0, 9))
def test_any_value_buffer_ends_in_a_block_or_an_error(data: bytes, codes: list[int], size: int) -> None:
    measurements = [f"s{i}" for i in range(len(codes))]
    request = idl().TSInsertTabletReq(1, "d", measurements, data, bytes(8 * size), codes, size)
    insert = send(BINARY, "insertTablet", request)
    assert len(insert.blocks) + len(insert.errors) == (1 if size else 0)
    insert = send(BINARY, "insertRecord", idl().TSInsertRecordReq(1, "d", measurements, data, 1))
    assert len(insert.blocks) + len(insert.rows) + len(insert.errors) <= 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.rpc.inserts.RPC_MEMO_BYTES_MAX", 10_000)
    monkeypatch.setattr("iotdb_cluster.rpc.values.RPC_PLANS_MAX", 10)
    decoder = InsertDecoder()
    for i in range(500):
        request = idl().TSInsertRecordReq(1, "d", [f"s{i}", "t"], b"\x00\x01\x00\x00", 1)
        assert rows_of(send(BINARY, "insertRecord", request, decoder))[0][1] == (f"s{i}", "t")
        assert len(decoder._records._plans) <= 10
