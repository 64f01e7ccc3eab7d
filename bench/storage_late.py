"""What late data costs: a fifth of the rows arrive up to an hour late.

    python bench/storage_late.py [--small]

The same 20 million points (20 devices x 10 DOUBLE, 2-decimal walks, 1 row a second) twice as tablets of 1,000 rows:
once in order, once with every fifth row kept back and sent up to 3,600 s later, in the order of its new arrival. Ingest
is memtable and flush; then both stores are compacted, read whole, and compared with each other. CPU time of one core.
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

LIMIT_S = 300
DEVICES, COLUMNS, ROWS = 20, 10, 100_000
LATE_PART, LATE_MAX_S = 5, 3_600
INGEST_MAX, READ_MAX = 2.0, 1.15  # times the cost of data in order; reading has some noise
ALL = (-(1 << 63), (1 << 63) - 1)
SHAPE = shape_of(tuple(f"s{at}" for at in range(COLUMNS)), tuple([DataType.DOUBLE] * COLUMNS))


def made(rows: int) -> tuple[Any, list[list[Any]], Any]:
    """(times, columns of each device, the order in which rows arrive)."""
    generator = np.random.default_rng(m.SEED)
    times = m.START_MS + np.arange(rows) * 1_000
    columns = [[m.walk(generator, rows, 1.0, 2) for _ in range(COLUMNS)] for _ in range(DEVICES)]
    arrival = np.arange(rows, dtype=np.float64)
    late = generator.random(rows) < 1 / LATE_PART
    arrival[late] += generator.uniform(0, LATE_MAX_S, int(late.sum()))
    return times, columns, np.argsort(arrival, kind="stable")


def ingest(store: Store, times: Any, columns: list[list[Any]], order: Any) -> float:
    store.open_unit(m.UNIT, (1, 0))
    times = times[order].astype(">i8")
    tablets = []
    for device, own in enumerate(columns):
        wire = [values[order].astype(">f8") for values in own]
        tablets.append(
            [
                Tablet(f"root.bench.d{device}", SHAPE, times[at : at + 1_000],
                       [Column(DataType.DOUBLE, values[at : at + 1_000]) for values in wire])
                for at in range(0, len(times), 1_000)
            ]
        )  # fmt: skip
    index = waiting = 0
    began = time.process_time()
    for together in zip(*tablets, strict=True):
        for tablet in together:
            index += 1
            store.write(m.UNIT, 1, index, [tablet])
            waiting += len(tablet) * COLUMNS * 8
        if waiting >= 16 << 20:  # smaller than in production, so that there are several files
            m.flush(store)
            waiting = 0
    m.flush(store)
    return time.process_time() - began


def scan(store: Store) -> list[Any]:
    found = []
    with store.reader(m.UNIT) as reader:
        for name in ("s0", "s5"):
            for device in range(DEVICES):
                parts = list(reader.read(f"root.bench.d{device}", name, DataType.DOUBLE, *ALL, True, 100_000))
                found.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    return found


def main() -> None:
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    times, columns, arrival = made(10_000 if small else ROWS)
    figures: dict[str, Any] = {"points": len(times) * DEVICES * COLUMNS}
    results = {}
    for name, order in (("in_order", np.arange(len(times))), ("late", arrival)):
        with tempfile.TemporaryDirectory() as directory:
            store = Store.open(RealFileSystem(), directory, StoreOptions(compaction_files_min=2))
            ingesting = ingest(store, times, columns, order)
            before, reading_before = m.best_of(2, lambda store=store: scan(store))
            compacting = m.compact(store)
            after, reading = m.best_of(5, lambda store=store: scan(store))
            results[name] = after
            if any(
                a.tobytes() != b.tobytes()
                for x, y in zip(before, after, strict=True)
                for a, b in zip(x, y, strict=True)
            ):
                raise SystemExit("compaction changed an answer")
            figures[name] = {
                "ingest_s": round(ingesting, 2),
                "compaction_s": round(compacting, 2),
                "scan_before_compaction_ms": round(reading_before * 1e3, 1),
                "scan_ms": round(reading * 1e3, 1),
                "files": len(store.files_of(m.UNIT)),
            }
            store.close()
        print(f"{name}: {figures[name]}", flush=True)
    for one, other in zip(*results.values(), strict=True):
        if any(a.tobytes() != b.tobytes() for a, b in zip(one, other, strict=True)):
            raise SystemExit("late data reads differently")
    figures["ingest_ratio"] = round(figures["late"]["ingest_s"] / max(figures["in_order"]["ingest_s"], 1e-3), 2)
    figures["scan_ratio"] = round(figures["late"]["scan_ms"] / max(figures["in_order"]["scan_ms"], 1e-3), 2)
    missed = []
    if not small and figures["ingest_ratio"] > INGEST_MAX:
        missed.append(f"ingest costs {figures['ingest_ratio']} times as much, the target is {INGEST_MAX}")
    if not small and figures["scan_ratio"] > READ_MAX:
        missed.append(f"reading costs {figures['scan_ratio']} times as much, the target is {READ_MAX}")
    m.finish("storage_late", began, missed, figures)


if __name__ == "__main__":
    main()
