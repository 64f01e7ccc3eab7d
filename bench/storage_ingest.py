"""How fast one core takes tablets of 1,000 rows x 10 DOUBLE into the memtable, and from there into chunk files.

    python bench/storage_ingest.py [--small]

200 million points as random walks (sigma 1.0) of 2 decimals, and 200 million at full precision: 20 devices, times 1 s
apart. Tablets are big-endian, as they come from the wire; making them is not counted. Memtable and flush (pcodec level
4, sync included) run one after another on one core; points a second are over the CPU time of both, the wall clock is
shown beside it. Memory is looked at at 25, 50, 75 and 100 %: between the first and the last it may grow by a tenth.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import measuring as m
import numpy as np

from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.storage import Store, StoreOptions
from iotdb_cluster.world import RealFileSystem

POINTS = 200_000_000
ROWS, COLUMNS, DEVICES, SIGMA = 1_000, 10, 20, 1.0
SPEED_MIN, GROWTH_MAX = 12e6, 1.10
LIMIT_S = 600


class Devices:
    """Endless walks: each call gives the next tablets."""

    def __init__(self, decimals: int | None) -> None:
        self._generator = np.random.default_rng(m.SEED)
        self._decimals = decimals
        self._last = np.full((DEVICES * COLUMNS, 1), 20.0)
        self._row = 0
        self._shape = shape_of(tuple(f"s{at}" for at in range(COLUMNS)), tuple([DataType.DOUBLE] * COLUMNS))

    def next(self) -> list[Tablet]:
        steps = self._generator.standard_normal((DEVICES * COLUMNS, ROWS)) * SIGMA
        values = self._last + np.cumsum(steps, axis=1)
        self._last = values[:, -1:]
        wire = (values if self._decimals is None else values.round(self._decimals)).astype(">f8")
        times = (m.START_MS + (self._row + np.arange(ROWS)) * 1_000).astype(">i8")
        self._row += ROWS
        return [
            Tablet(
                f"root.bench.d{device}",
                self._shape,
                times,
                [Column(DataType.DOUBLE, wire[device * COLUMNS + at]) for at in range(COLUMNS)],
            )
            for device in range(DEVICES)
        ]


def ingest(directory: str, points: int, decimals: int | None) -> dict[str, Any]:
    options = StoreOptions()
    store = Store.open(RealFileSystem(), directory, options)
    store.open_unit(m.UNIT, (1, 0))
    devices = Devices(decimals)
    done = index = flushes = 0
    cpu_memtable = cpu_flush = wall = 0.0
    memory: list[float] = []
    while done < points:
        waiting: list[Tablet] = []
        while len(waiting) * ROWS * COLUMNS * 8 < options.flush_bytes:
            waiting += devices.next()
        began, start = time.perf_counter(), time.process_time()
        for tablet in waiting:
            index += 1
            store.write(m.UNIT, 1, index, [tablet])
        sealed = time.process_time()
        m.flush(store)
        cpu_memtable += sealed - start
        cpu_flush += time.process_time() - sealed
        wall += time.perf_counter() - began
        done += len(waiting) * ROWS * COLUMNS
        flushes += 1
        if done >= points * (len(memory) + 1) / 4:
            memory.append(m.rss_mb())
    size = m.file_bytes(store)
    store.close()
    cpu = cpu_memtable + cpu_flush
    return {
        "points": done,
        "points_per_cpu_second": round(done / cpu),
        "points_per_wall_second": round(done / wall),
        "memtable_ns_per_point": round(cpu_memtable / done * 1e9, 2),
        "flush_ns_per_point": round(cpu_flush / done * 1e9, 2),
        "bytes_per_point": round(size / done, 3),
        "flushes": flushes,
        "rss_mb_at_25_50_75_100": memory,
    }


def main() -> None:
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    figures, missed = {}, []
    for name, decimals in (("walk_2_decimals", 2), ("walk_full_precision", None)):
        with tempfile.TemporaryDirectory() as directory:
            found = figures[name] = ingest(directory, 4_000_000 if small else POINTS, decimals)
        print(f"{name}: {found['points_per_cpu_second'] / 1e6:.1f} M points/s of CPU", flush=True)
        memory = found["rss_mb_at_25_50_75_100"]
        if not small and found["points_per_cpu_second"] < SPEED_MIN:
            missed.append(f"{name}: {found['points_per_cpu_second']} points/s, the target is {SPEED_MIN:.0f}")
        if not small and memory[-1] > memory[0] * GROWTH_MAX:
            missed.append(f"{name}: memory grows: {memory} MB")
    m.finish("storage_ingest", began, missed, figures)


if __name__ == "__main__":
    main()
