"""Requests and answers as bytes, for the wire between the coordinator and the groups that answer.

Both are packed messages (`packing`): a head `[kind, ...]` that JSON can say, and buffers for what is long: windows,
columns, texts. A request decodes to an equal request (`Aggregate` to one with equal arrays), an answer to an equal
answer. Kinds are the names of the classes, so that a kind that a program does not know is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np

from iotdb_cluster.columns import Column, Compressor, DataType, Encoding, Int64Array, RowBatch
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.packing import pack, pack_columns, pack_rows, unpack, unpack_columns, unpack_rows
from iotdb_cluster.query import requests as ask
from iotdb_cluster.query.partials import Partials, concat, take
from iotdb_cluster.query.requests import Needs, Point, Request, SeriesInfo

__all__ = ["decode_answer", "decode_request", "encode_answer", "encode_request"]

Buffers: TypeAlias = list[memoryview]
_PARTS = ("count", "first_time", "last_time", "sum_hi", "sum_lo", "low", "high", "first", "last")


# --- values -----------------------------------------------------------------------------------------------------------
def _series_head(one: SeriesInfo) -> list[Any]:
    return [
        one.path,
        one.measurement,
        int(one.type),
        one.storage_group,
        one.storage_group_id,
        int(one.encoding),
        int(one.compressor),
        one.alias,
        one.decimals,
        one.visible_from,
        list(map(list, one.tags)),
        list(map(list, one.attributes)),
    ]


def _series(head: Sequence[Any]) -> SeriesInfo:
    path, measurement, kind, group, group_id, encoding, compressor, alias, decimals, visible, tags, attributes = head
    return SeriesInfo(
        path,
        path[: -len(measurement) - 1],
        measurement,
        DataType(kind),
        group,
        group_id,
        Encoding(encoding),
        Compressor(compressor),
        alias,
        decimals,
        visible,
        tuple((key, value) for key, value in tags),
        tuple((key, value) for key, value in attributes),
    )


def _times(values: Int64Array) -> bytes:
    return np.ascontiguousarray(values, "<i8").tobytes()


def _point_head(point: Point | None, buffers: list[bytes]) -> Any:
    """A text is kept in a buffer, and its head is the buffer's number in a list."""
    if point is None:
        return None
    if isinstance(point.value, bytes):
        buffers.append(point.value)
        return [point.time, [len(buffers) - 1]]
    return [point.time, point.value]


def _point(head: Any, buffers: Buffers) -> Point | None:
    if head is None:
        return None
    time, value = head
    return Point(time, bytes(buffers[value[0]]) if isinstance(value, list) else value)


def _partials_columns(part: Partials) -> tuple[int, list[Column]]:
    """(which parts there are, as bits; their columns)."""
    kinds = [DataType.INT64] * 3 + [DataType.DOUBLE] * 2 + [part.type] * 4
    there, columns = 0, []
    for at, (name, kind) in enumerate(zip(_PARTS, kinds, strict=True)):
        values = getattr(part, name)
        if values is not None:
            there |= 1 << at
            columns.append(Column(kind, values))
    return there, columns


def _partials(kind: int, there: int, columns: Sequence[Column]) -> Partials:
    values = iter(columns)
    parts: dict[str, Any] = {name: next(values).values if there >> at & 1 else None for at, name in enumerate(_PARTS)}
    return Partials(DataType(kind), **parts)


# --- requests ---------------------------------------------------------------------------------------------------------
_PLAIN: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        ask.MatchDevices,
        ask.ListStorageGroups,
        ask.MatchChildren,
        ask.CountSeries,
        ask.CountSeriesByLevel,
        ask.CountNodes,
        ask.IsTag,
        ask.FlushTasks,
        ask.MergeTasks,
        ask.ListQueries,
    )
}
"""Requests whose fields are texts and numbers alone."""


def encode_request(request: Request) -> bytes:
    kind = type(request).__name__
    if kind in _PLAIN:
        return pack([kind, *(getattr(request, one.name) for one in fields(request))])
    if isinstance(request, ask.MatchSeries):
        return pack([kind, list(request.patterns), request.limit])
    if isinstance(request, ask.Pull | ask.CloseScan):
        return pack([kind, list(request.streams)])
    if isinstance(request, ask.OpenScan):
        rest = [request.low, request.high, request.ascending, request.batch_rows]
        return pack([kind, list(map(_series_head, request.series)), *rest])
    if isinstance(request, ask.Aggregate):
        head = [kind, list(map(_series_head, request.series)), list(map(int, request.needs))]
        return pack(head, [_times(request.starts), _times(request.ends)])
    if isinstance(request, ask.Last):
        return pack([kind, list(map(_series_head, request.series)), request.low])
    if isinstance(request, ask.Nearest):
        return pack([kind, list(map(_series_head, request.series)), request.time, request.low, request.high])
    raise TypeError(f"no request: {kind}")


def decode_request(data: bytes | memoryview) -> Request:
    """Raises CorruptData for bytes that are no request of this version."""
    head, buffers = unpack(data)
    try:
        return _request(head[0], head[1:], buffers)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"a packed request is damaged: {error!r}") from None


def _request(kind: str, rest: list[Any], buffers: Buffers) -> Request:
    if kind in _PLAIN:
        request: Request = _PLAIN[kind](*rest)
        return request
    if kind == "MatchSeries":
        return ask.MatchSeries(tuple(rest[0]), rest[1])
    if kind == "Pull":
        return ask.Pull(tuple(rest[0]))
    if kind == "CloseScan":
        return ask.CloseScan(tuple(rest[0]))
    series = tuple(map(_series, rest[0])) if rest else ()
    if kind == "OpenScan":
        return ask.OpenScan(series, *rest[1:])
    if kind == "Aggregate":
        starts, ends = (np.frombuffer(buffer, "<i8").astype(np.int64) for buffer in buffers)
        return ask.Aggregate(series, tuple(map(Needs, rest[1])), starts, ends)
    if kind == "Last":
        return ask.Last(series, rest[1])
    if kind == "Nearest":
        return ask.Nearest(series, *rest[1:])
    raise CorruptData(f"a packed request of the unknown kind {kind!r}")


# --- answers ----------------------------------------------------------------------------------------------------------
def _encode_plain(answer: Any) -> bytes:
    return pack(answer)


def _encode_records(answer: Sequence[Any]) -> bytes:
    return pack([[getattr(record, one.name) for one in fields(record)] for record in answer])


def _encode_series(answer: Sequence[Sequence[SeriesInfo]]) -> bytes:
    """Each series once, and for each pattern the numbers of its series."""
    places: dict[SeriesInfo, int] = {}
    matched = [[places.setdefault(one, len(places)) for one in found] for found in answer]
    return pack([list(map(_series_head, places)), matched])


def _decode_series(head: Any, _: Buffers) -> list[list[SeriesInfo]]:
    series = list(map(_series, head[0]))
    return [[series[at] for at in found] for found in head[1]]


def _encode_streams(answer: Sequence[ask.Stream]) -> bytes:
    return pack([[stream.id, list(stream.columns)] for stream in answer])


def _encode_batches(answer: Sequence[RowBatch | None]) -> bytes:
    heads: list[Any] = []
    buffers: list[bytes] = []
    for rows in answer:
        kinds, more = pack_rows(rows) if rows is not None else (None, [])
        heads.append(kinds)
        buffers += more
    return pack(heads, buffers)


def _decode_batches(head: Any, buffers: Buffers) -> list[RowBatch | None]:
    out: list[RowBatch | None] = []
    at = 0
    for kinds in head:
        if kinds is None:
            out.append(None)
            continue
        rows, taken = unpack_rows(kinds, buffers[at:])
        out.append(rows)
        at += taken
    return out


def _encode_partials(answer: Sequence[Partials]) -> bytes:
    """Neighbours of one type, with the same parts over equally many windows, stand in one set of columns."""
    heads: list[Any] = []
    buffers: list[bytes] = []
    for _, run in groupby(answer, _kind_of):
        parts = list(run)
        there, columns = _partials_columns(concat(parts))
        kinds, more = pack_columns(columns)
        heads.append([int(parts[0].type), there, kinds, len(parts), len(parts[0])])
        buffers += more
    return pack(heads, buffers)


def _kind_of(part: Partials) -> tuple[Any, ...]:
    return (part.type, len(part), *(getattr(part, name) is None for name in _PARTS))


def _decode_partials(head: Any, buffers: Buffers) -> list[Partials]:
    out: list[Partials] = []
    at = 0
    for kind, there, kinds, count, windows in head:
        columns, taken = unpack_columns(kinds, buffers[at:])
        at += taken
        whole = _partials(kind, there, columns)
        if len(whole) != count * windows:
            raise ValueError(f"{len(whole)} states of {count} series over {windows} windows")
        out += [whole] if count == 1 else [take(whole, slice(n * windows, (n + 1) * windows)) for n in range(count)]
    return out


def _encode_points(answer: Sequence[Point | None]) -> bytes:
    buffers: list[bytes] = []
    return pack([_point_head(point, buffers) for point in answer], buffers)


def _decode_points(head: Any, buffers: Buffers) -> list[Point | None]:
    return [_point(one, buffers) for one in head]


def _encode_pairs(answer: Sequence[tuple[Point | None, Point | None]]) -> bytes:
    buffers: list[bytes] = []
    heads = [[_point_head(before, buffers), _point_head(after, buffers)] for before, after in answer]
    return pack(heads, buffers)


def _decode_pairs(head: Any, buffers: Buffers) -> list[tuple[Point | None, Point | None]]:
    return [(_point(before, buffers), _point(after, buffers)) for before, after in head]


def _plain(head: Any, _: Buffers) -> Any:
    return head


def _records(kind: type[Any]) -> Callable[[Any, Buffers], Any]:
    return lambda head, _: [kind(*values) for values in head]


_ANSWERS: dict[type[Any], tuple[Callable[[Any], bytes], Callable[[Any, Buffers], Any]]] = {
    ask.MatchSeries: (_encode_series, _decode_series),
    ask.MatchDevices: (_encode_records, _records(ask.DeviceInfo)),
    ask.ListStorageGroups: (_encode_records, _records(ask.StorageGroupInfo)),
    ask.MatchChildren: (_encode_plain, _plain),
    ask.CountSeries: (_encode_plain, _plain),
    ask.CountSeriesByLevel: (_encode_plain, lambda head, _: [(prefix, count) for prefix, count in head]),
    ask.CountNodes: (_encode_plain, _plain),
    ask.IsTag: (_encode_plain, _plain),
    ask.OpenScan: (_encode_streams, lambda head, _: [ask.Stream(one, tuple(columns)) for one, columns in head]),
    ask.Pull: (_encode_batches, _decode_batches),
    ask.CloseScan: (_encode_plain, _plain),
    ask.Aggregate: (_encode_partials, _decode_partials),
    ask.Last: (_encode_points, _decode_points),
    ask.Nearest: (_encode_pairs, _decode_pairs),
    ask.FlushTasks: (
        lambda answer: pack([answer.total, answer.working, answer.waiting]),
        lambda head, _: ask.FlushTasksInfo(*head),
    ),
    ask.MergeTasks: (_encode_records, _records(ask.MergeInfo)),
    ask.ListQueries: (_encode_records, _records(ask.RunningQuery)),
}


def encode_answer(request: Request, answer: Any) -> bytes:
    """The answer of a request, of the type that the request's class names."""
    return _ANSWERS[type(request)][0](answer)


def decode_answer(request: Request, data: bytes | memoryview) -> Any:
    """The inverse of `encode_answer`. Raises CorruptData for bytes that are no such answer."""
    head, buffers = unpack(data)
    try:
        return _ANSWERS[type(request)][1](head, buffers)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"a packed answer of {type(request).__name__} is damaged: {error!r}") from None
