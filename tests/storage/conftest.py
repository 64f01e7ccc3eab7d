"""A naive second store: a dict, and what compares the two."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from iotdb_cluster.columns import Block, Column, DataType, Rows, Tablet, TextColumn, shape_of
from iotdb_cluster.storage import Position, ReadInterface, Store, UnitId

MIN, MAX = -(1 << 63), (1 << 63) - 1
KINDS = list(DataType)
FLOATS = [0.0, -0.0, 1.5, -2.25, 0.1, float("nan"), float("inf"), float("-inf"), 1e300, 5e-324, 1e-3, 123456.789]
Series = tuple[str, str, DataType]


def bits(kind: DataType, value: Any) -> bytes:
    """A value as comparable bytes."""
    if kind is DataType.TEXT:
        return bytes(value)
    return np.array([value], kind.dtype).tobytes()


def random_value(rng: random.Random, kind: DataType) -> Any:
    if kind is DataType.BOOLEAN:
        return rng.random() < 0.5
    if kind is DataType.INT32:
        return rng.choice([0, 1, -1, 2**31 - 1, -(2**31), rng.randint(-1000, 1000)])
    if kind is DataType.INT64:
        return rng.choice([0, 1, MIN, MAX, 2**53 + 1, rng.randint(-1000, 1000)])
    if kind is DataType.TEXT:
        return rng.choice([b"", b"a", "später".encode(), bytes([rng.randrange(97, 123)]) * rng.randrange(40)])
    value = rng.choice(FLOATS)
    if kind is DataType.FLOAT:
        return struct.unpack("<f", np.float32(np.clip(value, -3e38, 3e38) if abs(value) < 1e301 else value).tobytes())[
            0
        ]
    return value


class Model:
    """Points of one unit, the slow way."""

    def __init__(self) -> None:
        self.points: dict[Series, dict[int, Any]] = {}

    def write(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            tablet = block.to_tablet() if isinstance(block, Rows) else block
            times = tablet.times.tolist()
            for name, column in zip(tablet.shape.measurements, tablet.columns, strict=True):
                cells = column.tolist()
                series = self.points.setdefault((tablet.device, name, column.type), {})
                series.update({time: cell for time, cell in zip(times, cells, strict=True) if cell is not None})

    def delete(self, pattern: str | None, low: int, high: int) -> None:
        for (device, name, _), points in self.points.items():
            if pattern is None or re.fullmatch(pattern, f"{device}.{name}"):
                for time in [time for time in points if low <= time <= high]:
                    del points[time]

    def series(self) -> list[Series]:
        return sorted(series for series, points in self.points.items() if points)


def random_blocks(rng: random.Random, spread: int) -> list[Block]:
    blocks: list[Block] = []
    for _ in range(rng.choice([1, 1, 2])):
        device = f"root.sg.d{rng.randrange(2)}"
        names = rng.sample(["a", "b", "c", "d", "e", "f"], rng.randint(1, 4))
        if rng.random() < 0.5:  # shapes that come again and again: rows of equal times meet before they are sorted
            names = [["a"], ["b", "c"], ["e", "f"]][rng.randrange(3)]
        # each name has its own type nearly always, so that devices have columns of every type
        kinds = [KINDS["abcdef".index(name)] if rng.random() < 0.9 else rng.choice(KINDS) for name in names]
        count = rng.choice([1, 1, 3, 10, 30])
        times = [rng.randrange(spread) for _ in range(count)]
        if rng.random() < 0.4:
            times = list(range(rng.randrange(spread), 10 * spread, 1 + rng.randrange(3)))[:count]
        if rng.random() < 0.05:
            times[0] = rng.choice([MIN, MAX, MIN + 1, MAX - 1])
        count = len(times)
        shape = shape_of(tuple(names), tuple(kinds))
        nulls = rng.choice([0.0, 0.0, 0.4])
        columns = []
        for kind in kinds:
            cells = [None if rng.random() < nulls else random_value(rng, kind) for _ in range(count)]
            column = Column.of(kind, cells)
            if kind is not DataType.TEXT and rng.random() < 0.5:
                column = Column(kind, column.values.astype(kind.wire_dtype), column.valid)
            columns.append(column)
        if DataType.TEXT not in kinds and nulls == 0.0 and rng.random() < 0.6:
            table = np.zeros(count, shape.row_dtype)
            table["time"] = times
            for at, column in enumerate(columns):
                table[f"c{at}"] = column.values
            blocks.append(Rows(device, shape, table.tobytes()))
        else:
            blocks.append(Tablet(device, shape, np.array(times, rng.choice(["<i8", ">i8"])), columns))
    return blocks


def expected_statistics(kind: DataType, points: dict[int, Any], low: int, high: int) -> dict[str, Any] | None:
    inside = sorted(time for time in points if low <= time <= high)
    if not inside:
        return None
    values = [points[time] for time in inside]
    found: dict[str, Any] = {"count": len(inside), "times": (inside[0], inside[-1]), "ends": (values[0], values[-1])}
    if kind.is_numeric:

        def key(value: Any) -> Any:
            if value != value:
                return (2, 0.0, 0)
            return (1, value, 0 if str(value).startswith("-") else 1)

        found["bounds"] = (min(values, key=key), max(values, key=key))
    return found


def check_reader(reader: ReadInterface, model: Model, rng: random.Random) -> None:
    """Every way to read gives what the model holds."""
    assert reader.series() == model.series()
    for (device, name, kind), points in model.points.items():
        low, high = rng.choice([(MIN, MAX), tuple(sorted((rng.randrange(60), rng.randrange(60))))])
        want = [(time, bits(kind, points[time])) for time in sorted(points) if low <= time <= high]
        for ascending in (True, False):
            rows = rng.choice([1, 3, 1000])
            got = []
            for times, values in reader.read(device, name, kind, low, high, ascending, rows):
                assert 0 < len(times) == len(values) <= rows
                assert times.dtype == np.int64
                if not isinstance(values, TextColumn):
                    assert values.dtype == kind.dtype
                    assert values.flags.c_contiguous
                got += zip(times.tolist(), [bits(kind, value) for value in values.tolist()], strict=True)
            # float NaN payloads pass through Python floats unchanged for the ones that are used here
            assert got == (want if ascending else want[::-1])
        check_points(reader, (device, name, kind), points, rng)
        check_windows(reader, (device, name, kind), points, rng)
    check_rows(reader, model, rng)


def check_points(reader: ReadInterface, series: Series, points: dict[int, Any], rng: random.Random) -> None:
    kind = series[2]
    low = rng.choice([MIN, rng.randrange(60)])
    last = reader.last(*series, low)
    wanted = max((time for time in points if time >= low), default=None)
    assert (last and (last[0], bits(kind, last[1]))) == (
        None if wanted is None else (wanted, bits(kind, points[wanted]))
    )
    at, reach = rng.randrange(60), rng.randrange(10)
    before, after = reader.nearest(*series, at, at - reach, at + reach)
    assert (before and before[0]) == max((time for time in points if at - reach <= time <= at), default=None)
    assert (after and after[0]) == min((time for time in points if at <= time <= at + reach), default=None)


def check_windows(reader: ReadInterface, series: Series, points: dict[int, Any], rng: random.Random) -> None:
    kind = series[2]
    step = rng.choice([1, 3, 7, 50])
    edges = list(range(rng.randrange(-5, 20), 200, step))
    starts = [MIN, *edges[1:]]
    ends = [edges[1] - 1 - rng.randrange(2), *[edge + rng.randrange(step) for edge in edges[1:-1]], MAX]
    if rng.random() < 0.3:
        starts, ends = [MIN], [MAX]
    with_values, with_sums = rng.random() < 0.8, rng.random() < 0.8
    got = reader.window_statistics(
        *series, np.array(starts, np.int64), np.array(ends, np.int64), values=with_values, sums=with_sums
    )
    for at, (low, high) in enumerate(zip(starts, ends, strict=True)):
        want = expected_statistics(kind, points, low, high)
        assert int(got.count[at]) == (want["count"] if want else 0)
        if want is None:
            continue
        assert (int(got.first_times[at]), int(got.last_times[at])) == want["times"]
        if not with_values:
            continue
        assert got.first_values is not None
        assert got.last_values is not None
        ends_got = got.first_values[at], got.last_values[at]
        assert [bits(kind, value) for value in ends_got] == [bits(kind, value) for value in want["ends"]]
        if kind.is_numeric:
            assert got.min_values is not None
            assert got.max_values is not None
            for mine, theirs in zip((got.min_values[at], got.max_values[at]), want["bounds"], strict=True):
                assert bits(kind, mine) == bits(kind, theirs) or (mine != mine and theirs != theirs)


def check_rows(reader: ReadInterface, model: Model, rng: random.Random) -> None:
    for device in ("root.sg.d0", "root.sg.d1"):
        mine = [(name, kind) for place, name, kind in model.points if place == device]
        if not mine:
            continue
        wanted = rng.sample(mine, rng.randint(1, len(mine)))
        maps = [model.points[(device, *key)] for key in wanted]
        times = sorted(set().union(*maps))
        want = [
            (
                time,
                [
                    bits(kind, points[time]) if time in points else None
                    for (_, kind), points in zip(wanted, maps, strict=True)
                ],
            )
            for time in times
        ]
        ascending = rng.random() < 0.5
        got = []
        for batch in reader.read_device(device, wanted, MIN, MAX, ascending, rng.choice([2, 1000])):
            cells = [
                [None if cell is None else bits(kind, cell) for cell in column.tolist()]
                for (_, kind), column in zip(wanted, batch.columns, strict=True)
            ]
            got += [(time, list(row)) for time, row in zip(batch.times.tolist(), zip(*cells, strict=True), strict=True)]
        assert got == (want if ascending else want[::-1])


@contextmanager
def tiny_pages() -> Iterator[None]:
    """Pages of 8 rows (12 compacted) and statistics blocks of 2, so that small tables have many of both."""
    base = "iotdb_cluster.storage."
    with ExitStack() as stack:
        for module in ("chunk_writer", "merge", "jobs"):
            stack.enter_context(patch(f"{base}{module}.PAGE_ROWS", 8))
        stack.enter_context(patch(f"{base}jobs.COMPACTED_PAGE_ROWS", 12))
        stack.enter_context(patch(f"{base}chunk_writer.STATISTICS_ROWS", 2))
        stack.enter_context(patch(f"{base}chunk_writer.GROUP_ROWS_MAX", 24))
        stack.enter_context(patch(f"{base}segments.PACKED_BLOCKS_MIN", 5))
        yield


def flush(store: Store, units: Sequence[UnitId] | None = None) -> None:
    for job in store.seal(units):
        job.run()
        job.finish()


def compact(store: Store) -> bool:
    job = store.pick()
    if job is None:
        return False
    job.run()
    job.finish()
    store.collect()
    return True


class Tools:
    """The helpers above, for tests to take as one fixture."""

    Model = Model
    MIN, MAX, KINDS, FLOATS = MIN, MAX, KINDS, FLOATS
    bits = staticmethod(bits)
    random_value = staticmethod(random_value)
    random_blocks: Callable[..., list[Block]] = staticmethod(random_blocks)
    check_reader = staticmethod(check_reader)
    tiny_pages = staticmethod(tiny_pages)
    flush = staticmethod(flush)
    compact = staticmethod(compact)
    Position = Position


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools
