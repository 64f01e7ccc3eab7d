"""What aggregations of a series cost at the data group: whole and in windows of GROUP BY, from memory and from files.

    python bench/query_windows.py [--rows 200000] [--windows 56] [--rounds 30]

One DOUBLE series, one row a second, in tablets of 1,000 rows; every form is computed `rounds` times on one core. The
last line is one JSON object: milliseconds of CPU a query.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.query.fragments import Unit, aggregate
from iotdb_cluster.query.requests import Needs, SeriesInfo
from iotdb_cluster.storage import Store, StoreOptions, UnitId
from iotdb_cluster.world import RealFileSystem

UNIT = UnitId(1, 0)
DEVICE = "root.bench.d0"
SHAPE = shape_of(("s0",), (DataType.DOUBLE,))
SERIES = SeriesInfo(f"{DEVICE}.s0", DEVICE, "s0", DataType.DOUBLE, "root.bench", 1)
FORMS = {
    "count": Needs.COUNT,
    "avg": Needs.SUM,
    "max_value": Needs.EXTREMES,
    "last_value": Needs.ENDS,
    "all": Needs.SUM | Needs.EXTREMES | Needs.ENDS,
}


def fill(store: Store, rows: int) -> None:
    values = np.cumsum(np.random.default_rng(1).normal(size=rows)).round(3)
    for at in range(0, rows, 1_000):
        times = (np.arange(at, min(rows, at + 1_000)) * 1_000).astype(">i8")
        tablet = Tablet(DEVICE, SHAPE, times, [Column(DataType.DOUBLE, values[at : at + 1_000].astype(">f8"))])
        store.write(UNIT, 1, at // 1_000 + 1, [tablet])


def cost_ms(store: Store, needs: Needs, starts: np.ndarray, ends: np.ndarray, rounds: int) -> float:
    began = time.process_time()
    for _ in range(rounds):
        with store.reader(UNIT) as reader:
            aggregate([Unit(reader)], [SERIES], [needs], starts, ends)
    return (time.process_time() - began) / rounds * 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--windows", type=int, default=56)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"aggregates {options.rows} rows whole and in {options.windows} windows, {options.rounds} times each")
    began = time.perf_counter()
    edges = np.linspace(0, options.rows * 1_000, options.windows + 1).astype(np.int64)
    shapes = {"whole": (edges[:1], edges[-1:] - 1), "windows": (edges[:-1].copy(), edges[1:] - 1)}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(RealFileSystem(), directory, StoreOptions())
        store.open_unit(UNIT, (1, 0))
        fill(store, options.rows)
        for place in ("memory", "file"):
            for shape, (starts, ends) in shapes.items():
                for form, needs in FORMS.items():
                    cost_ms(store, needs, starts, ends, 2)
                    figures[f"{place}_{shape}_{form}_ms"] = round(
                        cost_ms(store, needs, starts, ends, options.rounds), 3
                    )
            for job in store.seal():
                job.run()
                job.finish()
        store.close()
    seconds = round(time.perf_counter() - began, 2)
    print(json.dumps({"target": "query_windows", "ok": True, "seed": 1, **figures, "seconds": seconds}))


if __name__ == "__main__":
    main()
