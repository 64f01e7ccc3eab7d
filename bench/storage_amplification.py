"""How often a byte is written: what flushes and compaction write, over what flushes write (and over what stays).

    python bench/storage_amplification.py [--small]

Random walks (sigma 1.0) of 2 decimals, 3 devices x 10 columns x 1,000 rows a flush, times 1 s apart, jitter none; 128
flushes, and after each the compaction that is due. Three histories: in order; 20 % of the rows up to an hour late; and
in order with a TTL of 32 flushes, expired after each. Bytes, not times: the figures do not depend on the machine.
Targets: at most 5 in order and late (log4 of the flushes, and the flush), at most 6 with expiry.
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

FLUSHES, ROWS, COLUMNS, DEVICES, SIGMA = 128, 1_000, 10, 3, 1.0
LATE_SHARE, LATE_ROWS, TTL_FLUSHES = 0.2, 3_600, 32
TARGETS = {"in_order": 5.0, "late": 5.0, "expiring": 6.0}
LIMIT_S = 300


def history(directory: str, kind: str, flushes: int) -> dict[str, Any]:
    store = Store.open(RealFileSystem(), directory, StoreOptions())
    store.open_unit(m.UNIT, (1, 0))
    generator = np.random.default_rng(m.SEED)
    shape = shape_of(tuple(f"s{at}" for at in range(COLUMNS)), tuple([DataType.DOUBLE] * COLUMNS))
    last = np.full((DEVICES, COLUMNS, 1), 20.0)
    flushed = compacted = index = jobs = 0
    for number in range(flushes):
        values = last + np.cumsum(generator.standard_normal((DEVICES, COLUMNS, ROWS)) * SIGMA, axis=2)
        last = values[:, :, -1:]
        row = number * ROWS + np.arange(ROWS)
        if kind == "late":
            late = generator.random(ROWS) < LATE_SHARE
            row = row - late * generator.integers(0, LATE_ROWS, ROWS)
        times = m.START_MS + row * 1_000
        for device in range(DEVICES):
            index += 1
            columns = [Column(DataType.DOUBLE, values[device, at].round(2)) for at in range(COLUMNS)]
            store.write(m.UNIT, 1, index, [Tablet(f"root.bench.d{device}", shape, times, columns)])
        if kind == "expiring":
            index += 1
            before = m.START_MS + (number - TTL_FLUSHES) * ROWS * 1_000
            if store.expiry_pays(m.UNIT, before):
                store.expire(m.UNIT, 1, index, before)
        known = {info.name for info in store.files_of(m.UNIT)}
        m.flush(store)
        flushed += sum(info.bytes for info in store.files_of(m.UNIT) if info.name not in known)
        while (job := store.pick()) is not None:
            job.run()
            job.finish()
            compacted += job.written
            jobs += 1
            store.collect()
    left = m.file_bytes(store)
    files = len(store.files_of(m.UNIT))
    store.close()
    return {
        "flushes": flushes,
        "compactions": jobs,
        "flushed_bytes": flushed,
        "compacted_bytes": compacted,
        "left_bytes": left,
        "files": files,
        "amplification": round((flushed + compacted) / flushed, 2),
    }


def main() -> None:
    small = m.arguments(__doc__, LIMIT_S).small
    began = time.perf_counter()
    figures: dict[str, Any] = {}
    missed: list[str] = []
    for kind, target in TARGETS.items():
        with tempfile.TemporaryDirectory() as directory:
            found = figures[kind] = history(directory, kind, 24 if small else FLUSHES)
        print(f"{kind}: {found}", flush=True)
        if found["amplification"] > target:
            missed.append(f"{kind}: {found['amplification']}, the target is {target}")
    m.finish("storage_amplification", began, missed, figures)


if __name__ == "__main__":
    main()
