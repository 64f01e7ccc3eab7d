"""Random statements on random data, answered by the query room and, a second time, by loops over points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from iotdb_cluster.columns import DataType, Encoding

KINDS = {
    "root.a.d1.i": (DataType.INT32, None),
    "root.a.d1.f": (DataType.DOUBLE, Encoding.RLE),
    "root.a.d1.t": (DataType.TEXT, None),
    "root.a.d2.i": (DataType.INT64, None),
    "root.b.d1.i": (DataType.INT32, None),
    "root.b.d1.b": (DataType.BOOLEAN, None),
}
VALUES: dict[DataType, Any] = {
    DataType.INT32: some.integers(-3, 3),
    DataType.INT64: some.integers(-3, 3),
    DataType.DOUBLE: some.sampled_from([-1.005, -0.5, 0.125, 1.0, 2.675, 7.0]),
    DataType.TEXT: some.sampled_from([b"a", b"b", b""]),
    DataType.BOOLEAN: some.booleans(),
}
TIMES = some.integers(-30, 60)
STARTS = some.integers(0, 50)  # windows are written with digits alone
FUNCTIONS = ("count", "sum", "avg", "min_time", "max_time", "min_value", "max_value", "first_value", "last_value")


@dataclass
class Query:
    """A statement and what it means."""

    paths: list[str]
    low: int | None
    high: int | None
    outside: tuple[int, int] | None
    value: tuple[str, int] | None  # i > n of that path
    descending: bool
    limit: int | None
    offset: int
    without_null: str | None

    @property
    def where(self) -> str:
        atoms = []
        if self.low is not None:
            atoms.append(f"time >= {self.low}")
        if self.high is not None:
            atoms.append(f"time < {self.high}")
        if self.outside is not None:
            atoms.append(f"(time < {self.outside[0]} or time > {self.outside[1]})")
        if self.value is not None:
            atoms.append(f"{self.value[0]} > {self.value[1]}")
        return f" WHERE {' and '.join(atoms)}" if atoms else ""

    def passes(self, time: int, points: dict[str, dict[int, Any]]) -> bool:
        if self.low is not None and time < self.low:
            return False
        if self.high is not None and time >= self.high:
            return False
        if self.outside is not None and self.outside[0] <= time <= self.outside[1]:
            return False
        if self.value is not None:
            cell = points.get(self.value[0], {}).get(time)
            return cell is not None and cell > self.value[1]
        return True

    @property
    def tail(self) -> str:
        text = " ORDER BY TIME DESC" if self.descending else ""
        text += f" WITHOUT NULL {self.without_null.upper()}" if self.without_null and not self.descending else ""
        return text + (f" LIMIT {self.limit} OFFSET {self.offset}" if self.limit else "")

    def trim(self, rows: list[Any]) -> list[Any]:
        rows = rows[::-1] if self.descending else rows
        if self.without_null and not self.descending:
            keep = any if self.without_null == "all" else all
            rows = [row for row in rows if keep(cell is not None for cell in row[1:])]
        return rows[self.offset : self.offset + self.limit] if self.limit else rows


queries = some.builds(
    Query,
    some.lists(some.sampled_from(sorted(KINDS)), min_size=1, max_size=4, unique=True),
    some.one_of(some.none(), TIMES),
    some.one_of(some.none(), TIMES),
    some.one_of(some.none(), some.tuples(TIMES, TIMES).map(lambda pair: (min(pair), max(pair)))),
    some.one_of(
        some.none(),
        some.tuples(some.sampled_from([path for path in KINDS if path.endswith(".i")]), some.integers(-3, 2)),
    ),
    some.booleans(),
    some.one_of(some.none(), some.integers(1, 9)),
    some.integers(0, 5),
    some.sampled_from([None, None, "any", "all"]),
)
databases = some.fixed_dictionaries(
    {path: some.dictionaries(TIMES, VALUES[kind], max_size=25) for path, (kind, _) in KINDS.items()}
)
setups = some.fixed_dictionaries(
    {"batch_rows": some.sampled_from([1, 2, 5, 1000]), "interval": some.sampled_from([7, 20, 1 << 40])}
)
quick = settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def load(naive: Any, data: dict[str, dict[int, Any]], setup: dict[str, int], round_at_read: Any) -> Any:
    """(the database, the points as they are read)."""
    database = naive(**setup)
    read: dict[str, dict[int, Any]] = {}
    for path, (kind, encoding) in KINDS.items():
        info = database.create(path, kind, encoding)
        for time, value in data[path].items():
            database.put(path, time, value)
        read[path] = {time: round_at_read(value, kind, info.decimals) for time, value in data[path].items()}
    return database, read


def suffixes(paths: list[str]) -> str:
    return ", ".join(path.removeprefix("root.") for path in paths)


def cells_of(rows: Any, header: Any) -> list[list[Any]]:
    columns = [rows.columns[at].tolist() for at in header.physical]
    return [list(row) for row in zip(rows.times.tolist(), *columns, strict=True)]


def close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-13, abs_tol=1e-13)
    return bool(a == b)


def same(got: list[list[Any]], want: list[list[Any]]) -> bool:
    return len(got) == len(want) and all(
        len(a) == len(b) and all(map(close, a, b)) for a, b in zip(got, want, strict=True)
    )


@quick
@given(databases, setups, queries, some.integers(1, 20))
def test_raw_rows(naive: Any, round_at_read: Any, data: Any, setup: Any, query: Query, fetch: int) -> None:
    database, read = load(naive, data, setup, round_at_read)
    text = f"SELECT {suffixes(query.paths)} FROM root{query.where}{query.tail}"
    plan, rows = database.query(text, fetch)
    times = sorted({time for path in query.paths for time in read[path] if query.passes(time, read)})
    want = query.trim([[time, *(read[path].get(time) for path in query.paths)] for time in times])
    assert list(plan.header.columns) == query.paths
    assert same(cells_of(rows, plan.header), want), text


@quick
@given(databases, setups, queries)
def test_columns_one_by_one(naive: Any, round_at_read: Any, data: Any, setup: Any, query: Query) -> None:
    database, read = load(naive, data, setup, round_at_read)
    query.without_null = None
    text = f"SELECT {suffixes(query.paths)} FROM root{query.where}{query.tail} DISABLE ALIGN"
    plan, rows = database.query(text, 3)
    assert plan.header.non_align
    for at, path in enumerate(query.paths):
        want = query.trim([[t, v] for t, v in sorted(read[path].items()) if query.passes(t, read)])
        column = rows.columns[plan.header.physical[at]].tolist()
        got = [[t, v] for t, v in zip(rows.times.tolist(), column, strict=True) if v is not None]
        assert same(got, want), text


def aggregated(function: str, cells: list[tuple[int, Any]]) -> Any:
    values = [value for _, value in cells]
    if function == "count":
        return len(cells)
    if not cells:
        return 0.0 if function == "sum" else None
    return {
        "sum": lambda: math.fsum(values),
        "avg": lambda: math.fsum(values) / len(values),
        "min_time": lambda: cells[0][0],
        "max_time": lambda: cells[-1][0],
        "min_value": lambda: min(values),
        "max_value": lambda: max(values),
        "first_value": lambda: values[0],
        "last_value": lambda: values[-1],
    }[function]()


def usable(path: str) -> list[str]:
    numbers = KINDS[path][0].is_numeric
    return [name for name in FUNCTIONS if numbers or name not in ("sum", "avg", "min_value", "max_value")]


@quick
@given(databases, setups, queries, some.data())
def test_aggregations_over_windows(
    naive: Any, round_at_read: Any, data: Any, setup: Any, query: Query, draw: Any
) -> None:
    database, read = load(naive, data, setup, round_at_read)
    functions = [draw.draw(some.sampled_from(usable(path))) for path in query.paths]
    start, length = draw.draw(STARTS), draw.draw(some.integers(1, 70))
    interval = draw.draw(some.integers(1, 20))
    step = interval + draw.draw(some.integers(0, 5))
    left_open = draw.draw(some.booleans())
    items = ", ".join(f"{f}({suffixes([path])})" for f, path in zip(functions, query.paths, strict=True))
    window = f"({start}, {start + length}]" if left_open else f"[{start}, {start + length})"
    text = f"SELECT {items} FROM root{query.where} GROUP BY ({window}, {interval}ms, {step}ms){query.tail}"
    plan, rows = database.query(text, 4)
    want = []
    begin, end = (start + 1, start + length + 1) if left_open else (start, start + length)
    for low in range(begin, end, step):
        high = min(low + interval, end)
        row: list[Any] = [high - 1 if left_open else low]
        for function, path in zip(functions, query.paths, strict=True):
            inside = [(t, v) for t, v in sorted(read[path].items()) if low <= t < high and query.passes(t, read)]
            row.append(aggregated(function, inside))
        want.append(row)
    assert same(cells_of(rows, plan.header), query.trim(want)), text


@quick
@given(databases, setups, queries, some.data())
def test_aggregations_of_everything(
    naive: Any, round_at_read: Any, data: Any, setup: Any, query: Query, draw: Any
) -> None:
    database, read = load(naive, data, setup, round_at_read)
    functions = [draw.draw(some.sampled_from(usable(path))) for path in query.paths]
    items = ", ".join(f"{f}({suffixes([path])})" for f, path in zip(functions, query.paths, strict=True))
    plan, rows = database.query(f"SELECT {items} FROM root{query.where}")
    want: list[Any] = [0]
    for function, path in zip(functions, query.paths, strict=True):
        want.append(aggregated(function, [(t, v) for t, v in sorted(read[path].items()) if query.passes(t, read)]))
    assert plan.header.ignore_time
    assert same(cells_of(rows, plan.header), [want])


@quick
@given(
    databases, setups, some.sampled_from(sorted(KINDS)), STARTS, some.integers(1, 40), some.integers(1, 9), some.data()
)
def test_windows_filled_from_before(
    naive: Any, round_at_read: Any, data: Any, setup: Any, path: str, start: int, length: int, interval: int, draw: Any
) -> None:
    database, read = load(naive, data, setup, round_at_read)
    until_last, descending = draw.draw(some.booleans()), draw.draw(some.booleans())
    points = sorted(read[path].items())
    method = "previousUntilLast" if until_last else "previous"
    order = " ORDER BY TIME DESC" if descending else ""
    text = (
        f"SELECT last_value({suffixes([path])}) FROM root GROUP BY ([{start}, {start + length}), {interval}ms) "
        f"FILL ({KINDS[path][0].name}[{method}]){order}"
    )
    plan, rows = database.query(text, 3)
    want = []
    for low in range(start, start + length, interval):
        before = [v for t, v in points if t < min(low + interval, start + length)]
        inside = [v for t, v in points if low <= t < min(low + interval, start + length)]
        shown = before[-1] if before else None
        if until_last and not inside and (not points or low > points[-1][0]):
            shown = None
        want.append([low, shown])
    assert same(cells_of(rows, plan.header), want[::-1] if descending else want), text


@quick
@given(
    databases, setups, TIMES, some.one_of(some.none(), some.integers(0, 30)), some.sampled_from(["previous", "linear"])
)
def test_fill_at_one_instant(
    naive: Any, round_at_read: Any, data: Any, setup: Any, time: int, reach: int | None, method: str
) -> None:
    database, read = load(naive, data, setup, round_at_read)
    ranges = "" if reach is None else f", {reach}ms" + (f", {reach}ms" if method == "linear" else "")
    for path in ("root.a.d1.f", "root.a.d1.i"):
        kind = KINDS[path][0]
        text = f"SELECT {suffixes([path])} FROM root WHERE time = {time} FILL ({kind.name}[{method}{ranges}])"
        plan, rows = database.query(text)
        near = [(t, v) for t, v in sorted(read[path].items()) if reach is None or abs(t - time) <= reach]
        before, after = [p for p in near if p[0] <= time], [p for p in near if p[0] > time]
        want: Any = None
        if before and (method == "previous" or before[-1][0] == time):
            want = before[-1][1]
        elif before and after:
            (t0, v0), (t1, v1) = before[-1], after[0]
            step = (v1 - v0) / (t1 - t0) * (time - t0)
            want = v0 + (math.trunc(step) if kind is DataType.INT32 else step)
        assert same(cells_of(rows, plan.header), [[time, want]]), text


@quick
@given(databases, setups, queries, some.sampled_from([True, False]))
def test_rows_of_each_device(
    naive: Any, round_at_read: Any, data: Any, setup: Any, query: Query, filtered: bool
) -> None:
    database, read = load(naive, data, setup, round_at_read)
    query.value = ("i", 0) if filtered else None
    # d2.i is INT64: a column has one type, so it is asked for alone
    for prefix, devices in (
        ("root.a.d2, root.a.d2", ["root.a.d2"]),
        ("root.b.d1, root.a.d1", ["root.b.d1", "root.a.d1"]),
    ):
        text = f"SELECT i, t FROM {prefix}{query.where}{query.tail} ALIGN BY DEVICE"
        plan, rows = database.query(text, 5)
        want = []
        for device in devices:
            mine = {name: read.get(f"{device}.{name}", {}) for name in ("i", "t")}
            times = sorted({t for column in mine.values() for t in column if query.passes(t, mine)})
            part = [[t, device.encode(), mine["i"].get(t), mine["t"].get(t)] for t in times]
            want += part[::-1] if query.descending else part
        if query.without_null and not query.descending:
            keep = any if query.without_null == "all" else all
            want = [row for row in want if keep(cell is not None for cell in row[2:])]
        if query.limit:
            want = want[query.offset : query.offset + query.limit]
        assert same(cells_of(rows, plan.header), want), text


@quick
@given(
    databases,
    setups,
    queries,
    some.sampled_from(["difference", "derivative", "time_difference", "top_k", "bottom_k", "abs"]),
)
def test_functions_of_a_series(naive: Any, round_at_read: Any, data: Any, setup: Any, query: Query, name: str) -> None:
    database, read = load(naive, data, setup, round_at_read)
    query.without_null = None
    path = "root.a.d1.i"
    call = f"{name}(a.d1.i, 'k'='3')" if name.endswith("_k") else f"{name}(a.d1.i)"
    text = f"SELECT {call}, a.d1.f FROM root{query.where}{query.tail}"
    plan, rows = database.query(text, 3)
    points = [(t, v) for t, v in sorted(read[path].items()) if query.passes(t, read)]
    pairs = list(pairwise(points))
    if name == "abs":
        made = {t: abs(v) for t, v in points}
    elif name.endswith("_k"):
        made = dict(sorted(points, key=lambda p: (-p[1] if name == "top_k" else p[1], p[0]))[:3])
    elif name == "difference":
        made = {t1: v1 - v0 for (_, v0), (t1, v1) in pairs}
    elif name == "derivative":
        made = {t1: (v1 - v0) / (t1 - t0) for (t0, v0), (t1, v1) in pairs}
    else:
        made = {t1: t1 - t0 for (t0, _), (t1, _) in pairs}
    raw = {t: v for t, v in read["root.a.d1.f"].items() if query.passes(t, read)}
    want = [[t, made.get(t), raw.get(t)] for t in sorted({*made, *raw})]
    assert same(cells_of(rows, plan.header), query.trim(want)), text
