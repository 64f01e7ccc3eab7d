"""How fast one core reads back: scans, a window in the middle, aggregations, LAST.

    python bench/storage_read.py [--small]

One series of 10 million DOUBLE points every 1 s, a random walk (sigma 1.0) of 2 decimals, and one at full precision,
written as tablets, flushed and compacted. Everything is read with warm caches, several times; the best run's CPU time
counts. LAST is asked with a reader of its own each time. What is read is compared with numpy.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import measuring as m
import numpy as np

from iotdb_cluster.columns import DataType
from iotdb_cluster.storage import Store, StoreOptions, UnitReader
from iotdb_cluster.world import RealFileSystem

LIMIT_S = 300
POINTS = 10_000_000
REPEATS = 7
SERIES = ("root.bench.d", "s0", DataType.DOUBLE)
ALL = (-(1 << 63), (1 << 63) - 1)
HOUR = 3_600_000
# unit of each: millions of points a second (at least), milliseconds, microseconds (at most)
TARGETS = {
    "scan_mpoints_s": 60.0,
    "middle_1000_rows_ms": 1.0,
    "statistics_ms": 3.0,
    "group_by_1h_ms": 40.0,
    "last_us": 20.0,
}


def scan(reader: UnitReader) -> int:
    return sum(len(times) for times, _ in reader.read(*SERIES, *ALL, True, 100_000))


def middle(reader: UnitReader, low: int, high: int) -> int:
    return sum(len(times) for times, _ in reader.read(*SERIES, low, high))


def last_of(store: Store) -> Any:
    """As a query asks: with a reader of its own."""
    with store.reader(m.UNIT) as reader:
        return reader.last(*SERIES, ALL[0])


def check(found: Any, expected: Any, what: str) -> None:
    if not np.allclose(found, expected, rtol=1e-12, atol=0):
        raise SystemExit(f"{what}: {found} where numpy has {expected}")


def read(store: Store, times: Any, values: Any) -> dict[str, float]:
    count = len(times)
    low, high = int(times[count // 2]), int(times[count // 2 + 999])
    begins = np.arange(times[0] // HOUR * HOUR, times[-1] + 1, HOUR)
    with store.reader(m.UNIT) as reader:
        rows, scanning = m.best_of(3, lambda: scan(reader))
        some, window = m.best_of(10 * REPEATS, lambda: middle(reader, low, high))
        if (rows, some) != (count, 1_000):
            raise SystemExit(f"{rows} and {some} rows came back")
        one = np.array([ALL[0]]), np.array([ALL[1]])
        whole, statistics = m.best_of(10 * REPEATS, lambda: reader.window_statistics(*SERIES, *one))
        check([whole.count[0], whole.max_values[0]], [count, values.max()], "count and max")
        check(whole.sum_hi[0] / count, values.mean(), "avg")
        hours, grouping = m.best_of(REPEATS, lambda: reader.window_statistics(*SERIES, begins, begins + HOUR - 1))
        starts = np.searchsorted(times, begins)
        check(hours.max_values, np.maximum.reduceat(values, starts), "max of each hour")
        check(hours.sum_hi, np.add.reduceat(values, starts), "sum of each hour")
        check(hours.count, np.diff(starts, append=count), "count of each hour")
    newest, last = m.best_of(REPEATS, lambda: [last_of(store) for _ in range(1_000)])
    if newest[-1] != (int(times[-1]), float(values[-1])):
        raise SystemExit(f"LAST gives {newest[-1]}")
    return {
        "scan_mpoints_s": round(count / scanning / 1e6, 1),
        "middle_1000_rows_ms": round(window * 1e3, 3),
        "statistics_ms": round(statistics * 1e3, 3),
        "group_by_1h_ms": round(grouping * 1e3, 2),
        "last_us": round(last * 1e3, 2),
    }


def main() -> None:
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    figures: dict[str, Any] = {}
    missed = []
    for name, decimals in (("walk_2_decimals", 2), ("walk_full_precision", None)):
        count = 300_000 if small else POINTS
        times = m.START_MS + np.arange(count) * 1_000
        values = m.walk(np.random.default_rng(m.SEED), count, 1.0, decimals)
        with tempfile.TemporaryDirectory() as directory:
            store = Store.open(RealFileSystem(), directory, StoreOptions(compaction_files_min=2))
            store.open_unit(m.UNIT, (1, 0))
            for number, tablet in enumerate(m.tablets(SERIES[0], ("s0",), DataType.DOUBLE, times, [values], 10_000), 1):
                store.write(m.UNIT, 1, number, [tablet])
                if number % 100 == 0:
                    m.flush(store)
            m.flush(store)
            m.compact(store)
            figures[name] = found = read(store, times, values)
            store.close()
        print(f"{name}: {found}", flush=True)
        for what, target in TARGETS.items():
            good = found[what] >= target if what == "scan_mpoints_s" else found[what] <= target
            if not small and not good:
                missed.append(f"{name}: {what} {found[what]}, the target is {target}")
    m.finish("storage_read", began, missed, {"points": count, "targets": TARGETS, **figures})


if __name__ == "__main__":
    main()
