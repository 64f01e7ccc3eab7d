"""Administrative statements on a cluster of three processes: each concerns all of it, whichever node is asked."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.cluster.keys import CLUSTER_FILE, ENGINE_FILE
from iotdb_cluster.limits import QUERY_IDS_PER_NODE
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.tools.cli_connection import Connection, Disconnected, Refused, Results

WAIT_S = 30


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, once it gives anything."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return found


def connect(cluster: Any, node: int, user: str = "root", password: str = "root") -> Connection:
    connection = Connection("127.0.0.1", cluster.ports[node - 1])
    connection.open(user, password, "UTC")
    return connection


@pytest.fixture
def nodes(cluster: Any) -> Iterator[list[Connection]]:
    made = [connect(cluster, node) for node in (1, 2, 3)]
    yield made
    for connection in made:
        connection.close()


def rows(connection: Connection, text: str) -> list[tuple[Any, ...]]:
    """All cells of a result, with the Time column where it has one."""
    found = connection.execute(text)
    assert isinstance(found, Results), found
    cells = [list(zip(*(one.cells.tolist() for one in page.columns), strict=True)) for page in found.pages()]
    return [row for page in cells for row in page]


def said(connection: Connection, text: str) -> str:
    """The message of a statement without a result set, of a refusal with its code."""
    try:
        answer = connection.execute(text)
    except Refused as refused:
        return str(refused)
    assert isinstance(answer, str)
    return answer


def conf(cluster: Any, node: int, file: str = ENGINE_FILE) -> Path:
    path: Path = cluster.member(node).directory / "conf" / file
    return path


@contextmanager
def written(path: Path, text: str) -> Iterator[None]:
    """A property file with these lines behind its own."""
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + text)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_text(before)


# --- LOAD CONFIGURATION -----------------------------------------------------------------------------------------------


def test_hot_keys_reload_and_the_others_are_named(cluster: Any, nodes: list[Connection]) -> None:
    assert said(nodes[0], "LOAD CONFIGURATION") == "changed: nothing"
    with (
        written(conf(cluster, 1), "max_deduplicated_path_num=1\n"),
        written(conf(cluster, 1, CLUSTER_FILE), "web_port=1234\n"),
    ):
        text = said(nodes[0], "LOAD CONFIGURATION")
        assert text == "changed: max_deduplicated_path_num; need a restart: web_port"
        assert text in cluster.log(1)
        for name in "ab":
            nodes[0].execute(f"INSERT INTO root.conf.d(timestamp, {name}) VALUES (1, 1)")
        assert said(nodes[0], "SELECT a, b FROM root.conf.d").startswith(
            "411: Error occurred in query process: Too many"
        )
        assert len(rows(nodes[1], "SELECT a, b FROM root.conf.d")) == 1, "the other node's files say nothing of it"
    assert said(nodes[0], "LOAD CONFIGURATION") == "changed: max_deduplicated_path_num"
    assert len(rows(nodes[0], "SELECT a, b FROM root.conf.d")) == 1


def test_a_file_that_cannot_be_used_changes_nothing(cluster: Any, nodes: list[Connection]) -> None:
    with written(conf(cluster, 2), "max_deduplicated_path_num=1\nslow_query_threshold=soon\n"):
        text = said(nodes[1], "LOAD CONFIGURATION")
    assert text.startswith("411: The configuration is not loaded: ")
    assert f"{conf(cluster, 2)}:2: slow_query_threshold=soon" in text
    assert len(rows(nodes[1], "SHOW VERSION")) == 1
    assert said(nodes[1], "LOAD CONFIGURATION") == "changed: nothing"


def test_global_gives_the_asked_nodes_values_to_all(cluster: Any, nodes: list[Connection]) -> None:
    with written(conf(cluster, 3), "integer_string_infer_type=INT64\nmax_deduplicated_path_num=7\n"):
        text = said(nodes[2], "LOAD CONFIGURATION -GLOBAL")
    assert text == "changed: integer_string_infer_type, max_deduplicated_path_num; sent to 2 other nodes"
    for node, connection in enumerate(nodes, 1):
        connection.execute(f"INSERT INTO root.conf.d(timestamp, g{node}) VALUES (1, 1)")
        (series,) = rows(connection, f"SHOW TIMESERIES root.conf.d.g{node}")
        assert series[3] == b"INT64"
    for connection in nodes:  # each has its own file's values again
        connection.execute("LOAD CONFIGURATION")
    nodes[0].execute("INSERT INTO root.conf.d(timestamp, g9) VALUES (1, 1)")
    assert rows(nodes[0], "SHOW TIMESERIES root.conf.d.g9")[0][3] == b"FLOAT"


def test_a_time_out_and_the_number_of_clients_are_hot(cluster: Any, nodes: list[Connection]) -> None:
    assert nodes[0].properties().maxConcurrentClientNum == 10_000
    with written(conf(cluster, 1, CLUSTER_FILE), "max_concurrent_client_num=1\nconnection_timeout_ms=1500\n"):
        assert said(nodes[0], "LOAD CONFIGURATION") == "changed: connection_timeout_ms, max_concurrent_client_num"
        assert nodes[0].properties().maxConcurrentClientNum == 1
        with closing(Connection("127.0.0.1", cluster.ports[0])) as refused, pytest.raises(Disconnected):
            refused.open("root", "root", "UTC")
    nodes[0].execute("LOAD CONFIGURATION")
    connect(cluster, 1).close()


# --- queries ----------------------------------------------------------------------------------------------------------


def fill(connection: Connection, device: str, count: int = 3_000) -> None:
    times = np.arange(count, dtype=">i8").tobytes()
    request = client().TSInsertTabletReq(connection.session, device, ["s"], times, times, [2], count)
    status = connection.call("insertTablet", request)
    assert status.code == 200, status


def open_cursors(cluster: Any) -> float:
    """Of all nodes, by what each tells on its web port."""
    from urllib.request import urlopen

    total = 0.0
    for member in cluster.members:
        with urlopen(f"http://127.0.0.1:{member.web_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        total += sum(float(line.split()[1]) for line in lines if "open_cursors" in line and not line.startswith("#"))
    return total


def begun(connection: Connection, text: str) -> Results:
    """A query of which some rows are read, with more to come."""
    connection.fetch_rows = 10
    results = connection.execute(text)
    assert isinstance(results, Results)
    return results


def test_queries_of_all_nodes_are_listed_and_killed_anywhere(cluster: Any, nodes: list[Connection]) -> None:
    fill(nodes[0], "root.ended.d")
    opened = [begun(connection, "SELECT s FROM root.ended.d") for connection in nodes]
    listed = rows(nodes[1], "SHOW QUERY PROCESSLIST")
    assert [row[2] for row in listed] == [b"SELECT s FROM root.ended.d"] * 3
    numbers = [row[1] for row in listed]
    assert len(set(numbers)) == 3
    assert sorted(number // QUERY_IDS_PER_NODE for number in numbers) == [1, 2, 3]
    assert {results._query_id for results in opened} == set(numbers)
    assert open_cursors(cluster) >= 3

    assert said(nodes[2], f"KILL QUERY {numbers[0]}") == "Execute successfully"
    assert {row[1] for row in rows(nodes[0], "SHOW QUERY PROCESSLIST")} == set(numbers[1:])
    for results in opened:
        if results._query_id == numbers[0]:
            with pytest.raises(Refused, match="was killed"):
                list(results.pages())
    assert said(nodes[1], f"KILL QUERY {numbers[0]}") == f"411: Query Id {numbers[0]} is not exist, please check it."
    assert said(nodes[1], "KILL QUERY 123456").startswith("411: Query Id 123456 is not exist")
    assert said(nodes[1], "KILL QUERY") == "Execute successfully"
    assert rows(nodes[0], "SHOW QUERY PROCESSLIST") == []
    until(lambda: open_cursors(cluster) == 0)


@pytest.mark.parametrize("end", ["closes the session", "is gone"])
def test_a_cursor_goes_with_its_session_on_every_node(cluster: Any, nodes: list[Connection], end: str) -> None:
    fill(nodes[0], "root.gone.d", 300)
    other = connect(cluster, 2)
    begun(other, "SELECT s FROM root.gone.d")
    assert len(rows(nodes[2], "SHOW QUERY PROCESSLIST")) == 1
    other.close() if end == "closes the session" else other._socket.close()
    until(lambda: not rows(nodes[2], "SHOW QUERY PROCESSLIST"))
    until(lambda: open_cursors(cluster) == 0)


@contextmanager
def standing_still(cluster: Any, *numbers: int) -> Iterator[None]:
    """Nodes that neither answer nor end: queries that need them wait."""
    pids = [cluster.pid(number) for number in numbers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_running_query_is_cancelled_from_its_own_connection(cluster: Any, nodes: list[Connection]) -> None:
    connection = nodes[0]
    connection.execute("INSERT INTO root.still.d(timestamp, s) VALUES (1, 1)")
    request = client().TSExecuteStatementReq(connection.session, "SELECT s FROM root.still.d", connection.statement, 10)
    with standing_still(cluster, 2, 3):
        connection.send("executeStatement", request)
        asked = 0
        while not select.select([connection._socket], [], [], 0.3)[0]:  # it may not have begun before the first one
            connection.send("cancelOperation", client().TSCancelOperationReq(connection.session, 0))
            asked += 1
            assert asked < 100
        answer = connection.receive("executeStatement")
        assert [connection.receive("cancelOperation").code for _ in range(asked)] == [200] * asked
    assert answer.status.code == 411
    assert "was killed" in answer.status.message
    assert rows(connection, "SHOW QUERY PROCESSLIST") == []


def test_a_query_has_a_time_out(cluster: Any, nodes: list[Connection]) -> None:
    text = "SELECT s FROM root.still.d"
    nodes[0].execute("INSERT INTO root.still.d(timestamp, s) VALUES (1, 1)")
    with written(conf(cluster, 1), "query_timeout_threshold=300\n"):
        assert said(nodes[0], "LOAD CONFIGURATION") == "changed: query_timeout_threshold"
        with standing_still(cluster, 2, 3):
            assert said(nodes[0], text).startswith("701: Current query is time out"), "the node's"
            nodes[0].timeout_ms = 400
            assert said(nodes[0], text).startswith("701: Current query is time out"), "the call's"
    assert said(nodes[0], "LOAD CONFIGURATION") == "changed: query_timeout_threshold"
    nodes[0].timeout_ms = 0
    assert rows(nodes[0], "SHOW QUERY PROCESSLIST") == []


# --- mode, tracing, snapshots -----------------------------------------------------------------------------------------


def test_read_only_holds_on_every_node_and_takes_what_changes_nothing(cluster: Any, nodes: list[Connection]) -> None:
    nodes[0].execute("INSERT INTO root.mode.d(timestamp, s) VALUES (1, 1)")
    assert said(nodes[1], "SET SYSTEM TO READONLY") == "Execute successfully"
    refused = "411: Current system mode is read-only, does not support non-query operation"
    try:
        for connection in nodes:
            assert connection.properties().isReadOnly
            for text in (
                "INSERT INTO root.mode.d(timestamp, s) VALUES (2, 2)",
                "CREATE TIMESERIES root.mode.d.t WITH DATATYPE=INT32",
                "DELETE FROM root.mode.d.s",
                "SET STORAGE GROUP TO root.mode2",
                "CREATE USER someone 'password'",
                "MERGE",
            ):
                assert said(connection, text) == refused, text
            for text in ("FLUSH", "CLEAR CACHE", "TRACING OFF", "LOAD CONFIGURATION", "KILL QUERY"):
                assert not said(connection, text).startswith("4"), text
            assert len(rows(connection, "SELECT s FROM root.mode.d")) == 1
        cluster.kill(1)
        cluster.launch(1)
        cluster.wait()
        with closing(connect(cluster, 1)) as again:
            assert said(again, "INSERT INTO root.mode.d(timestamp, s) VALUES (2, 2)") == refused, "a restart forgets it"
    finally:
        assert said(nodes[1], "SET SYSTEM TO WRITABLE") == "Execute successfully"
    for connection in nodes[1:]:
        assert not connection.properties().isReadOnly
        assert said(connection, "INSERT INTO root.mode.d(timestamp, s) VALUES (2, 2)") == "Execute successfully"


def test_tracing_writes_what_a_query_asks(cluster: Any, nodes: list[Connection]) -> None:
    nodes[0].execute("INSERT INTO root.trace.d(timestamp, s) VALUES (1, 1)")
    assert said(nodes[0], "TRACING ON") == "Execute successfully"
    try:
        assert len(rows(nodes[2], "SELECT s FROM root.trace.d WHERE time > 0")) == 1
    finally:
        nodes[1].execute("TRACING OFF")
    rows(nodes[2], "SELECT s FROM root.trace.d WHERE time > 1")
    lines = [line for line in cluster.log(3).splitlines() if "tracing" in line]
    assert any("of root: SELECT s FROM root.trace.d WHERE time > 0" in line for line in lines)
    assert any("1 columns, first rows after" in line and "MatchSeries x1" in line for line in lines)
    assert any("closed after" in line and "1 rows" in line for line in lines)
    assert not any("time > 1" in line for line in lines)


def test_a_snapshot_of_the_schema_is_written_on_every_node(cluster: Any, nodes: list[Connection]) -> None:
    nodes[0].execute("CREATE TIMESERIES root.snap.d.s WITH DATATYPE=INT32")

    def newest() -> list[str]:
        return [
            max(path.name for path in (member.directory / "data").rglob("*.ckpt") if path.name.startswith("meta-"))
            if list((member.directory / "data").rglob("meta-*.ckpt"))
            else ""
            for member in cluster.members
        ]

    before = newest()
    assert said(nodes[1], "CREATE SNAPSHOT FOR SCHEMA") == "Execute successfully"
    assert all(new > old for new, old in zip(newest(), before, strict=True))
    for node in (1, 2, 3):
        cluster.kill(node)
        cluster.launch(node)
    cluster.wait()
    with closing(connect(cluster, 2)) as again:
        assert len(rows(again, "SHOW TIMESERIES root.snap.d.s")) == 1


def test_flush_tasks_and_functions_are_shown(cluster: Any) -> None:
    with closing(connect(cluster, 1)) as connection:
        assert [row[1] for row in rows(connection, "SHOW FLUSH TASK INFO")] == [b"0"] * 3
        assert len(rows(connection, "SHOW FUNCTIONS")) == 36
        connection.execute("CREATE USER marked 'password'")
        assert said(connection, "GRANT WATERMARK_EMBEDDING TO marked") == "Execute successfully"
        assert said(connection, "REVOKE WATERMARK_EMBEDDING FROM marked") == "Execute successfully"
        assert said(connection, "GRANT WATERMARK_EMBEDDING TO nobody") == "411: No such user nobody"
        for text in ("CREATE FUNCTION f AS 'a.B'", "DROP TRIGGER t", "LOAD '/x.tsfile'", "REMOVE '/x.tsfile'"):
            assert said(connection, text).startswith("703: "), text
        assert said(connection, "DROP FUNCTION sin") == "411: Built-in function SIN can not be deregistered."
        assert said(connection, "DROP FUNCTION mine").startswith("703: ")


def test_the_administrator_has_the_name_that_was_chosen(new_cluster: Callable[..., Any]) -> None:
    with new_cluster(nodes=1, admin_name="boss", admin_password="secret") as cluster:
        with closing(Connection("127.0.0.1", cluster.ports[0])) as stranger, pytest.raises(Refused, match="600"):
            stranger.open("root", "root", "UTC")
        with closing(connect(cluster, 1, "boss", "secret")) as boss:
            assert [row[0] for row in rows(boss, "LIST USER")] == [b"boss"]
            assert said(boss, "CREATE USER helper 'password'") == "Execute successfully"
            assert said(boss, "DROP USER boss") == "411: Default administrator cannot be deleted"
            assert said(boss, "FLUSH") == "Execute successfully"
            boss.execute("INSERT INTO root.boss.d(timestamp, s) VALUES (1, 1)")
            assert len(rows(boss, "SELECT s FROM root.boss.d")) == 1
        cluster.kill(1)
        cluster.launch(1)
        cluster.wait()
        with closing(connect(cluster, 1, "helper", "password")) as helper:
            assert said(helper, "FLUSH") == "602: No permissions for this operation FLUSH"
            assert said(helper, "SELECT s FROM root.boss.d") == "602: No permissions for this operation QUERY"
        connect(cluster, 1, "boss", "secret").close()


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_has_an_outcome_a_statement_and_writes_inserts_together(cluster: Any) -> None:
    def insert(time: int, value: str = "1", name: str = "s") -> str:
        return f"INSERT INTO root.batch.d(timestamp, {name}) VALUES ({time}, {value})"

    with closing(connect(cluster, 2)) as connection:
        texts = [
            "CREATE TIMESERIES root.batch.d.s WITH DATATYPE=INT32",
            *(insert(time) for time in range(2_500)),
            insert(3_000, "'no number'"),
            "nonsense",
            "SELECT s FROM root.batch.d",
            insert(3_001),
            "DELETE FROM root.batch.d.s WHERE time < 2490",
            insert(5, "7"),
            insert(5, "8"),
            insert(6, "1", "new"),
            insert(7, "2.5", "new"),
        ]
        request = client().TSExecuteBatchStatementReq(connection.session, texts)
        status = connection.call("executeBatchStatement", request)
        assert status.code == 506
        codes = [part.code for part in status.subStatus]
        assert codes == [200] * 2_501 + [313, 401, 405] + [200] * 6
        found = rows(connection, "SELECT s, new FROM root.batch.d")
        assert found == [(5, 8, None), (6, None, 1.0), (7, None, 2.5)] + [
            (time, 1, None) for time in [*range(2_490, 2_500), 3_001]
        ]
        good = client().TSExecuteBatchStatementReq(connection.session, [insert(9_000), insert(9_001)])
        assert connection.call("executeBatchStatement", good).code == 200


def test_nothing_was_complained_of(cluster: Any) -> None:
    assert cluster.complaints() == []
    assert threading.active_count() < 50
