"""Partial states against plain Python: made, merged in any grouping, reduced, finished."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from iotdb_cluster.columns import Column, DataType
from iotdb_cluster.query import partials
from iotdb_cluster.query.requests import Needs

ALL = Needs.SUM | Needs.EXTREMES | Needs.ENDS
NUMBERS: dict[DataType, Any] = {
    DataType.INT32: some.integers(-(1 << 31), (1 << 31) - 1),
    DataType.INT64: some.integers(-(1 << 63), (1 << 63) - 1),
    DataType.FLOAT: some.floats(width=32, allow_infinity=False, allow_nan=False),
    DataType.DOUBLE: some.floats(-1e300, 1e300),
}


def order(value: Any) -> Any:
    """Java's Double.compare: NaN above all, -0.0 below 0.0."""
    if isinstance(value, float):
        return (math.isnan(value), 0.0 if math.isnan(value) else value, math.copysign(1, value) > 0)
    return value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return bool(a == b)


def expected(function: str, cells: list[tuple[int, Any]]) -> Any:
    values = [value for _, value in cells]
    if function == "count":
        return len(cells)
    if not cells:
        return 0.0 if function == "sum" else None
    if function in ("sum", "avg"):
        total = float(sum(map(Fraction, values)))
        return total if function == "sum" else total / len(cells)
    if function in ("min_value", "max_value", "extreme"):
        low, high = min(values, key=order), max(values, key=order)
        return {"min_value": low, "max_value": high, "extreme": low if abs(low) > abs(high) else high}[function]
    return {
        "min_time": cells[0][0],
        "max_time": cells[-1][0],
        "first_value": values[0],
        "last_value": values[-1],
    }[function]


@some.composite
def windows(draw: Any) -> list[tuple[int, int]]:
    edges = sorted(draw(some.lists(some.integers(-50, 50), min_size=2, max_size=12, unique=True)))
    return [(low, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=False)]


@pytest.mark.parametrize("kind", list(NUMBERS))
@settings(max_examples=60, deadline=None)
@given(data=some.data())
def test_states_of_points_are_those_of_python(kind: DataType, data: Any) -> None:
    points = sorted(data.draw(some.dictionaries(some.integers(-60, 60), NUMBERS[kind], max_size=40)).items())
    bounds = data.draw(windows())
    cut = data.draw(some.integers(0, len(points)))
    starts, ends = (np.array([bound[at] for bound in bounds], np.int64) for at in (0, 1))
    parts = []
    gathered = partials.Gatherer(kind, ALL, len(bounds))
    for half in (points[:cut], points[cut:]):
        times = np.array([time for time, _ in half], np.int64)
        column = Column.of(kind, [value for _, value in half])
        parts.append(partials.of_points(times, column, starts, ends, ALL))
        if len(half):
            gathered.add(times, column, starts, ends)
    whole = partials.merge(parts)
    turned = partials.merge(parts[::-1])
    for function in partials.RESULT_TYPES:
        want = [
            expected(function, [(time, value) for time, value in points if low <= time <= high]) for low, high in bounds
        ]
        for state in (whole, turned, gathered.result()):
            got = partials.finish(function, state).tolist()
            if function == "avg":
                assert [value is None for value in want] == [value is None for value in got]
                pairs = [(a, b) for a, b in zip(want, got, strict=True) if a is not None]
                assert all(math.isclose(a, b, rel_tol=1e-15, abs_tol=1e280) for a, b in pairs)
            elif function == "sum":
                scale = float(sum(abs(Fraction(value)) for _, value in points)) * 1e-28
                assert all(abs(a - b) <= scale for a, b in zip(want, got, strict=True)), (want, got)
            else:
                assert all(map(same, want, got)), (function, want, got)


@settings(max_examples=40, deadline=None)
@given(
    some.dictionaries(some.integers(0, 60), some.one_of(some.none(), some.text(max_size=3)), max_size=20),
    windows(),
    some.integers(1, 4),
)
def test_pieces_of_windows_reduce_to_windows(
    cells: dict[int, str | None], bounds: list[tuple[int, int]], length: int
) -> None:
    points = sorted(cells.items())
    times = np.array([time for time, _ in points], np.int64)
    column = Column.of(DataType.TEXT, [value for _, value in points])
    pieces = [
        (at, low, min(low + length - 1, bound[1]))
        for at, bound in enumerate(bounds)
        for low in range(bound[0], bound[1] + 1, length)
    ]
    owner, lows, highs = (np.array([piece[at] for piece in pieces], np.int64) for at in range(3))
    state = partials.reduce_windows(
        partials.of_points(times, column, lows, highs, Needs.ENDS), owner, len(bounds)
    )  # fmt: skip
    for at, (low, high) in enumerate(bounds):
        inside = [(t, v.encode()) for t, v in points if low <= t <= high and v is not None]
        for function in ("count", "first_value", "last_value", "min_time", "max_time"):
            assert partials.finish(function, state).tolist()[at] == expected(function, inside)


def test_nan_is_the_greatest_value_and_the_least_only_when_alone() -> None:
    times = np.arange(4)
    column = Column.of(DataType.DOUBLE, [1.0, math.nan, -2.0, math.nan])
    starts, ends = np.array([0, 3]), np.array([2, 3])
    state = partials.of_points(times, column, starts, ends, Needs.EXTREMES)
    assert partials.finish("min_value", state).tolist()[0] == -2.0
    assert math.isnan(partials.finish("min_value", state).tolist()[1])
    assert all(map(math.isnan, partials.finish("max_value", state).tolist()))
    assert all(map(math.isnan, partials.finish("extreme", state).tolist()))


def test_extreme_prefers_the_positive_of_equal_magnitudes_and_knows_the_lowest_integer() -> None:
    times = np.arange(2)
    one = (np.array([0]), np.array([1]))
    for cells, want in (([-5, 5], 5), ([-(1 << 31), (1 << 31) - 1], -(1 << 31)), ([-3, -4], -4)):
        state = partials.of_points(times, Column.of(DataType.INT32, cells), *one, Needs.EXTREMES)
        assert partials.finish("extreme", state).tolist() == [want]


def test_infinite_sums_stay_infinite() -> None:
    column = Column.of(DataType.DOUBLE, [math.inf, 1.0, 1e308, 1e308])
    state = partials.of_points(np.arange(4), column, np.array([0, 2]), np.array([1, 3]), Needs.SUM)
    assert partials.finish("sum", state).tolist() == [math.inf, math.inf]
