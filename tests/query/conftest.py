# ruff: noqa: ARG002, N802  (the reader has an interface to keep; handlers are named for their requests)
"""A naive source of points and schema that answers the requests of the query room, and a reader of transcripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.columns import Column, Compressor, DataType, Encoding, RowBatch
from iotdb_cluster.errors import CallerError
from iotdb_cluster.limits import INT64_MAX
from iotdb_cluster.query import Plan, QueryContext, codec, drive, fragments, prepare
from iotdb_cluster.query import requests as ask
from iotdb_cluster.query.requests import SeriesInfo
from iotdb_cluster.schema import PathPattern, split_device, split_path
from iotdb_cluster.sql import ParseContext, parse
from iotdb_cluster.sql import statements as st
from iotdb_cluster.storage import Statistics

DEFAULT_ENCODING = {
    DataType.BOOLEAN: Encoding.RLE,
    DataType.INT32: Encoding.RLE,
    DataType.INT64: Encoding.RLE,
    DataType.FLOAT: Encoding.GORILLA,
    DataType.DOUBLE: Encoding.GORILLA,
    DataType.TEXT: Encoding.PLAIN,
}


def java_round(value: float) -> int:
    return math.floor(value + 0.5)


def rounded(value: Any, kind: DataType, decimals: int | None) -> Any:
    """The rounding at read, point by point."""
    if decimals is None or kind not in (DataType.FLOAT, DataType.DOUBLE):
        return value
    if math.isnan(value) or abs(value) * 10.0**decimals >= 2.0**63:
        return value
    if kind is DataType.DOUBLE:
        whole = java_round(value)
        return whole + java_round((value - whole) * 10.0**decimals) / 10.0**decimals if decimals else float(whole)
    x = np.float32(value)
    whole32 = np.float32(java_round(float(x)))
    if not decimals:
        return float(whole32)
    digits = java_round(float(x - whole32) * 10.0**decimals)
    return float(whole32 + np.float32(digits) / np.float32(10.0**decimals))


def sort_key(value: Any) -> Any:
    return (1, 0.0) if isinstance(value, float) and math.isnan(value) else (0, value)


@dataclass
class NaiveReader:
    """`ReadInterface` over {(device, measurement): {time: value}} within [low, high]."""

    points: dict[str, dict[int, Any]]
    low: int
    high: int

    def cells(self, device: str, measurement: str, low: int, high: int) -> list[tuple[int, Any]]:
        times = self.points.get(f"{device}.{measurement}", {})
        low, high = max(low, self.low), min(high, self.high)
        return sorted((time, value) for time, value in times.items() if low <= time <= high)

    def read(
        self, device: str, measurement: str, kind: DataType, low: int, high: int, ascending: bool = True,
        batch_rows: int = 3,
    ) -> Iterator[Any]:  # fmt: skip
        for rows in self.read_device(device, [(measurement, kind)], low, high, ascending, batch_rows):
            yield rows.times, rows.columns[0].values

    def read_device(
        self, device: str, wanted: Sequence[tuple[str, DataType]], low: int, high: int, ascending: bool = True,
        batch_rows: int = 3,
    ) -> Iterator[RowBatch]:  # fmt: skip
        columns = [dict(self.cells(device, name, low, high)) for name, _ in wanted]
        times = sorted({time for column in columns for time in column}, reverse=not ascending)
        for at in range(0, len(times), batch_rows):
            part = times[at : at + batch_rows]
            yield RowBatch(
                np.array(part, np.int64),
                [
                    Column.of(kind, [column.get(time) for time in part])
                    for column, (_, kind) in zip(columns, wanted, strict=True)
                ],
            )

    def window_statistics(
        self, device: str, measurement: str, kind: DataType, starts: Any, ends: Any, decimals: int | None = None, *,
        values: bool = True, sums: bool = True,
    ) -> Statistics:  # fmt: skip
        found: list[list[Any]] = [[] for _ in range(9)]
        for low, high in zip(starts.tolist(), ends.tolist(), strict=True):
            cells = [
                (time, rounded(value, kind, decimals)) for time, value in self.cells(device, measurement, low, high)
            ]
            inside = [value for _, value in cells] or [b"" if kind is DataType.TEXT else 0]
            total = sum(inside) if kind in (DataType.INT32, DataType.INT64) else 0
            if kind in (DataType.FLOAT, DataType.DOUBLE):
                total = math.fsum(inside) if all(map(math.isfinite, inside)) else float(np.sum(inside))
            row = (
                len(cells),
                cells[0][0] if cells else 7,
                cells[-1][0] if cells else 3,
                inside[0],
                inside[-1],
                min(inside, key=sort_key),
                max(inside, key=sort_key),
                float(total),
                0.0,
            )
            for column, cell in zip(found, row, strict=True):
                column.append(cell)
        numeric = kind.is_numeric

        def of(cells: list[Any]) -> Any:
            return Column.of(kind, cells).values

        return Statistics(
            *(np.array(column, np.int64) for column in found[:3]),
            *((of(found[3]), of(found[4])) if values else (None, None)),
            *((of(found[5]), of(found[6])) if values and numeric else (None, None)),
            *((np.array(found[7]), np.array(found[8])) if values and sums and numeric else (None, None)),
        )

    def last(self, device: str, measurement: str, kind: DataType, low: int) -> tuple[int, Any] | None:
        cells = self.cells(device, measurement, low, INT64_MAX)
        return cells[-1] if cells else None

    def nearest(
        self, device: str, measurement: str, kind: DataType, time: int, before_low: int, after_high: int
    ) -> tuple[Any, Any]:
        before = self.cells(device, measurement, before_low, time)
        after = self.cells(device, measurement, time, after_high)
        return (before[-1] if before else None), (after[0] if after else None)


@dataclass
class Naive:
    """A database in dicts: it parses, writes and answers; time partitions of `interval`."""

    interval: int = 1000
    batch_rows: int = 3
    now_ms: int = 1_700_000_000_000
    groups: dict[str, int | None] = field(default_factory=dict)
    series: dict[str, SeriesInfo] = field(default_factory=dict)
    points: dict[str, dict[int, Any]] = field(default_factory=dict)
    streams: dict[int, Iterator[RowBatch]] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    opened: int = 0
    wire: bool = False  # requests and answers go through their bytes

    # --- requests
    def match(self, pattern: str) -> list[SeriesInfo]:
        wanted = PathPattern.parse(pattern)
        nodes = wanted.nodes
        out = []
        for path, info in self.series.items():
            alias = (*split_path(info.device), info.alias) if info.alias else ()
            same = len(alias) == len(nodes) and nodes[-1] == info.alias and wanted.matches(alias)
            if wanted.matches(split_path(path)) or same:
                out.append(info)
        return sorted(out, key=lambda info: info.path)

    def units(self, series: Sequence[SeriesInfo]) -> list[fragments.Unit]:
        numbers = {time // self.interval for one in series for time in self.points.get(one.path, {})}
        bounds = [(number * self.interval, (number + 1) * self.interval - 1) for number in sorted(numbers)]
        return [fragments.Unit(NaiveReader(self.points, low, high), low, high) for low, high in bounds]

    def answer(self, request: Any) -> Any:
        self.requests.append(request)
        if not self.wire:
            return getattr(self, "on_" + type(request).__name__)(request)
        sent = codec.decode_request(codec.encode_request(request))
        answer = getattr(self, "on_" + type(sent).__name__)(sent)
        return codec.decode_answer(request, codec.encode_answer(request, answer))

    def on_MatchSeries(self, request: ask.MatchSeries) -> Any:
        return [self.match(pattern)[: request.limit] for pattern in request.patterns]

    def on_MatchDevices(self, request: ask.MatchDevices) -> Any:
        wanted = PathPattern.parse(request.pattern)
        found = {info.device: info.storage_group for info in self.series.values()}
        devices = [path for path in sorted(found) if wanted.matches(split_path(path))]
        return [ask.DeviceInfo(path, found[path]) for path in devices][: request.limit]

    def on_ListStorageGroups(self, request: ask.ListStorageGroups) -> Any:
        wanted = PathPattern.parse(request.pattern)
        found = [path for path in sorted(self.groups) if wanted.matches(split_path(path))]
        return [ask.StorageGroupInfo(path, self.groups[path], list(self.groups).index(path)) for path in found]

    def nodes(self) -> set[tuple[str, ...]]:
        paths = [split_path(path) for path in [*self.series, *self.groups, "root"]]
        return {nodes[:count] for nodes in paths for count in range(1, len(nodes) + 1)}

    def on_MatchChildren(self, request: ask.MatchChildren) -> Any:
        wanted = PathPattern.parse(request.pattern)
        length = len(wanted.nodes)
        return sorted(".".join(node) for node in self.nodes() if len(node) == length + 1 and wanted.matches(node))

    def on_CountSeries(self, request: ask.CountSeries) -> Any:
        wanted = PathPattern.parse(request.pattern, prefix_stars=False)
        nodes = wanted.nodes[: wanted.nodes.index("*")] if "*" in wanted.nodes else wanted.nodes
        if nodes not in self.nodes():
            return None
        return sum(wanted.matches(split_path(path)) for path in self.series)

    def on_CountSeriesByLevel(self, request: ask.CountSeriesByLevel) -> Any:
        counts: dict[str, int] = {}
        for info in self.match(request.pattern):
            prefix = ".".join(split_path(info.path)[: request.level + 1])
            counts[prefix] = counts.get(prefix, 0) + 1
        return sorted(counts.items())

    def on_CountNodes(self, request: ask.CountNodes) -> Any:
        wanted = PathPattern.parse(request.pattern)
        return sum(len(node) == request.level + 1 and wanted.matches(node) for node in self.nodes())

    def on_IsTag(self, request: ask.IsTag) -> Any:
        return any(request.key == key for info in self.series.values() for key, _ in info.tags)

    def on_FlushTasks(self, request: ask.FlushTasks) -> Any:
        return ask.FlushTasksInfo(0, 0, 0)

    def on_MergeTasks(self, request: ask.MergeTasks) -> Any:
        return []

    def on_ListQueries(self, request: ask.ListQueries) -> Any:
        return []

    def on_OpenScan(self, request: ask.OpenScan) -> Any:
        groups: dict[int, list[int]] = {}
        for at, one in enumerate(request.series):
            groups.setdefault(one.storage_group_id, []).append(at)
        out = []
        for where in groups.values():
            self.opened += 1
            series = [request.series[at] for at in where]
            self.streams[self.opened] = fragments.scan(
                self.units(series), series, request.low, request.high, request.ascending,
                min(request.batch_rows, self.batch_rows),
            )  # fmt: skip
            out.append(ask.Stream(self.opened, tuple(where)))
        return out

    def on_Pull(self, request: ask.Pull) -> Any:
        out = []
        for stream in request.streams:
            rows = next(self.streams[stream], None)
            assert rows is None or 0 < len(rows) <= self.batch_rows
            if rows is None:
                del self.streams[stream]
            out.append(rows)
        return out

    def on_CloseScan(self, request: ask.CloseScan) -> Any:
        for stream in request.streams:
            self.streams.pop(stream, None)

    def on_Aggregate(self, request: ask.Aggregate) -> Any:
        return [
            fragments.aggregate(self.units([one]), [one], [need], request.starts, request.ends)[0]
            for one, need in zip(request.series, request.needs, strict=True)
        ]

    def on_Last(self, request: ask.Last) -> Any:
        return [fragments.last(self.units([one]), [one], request.low)[0] for one in request.series]

    def on_Nearest(self, request: ask.Nearest) -> Any:
        return [
            fragments.nearest(self.units([one]), [one], request.time, request.low, request.high)[0]
            for one in request.series
        ]

    # --- statements
    def create(self, path: str, kind: DataType, encoding: Encoding | None = None, **more: Any) -> SeriesInfo:
        nodes = split_path(path)
        group = next((g for g in self.groups if nodes[: len(split_path(g))] == split_path(g)), None)
        if group is None:
            group = ".".join(nodes[:2])
            self.groups[group] = None
        encoding = DEFAULT_ENCODING[kind] if encoding is None else encoding
        decimals = None
        if kind in (DataType.FLOAT, DataType.DOUBLE) and encoding in (Encoding.RLE, Encoding.TS_2DIFF):
            decimals = int(more.pop("decimals", 2))
        more.pop("decimals", None)
        device, name = split_device(path)
        info = SeriesInfo(
            path, device, name, kind, group, list(self.groups).index(group) + 1, encoding, decimals=decimals, **more
        )  # fmt: skip
        self.series[path] = info
        return info

    def put(self, path: str, time: int, value: Any) -> None:
        if self.series[path].type is DataType.FLOAT:
            value = float(np.float32(value))
        self.points.setdefault(path, {})[time] = value

    def parse(self, text: str) -> st.Statement:
        return parse(text, ParseContext(now_ms=self.now_ms))

    def prepare(self, text: str, **context: Any) -> Plan:
        return drive(prepare(self.parse(text), QueryContext(**context)), self.answer)

    def fetch(self, plan: Plan, rows: int) -> RowBatch:
        return drive(plan.fetch(rows), self.answer)

    def query(self, text: str, fetch: int = 1000, **context: Any) -> tuple[Plan, RowBatch]:
        """(the plan, all rows), fetched in blocks."""
        plan = self.prepare(text, **context)
        parts = [self.fetch(plan, fetch)]
        while len(parts[-1]):
            assert len(parts[-1]) <= fetch
            parts.append(self.fetch(plan, fetch))
        drive(plan.close(), self.answer)
        assert not self.streams
        columns = [
            Column.of(kind, [cell for part in parts for cell in part.columns[at].tolist()])
            for at, kind in enumerate(plan.header.physical_types)
        ]
        return plan, RowBatch(np.concatenate([part.times for part in parts]), columns)

    def execute(self, text: str) -> None:
        """A statement that is no query, as far as transcripts need it."""
        statement = self.parse(text)
        if isinstance(statement, st.CreateTimeseries):
            properties = {key.lower(): value for key, value in statement.properties}
            more = {"decimals": properties.get("max_point_number", 2)}
            self.create(
                statement.path, statement.data_type, statement.encoding,
                compressor=Compressor.SNAPPY if statement.compressor is None else statement.compressor,
                alias=statement.alias,
                tags=statement.tags, attributes=statement.attributes, **more,
            )  # fmt: skip
        elif isinstance(statement, st.SetStorageGroup):
            self.groups.setdefault(statement.path, None)
        elif isinstance(statement, st.Insert):
            self.insert(statement)
        elif isinstance(statement, st.Delete):
            for one in [one for path in statement.paths for one in self.match(path)]:
                kept = self.points.get(one.path, {}).items()
                self.points[one.path] = {t: v for t, v in kept if not statement.start <= t <= statement.end}
        elif isinstance(statement, st.DeleteTimeseries | st.DeleteStorageGroups):
            for path in statement.paths:
                for one in self.match(path):
                    self.series.pop(one.path, None)
                    self.points.pop(one.path, None)
                if isinstance(statement, st.DeleteStorageGroups):
                    self.groups.pop(path, None)
        elif isinstance(statement, st.SetTtl | st.UnsetTtl):
            if statement.path in self.groups:
                self.groups[statement.path] = getattr(statement, "ttl", None)
        elif isinstance(statement, st.AlterTimeseries):
            self.alter(statement)

    def insert(self, statement: st.Insert) -> None:
        for name, text in zip(statement.measurements, statement.values, strict=True):
            found = self.match(f"{statement.device}.{name}")
            kind = found[0].type if found else DataType.FLOAT
            info = found[0] if found else self.create(f"{statement.device}.{name}", kind)
            value: Any
            if kind is DataType.TEXT:
                value = (text[1:-1] if text[:1] in ("'", '"') else text).encode()
            elif kind is DataType.BOOLEAN:
                value = text.lower() in ("true", "1")
            else:
                value = float(text) if kind in (DataType.FLOAT, DataType.DOUBLE) else int(text)
            self.put(info.path, statement.time, value)

    def alter(self, statement: st.AlterTimeseries) -> None:
        info, change = self.series[statement.path], statement.change
        tags, attributes = dict(info.tags), dict(info.attributes)
        if isinstance(change, st.AlterRename):
            tags = {change.after if key == change.before else key: value for key, value in tags.items()}
        elif isinstance(change, st.AlterSet):
            for key, value in change.pairs:
                (tags if key in tags else attributes)[key] = value
        elif isinstance(change, st.AlterDrop):
            for key in change.keys:
                tags.pop(key, None)
                attributes.pop(key, None)
        elif isinstance(change, st.AlterAddTags):
            tags.update(change.pairs)
        elif isinstance(change, st.AlterAddAttributes):
            attributes.update(change.pairs)
        else:
            tags.update(change.tags)
            attributes.update(change.attributes)
            info = replace(info, alias=change.alias or info.alias)
        self.series[info.path] = replace(info, tags=tuple(tags.items()), attributes=tuple(attributes.items()))


# --- transcripts ------------------------------------------------------------------------------------------------------
def shown(value: Any, kind: DataType) -> str:
    if value is None:
        return "null"
    if kind is DataType.TEXT:
        return json.dumps(value.decode(), ensure_ascii=False)
    if kind is DataType.BOOLEAN:
        return str(value).lower()
    if kind is DataType.FLOAT:
        return repr(float(str(np.float32(value))))
    return repr(value)


def rendered(plan: Plan, rows: RowBatch) -> list[str]:
    """The result as a transcript writes it."""
    header = plan.header
    cells = [[shown(value, column.type) for value in column.tolist()] for column in rows.columns]
    names = [f"{name}:{kind.name}" for name, kind in zip(header.columns, header.types, strict=True)]
    where = header.physical
    if header.name_index is not None:
        assert where == tuple(header.name_index[name] for name in header.columns)
    if not header.non_align:
        lines = [" | ".join(([] if header.ignore_time else ["Time:INT64"]) + names) or "(no columns)"]
        for at, time in enumerate(rows.times.tolist()):
            lines.append(" | ".join(([] if header.ignore_time else [str(time)]) + [cells[w][at] for w in where]))
        return lines
    lines = [" | ".join(cell for name in names for cell in ("Time:INT64", name))]
    pairs = [
        [(str(t), cell) for t, cell in zip(rows.times.tolist(), cells[w], strict=True) if cell != "null"] for w in where
    ]
    for at in range(max(map(len, pairs), default=0)):
        row = [pair[at] if at < len(pair) else ("null", "null") for pair in pairs]
        lines.append(" | ".join(cell for pair in row for cell in pair))
    return lines


def same_cell(kind: str, want: str, got: str) -> bool:
    if want == got:
        return True
    if kind in ("FLOAT", "DOUBLE"):
        try:
            a, b = float(want), float(got)
        except ValueError:
            return False
        close = math.isclose(a, b, rel_tol=1e-6 if kind == "FLOAT" else 1e-12, abs_tol=1e-300)
        return close or (math.isnan(a) and math.isnan(b))
    return False


def same(want: list[str], got: list[str], modes: set[str], sql: str) -> bool:
    """Whether an answer is as written, under the rules of transcripts."""
    if want == got or "superset" in modes:
        return True
    if want == ["error 500"]:
        return got[0].startswith("error")
    if len(want) != len(got) or want[0].startswith("error"):
        return False
    if "rows" in modes:
        return want[0].count(" | ") == got[0].count(" | ")
    if want[0] != got[0]:
        if "*" not in sql:
            return False
        names: list[str | None] = list(got[0].split(" | "))
        order = []
        for name in want[0].split(" | "):
            if name not in names:
                return False
            order.append(names.index(name))
            names[order[-1]] = None
        if any(name is not None for name in names):
            return False
        got = [" | ".join(line.split(" | ")[at] for at in order) for line in got]
    kinds = [cell.rsplit(":", 1)[-1] for cell in want[0].split(" | ")]
    a, b = want[1:], got[1:]
    if "unordered" in modes:
        a, b = sorted(a), sorted(b)
    for x, y in zip(a, b, strict=True):
        left, right = x.split(" | "), y.split(" | ")
        if len(left) != len(right) or not all(map(same_cell, kinds, left, right)):
            return False
    return True


def read_transcript(path: Path) -> Iterator[tuple[str, set[str], list[str]]]:
    """(statement, directives, answer)."""
    statement, modes, answer = None, set[str](), list[str]()
    for line in [*path.read_text(encoding="utf-8").split("\n"), "@end"]:
        if line.startswith(("> ", "@")):
            if statement is not None:
                yield statement, modes, answer
                statement, modes = None, set()
            if line.startswith("@"):
                modes.add(line[1:].split()[0])
            else:
                statement, answer = line[2:], []
        elif line.strip() and not line.startswith("#") and statement is not None:
            answer.append(line)


def run_transcript(path: Path, **settings: Any) -> tuple[int, list[str]]:
    """(queries checked, what differed): all statements are run, those with a result set are compared."""
    database = Naive(**settings)
    checked, bad = 0, []
    for text, modes, want in read_transcript(path):
        query = text.split()[0].upper() in ("SELECT", "SHOW", "COUNT")
        try:
            if query:
                plan, rows = database.query(text)
                got = rendered(plan, rows)
            else:
                if want == ["ok"]:
                    database.execute(text)
                continue
        except CallerError as error:
            got = [f"error {int(error.code)}"]
            if not query:
                continue
        checked += 1
        if not same(want, got, modes, text):
            bad.append(f"{text}\n  want {want[:8]}\n  got  {got[:8]}")
    return checked, bad


@pytest.fixture
def naive() -> type[Naive]:
    return Naive


@pytest.fixture
def transcripts() -> Any:
    return run_transcript


@pytest.fixture
def round_at_read() -> Any:
    return rounded
