"""Readers on other threads while one thread writes, seals and compacts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.columns import Column, DataType, Rows, Tablet, shape_of
from iotdb_cluster.simulation.disk import SimulatedDisk
from iotdb_cluster.storage import Store, StoreOptions, UnitId, UnitReader
from iotdb_cluster.world import RealFileSystem

U = UnitId(1, 0)
LONG = DataType.INT64
ONE, TWO = shape_of(("a",), (LONG,)), shape_of(("a", "b"), (LONG, LONG))
MIN, MAX = -(1 << 63), (1 << 63) - 1


def verify(reader: UnitReader, rows: int) -> int:
    """A snapshot taken after so many rows has just these, with the values that they got last."""
    with reader:
        for _ in range(2):
            seen = 0
            for times, values in reader.read("root.sg.d", "a", LONG, MIN, MAX, batch_rows=777):
                assert isinstance(values, np.ndarray)
                assert (times == np.arange(seen, seen + len(times))).all()
                assert (values == times * 3).all()
                seen += len(times)
            assert seen == rows
            got = reader.window_statistics("root.sg.d", "a", LONG, np.array([MIN]), np.array([MAX]))
            assert int(got.count[0]) == rows
            assert int(got.sum_hi[0]) == 3 * rows * (rows - 1) // 2 if got.sum_hi is not None and rows else True
            assert len(reader.series()) == (0 if not rows else 1 if rows < 100 else 2)
    return rows


def test_snapshots_hold_while_others_write(tmp_path: Path) -> None:
    store = Store.open(RealFileSystem(), str(tmp_path / "store"), StoreOptions(compaction_files_min=3))
    store.open_unit(U, (1, 0))
    pool = ThreadPoolExecutor(3)
    rows, index, pending, checks = 0, 0, [], []
    ready = threading.BoundedSemaphore(6)
    until = time.monotonic() + 1.5
    work: list[tuple[Any, Any]] = []
    while time.monotonic() < until:
        index += 1
        count = 1 if index % 3 else 100
        times = np.arange(rows, rows + count)
        if count == 1:
            packed = np.zeros(1, ONE.row_dtype)
            packed["time"], packed["c0"] = times, times * 3
            store.write(U, 1, index, [Rows("root.sg.d", ONE, packed.tobytes())])
        else:
            # each time twice, first with a wrong value: the later row of an entry wins
            both = np.concatenate([times, times])
            values = np.concatenate([times, times * 3])
            store.write(U, 1, index, [Tablet("root.sg.d", TWO, both, [Column(LONG, values), Column(LONG, values)])])
        rows += count
        if ready.acquire(timeout=0.001):  # the writer waits for readers a little, so that it does not take all the time
            job = pool.submit(verify, store.reader(U), rows)
            job.add_done_callback(lambda _: ready.release())
            checks.append(job)
        if index % 50 == 0:
            work += [(job, pool.submit(job.run)) for job in store.seal()]
            chosen = store.pick()
            work += [(chosen, pool.submit(chosen.run))] if chosen is not None else []
        for entry in [entry for entry in work if entry[1].done()]:
            work.remove(entry)
            entry[1].result()
            entry[0].finish()
            pending.append(pool.submit(store.collect))
    pool.shutdown()
    for done in [*checks, *pending]:
        done.result()
    for job, outcome in work:
        outcome.result()
        job.finish()
    assert len(checks) > 10
    verify(store.reader(U), rows)
    assert not store.corrupt
    store.close()


def test_who_settles_waits_for_who_is_at_it() -> None:
    """A checkpoint that knows of a drop is published behind it: that must be durable by then, whoever made it so."""
    removing, go_on = threading.Event(), threading.Event()

    class Slow(SimulatedDisk):
        def remove(self, path: str) -> None:
            if path.endswith("manifest") and not go_on.is_set():
                removing.set()
                assert go_on.wait(10)
            super().remove(path)

    disk = Slow(Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 1))
    store.write(U, 1, 2, [Tablet("root.sg.d", TWO, np.arange(3), [Column(LONG, np.arange(3))] * 2)])
    for job in store.seal():
        job.run()
        job.finish()
    store.drop_unit(U)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.settle)
        assert removing.wait(10)
        second = pool.submit(store.settle)
        with pytest.raises(TimeoutError):
            second.result(0.05)
        go_on.set()
        first.result(10)
        second.result(10)
    assert Store.open(disk, "/s").units() == []
