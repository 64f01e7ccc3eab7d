"""Entries survive the way through bytes untouched, and bad bytes are told from good ones."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.columns import Block, Column, DataType, Encoding, Rows, Tablet, TextColumn, shape_of
from iotdb_cluster.data import (
    AlterSeries,
    Body,
    CreateSeries,
    DeleteIntent,
    DeleteRetire,
    DeleteUnit,
    Discard,
    Dissolve,
    DropSlots,
    DropStorageGroup,
    EnsureSeries,
    Expire,
    Fence,
    Header,
    Import,
    IntentKind,
    Kind,
    ListPartition,
    OpenUnit,
    Own,
    Ready,
    decode,
    decode_header,
    encode,
    encode_insert,
)
from iotdb_cluster.data.blocks import encoded_bytes
from iotdb_cluster.data.entries import HEADER_BYTES
from iotdb_cluster.errors import CorruptData, InvariantViolation
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.schema import Alter, PathPattern, SeriesSpec

HEADER = Header(RequestId(3, 7, 12345678901, 12345678900), 2**40, 9_999, 5, 77, -12)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
kinds = st.sampled_from(list(DataType))


def cells(kind: DataType) -> st.SearchStrategy[Any]:
    return {
        DataType.BOOLEAN: st.booleans(),
        DataType.INT32: st.integers(-(2**31), 2**31 - 1),
        DataType.INT64: st.integers(-(2**63), 2**63 - 1),
        DataType.FLOAT: st.floats(width=32, allow_nan=False),
        DataType.DOUBLE: st.floats(allow_nan=False),
        DataType.TEXT: st.text(st.characters(codec="utf-8"), max_size=8),
    }[kind]


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    measurements = tuple(draw(st.lists(names, min_size=1, max_size=4, unique=True)))
    types = tuple(draw(kinds) for _ in measurements)
    rows = draw(st.integers(1, 20))
    times = np.array(draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=rows, max_size=rows)), np.int64)
    shape, device = shape_of(measurements, types), draw(names)
    if not shape.has_text and draw(st.booleans()):
        table = np.zeros(rows, shape.row_dtype)
        table["time"] = times
        raw = table.view(np.uint8).reshape(rows, -1)
        for at, kind in enumerate(types):
            table[f"c{at}"] = draw(st.lists(cells(kind), min_size=rows, max_size=rows))
            raw[:, shape.row_dtype.fields[f"c{at}"][1] - 1] = int(kind)
        return Rows(device, shape, table.tobytes())
    columns = []
    for kind in types:
        nullable = st.none() | cells(kind) if draw(st.booleans()) else cells(kind)
        column = Column.of(kind, draw(st.lists(nullable, min_size=rows, max_size=rows)))
        if kind is not DataType.TEXT and draw(st.booleans()):
            column.values = column.values.astype(kind.wire_dtype)
        columns.append(column)
    wire = draw(st.booleans())
    return Tablet(device, shape, times.astype(">i8") if wire else times, columns)


def rows_of(block: Block) -> list[Any]:
    tablet = block.to_tablet() if isinstance(block, Rows) else block
    return [
        block.device,
        block.shape,
        tablet.times.tolist(),
        [[column.type, column.tolist()] for column in tablet.columns],
    ]


@given(st.lists(blocks(), max_size=5))
@settings(max_examples=150, deadline=None)
def test_insert_round_trip(written: list[Block]) -> None:
    payload = encode_insert(HEADER, written)
    kind, header, read, body = decode(payload, strict=True)
    assert (kind, header, body) == (Kind.INSERT, HEADER, None)
    assert [rows_of(block) for block in read] == [rows_of(block) for block in written]
    assert encode_insert(header, read) == payload
    assert len(payload) <= HEADER_BYTES + 6 + sum(map(encoded_bytes, written))


def test_arrays_are_views_in_the_order_they_came_with() -> None:
    shape = shape_of(("a", "b", "c"), (DataType.DOUBLE, DataType.INT32, DataType.TEXT))
    columns = [
        Column(DataType.DOUBLE, np.arange(3, dtype=">f8")),
        Column(DataType.INT32, np.arange(3, dtype="<i4"), np.array([True, False, True])),
        Column(DataType.TEXT, TextColumn.of([b"xx", b"", b"y"])),
    ]
    payload = encode_insert(HEADER, [Tablet("root.sg.d", shape, np.arange(3, dtype=">i8"), columns)])
    block = decode(payload).blocks[0]
    assert isinstance(block, Tablet)
    assert block.shape is shape
    whole = np.frombuffer(payload, np.uint8)
    for array in (block.times, block.columns[0].values, block.columns[1].values):
        assert isinstance(array, np.ndarray)
        assert np.shares_memory(array, whole)
    assert [column.values.dtype.byteorder for column in block.columns[:2]] == [">", "="]
    assert payload.count(np.arange(3, dtype=">f8").tobytes()) == 1


BODIES: list[Body] = [
    EnsureSeries("root.sg", (SeriesSpec.default("root.sg.d.s", DataType.TEXT),)),
    CreateSeries(
        "root.sg",
        (
            SeriesSpec(
                "root.sg.d.é", DataType.FLOAT, Encoding.RLE, alias="a", tags={"k": "v"}, attributes={}, properties={}
            ),
        ),
    ),
    AlterSeries("root.sg.d.s", Alter.rename("a", "b")),
    ListPartition(17),
    OpenUnit(3, 4),
    DeleteIntent(IntentKind.RANGE, (PathPattern.parse("root.sg.d*"),), -5, 5, -1, 0),
    DeleteUnit(4, 3, DeleteIntent(IntentKind.TIMESERIES, (PathPattern.exact("root.sg.d.s"),)), OpenUnit(1, 2)),
    DeleteRetire(4),
    Own(((0, 3_333, 1), (9_000, 9_999, 2)), 88),
    Own(((7, 7, 3),), 95, 91),
    DropStorageGroup(90),
    Expire(-7),
    Fence(91, ((7, 7, 3),), 91),
    Import(91, ((7, 7, 3), (9, 12, 4)), 2**63 - 1, 2, 3, bytes(range(256))),
    Ready(91, 2**62),
    DropSlots(((7, 7, 3),), 95),
    Discard(91),
    Dissolve(99),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.kind.name)
def test_body_round_trip(body: Body) -> None:
    payload = encode(HEADER._replace(request=NO_REQUEST), body)
    kind, header, found, read = decode(payload)
    assert (kind, header.request, found) == (body.kind, NO_REQUEST, [])
    assert read == body


def test_every_kind_has_a_body() -> None:
    assert {body.kind for body in BODIES} | {Kind.INSERT} == set(Kind)


def mutated(payload: bytes, random_: random.Random) -> bytes:
    data = bytearray(payload)
    what = random_.randrange(4)
    if what == 0:
        return bytes(data[: random_.randrange(len(data))])
    if what == 1:
        at = random_.randrange(len(data))
        return bytes(data[:at]) + random_.randbytes(random_.randrange(1, 9)) + bytes(data[at:])
    for _ in range(random_.randrange(1, 4)):
        data[random_.randrange(2 if what == 2 else 0, len(data))] = random_.choice([0, 1, 127, 128, 255, 34, 91])
    return bytes(data)


def test_bad_bytes_raise_nothing_but_corrupt_data(insert_payloads: list[bytes]) -> None:
    random_ = random.Random(5)
    good = insert_payloads + [encode(HEADER, body) for body in BODIES]
    refused = 0
    for _ in range(6_000):
        payload = mutated(random_.choice(good), random_)
        try:
            decode(payload, strict=True)
        except CorruptData:
            refused += 1
    assert refused > 2_000


@pytest.mark.parametrize(
    ("at", "value"), [(0, 2), (1, 0), (1, 200)], ids=["newer version", "kind zero", "unknown kind"]
)
def test_newer_entries_are_refused(at: int, value: int) -> None:
    payload = bytearray(encode(HEADER, DeleteRetire(1)))
    payload[at] = value
    with pytest.raises(CorruptData):
        decode_header(bytes(payload))


def test_strict_decoding_looks_at_cells() -> None:
    text = shape_of(("t",), (DataType.TEXT,))
    for cells_ in ([b"\xff"], ["é".encode()[:1], "é".encode()[1:]], [b"\x80", b"a"]):
        column = Column(DataType.TEXT, TextColumn.of(cells_))
        payload = encode_insert(HEADER, [Tablet("d", text, np.arange(len(cells_)), [column])])
        decode(payload)
        with pytest.raises(CorruptData, match="UTF-8"):
            decode(payload, strict=True)
    flag = shape_of(("b",), (DataType.BOOLEAN,))
    column = Column(DataType.BOOLEAN, np.array([2], np.uint8).view(np.bool_))
    with pytest.raises(CorruptData, match="neither true nor false"):
        decode(encode_insert(HEADER, [Tablet("d", flag, np.arange(1), [column])]), strict=True)
    packed = np.zeros(1, flag.row_dtype).tobytes()[:8] + b"\x05\x01"
    with pytest.raises(CorruptData, match="other types"):
        decode(encode_insert(HEADER, [Rows("d", flag, packed)]), strict=True)


def test_our_own_mistakes_are_invariants() -> None:
    shape = shape_of(("a",), (DataType.INT32,))
    with pytest.raises(InvariantViolation):
        encode_insert(
            HEADER, [Tablet("d", shape, np.arange(2), [Column(DataType.INT32, np.arange(3, dtype=np.int32))])]
        )
    with pytest.raises(InvariantViolation):
        encode_insert(HEADER, [Rows("d", shape, b"")])
