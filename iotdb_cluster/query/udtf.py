"""The built-in functions that make a series of a series (UDTF), on columns.

A function that looks at one row at a time runs on the common rows of the query. One that looks at its neighbours, or at
all of its series, has a scan of its own, and its rows are joined by time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotdb_cluster.columns import Column, DataType, Int64Array, RowBatch, TextColumn, concat_columns
from iotdb_cluster.errors import check
from iotdb_cluster.query.errors import refuse
from iotdb_cluster.query.filters import compile_regex, search_texts
from iotdb_cluster.query.operators import Operator
from iotdb_cluster.query.requests import SeriesInfo, Steps

__all__ = ["BUILT_IN_CLASSES", "Call", "Compute", "bind", "check_call", "column_name"]

Array: TypeAlias = npt.NDArray[Any]
NUMBERS = (DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.DOUBLE)
K_MAX = 1000

BUILT_IN_CLASSES = {
    "SIN": "Sin", "COS": "Cos", "TAN": "Tan", "ASIN": "Asin", "ACOS": "Acos", "ATAN": "Atan", "DEGREES": "Degrees",
    "RADIANS": "Radians", "ABS": "Abs", "SIGN": "Sign", "CEIL": "Ceil", "FLOOR": "Floor", "ROUND": "Round",
    "EXP": "Exp", "LN": "Log", "LOG10": "Log10", "SQRT": "Sqrt", "STRING_MATCHES": "Matches",
    "STRING_CONTAINS": "Contains", "DIFFERENCE": "CommonValueDifference",
    "NON_NEGATIVE_DIFFERENCE": "NonNegativeValueDifference", "TIME_DIFFERENCE": "TimeDifference",
    "DERIVATIVE": "CommonDerivative", "NON_NEGATIVE_DERIVATIVE": "NonNegativeDerivative", "TOP_K": "TopK",
    "BOTTOM_K": "BottomK",
}  # fmt: skip
"""Name -> what its class is called behind UDTF, as SHOW FUNCTIONS tells."""

_MATH: dict[str, Callable[[Array], Array]] = {
    "SIN": np.sin,
    "COS": np.cos,
    "TAN": np.tan,
    "ASIN": np.arcsin,
    "ACOS": np.arccos,
    "ATAN": np.arctan,
    "DEGREES": np.degrees,
    "RADIANS": np.radians,
    "SIGN": np.sign,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ROUND": np.rint,  # half to even
    "EXP": np.exp,
    "LN": np.log,
    "LOG10": np.log10,
    "SQRT": np.sqrt,
}
_DELTAS = ("DIFFERENCE", "NON_NEGATIVE_DIFFERENCE", "TIME_DIFFERENCE", "DERIVATIVE", "NON_NEGATIVE_DERIVATIVE")


@dataclass(frozen=True, slots=True)
class Call:
    """A checked call on one series. `own_scan`: whether it needs a scan of its own; see `apply` and `operator`."""

    name: str
    series: SeriesInfo
    type: DataType
    argument: str = ""

    @property
    def own_scan(self) -> bool:
        return self.name in _DELTAS or self.name in ("TOP_K", "BOTTOM_K")

    def apply(self, column: Column) -> Column:
        """The function of each cell, null where the cell is."""
        check(not self.own_scan, "%s is no function of one cell", self.name)
        values = column.values
        if isinstance(values, TextColumn):
            if self.name == "STRING_CONTAINS":
                found = search_texts(values, lambda text: self.argument in text)
            else:
                found = search_texts(values, compile_regex(self.argument).fullmatch)
            return Column(DataType.BOOLEAN, found, column.valid)
        with np.errstate(all="ignore"):
            if self.name == "ABS":
                return Column(self.type, np.abs(values), column.valid)
            return Column(DataType.DOUBLE, _MATH[self.name](values.astype(np.float64)), column.valid)

    def operator(self, source: Operator, descending: bool) -> Operator:
        """The rows of the function over the rows of its series: `source` gives those that it is to see.

        `source` of a delta gives them in the order of the result, of TOP_K and BOTTOM_K in ascending order.
        """
        if self.name in _DELTAS:
            return _Deltas(source, self, descending)
        return _Best(source, self, descending)

    @property
    def ascending_source(self) -> bool:
        return self.name in ("TOP_K", "BOTTOM_K")


def column_name(name: str, paths: Sequence[str], attributes: Sequence[tuple[str, str]]) -> str:
    shown = [f'"{key}"="{value}"' for key, value in attributes]
    return f"{name}({', '.join([*paths, *shown])})"


def _attribute(attributes: dict[str, str], key: str) -> str:
    if key not in attributes:
        raise refuse(f'attribute "{key}" is required but was not provided.')
    return attributes[key]


def check_call(name: str, inputs: int) -> None:
    """Raises CallerError for an unknown function, and where it does not take so many series."""
    if name.upper() not in BUILT_IN_CLASSES:
        raise refuse(f"Failed to reflect UDF instance, because UDF {name.upper()} has not been registered.")
    if inputs != 1:
        raise refuse(f"the number of the input series is not valid. expected: 1. actual: {inputs}.")


def bind(name: str, one: SeriesInfo, pairs: Sequence[tuple[str, str]]) -> Call:
    """A call on a series, checked against its type and attributes. Raises CallerError."""
    check_call(name, 1)
    key, attributes = name.upper(), dict(pairs)
    accepted: Sequence[DataType] = NUMBERS
    if key in ("STRING_CONTAINS", "STRING_MATCHES"):
        accepted = (DataType.TEXT,)
    elif key in ("TOP_K", "BOTTOM_K"):
        accepted = (*NUMBERS, DataType.TEXT)
    elif key == "TIME_DIFFERENCE":
        accepted = tuple(DataType)
    if one.type not in accepted:
        names = ", ".join(kind.name for kind in accepted)
        raise refuse(
            f"the data type of the input series (index: 0) is not valid. expected: [{names}]. actual: {one.type.name}."
        )
    if key == "STRING_CONTAINS":
        return Call(key, one, DataType.BOOLEAN, _attribute(attributes, "s"))
    if key == "STRING_MATCHES":
        regex = _attribute(attributes, "regex")
        compile_regex(regex)
        return Call(key, one, DataType.BOOLEAN, regex)
    if key in ("TOP_K", "BOTTOM_K"):
        k = _attribute(attributes, "k")
        if not (k.strip("+-").isdecimal() and 0 < int(k) <= K_MAX):
            raise refuse(f"k has to be greater than 0 and less than or equal to {K_MAX}.")
        return Call(key, one, one.type, k)
    if key == "TIME_DIFFERENCE":
        return Call(key, one, DataType.INT64)
    same = key in ("ABS", "DIFFERENCE", "NON_NEGATIVE_DIFFERENCE")
    return Call(key, one, one.type if same else DataType.DOUBLE)


class Compute(Operator):
    """Each output is a column of the source as it is, or a function of one."""

    def __init__(self, source: Operator, outputs: Sequence[tuple[int, Call | None]]) -> None:
        self.types = tuple(source.types[at] if call is None else call.type for at, call in outputs)
        self._source, self._outputs = source, tuple(outputs)

    def pull(self) -> Steps[RowBatch | None]:
        rows = yield from self._source.pull()
        if rows is None:
            return None
        columns = [rows.columns[at] if call is None else call.apply(rows.columns[at]) for at, call in self._outputs]
        return RowBatch(rows.times, columns)

    def close(self) -> Steps[None]:
        return self._source.close()


class _Deltas(Operator):
    """What changed from the point before in time to each point; the first point has no row."""

    def __init__(self, source: Operator, call: Call, descending: bool) -> None:
        self.types = (call.type,)
        self._source, self._call, self._descending = source, call, descending
        self._held: RowBatch | None = None  # the last row: in ascending order used already, in descending order not yet

    def pull(self) -> Steps[RowBatch | None]:
        while True:
            rows = yield from self._source.pull()
            if rows is None:
                return None
            if self._held is not None:
                times = np.concatenate([self._held.times, rows.times])
                column = concat_columns([self._held.columns[0], rows.columns[0]])
            else:
                times, column = rows.times, rows.columns[0]
            self._held = RowBatch(times[-1:], [column[-1:]])
            if len(times) > 1:
                return self._changes(times, column)

    def _changes(self, times: Int64Array, column: Column) -> RowBatch:
        earlier, later = slice(None, -1), slice(1, None)
        if self._descending:
            earlier, later = later, earlier
        elapsed = times[later] - times[earlier]
        name, kind = self._call.name, self._call.type
        if name == "TIME_DIFFERENCE":
            return RowBatch(times[later], [Column(kind, elapsed)])
        values = np.asarray(column.values)
        with np.errstate(all="ignore"):
            change = values[later] - values[earlier]
            if kind is DataType.DOUBLE and name.endswith("DERIVATIVE"):
                change = change.astype(np.float64) / elapsed.astype(np.float64)
            if name.startswith("NON_NEGATIVE"):
                change = np.abs(change)
        return RowBatch(times[later], [Column(kind, change)])

    def close(self) -> Steps[None]:
        return self._source.close()


class _Best(Operator):
    """The k greatest (or least) values, the earliest of equal ones, in order of time; NaN is the greatest."""

    def __init__(self, source: Operator, call: Call, descending: bool) -> None:
        self.types = (call.type,)
        self._source, self._descending = source, descending
        self._k, self._greatest = int(call.argument), call.name == "TOP_K"
        self._done = False

    def pull(self) -> Steps[RowBatch | None]:
        if self._done:
            return None
        self._done = True
        best: RowBatch | None = None
        while (rows := (yield from self._source.pull())) is not None:
            if best is not None:
                times = np.concatenate([best.times, rows.times])
                rows = RowBatch(times, [concat_columns([best.columns[0], rows.columns[0]])])
            where = self._choose(rows.columns[0])
            best = RowBatch(rows.times[where], [rows.columns[0][where]])
        if best is not None and self._descending:
            best = RowBatch(best.times[::-1], [best.columns[0][::-1]])
        return best

    def _choose(self, column: Column) -> Int64Array:
        """Places of the k best of cells in order of time, ascending."""
        values = column.values
        count = len(values)
        if count <= self._k:
            return np.arange(count)
        if isinstance(values, TextColumn):
            cells = values.tolist()
            pick = heapq.nlargest if self._greatest else heapq.nsmallest
            return np.array(sorted(pick(self._k, range(count), key=cells.__getitem__)), np.int64)
        if self._greatest:
            # Turned round twice, so that of equal values the earlier comes first and NaN before all.
            order = (count - 1 - np.argsort(values[::-1], kind="stable"))[::-1]
        else:
            order = np.argsort(values, kind="stable")
        return np.sort(order[: self._k])

    def close(self) -> Steps[None]:
        return self._source.close()
