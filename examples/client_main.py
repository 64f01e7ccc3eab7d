"""The demo client of the cluster: inserts, queries through several nodes, and cleans up, each by a switch.

    client_main.py [-i] [-q] [-ds] [-dsg] [-b] [-ip PORT] [-qp PORT,PORT,...]

Without a switch all five run, in this order: -i insert, -q query, -ds delete series, -dsg delete storage groups,
-b batch. -ip is the port for all but queries (default 55560), -qp the ports to query (default: that one and the two
after it). Needs the stock client (README.md, "The Python client").
"""

import argparse
import sys

try:
    from iotdb.Session import Session
    from iotdb.thrift.rpc.ttypes import TSExecuteBatchStatementReq
    from iotdb.utils.IoTDBConstants import Compressor, TSDataType, TSEncoding
except ImportError as missing:
    sys.exit(f"{missing}: install the stock client first: .venv/bin/pip install --no-deps -r requirements/clients.txt")

CITIES = ["root.beijing", "root.shanghai", "root.guangzhou", "root.shenzhen"]
DAY_MS = 86_400_000
FILLS = [
    ("root.beijing.d1", DAY_MS, "PREVIOUS, 1d"),
    ("root.shanghai.d1", DAY_MS, "LINEAR, 1d, 1d"),
    ("root.guangzhou.d1", DAY_MS * 3 // 2, "PREVIOUS, 1d"),
    ("root.shenzhen.d1", DAY_MS * 3 // 2, "LINEAR, 1d, 1d"),
]
DATA_QUERIES = [
    "SELECT * FROM root",
    "SELECT * FROM root WHERE time <= 691200000",
    "SELECT * FROM root WHERE time >= 391200000 and time <= 691200000",
    "SELECT * FROM root.*.* WHERE s1 <= 0.7",
    *(f"SELECT s1 FROM {city}.d1" for city in CITIES),
    *(f"SELECT {function}(s1) FROM root.*.*" for function in ("count", "avg", "sum", "max_value")),
    "SELECT count(s1) FROM root.*.* WHERE time <= 691200000",
    "SELECT count(s1) FROM root.*.* WHERE s1 <= 0.7",
    "SELECT * FROM root GROUP BY DEVICE",
    *(f"SELECT s1 FROM {device} WHERE time = {time} FILL (DOUBLE[{how}])" for device, time, how in FILLS),
    "SELECT COUNT(*) FROM root.*.* GROUP BY ([0, 864000000), 3d, 3d)",
    "SELECT AVG(*) FROM root.*.* WHERE s1 <= 0.7 GROUP BY ([0, 864000000), 3d, 3d)",
    "SELECT LAST s1 FROM root.*.*",
]
METADATA_QUERIES = [
    "SHOW STORAGE GROUP",
    "SHOW TIMESERIES root",
    "COUNT TIMESERIES root",
    "COUNT TIMESERIES root GROUP BY LEVEL=2",
    "SHOW DEVICES",
    "SHOW TIMESERIES root LIMIT 1 OFFSET 1",
]


def connect(port: int) -> Session:
    session = Session("127.0.0.1", port, "root", "root", fetch_size=1000)
    session.open(False)
    return session


def show(what: str, status: object) -> None:
    print(f"{what}: {'done' if status in (None, 0) else status}")


def insert(port: int) -> None:
    session = connect(port)
    for city in CITIES:
        show(f"set storage group {city}", session.set_storage_group(city))
    for city in CITIES:
        status = session.create_time_series(f"{city}.d1.s1", TSDataType.DOUBLE, TSEncoding.GORILLA, Compressor.SNAPPY)
        show(f"create {city}.d1.s1", status)
    for n in range(10):
        for city in CITIES:
            status = session.insert_str_record(f"{city}.d1", n * DAY_MS, ["s1"], [str(n * 0.1)])
            show(f"insert {city}.d1 at {n * DAY_MS}", status)
    session.close()


def query(ports: list[int]) -> None:
    failed = []
    for port in ports:
        print(f"--- queries through port {port}")
        session = connect(port)
        for statement in DATA_QUERIES + METADATA_QUERIES:
            print(f"> {statement}")
            try:
                result = session.execute_query_statement(statement)
            except TypeError:  # the client's way of saying that the server refused
                failed.append((port, statement))
                continue
            print(" | ".join(result.get_column_names()))
            while result.has_next():
                print(result.next())
            result.close_operation_handle()
        session.close()
    if failed:
        print("Failed queries:")
        for port, statement in failed:
            print(f"  port {port}: {statement}")


def delete_series(port: int) -> None:
    session = connect(port)
    show("delete the four series", session.delete_time_series([f"{city}.d1.s1" for city in CITIES]))
    session.close()


def delete_storage_groups(port: int) -> None:
    session = connect(port)
    show("delete the four storage groups", session.delete_storage_groups(CITIES))
    result = session.execute_query_statement("SELECT * FROM root")
    while result.has_next():
        print(result.next())
    result.close_operation_handle()
    session.close()


def batch(port: int) -> None:
    session = connect(port)
    statements = [f"SET STORAGE GROUP TO root.batch{i}" for i in range(1, 5)]
    client, session_id = session._Session__client, session._Session__session_id
    status = client.executeBatchStatement(TSExecuteBatchStatementReq(session_id, statements))
    show("batch", 0 if status.code == 200 else status)
    result = session.execute_query_statement("SHOW STORAGE GROUP")
    while result.has_next():
        print("".join(f"{field.get_string_value()}," for field in result.next().get_fields()))
    result.close_operation_handle()
    session.delete_storage_groups([f"root.batch{i}" for i in range(1, 5)])
    session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for switch in ("i", "q", "ds", "dsg", "b"):
        parser.add_argument(f"-{switch}", action="store_true")
    parser.add_argument("-ip", type=int, default=55560, metavar="PORT")
    parser.add_argument("-qp", metavar="PORT,PORT")
    options = parser.parse_args()
    ports = [int(port) for port in options.qp.split(",")] if options.qp else [options.ip + i for i in range(3)]
    everything = not any((options.i, options.q, options.ds, options.dsg, options.b))
    if options.i or everything:
        insert(options.ip)
    if options.q or everything:
        query(ports)
    if options.ds or everything:
        delete_series(options.ip)
    if options.dsg or everything:
        delete_storage_groups(options.ip)
    if options.b or everything:
        batch(options.ip)


if __name__ == "__main__":
    main()
