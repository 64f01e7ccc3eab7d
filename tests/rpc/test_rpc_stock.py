"""The stock Python client 0.12.6 against a running service, binary and compact."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from iotdb_cluster.columns import Rows
from iotdb_cluster.rpc.wire import COMPACT, Wire

pytest.importorskip("iotdb")


def work(port: int, compact: bool) -> dict[str, Any]:
    from iotdb.Session import Session
    from iotdb.utils.IoTDBConstants import Compressor, TSDataType, TSEncoding
    from iotdb.utils.Tablet import Tablet

    session = Session("127.0.0.1", str(port), "root", "root", fetch_size=10, zone_id="+0800")
    session.open(compact)
    names, kinds = ["b", "i", "l", "f", "d", "t"], list(TSDataType)[:6]
    cells = [True, 1, 2, 1.5, 2.5, "text"]
    tablet = Tablet("root.a.d", names, kinds, [cells, [False, -1, -2, -1.5, -2.5, "ä"]], [2, 1])
    found: dict[str, Any] = {}
    codes = found["codes"] = [
        session.set_storage_group("root.a"),
        session.create_time_series("root.a.d.i", TSDataType.INT32, TSEncoding.PLAIN, Compressor.SNAPPY),
        session.create_multi_time_series(["root.a.d.x"], [TSDataType.INT32], [TSEncoding.PLAIN], [Compressor.SNAPPY]),
        session.insert_tablet(tablet),
        session.insert_tablets([tablet, tablet]),
        session.insert_record("root.a.d", 5, names, kinds, cells),
        session.insert_records(["root.a.d", "root.a.e"], [1, 2], [names[:5]] * 2, [kinds[:5]] * 2, [cells[:5]] * 2),
        session.insert_records_of_one_device("root.a.d", [1, 2], [names] * 2, [kinds] * 2, [cells] * 2),
        session.insert_str_record("root.a.d", 7, ["x"], ["12"]),
        session.test_insert_record("root.a.d", 5, names, kinds, cells),
        session.test_insert_tablet(tablet),
        session.execute_non_query_statement("CREATE TIMESERIES x"),
        session.delete_time_series(["root.a.d.i"]),
        session.delete_storage_groups(["root.a"]),
    ]
    assert codes
    result = session.execute_query_statement("SELECT *")
    rows = []
    while result.has_next():
        row = result.next()
        rows.append((row.get_timestamp(), [str(field) for field in row.get_fields()]))
    result.close_operation_handle()
    found["rows"] = rows
    session.close()
    return found


@pytest.mark.filterwarnings("default")
async def test_stock_python_client(served: Any, wire: Wire) -> None:
    async with asyncio.timeout(30):
        found = await asyncio.get_running_loop().run_in_executor(None, work, served.port, wire is COMPACT)
    assert found["codes"] == [0] * len(found["codes"])
    assert [time for time, _ in found["rows"]] == list(range(25))
    assert found["rows"][0][1] == ["0", "text 0", "0"]
    assert found["rows"][1][1] == ["None", "text 1", "None"]
    calls = [call for call in served.handler.calls if call[0] == "insert"]
    (tablet,) = calls[0][1]
    assert tablet.device == "root.a.d"
    assert sorted(tablet.times.tolist()) == [1, 2]
    assert dict(zip(tablet.times.tolist(), tablet.columns[5].tolist(), strict=True)) == {2: b"text", 1: "ä".encode()}
    assert [type(block) for block in calls[3][1]] == [Rows, Rows]
    assert [column.tolist() for column in calls[3][1][1].to_tablet().columns] == [[True], [1], [2], [1.5], [2.5]]
    await served.settle(lambda: len(served.handler.closed_sessions) == 1)
