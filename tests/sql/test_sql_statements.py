"""Statements one by one: what parses, what is refused and how, and what the parsed value holds."""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from iotdb_cluster.columns import Compressor, DataType, Encoding
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.sql import (
    TIME,
    Aggregate,
    AlterRename,
    AlterTimeseries,
    AlterUpsert,
    And,
    CompareOp,
    Comparison,
    Constant,
    CountNodes,
    CountTimeseries,
    CreateTimeseries,
    CreateTrigger,
    Delete,
    Duration,
    FillMethod,
    Flush,
    GrantRoleToUser,
    GroupByTime,
    In,
    Insert,
    Like,
    ListUserPrivileges,
    Literal,
    LiteralKind,
    LoadFiles,
    Not,
    Or,
    ParseContext,
    PrivilegeChange,
    RawItem,
    Select,
    SelectItem,
    ShowDevices,
    ShowTimeseries,
    ShowTtl,
    Statement,
    StatementCache,
    TypeFill,
    Udtf,
    Unsupported,
    is_full_path,
    parse,
    parse_by_grammar,
)
from iotdb_cluster.sql.parser import Builder

DAY = 86_400_000


def lines_of(name: str) -> list[str]:
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line]


def refusal(text: str, context: ParseContext) -> CallerError:
    with pytest.raises(CallerError) as caught:
        parse(text, context)
    return caught.value


def select(text: str, context: ParseContext) -> Select:
    statement = parse(text, context)
    assert isinstance(statement, Select)
    return statement


def literal(text: str, kind: LiteralKind = LiteralKind.INT) -> Literal:
    return Literal(kind, text)


# --- the lists --------------------------------------------------------------------------------------------------------
def test_every_listed_statement_parses(statements_ok: list[str], context: ParseContext) -> None:
    queries = ("select", "show", "count", "list")
    for text in statements_ok:
        statement = parse(text, context)
        assert statement == parse_by_grammar(text, context), text
        hash(statement)
        first = text.removeprefix("DEBUG ").split()[0].lower()
        if not isinstance(statement, Unsupported):
            assert statement.is_query == (first in queries), text
            assert statement.operation, text
            assert only_plain_values(statement), text


def only_plain_values(value: Any) -> bool:
    """No token of the parser must stay inside a statement: it would compare, hash and pickle differently."""
    if dataclasses.is_dataclass(value):
        return all(only_plain_values(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, tuple):
        return all(only_plain_values(child) for child in value)
    return not isinstance(value, str) or type(value) is str


@pytest.mark.parametrize("text", lines_of("statements_401.txt"))
def test_errors_of_syntax(text: str, context: ParseContext) -> None:
    error = refusal(text, context)
    assert error.code is Status.SQL_PARSE_ERROR
    assert re.match(r"Error occurred while parsing SQL to physical plan: line \d+:\d+ \S", error.message)


@pytest.mark.parametrize("text", lines_of("statements_303.txt"))
def test_errors_of_meaning(text: str, context: ParseContext) -> None:
    error = refusal(text, context)
    assert error.code is Status.METADATA_ERROR
    assert error.message.startswith("Check metadata error: ")


def test_keywords_in_any_case(statements_ok: list[str], context: ParseContext) -> None:
    for text in statements_ok:
        if re.fullmatch(r"[A-Z ]+", text):
            assert parse(text.lower(), context) == parse(text, context)


def test_every_rule_of_the_grammar_has_its_method() -> None:
    grammar = files("iotdb_cluster.sql").joinpath("grammar.lark").read_text(encoding="utf-8")
    builder = Builder()
    rules = re.findall(r"^([!?]*)([a-z]\w*):", grammar, re.MULTILINE)
    aliases = re.findall(r"-> (\w+)", grammar)
    for name in [name for marks, name in rules if "?" not in marks] + aliases:
        if name != "full_path" and not re.search(rf"^{name}: .*->", grammar, re.MULTILINE):
            assert hasattr(builder, name), name


# --- messages ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1:0 mismatched input '<EOF>' expecting {"),
        ("SELECT s1\n  FROM sg", "line 2:7 mismatched input 'sg' expecting ROOT"),
        ("SELECT s1 FROM", "line 1:14 mismatched input '<EOF>' expecting ROOT"),
        ("SET STORAGE GROUP root.a", "line 1:18 mismatched input 'root' expecting TO"),
        ("SHOW VERSION; SHOW VERSION", "line 1:14 mismatched input 'SHOW' expecting <EOF>"),
        ("INSERT INTO root.a(time, `s`) VALUES (1, 1)", "line 1:25 token recognition error at: '`s`"),
        ("SELECT s1 FROM root.a WHERE time = 5 x", "line 1:37 mismatched input 'x' expecting"),
    ],
)
def test_syntax_messages(text: str, message: str, context: ParseContext) -> None:
    assert f"parsing SQL to physical plan: {message}" in refusal(text, context).message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT s FROM root.a LIMIT 0", "LIMIT <N>: N should be greater than 0."),
        ("SELECT s FROM root.a LIMIT 2147483648", "Out of range. LIMIT <N>: N should be Int32."),
        (
            "SELECT s FROM root.a LIMIT 1 OFFSET 2147483648",
            "Out of range. OFFSET <OFFSETValue>: OFFSETValue should be Int32.",
        ),
        ("SELECT s FROM root.a SLIMIT 0", "SLIMIT <SN>: SN should be greater than 0."),
        (
            "SELECT s FROM root.a SLIMIT 1 SOFFSET 2147483648",
            "Out of range. SOFFSET <SOFFSETValue>: SOFFSETValue should be Int32.",
        ),
        ("SELECT s FROM root.a WHERE s > 2021-01-01", "Unsupported type: [s]. Date can only be used to time"),
        ("DELETE FROM root.a WHERE time > 5 and time < 3", "Invalid delete range: [6, 2]"),
        (
            "INSERT INTO root.a(time, x, y) VALUES (1, 2)",
            "the measurementList's size 2 is not consistent with the valueList's size 1",
        ),
        (
            "SELECT s FROM root.a WHERE time > 2021-13-01",
            "Input time format 2021-13-01 error. Input like yyyy-MM-dd HH:mm:ss, yyyy-MM-ddTHH:mm:ss or refer to user "
            "document for more info.",
        ),
    ],
)
def test_meaning_messages(text: str, message: str, context: ParseContext) -> None:
    assert refusal(text, context).message == f"Check metadata error: {message}"


def test_syntax_is_told_before_meaning(context: ParseContext) -> None:
    assert refusal("SELECT s FROM root.a LIMIT 0 LIMIT 1", context).code is Status.SQL_PARSE_ERROR
    assert refusal("SELECT s FROM root.a LIMIT 0; x", context).code is Status.SQL_PARSE_ERROR


# --- values -----------------------------------------------------------------------------------------------------------
def test_select_values(context: ParseContext) -> None:
    statement = select(
        "SELECT COUNT(s1), max_value(a.b) AS most FROM root.a, root.b.* WHERE time >= 10 AND (s = 'x' OR t <> -1.5) "
        "GROUP BY ([0, 100), 10ms, 1mo), LEVEL = 1, 3 ORDER BY TIME DESC LIMIT 5 SLIMIT 2 SOFFSET 1",
        context,
    )
    assert statement == Select(
        items=(
            SelectItem(Aggregate("count", "COUNT", "s1")),
            SelectItem(Aggregate("max_value", "max_value", "a.b"), "most"),
        ),
        from_=("root.a", "root.b.*"),
        where=And(
            (
                Comparison(TIME, CompareOp.GE, literal("10")),
                Or(
                    (
                        Comparison("s", CompareOp.EQ, literal("'x'", LiteralKind.STRING)),
                        Comparison("t", CompareOp.NE, literal("-1.5", LiteralKind.REAL)),
                    )
                ),
            )
        ),
        group_by=GroupByTime(0, 100, Duration(0, 10, 10), Duration(1, 0, 2_592_000_000), False),
        levels=(1, 3),
        ordered=True,
        descending=True,
        limit=5,
        slimit=2,
        soffset=1,
    )
    assert statement.operation == "GROUPBYTIME"


def test_forms_of_columns(context: ParseContext) -> None:
    statement = select("SELECT s1, \"a.b\".c, 'x', f(a, b.*, 'k'=\"v\", \"l\"='') FROM root.a", context)
    assert [item.form for item in statement.items] == [
        RawItem("s1"),
        RawItem('"a.b".c'),
        Constant("'x'"),
        Udtf("f", ("a", "b.*"), (("k", "v"), ("l", ""))),
    ]
    assert statement.operation == "UDTF"
    last = select("SELECT LAST s1, s2 AS b FROM root.a ORDER BY TIME ASC", context)
    assert last.last
    assert last.ordered
    assert not last.descending
    assert last.items == (SelectItem(RawItem("s1")), SelectItem(RawItem("s2"), "b"))
    assert select("SELECT last FROM root.a", context).items == (SelectItem(RawItem("last")),)
    assert select("SELECT LAST from FROM root.a", context).items == (SelectItem(RawItem("from")),)


def test_conditions(context: ParseContext) -> None:
    where = select(
        "SELECT s FROM root.a WHERE NOT (a LIKE 'x%' AND root.b.c IN (1, 2)) AND Time NOT IN (5) AND "
        "(timestamp = 2021-06-01 AND s >= true)",
        context,
    ).where
    one, two, five = literal("1"), literal("2"), literal("5")
    june = Literal(LiteralKind.DATE, "1622505600000", 1_622_505_600_000)
    assert where == And(
        (
            Not(And((Like("a", literal("'x%'", LiteralKind.STRING)), In("root.b.c", (one, two), False)))),
            In(TIME, (five,), True),
            Comparison(TIME, CompareOp.EQ, june),
            Comparison("s", CompareOp.GE, literal("true", LiteralKind.BOOLEAN)),
        )
    )
    assert is_full_path("root.b.c")
    assert not is_full_path("rooty.b")


def test_fill_values(context: ParseContext) -> None:
    text = "SELECT s FROM root.a WHERE time = 7 FILL (INT32[LINEAR, 1s, 2s], ALL[previous, 1mo], TEXT['x'])"
    statement = select(text, context)
    assert statement.fill == (
        TypeFill(DataType.INT32, FillMethod.LINEAR, 1_000, 2_000),
        TypeFill(None, FillMethod.PREVIOUS, 2_592_000_000),
        TypeFill(DataType.TEXT, FillMethod.VALUE, value=literal("'x'", LiteralKind.STRING)),
    )
    assert statement.operation == "FILL"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DELETE FROM root.a, root.b", Delete(("root.a", "root.b"), INT64_MIN, INT64_MAX)),
        ("DELETE FROM root.a WHERE time > 5", Delete(("root.a",), 6, INT64_MAX)),
        ("DELETE FROM root.a WHERE time >= 5 AND time < 9", Delete(("root.a",), 5, 8)),
        ("DELETE FROM root.a WHERE (time <= -5)", Delete(("root.a",), INT64_MIN, -5)),
        ("DELETE FROM root.a WHERE time = 1970-01-02", Delete(("root.a",), 86_400_000, 86_400_000)),
        ("INSERT INTO root.a(time, s) VALUES (1970-01-02, 1970-01-01 + 1s)", Insert("root.a", DAY, ("s",), ("1000",))),
        ("INSERT INTO root.a(TIME, s) VALUES (now(), NaN)", Insert("root.a", 1_622_505_600_000, ("s",), ("NaN",))),
        (
            "CREATE TIMESERIES root.a.b(c) WITH DATATYPE=float, ENCODING=rle, COMPRESSION=lz4, p=-1.50 "
            "TAGS(t='x y') ATTRIBUTES(u=v, w=2021-01-01)",
            CreateTimeseries(
                "root.a.b", DataType.FLOAT, Encoding.RLE, Compressor.LZ4, "c",
                (("p", "-1.50"),), (("t", "x y"),), (("u", "v"), ("w", "2021-01-01")),
            ),
        ),
        ("ALTER TIMESERIES root.a.b RENAME x TO y", AlterTimeseries("root.a.b", AlterRename("x", "y"))),
        (
            "ALTER TIMESERIES root.a UPSERT ALIAS=x TAGS(a=b)",
            AlterTimeseries("root.a", AlterUpsert("x", (("a", "b"),), ())),
        ),
        ("SHOW ALL TTL", ShowTtl(None)),
        ("SHOW LATEST TIMESERIES WHERE k CONTAINS 'v' LIMIT 2", ShowTimeseries("root", ("k", "v"), True, True, 2, 0)),
        ("SHOW DEVICES root.a WITH STORAGE GROUP OFFSET 1 LIMIT 2", ShowDevices("root.a", True, 2, 1)),
        ("COUNT TIMESERIES root.a.* GROUP BY LEVEL = 2", CountTimeseries("root.a.*", 2)),
        ("COUNT TIMESERIES GROUP BY LEVEL = 2", CountTimeseries("root", 2)),
        ("COUNT NODES root.a LEVEL = 2", CountNodes("root.a", 2)),
        ("GRANT ROLE r PRIVILEGES 'A', \"b\" ON root.x", PrivilegeChange(True, True, "r", ("A", "b"), "root.x")),
        ("GRANT r TO u", GrantRoleToUser("r", "u")),
        ("LIST PRIVILEGES USER root ON root.a", ListUserPrivileges("root", "root.a")),
        ("FLUSH root.a, root.b FALSE", Flush(("root.a", "root.b"), False)),
        ("FLUSH TRUE", Flush((), True)),
        ("LOAD 'f' SGLEVEL=2, VERIFY=FALSE", LoadFiles("f", True, 2, False)),
        (
            "CREATE TRIGGER t BEFORE INSERT ON root.a AS 'c' WITH ('k'='v')",
            CreateTrigger("t", True, "root.a", "c", (("k", "v"),)),
        ),
    ],
)  # fmt: skip
def test_statement_values(text: str, expected: Statement, context: ParseContext) -> None:
    assert parse(text, context) == expected
    assert parse_by_grammar(f"  debug\n{text} ;", context) == expected


def test_paths_keep_their_text(context: ParseContext) -> None:
    path = 'root.d*.*.-5.1h30m.1e5."x.y".limit.a-b:c.a[i]b.2021-01-01.中文.g'
    assert select(f"SELECT s FROM {path}", context).from_ == (path,)
    assert select("SELECT s FROM ROOT . a . now()", context).from_ == ("ROOT.a.now()",)


def test_operations(context: ParseContext) -> None:
    operations = {
        "INSERT INTO root.a(time, s) VALUES (1, 1)": "INSERT",
        "SELECT s FROM root.a": "QUERY",
        "SELECT count(s) FROM root.a": "AGGREGATION",
        "SELECT last_value(s) FROM root.a GROUP BY ([0, 9), 1ms) FILL (ALL[PREVIOUS])": "GROUP_BY_FILL",
        "REVOKE USER u PRIVILEGES 'A' ON root": "REVOKE_USER_PRIVILEGE",
        "SET TTL TO root.a 5": "TTL",
        "FULL MERGE": "FULL_MERGE",
        "DROP INDEX i ON root.a": "DROP_INDEX",
    }
    for text, operation in operations.items():
        assert parse(text, context).operation == operation


def test_unsupported_statements_carry_their_answer(context: ParseContext) -> None:
    statement = parse("SELECT s FROM root.a WHERE s LIKE (1, 2)", context)
    assert isinstance(statement, Unsupported)
    assert statement.code is Status.QUERY_PROCESS_ERROR
    assert statement.message == "Error occurred in query process: Query index hasn't been supported yet"


# --- the cache --------------------------------------------------------------------------------------------------------
def test_cache_knows_what_a_meaning_depends_on() -> None:
    cache = StatementCache(entries_max=3)
    utc = ParseContext(now_ms=5)
    east = ParseContext(timezone(timedelta(hours=8)), now_ms=5)
    nanos = ParseContext(now_ms=5, precision="ns")

    def time_of(text: str, context: ParseContext) -> int | None:
        where = cache.parse(f"SELECT s FROM root.a WHERE time = {text}", context).where  # type: ignore[attr-defined]
        assert isinstance(where, Comparison)
        return where.literal.time

    assert time_of("1970-01-02", utc) == 86_400_000
    assert time_of("1970-01-02", utc) == 86_400_000
    assert time_of("1970-01-02", east) == 57_600_000
    assert time_of("1970-01-02", nanos) == 86_400_000_000_000
    assert time_of("now()", utc) == 5
    assert time_of("now()", ParseContext(now_ms=6)) == 6
    assert time_of("now() + 2ms", nanos) == 7_000_000
    assert cache.parse("SELECT s FROM root.a", utc) is cache.parse("SELECT s FROM root.a", east)
    for number in range(10):
        cache.parse(f"SELECT s{number} FROM root.a", utc)
    assert len(cache) == 3


def test_a_zone_counts_with_its_offset_of_now() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    winter = ParseContext(berlin, now_ms=1_610_000_000_000)
    summer = ParseContext(berlin, now_ms=1_625_000_000_000)
    text = "DELETE FROM root.a WHERE time = 2021-04-01"
    midnight = 1_617_235_200_000
    assert parse(text, winter) == Delete(("root.a",), midnight - 3_600_000, midnight - 3_600_000)
    assert parse(text, summer) == Delete(("root.a",), midnight - 7_200_000, midnight - 7_200_000)
