"""Typed calls of stock clients on a real cluster: hints to the leader, partial failures, what is not built."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest

TSIService = pytest.importorskip("iotdb.thrift.rpc.TSIService")
from iotdb.thrift.rpc import ttypes as t  # noqa: E402 - only where the stock client is installed
from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated  # noqa: E402
from thrift.protocol.TCompactProtocol import TCompactProtocolAccelerated  # noqa: E402
from thrift.transport import TSocket, TTransport  # noqa: E402

INT32, DOUBLE, TEXT = 1, 4, 5


class Client:
    """A session of the stock client's generated code."""

    def __init__(self, port: int, protocol: Any = TBinaryProtocolAccelerated) -> None:
        self.transport = TTransport.TFramedTransport(TSocket.TSocket("127.0.0.1", port))
        self.transport.open()
        self.raw = TSIService.Client(protocol(self.transport))
        opened = self.raw.openSession(
            t.TSOpenSessionReq(client_protocol=2, username="root", password="root", zoneId="UTC")
        )
        assert opened.status.code == 200
        self.id = opened.sessionId
        self.statement = self.raw.requestStatementId(self.id)

    def close(self) -> None:
        self.transport.close()

    def record(self, device: str, names: list[str], kinds: list[int], values: list[Any], time: int) -> Any:
        return self.raw.insertRecord(t.TSInsertRecordReq(self.id, device, names, cells(kinds, values), time))

    def query(self, sql: str) -> Any:
        return self.raw.executeQueryStatement(t.TSExecuteStatementReq(self.id, sql, self.statement, 1000))


def cells(kinds: list[int], values: list[Any]) -> bytes:
    out = b""
    for kind, value in zip(kinds, values, strict=True):
        if kind == TEXT:
            out += struct.pack(">bi", kind, len(value)) + value
        else:
            out += struct.pack(">b" + {INT32: "i", DOUBLE: "d"}[kind], kind, value)
    return out


@pytest.fixture(scope="module")
def clients(cluster: Any) -> Iterator[list[Client]]:
    made = [Client(port) for port in cluster.ports]
    yield made
    for client in made:
        client.close()


def test_one_node_takes_the_write_itself_the_others_name_it(clients: list[Client], cluster: Any) -> None:
    hints = []
    for time, client in enumerate(clients):
        status = client.record("root.hint.d1", ["s"], [DOUBLE], [1.0], time)
        assert status.code == 200
        hints.append(status.redirectNode)
    assert [hint is None for hint in hints].count(True) == 1
    leader = cluster.ports[[hint is None for hint in hints].index(True)]
    assert {hint.port for hint in hints if hint is not None} == {leader}
    assert {hint.ip for hint in hints if hint is not None} == {"127.0.0.1"}


def test_calls_over_several_devices_and_queries_get_no_hint(clients: list[Client]) -> None:
    for client in clients:
        devices = [f"root.many{i}.d" for i in range(6)]
        values = [cells([DOUBLE], [2.0])] * 6
        request = t.TSInsertRecordsReq(client.id, devices, [["s"]] * 6, values, list(range(6)))
        status = client.raw.insertRecords(request)
        assert (status.code, status.redirectNode, status.subStatus) == (200, None, None)
        assert client.query("SELECT s FROM root.many1.d").status.redirectNode is None


def test_the_good_columns_of_a_record_are_stored(clients: list[Client]) -> None:
    first = clients[0]
    assert first.record("root.part.d", ["i", "x"], [INT32, DOUBLE], [1, 1.0], 1).code == 200
    for client in clients:
        status = client.record("root.part.d", ["i", "x"], [DOUBLE, DOUBLE], [2.0, 2.0], 2)
        assert status.code == 313
        assert "DataType mismatch" in status.message
    answer = first.query("SELECT x FROM root.part.d")
    assert struct.unpack(">2d", answer.queryDataSet.valueList[0]) == (1.0, 2.0)


def test_a_series_made_again_with_another_type_is_written_through_every_node(clients: list[Client]) -> None:
    for client in clients:
        assert client.record("root.again.d", ["s"], [DOUBLE], [1.0], 1).code == 200
    assert clients[0].raw.deleteTimeseries(clients[0].id, ["root.again.d.s"]).code == 200
    for time, client in enumerate(clients):
        assert client.record("root.again.d", ["s"], [INT32], [7], time).code == 200
    answer = clients[2].query("SELECT s FROM root.again.d")
    assert answer.dataTypeList == ["INT32"]
    assert struct.unpack(">3i", answer.queryDataSet.valueList[0]) == (7, 7, 7)


def test_a_storage_group_made_again_is_written_through_every_node(clients: list[Client]) -> None:
    for client in clients:
        assert client.record("root.sgagain.d", ["s"], [DOUBLE], [1.0], 1).code == 200
    assert clients[1].raw.deleteStorageGroups(clients[1].id, ["root.sgagain"]).code == 200
    for time, client in enumerate(clients):
        assert client.record("root.sgagain.d", ["s"], [DOUBLE], [2.0], 10 + time).code == 200
    answer = clients[0].query("SELECT count(s) FROM root.sgagain.d")
    assert struct.unpack(">q", answer.queryDataSet.valueList[0]) == (3,)


def test_a_point_written_under_an_alias_is_found(clients: list[Client]) -> None:
    create = t.TSCreateTimeseriesReq(clients[0].id, "root.byname.d.s1", DOUBLE, 8, 1, measurementAlias="temperature")
    assert clients[0].raw.createTimeseries(create).code == 200
    for time, client in enumerate(clients):
        assert client.record("root.byname.d", ["temperature"], [DOUBLE], [3.5], time).code == 200
    answer = clients[1].query("SELECT count(s1) FROM root.byname.d")
    assert struct.unpack(">q", answer.queryDataSet.valueList[0]) == (3,)


def test_compact_clients_are_recognised(cluster: Any) -> None:
    client = Client(cluster.ports[0], TCompactProtocolAccelerated)
    assert client.record("root.compact.d", ["s", "text"], [DOUBLE, TEXT], [1.5, b"words"], 1).code == 200
    assert client.query("SELECT s FROM root.compact.d").status.code == 200
    client.close()


def test_what_is_not_built_answers_703_with_its_name(clients: list[Client]) -> None:
    status = clients[0].raw.setSchemaTemplate(t.TSSetSchemaTemplateReq(clients[0].id, "t", "root.x"))
    assert status.code == 703
    assert "setSchemaTemplate" in status.message
    answer = clients[0].raw.executeStatement(
        t.TSExecuteStatementReq(clients[0].id, "LOAD 'file.tsfile'", clients[0].statement, 10)
    )
    assert answer.status.code == 703


def test_ttl_hides_old_points_and_refuses_late_ones(clients: list[Client]) -> None:
    import time

    now = time.time_ns() // 1_000_000
    assert clients[0].record("root.ttl.d", ["s"], [DOUBLE], [1.0], now - 3_600_000).code == 200
    request = t.TSExecuteStatementReq(clients[0].id, "SET TTL TO root.ttl 60000", clients[0].statement, 10)
    assert clients[0].raw.executeStatement(request).status.code == 200
    for client in clients:
        assert client.record("root.ttl.d", ["s"], [DOUBLE], [1.0], now - 3_600_000).code == 305
        assert client.record("root.ttl.d", ["s"], [DOUBLE], [2.0], now).code == 200
        answer = client.query("SELECT count(s) FROM root.ttl.d")
        assert struct.unpack(">q", answer.queryDataSet.valueList[0]) == (1,)
