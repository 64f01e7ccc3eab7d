"""The cache of latest points against a dict: late writes, overwrites, deletions, expiry, flush, compaction, restart."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.columns import Column, DataType, Rows, Tablet, shape_of
from iotdb_cluster.simulation import SimulatedDisk
from iotdb_cluster.storage import Store, StoreOptions, UnitId, UnitReader
from iotdb_cluster.storage.last_cache import LastCache, LastPoint

U = UnitId(1, 0)
OPTIONS = StoreOptions(compaction_files_min=2, tombstones_max=0)
SERIES = [(f"root.sg.d{device}", name, DataType.DOUBLE) for device in range(2) for name in ("a", "b")]
MIN = -(1 << 63)


def expected(points: dict[Any, dict[int, float]], series: Any, low: int) -> tuple[int, float] | None:
    times = [time for time in points.get(series, {}) if time >= low]
    return (max(times), points[series][max(times)]) if times else None


def write(rng: random.Random, store: Store, index: int, points: dict[Any, dict[int, float]]) -> None:
    device = rng.choice(["root.sg.d0", "root.sg.d1"])
    names = rng.choice([("a",), ("b",), ("a", "b")])
    count = rng.choice([1, 1, 5])
    times = [rng.randrange(100) for _ in range(count)]
    shape = shape_of(names, tuple([DataType.DOUBLE] * len(names)))
    cells = [[rng.choice([None, 1.0, 2.5]) if rng.random() < 0.3 else rng.random() for _ in times] for _ in names]
    columns = [Column.of(DataType.DOUBLE, column) for column in cells]
    if rng.random() < 0.5 and all(cell is not None for column in cells for cell in column):
        table = np.zeros(count, shape.row_dtype)
        table["time"] = times
        for at, column in enumerate(columns):
            table[f"c{at}"] = column.values
        store.write(U, 1, index, [Rows(device, shape, table.tobytes())])
    else:
        store.write(U, 1, index, [Tablet(device, shape, np.array(times, ">i8"), columns)])
    for name, column in zip(names, cells, strict=True):
        series = points.setdefault((device, name, DataType.DOUBLE), {})
        series.update({time: cell for time, cell in zip(times, column, strict=True) if cell is not None})


@pytest.mark.parametrize("seed", range(40))
def test_the_latest_point_is_right_whatever_came_before(seed: int, tools: Any) -> None:
    rng = random.Random(seed)
    disk = SimulatedDisk(random.Random(seed))
    store = Store.open(disk, "/s", OPTIONS)
    store.open_unit(U, (1, 0))
    points: dict[Any, dict[int, float]] = {}
    older: list[tuple[UnitReader, dict[Any, dict[int, float]]]] = []
    for index in range(1, 60):
        step = rng.random()
        if step < 0.55:
            write(rng, store, index, points)
        elif step < 0.65:
            low, high = sorted((rng.randrange(100), rng.randrange(100)))
            name = rng.choice(["a", "b", "[ab]"])
            store.delete(U, 1, index, rf"root\.sg\.d0\.{name}", low, high)
            for (device, known, _), series in points.items():
                if device == "root.sg.d0" and known in name:
                    for time in [time for time in series if low <= time <= high]:
                        del series[time]
        elif step < 0.7:
            before = rng.randrange(60)
            store.expire(U, 1, index, before)
            for series in points.values():
                for time in [time for time in series if time < before]:
                    del series[time]
        elif step < 0.8:
            tools.flush(store)
        elif step < 0.87:
            tools.compact(store)
        elif step < 0.92:
            older.append((store.reader(U), {key: dict(series) for key, series in points.items()}))
        elif step < 0.95:
            tools.flush(store)
            for reader, _ in older:
                reader.close()
            older = []
            store.close()
            store = Store.open(disk, "/s", OPTIONS)
            store.open_unit(U, (1, 0))
        with store.reader(U) as reader:
            for series in rng.sample(SERIES, 3):
                low = rng.choice([MIN, rng.randrange(100)])
                assert reader.last(*series, low) == expected(points, series, low), (seed, index, series)
        for reader, was in older:
            series = rng.choice(SERIES)
            assert reader.last(*series, MIN) == expected(was, series, MIN), (seed, index, series)
    for reader, _ in older:
        reader.close()


def test_a_unit_that_is_dropped_and_opened_again_knows_nothing_of_before() -> None:
    store = Store.open(SimulatedDisk(random.Random(1)), "/s")
    shape = shape_of(("a",), (DataType.DOUBLE,))
    store.open_unit(U, (1, 0))
    store.write(U, 1, 1, [Tablet("root.sg.d0", shape, np.array([5]), [Column.of(DataType.DOUBLE, [1.0])])])
    with store.reader(U) as reader:
        assert reader.last(*SERIES[0], MIN) == (5, 1.0)
    store.drop_unit(U)
    store.open_unit(U, (1, 1))
    with store.reader(U) as reader:
        assert reader.last(*SERIES[0], MIN) is None


def test_an_answer_from_memory_touches_no_file(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk(random.Random(1))
    store = Store.open(disk, "/s")
    store.open_unit(U, (1, 0))
    shape = shape_of(("a",), (DataType.DOUBLE,))
    columns = [Column(DataType.DOUBLE, np.arange(5_000.0))]
    store.write(U, 1, 1, [Tablet("root.sg.d0", shape, np.arange(5_000), columns)])
    tools.flush(store)
    with store.reader(U) as reader:
        assert reader.last(*SERIES[0], MIN) == (4_999, 4_999.0)
    late = Tablet("root.sg.d0", shape, np.array([17, 6_000, 40]), [Column.of(DataType.DOUBLE, [1.0, 2.0, 3.0])])
    store.write(U, 1, 2, [late])
    # what is asked again comes from memory alone, the new writes included
    monkeypatch.setattr(disk, "read_data", None)
    with store.reader(U) as reader:
        assert reader.last(*SERIES[0], MIN) == (6_000, 2.0)
        assert reader.last(*SERIES[0], 6_001) is None


def test_the_cache_is_bounded_and_keeps_the_newest() -> None:
    cache = LastCache(3)
    for number in range(5):
        cache.put((1, "d", str(number), DataType.INT64), LastPoint(1, 1, (number, number)))
    assert len(cache) == 3
    assert cache.get((1, "d", "0", DataType.INT64)) is None
    key = (1, "d", "4", DataType.INT64)
    cache.put(key, LastPoint(5, 9, (7, 7)))
    cache.put(key, LastPoint(2, 3, (1, 1)))
    assert cache.get(key) == LastPoint(5, 9, (7, 7))
    for size, remembered in ((1_000, True), (1_000_000, False)):
        text = (1, "d", f"text of {size}", DataType.TEXT)
        cache.put(text, LastPoint(1, 1, (1, b"x" * size)))
        assert (cache.get(text) is not None) == remembered
