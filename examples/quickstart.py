"""The stock Python client against a cluster: series, records, tablets, texts, a query, printed row by row.

    ./sbin/start-cluster.sh
    .venv/bin/python examples/quickstart.py

Needs the stock client beside the server; README.md, "The Python client", has the line that installs it.
"""

import argparse
import sys

try:
    from iotdb.Session import Session
    from iotdb.utils.IoTDBConstants import Compressor, TSDataType, TSEncoding
    from iotdb.utils.Tablet import Tablet
except ImportError as missing:
    sys.exit(f"{missing}: install the stock client first: .venv/bin/pip install --no-deps -r requirements/clients.txt")

DEVICE = "root.quickstart.wf01.wt01"


def print_table(result) -> int:
    names = result.get_column_names()
    rows = []
    while result.has_next():
        record = result.next()
        cells = [str(field.get_string_value()) for field in record.get_fields()]
        rows.append(([str(record.get_timestamp())] if names[0] == "Time" else []) + cells)
    result.close_operation_handle()
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    for row in [names, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    return len(rows)


def require(status: int, what: str) -> None:
    if status not in (None, 0):
        sys.exit(f"{what} failed with status {status}: see the line above")
    print(f"ok: {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=55560)
    options = parser.parse_args()

    session = Session(options.host, options.port, "root", "root")
    session.open(False)
    if session.check_time_series_exists(f"{DEVICE}.temperature"):
        session.delete_storage_group("root.quickstart")

    require(session.set_storage_group("root.quickstart"), "set storage group root.quickstart")
    status = session.create_time_series(
        f"{DEVICE}.temperature", TSDataType.FLOAT, TSEncoding.GORILLA, Compressor.SNAPPY
    )
    require(status, "create timeseries temperature")
    status = session.create_multi_time_series(
        [f"{DEVICE}.status", f"{DEVICE}.name"],
        [TSDataType.BOOLEAN, TSDataType.TEXT],
        [TSEncoding.RLE, TSEncoding.PLAIN],
        [Compressor.SNAPPY, Compressor.SNAPPY],
    )
    require(status, "create timeseries status, name")

    measurements = ["temperature", "status", "name"]
    types = [TSDataType.FLOAT, TSDataType.BOOLEAN, TSDataType.TEXT]
    require(session.insert_record(DEVICE, 1, measurements, types, [20.5, True, "first"]), "insert a record")
    status = session.insert_records(
        [DEVICE, DEVICE], [2, 3], [measurements] * 2, [types] * 2, [[20.75, True, "second"], [21.0, False, "third"]]
    )
    require(status, "insert two records")
    rows = [[21.25, False, "fourth"], [21.5, True, "fifth"]]
    require(session.insert_tablet(Tablet(DEVICE, measurements, types, rows, [4, 5])), "insert a tablet of two rows")
    status = session.insert_str_record(DEVICE, 6, measurements, ["21.75", "true", "'sixth'"])
    require(status, "insert a record of texts")

    count = print_table(session.execute_query_statement(f"SELECT * FROM {DEVICE}"))
    print()
    print_table(session.execute_query_statement(f"SELECT count(temperature), avg(temperature) FROM {DEVICE}"))
    print()
    print_table(session.execute_query_statement(f"SELECT LAST * FROM {DEVICE}"))
    session.close()
    if count != 6:
        sys.exit(f"6 rows were inserted and {count} came back")


if __name__ == "__main__":
    main()
