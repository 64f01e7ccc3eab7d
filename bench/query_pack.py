"""How fast rows become the bytes of a result set: columns of each type, without and with nulls.

    python bench/query_pack.py [--rows 10000] [--columns 10] [--rounds 200]

`store_*`: the same from a store's files on, through the scan of a data group, its bytes on the wire between nodes and
the join at the coordinator. The last line is one JSON object: millions of values a second on one core. Wanted: 20
million DOUBLE values a second for the packing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np

from iotdb_cluster.columns import Column, DataType, RowBatch, Tablet, shape_of
from iotdb_cluster.query import codec
from iotdb_cluster.query.fragments import Unit, scan
from iotdb_cluster.query.requests import Pull, SeriesInfo
from iotdb_cluster.rpc.results import pack_aligned, split_rows
from iotdb_cluster.storage import Store, StoreOptions, UnitId
from iotdb_cluster.world import RealFileSystem

UNIT = UnitId(1, 0)
DEVICE = "root.bench.d0"
STORE_ROWS = 200_000


def column_of(kind: DataType, rows: int, nulls: bool) -> Column:
    random = np.random.default_rng(1)
    cells: list[object]
    if kind is DataType.TEXT:
        cells = [f"text {number % 1000}" for number in range(rows)]
    elif kind is DataType.BOOLEAN:
        cells = (random.random(rows) < 0.5).tolist()
    elif kind in (DataType.INT32, DataType.INT64):
        cells = random.integers(-1_000_000, 1_000_000, rows).tolist()
    else:
        cells = random.normal(size=rows).tolist()
    if nulls:
        cells = [cell if number % 3 else None for number, cell in enumerate(cells)]
    return Column.of(kind, cells)


def packed_per_second(batch: RowBatch, rounds: int) -> float:
    began = time.process_time()
    for _ in range(rounds):
        rest: RowBatch | None = batch
        while rest is not None:
            block, rest = split_rows(rest, len(batch))
            pack_aligned(block)
    seconds = time.process_time() - began
    return round(len(batch) * len(batch.columns) * rounds / seconds / 1e6, 1)


def scanned_per_second(columns: int) -> float:
    names = [f"s{at}" for at in range(columns)]
    shape = shape_of(tuple(names), tuple([DataType.DOUBLE] * columns))
    values = np.cumsum(np.random.default_rng(1).normal(size=(columns, STORE_ROWS)), axis=1)
    series = [SeriesInfo(f"{DEVICE}.{name}", DEVICE, name, DataType.DOUBLE, "root.bench", 1) for name in names]
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(RealFileSystem(), directory, StoreOptions())
        store.open_unit(UNIT, (1, 0))
        for at in range(0, STORE_ROWS, 1_000):
            times = np.arange(at, at + 1_000).astype(">i8")
            parts = [Column(DataType.DOUBLE, row[at : at + 1_000].astype(">f8")) for row in values]
            store.write(UNIT, 1, at // 1_000 + 1, [Tablet(DEVICE, shape, times, parts)])
        for job in store.seal():
            job.run()
            job.finish()
        began = time.process_time()
        with store.reader(UNIT) as reader:
            for batch in scan([Unit(reader)], series, 0, STORE_ROWS, True, 10_000):
                wire = codec.encode_answer(Pull((0,)), [batch])
                (received,) = codec.decode_answer(Pull((0,)), wire)
                pack_aligned(received)
        seconds = time.process_time() - began
        store.close()
    return round(STORE_ROWS * columns / seconds / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"packs {options.rows} rows of {options.columns} columns, {options.rounds} times for each type")
    began = time.perf_counter()
    figures: dict[str, float] = {}
    times = np.arange(options.rows, dtype=np.int64)
    for kind in DataType:
        for nulls in (False, True):
            batch = RowBatch(times, [column_of(kind, options.rows, nulls)] * options.columns)
            rounds = options.rounds // (10 if kind is DataType.TEXT else 1)
            name = f"{kind.name.lower()}{'_with_nulls' if nulls else ''}_millions"
            figures[name] = packed_per_second(batch, max(1, rounds))
    figures["store_double_millions"] = scanned_per_second(options.columns)
    ok = figures["double_millions"] >= 20
    result = {"target": "query_pack", "ok": ok, "seed": 1, **figures}
    print(json.dumps({**result, "seconds": round(time.perf_counter() - began, 2)}))


if __name__ == "__main__":
    main()
