"""ALIGN BY DEVICE: the rows of one device after another, in one column for each measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from iotdb_cluster.columns import Column, DataType, RowBatch, TextColumn
from iotdb_cluster.limits import QUERY_SERIES_MAX
from iotdb_cluster.query import partials
from iotdb_cluster.query.aggregation import Output, aggregate
from iotdb_cluster.query.errors import refuse
from iotdb_cluster.query.filters import Filter, bounds, compile_condition, is_time_only
from iotdb_cluster.query.operators import Limit, Operator, Pick, WithoutNull
from iotdb_cluster.query.plan import Plan, QueryContext, header_of, in_memory
from iotdb_cluster.query.requests import MatchSeries, Needs, SeriesInfo, Steps
from iotdb_cluster.query.select import (
    aggregate_type,
    aggregation_source,
    check_select,
    fill_source,
    fill_time,
    raw_source,
    slice_columns,
    where_paths,
)
from iotdb_cluster.query.windows import WholeWindow
from iotdb_cluster.schema import PathPattern, split_path
from iotdb_cluster.sql.statements import Aggregate, Constant, RawItem, Select, SelectItem, is_full_path

__all__ = ["prepare_devices"]


@dataclass(slots=True)
class _Column:
    """A result column: of each device at most one series, or a constant text."""

    name: str
    type: DataType | None = None  # None until a device has it
    function: str | None = None
    constant: str | None = None
    series: dict[str, SeriesInfo] = field(default_factory=dict)  # by device

    @property
    def kind(self) -> DataType:
        """A column that no device has is one of nulls of type TEXT."""
        return DataType.TEXT if self.type is None else self.type


class _Devices:
    """The devices below the prefixes of FROM, in that order and sorted within a prefix, and their own series."""

    def __init__(self, prefixes: Sequence[str], answers: Sequence[Sequence[SeriesInfo]]) -> None:
        self.series: dict[str, dict[str, SeriesInfo]] = {}
        self.paths: dict[str, SeriesInfo] = {}
        for prefix, answer in zip(prefixes, answers, strict=True):
            depth = len(split_path(prefix))
            found: dict[str, dict[str, SeriesInfo]] = {}
            for one in answer:
                self.paths[one.path] = one
                if len(split_path(one.device)) >= depth:
                    found.setdefault(one.device, {})[one.measurement] = one
            for device in sorted(found):
                self.series.setdefault(device, found[device])

    def matching(self, device: str, node: str) -> list[tuple[str, SeriesInfo]]:
        """(shown name, series) of the device's own series that a node of SELECT stands for, sorted by name."""
        own = self.series[device]
        if node in own:
            return [(node, own[node])]
        if node.endswith("*"):
            return [(name, own[name]) for name in sorted(own) if name.startswith(node[:-1])]
        return [(node, one) for one in own.values() if one.alias == node]


def prepare_devices(select: Select, context: QueryContext) -> Steps[Plan]:
    """Raises CallerError."""
    check_select(select)
    full = [path for path in where_paths(select.where) if is_full_path(path)]
    answers = yield MatchSeries((*select.from_, *full))
    devices = _Devices(select.from_, answers[: len(select.from_)])
    named = dict(zip(full, answers[len(select.from_) :], strict=True))
    columns: list[_Column] = []
    for item in select.items:
        columns += _columns_of(item, devices)
    _check_types(columns)
    columns = slice_columns(select, columns)
    plain = select.has_aggregate and select.group_by is None
    kinds = [(column.name, column.kind) for column in columns]
    header = header_of([("Device", DataType.TEXT), *kinds], select.operation, ignore_time=plain)
    conditions = {device: _condition(select, device, devices, named) for device in devices.series}
    unknown = [path for path in where_paths(select.where) if all(path in missing for _, missing in conditions.values())]
    if unknown and conditions:
        raise refuse(f"Unknown time series {next(iter(conditions))}.{unknown[0]} in `where clause`")
    physical: dict[str, _Column] = {}
    for column in columns:
        physical.setdefault(column.name, column)
    chosen = list(physical.values())
    wanted = [device for device in devices.series if any(device in column.series for column in chosen)]
    if not wanted:
        return in_memory(header, None)
    if select.fill and select.group_by is None:
        fill_time(select.where)
    filters = {device: conditions[device][0] for device in wanted}
    source: Operator
    if plain and all(map(is_time_only, filters.values())):
        source = _DeviceAggregates(chosen, wanted, filters)
    else:
        source = _DeviceRows(chosen, wanted, lambda device: _inner(select, context, chosen, device, filters[device]))
    if select.without_null is not None:
        source = WithoutNull(source, select.without_null, first=1)
    if select.limit is not None or select.offset:
        source = Limit(source, select.limit, select.offset)
    return Plan(header, source)


def _columns_of(item: SelectItem, devices: _Devices) -> list[_Column]:
    """The columns of one item in order of first appearance among the devices."""
    form = item.form
    if isinstance(form, Constant):
        return [_Column(form.text, DataType.TEXT, constant=form.text)]
    if not isinstance(form, RawItem | Aggregate):
        raise refuse("ALIGN BY DEVICE clause is not supported in UDF queries.")
    if len(split_path(form.path)) != 1:
        raise refuse(
            "The paths of the SELECT clause can only be single level. In other words, the paths of the SELECT clause "
            "can only be measurements or STAR, without DOT. For more details please refer to the SQL document."
        )
    found: dict[str, _Column] = {}
    for device in devices.series:
        matching = devices.matching(device, form.path)
        if item.alias is not None and len(matching) > 1:
            raise refuse(f"alias '{item.alias}' can only be matched with one time series")
        for shown, one in matching:
            function = form.function if isinstance(form, Aggregate) else None
            kind = aggregate_type(form.function, one) if isinstance(form, Aggregate) else one.type
            name = f"{form.text}({shown})" if isinstance(form, Aggregate) else shown
            column = found.setdefault(name, _Column(item.alias or name, kind, function))
            if column.type is not kind:
                raise _type_conflict()
            column.series[device] = one
    if not found and devices.series and not form.path.endswith("*"):
        name = f"{form.text}({form.path})" if isinstance(form, Aggregate) else form.path
        found[name] = _Column(item.alias or name)
    return list(found.values())


def _type_conflict() -> Exception:
    return refuse(
        "The data types of the same measurement column should be the same across devices in ALIGN_BY_DEVICE sql. "
        "For more details please refer to the SQL document."
    )


def _check_types(columns: Sequence[_Column]) -> None:
    kinds: dict[str, DataType] = {}
    for column in columns:
        if column.type is not None and kinds.setdefault(column.name, column.type) is not column.type:
            raise _type_conflict()


def _condition(
    select: Select, device: str, devices: _Devices, named: dict[str, Sequence[SeriesInfo]]
) -> tuple[Filter | None, set[str]]:
    """The condition bound to a device, and the paths of it that this device does not have.

    A comparison with what the device does not have holds nowhere.
    """
    missing: set[str] = set()
    if select.where is None:
        return None, missing

    def resolve(path: str) -> Sequence[SeriesInfo]:
        if path in named:
            if not named[path]:
                raise refuse(f"Unknown time series {path} in `where clause`")
            return named[path]
        nodes = split_path(path)
        if len(nodes) == 1:
            found = [one for _, one in devices.matching(device, path)]
        else:
            pattern = PathPattern((*split_path(device), *nodes))
            found = [one for text, one in devices.paths.items() if pattern.matches(split_path(text))]
        if not found:
            missing.add(path)
        return found

    node = compile_condition(select.where, resolve)
    return node, missing


def _inner(
    select: Select, context: QueryContext, columns: Sequence[_Column], device: str, node: Filter | None
) -> tuple[tuple[int, ...], Operator]:
    """(which columns the device has, their rows)."""
    where = tuple(at for at, column in enumerate(columns) if device in column.series)
    physical = [columns[at].series[device] for at in where]
    if select.has_aggregate:
        outputs = [
            Output(columns[at].function or "", (one,), columns[at].kind)
            for at, one in zip(where, physical, strict=True)
        ]
        return where, aggregation_source(select, context, outputs, node, limited=False)
    series = list(dict.fromkeys(physical))
    source = fill_source(select, series) if select.fill else raw_source(select, context, series, node)
    if series != physical:
        source = Pick(source, [series.index(one) for one in physical])
    return where, source


def _widen(columns: Sequence[_Column], device: str, where: Sequence[int], rows: RowBatch) -> RowBatch:
    """The rows of one device as rows of the result."""
    given = dict(zip(where, rows.columns, strict=True))
    out = [Column(DataType.TEXT, TextColumn.full(len(rows), device.encode()))]
    for at, column in enumerate(columns):
        if column.constant is not None:
            out.append(Column(DataType.TEXT, TextColumn.full(len(rows), column.constant.encode())))
        else:
            out.append(given.get(at) or Column.nulls(column.kind, len(rows)))
    return RowBatch(rows.times, out)


class _DeviceRows(Operator):
    """The rows of each device in turn; one is open at a time."""

    def __init__(
        self,
        columns: Sequence[_Column],
        devices: Sequence[str],
        build: Callable[[str], tuple[tuple[int, ...], Operator]],
    ) -> None:
        self.types = (DataType.TEXT, *(column.kind for column in columns))
        self._columns, self._devices, self._build = tuple(columns), list(reversed(devices)), build
        self._open: tuple[str, tuple[int, ...], Operator] | None = None

    def pull(self) -> Steps[RowBatch | None]:
        while True:
            if self._open is None:
                if not self._devices:
                    return None
                device = self._devices.pop()
                self._open = (device, *self._build(device))
            device, where, source = self._open
            rows = yield from source.pull()
            if rows is not None:
                return _widen(self._columns, device, where, rows)
            self._open = None
            yield from source.close()

    def close(self) -> Steps[None]:
        self._devices.clear()
        current, self._open = self._open, None
        if current is not None:
            yield from current[2].close()


class _DeviceAggregates(Operator):
    """One row a device of aggregations without a condition on values: many devices are asked for at once.

    Those that are have conditions that hold at the same times: of some devices they may hold nowhere.
    """

    def __init__(
        self, columns: Sequence[_Column], devices: Sequence[str], filters: Mapping[str, Filter | None]
    ) -> None:
        self.types = (DataType.TEXT, *(column.kind for column in columns))
        self._columns, self._devices, self._filters = tuple(columns), list(devices), filters
        self._at = 0

    def pull(self) -> Steps[RowBatch | None]:
        needs: dict[SeriesInfo, Needs] = {}
        begin = self._at
        if begin == len(self._devices):
            return None
        node = self._filters[self._devices[begin]]
        while self._at < len(self._devices) and len(needs) < QUERY_SERIES_MAX:
            if bounds(self._filters[self._devices[self._at]]) != bounds(node):
                break
            for column in self._columns:
                one = column.series.get(self._devices[self._at])
                if one is not None:
                    needs[one] = needs.get(one, Needs.COUNT) | partials.needs_of(column.function or "")
            self._at += 1
        starts, ends, _ = WholeWindow().slice(0, 1)
        states = yield from aggregate(list(needs), list(needs.values()), starts, ends, node, [])
        known = dict(zip(needs, states, strict=True))
        devices = self._devices[begin : self._at]
        columns = [Column.of(DataType.TEXT, devices)]
        for column in self._columns:
            cells: list[object] = []
            for device in devices:
                one = column.series.get(device)
                cell = None if one is None else partials.finish(column.function or "", known[one]).tolist()[0]
                cells.append(column.constant if column.constant is not None else cell)
            columns.append(Column.of(column.kind, cells))
        return RowBatch(np.zeros(len(devices), np.int64), columns)
