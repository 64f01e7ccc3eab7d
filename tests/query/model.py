"""What a statement answers, by the reference documents and loops over points: the second computation for the server.

Nothing here knows the server's code. Series are dicts of points; a query is a value of the classes below, which has its
text and, in `Model.answer`, its meaning. An answer is a list of lines: the header's cells, then the rows' cells; a cell
is None, bool, int, float, str. A refusal is `Refused` with the status code.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

NUMBERS = ("INT32", "INT64", "FLOAT", "DOUBLE")
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1
EPOCH = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))
Row = list[Any]


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Series:
    path: str
    kind: str
    rounded: int | None  # decimals to which it is read
    points: dict[int, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


# --- values -----------------------------------------------------------------------------------------------------------
def float32(value: float) -> float:
    try:
        return float(struct.unpack(">f", struct.pack(">f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def read(series: Series, value: Any) -> Any:
    """A stored value as a scan gives it: r + round((x - r) * 10^p) / 10^p, half up; FLOAT in single precision."""
    if series.rounded is None or not math.isfinite(value):
        return value
    if abs(value) * 10**series.rounded >= 2.0**63:
        return value
    whole = float(math.floor(Fraction(value) + Fraction(1, 2)))
    if not series.rounded:
        return whole
    scale = float(10**series.rounded)
    if series.kind == "FLOAT":
        # The difference, the quotient and the sum are single; the product with the power of ten is double.
        rest = Fraction(float32(value - whole) * scale) + Fraction(1, 2)
        return float32(whole + float32(math.floor(rest) / scale))
    return whole + math.floor(Fraction((value - whole) * scale) + Fraction(1, 2)) / scale


def constant(text: str, kind: str) -> Any:
    """A constant of WHERE as the series' type."""
    if kind == "TEXT":
        return text[1:-1] if text[0] in "'\"" else text
    if kind == "BOOLEAN":
        return text.lower() == "true"
    try:
        if kind in ("INT32", "INT64"):
            number = int(text)
            if not -(1 << (31 if kind == "INT32" else 63)) <= number < 1 << (31 if kind == "INT32" else 63):
                raise ValueError
            return number
        return float32(float(text)) if kind == "FLOAT" else float(text)
    except ValueError:
        raise Refused(411) from None


def order(value: Any) -> Any:
    """Sorts numbers as Double.compare does: NaN is the greatest."""
    if isinstance(value, float) and math.isnan(value):
        return (1, 0.0)
    return (0, value)


def like(pattern: str) -> str:
    out, at = "", 0
    while at < len(pattern):
        if pattern[at] == "\\" and at + 1 < len(pattern):
            at += 1
            out += re.escape(pattern[at])
        else:
            out += {"%": ".*", "_": "."}.get(pattern[at]) or re.escape(pattern[at])
        at += 1
    return f"^{out}$"


# --- conditions -------------------------------------------------------------------------------------------------------
@dataclass
class Atom:
    """`target` is "time" or a path; `op` one of the signs, "in", "not in", "like", "regexp"."""

    target: str
    op: str
    values: list[str]

    @property
    def sql(self) -> str:
        if self.op in ("in", "not in"):
            return f"{self.target} {self.op} ({', '.join(self.values)})"
        return f"{self.target} {self.op} {self.values[0]}"


@dataclass
class Both:
    """AND, OR, or NOT of one."""

    word: str
    parts: list[Any]

    @property
    def sql(self) -> str:
        if self.word == "not":
            return f"not ({self.parts[0].sql})"
        return "(" + f" {self.word} ".join(part.sql for part in self.parts) + ")"


COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def atom_holds(atom: Atom, series: Series | None, value: Any) -> bool:
    """`series` None: of a time."""
    kind = "INT64" if series is None else series.kind
    if atom.op in ("like", "regexp"):
        pattern = atom.values[0][1:-1]
        return re.search(like(pattern) if atom.op == "like" else pattern, value, re.DOTALL) is not None
    wanted = [order(constant(text, kind)) for text in atom.values]
    if atom.op in ("in", "not in"):
        return (order(value) in wanted) == (atom.op == "in")
    return COMPARED[atom.op](order(value), wanted[0])


def targets(where: Any) -> list[str]:
    """The paths that a condition names."""
    if isinstance(where, Both):
        return [target for part in where.parts for target in targets(part)]
    return [] if where is None or where.target == "time" else [where.target]


def check_atom(atom: Atom, series: Series) -> None:
    if atom.op in ("like", "regexp"):
        if series.kind != "TEXT":
            raise Refused(411)
        return
    for text in atom.values:
        constant(text, series.kind)
    if series.kind == "TEXT" and atom.op not in ("=", "!=", "in", "not in"):
        raise Refused(411)


# --- queries ----------------------------------------------------------------------------------------------------------
@dataclass
class Item:
    """A column of SELECT: `function` of a suffix path, with attributes where it is a UDTF, and a name."""

    path: str
    function: str | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    alias: str | None = None

    @property
    def sql(self) -> str:
        text = self.path
        if self.function is not None:
            more = "".join(f", '{key}'='{value}'" for key, value in self.attributes)
            text = f"{self.function}({self.path}{more})"
        return text + (f" AS {self.alias}" if self.alias else "")

    def shown(self, path: str) -> str:
        if self.alias:
            return self.alias
        if self.function is None:
            return path
        more = "".join(f', "{key}"="{value}"' for key, value in self.attributes)
        return f"{self.function}({path}{more})"


@dataclass
class GroupBy:
    """Windows; lengths are (months, milliseconds)."""

    start: int
    end: int
    interval: tuple[int, int]
    step: tuple[int, int] | None
    left_open: bool

    @property
    def sql(self) -> str:
        window = f"({self.start}, {self.end}]" if self.left_open else f"[{self.start}, {self.end})"
        return f"{window}, {duration(self.interval)}" + (f", {duration(self.step)}" if self.step else "")


def duration(length: tuple[int, int]) -> str:
    months, fixed = length
    return (f"{months}mo" if months else "") + (f"{fixed}ms" if fixed or not months else "")


@dataclass
class Query:
    kind: str  # raw, udtf, aggregation, window, window fill, fill, last
    items: list[Item]
    prefixes: list[str]
    where: Any = None
    group: GroupBy | None = None
    levels: list[int] = field(default_factory=list)
    fills: list[tuple[str, str, list[int], str]] = field(default_factory=list)  # type, method, ranges, constant
    time: int = 0  # of a fill
    descending: bool = False
    ordered: bool = False
    without_null: str | None = None
    limit: int | None = None
    offset: int = 0
    slimit: int | None = None
    soffset: int = 0
    by_device: bool = False
    ragged: bool = False  # DISABLE ALIGN
    zone: str = "UTC"

    @property
    def sql(self) -> str:
        text = f"SELECT {'LAST ' if self.kind == 'last' else ''}{', '.join(item.sql for item in self.items)}"
        text += f" FROM {', '.join(self.prefixes)}"
        if self.kind == "fill":
            text += f" WHERE time = {self.time}"
        elif self.where is not None:
            text += f" WHERE {self.where.sql}"
        level = f"LEVEL = {', '.join(map(str, self.levels))}" if self.levels else ""
        if self.group is not None:
            text += f" GROUP BY ({self.group.sql}){', ' + level if level else ''}"
        elif level:
            text += f" GROUP BY {level}"
        if self.fills:
            text += f" FILL ({', '.join(map(fill_sql, self.fills))})"
        if self.ordered:
            text += f" ORDER BY TIME {'DESC' if self.descending else 'ASC'}"
        if self.without_null:
            text += f" WITHOUT NULL {self.without_null.upper()}"
        if self.limit is not None:
            text += f" LIMIT {self.limit}" + (f" OFFSET {self.offset}" if self.offset else "")
        if self.slimit is not None:
            text += f" SLIMIT {self.slimit}" + (f" SOFFSET {self.soffset}" if self.soffset else "")
        return text + (" ALIGN BY DEVICE" if self.by_device else " DISABLE ALIGN" if self.ragged else "")


def fill_sql(fill: tuple[str, str, list[int], str]) -> str:
    kind, method, ranges, value = fill
    if method == "value":
        return f"{kind}[{value}]"
    return f"{kind}[{', '.join([method, *(f'{reach}ms' for reach in ranges)])}]"


Column = tuple[str, str, dict[int, Any]]  # name, type, cells by time


class Model:
    """The series of a database, and what queries answer."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}

    # --- changes ------------------------------------------------------------------------------------------------------
    def create(self, path: str, kind: str, rounded: int | None) -> None:
        self.series[path] = Series(path, kind, rounded)

    def put(self, path: str, time: int, value: Any) -> None:
        series = self.series[path]
        series.points[time] = float32(value) if series.kind == "FLOAT" else value

    def delete(self, pattern: str, low: int, high: int) -> None:
        if any(len(node) > 1 and node.endswith("*") for node in pattern.split(".")):
            return  # in DELETE FROM only a bare * is a wildcard
        for series in self.match(pattern):
            series.points = {time: value for time, value in series.points.items() if not low <= time <= high}

    # --- paths --------------------------------------------------------------------------------------------------------
    def match(self, pattern: str) -> list[Series]:
        """By path: what begins as the pattern, node by node."""
        nodes = pattern.split(".")
        found = []
        for path in sorted(self.series):
            mine = path.split(".")
            if len(mine) >= len(nodes) and all(map(node_matches, nodes, mine)):
                found.append(self.series[path])
        return found

    def expand(self, query: Query) -> list[tuple[Item, Series]]:
        found = []
        for item in query.items:
            matched = [series for prefix in query.prefixes for series in self.match(f"{prefix}.{item.path}")]
            if item.alias and len(matched) > 1 and not query.levels:
                raise Refused(411)
            found += [(item, series) for series in matched]
        return found

    # --- conditions ---------------------------------------------------------------------------------------------------
    def bound(self, where: Any, paths: Callable[[str], list[Series]]) -> Any:
        """The condition with the series of its paths; each is checked for its type."""
        if where is None:
            return None
        if isinstance(where, Both):
            return (where.word, [self.bound(part, paths) for part in where.parts])
        if where.target == "time":
            return ("atom", where, None)
        found = paths(where.target)
        for series in found:
            check_atom(where, series)
        return ("and", [("atom", where, series) for series in found]) if found else ("never",)

    def holds(self, bound: Any, time: int, negated: bool = False) -> bool:
        """A missing value makes a test false, a negated one too."""
        if bound is None:
            return True
        if bound[0] == "never":
            return False
        if bound[0] == "atom":
            _, atom, series = bound
            if series is None:
                return atom_holds(atom, None, time) != negated
            if time not in series.points:
                return False
            return atom_holds(atom, series, read(series, series.points[time])) != negated
        if bound[0] == "not":
            return self.holds(bound[1][0], time, not negated)
        combine = all if (bound[0] == "and") != negated else any
        return combine(self.holds(part, time, negated) for part in bound[1])

    def condition(self, query: Query) -> Callable[[int], bool]:
        def paths(target: str) -> list[Series]:
            out: list[Series] = []
            for prefix in query.prefixes:
                found = self.match(f"{prefix}.{target}")
                if not found:
                    raise Refused(411)
                out += [series for series in found if series not in out]
            return out

        bound = self.bound(query.where, paths)
        return lambda time: self.holds(bound, time)

    # --- answers ------------------------------------------------------------------------------------------------------
    def answer(self, query: Query) -> list[Row]:
        if query.by_device:
            return self.by_device(query)
        if query.kind == "last":
            return self.last(query)
        chosen = self.expand(query)
        if not query.levels:
            chosen = sliced(query, chosen)
        if not chosen:
            return [[] if query.kind == "aggregation" or query.ragged else ["Time:INT64"]]
        columns = self.columns(query, chosen, self.condition(query) if query.kind != "fill" else always)
        if query.levels:
            columns = sliced(query, columns)
        if query.ragged:
            return ragged(query, columns)
        rows = trimmed(query, rows_of(query, columns), 1)
        if query.kind == "aggregation":
            return [[f"{name}:{kind}" for name, kind, _ in columns], *(row[1:] for row in rows)]
        return [["Time:INT64", *(f"{name}:{kind}" for name, kind, _ in columns)], *rows]

    def columns(self, query: Query, chosen: list[tuple[Item, Series]], passes: Callable[[int], bool]) -> list[Column]:
        """The columns with their cells by time, before rows are made of them."""
        if query.kind == "raw":
            return [(item.shown(one.path), one.kind, scan(one, passes)) for item, one in chosen]
        if query.kind == "udtf":
            return [udtf(item, one, scan(one, passes)) for item, one in chosen]
        if query.kind == "fill":
            return [(item.shown(one.path), one.kind, {query.time: self.filled(query, one)}) for item, one in chosen]
        for item, one in chosen:
            check_aggregate(item.function or "", one.kind)
        if query.levels:
            return self.by_level(query, chosen, passes)
        columns = []
        for item, one in chosen:
            cells = aggregated(query, item.function or "", [scan(one, passes)])
            if query.fills:
                cells = self.window_filled(query, one, cells)
            columns.append((item.shown(one.path), result_type(item.function or "", one.kind), cells))
        return columns

    def by_level(self, query: Query, chosen: list[tuple[Item, Series]], passes: Callable[[int], bool]) -> list[Column]:
        groups: dict[str, tuple[Item, list[Series]]] = {}
        for item, one in chosen:
            nodes = one.path.split(".")
            kept = [node if at == 0 or at in query.levels else "*" for at, node in enumerate(nodes[:-1])]
            kept.append("*" if item.function == "count" and item.path == "*" else nodes[-1])
            _, members = groups.setdefault(f"{item.function}({'.'.join(kept)})", (item, []))
            if one not in members:
                members.append(one)
        columns = []
        for name, (item, members) in groups.items():
            function = item.function or ""
            kinds = {result_type(function, one.kind) for one in members}
            if len(kinds) > 1:
                raise Refused(411)
            cells = aggregated(query, function, [scan(one, passes) for one in members])
            columns.append((name, kinds.pop(), cells))
        return columns

    def by_device(self, query: Query) -> list[Row]:
        devices: list[str] = []
        for prefix in query.prefixes:
            depth = len(prefix.split("."))
            found = {one.device for one in self.match(prefix) if len(one.device.split(".")) >= depth}
            devices += [device for device in sorted(found) if device not in devices]
        own = {device: {one.name: one for one in self.series.values() if one.device == device} for device in devices}
        columns: list[tuple[str, str, Item, str]] = []  # name, type, item, measurement
        for item in query.items:
            mine: dict[str, tuple[str, str, Item, str]] = {}
            for device in devices:
                names = sorted(name for name in own[device] if node_matches(item.path, name))
                if item.alias and len(names) > 1:
                    raise Refused(411)
                for name in names:
                    one = own[device][name]
                    if item.function:
                        check_aggregate(item.function, one.kind)
                    kind = result_type(item.function, one.kind) if item.function else one.kind
                    known = mine.setdefault(name, (item.shown(name), kind, item, name))
                    if known[1] != kind:
                        raise Refused(411)
            if not mine and devices and not item.path.endswith("*"):
                mine[item.path] = (item.shown(item.path), "TEXT", item, item.path)
            columns += mine.values()
        columns = sliced(query, columns)
        for target in targets(query.where) if query.kind != "fill" else []:
            if devices and not any(node_matches(target, name) for device in devices for name in own[device]):
                raise Refused(411)
        header = ["Device:TEXT", *(f"{name}:{kind}" for name, kind, _, _ in columns)]
        rows: list[Row] = []
        for device in devices:
            chosen = [(item, own[device][name]) for _, _, item, name in columns if name in own[device]]

            def paths(target: str, device: str = device) -> list[Series]:
                return [own[device][name] for name in sorted(own[device]) if node_matches(target, name)]

            bound = self.bound(query.where, paths) if query.kind != "fill" else None
            if not chosen:
                continue
            cells = self.columns(query, chosen, lambda time, bound=bound: self.holds(bound, time))
            known = {(id(item), one.name): part[2] for (item, one), part in zip(chosen, cells, strict=True)}
            wide: list[Column] = [
                (name, kind, known.get((id(item), measurement), {})) for name, kind, item, measurement in columns
            ]
            times = sorted({time for _, _, part in cells for time in part}, reverse=query.descending)
            rows += [[time, device, *(part.get(time) for _, _, part in wide)] for time in times]
        rows = trimmed(query, rows, 2)
        if query.kind == "aggregation":
            return [header, *(row[1:] for row in rows)]
        return [["Time:INT64", *header], *rows]

    def last(self, query: Query) -> list[Row]:
        passes = self.condition(query)
        chosen = sliced(query, self.expand(query))
        rows: list[Row] = []
        shown: set[str] = set()
        for item, one in chosen:
            name = item.shown(one.path)
            if name in shown or not one.points:
                continue
            time = max(one.points)
            shown.add(name)
            if passes(time):
                rows.append([time, name, one.points[time], one.kind])
        if query.ordered:
            rows.sort(key=lambda row: row[0], reverse=query.descending)
        query_rows = rows[query.offset :]
        rows = query_rows if query.limit is None else query_rows[: query.limit]
        return [["Time:INT64", "timeseries:TEXT", "value:TEXT", "dataType:TEXT"], *rows]

    # --- fill ---------------------------------------------------------------------------------------------------------
    def filled(self, query: Query, one: Series) -> Any:
        cells = scan(one, always)
        if query.time in cells:
            return cells[query.time]
        _, method, ranges, value = next((fill for fill in query.fills if fill[0] == one.kind), ("", "previous", [], ""))
        if method == "value":
            return value if one.kind == "TEXT" else constant(value, one.kind)
        low = LOWEST if not ranges else query.time - ranges[0]
        before = max((time for time in cells if low <= time <= query.time), default=None)
        if method != "linear":
            return None if before is None else cells[before]
        high = HIGHEST if not ranges else query.time + ranges[1]
        after = min((time for time in cells if query.time <= time <= high), default=None)
        if before is None or after is None:
            return None
        step = float(cells[after] - cells[before]) / float(after - before) * float(query.time - before)
        if one.kind in ("INT32", "INT64"):
            return cells[before] + math.trunc(step)
        made = cells[before] + step
        return float32(made) if one.kind == "FLOAT" else made

    def window_filled(self, query: Query, one: Series, cells: dict[int, Any]) -> dict[int, Any]:
        chosen = [fill for fill in query.fills if fill[0] in (one.kind, "ALL")]
        _, method, ranges, _ = chosen[0] if chosen else ("", "previousUntilLast", [], "")
        group = query.group
        assert group is not None
        if ranges and ranges[0] < group.interval[0] * 30 * 86_400_000 + group.interval[1]:
            return cells
        points = scan(one, always)
        newest = max(one.points, default=LOWEST)
        start = group.start + (1 if group.left_open else 0)
        before = [time for time in points if time < start]
        carried = points[max(before)] if before else None
        out = {}
        for time in sorted(cells):
            value = cells[time]
            if value is None and not (method == "previousUntilLast" and time > newest):
                value = carried
            out[time] = value
            carried = cells[time] if cells[time] is not None else carried
        return out


def always(_: int) -> bool:
    return True


def node_matches(pattern: str, node: str) -> bool:
    return pattern in ("*", node) or (pattern.endswith("*") and node.startswith(pattern[:-1]))


def scan(one: Series, passes: Callable[[int], bool]) -> dict[int, Any]:
    return {time: read(one, one.points[time]) for time in sorted(one.points) if passes(time)}


def sliced(query: Query, columns: list[Any]) -> list[Any]:
    if query.soffset and columns and query.soffset >= len(columns):
        raise Refused(411)
    columns = columns[query.soffset :]
    return columns if query.slimit is None else columns[: query.slimit]


def rows_of(query: Query, columns: list[Column]) -> list[Row]:
    times = sorted({time for _, _, cells in columns for time in cells}, reverse=query.descending)
    return [[time, *(cells.get(time) for _, _, cells in columns)] for time in times]


def trimmed(query: Query, rows: list[Row], first: int) -> list[Row]:
    if query.without_null:
        keep = all if query.without_null == "any" else any
        rows = [row for row in rows if keep(cell is not None for cell in row[first:])]
    rows = rows[query.offset :]
    return rows if query.limit is None else rows[: query.limit]


def ragged(query: Query, columns: list[Column]) -> list[Row]:
    lists = []
    for _, _, cells in columns:
        pairs = [[time, cells[time]] for time in sorted(cells, reverse=query.descending)][query.offset :]
        lists.append(pairs if query.limit is None else pairs[: query.limit])
    header = [cell for name, kind, _ in columns for cell in ("Time:INT64", f"{name}:{kind}")]
    longest = max(map(len, lists), default=0)
    padded = [pairs + [[None, None]] * (longest - len(pairs)) for pairs in lists]
    return [header, *([cell for pair in row for cell in pair] for row in zip(*padded, strict=True))]


# --- aggregations -----------------------------------------------------------------------------------------------------
def check_aggregate(function: str, kind: str) -> None:
    if kind in NUMBERS or function in ("count", "min_time", "max_time", "first_value", "last_value"):
        return
    if not (function == "sum" and kind == "BOOLEAN"):
        raise Refused(411)


def result_type(function: str, kind: str) -> str:
    if function in ("count", "min_time", "max_time"):
        return "INT64"
    return "DOUBLE" if function in ("sum", "avg") else kind


def windows(query: Query) -> list[tuple[int, int, int]]:
    """(row time, first, last instant) of each window, ascending."""
    group = query.group
    if group is None:
        return [(0, LOWEST, HIGHEST)]
    zone = zone_of(query.zone)
    shift = 1 if group.left_open else 0
    start, end = group.start + shift, group.end + shift
    step = group.step or group.interval
    out = []
    for k in range(1_000_000):
        low = add_months(start, k * step[0], zone) + k * step[1]
        if low >= end:
            break
        if step[0]:
            high = add_months(start, k * step[0] + group.interval[0], zone) + k * step[1] + group.interval[1]
        else:
            high = add_months(low, group.interval[0], zone) + group.interval[1]
        high = min(high, end)
        out.append((high - 1 if group.left_open else low, low, high - 1))
    return out


def zone_of(text: str) -> tzinfo:
    if text[0] in "+-":
        sign = 1 if text[0] == "+" else -1
        return timezone(sign * timedelta(hours=int(text[1:3]), minutes=int(text[4:6])))
    return ZoneInfo(text)


def add_months(time: int, months: int, zone: tzinfo) -> int:
    local = (EPOCH + timedelta(milliseconds=time)).astimezone(zone)
    year, month = divmod(local.year * 12 + local.month - 1 + months, 12)
    day = local.day
    while True:
        try:
            moved = local.replace(year=year, month=month + 1, day=day, fold=0)
            break
        except ValueError:
            day -= 1
    return (moved.astimezone(ZoneInfo("UTC")) - EPOCH) // timedelta(milliseconds=1)


def aggregated(query: Query, function: str, scans: list[dict[int, Any]]) -> dict[int, Any]:
    """A cell for each window, of all scans together."""
    cells = {}
    for shown, low, high in windows(query):
        inside = [sorted((t, v) for t, v in one.items() if low <= t <= high) for one in scans]
        if function == "avg" and query.group is not None:
            means = [mean(v for _, v in part) for part in inside if part]
            cells[shown] = mean(means) if means else None
            continue
        merged = sorted((point for part in inside for point in part), key=lambda point: point[0])
        cells[shown] = aggregate(function, merged)
    return cells


def mean(values: Iterable[Any]) -> float:
    listed = list(values)
    return total(listed) / len(listed)


def total(values: list[Any]) -> float:
    if all(isinstance(value, int) for value in values):
        return float(sum(values))
    if any(not math.isfinite(value) for value in values):
        return float(sum(values))
    return math.fsum(values)


def aggregate(function: str, points: list[tuple[int, Any]]) -> Any:
    values = [value for _, value in points]
    if function == "count":
        return len(points)
    if function == "sum":
        return total(values) if values else 0.0
    if not points:
        return None
    if function == "avg":
        return mean(values)
    if function == "min_time":
        return points[0][0]
    if function == "max_time":
        return points[-1][0]
    if function == "first_value":
        return values[0]
    if function == "last_value":
        newest = [value for time, value in points if time == points[-1][0]]
        return newest[0]
    if function == "min_value":
        return min(values, key=order)
    if function == "max_value":
        return max(values, key=order)
    if any(isinstance(value, float) and math.isnan(value) for value in values):
        return math.nan
    return max(values, key=lambda value: (abs(value), value))


# --- functions of series ----------------------------------------------------------------------------------------------
def half_even(value: float) -> float:
    return float(round(value)) if math.isfinite(value) else value


CELLWISE: dict[str, Callable[[float], float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "degrees": math.degrees,
    "radians": math.radians,
    "sqrt": math.sqrt,
    "sign": lambda value: value if math.isnan(value) else float((value > 0) - (value < 0)),
    "ceil": lambda value: float(math.ceil(value)),
    "floor": lambda value: float(math.floor(value)),
    "round": half_even,
    "exp": math.exp,
    "ln": math.log,
    "log10": math.log10,
}


def cellwise(function: str, value: float) -> float:
    if function in ("ln", "log10") and value == 0:
        return -math.inf
    try:
        return CELLWISE[function](value)
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf


def wrapped(value: Any, kind: str) -> Any:
    """As the type's arithmetic leaves it."""
    if kind in ("INT32", "INT64"):
        bits = 32 if kind == "INT32" else 64
        return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    return float32(value) if kind == "FLOAT" else value


def udtf(item: Item, one: Series, cells: dict[int, Any]) -> Column:
    name = item.shown(one.path)
    function = item.function
    if function is None:
        return name, one.kind, cells
    attributes = dict(item.attributes)
    if function in ("string_contains", "string_matches"):
        if one.kind != "TEXT":
            raise Refused(411)
        if function == "string_contains":
            return name, "BOOLEAN", {t: attributes["s"] in v for t, v in cells.items()}
        return name, "BOOLEAN", {t: re.fullmatch(attributes["regex"], v) is not None for t, v in cells.items()}
    if function == "time_difference":
        return name, "INT64", {after: after - before for before, after in pairwise(cells)}
    if function in ("top_k", "bottom_k"):
        if one.kind == "BOOLEAN":
            raise Refused(411)
        k = int(attributes["k"])
        best = sorted(cells, key=lambda time: (order(cells[time]), -time if function == "top_k" else time))
        kept = sorted(best[-k:] if function == "top_k" else best[:k])
        return name, one.kind, {time: cells[time] for time in kept}
    if one.kind not in NUMBERS:
        raise Refused(411)
    if function == "abs":
        return name, one.kind, {t: wrapped(abs(v), one.kind) for t, v in cells.items()}
    if function in CELLWISE:
        return name, "DOUBLE", {t: cellwise(function, float(v)) for t, v in cells.items()}
    out = {}
    for before, after in pairwise(cells):
        change = wrapped(cells[after] - cells[before], one.kind)
        if function.endswith("derivative"):
            change = float(change) / float(after - before)
        out[after] = wrapped(abs(change), "DOUBLE" if function.endswith("derivative") else one.kind) \
            if function.startswith("non_negative") else change  # fmt: skip
    return name, "DOUBLE" if function.endswith("derivative") else one.kind, out
