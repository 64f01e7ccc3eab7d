"""SHOW and COUNT: results made of what the schema answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from iotdb_cluster.columns import Column, DataType, RowBatch
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import INT64_MIN
from iotdb_cluster.query.plan import Plan, QueryContext, header_of, in_memory
from iotdb_cluster.query.requests import (
    CountNodes,
    CountSeries,
    CountSeriesByLevel,
    FlushTasks,
    FlushTasksInfo,
    IsTag,
    Last,
    ListQueries,
    ListStorageGroups,
    MatchChildren,
    MatchDevices,
    MatchSeries,
    MergeInfo,
    MergeTasks,
    Point,
    SeriesInfo,
    Steps,
    StorageGroupInfo,
)
from iotdb_cluster.query.udtf import BUILT_IN_CLASSES
from iotdb_cluster.schema import split_path
from iotdb_cluster.schema.javatext import java_map_json, java_map_order
from iotdb_cluster.sql.statements import (
    AGGREGATIONS,
    CountDevices,
    CountStorageGroups,
    CountTimeseries,
    ShowChildNodes,
    ShowChildPaths,
    ShowDevices,
    ShowFlushTaskInfo,
    ShowFunctions,
    ShowLockInfo,
    ShowMerge,
    ShowQueryProcesslist,
    ShowStorageGroups,
    ShowTimeseries,
    ShowTriggers,
    ShowTtl,
    ShowVersion,
    Statement,
)
from iotdb_cluster.sql.statements import (
    CountNodes as CountNodesStatement,
)

__all__ = ["prepare_show"]

TEXT, INT32, INT64, BOOLEAN = DataType.TEXT, DataType.INT32, DataType.INT64, DataType.BOOLEAN
LAST_SERIES_MAX = 1_000  # series of one request for their newest points


def _table(
    statement: Statement,
    columns: Sequence[tuple[str, DataType]],
    rows: Sequence[Sequence[Any]],
    times: Sequence[int] | None = None,
) -> Plan:
    """A result of these rows; without times they are numbered by 0 and not shown."""
    header = header_of(columns, statement.operation, ignore_time=times is None)
    shown = np.zeros(len(rows), np.int64) if times is None else np.array(times, np.int64)
    cells = [Column.of(kind, [row[at] for row in rows]) for at, (_, kind) in enumerate(columns)]
    return in_memory(header, RowBatch(shown, cells))


def _texts(*names: str) -> list[tuple[str, DataType]]:
    return [(name, TEXT) for name in names]


def prepare_show(statement: Statement, context: QueryContext) -> Steps[Plan] | None:
    """The steps of a SHOW or COUNT statement, None where it is none of these."""
    if isinstance(statement, ShowVersion):
        return _at_once(_table(statement, _texts("        version"), [[context.version]]))
    make: Callable[[Any], Steps[Plan]] | None = _STATEMENTS.get(type(statement))
    return None if make is None else make(statement)


def _at_once(plan: Plan) -> Steps[Plan]:
    yield from ()
    return plan


def _nothing(*columns: tuple[str, DataType]) -> Callable[[Statement], Steps[Plan]]:
    """A statement that never has rows."""
    return lambda statement: _at_once(_table(statement, columns, []))


# --- series -----------------------------------------------------------------------------------------------------------
def _show_timeseries(statement: ShowTimeseries) -> Steps[Plan]:
    limit = None
    if statement.limit is not None and statement.tag is None and not statement.latest:
        limit = statement.offset + statement.limit
    (found,) = yield MatchSeries((statement.path,), limit)
    series: list[SeriesInfo] = list(found)
    if statement.tag is not None:
        series = yield from _by_tag(series, *statement.tag, statement.contains)
    if statement.latest:
        series = yield from _latest_first(series)
    end = None if statement.limit is None else statement.offset + statement.limit
    columns = _texts(
        "timeseries", "alias", "storage group", "dataType", "encoding", "compression", "tags", "attributes"
    )
    rows = [
        (
            one.path,
            one.alias,
            one.storage_group,
            one.type.name,
            one.encoding.name,
            one.compressor.name,
            java_map_json(dict(one.tags)),
            java_map_json(dict(one.attributes)),
        )
        for one in series[statement.offset : end]
    ]
    return _table(statement, columns, rows)


def _by_tag(series: list[SeriesInfo], key: str, value: str, contains: bool) -> Steps[list[SeriesInfo]]:
    if not any(name == key for one in series for name, _ in one.tags):
        known = yield IsTag(key)
        if not known:
            raise CallerError(Status.METADATA_ERROR, f"The key {key} is not a tag.")
    return [
        one
        for one in series
        if any(name == key and (value in text if contains else value == text) for name, text in one.tags)
    ]


def _latest_first(series: list[SeriesInfo]) -> Steps[list[SeriesInfo]]:
    times: list[int] = []
    for begin in range(0, len(series), LAST_SERIES_MAX):
        points: list[Point | None] = yield Last(tuple(series[begin : begin + LAST_SERIES_MAX]), INT64_MIN)
        times += [INT64_MIN if point is None else point.time for point in points]
    order = sorted(range(len(series)), key=lambda at: -times[at])
    return [series[at] for at in order]


def _count_timeseries(statement: CountTimeseries) -> Steps[Plan]:
    if statement.level is not None:
        counts = yield CountSeriesByLevel(statement.path, statement.level)
        return _table(statement, [("column", TEXT), ("count", INT32)], counts)
    count = yield CountSeries(statement.path)
    if count is None:
        raise CallerError(Status.TIMESERIES_NOT_EXIST, f"Path [{statement.path}] does not exist")
    return _table(statement, [("count", INT32)], [[count]])


def _count_nodes(statement: CountNodesStatement) -> Steps[Plan]:
    count = yield CountNodes(statement.path, statement.level)
    if count < 0:
        nodes = split_path(statement.path)
        raise refuse_missing(nodes)
    return _table(statement, [("count", INT32)], [[count]])


def refuse_missing(nodes: Sequence[str]) -> CallerError:
    parent = ".".join(nodes[:-1]) or nodes[0]
    return CallerError(Status.METADATA_ERROR, f"{parent} does not have the child node {nodes[-1]}")


# --- devices, storage groups, children --------------------------------------------------------------------------------
def _show_devices(statement: ShowDevices) -> Steps[Plan]:
    end = None if statement.limit is None else statement.offset + statement.limit
    found = yield MatchDevices(statement.path, end)
    names = ["devices", "storage group"] if statement.with_storage_group else ["devices"]
    rows = [(one.path, one.storage_group)[: len(names)] for one in found[statement.offset : end]]
    return _table(statement, _texts(*names), rows)


def _count_devices(statement: CountDevices) -> Steps[Plan]:
    if _has_prefix_star(statement.path):
        return _table(statement, [("devices", INT32)], [[0]])
    found = yield MatchDevices(statement.path)
    return _table(statement, [("devices", INT32)], [[len(found)]])


def _has_prefix_star(path: str) -> bool:
    """Whether a node is of the form `d*`, which is no wildcard to the statements that count."""
    return any(len(node) > 1 and node.endswith("*") for node in split_path(path))


def _show_storage_groups(statement: ShowStorageGroups) -> Steps[Plan]:
    found = yield ListStorageGroups(statement.path)
    return _table(statement, _texts("storage group"), [[one.path] for one in found])


def _count_storage_groups(statement: CountStorageGroups) -> Steps[Plan]:
    found = yield ListStorageGroups(statement.path)
    return _table(statement, [("storage group", INT32)], [[len(found)]])


def _show_ttl(statement: ShowTtl) -> Steps[Plan]:
    rows: dict[str, int | None] = {}
    groups: list[StorageGroupInfo] = []
    for path in statement.paths or ("root",):
        found: list[StorageGroupInfo] = yield ListStorageGroups(path)
        rows.update((one.path, one.ttl_ms) for one in found)
        groups += found
    if statement.paths is None:
        rows = {path: rows[path] for path in _level_order(groups)}
    return _table(statement, [("storage group", TEXT), ("ttl", INT64)], list(rows.items()))


def _level_order(groups: list[StorageGroupInfo]) -> list[str]:
    """The paths in the order in which the original walks them: level by level, each node's children as a hash map."""
    children: dict[tuple[str, ...], dict[str, None]] = {}
    ends = {split_path(one.path) for one in groups}
    for one in sorted(groups, key=lambda one: one.id):
        nodes = split_path(one.path)
        for depth in range(1, len(nodes)):
            children.setdefault(nodes[:depth], {})[nodes[depth]] = None
    walked: list[tuple[str, ...]] = [("root",)]
    for nodes in walked:
        # The list grows while it is walked.
        walked += [(*nodes, name) for name in java_map_order(children.get(nodes, ()))]
    return [".".join(nodes) for nodes in walked if nodes in ends]


def _show_child_paths(statement: ShowChildPaths) -> Steps[Plan]:
    paths = yield MatchChildren(statement.path)
    return _table(statement, _texts("child paths"), [[path] for path in paths])


def _show_child_nodes(statement: ShowChildNodes) -> Steps[Plan]:
    paths = yield MatchChildren(statement.path)
    names = sorted({split_path(path)[-1] for path in paths})
    return _table(statement, _texts("child nodes"), [[name] for name in names])


# --- the node ---------------------------------------------------------------------------------------------------------
def _show_flush_tasks(statement: ShowFlushTaskInfo) -> Steps[Plan]:
    tasks: FlushTasksInfo = yield FlushTasks()
    rows = [
        ("total number of flush tasks", str(tasks.total)),
        ("number of working flush tasks", str(tasks.working)),
        ("number of waiting flush tasks", str(tasks.waiting)),
    ]
    return _table(statement, _texts("                             item", "value"), rows)


def _show_merges(statement: ShowMerge) -> Steps[Plan]:
    tasks: list[MergeInfo] = yield MergeTasks()
    columns = [
        *_texts("storage group", "task name", "created time", "progress"),
        ("cancelled", BOOLEAN),
        ("done", BOOLEAN),
    ]
    rows = [(one.storage_group, one.task, _moment(one.created_ms), one.progress, False, False) for one in tasks]
    return _table(statement, columns, rows)


def _moment(wall_ms: int) -> str:
    """A moment as text, in UTC."""
    return (datetime(1970, 1, 1) + timedelta(milliseconds=wall_ms)).isoformat(timespec="milliseconds") + "Z"


def _show_queries(statement: ShowQueryProcesslist) -> Steps[Plan]:
    running = yield ListQueries()
    rows = [(one.id, one.statement) for one in running]
    return _table(statement, [("queryId", INT64), ("statement", TEXT)], rows, [one.start_ms for one in running])


def _show_functions(statement: ShowFunctions) -> Steps[Plan]:
    rows = [(name.upper(), "native", "") for name in AGGREGATIONS]
    rows += [
        (name, "built-in UDTF", f"org.apache.iotdb.db.query.udf.builtin.UDTF{last}")
        for name, last in BUILT_IN_CLASSES.items()
    ]
    shown = [] if statement.temporary else sorted(rows)
    return _at_once(_table(statement, _texts("function name", "function type", "class name (UDF)"), shown))


_STATEMENTS: dict[type[Statement], Callable[[Any], Steps[Plan]]] = {
    ShowTimeseries: _show_timeseries,
    CountTimeseries: _count_timeseries,
    CountNodesStatement: _count_nodes,
    ShowDevices: _show_devices,
    CountDevices: _count_devices,
    ShowStorageGroups: _show_storage_groups,
    CountStorageGroups: _count_storage_groups,
    ShowTtl: _show_ttl,
    ShowChildPaths: _show_child_paths,
    ShowChildNodes: _show_child_nodes,
    ShowFlushTaskInfo: _show_flush_tasks,
    ShowQueryProcesslist: _show_queries,
    ShowFunctions: _show_functions,
    ShowLockInfo: _nothing(("storage group", TEXT), ("lock holder", TEXT)),
    ShowMerge: _show_merges,
    ShowTriggers: _nothing(*_texts("trigger name", "status", "event", "path", "class name", "attributes")),
}
