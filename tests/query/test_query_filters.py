"""Intervals and conditions against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from iotdb_cluster.columns import Column, DataType
from iotdb_cluster.errors import CallerError
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.query import filters
from iotdb_cluster.query.filters import compile_regex, like_pattern
from iotdb_cluster.query.requests import SeriesInfo
from iotdb_cluster.sql.statements import (
    TIME,
    And,
    CompareOp,
    Comparison,
    In,
    Like,
    Literal,
    LiteralKind,
    Not,
    Or,
    Regexp,
)

UNIVERSE = [*range(-20, 21), INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX]
TIMES = np.array(sorted(UNIVERSE), np.int64)


def series(kind: DataType) -> SeriesInfo:
    return SeriesInfo("root.sg.d.s", "root.sg.d", "s", kind, "root.sg", 1)


def number(value: float) -> Literal:
    if isinstance(value, float) and math.isnan(value):
        return Literal(LiteralKind.NAN, "NaN")
    return Literal(LiteralKind.INT if isinstance(value, int) else LiteralKind.REAL, repr(value))


bound = some.sampled_from(UNIVERSE)
intervals = some.lists(some.tuples(bound, bound).map(lambda pair: (min(pair), max(pair))), max_size=4).map(
    lambda pairs: filters.unite([(pair,) for pair in pairs])
)


@settings(max_examples=150, deadline=None)
@given(some.lists(intervals, min_size=1, max_size=3))
def test_interval_algebra(parts: list[filters.Intervals]) -> None:
    held = [filters.times_within(TIMES, part) for part in parts]
    for part, mask in zip(parts, held, strict=True):
        assert mask.tolist() == [any(low <= time <= high for low, high in part) for time in TIMES.tolist()]
        assert (filters.times_within(TIMES, filters.complement(part)) == ~mask).all()
    assert (filters.times_within(TIMES, filters.unite(parts)) == np.logical_or.reduce(held)).all()
    assert (filters.times_within(TIMES, filters.intersect(parts)) == np.logical_and.reduce(held)).all()


@settings(max_examples=150, deadline=None)
@given(intervals, some.lists(some.integers(-25, 25), min_size=2, max_size=8, unique=True))
def test_windows_are_cut_by_intervals(part: filters.Intervals, edges: list[int]) -> None:
    edges = sorted(edges)
    bounds = [(low, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=False)]
    starts, ends = (np.array([bound[at] for bound in bounds], np.int64) for at in (0, 1))
    lows, highs, owner = filters.cut_windows(starts, ends, part)
    got = list(zip(lows.tolist(), highs.tolist(), owner.tolist(), strict=True))
    want = [
        (max(low, a), min(high, b), at)
        for at, (low, high) in enumerate(bounds)
        for a, b in part
        if max(low, a) <= min(high, b)
    ]
    assert got == want


atoms = some.one_of(
    some.builds(Comparison, some.just(TIME), some.sampled_from(CompareOp), some.integers(-20, 20).map(number)),
    some.builds(
        In, some.just(TIME), some.lists(some.integers(-20, 20).map(number), min_size=1, max_size=3).map(tuple),
        some.booleans(),
    ),
    some.builds(
        Comparison, some.just("s"), some.sampled_from(CompareOp),
        some.sampled_from([-1.5, 0.0, 2.0, math.nan]).map(number),
    ),
    some.builds(
        In, some.just("s"), some.lists(some.sampled_from([-1.5, 0.0, 2.0]).map(number), min_size=1, max_size=2)
        .map(tuple), some.booleans(),
    ),
)  # fmt: skip
conditions = some.recursive(
    atoms,
    lambda inner: some.one_of(
        some.builds(Not, inner),
        some.builds(And, some.lists(inner, min_size=2, max_size=3).map(tuple)),
        some.builds(Or, some.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


def holds(condition: Any, time: int, value: float | None, negated: bool = False) -> bool:
    """One row, one test after another; NOT reaches the tests, and a test of no value fails either way."""
    if isinstance(condition, Not):
        return holds(condition.child, time, value, not negated)
    if isinstance(condition, And | Or):
        found = [holds(child, time, value, negated) for child in condition.children]
        return all(found) if isinstance(condition, And) != negated else any(found)
    cell: Any = time if condition.target is TIME else value
    if cell is None:
        return False

    def key(x: Any) -> Any:
        return (1, 0.0) if isinstance(x, float) and math.isnan(x) else (0, x)

    def parsed(literal: Literal) -> Any:
        return int(literal.text) if condition.target is TIME else float(literal.text)

    if isinstance(condition, In):
        return (any(key(cell) == key(parsed(one)) for one in condition.literals) != condition.negated) != negated
    a, b = key(cell), key(parsed(condition.literal))
    found = {">": a > b, ">=": a >= b, "<": a < b, "<=": a <= b, "=": a == b, "!=": a != b}[condition.op.value]
    return found != negated


@settings(max_examples=300, deadline=None)
@given(conditions, some.lists(some.sampled_from([None, -1.5, 0.0, 1.0, 2.0, math.nan]), min_size=41, max_size=41))
def test_conditions_row_by_row(condition: Any, cells: list[float | None]) -> None:
    one = series(DataType.DOUBLE)
    times = np.arange(-20, 21)
    node = filters.compile_condition(condition, lambda _: [one])
    got = filters.evaluate(node, times, {one: Column.of(DataType.DOUBLE, cells)})
    want = [holds(condition, time, cell) for time, cell in zip(times.tolist(), cells, strict=True)]
    assert got.tolist() == want
    inside = filters.times_within(times, filters.bounds(node))
    assert not (got & ~inside).any()
    if filters.is_time_only(node):
        assert (got == inside).all()


TEXTS = Column.of(DataType.TEXT, ["v1", "a%b", None, "", "vv", "x1y"])


@pytest.mark.parametrize(
    ("condition", "want"),
    [
        (Like("s", Literal(LiteralKind.STRING, "'v_'")), [0, 4]),
        (Like("s", Literal(LiteralKind.STRING, "'%1%'")), [0, 5]),
        (Like("s", Literal(LiteralKind.STRING, r"'a\%b'")), [1]),
        (Like("s", Literal(LiteralKind.STRING, "''")), [3]),
        (Regexp("s", Literal(LiteralKind.STRING, "'[0-9]'")), [0, 5]),
        (Not(Regexp("s", Literal(LiteralKind.STRING, "'^v'"))), [1, 3, 5]),
        (Comparison("s", CompareOp.NE, Literal(LiteralKind.STRING, "'vv'")), [0, 1, 3, 5]),
        (In("s", (Literal(LiteralKind.STRING, "'vv'"), Literal(LiteralKind.STRING, '"v1"')), True), [1, 3, 5]),
    ],
)
def test_conditions_on_text(condition: Any, want: list[int]) -> None:
    one = series(DataType.TEXT)
    node = filters.compile_condition(condition, lambda _: [one])
    assert np.flatnonzero(filters.evaluate(node, np.arange(6), {one: TEXTS})).tolist() == want


@pytest.mark.parametrize(
    ("kind", "condition", "code", "text"),
    [
        (DataType.TEXT, Comparison("s", CompareOp.GT, number(1)), 411, "TEXT type only support EQUAL or NOTEQUAL"),
        (DataType.INT32, Like("s", Literal(LiteralKind.STRING, "'a'")), 411, "Unsupported type: [INT32]. Only TEXT"),
        (DataType.TEXT, Regexp("s", Literal(LiteralKind.STRING, '"a"')), 411, "Please use single quotation marks"),
        (DataType.TEXT, Regexp("s", Literal(LiteralKind.STRING, "'('")), 411, "Illegal regular expression"),
        (DataType.INT32, Comparison("s", CompareOp.EQ, number(1.5)), 411, 'For input string: "1.5"'),
        (DataType.INT32, Comparison("s", CompareOp.EQ, number(1 << 31)), 411, "For input string"),
        (
            DataType.INT64,
            Comparison("s", CompareOp.EQ, Literal(LiteralKind.DATE, "5", 5)),
            303,
            "Date can only",
        ),
    ],
)
def test_conditions_that_do_not_fit(kind: DataType, condition: Any, code: int, text: str) -> None:
    with pytest.raises(CallerError) as caught:
        filters.compile_condition(condition, lambda _: [series(kind)])
    assert caught.value.code == code
    assert text in caught.value.message


def like_by_hand(pattern: str, text: str) -> bool:
    """LIKE by trying every length of every run."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like_by_hand(pattern[1:], text[at:]) for at in range(len(text) + 1))
    if pattern[0] == "\\" and len(pattern) > 1:
        return text[:1] == pattern[1] and like_by_hand(pattern[2:], text[1:])
    return bool(text) and pattern[0] in ("_", text[0]) and like_by_hand(pattern[1:], text[1:])


@given(some.text(alphabet="ab%_\\", max_size=7), some.text(alphabet="ab%_", max_size=8))
def test_like_is_what_trying_all_lengths_gives(pattern: str, text: str) -> None:
    assert compile_regex(like_pattern(pattern)).search(text) == like_by_hand(pattern, text)


def test_expressions_that_never_end_are_refused_and_long_likes_are_quick() -> None:
    with pytest.raises(CallerError, match="takes more than"):
        compile_regex("(x+x+)+y").search("x" * 5_000)
    with pytest.raises(CallerError, match="at most"):
        compile_regex("a" * 5_000)
    assert not compile_regex(like_pattern("%a" * 300 + "b")).search("a" * 20_000)
    assert compile_regex(like_pattern("%a" * 300)).search("a" * 20_000)
