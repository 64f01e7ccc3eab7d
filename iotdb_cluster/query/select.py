"""SELECT: from the statement to a plan, but for ALIGN BY DEVICE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from iotdb_cluster.columns import DataType
from iotdb_cluster.query.aggregation import AggregateRows, Output
from iotdb_cluster.query.errors import refuse, refuse_statement
from iotdb_cluster.query.fill import FillRow, FillWindows, check_fills
from iotdb_cluster.query.filters import Filter, compile_condition, is_time_only
from iotdb_cluster.query.last import LAST_COLUMNS, LastRows, last_times
from iotdb_cluster.query.operators import Limit, LimitEach, Operator, Pick, Union, WithoutNull
from iotdb_cluster.query.partials import NUMERIC, RESULT_TYPES
from iotdb_cluster.query.plan import Header, Plan, QueryContext, header_of, in_memory
from iotdb_cluster.query.requests import MatchSeries, SeriesInfo, Steps
from iotdb_cluster.query.scans import rows_of
from iotdb_cluster.query.udtf import Call, Compute, bind, check_call, column_name
from iotdb_cluster.query.windows import WholeWindow, windows_of
from iotdb_cluster.schema import split_path
from iotdb_cluster.sql.statements import (
    TIME,
    Aggregate,
    And,
    CompareOp,
    Comparison,
    Condition,
    Constant,
    Like,
    Not,
    Or,
    RawItem,
    Regexp,
    Select,
    SelectItem,
    Udtf,
    is_full_path,
)

T = TypeVar("T")

__all__ = [
    "Matched",
    "aggregate_type",
    "aggregation_source",
    "check_select",
    "fill_source",
    "fill_time",
    "prepare_select",
    "raw_source",
    "shown_path",
    "slice_columns",
    "where_paths",
]


@dataclass(frozen=True, slots=True)
class Matched:
    """A result column before it is computed: its name, and a function of a series, or the series itself."""

    name: str
    series: SeriesInfo
    function: str | None = None
    path: str = ""  # as the item wrote it


# --- checks -----------------------------------------------------------------------------------------------------------
def check_select(select: Select) -> None:
    """Raises CallerError where clauses do not go together."""
    forms = [item.form for item in select.items]
    aggregates = [form for form in forms if isinstance(form, Aggregate)]
    if select.has_udtf:
        if aggregates:
            raise refuse("User-defined and built-in hybrid aggregation is not supported.")
        if select.fill:
            raise refuse("Fill functions are not supported in UDF queries.")
        if select.align_by_device:
            raise refuse("ALIGN BY DEVICE clause is not supported in UDF queries.")
    if aggregates and any(isinstance(form, RawItem) for form in forms):
        raise refuse("Common queries and aggregated queries are not allowed to appear at the same time")
    if (select.group_by is not None or select.levels) and not aggregates:
        raise refuse_statement("There is no aggregation function with group by query")
    if select.levels and select.align_by_device:
        raise refuse("group by level does not support align by device now.")
    if select.last:
        if select.disable_align:
            raise refuse("Disable align cannot be applied to LAST query.")
        if select.align_by_device:
            raise refuse("Last query does not support align by device.")
    if select.disable_align and (aggregates or select.fill):
        raise refuse(f"{select.operation} doesn't support disable align clause.")
    check_fills(select.fill)
    if select.fill and select.group_by is not None:
        if any(form.function != "last_value" for form in aggregates):
            raise refuse_statement("Group By Fill only support last_value function")
    elif select.fill and any(fill.data_type is None for fill in select.fill):
        raise refuse_statement("fill of all types needs GROUP BY")


def fill_time(where: Condition | None) -> int:
    """The instant of `WHERE time = t FILL(...)`. Raises CallerError for any other condition."""
    if not isinstance(where, Comparison) or where.target is not TIME:
        raise refuse_statement("Slice query must select a single time point")
    if where.op is not CompareOp.EQ:
        raise refuse_statement('Only "=" can be used in fill function')
    return int(where.literal.text) if where.literal.time is None else where.literal.time


def aggregate_type(function: str, series: SeriesInfo) -> DataType:
    """The result type. Raises CallerError where the function does not take the series' type."""
    numbers = series.type.is_numeric or (series.type is DataType.BOOLEAN and function == "sum")
    if function in NUMERIC and not numbers:
        raise refuse(f"Unsupported data type in aggregation {function.upper()} : {series.type.name}")
    return RESULT_TYPES[function] or series.type


# --- paths ------------------------------------------------------------------------------------------------------------
def where_paths(condition: Condition | None) -> list[str]:
    """The paths that a condition names, each once, in its order."""
    if condition is None:
        return []
    if isinstance(condition, And | Or):
        return list(dict.fromkeys(path for child in condition.children for path in where_paths(child)))
    if isinstance(condition, Not):
        return where_paths(condition.child)
    if isinstance(condition, Like | Regexp):
        return [condition.path]
    return [] if condition.target is TIME else [str(condition.target)]


def _patterns(path: str, prefixes: Sequence[str]) -> list[str]:
    """What a path of SELECT or WHERE stands for under each prefix of FROM."""
    return [path] if is_full_path(path) else [f"{prefix}.{path}" for prefix in prefixes]


def shown_path(series: SeriesInfo, pattern: str) -> str:
    """The path as a result shows it: by its alias if the statement used that."""
    if series.alias is None or not pattern.endswith(series.alias) or pattern.endswith(f".{series.measurement}"):
        return series.path
    nodes = split_path(pattern)
    if nodes[-1] == series.alias and len(nodes) == len(split_path(series.path)):
        return f"{series.device}.{series.alias}"
    return series.path


def _item_paths(item: SelectItem) -> tuple[str, ...]:
    form = item.form
    if isinstance(form, Udtf):
        return form.paths
    return () if isinstance(form, Constant) else (form.path,)


class _Known:
    """The series of every pattern of a statement, asked for at once."""

    def __init__(self, patterns: Sequence[str], answers: Sequence[Sequence[SeriesInfo]]) -> None:
        self._series = dict(zip(patterns, answers, strict=True))

    @classmethod
    def ask(cls, select: Select, series_max: int) -> Steps[_Known]:
        paths = [path for item in select.items for path in _item_paths(item)] + where_paths(select.where)
        patterns = list(dict.fromkeys(pattern for path in paths for pattern in _patterns(path, select.from_)))
        if not patterns:
            return cls((), ())
        limit = None
        if not where_paths(select.where) and not select.levels and not select.last:
            # More than these are refused, or cut off by SLIMIT; a condition must see all that it names.
            wanted = series_max if select.slimit is None else min(select.slimit, series_max)
            limit = select.soffset + wanted + 1
        answers = yield MatchSeries(tuple(patterns), limit)
        return cls(patterns, answers)

    def __getitem__(self, pattern: str) -> Sequence[SeriesInfo]:
        return self._series[pattern]

    def condition(self, select: Select) -> Filter | None:
        """The compiled condition. Raises CallerError for a path that matches nothing."""
        if select.where is None:
            return None

        def resolve(path: str) -> list[SeriesInfo]:
            found: dict[SeriesInfo, None] = {}
            for pattern in _patterns(path, select.from_):
                if not self[pattern]:
                    raise refuse(f"Unknown time series {pattern} in `where clause`")
                found.update(dict.fromkeys(self[pattern]))
            return list(found)

        return compile_condition(select.where, resolve)


def _expand(select: Select, known: _Known) -> list[Matched]:
    """Raw series and aggregations in the order of the statement: item by item, prefix by prefix, path by path."""
    out: list[Matched] = []
    for item in select.items:
        form = item.form
        if isinstance(form, Constant | Udtf):
            continue
        function = form.function if isinstance(form, Aggregate) else None
        begin = len(out)
        for pattern in _patterns(form.path, select.from_):
            for series in known[pattern]:
                shown = shown_path(series, pattern)
                name = f"{form.text}({shown})" if isinstance(form, Aggregate) else shown
                out.append(Matched(item.alias or name, series, function, form.path))
        if item.alias is not None and len(out) > begin + 1 and not select.levels:
            raise refuse(f"alias '{item.alias}' can only be matched with one time series")
    return out


def slice_columns(select: Select, columns: Sequence[T]) -> list[T]:
    """SLIMIT and SOFFSET. Raises CallerError where SOFFSET leaves none."""
    if select.soffset and columns and select.soffset >= len(columns):
        raise refuse(
            f"The value of SOFFSET ({select.soffset}) is equal to or exceeds the number of sequences "
            f"({len(columns)}) that can actually be returned."
        )
    end = None if select.slimit is None else select.soffset + select.slimit
    return list(columns[select.soffset : end])


def _check_width(series: Sequence[SeriesInfo], series_max: int) -> None:
    if len(set(series)) > series_max:
        raise refuse(
            f"Too many paths in one query! Currently allowed max deduplicated path number is {series_max}. "
            "Please use slimit or adjust max_deduplicated_path_num in iotdb-engine.properties."
        )


# --- sources ----------------------------------------------------------------------------------------------------------
def _rows_wanted(select: Select, context: QueryContext, node: Filter | None) -> int:
    """Rows of a batch: no more than a LIMIT can use, unless rows are dropped before it."""
    if select.limit is None or select.without_null is not None or not is_time_only(node):
        return context.batch_rows
    return max(1, min(context.batch_rows, select.limit + select.offset))


def raw_source(select: Select, context: QueryContext, series: Sequence[SeriesInfo], node: Filter | None) -> Operator:
    """The rows of distinct series, before LIMIT."""
    return rows_of(series, node, _rows_wanted(select, context, node), descending=select.descending)


def aggregation_source(
    select: Select, context: QueryContext, outputs: Sequence[Output], node: Filter | None, *, limited: bool
) -> Operator:
    """The rows of aggregations, filled if asked for. `limited`: only those that LIMIT and OFFSET leave are computed."""
    windows = WholeWindow() if select.group_by is None else windows_of(select.group_by, context.zone)
    low, high = 0, len(windows)
    if limited:
        low = min(select.offset, high)
        high = high if select.limit is None else min(high, select.offset + select.limit)
    descending = select.descending and select.group_by is not None
    if select.group_by is None or not select.fill:
        return AggregateRows(
            outputs, windows, node, descending=descending, low=low, high=high, batch_rows=context.batch_rows
        )
    source = AggregateRows(outputs, windows, node, descending=descending, batch_rows=context.batch_rows)
    series = [output.series[0] for output in outputs]
    start, _, _ = windows.slice(0, 1)
    first = int(start[0]) if len(start) else 0
    return FillWindows(source, series, select.fill, first, select.group_by.interval.total, descending=descending)


def fill_source(select: Select, series: Sequence[SeriesInfo]) -> Operator:
    return FillRow(series, fill_time(select.where), select.fill)


def _finish(select: Select, header: Header, source: Operator, *, limited: bool = False) -> Plan:
    """WITHOUT NULL, then LIMIT and OFFSET unless they are in the source already."""
    if select.without_null is not None and not header.non_align:
        source = WithoutNull(source, select.without_null)
    if (select.limit is not None or select.offset) and not limited:
        limit = LimitEach if header.non_align else Limit
        source = limit(source, select.limit, select.offset)
    return Plan(header, source)


def _distinct(columns: Sequence[Matched]) -> dict[str, Matched]:
    """By name, the first of each: the physical columns."""
    out: dict[str, Matched] = {}
    for column in columns:
        out.setdefault(column.name, column)
    return out


# --- plans ------------------------------------------------------------------------------------------------------------
def prepare_select(select: Select, context: QueryContext) -> Steps[Plan]:
    """Raises CallerError."""
    check_select(select)
    if select.fill and select.group_by is None:
        fill_time(select.where)
    known = yield from _Known.ask(select, context.series_max)
    if select.last:
        return _last_plan(select, known)
    if select.has_udtf:
        return _udtf_plan(select, context, known)
    if select.has_aggregate:
        return _aggregation_plan(select, context, known)
    return _raw_plan(select, context, known)


def _raw_plan(select: Select, context: QueryContext, known: _Known) -> Plan:
    """Raw queries, and FILL at one instant."""
    columns = slice_columns(select, _expand(select, known))
    kinds = [(column.name, column.series.type) for column in columns]
    header = header_of(kinds, select.operation, mapped=True, non_align=select.disable_align)
    if not columns:
        return in_memory(header, None)
    _check_width([column.series for column in columns], context.series_max)
    physical = [column.series for column in _distinct(columns).values()]
    series = list(dict.fromkeys(physical))
    if select.fill:
        source = fill_source(select, series)
    else:
        source = raw_source(select, context, series, known.condition(select))
    if series != physical:
        source = Pick(source, [series.index(one) for one in physical])
    return _finish(select, header, source)


def _aggregation_plan(select: Select, context: QueryContext, known: _Known) -> Plan:
    columns = _expand(select, known)
    node = known.condition(select) if columns else None
    if select.levels:
        named = slice_columns(select, _by_level(select, columns))
    else:
        named = [
            (column.name, _output(column.function or "", (column.series,))) for column in slice_columns(select, columns)
        ]
    _check_width([one for _, output in named for one in output.series], context.series_max)
    header = header_of(
        [(name, output.type) for name, output in named],
        select.operation,
        ignore_time=select.group_by is None,
        mapped=not select.levels,
    )
    if not named:
        return in_memory(header, None)
    outputs: dict[str, Output] = {}
    for name, output in named:
        outputs.setdefault(name, output)
    limited = select.without_null is None and not select.fill
    source = aggregation_source(select, context, list(outputs.values()), node, limited=limited)
    return _finish(select, header, source, limited=limited)


def _output(function: str, series: tuple[SeriesInfo, ...], equal_weight: bool = False) -> Output:
    kinds = [aggregate_type(function, one) for one in series]
    return Output(function, series, kinds[0], equal_weight)


def _level_path(path: str, levels: Sequence[int], star: bool) -> str:
    nodes = split_path(path)
    kept = [node if at == 0 or at in levels else "*" for at, node in enumerate(nodes)]
    kept[-1] = "*" if star else nodes[-1]
    return ".".join(kept)


def _by_level(select: Select, columns: Sequence[Matched]) -> list[tuple[str, Output]]:
    """One column for each function and collapsed path, in order of first appearance."""
    aliases = {
        (item.form.function, item.form.path): item.alias
        for item in select.items
        if isinstance(item.form, Aggregate) and item.alias
    }
    groups: dict[str, list[Matched]] = {}
    for column in columns:
        typed = column.name.partition("(")[0] if (column.function, column.path) not in aliases else column.function
        star = typed == "count" and column.path == "*"
        groups.setdefault(f"{typed}({_level_path(column.series.path, select.levels, star)})", []).append(column)
    out, seen = [], set()
    for name, members in groups.items():
        function = members[0].function or ""
        if RESULT_TYPES[function] is None and len({member.series.type for member in members}) > 1:
            raise refuse("Aggregate among unmatched data types")
        alias = aliases.get((function, members[0].path))
        if alias is not None and alias in seen:
            raise refuse(f"alias '{alias}' can only be matched with one time series")
        seen.add(alias)
        # A series that an item mentions under two prefixes counts once.
        series = tuple(dict.fromkeys(member.series for member in members))
        out.append((alias or name, _output(function, series, equal_weight=select.group_by is not None)))
    return out


def _last_plan(select: Select, known: _Known) -> Plan:
    columns = slice_columns(select, _expand(select, known))
    header = header_of(LAST_COLUMNS, select.operation)
    if not columns:
        return in_memory(header, None)
    named: dict[str, SeriesInfo] = {}
    for column in columns:
        named.setdefault(column.name, column.series)
    intervals = last_times(known.condition(select))
    order = (-1 if select.descending else 1) if select.ordered else 0
    return _finish(select, header, LastRows(list(named.items()), intervals, order))


def _udtf_plan(select: Select, context: QueryContext, known: _Known) -> Plan:
    """Raw columns and functions of one row over common rows, the others over scans of their own, joined by time."""
    found: list[tuple[str, SeriesInfo, Udtf | None]] = []
    for item in select.items:
        form = item.form
        if isinstance(form, RawItem):
            for pattern in _patterns(form.path, select.from_):
                found += [(item.alias or shown_path(one, pattern), one, None) for one in known[pattern]]
        elif isinstance(form, Udtf):
            check_call(form.name, len(form.paths))
            for pattern in _patterns(form.paths[0], select.from_):
                for one in known[pattern]:
                    name = column_name(form.name, [shown_path(one, pattern)], form.attributes)
                    found.append((item.alias or name, one, form))
    columns = [
        (name, one, None if form is None else bind(form.name, one, form.attributes))
        for name, one, form in slice_columns(select, found)
    ]
    header = header_of(
        [(name, call.type if call else one.type) for name, one, call in columns],
        select.operation,
        mapped=True,
        non_align=select.disable_align,
    )
    if not columns:
        return in_memory(header, None)
    _check_width([one for _, one, _ in columns], context.series_max)
    node = known.condition(select)
    physical: dict[str, tuple[SeriesInfo, Call | None]] = {}
    for name, one, call in columns:
        physical.setdefault(name, (one, call))
    source = _udtf_source(select, context, list(physical.values()), node)
    return _finish(select, header, source)


def _udtf_source(
    select: Select, context: QueryContext, columns: Sequence[tuple[SeriesInfo, Call | None]], node: Filter | None
) -> Operator:
    common = [at for at, (_, call) in enumerate(columns) if call is None or not call.own_scan]
    operators: list[Operator] = []
    order: list[int] = []
    if common:
        series = list(dict.fromkeys(columns[at][0] for at in common))
        source = raw_source(select, context, series, node)
        operators.append(Compute(source, [(series.index(columns[at][0]), columns[at][1]) for at in common]))
        order += common
    for at, (one, call) in enumerate(columns):
        if call is not None and call.own_scan:
            descending = select.descending and not call.ascending_source
            source = rows_of([one], node, context.batch_rows, descending=descending)
            operators.append(call.operator(source, select.descending))
            order.append(at)
    joined = operators[0] if len(operators) == 1 else Union(operators, ascending=not select.descending)
    if order == sorted(order):
        return joined
    return Pick(joined, [order.index(at) for at in range(len(columns))])
