"""Random scripts: a schema, changes, and queries of every form, out of one seed; the same for every server."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

from model import NUMBERS, Atom, Both, GroupBy, Item, Model, Query, Series, node_matches

PARTITION = 604_800_000
DAY = 86_400_000
KINDS = ("INT32", "INT64", "FLOAT", "DOUBLE", "BOOLEAN", "TEXT")
ENCODINGS = {"INT32": ("RLE", "PLAIN", "TS_2DIFF", "GORILLA"), "BOOLEAN": ("PLAIN", "RLE"), "TEXT": ("PLAIN",)}
TEXTS = ("a", "b", "ab", "", "x y", "100%", "温度", "a_b", "zz9")
PATTERNS = ("a%", "%b", "_", "a\\_b", "%", "x_y")
REGEXES = ("^a", "b$", "[0-9]+", "a.b", "^$")
AGGREGATES = (
    "count", "sum", "avg", "min_time", "max_time", "min_value", "max_value", "first_value", "last_value", "extreme",
)  # fmt: skip
ANY_TYPE = ("count", "min_time", "max_time", "first_value", "last_value")
CELLWISE = (
    "sin", "cos", "tan", "asin", "acos", "atan", "degrees", "radians", "sqrt", "sign", "ceil", "floor", "round", "exp",
    "ln", "log10", "abs",
)  # fmt: skip
DELTAS = (
    "difference", "non_negative_difference", "time_difference", "derivative", "non_negative_derivative",
)  # fmt: skip
ZONES = ("UTC", "+08:00", "Asia/Shanghai", "America/New_York")


def group_of(path: str) -> str:
    return ".".join(path.split(".")[:2])


@dataclass
class Change:
    """Statements that every server gets, one batch, and rows for calls that take negative times."""

    statements: list[str] = field(default_factory=list)
    rows: list[tuple[str, int, list[str], list[str]]] = field(default_factory=list)


class Script:
    """One random database: `begin`, then `change` and `query` by turns, then `end`; `model` follows the changes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.model = Model()
        self.groups = [f"root.m{at}" for at in range(self.random.randint(1, 3))]
        self.tz = self.random.choice(ZONES)

    # --- changes ------------------------------------------------------------------------------------------------------
    def begin(self) -> Change:
        change = Change([f"SET STORAGE GROUP TO {group}" for group in self.groups])
        kinds = {f"s{at}": self.random.choice(KINDS) for at in range(6)}
        for group in self.groups:
            for number in range(self.random.randint(1, 3)):
                inner = self.random.choice(["", "", ".g0", ".g1"])
                for name in self.random.sample(sorted(kinds), self.random.randint(1, 5)):
                    # Mostly one type a name, so that devices can be aligned.
                    kind = kinds[name] if self.random.random() < 0.9 else self.random.choice(KINDS)
                    path = f"{group}{inner}.d{number}.{name}"
                    if path in self.model.series:
                        continue
                    encoding = self.random.choice(ENCODINGS.get(kind, ("RLE", "PLAIN", "TS_2DIFF", "GORILLA")))
                    rounded = None
                    extra = ""
                    if kind in ("FLOAT", "DOUBLE") and encoding in ("RLE", "TS_2DIFF"):
                        rounded = 2
                        if self.random.random() < 0.4:
                            rounded = self.random.randint(0, 4)
                            extra = f", MAX_POINT_NUMBER={rounded}"
                    self.model.create(path, kind, rounded)
                    change.statements.append(
                        f"CREATE TIMESERIES {path} WITH DATATYPE={kind}, ENCODING={encoding}{extra}"
                    )
        return change

    def change(self) -> Change:
        """Some inserts, late ones among them, seldom a delete."""
        change = Change()
        devices: dict[str, list[Series]] = {}
        for one in self.model.series.values():
            devices.setdefault(one.device, []).append(one)
        for device in sorted(devices):
            if self.random.random() < 0.15:
                continue
            for _ in range(self.random.randint(1, 14)):
                time = self.instant()
                some = self.random.sample(devices[device], self.random.randint(1, len(devices[device])))
                texts = []
                for one in some:
                    value, text = self.value(one.kind)
                    self.model.put(one.path, time, value)
                    texts.append(text)
                names = [one.name for one in some]
                if time < 0:
                    change.rows.append((device, time, names, texts))
                else:
                    listed = f"{', '.join(names)}) VALUES ({time}, {', '.join(texts)}"
                    change.statements.append(f"INSERT INTO {device}(timestamp, {listed})")
        if self.random.random() < 0.5:
            self.delete(change)
        return change

    def delete(self, change: Change) -> None:
        one = self.random.choice(list(self.model.series.values()))
        pattern = self.random.choice(
            [one.path, one.path, one.device, one.device + ".*", self.groups[0] + ".*." + one.name, one.path[:-1] + "*"]
        )
        low, high = sorted((self.instant(), self.instant()))
        text, bounds = self.random.choice(
            [
                (f"time >= {low} and time <= {high}", (low, high)),
                (f"time > {low} and time < {high + 2}", (low + 1, high + 1)),
                (f"time <= {low}", (-(1 << 63), low)),
                (f"time = {low}", (low, low)),
            ]
        )
        change.statements.append(f"DELETE FROM {pattern} WHERE {text}")
        # The rows of `change.rows` are sent after the statements: a delete must not see them.
        self.model.delete(pattern, *bounds)
        for device, time, names, texts in change.rows:
            for name, written in zip(names, texts, strict=True):
                self.model.put(f"{device}.{name}", time, self.parsed(f"{device}.{name}", written))

    def parsed(self, path: str, text: str) -> Any:
        kind = self.model.series[path].kind
        if kind == "TEXT":
            return text[1:-1]
        if kind == "BOOLEAN":
            return text == "true"
        return int(text) if kind in ("INT32", "INT64") else float(text)

    def end(self) -> Change:
        return Change([f"DELETE STORAGE GROUP {', '.join(self.groups)}"])

    def instant(self) -> int:
        near = self.random.choice([0, 0, 0, 0, PARTITION, PARTITION, 5 * PARTITION, -PARTITION, -20, 1_600_000_000_000])
        return near + self.random.choice([self.random.randint(-60, 120), self.random.randint(0, 40) * 10])

    def value(self, kind: str) -> tuple[Any, str]:
        pick = self.random.random()
        if kind == "BOOLEAN":
            value = pick < 0.5
            return value, str(value).lower()
        if kind == "TEXT":
            text = self.random.choice(TEXTS)
            return text, f"'{text}'"
        if kind == "INT32":
            number = self.random.randint(-50, 50) if pick < 0.95 else self.random.choice([(1 << 31) - 1, -(1 << 31)])
            return number, str(number)
        if kind == "INT64":
            number = self.random.randint(-50, 50) if pick < 0.6 else self.random.randint(-(10**12), 10**12)
            return number, str(number)
        if pick < 0.01:
            return math.nan, "NaN"
        text = f"{self.random.uniform(-60, 60):.{self.random.randint(0, 5)}f}" + ("" if pick < 0.9 else "e3")
        if "." not in text and not text.endswith("e3"):
            text += ".0"
        return float(text), text

    # --- queries ------------------------------------------------------------------------------------------------------
    def query(self) -> Query:
        kind = self.random.choice(
            [
                "raw",
                "raw",
                "raw",
                "udtf",
                "aggregation",
                "aggregation",
                "window",
                "window",
                "window fill",
                "fill",
                "last",
            ]
        )
        query = Query(kind, [], self.prefixes(), zone=self.tz)
        query.by_device = kind not in ("udtf", "last") and self.random.random() < 0.25
        query.items = self.items(query)
        if kind in ("window", "window fill"):
            query.group = self.group_by(fixed=kind == "window fill")
        if kind in ("aggregation", "window") and not query.by_device and self.random.random() < 0.25:
            query.levels = sorted(self.random.sample(range(5), self.random.randint(1, 2)))
        if kind == "fill":
            query.time = max(0, self.instant())
            query.fills = self.fills(window=False)
        elif kind == "window fill":
            query.fills = self.fills(window=True)
        if kind not in ("fill", "window fill"):
            query.where = self.where(query)
        if query.levels:
            for item in query.items:
                item.alias = None
        self.tail(query)
        return query

    def show(self) -> tuple[str, list[int], list[list[Any]] | int]:
        """(SHOW or COUNT, which of its columns are known, their rows or the code of the refusal)."""
        model, pattern = self.model, self.pattern()
        nodes, matched = pattern.split("."), model.match(pattern)
        below = [path.split(".") for path in model.series]
        depth, level = len(nodes), self.random.randint(0, 5)
        every = {tuple(path[:count]) for path in below for count in range(1, len(path) + 1)}
        inner = sorted(node for node in every if len(node) >= depth and all(map(node_matches, nodes, node)))
        devices = sorted({one.device for one in model.series.values()})
        found = [device for device in devices if tuple(device.split(".")) in inner]
        bare = not any(len(node) > 1 and node.endswith("*") for node in nodes)
        literal = nodes[: nodes.index("*")] if "*" in nodes else nodes
        missing = not bare or tuple(literal) not in every
        match self.random.randrange(8):
            case 0:
                rows = [[one.path, group_of(one.path), one.kind] for one in matched]
                return f"SHOW TIMESERIES {pattern}", [0, 2, 3], rows
            case 1:
                return f"SHOW DEVICES {pattern}", [0], [[device] for device in found]
            case 2:
                return f"COUNT DEVICES {pattern}", [0], [[len(found) if bare else 0]]
            case 3:
                return f"COUNT TIMESERIES {pattern}", [0], 304 if missing and depth > 1 else [[len(matched)]]
            case 4:
                children = sorted(".".join(node) for node in every if len(node) == depth + 1 and node in inner)
                return f"SHOW CHILD PATHS {pattern}", [0], [[child] for child in children]
            case 5:
                groups = sorted({".".join(node) for node in inner if ".".join(node) in self.groups})
                return f"SHOW STORAGE GROUP {pattern}", [0], [[group] for group in groups]
            case 6:
                counts: dict[str, int] = {}
                for one in matched if bare else []:
                    path = one.path.split(".")
                    if len(path) > level:
                        name = ".".join(path[: level + 1])
                        counts[name] = counts.get(name, 0) + 1
                return (
                    f"COUNT TIMESERIES {pattern} GROUP BY LEVEL={level}",
                    [0, 1],
                    [[*pair] for pair in sorted(counts.items())],
                )
            case _:
                if tuple(literal) not in every and "*" not in pattern:
                    return f"COUNT NODES {pattern} LEVEL={level}", [0], 303
                count = sum(len(node) == level + 1 for node in inner)
                whole = pattern if "*" not in pattern else self.groups[0]
                if whole != pattern:
                    mine = whole.split(".")
                    count = sum(len(node) == level + 1 and list(node[:2]) == mine for node in every)
                return f"COUNT NODES {whole} LEVEL={level}", [0], [[count]]

    def pattern(self) -> str:
        nodes = self.random.choice(list(self.model.series)).split(".")
        nodes = nodes[: self.random.randint(1, len(nodes))]
        shape = self.random.random()
        if shape < 0.3 and len(nodes) > 1:
            nodes[self.random.randint(1, len(nodes) - 1)] = "*"
        elif shape < 0.4 and len(nodes) > 1 and not nodes[-1].startswith("g"):  # g alone is a keyword
            nodes[-1] = nodes[-1][:-1] + "*"
        elif shape < 0.5:
            nodes.append("nosuch")
        return ".".join(nodes)

    def tail(self, query: Query) -> None:
        chance = self.random.random
        if query.kind == "last":
            query.ordered = chance() < 0.3
        if query.kind in ("raw", "udtf", "window", "window fill") or query.ordered:
            query.ordered = query.ordered or chance() < 0.35
            query.descending = query.ordered and chance() < 0.8
        if query.kind in ("raw", "udtf", "window") and chance() < 0.2:
            query.without_null = self.random.choice(["any", "all"])
        if query.kind != "fill" and chance() < 0.3:
            query.limit = self.random.randint(1, 12)
            query.offset = self.random.choice([0, 0, 1, 3, 20])
        # Which columns a wildcard leaves first is the server's affair: SLIMIT is for columns that are written out.
        if chance() < 0.15:
            query.slimit = self.random.randint(1, 4)
            query.soffset = self.random.choice([0, 0, 1, 2])
        if query.kind in ("raw", "udtf") and not query.by_device and chance() < 0.15 and not query.without_null:
            query.ragged = True

    def prefixes(self) -> list[str]:
        found = []
        for _ in range(self.random.choice([1, 1, 1, 2])):
            one = self.random.choice(list(self.model.series.values()))
            nodes = one.device.split(".")
            shape = self.random.random()
            if shape < 0.15:
                nodes = nodes[: self.random.randint(1, len(nodes))]
            elif shape < 0.3:
                nodes[self.random.randint(1, len(nodes) - 1)] = "*"
            elif shape < 0.35:
                nodes[-1] = nodes[-1][:-1] + "*"
            found.append(".".join(nodes))
        return list(dict.fromkeys(found))

    def under(self, query: Query) -> list[Series]:
        """The series that suffixes of the query may name."""
        found = [one for prefix in query.prefixes for one in self.model.match(prefix)]
        return found or list(self.model.series.values())

    def suffix(self, query: Query) -> str:
        if self.random.random() < 0.08:
            return self.random.choice(["*", "nosuch", "s*", "d0.s1"][: 3 if query.by_device else 4])
        one = self.random.choice(self.under(query))
        prefix = self.random.choice(query.prefixes).split(".")
        rest = one.path.split(".")[len(prefix) :]
        return one.name if query.by_device or not rest else ".".join(rest)

    def kind_of(self, query: Query, suffix: str) -> set[str]:
        found = {one.kind for prefix in query.prefixes for one in self.model.match(f"{prefix}.{suffix}")}
        return found or {"INT32"}

    def items(self, query: Query) -> list[Item]:
        found = []
        for _ in range(self.random.choice([1, 1, 2, 3])):
            suffix = self.suffix(query)
            item = Item(suffix)
            if query.kind in ("aggregation", "window"):
                numbers = self.kind_of(query, suffix) <= set(NUMBERS)
                choice = AGGREGATES if numbers or self.random.random() < 0.05 else ANY_TYPE
                item.function = self.random.choice(choice)
            elif query.kind == "window fill":
                item.function = "last_value"
            elif query.kind == "udtf" and (not found or self.random.random() < 0.7):
                self.make_call(query, item)
            if query.kind in ("raw", "aggregation", "window", "last") and self.random.random() < 0.1:
                item.alias = f"n{len(found)}"
            found.append(item)
        if query.kind == "udtf" and not any(item.function for item in found):
            self.make_call(query, found[0])
        return found

    def make_call(self, query: Query, item: Item) -> None:
        kinds = self.kind_of(query, item.path)
        if kinds <= {"TEXT"}:
            choice: tuple[str, ...] = ("string_contains", "string_matches", "top_k", "bottom_k", "time_difference")
        elif kinds <= {"BOOLEAN"}:
            choice = ("time_difference",)
        else:
            choice = (*CELLWISE, *DELTAS, *DELTAS, "top_k", "bottom_k")
        item.function = self.random.choice(choice)
        if item.function in ("top_k", "bottom_k"):
            item.attributes = (("k", str(self.random.randint(1, 6))),)
        elif item.function == "string_contains":
            item.attributes = (("s", self.random.choice(["a", "b", "%"])),)
        elif item.function == "string_matches":
            item.attributes = (("regex", self.random.choice(["a.*", "[a-z]+", ".*b"])),)

    def where(self, query: Query) -> Any:
        shape = self.random.random()
        if shape < 0.3:
            return None
        if query.kind == "last":
            return Atom("time", self.random.choice([">", ">="]), [str(max(0, self.instant()))])
        if shape < 0.6:
            return self.time_condition()
        return self.tree(query, 2)

    def time_condition(self) -> Any:
        low, high = sorted((max(0, self.instant()), max(0, self.instant())))
        return self.random.choice(
            [
                Atom("time", self.random.choice([">", ">=", "<", "<=", "=", "!="]), [str(low)]),
                Both("and", [Atom("time", ">=", [str(low)]), Atom("time", "<", [str(high)])]),
                Both("or", [Atom("time", "<", [str(low)]), Atom("time", ">", [str(high)])]),
                Atom("time", self.random.choice(["in", "not in"]), [str(low), str(high), "10"]),
                Atom("time", self.random.choice([">", "<="]), [f"-{abs(low)}"]),
            ]
        )

    def tree(self, query: Query, depth: int) -> Any:
        shape = self.random.random()
        if depth and shape < 0.45:
            word = self.random.choice(["and", "or"])
            return Both(word, [self.tree(query, depth - 1) for _ in range(self.random.randint(2, 3))])
        if depth and shape < 0.6:
            return Both("not", [self.tree(query, depth - 1)])
        if shape < 0.75:
            return self.time_condition()
        return self.test(query)

    def test(self, query: Query) -> Atom:
        one = self.random.choice(self.under(query))
        suffix = self.suffix(query) if self.random.random() < 0.1 else self.named(query, one)
        kinds = self.kind_of(query, suffix)
        kind = sorted(kinds)[0]
        if kind == "TEXT":
            op = self.random.choice(["=", "!=", "in", "not in", "like", "regexp"])
            if op == "like":
                return Atom(suffix, op, [f"'{self.random.choice(PATTERNS)}'"])
            if op == "regexp":
                return Atom(suffix, op, [f"'{self.random.choice(REGEXES)}'"])
        else:
            op = self.random.choice([">", ">=", "<", "<=", "=", "!=", "in", "not in"])
        count = self.random.randint(1, 3) if op.endswith("in") else 1
        return Atom(suffix, op, [self.constant(kind, kinds) for _ in range(count)])

    def named(self, query: Query, one: Series) -> str:
        prefix = self.random.choice(query.prefixes).split(".")
        rest = one.path.split(".")[len(prefix) :]
        return one.name if query.by_device or not rest else ".".join(rest)

    def constant(self, kind: str, kinds: set[str]) -> str:
        stored = [value for one in self.model.series.values() if one.kind == kind for value in one.points.values()]
        if kind == "TEXT":
            return f"'{self.random.choice(TEXTS)}'"
        if kind == "BOOLEAN":
            return self.random.choice(["true", "false", "TRUE", "3"])
        if kinds & {"INT32", "INT64"}:
            whole = [value for value in stored if isinstance(value, int) and abs(value) < 1 << 31]
            return str(self.random.choice([*whole[:40], self.random.randint(-40, 40)]))
        finite = [value for value in stored if isinstance(value, float) and math.isfinite(value)]
        return repr(self.random.choice([*finite[:40], self.random.uniform(-40, 40)]))

    def group_by(self, fixed: bool) -> GroupBy:
        start = max(0, self.instant())
        left_open = self.random.random() < 0.3
        if not fixed and self.random.random() < 0.2:
            months, days = self.random.randint(1, 3), self.random.randint(1, 27)
            start = self.random.choice([0, 30 * DAY, 58 * DAY, 1_580_000_000_000]) + self.random.randint(0, DAY)
            end = start + self.random.randint(1, 400) * DAY
            shape = self.random.random()
            if shape < 0.5:
                return GroupBy(start, end, (months, 0), None, left_open)
            if shape < 0.75:
                return GroupBy(start, end, (months, 0), (months + self.random.randint(0, 2), 0), left_open)
            return GroupBy(start, end, (0, days * DAY), (months, 0), left_open)
        unit = self.random.choice([1, 1, 10, 1000, DAY])
        interval = self.random.randint(1, 30) * unit
        end = start + self.random.randint(1, 40) * interval + self.random.randint(0, interval - 1)
        step = None
        if not fixed and self.random.random() < 0.3:
            step = (0, interval + self.random.randint(0, 2 * interval))
        return GroupBy(start, end, (0, interval), step, left_open)

    def fills(self, window: bool) -> list[tuple[str, str, list[int], str]]:
        found = []
        for kind in self.random.sample(KINDS, self.random.randint(1, 4)):
            methods = ["previous", "previousUntilLast"]
            if not window and kind in NUMBERS:
                methods += ["linear", "linear", "value"]
            method = self.random.choice(methods)
            ranges = []
            if method != "value" and self.random.random() < 0.5:
                ranges = [self.random.choice([1, 10, 50, 1000, 3 * DAY]) for _ in range(2 if method == "linear" else 1)]
            value = self.random.choice(["3", "-7", "0"]) if method == "value" else ""
            found.append((kind, method, ranges, value))
        if window and self.random.random() < 0.3:
            return [("ALL", found[0][1], found[0][2], "")]
        return found
