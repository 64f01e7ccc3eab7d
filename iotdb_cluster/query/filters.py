"""Conditions: from the syntax tree to tests on columns, and the intervals of time that they leave.

NOT is pushed down to the tests, so that only AND and OR remain and a missing value fails every test, a negated one
included. A condition on a path that stands for several series means all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import regex

from iotdb_cluster.columns import BoolArray, Column, DataType, Int64Array, TextColumn
from iotdb_cluster.errors import check
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.query.errors import refuse, refuse_statement
from iotdb_cluster.query.requests import SeriesInfo
from iotdb_cluster.sql.statements import (
    TIME,
    And,
    CompareOp,
    Comparison,
    Condition,
    In,
    Like,
    Literal,
    LiteralKind,
    Not,
    Or,
    Regexp,
)

__all__ = [
    "EVER",
    "AllOf",
    "AnyOf",
    "Filter",
    "Intervals",
    "Test",
    "TimeIn",
    "bounds",
    "compile_condition",
    "cut_windows",
    "evaluate",
    "intersect",
    "is_time_only",
    "parse_literal",
    "targets",
    "times_within",
    "unite",
]

Intervals: TypeAlias = tuple[tuple[int, int], ...]
"""Inclusive intervals of time: ascending, disjoint, and with a gap between neighbours."""

REGEX_SECONDS_MAX = 1.0  # of one text; what is usual takes microseconds
REGEX_CHARS_MAX = 4_096
REGEX_INLINE_SECONDS = 0.005  # of one text, with all other threads waiting
EVER: Intervals = ((INT64_MIN, INT64_MAX),)


# --- intervals --------------------------------------------------------------------------------------------------------
def unite(parts: Sequence[Intervals]) -> Intervals:
    out: list[tuple[int, int]] = []
    for low, high in sorted(interval for part in parts for interval in part):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(part: Intervals) -> Intervals:
    out, next_low = [], INT64_MIN
    for low, high in part:
        if next_low < low:
            out.append((next_low, low - 1))
        next_low = high + 1
    if next_low <= INT64_MAX:
        out.append((next_low, INT64_MAX))
    return tuple(out)


def intersect(parts: Sequence[Intervals]) -> Intervals:
    return complement(unite([complement(part) for part in parts]))


def _ends(intervals: Intervals) -> tuple[Int64Array, Int64Array]:
    pairs = np.array(intervals, np.int64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def times_within(times: Int64Array, intervals: Intervals) -> BoolArray:
    """bool[n]: which times lie in one of the intervals."""
    lows, highs = _ends(intervals)
    at = np.searchsorted(lows, times, "right") - 1
    inside: BoolArray = at >= 0
    inside[inside] = times[inside] <= highs[at[inside]]
    return inside


def cut_windows(
    starts: Int64Array, ends: Int64Array, intervals: Intervals
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """(starts, ends, window) of the pieces of inclusive windows that lie within the intervals, in ascending order."""
    lows, highs = _ends(intervals)
    first = np.searchsorted(highs, starts, "left")
    counts = np.where(starts <= ends, np.maximum(np.searchsorted(lows, ends, "right") - first, 0), 0)
    window = np.repeat(np.arange(len(starts)), counts)
    which = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts) + first[window]
    return np.maximum(starts[window], lows[which]), np.minimum(ends[window], highs[which]), window


# --- compiled conditions ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TimeIn:
    intervals: Intervals


@dataclass(frozen=True, slots=True)
class Test:
    """`holds` takes the column's cells and gives bool[n]; what it says of a cell without a value is not looked at."""

    __test__ = False  # not a test case, whatever its name

    series: SeriesInfo
    holds: Callable[[Column], BoolArray]


@dataclass(frozen=True, slots=True)
class AllOf:
    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    children: tuple[Filter, ...]


Filter: TypeAlias = TimeIn | Test | AllOf | AnyOf


def bounds(node: Filter | None) -> Intervals:
    """The times at which the condition can hold; exactly those at which it does, if it is on time only."""
    if node is None or isinstance(node, Test):
        return EVER
    if isinstance(node, TimeIn):
        return node.intervals
    parts = [bounds(child) for child in node.children]
    return intersect(parts) if isinstance(node, AllOf) else unite(parts)


def is_time_only(node: Filter | None) -> bool:
    if isinstance(node, AllOf | AnyOf):
        return all(map(is_time_only, node.children))
    return not isinstance(node, Test)


def targets(node: Filter | None) -> list[SeriesInfo]:
    """The series that the condition reads, each once, in the order in which it names them."""
    out: dict[SeriesInfo, None] = {}

    def walk(inner: Filter | None) -> None:
        if isinstance(inner, Test):
            out[inner.series] = None
        elif isinstance(inner, AllOf | AnyOf):
            for child in inner.children:
                walk(child)

    walk(node)
    return list(out)


def evaluate(node: Filter, times: Int64Array, columns: dict[SeriesInfo, Column]) -> BoolArray:
    """bool[n]: in which rows the condition holds."""
    if isinstance(node, TimeIn):
        return times_within(times, node.intervals)
    if isinstance(node, Test):
        column = columns[node.series]
        held = node.holds(column)
        return held if column.valid is None else held & column.valid
    parts = [evaluate(child, times, columns) for child in node.children]
    combine = np.logical_and if isinstance(node, AllOf) else np.logical_or
    out: BoolArray = combine.reduce(parts)
    return out


# --- compiling --------------------------------------------------------------------------------------------------------
Resolve: TypeAlias = Callable[[str], Sequence[SeriesInfo]]
_REVERSE = {
    CompareOp.GT: CompareOp.LE,
    CompareOp.GE: CompareOp.LT,
    CompareOp.LT: CompareOp.GE,
    CompareOp.LE: CompareOp.GT,
    CompareOp.EQ: CompareOp.NE,
    CompareOp.NE: CompareOp.EQ,
}


def compile_condition(condition: Condition, resolve: Resolve, negated: bool = False) -> Filter:
    """The tests of a condition (of its opposite if `negated`).

    `resolve` gives the series that a path stands for, or raises CallerError. Raises CallerError where a constant or an
    operator does not fit a series' type.
    """
    if isinstance(condition, Not):
        return compile_condition(condition.child, resolve, not negated)
    if isinstance(condition, And | Or):
        children = tuple(compile_condition(child, resolve, negated) for child in condition.children)
        return AllOf(children) if isinstance(condition, And) != negated else AnyOf(children)
    if isinstance(condition, Like | Regexp):
        return _spread(condition.path, resolve, negated, lambda series: _text_test(series, condition, negated))
    if condition.target is TIME:
        inside = _time_intervals(condition)
        return TimeIn(complement(inside) if negated else inside)
    if isinstance(condition, In):
        wanted = condition.negated == negated
        literals = condition.literals
        return _spread(str(condition.target), resolve, negated, lambda series: _in_test(series, literals, wanted))
    op = _REVERSE[condition.op] if negated else condition.op
    literal = condition.literal
    return _spread(str(condition.target), resolve, negated, lambda series: _compare_test(series, op, literal))


def _spread(path: str, resolve: Resolve, negated: bool, make: Callable[[SeriesInfo], Test]) -> Filter:
    tests = tuple(make(series) for series in resolve(path))
    if not tests:  # a path of which this device has no series: the condition holds nowhere, its opposite neither
        return TimeIn(())
    if len(tests) == 1:
        return tests[0]
    return AnyOf(tests) if negated else AllOf(tests)


def _time_of(literal: Literal) -> int:
    if literal.time is not None:
        return literal.time
    return int(literal.text)


def _time_intervals(condition: Comparison | In) -> Intervals:
    if isinstance(condition, In):
        inside = unite([((time, time),) for time in map(_time_of, condition.literals)])
        return complement(inside) if condition.negated else inside
    time = _time_of(condition.literal)
    if condition.op is CompareOp.EQ:
        return ((time, time),)
    if condition.op is CompareOp.NE:
        return complement(((time, time),))
    if condition.op in (CompareOp.LT, CompareOp.LE):
        high = time - (condition.op is CompareOp.LT)
        return ((INT64_MIN, high),) if high >= INT64_MIN else ()
    low = time + (condition.op is CompareOp.GT)
    return ((low, INT64_MAX),) if low <= INT64_MAX else ()


_INTEGER = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"\s*[+-]?(NaN|Infinity|([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)[fFdD]?\s*")


def parse_literal(literal: Literal, kind: DataType, name: str) -> bool | int | float | bytes:
    """A constant as a value of this type; `name` is the series that it is compared with. Raises CallerError."""
    if literal.kind is LiteralKind.DATE:
        raise refuse_statement(f"Unsupported type: [{name}]. Date can only be used to time")
    text = literal.text
    if kind is DataType.TEXT:
        return literal.unquoted.encode()
    if kind is DataType.BOOLEAN:
        return text.lower() == "true"
    if kind in (DataType.INT32, DataType.INT64):
        limit = 1 << (31 if kind is DataType.INT32 else 63)
        if _INTEGER.fullmatch(text) and -limit <= int(text) < limit:
            return int(text)
    elif _REAL.fullmatch(text):
        number = float(text.strip().rstrip("fFdD") if text.strip()[-1] in "fFdD" else text)
        with np.errstate(over="ignore"):
            return float(np.float32(number)) if kind is DataType.FLOAT else number
    raise refuse(f'For input string: "{text}"')


def _compare_test(series: SeriesInfo, op: CompareOp, literal: Literal) -> Test:
    value = parse_literal(literal, series.type, series.path)
    if isinstance(value, bytes):
        if op not in (CompareOp.EQ, CompareOp.NE):
            raise refuse("For Basic operator,TEXT type only support EQUAL or NOTEQUAL operator")
        text, equal = value, op is CompareOp.EQ
        return Test(series, lambda column: _texts(column).equal_to(text) == equal)
    number = value
    return Test(series, lambda column: _compare(np.asarray(column.values), op, number))


def _texts(column: Column) -> TextColumn:
    check(isinstance(column.values, TextColumn), "a text condition on a %s column", column.type.name)
    return column.values  # type: ignore[return-value]


def _compare(values: npt.NDArray[Any], op: CompareOp, number: bool | int | float) -> BoolArray:
    """NaN is equal to itself and greater than every other number."""
    greater: BoolArray
    equal: BoolArray
    if isinstance(number, float) and math.isnan(number):
        equal = np.isnan(values)
        greater = np.zeros(len(values), np.bool_)
    else:
        constant = values.dtype.type(number)
        equal = values == constant
        greater = values > constant
        if values.dtype.kind == "f":
            greater |= np.isnan(values)
    if op is CompareOp.EQ:
        return equal
    if op is CompareOp.NE:
        return ~equal
    if op is CompareOp.GT:
        return greater
    if op is CompareOp.GE:
        return greater | equal
    return ~(greater | equal) if op is CompareOp.LT else ~greater


def _in_test(series: SeriesInfo, literals: Sequence[Literal], wanted: bool) -> Test:
    values = [parse_literal(literal, series.type, series.path) for literal in literals]
    if series.type is DataType.TEXT:
        texts = [value for value in values if isinstance(value, bytes)]

        def holds_text(column: Column) -> BoolArray:
            cells = _texts(column)
            found: BoolArray = np.logical_or.reduce([cells.equal_to(text) for text in texts])
            return found if wanted else ~found

        return Test(series, holds_text)
    constants = np.array(values, series.type.dtype)
    return Test(series, lambda column: np.isin(column.values, constants) == wanted)  # type: ignore[arg-type]


# --- LIKE and REGEXP --------------------------------------------------------------------------------------------------
def like_pattern(pattern: str) -> str:
    """The regular expression of a LIKE pattern: % any run, _ one character, a backslash escapes.

    What stands between two % is looked for once, at its first place, so that no text takes long.
    """
    runs: list[list[str]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "%":
            runs.append([])
        elif char == "\\" and at + 1 < len(pattern):
            at += 1
            runs[-1].append(re.escape(pattern[at]))
        else:
            runs[-1].append("." if char == "_" else re.escape(char))
        at += 1
    first, *between = ("".join(run) for run in runs)
    if not between:
        return rf"\A{first}\Z"
    last = between.pop()
    return rf"\A{first}{''.join(f'(?>.*?{run})' for run in between if run)}.*{last}\Z"


@dataclass(frozen=True, slots=True)
class TextPattern:
    """A regular expression that gives up where a text takes too long, and does not hold up the loop meanwhile."""

    text: str
    compiled: Any

    def search(self, text: str) -> bool:
        return self._within(self.compiled.search, text)

    def fullmatch(self, text: str) -> bool:
        return self._within(self.compiled.fullmatch, text)

    def _within(self, match: Callable[..., object], text: str) -> bool:
        """Raises CallerError where matching takes too long: some expressions are exponential in the text."""
        try:
            return match(text, timeout=REGEX_INLINE_SECONDS) is not None
        except TimeoutError:
            pass
        try:  # once more, with the interpreter left to other threads
            return match(text, timeout=REGEX_SECONDS_MAX, concurrent=True) is not None
        except TimeoutError:
            raise refuse(
                f"The regular expression [{self.text[:100]}] takes more than {REGEX_SECONDS_MAX} s on one text: "
                "write it without nested repetitions"
            ) from None


def compile_regex(pattern: str) -> TextPattern:
    """Raises CallerError where the pattern is not one, or is too long."""
    if len(pattern) > REGEX_CHARS_MAX:
        raise refuse(f"A regular expression has at most {REGEX_CHARS_MAX} characters, this one {len(pattern)}")
    try:
        return TextPattern(pattern, regex.compile(pattern))
    except (regex.error, RecursionError, OverflowError) as error:
        raise refuse(f"Illegal regular expression [{pattern[:100]}]: {error}") from None


def search_texts(texts: TextColumn, matches: Callable[[str], object]) -> BoolArray:
    """bool[n]: which texts match; equal texts are tried once."""
    known: dict[bytes, bool] = {}
    cells = texts.tolist()
    for cell in cells:
        if cell not in known:
            known[cell] = bool(matches(cell.decode("utf-8", "replace")))
    return np.fromiter((known[cell] for cell in cells), np.bool_, len(cells))


def _text_test(series: SeriesInfo, condition: Like | Regexp, negated: bool) -> Test:
    word = "Like" if isinstance(condition, Like) else "Regexp"
    if series.type is not DataType.TEXT:
        raise refuse(f"Unsupported type: [{series.type.name}]. Only TEXT is supported in '{word}'")
    literal = condition.pattern
    if not literal.text.startswith("'"):
        raise refuse(f"Unsupported type: [{literal.text}]. Please use single quotation marks")
    pattern = compile_regex(like_pattern(literal.unquoted) if isinstance(condition, Like) else literal.unquoted)
    return Test(series, lambda column: search_texts(_texts(column), pattern.search) != negated)
