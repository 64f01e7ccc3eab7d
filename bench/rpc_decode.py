"""How fast the hot insert calls are decoded, one core: python bench/rpc_decode.py [seconds a case]"""

from __future__ import annotations

import json
import struct
import sys
import time
from typing import Any

import numpy as np

from iotdb_cluster.rpc.checker import encode
from iotdb_cluster.rpc.idl import client
from iotdb_cluster.rpc.inserts import InsertDecoder
from iotdb_cluster.rpc.wire import BINARY, COMPACT, Wire, wire_of

IDL = client()
NAMES = [f"s{i}" for i in range(10)]
CELLS = b"".join(struct.pack(">bd", 4, i * 1.5) for i in range(10))
TEXTS = b"".join(struct.pack(">bi7s", 5, 7, b"text %02d" % i) for i in range(10))


def frame(wire: Wire, name: str, request: Any) -> bytes:
    arguments = getattr(IDL.TSIService, name + "_args")(req=request)
    return wire.head(1, name, 7) + encode(wire, arguments)


def tablet(rows: int, columns: int) -> Any:
    values = np.random.default_rng(1).normal(size=rows * columns).astype(">f8").tobytes()
    times = np.arange(rows, dtype=">i8").tobytes()
    names = [f"s{i}" for i in range(columns)]
    return IDL.TSInsertTabletReq(1, "root.sg.d1", names, values, times, [4] * columns, rows)


def text_tablet(rows: int, columns: int) -> Any:
    cell = b"".join(struct.pack(f">i{3 + i % 5}s", 3 + i % 5, b"abcdefgh") for i in range(rows))
    times = np.arange(rows, dtype=">i8").tobytes()
    names = [f"s{i}" for i in range(columns)]
    return IDL.TSInsertTabletReq(1, "root.sg.d1", names, cell * columns, times, [5] * columns, rows)


def record(cells: bytes = CELLS) -> Any:
    return IDL.TSInsertRecordReq(1, "root.sg.d1", NAMES, cells, 1_600_000_000_000)


def records(count: int, devices: int) -> Any:
    places = [f"root.sg.d{i % devices}" for i in range(count)]
    times = [1_600_000_000_000 + i for i in range(count)]
    return IDL.TSInsertRecordsReq(1, places, [NAMES] * count, [CELLS] * count, times)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    cases = {
        "insertTablet 1000x10 DOUBLE": ("insertTablet", tablet(1000, 10)),
        "insertTablet 1000x10 TEXT": ("insertTablet", text_tablet(1000, 10)),
        "insertRecord 10 DOUBLE": ("insertRecord", record()),
        "insertRecord 10 TEXT": ("insertRecord", record(TEXTS)),
        "insertRecords 100x10, 100 devices": ("insertRecords", records(100, 100)),
        "insertRecords 100x10, 1 device": ("insertRecords", records(100, 1)),
    }
    found: dict[str, int] = {}
    for wire in (BINARY, COMPACT):
        for title, (name, request) in cases.items():
            data = frame(wire, name, request)
            decoder = InsertDecoder()
            done, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                for _ in range(50):
                    found_wire = wire_of(data, 0)
                    message = found_wire.message(data, 0)
                    insert = decoder.decode(found_wire, message.name, data, message.body)
                done += 50
            if insert.errors:
                raise SystemExit(f"{title}: {insert.errors}")
            rate = int(done / (time.perf_counter() - began))
            print(f"{type(wire).__name__:8} {title:36} {rate:9,} calls/s {1e6 / rate:8.1f} us")
            found[f"{type(wire).__name__} {title}"] = rate
    print(json.dumps(found))


if __name__ == "__main__":
    main()
