"""Decoding is a border: whatever the bytes are, they end in a value or in `Malformed`, soon, and within the frame."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster import limits
from iotdb_cluster.rpc.checker import check_struct, decode, encode
from iotdb_cluster.rpc.idl import client as idl
from iotdb_cluster.rpc.inserts import HOT_CALLS, InsertDecoder
from iotdb_cluster.rpc.wire import BINARY, COMPACT, Malformed, Wire, guarded, wire_of

METHODS = (
    "openSession",
    "executeStatement",
    "createMultiTimeseries",
    "insertTablet",
    "insertRecords",
    "createTimeseries",
)


def arguments(name: str) -> type:
    return getattr(idl().TSIService, name + "_args")  # type: ignore[no-any-return]


def requests() -> dict[str, Any]:
    c = idl()
    times = np.arange(3, dtype=">i8").tobytes()
    return {
        "openSession": c.TSOpenSessionReq(2, "+08:00", "root", "root", {"version": "V_0_12"}),
        "executeStatement": c.TSExecuteStatementReq(1, "SELECT *", 2, 100, 1000, False),
        "fetchResults": c.TSFetchResultsReq(1, "SELECT", 5, 2, True, 7),
        "createMultiTimeseries": c.TSCreateMultiTimeseriesReq(
            1, ["root.a.b.c", "root.ä"], [1, 2], [0, 0], [1, 1], None, [{"a": "b"}, {}], None, ["x", "y"]
        ),
        "createTimeseries": c.TSCreateTimeseriesReq(1, "root.a.b", 1, 2, 1, {"loss": "sdt"}, {}, {"k": "v"}, "m"),
        "createSchemaTemplate": c.TSCreateSchemaTemplateReq(1, "t", ["a"], [["m", "n"]], [[1, 2]], [[0, 0]], [1]),
        "insertTablet": c.TSInsertTabletReq(1, "root.a", ["x"], times, times, [2], 3),
        "insertTablets": c.TSInsertTabletsReq(1, ["root.a"], [["x"]], [times], [times], [[2]], [3]),
        "insertRecord": c.TSInsertRecordReq(1, "root.a", ["x"], b"\x00\x01", 5),
        "insertRecords": c.TSInsertRecordsReq(1, ["root.a"] * 2, [["x"]] * 2, [b"\x00\x01"] * 2, [-(2**63), 7]),
        "insertRecordsOfOneDevice": c.TSInsertRecordsOfOneDeviceReq(1, "root.a", [["x"]], [b"\x00\x01"], [5]),
        "insertStringRecords": c.TSInsertStringRecordsReq(1, ["root.a"], [["x"]], [["1"]], [5]),
        "deleteData": c.TSDeleteDataReq(1, ["root.a.b", "root.**"], -5, 2**63 - 1),
    }


@pytest.fixture(params=sorted(requests()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


def read(wire: Wire, name: str, data: bytes) -> Any:
    """As the service reads it."""
    if name in HOT_CALLS:
        return InsertDecoder().decode(wire, name, data, 0)
    return decode(wire, arguments(name), data, 0)


def test_whole_messages_pass(wire: Wire, name: str) -> None:
    request = requests()[name]
    data = encode(wire, arguments(name)(request))
    assert check_struct(wire, arguments(name), data, 0) == len(data)
    assert decode(wire, arguments(name), data, 0).req == request


def test_cut_at_every_byte(wire: Wire, name: str) -> None:
    data = encode(wire, arguments(name)(requests()[name]))
    for stop in range(len(data)):
        with pytest.raises(Malformed):
            read(wire, name, data[:stop])


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_do_no_harm(wire: Wire, name: str, seed: int) -> None:
    source = random.Random(seed)
    data = encode(wire, arguments(name)(requests()[name]))
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(source.randint(1, 4)):
            changed[source.randrange(len(changed))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        try:
            read(wire, name, bytes(changed))
        except Malformed:
            continue


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), name=st.sampled_from(METHODS), wire=st.sampled_from((BINARY, COMPACT)))
def test_garbage(data: bytes, name: str, wire: Wire) -> None:
    try:
        read(wire, name, data)
    except Malformed:
        return


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60))
def test_garbage_as_message(data: bytes) -> None:
    try:
        found = wire_of(data, 0)
        guarded(lambda: found.message(data, 0))
    except Malformed:
        return


def binary_field(kind: int, number: int, value: bytes) -> bytes:
    return struct.pack(">bh", kind, number) + value


def compact_field(kind: int, number: int, value: bytes) -> bytes:
    return bytes((kind, number << 1)) + value


def bounded(read_it: Callable[[], Any]) -> None:
    """It ends in Malformed within a moment and without much memory."""
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(Malformed):
        read_it()
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 0.5
    assert peak < 2 * limits.MIB


def test_a_cut_frame_gives_nobody_elses_memory(wire: Wire) -> None:
    """The first finding of the design: 50,000 of 88,000 bytes decoded to 80,000 bytes of values."""
    times = np.arange(1000, dtype=">i8").tobytes()
    request = idl().TSInsertTabletReq(1, "root.a.d", [f"s{i}" for i in range(10)], times * 10, times, [2] * 10, 1000)
    data = encode(wire, arguments("insertTablet")(request))[:50_000]
    bounded(lambda: InsertDecoder().decode(wire, "insertTablet", data, 0))
    bounded(lambda: decode(wire, arguments("insertTablet"), data, 0))


@pytest.mark.parametrize("count", [20_000_000, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("method", ["insertTablet", "insertRecords", "createMultiTimeseries", "insertStringRecords"])
def test_huge_counts_in_small_frames(method: str, count: int) -> None:
    """The second finding: frames of 50 bytes with huge counts froze the process."""
    for element in (11, 8, 10, 12, 13, 15, 2):
        for number in range(2, 9):
            head = binary_field(12, 1, binary_field(10, 1, bytes(8)))
            data = head + binary_field(15, number, struct.pack(">bI", element, count)) + bytes(20)
            bounded(lambda data=data: read(BINARY, method, data))  # type: ignore[misc]
    size = bytearray()
    number = count
    while number > 0x7F:
        size.append(number & 0x7F | 0x80)
        number >>= 7
    size.append(number)
    for element in (8, 5, 6, 12, 11, 9, 1):
        for number in range(2, 9):
            head = compact_field(12, 1, compact_field(6, 1, b"\0"))
            data = head + compact_field(9, number, bytes((0xF0 | element,)) + size) + bytes(20)
            bounded(lambda data=data: read(COMPACT, method, data))  # type: ignore[misc]


@pytest.mark.parametrize("length", [21, 2**31 - 1, -1, -(2**31)])
def test_huge_and_negative_lengths(length: int) -> None:
    for method in ("executeStatement", "insertRecord", "insertTablet"):
        text = struct.pack(">i", length) + bytes(20)
        data = binary_field(12, 1, binary_field(10, 1, bytes(8)) + binary_field(11, 2, text))
        bounded(lambda data=data, method=method: read(BINARY, method, data))  # type: ignore[misc]


def test_values_never_reach_beyond_the_frame(wire: Wire) -> None:
    """Each reader by itself, not only because something else is missing behind the value."""
    head = struct.pack(">I", 3) if wire is BINARY else b"\x03"
    listed = (b"\x0b\x00\x00\x00\x01" if wire is BINARY else b"\x18") + head
    for read_it, start in ((wire.blob, head), (wire.text, head), (wire.texts, listed), (wire.blobs, listed)):
        assert read_it(start + b"abc", 0)[1] == len(start) + 3
        with pytest.raises(Malformed, match=r"3 bytes, 2 are left|1 elements"):
            read_it(start + b"ab", 0)
    for kind in (2, 3, 4, 11):
        with pytest.raises((Malformed, IndexError, struct.error)):
            wire.skip(b"", 0, kind, 1)


def test_deep_nesting() -> None:
    deep = 100_000
    for method in ("executeStatement", "insertRecord"):
        bounded(lambda method=method: read(BINARY, method, binary_field(12, 1, b"\x0c\x00\x09" * deep)))  # type: ignore[misc]
        bounded(lambda method=method: read(COMPACT, method, compact_field(12, 1, b"\x1c" * deep)))  # type: ignore[misc]
        lists = b"\x0f\x00\x00\x00\x01" * deep
        bounded(  # type: ignore[misc]
            lambda method=method, lists=lists: read(BINARY, method, binary_field(12, 1, binary_field(15, 9, lists)))
        )
        bounded(lambda method=method: read(COMPACT, method, compact_field(12, 1, compact_field(9, 9, b"\x19" * deep))))  # type: ignore[misc]


def test_nesting_that_the_checker_lets_pass_can_be_decoded() -> None:
    """Neither walk may go deeper than thriftpy2 does."""
    plain = encode(BINARY, idl().TSCloseSessionReq(1))[:-1]
    passed = 0
    for depth in range(55, 70):
        nested = binary_field(12, 9, b"")
        data = binary_field(12, 1, plain + nested * depth + b"\0" * depth + b"\0") + b"\0"
        try:
            decode(BINARY, arguments("closeSession"), data, 0)
            passed += 1
        except Malformed:
            continue
    assert 5 <= passed <= 10


def test_missing_and_mistyped_fields(wire: Wire) -> None:
    c = idl()
    data = encode(wire, arguments("executeStatement")(c.TSExecuteStatementReq(1, None, 2)))
    with pytest.raises(Malformed, match=r"TSExecuteStatementReq comes without its field 2 \(statement\)"):
        decode(wire, arguments("executeStatement"), data, 0)
    with pytest.raises(Malformed, match="insertTablet_args comes without its field 1"):
        decode(wire, arguments("insertTablet"), b"\0", 0)
    with pytest.raises(Malformed, match="argument 1"):
        InsertDecoder().decode(wire, "insertTablet", b"\0", 0)
    for method in sorted(HOT_CALLS):
        request = requests()[method]
        request.sessionId = None
        with pytest.raises(Malformed, match="field 1"):
            read(wire, method, encode(wire, arguments(method)(request)))


def test_fields_of_another_type_are_skipped() -> None:
    c = idl()
    good = c.TSExecuteStatementReq(1, "SELECT", 2)
    body = encode(BINARY, good)[:-1]
    odd = binary_field(11, 4, struct.pack(">i", 3) + b"abc") + binary_field(15, 6, b"\x08\0\0\0\x01\0\0\0\x07")
    odd += binary_field(13, 99, b"\x0b\x08\0\0\0\x01\0\0\0\x01k\0\0\0\x05")
    data = binary_field(12, 1, body + odd + b"\0") + b"\0"
    assert decode(BINARY, arguments("executeStatement"), data, 0).req == good
    # a required one that is skipped is missing
    data = binary_field(12, 1, binary_field(11, 1, struct.pack(">i", 0)) + body[11:] + b"\0") + b"\0"
    with pytest.raises(Malformed, match="field 1"):
        decode(BINARY, arguments("executeStatement"), data, 0)
    with pytest.raises(Malformed, match="unknown type 33"):  # the compact protocol's inner marks mean nothing here
        decode(BINARY, arguments("fetchResults"), binary_field(12, 1, binary_field(33, 5, b"")) + b"\0", 0)


def test_element_types_must_be_those_declared() -> None:
    data = binary_field(12, 1, binary_field(10, 1, bytes(8)) + binary_field(15, 2, b"\x08\0\0\0\x01\0\0\0\x07"))
    for method in ("deleteData", "insertRecords"):
        with pytest.raises(Malformed, match="elements of type 8"):
            read(BINARY, method, data)


def test_text_that_is_not_utf8(wire: Wire) -> None:
    for method in ("executeStatement", "insertTablet", "insertRecord", "insertRecords", "deleteData"):
        data = encode(wire, arguments(method)(requests()[method]))
        wrong = data.replace(b"SELECT", b"SEL\xff\xfeT").replace(b"root.a", b"root\xc3\x28")
        with pytest.raises(Malformed, match="UTF-8"):
            read(wire, method, wrong)


def test_large_honest_lists_take_linear_time() -> None:
    names = ["s"] * 200_000
    data = encode(BINARY, arguments("deleteData")(idl().TSDeleteDataReq(1, names, 0, 1)))
    began = time.perf_counter()
    assert len(decode(BINARY, arguments("deleteData"), data, 0).req.paths) == len(names)
    assert time.perf_counter() - began < 2
