"""The stock Python client, binary and compact protocol, against a running cluster: HOST PORT,PORT,...

Exit 0 only where every answer is the expected one.
"""

import logging
import sys
from typing import Any

from iotdb.Session import Session
from iotdb.utils.IoTDBConstants import Compressor, TSDataType, TSEncoding
from iotdb.utils.Tablet import Tablet

NAMES = ["b", "i", "l", "f", "d", "t"]
TYPES = [TSDataType.BOOLEAN, TSDataType.INT32, TSDataType.INT64, TSDataType.FLOAT, TSDataType.DOUBLE, TSDataType.TEXT]
VALUES: list[Any] = [True, -7, 1 << 40, 1.5, -0.1, "漢字"]
ROWS = 3_000

failures: list[str] = []
checks = 0


def same(what: str, expected: object, seen: object) -> None:
    global checks
    checks += 1
    if expected != seen:
        failures.append(f"MISMATCH {what}\n  expected {expected}\n  seen     {seen}")


def rows(session: Session, sql: str) -> list[list[Any]]:
    """The result's rows, the time first where there is one."""
    found = []
    result = session.execute_query_statement(sql)
    result.set_fetch_size(700)
    while result.has_next():
        record = result.next()
        cells = [str(field) if field.is_null() else field.get_string_value() for field in record.get_fields()]
        found.append([record.get_timestamp(), *cells])
    result.close_operation_handle()
    return found


def exercise(session: Session) -> None:
    session.delete_storage_group("root.stockpy")
    same("storage group", 0, session.set_storage_group("root.stockpy"))
    same("storage group twice", -1, session.set_storage_group("root.stockpy"))
    made = session.create_time_series("root.stockpy.s.v", TSDataType.FLOAT, TSEncoding.GORILLA, Compressor.SNAPPY)
    same("series", 0, made)
    same("exists", True, session.check_time_series_exists("root.stockpy.s.v"))
    same("exists not", False, session.check_time_series_exists("root.stockpy.s.none"))
    same("record", 0, session.insert_record("root.stockpy.d1", 1, NAMES, TYPES, VALUES))
    strings = session.insert_str_record("root.stockpy.d2", 5, ["b", "t"], ["true", "'abc'"])
    same("string record", 0, strings)
    devices = ["root.stockpy.d1", "root.stockpy.d3"]
    same("records", 0, session.insert_records(devices, [2, 3], [NAMES] * 2, [TYPES] * 2, [VALUES] * 2))
    same("one device", 0, session.insert_records_of_one_device("root.stockpy.d1", [3], [NAMES], [TYPES], [VALUES]))
    tablet = Tablet("root.stockpy.d4", NAMES, TYPES, [VALUES] * ROWS, list(range(ROWS)))
    same("tablet", 0, session.insert_tablet(tablet))
    tablets = [Tablet(f"root.stockpy.e{n}", NAMES, TYPES, [VALUES], [n]) for n in range(3)]
    same("tablets", 0, session.insert_tablets(tablets))
    same("wrong type", -1, session.insert_record("root.stockpy.d1", 9, ["l"], [TSDataType.INT32], [1]))
    texts = ["True", "-7", str(1 << 40), "1.5", "-0.1", "漢字"]
    same("rows", [[time, *texts] for time in (1, 2, 3)], rows(session, "SELECT b,i,l,f,d,t FROM root.stockpy.d1"))
    same(
        "many rows", [[time, *texts] for time in range(ROWS)], rows(session, "SELECT b,i,l,f,d,t FROM root.stockpy.d4")
    )
    same("strings", [[5, "True", "abc"]], rows(session, "SELECT b, t FROM root.stockpy.d2"))
    same("delete data", 0, session.execute_non_query_statement("DELETE FROM root.stockpy.d4.i WHERE time < 2990"))
    counted = rows(session, "SELECT count(i), count(t) FROM root.stockpy.d4")
    same("count", [["10", str(ROWS)]], [row[1:] for row in counted])
    same("version", [["0.12.5"]], [row[1:] for row in rows(session, "SHOW VERSION")])
    same("delete", 0, session.delete_time_series(["root.stockpy.s.v"]))
    same("end", 0, session.delete_storage_group("root.stockpy"))


def main() -> int:
    logging.disable(logging.CRITICAL)
    host, ports = sys.argv[1], sys.argv[2].split(",")
    for compact in (False, True):
        for port in ports:
            session = Session(host, int(port), "root", "root", zone_id="+0800")
            session.open(compact)
            same("zone", "+0800", session.get_time_zone())  # the client keeps it
            exercise(session)
            session.close()
    print("\n".join([*failures, f"checks {checks} failures {len(failures)}"]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
