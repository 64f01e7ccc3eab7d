"""The client service over a real socket, in both protocols."""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import Any

import numpy as np
import pytest
from thriftpy2.thrift import TApplicationException

from iotdb_cluster import limits
from iotdb_cluster.columns import Column, DataType, RowBatch, Rows, Tablet, TextColumn
from iotdb_cluster.errors import CallerError, InvariantViolation, Status
from iotdb_cluster.rpc import InsertKind, Redirect, ResultHeader
from iotdb_cluster.rpc.idl import client as idl
from iotdb_cluster.rpc.wire import BINARY, Wire


def double(value: float) -> bytes:
    return struct.pack(">bd", 4, value)


def record(client: Any, device: str = "root.a.d", cells: bytes | None = None, time: int = 5) -> Any:
    return idl().TSInsertRecordReq(client.session, device, ["x"], double(1.5) if cells is None else cells, time)


def records(client: Any, cells: list[bytes]) -> Any:
    count = len(cells)
    devices = [f"root.a.d{i}" for i in range(count)]
    return idl().TSInsertRecordsReq(client.session, devices, [["x"]] * count, cells, list(range(count)))


def query(client: Any, text: str = "SELECT", fetch: int | None = 10, timeout: int | None = None) -> Any:
    return idl().TSExecuteStatementReq(client.session, text, 1, fetch, timeout)


def fetch(client: Any, query_id: int, rows: int = 10, timeout: int = 1000) -> Any:
    return idl().TSFetchResultsReq(client.session, "SELECT", rows, query_id, True, timeout)


async def test_login(served: Any, wire: Wire) -> None:
    client = await served.connect(wire, login=False)
    answer = await client.open()
    assert (answer.status.code, answer.status.message, answer.serverProtocolVersion) == (200, "Login successfully", 2)
    assert answer.sessionId == 1
    assert answer.configuration is None
    wrong = await client.open(password="x")
    assert (wrong.status.code, wrong.sessionId, wrong.serverProtocolVersion) == (600, -1, 2)
    old = await client.open(version=1)
    assert old.status.code == 203
    assert old.status.message == "The version is incompatible, please upgrade to 0.12.6"
    assert (await client.open(zone="Mars/Base")).status.code == 402


async def test_zones(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    for text, canonical in (("+0000", "Z"), ("Asia/Shanghai", "Asia/Shanghai"), ("GMT+8", "GMT+08:00")):
        status = await client.call("setTimeZone", idl().TSSetTimeZoneReq(client.session, text))
        assert status.code == 200
        answer = await client.call("getTimeZone", client.session)
        assert (answer.status.code, answer.timeZone) == (200, canonical)
    status = await client.call("setTimeZone", idl().TSSetTimeZoneReq(client.session, "nowhere"))
    assert status.code == 403
    assert status.message.startswith("[SET_TIME_ZONE_ERROR] Exception occurred while setting time zone. ")
    assert (await client.call("getTimeZone", 99)).timeZone == "Unknown time zone"


async def test_without_a_session(served: Any, wire: Wire) -> None:
    client = await served.connect(wire, login=False)
    other = await served.connect(wire)
    properties = await client.call("getProperties")
    assert (properties.version, properties.timestampPrecision) == ("0.12.6", "ms")
    assert properties.supportedTimeAggregationOperations == ["max_time", "min_time"]
    assert await client.call("requestStatementId", 0) > 0
    client.session = other.session  # another connection's number opens nothing
    assert (await client.call("executeStatement", query(client))).status.code == 601
    assert (await client.call("insertRecord", record(client))).code == 601
    fetched = await client.call("fetchResults", fetch(client, 1))
    assert (fetched.status.code, fetched.hasResultSet, fetched.isAlign) == (601, False, False)
    assert fetched.status.message
    assert (await client.call("closeSession", idl().TSCloseSessionReq(other.session))).code == 601
    assert (await client.call("testInsertRecord", record(client, cells=b"\x07"))).code == 200
    assert served.handler.calls == []


async def test_query_to_its_end(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    answer = await client.call("executeQueryStatement", query(client))
    assert (answer.status.code, answer.status.message) == (200, None)
    assert answer.columns == ["root.a.x", "root.a.y", "root.a.x"]
    assert answer.dataTypeList == ["INT32", "TEXT", "INT32"]
    assert answer.columnNameIndexMap == {"root.a.x": 0, "root.a.y": 1}
    assert (answer.ignoreTimeStamp, answer.operationType) == (None, "QUERY")
    assert answer.nonAlignQueryDataSet is None
    block = answer.queryDataSet
    assert block.time == np.arange(10, dtype=">i8").tobytes()
    assert len(block.valueList) == len(block.bitmapList) == 2
    assert block.valueList[0] == np.array([0, 2, 3, 5, 6, 8, 9], ">i4").tobytes()
    assert block.bitmapList[0] == bytes([0b10110110, 0b11000000])
    assert block.valueList[1][:10] == b"\0\0\0\x06text 0"
    counts = []
    for _ in range(3):
        fetched = await client.call("fetchResults", fetch(client, answer.queryId))
        counts.append((fetched.hasResultSet, len(fetched.queryDataSet.time) // 8, fetched.isAlign))
    assert counts == [(True, 10, True), (True, 5, True), (False, 0, True)]
    assert served.handler.result.closed == 1
    assert (await client.call("fetchResults", fetch(client, answer.queryId))).status.code == 400
    for _ in range(2):
        close = idl().TSCloseOperationReq(client.session, answer.queryId, 1)
        assert (await client.call("closeOperation", close)).code == 200
    assert (await client.call("closeOperation", idl().TSCloseOperationReq(client.session, 1))).code == 501


async def test_closing_without_a_statement_releases_the_query(served: Any, wire: Wire) -> None:
    """The stock Go client names only the query: 501 for it, but its result set must not stay open."""
    client = await served.connect(wire)
    answer = await client.call("executeQueryStatement", query(client))
    assert served.handler.result.closed == 0
    assert (await client.call("closeOperation", idl().TSCloseOperationReq(client.session, answer.queryId))).code == 501
    assert served.handler.result.closed == 1
    assert (await client.call("fetchResults", fetch(client, answer.queryId))).status.code == 400


async def test_kinds_of_statements(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    update = await client.call("executeUpdateStatement", query(client, "CREATE", fetch=None))
    assert (update.status.code, update.status.message) == (200, "Execute successfully")
    assert update.queryId is not None
    assert update.columns is None
    assert (await client.call("executeQueryStatement", query(client, "CREATE"))).status.code == 400
    call = served.handler.calls[0]
    assert call[:3] == ("execute", "CREATE", "update")
    assert call[3]["fetch_rows"] == limits.FETCH_ROWS_DEFAULT
    assert call[3]["timeout_ms"] == limits.QUERY_TIMEOUT_MS


async def test_closing_statements_and_cancelling(served: Any) -> None:
    client = await served.connect()
    first = await client.call("executeStatement", query(client))
    assert first.queryId
    cancel = idl().TSCancelOperationReq(client.session, first.queryId)
    assert (await client.call("cancelOperation", cancel)).code == 200
    assert (await client.call("cancelOperation", cancel)).code == 200, "as closeOperation: it may be over already"
    assert served.handler.result.closed == 1
    served.handler.result = None
    await client.call("executeStatement", query(client))
    assert (await client.call("closeOperation", idl().TSCloseOperationReq(client.session, None, 1))).code == 200
    assert served.handler.result.closed == 1


async def cancelled(served: Any, make_message: Any, client: Any, method: str, request: Any, query_id: int) -> Any:
    """The answer of a call that works when a cancelOperation for the query comes in behind it."""
    served.handler.killed = asyncio.Event()
    await client.send(make_message(BINARY, method, request))
    await served.settle(lambda: len(served.handler.calls) == 1)
    cancel = idl().TSCancelOperationReq(client.session, query_id)
    await client.send(make_message(BINARY, "cancelOperation", cancel))
    answer = client.unpack(method, await client.receive())
    assert client.unpack("cancelOperation", await client.receive()).code == 200
    return answer


@pytest.mark.parametrize("method", ["executeStatement", "executeQueryStatement", "executeUpdateStatement"])
async def test_a_running_statement_is_cancelled_by_a_call_behind_it(
    served: Any, make_message: Any, method: str
) -> None:
    client = await served.connect()
    answer = await cancelled(served, make_message, client, method, query(client), 0)
    assert (answer.status.code, served.handler.ended) == (411, [1])


async def test_who_cancels_names_the_query_and_owns_the_session(served: Any, make_message: Any) -> None:
    client = await served.connect()
    served.handler.killed = asyncio.Event()
    await client.send(make_message(BINARY, "executeStatement", query(client)))
    await served.settle(lambda: len(served.handler.calls) == 1)
    for session, number in ((client.session, 77), (client.session + 1, 0)):
        await client.send(make_message(BINARY, "cancelOperation", idl().TSCancelOperationReq(session, number)))
    await client.send(make_message(BINARY, "getTimeZone", client.session))
    await asyncio.sleep(0.02)
    assert served.handler.ended == []
    served.handler.killed.set()
    codes = [client.unpack("executeStatement", await client.receive()).status.code]
    codes += [client.unpack("cancelOperation", await client.receive()).code for _ in range(2)]
    assert codes == [411, 200, 601]
    assert client.unpack("getTimeZone", await client.receive()).status.code == 200


async def test_vanishing_ends_a_query_that_came_by_execute_statement(served: Any, make_message: Any) -> None:
    served.handler.killed = asyncio.Event()
    client = await served.connect()
    await client.send(make_message(BINARY, "executeStatement", query(client)))
    await served.settle(lambda: len(served.handler.calls) == 1)
    client.writer.transport.abort()
    await served.settle(lambda: served.handler.ended == [1])
    await served.settle(lambda: len(served.handler.closed_sessions) == 1)


async def test_time_out(served: Any) -> None:
    client = await served.connect()
    served.handler.wait = asyncio.Event()
    answer = await client.call("executeQueryStatement", query(client, timeout=20))
    assert answer.status.code == 701
    assert answer.status.message.startswith("Current query is time out")
    assert served.handler.cancelled == 1


async def test_not_aligned(served: Any, make_result: Any, wire: Wire) -> None:
    header = ResultHeader(["a", "b"], [DataType.INT32, DataType.INT32], None, "QUERY", {"a": 0, "b": 1}, True)
    series = [(np.arange(n, dtype=np.int64), Column(DataType.INT32, np.arange(n, dtype=np.int32))) for n in (3, 12)]
    served.handler.result = make_result(header, None, series)
    client = await served.connect(wire)
    answer = await client.call("executeStatement", query(client))
    assert answer.queryDataSet is None
    assert [len(times) // 8 for times in answer.nonAlignQueryDataSet.timeList] == [3, 10]
    fetched = await client.call("fetchResults", fetch(client, answer.queryId))
    assert (fetched.hasResultSet, fetched.isAlign) == (True, False)
    assert [len(times) // 8 for times in fetched.nonAlignQueryDataSet.timeList] == [0, 2]
    fetched = await client.call("fetchResults", fetch(client, answer.queryId))
    assert (fetched.hasResultSet, fetched.isAlign) == (False, False)


async def test_long_rows_come_in_smaller_blocks(served: Any, make_result: Any) -> None:
    count, text = 40, b"x" * limits.MIB
    header = ResultHeader(["t"], [DataType.TEXT], True, "SHOW")
    rows = RowBatch(np.arange(count, dtype=np.int64), [Column(DataType.TEXT, TextColumn.full(count, text))])
    served.handler.result = make_result(header, rows)
    client = await served.connect()
    answer = await client.call("executeStatement", query(client, fetch=1000))
    seen = len(answer.queryDataSet.time) // 8
    assert 1 <= seen <= 14
    while True:
        fetched = await client.call("fetchResults", fetch(client, answer.queryId, 1000))
        if not fetched.hasResultSet:
            break
        assert len(fetched.queryDataSet.valueList[0]) < limits.RESPONSE_BYTES_MAX
        seen += len(fetched.queryDataSet.time) // 8
    assert seen == count


async def test_failing_fetch_ends_the_query(
    served: Any, make_result: Any, make_sample: Any, sample_header: Any
) -> None:
    result = served.handler.result = make_result(sample_header, make_sample(30))
    client = await served.connect()
    answer = await client.call("executeStatement", query(client))
    result.fail = CallerError(Status.QUERY_PROCESS_ERROR, "the cursor expired")
    assert (await client.call("fetchResults", fetch(client, answer.queryId))).status.message == "the cursor expired"
    assert (await client.call("fetchResults", fetch(client, answer.queryId))).status.code == 400
    assert result.closed == 1


async def test_batch(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    good = await client.call("executeBatchStatement", idl().TSExecuteBatchStatementReq(client.session, ["a", "b"]))
    assert (good.code, good.subStatus) == (200, None)
    bad = await client.call(
        "executeBatchStatement", idl().TSExecuteBatchStatementReq(client.session, ["a", "bad", "c"])
    )
    assert (bad.code, bad.message) == (506, None)
    assert [part.code for part in bad.subStatus] == [200, 401, 200]


async def test_schema_calls(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    number = client.session
    assert (await client.call("setStorageGroup", number, "root.a")).code == 200
    assert (await client.call("deleteStorageGroups", number, ["root.a"])).code == 200
    assert (await client.call("deleteTimeseries", number, ["root.a.b.c"])).code == 200
    assert (await client.call("deleteData", idl().TSDeleteDataReq(number, ["root.a.b.c"], -5, 5))).code == 200
    spec = idl().TSCreateTimeseriesReq(number, "root.a.b.c", 1, 2, 1, None, {"k": "v"}, None, "alias")
    assert (await client.call("createTimeseries", spec)).code == 200
    multi = idl().TSCreateMultiTimeseriesReq(number, ["root.a.b.c", "root.a.b.d"], [1, 2], [0, 0], [1, 1])
    multi.measurementAliasList = ["m", "n"]
    assert (await client.call("createMultiTimeseries", multi)).code == 200
    kinds = [call[0] for call in served.handler.calls]
    assert kinds[:4] == ["set_storage_group", "delete_storage_groups", "delete_timeseries", "delete_data"]
    (_, (one,), is_multi), (_, two, _) = served.handler.calls[4:]
    assert (one.path, one.type, one.encoding, one.compressor, one.tags, one.alias) == (
        "root.a.b.c", 1, 2, 1, {"k": "v"}, "alias",
    )  # fmt: skip
    assert not is_multi
    assert [(spec.path, spec.alias, spec.tags) for spec in two] == [
        ("root.a.b.c", "m", None),
        ("root.a.b.d", "n", None),
    ]
    multi.dataTypes = [1]
    assert (await client.call("createMultiTimeseries", multi)).code == 318
    served.handler.fail = CallerError(Status.MULTIPLE_ERROR, "", [None, CallerError(Status.TIMESERIES_NOT_EXIST, "b")])
    deleted = await client.call("deleteTimeseries", number, ["a", "b"])
    assert (deleted.code, [(part.code, part.message) for part in deleted.subStatus]) == (506, [(200, None), (304, "b")])


async def test_metadata_and_raw_query(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)

    async def ask(kind: str, path: str | None = None) -> Any:
        return await client.call("fetchMetadata", idl().TSFetchMetadataReq(client.session, kind, path))

    assert (await ask("METADATA_IN_JSON")).metadataInJson == "text"
    assert (await ask("COLUMN", "root.a")).dataType == "text"
    assert (await ask("ALL_COLUMNS", "root")).columnsList == ["root.a", "root.b"]
    wrong = await ask("OTHER")
    assert (wrong.status.code, wrong.status.message) == (303, "OTHER")
    raw = idl().TSRawDataQueryReq(client.session, ["root.a.x"], 2, 1, 9, 1)
    answer = await client.call("executeRawDataQuery", raw)
    assert len(answer.queryDataSet.time) == 16
    assert served.handler.calls[-1] == ("raw_query", ["root.a.x"], 1, 9)


async def test_templates(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    template = idl().TSCreateSchemaTemplateReq(client.session, "t", ["a"], [["m", "n"]], [[1, 2]], [[0, 0]], [1])
    assert (await client.call("createSchemaTemplate", template)).code == 200
    assert served.handler.calls[-1][1].measurements == [["m", "n"]]
    assert (
        await client.call("setSchemaTemplate", idl().TSSetSchemaTemplateReq(client.session, "t", "root.a"))
    ).code == 200
    assert served.handler.calls[-1] == ("set_template", "t", "root.a")
    newer = idl().TSCreateSchemaTemplateReq(client.session, "t")
    assert (await client.call("createSchemaTemplate", newer)).code == 703


async def test_methods_of_0_13_and_unknown_ones(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    drop = await client.call("dropSchemaTemplate", idl().TSDropSchemaTemplateReq(client.session, "t"))
    assert drop.code == 703
    assert "dropSchemaTemplate" in drop.message
    last = await client.call("executeLastDataQuery", idl().TSLastDataQueryReq(client.session, [], 1, 0, 1))
    assert last.status.code == 703
    asked = await client.call("querySchemaTemplate", idl().TSQueryTemplateReq(client.session, "t", 1))
    assert (asked.status.code, asked.queryType) == (703, 0)
    await client.send(wire.head(1, "dance", 7) + b"\0")
    with pytest.raises(TApplicationException) as caught:
        client.unpack("dance", await client.receive())
    assert caught.value.type == 1
    assert (await client.call("executeStatement", query(client, "DROP"))).status.code == 200  # still served


async def test_inserts(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    served.handler.redirect = Redirect("host", 6667)
    answer = await client.call("insertRecord", record(client))
    assert (answer.code, answer.message) == (200, "Execute successfully")
    assert (answer.redirectNode.ip, answer.redirectNode.port) == ("host", 6667)
    _, (rows,), kind = served.handler.calls[-1]
    assert isinstance(rows, Rows)
    assert kind is InsertKind.RECORD
    assert bytes(rows.packed) == struct.pack(">q", 5) + double(1.5)
    answer = await client.call("insertRecords", records(client, [double(1), double(2)]))
    assert (answer.code, answer.redirectNode, answer.subStatus) == (200, None, None)
    times, cells = np.array([3, 1], ">i8").tobytes(), np.array([1, 2, 3, 4], ">i4").tobytes()
    tablet = idl().TSInsertTabletReq(client.session, "root.a.d", ["x", "y"], cells, times, [1, 1], 2)
    answer = await client.call("insertTablet", tablet)
    assert answer.redirectNode.port == 6667
    block = served.handler.calls[-1][1][0]
    assert isinstance(block, Tablet)
    assert [column.tolist() for column in block.columns] == [[1, 2], [3, 4]]
    one = idl().TSInsertRecordsOfOneDeviceReq(client.session, "root.a.d", [["x"]], [double(1)], [1])
    answer = await client.call("insertRecordsOfOneDevice", one)
    assert (answer.code, [part.code for part in answer.subStatus]) == (200, [200])
    tablet.size, tablet.values, tablet.timestamps = 0, b"", b""
    calls = len(served.handler.calls)
    assert (await client.call("insertTablet", tablet)).code == 200
    assert len(served.handler.calls) == calls


async def test_failures_of_inserts_stand_at_their_place(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    mismatch = CallerError(Status.STORAGE_ENGINE_ERROR, "DataType mismatch")
    served.handler.fail = CallerError(Status.MULTIPLE_ERROR, "", [None, mismatch])
    cells = [double(1), b"\x04\x00", double(3)]  # the second is refused here, the third by the handler
    answer = await client.call("insertRecords", records(client, cells))
    assert (answer.code, [part.code for part in answer.subStatus]) == (506, [200, 318, 313])
    assert all(part.message for part in answer.subStatus[1:])
    served.handler.fail = CallerError(Status.NO_LEADER, "nobody leads")  # all that it got failed
    answer = await client.call("insertRecords", records(client, cells))
    assert (answer.code, [part.code for part in answer.subStatus]) == (506, [702, 318, 702])
    served.handler.fail = CallerError(Status.MULTIPLE_ERROR, "", [None, mismatch])
    one = idl().TSInsertRecordsOfOneDeviceReq(client.session, "root.a.d", [["x"]] * 2, cells[::2], [1, 2])
    answer = await client.call("insertRecordsOfOneDevice", one)
    assert (answer.code, [part.code for part in answer.subStatus]) == (506, [313])
    served.handler.fail = mismatch
    assert (await client.call("insertRecord", record(client))).code == 313
    assert (await client.call("insertRecords", records(client, cells[::2]))).code == 313  # refused as a whole
    assert (await client.call("insertRecords", records(client, []))).code == 411
    one = idl().TSInsertRecordsOfOneDeviceReq(client.session, "root.a.d", [], [], [])
    assert (await client.call("insertRecordsOfOneDevice", one)).code == 200
    uneven = records(client, cells)
    uneven.timestamps = [1]
    answer = await client.call("insertRecords", uneven)
    assert answer.code == 318
    assert "3, 3, 3, 1" in answer.message


async def test_tablet_rows_that_failed(served: Any) -> None:
    client = await served.connect()
    ttl = CallerError(Status.OUT_OF_TTL, "too old")
    served.handler.fail = CallerError(Status.MULTIPLE_ERROR, "", [ttl, None])
    times = np.array([1, 2], ">i8").tobytes()
    tablet = idl().TSInsertTabletReq(client.session, "root.a.d", ["x"], times, times, [2], 2)
    answer = await client.call("insertTablet", tablet)
    assert (answer.code, [part.code for part in answer.subStatus]) == (506, [305, 200])
    served.handler.fail = CallerError(Status.MULTIPLE_ERROR, "", [None, ttl])
    tablets = idl().TSInsertTabletsReq(
        client.session, ["root.a.d"] * 4, [["x"]] * 4, [times] * 3 + [b""], [times] * 3 + [b""], [[2], [9], [2], [2]],
        [2, 2, 2, 0],
    )  # fmt: skip
    answer = await client.call("insertTablets", tablets)
    assert (answer.code, [part.code for part in answer.subStatus]) == (506, [200, 318, 305, 200])


async def test_text_records(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    req = idl().TSInsertStringRecordReq(client.session, "root.a.d", ["x", "y"], ["1.5", ""], 5)
    assert (await client.call("insertStringRecord", req)).code == 200
    _, (row,), kind = served.handler.calls[-1]
    assert (row.values, row.time, kind) == (["1.5", ""], 5, InsertKind.STRING_RECORD)
    req.measurements, req.values = [], []
    assert (await client.call("insertStringRecord", req)).code == 411
    many = idl().TSInsertStringRecordsReq(
        client.session, ["a", "b", "c"], [["x", "y"], ["x"], ["x", "y"]], [["1", ""], [""], ["1"]], [1, 2, 3]
    )
    answer = await client.call("insertStringRecords", many)
    assert [part.code for part in answer.subStatus] == [200, 200, 318]
    _, (row,), _ = served.handler.calls[-1]
    assert (row.device, row.measurements, row.values) == ("a", ("x",), ["1"])
    untyped = b"\xff" + struct.pack(">i2s", 2, b"12") + double(1.5)
    req = idl().TSInsertRecordReq(client.session, "root.a.d", ["x", "y"], untyped, 9)
    assert (await client.call("insertRecord", req)).code == 200
    _, (row,), _ = served.handler.calls[-1]
    assert (row.values, row.types) == (["12", "1.5"], (None, DataType.DOUBLE))


async def test_unexpected_failures(served: Any, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    client = await served.connect(wire)
    served.handler.fail = ValueError("wrong 5")
    with caplog.at_level(logging.ERROR):
        answer = await client.call("executeStatement", query(client, 'SELECT "{}"'))
        assert answer.status.code == 500
        assert answer.status.message == (
            '[INTERNAL_SERVER_ERROR] Exception occurred while executing "SELECT "{}"". ValueError: wrong 5'
        )
        assert (await client.call("insertRecord", record(client))).code == 500
    assert [entry.exc_info is not None for entry in caplog.records] == [True, True]
    assert served.faults == []
    served.handler.fail = InvariantViolation("1 is 2")
    with caplog.at_level(logging.CRITICAL):
        assert (await client.call("insertRecord", record(client))).code == 500
    assert served.faults == [served.handler.fail]


async def test_a_client_that_vanishes(served: Any, make_result: Any, make_sample: Any, sample_header: Any) -> None:
    client = await served.connect()
    result = served.handler.result = make_result(sample_header, make_sample(30))
    await client.call("executeStatement", query(client))
    served.handler.wait = asyncio.Event()
    await client.send(b"")  # nothing that has a meaning: it only ends this connection
    await served.settle(lambda: served.service.connections == 0)
    assert result.closed == 1
    assert len(served.handler.closed_sessions) == 1

    client = await served.connect()
    await client.send(b"")
    await served.settle(lambda: served.service.connections == 0)


async def test_vanishing_cancels_queries_and_lets_writes_end(served: Any, make_message: Any) -> None:
    served.handler.wait = asyncio.Event()
    reader = await served.connect()
    await reader.send(make_message(BINARY, "executeQueryStatement", query(reader)))
    await served.settle(lambda: len(served.handler.calls) == 1)
    reader.writer.transport.abort()
    await served.settle(lambda: served.handler.cancelled == 1)
    writer = await served.connect()
    await writer.send(make_message(BINARY, "insertRecord", record(writer)))
    await served.settle(lambda: len(served.handler.calls) == 2)
    writer.writer.transport.abort()
    await asyncio.sleep(0.02)
    assert served.handler.cancelled == 1
    served.handler.wait.set()
    await served.settle(lambda: len(served.handler.closed_sessions) == 2)
    assert served.service.connections == 0


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xff\xff\xff",
        b"\x80\x00\x00\x00",
        struct.pack(">i", limits.FRAME_BYTES_MAX + 1),
        struct.pack(">i", limits.FRAME_BYTES_BEFORE_LOGIN_MAX + 1),
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">i", 4) + b"\x80\x02\x00\x01",
        struct.pack(">i", 3) + b"\x82\x00\x00",
        struct.pack(">i", 9) + b"\x80\x01\x00\x01\x7f\xff\xff\xff\x00",
        struct.pack(">i", 16) + b"\x80\x01\x00\x02\x00\x00\x00\x04abcd\x00\x00\x00\x00",
    ],
)
async def test_what_is_no_message_ends_only_its_connection(served: Any, junk: bytes) -> None:
    other = await served.connect()
    client = await served.connect(login=False)
    client.writer.write(junk)
    assert await client.gone()
    assert (await other.call("executeStatement", query(other, "DROP"))).status.code == 200


async def test_arguments_that_are_none_are_told(served: Any, wire: Wire, make_message: Any) -> None:
    client = await served.connect(wire)
    for name in ("insertRecord", "executeStatement", "insertTablet"):
        whole = make_message(wire, name, *([] if name == "x" else [None]))
        await client.send(whole)
        with pytest.raises(TApplicationException) as caught:
            client.unpack(name, await client.receive())
        assert caught.value.type == 7
        assert name in caught.value.message
    assert (await client.call("executeStatement", query(client, "DROP"))).status.code == 200


async def test_cut_messages_are_answered(served: Any, wire: Wire, make_message: Any) -> None:
    client = await served.connect(wire)
    for name, request in (("insertRecord", record(client)), ("executeStatement", query(client, "DROP"))):
        whole = make_message(wire, name, request)
        start = wire.message(whole, 0).body
        for stop in range(start, len(whole)):
            await client.send(whole[:stop])
            with pytest.raises(TApplicationException) as caught:
                client.unpack(name, await client.receive())
            assert caught.value.type == 7
    assert served.handler.calls == []


async def test_half_a_frame_and_then_nothing(served: Any) -> None:
    client = await served.connect()
    client.writer.write(struct.pack(">i", 1000) + b"\x80\x01")
    await asyncio.sleep(0.02)
    assert served.service.budget.used == 6
    await client.close()
    await served.settle(lambda: served.service.connections == 0)
    assert served.service.budget.used == 0


async def test_pipelined_calls_are_answered_in_order(served: Any, make_message: Any) -> None:
    client = await served.connect()
    calls = 500
    data = b""
    for number in range(calls):
        call = make_message(BINARY, "executeStatement", query(client, f"DROP {number}"), seqid=number)
        data += struct.pack(">i", len(call)) + call
    client.writer.write(data)
    for number in range(calls):
        assert BINARY.message(await client.receive(), 0).seqid == number
    assert [call[1] for call in served.handler.calls] == [f"DROP {number}" for number in range(calls)]


async def test_what_waits_is_bounded(served: Any, make_message: Any) -> None:
    served.handler.wait = asyncio.Event()
    client = await served.connect()
    call = make_message(BINARY, "executeStatement", query(client, "x" * 50_000))
    client.writer.write((struct.pack(">i", len(call)) + call) * 400)  # 20 MB
    await asyncio.sleep(0.3)
    (connection,) = served.service._connections
    assert len(served.handler.calls) == 1
    assert connection._waiting_bytes == sum(map(len, connection._waiting)) <= 2 * limits.MIB
    served.handler.wait.set()
    await served.settle(lambda: len(served.handler.calls) == 400)


async def test_a_client_that_does_not_read_is_not_worked_for(served: Any, make_result: Any, make_message: Any) -> None:
    header = ResultHeader(["t"], [DataType.TEXT], True, "SHOW")
    rows = RowBatch(np.zeros(1, np.int64), [Column(DataType.TEXT, TextColumn.full(1, b"x" * 8 * limits.MIB))])
    client = await served.connect()
    for _ in range(30):
        served.handler.result = make_result(header, rows)
        await client.send(make_message(BINARY, "executeStatement", query(client)))
    await asyncio.sleep(0.3)
    assert len(served.handler.calls) <= 3
    client.writer.transport.abort()
    await served.settle(lambda: served.service.connections == 0)


async def test_large_calls_are_decoded_beside_the_loop(served: Any, wire: Wire) -> None:
    client = await served.connect(wire)
    rows = 100_000
    times = np.arange(rows, dtype=">i8").tobytes()
    tablet = idl().TSInsertTabletReq(client.session, "root.a.d", ["x", "y"], times * 2, times, [2, 2], rows)
    assert (await client.call("insertTablet", tablet)).code == 200
    assert len(served.handler.calls[-1][1][0]) == rows
    assert (await client.call("executeStatement", query(client, "DROP " + "x" * 2 * limits.MIB))).status.code == 200


async def test_too_many_connections(served: Any) -> None:
    served.service.limits.connections_max = 1
    first = await served.connect()
    second = await served.connect(login=False)
    assert await second.gone()
    assert (await first.call("executeStatement", query(first, "DROP"))).status.code == 200


async def test_too_many_queries(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotdb_cluster.rpc.cursors.SESSION_QUERIES_MAX", 2)
    client = await served.connect()
    results = []
    codes = []
    for _ in range(3):
        served.handler.result = None
        codes.append((await client.call("executeStatement", query(client))).status.code)
        results.append(served.handler.result)
    assert codes == [200, 200, 411]
    assert [result.closed for result in results] == [0, 0, 1]


async def test_closing_the_service(served: Any, make_message: Any) -> None:
    served.handler.wait = asyncio.Event()
    client = await served.connect()
    await client.send(make_message(BINARY, "insertRecord", record(client)))
    await served.settle(lambda: len(served.handler.calls) == 1)
    await served.service.close()
    assert await client.gone()
    assert served.handler.cancelled == 1
    assert len(served.handler.closed_sessions) == 1
