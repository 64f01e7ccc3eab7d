"""Statements written from values read back as these values; the fast way of INSERT means what the grammar means."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.sql import (
    AGGREGATIONS,
    TIME,
    Aggregate,
    And,
    CompareOp,
    Comparison,
    Condition,
    Constant,
    Duration,
    FillMethod,
    GroupByTime,
    In,
    Insert,
    Like,
    Literal,
    LiteralKind,
    Not,
    Or,
    ParseContext,
    RawItem,
    Regexp,
    Select,
    SelectItem,
    Statement,
    TypeFill,
    Udtf,
    parse,
    parse_by_grammar,
)
from iotdb_cluster.sql.inserts import scan_insert

CONTEXT = ParseContext(now_ms=1_622_505_600_000)

# --- a writer of SELECT, the other way round --------------------------------------------------------------------------
node = st.sampled_from(
    ["s1", "S", "*", "d*", '"a.b"', "1h", "7", "-7", "true", "last", "limit", "x-y:z", "中文", "count"]
)
suffix_path = st.lists(node, min_size=1, max_size=3).map(".".join)
prefix = st.lists(node, max_size=3).map(lambda nodes: ".".join(["root", *nodes]))
alias = st.sampled_from(["one", "two2", "x-y"])
plain_node = node.filter(lambda text: not text.endswith("*"))
target = st.one_of(
    st.just(TIME), suffix_path, st.lists(plain_node, max_size=3).map(lambda nodes: ".".join(["root", *nodes]))
)
text_literal = st.sampled_from(["'x'", '"y"', r"'a\'b'", "''"]).map(lambda text: Literal(LiteralKind.STRING, text))
value_literal = st.one_of(
    st.integers(-(2**70), 2**70).map(lambda number: Literal(LiteralKind.INT, str(number))),
    st.sampled_from(["1.5", "-.5", "1.", "1e-5", "-2.5E+3"]).map(lambda text: Literal(LiteralKind.REAL, text)),
    st.sampled_from(["true", "FALSE"]).map(lambda text: Literal(LiteralKind.BOOLEAN, text)),
    st.just(Literal(LiteralKind.NAN, "NaN")),
    text_literal,
)
int64 = st.integers(-(2**63), 2**63 - 1)
time_literal = int64.map(lambda number: Literal(LiteralKind.INT, str(number)))


@st.composite
def atoms(draw: st.DrawFn) -> Condition:
    where = draw(target)
    literals = time_literal if where is TIME else value_literal
    if isinstance(where, str) and draw(st.integers(0, 3)) == 0:
        pattern = draw(text_literal)
        return Like(where, pattern) if draw(st.booleans()) else Regexp(where, pattern)
    if draw(st.integers(0, 3)) == 0:
        return In(where, tuple(draw(st.lists(literals, min_size=1, max_size=3))), draw(st.booleans()))
    return Comparison(where, draw(st.sampled_from(CompareOp)), draw(literals))


def _flat(kind: type[And] | type[Or], children: list[Condition]) -> Condition:
    merged: list[Condition] = []
    for child in children:
        merged.extend(child.children if isinstance(child, kind) else (child,))
    return kind(tuple(merged))


conditions: st.SearchStrategy[Condition] = st.recursive(
    atoms(),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda children: _flat(And, children)),
        st.lists(inner, min_size=2, max_size=3).map(lambda children: _flat(Or, children)),
    ),
    max_leaves=8,
)


def written(condition: Condition) -> str:
    match condition:
        case And(children):
            return " AND ".join(
                f"({written(child)})" if isinstance(child, Or) else written(child) for child in children
            )
        case Or(children):
            return " or ".join(written(child) for child in children)
        case Not(child):
            return f"NOT ({written(child)})"
        case Like(path, pattern):
            return f"{path} LIKE {pattern.text}"
        case Regexp(path, pattern):
            return f"{path} regexp {pattern.text}"
        case In(where, literals, negated):
            name = "time" if where is TIME else where
            return f"{name} {'NOT ' if negated else ''}IN ({', '.join(literal.text for literal in literals)})"
        case Comparison(where, op, literal):
            return f"{'TIMESTAMP' if where is TIME else where} {op.value} {literal.text}"


raw = suffix_path.map(RawItem)
aggregate = st.tuples(st.sampled_from(sorted(AGGREGATIONS)), st.booleans(), suffix_path).map(
    lambda parts: Aggregate(parts[0], parts[0].upper() if parts[1] else parts[0], parts[2])
)
udtf = st.builds(
    Udtf,
    st.sampled_from(["sin", "Top_K"]),
    st.lists(suffix_path, min_size=1, max_size=3).map(tuple),
    st.lists(st.tuples(st.sampled_from("kl"), st.sampled_from(["", "3", "a b"])), max_size=2).map(tuple),
)
constant = st.sampled_from(["'x'", "''"]).map(Constant)


def columns(form: st.SearchStrategy[object], named: bool) -> st.SearchStrategy[tuple[SelectItem, ...]]:
    item = st.builds(SelectItem, form, st.none() | alias if named else st.none())
    return st.lists(item, min_size=1, max_size=4).map(tuple)


def written_item(item: SelectItem) -> str:
    match item.form:
        case RawItem(path):
            text = path
        case Aggregate(_, name, path):
            text = f"{name}({path})"
        case Udtf(name, paths, attributes):
            arguments = [*paths, *(f"'{key}'=\"{value}\"" for key, value in attributes)]
            text = f"{name}({', '.join(arguments)})"
        case Constant(text):
            pass
    return text if item.alias is None else f"{text} AS {item.alias}"


@st.composite
def selects(draw: st.DrawFn) -> tuple[str, Select]:
    kind = draw(
        st.sampled_from(["raw", "mixed", "last", "aggregate", "calls", "by_time", "by_level", "by_fill", "fill"])
    )
    fields: dict[str, object] = {}
    text = "select "
    if kind == "last":
        text += "Last "
        fields["last"] = True
    if kind in ("aggregate", "by_time", "by_level"):
        items = draw(columns(aggregate, named=True))
    elif kind == "by_fill":
        items = draw(columns(suffix_path.map(lambda path: Aggregate("last_value", "last_value", path)), named=False))
    elif kind == "calls":
        items = draw(columns(udtf | aggregate, named=False))
    elif kind == "mixed":
        items = draw(columns(raw | udtf | constant, named=False))
    else:
        items = draw(columns(raw, named=True))
    from_ = tuple(draw(st.lists(prefix, min_size=1, max_size=3)))
    text += f"{', '.join(map(written_item, items))} FROM {', '.join(from_)}"
    if kind == "fill":
        where: Condition | None = Comparison(TIME, CompareOp.EQ, draw(time_literal))
    else:
        where = draw(st.none() | conditions)
    if where is not None:
        text += f" where {written(where)}"
    for clause, more in draw(specials(kind)):
        text += clause
        fields |= more
    return text, Select(items=items, from_=from_, where=where, **fields)  # type: ignore[arg-type]


@st.composite
def specials(draw: st.DrawFn, kind: str) -> list[tuple[str, dict[str, object]]]:
    clauses: list[tuple[str, dict[str, object]]] = []
    if kind in ("by_time", "by_fill"):
        start, end = sorted(draw(st.lists(st.integers(0, 10**12), min_size=2, max_size=2, unique=True)))
        left_open = draw(st.booleans())
        window = f"({start}, {end}]" if left_open else f"[{start}, {end})"
        day, month = Duration(0, 86_400_000, 86_400_000), Duration(1, 0, 2_592_000_000)
        stepped = kind == "by_time" and draw(st.booleans())
        group = GroupByTime(start, end, day, month if stepped else day, left_open)
        clauses.append((f" GROUP BY ({window}, 1d{', 1mo' if stepped else ''})", {"group_by": group}))
    levels = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    if kind == "by_level":
        clauses.append((f" GROUP BY LEVEL = {', '.join(map(str, levels))}", {"levels": levels}))
    elif kind == "by_time" and draw(st.booleans()):
        clauses.append((f", LEVEL={', '.join(map(str, levels))}", {"levels": levels}))
    if kind in ("by_fill", "fill"):
        fill = (TypeFill(None, FillMethod.PREVIOUS), TypeFill(DataType.INT32, FillMethod.PREVIOUSUNTILLAST, 1_000))
        clauses.append((" FILL (ALL[previous], INT32[PREVIOUSUNTILLAST, 1s])", {"fill": fill}))
    if kind != "fill":
        descending = draw(st.sampled_from(["", " ASC", " DESC"]))
        if draw(st.booleans()):
            clauses.append((f" order by time{descending}", {"ordered": True, "descending": descending == " DESC"}))
        if draw(st.booleans()):
            scope = draw(st.sampled_from(["any", "ALL"]))
            clauses.append((f" WITHOUT NULL {scope}", {"without_null": scope.lower()}))
        if draw(st.booleans()):
            offset = draw(st.integers(0, 2**31 - 1))
            clauses.append((f" OFFSET {offset} LIMIT 3", {"limit": 3, "offset": offset}))
    if draw(st.booleans()):
        clauses.append((" SLIMIT 4 SOFFSET 5", {"slimit": 4, "soffset": 5}))
    layout = draw(st.sampled_from(["", " ALIGN BY DEVICE", " GROUP BY DEVICE", " DISABLE ALIGN"]))
    if layout:
        clauses.append((layout, {"disable_align" if "DISABLE" in layout else "align_by_device": True}))
    return clauses


@settings(max_examples=300)
@given(selects())
def test_select_reads_back(case: tuple[str, Select]) -> None:
    text, expected = case
    assert parse_by_grammar(text, CONTEXT) == expected


# --- insert -----------------------------------------------------------------------------------------------------------
PIECES = [
    "s1", "S_2", "time", "order", "NaN", "nan", "root", "null", "1h", "7", '"a.b"', "d-1", "g", "true",
    "FALSE", "1.5", "-1", "- 1", "1.", ".5", "1e5", "-2.5e-3", "1.e5", "1e", "'x'", "'a,b)'", '"q"', "''",
    r"'\'", "'it''s'", "now()", "2021-01-01", "abc", "9223372036854775807", "9223372036854775808",
    "00005", "-0.0", "", "中文", "1.5e+3", "5f", "1.5.6", "1..5",
    "1.5e5e5", "1e5.5", "--1", "+1", "1 2", "'a' 'b'", "a.b", "d*", "(1)", "TRUE1", "NaN1", "1.5 e5", "1 . 5",
]  # fmt: skip
piece = st.sampled_from(PIECES)
good_name = st.sampled_from(["s1", "S_2", "time", "now", "_x", "g"])
good_value = st.sampled_from(["1", "-1.5", "1.", "1e5", "2.5E-3", "'x y'", '"q"', "TRUE", "NaN", "''"])
blank = st.sampled_from(["", "", "", " ", "\n", "\t "])


@st.composite
def inserts(draw: st.DrawFn) -> str:
    names = draw(st.lists(good_name | piece, min_size=1, max_size=4))
    values = draw(st.lists(good_value, min_size=len(names), max_size=len(names)))
    if draw(st.booleans()):
        values = draw(st.lists(good_value | piece, min_size=1, max_size=4))
    device = draw(st.sampled_from(["root.sg.d1", "root.a", "root", "ROOT.a", "root.order.d", "root.d*", "root.7.x"]))
    time = draw(
        st.sampled_from(["1", "0", "9223372036854775807", "9223372036854775808", "-1", "now()", "2021-01-01", "1.5"])
    )
    words = ["INSERT ", "INTO ", device, "(", draw(st.sampled_from(["time", "TIMESTAMP", "s0"]))]
    for name in names:
        words += [",", name]
    words += [")", draw(st.sampled_from([" VALUES", "values"])), "(", time]
    for value in values:
        words += [",", value]
    words += [")", draw(st.sampled_from(["", ";", ";;", " x"]))]
    return "".join(word + draw(blank) for word in words)


def outcome(text: str, *, fast: bool) -> Statement | Status:
    try:
        return parse(text, CONTEXT) if fast else parse_by_grammar(text, CONTEXT)
    except CallerError as error:
        return error.code


@pytest.mark.parametrize("text", PIECES)
def test_each_piece_alone(text: str) -> None:
    for whole in (
        f"INSERT INTO root.sg(time, s1) VALUES (1, {text})",
        f"INSERT INTO root.sg(time, {text}) VALUES (1, 1)",
        f"INSERT INTO root.sg(time, s1, s2) VALUES ({text}, 1, 2)",
        f"INSERT INTO root.{text}.d(time, s1) VALUES (1, 1)",
        f"INSERT INTO root.sg({text}, s1) VALUES (1, 1)",
        f"INSERT INTO root.sg(time, s1) VALUES (1, 1){text}",
    ):
        assert outcome(whole, fast=True) == outcome(whole, fast=False), whole


@settings(max_examples=500)
@given(inserts())
def test_the_fast_way_means_the_same(text: str) -> None:
    expected = outcome(text, fast=False)
    assert outcome(text, fast=True) == expected
    scanned = scan_insert(text)
    if scanned is not None:
        assert scanned == expected


@given(
    st.lists(st.tuples(good_name, good_value), min_size=1, max_size=50),
    st.integers(0, 2**63 - 1),
    st.sampled_from(["root.sg.d1", "root.a"]),
)
def test_plain_inserts_take_the_fast_way(pairs: list[tuple[str, str]], time: int, device: str) -> None:
    names = tuple(name for name, _ in pairs)
    values = tuple(value for _, value in pairs)
    text = f"insert into {device}(time, {', '.join(names)}) values ({time}, {', '.join(values)})"
    expected = Insert(device, time, names, values)
    assert scan_insert(text) == expected
    assert parse_by_grammar(text, CONTEXT) == expected
