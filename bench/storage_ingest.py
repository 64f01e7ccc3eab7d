"""How fast one core takes tablets: 1,000 rows of 10 DOUBLE columns into the memtable, and from there into files.

    python bench/storage_ingest.py [--seconds 10] [--devices 20] [--rows 1000] [--columns 10] [--data random|walk]

Ends after the given time at the latest (plus one flush); works in a temporary directory. The last line is one JSON
object; `points_per_second` is points over the time of both, memtable and flush, sync included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np

from iotdb_cluster.columns import Column, DataType, Shape, Tablet, shape_of
from iotdb_cluster.storage import Store, StoreOptions, UnitId
from iotdb_cluster.world import RealFileSystem

UNIT = UnitId(1, 0)
SAMPLES = 64  # different tablets; they are used again and again under other times


def sample_columns(rows: int, columns: int, walk: bool) -> list[list[Column]]:
    """Big-endian columns, as they come from the wire."""
    generator = np.random.default_rng(1)
    samples = []
    for _ in range(SAMPLES):
        steps = generator.normal(size=(columns, rows))
        values = np.cumsum(steps, axis=1).round(2) if walk else steps
        samples.append([Column(DataType.DOUBLE, row.astype(">f8")) for row in values])
    return samples


def ingest(directory: str, options: argparse.Namespace) -> dict[str, object]:
    shape: Shape = shape_of(
        tuple(f"s{at}" for at in range(options.columns)), tuple([DataType.DOUBLE] * options.columns)
    )
    samples = sample_columns(options.rows, options.columns, options.data == "walk")
    settings = StoreOptions()
    store = Store.open(RealFileSystem(), directory, settings)
    store.open_unit(UNIT, (1, 0))
    index, points, in_memtable, in_flush, flushes = 0, 0, 0.0, 0.0, 0
    began = time.perf_counter()
    while time.perf_counter() - began < options.seconds:
        tablets = []
        for number in range(settings.flush_bytes // (options.rows * options.columns * 8)):
            device = f"root.bench.d{number % options.devices}"
            base = (index + number) * options.rows
            times = np.arange(base, base + options.rows).astype(">i8")
            tablets.append(Tablet(device, shape, times, samples[number % SAMPLES]))
        start = time.perf_counter()
        for tablet in tablets:
            index += 1
            store.write(UNIT, 1, index, [tablet])
        sealed = time.perf_counter()
        for job in store.seal():
            job.run()
            job.finish()
        in_memtable += sealed - start
        in_flush += time.perf_counter() - sealed
        points += len(tablets) * options.rows * options.columns
        flushes += 1
    size = sum(info.bytes for info in store.files_of(UNIT))
    store.close()
    seconds = in_memtable + in_flush
    return {
        "points": points,
        "points_per_second": round(points / seconds),
        "memtable_ns_per_point": round(in_memtable / points * 1e9, 2),
        "flush_ns_per_point": round(in_flush / points * 1e9, 2),
        "bytes_per_point": round(size / points, 2),
        "flushes": flushes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--data", choices=("random", "walk"), default="walk")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"writes tablets of {options.rows} x {options.columns} for {options.seconds:.0f} s on one core")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        figures = ingest(directory, options)
    result = {"target": "storage_ingest", "ok": True, "data": options.data, "seed": 1, **figures}
    print(json.dumps({**result, "seconds": round(time.perf_counter() - began, 2)}))


if __name__ == "__main__":
    main()
