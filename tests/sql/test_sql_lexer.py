"""The scanner against the rule itself: try every kind of token, take the longest, of equal ones the first."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotdb_cluster.errors import CallerError
from iotdb_cluster.sql import Duration, ParseContext, duration_of, time_of
from iotdb_cluster.sql.lexer import KEYWORDS, Source, StatementLexer

START = "A-Za-z0-9_/@#$%&+\u2e80-\u9fff"
SYMBOLS = {
    ",": "_COMMA", ".": "_DOT", "(": "_LPAR", ")": "_RPAR", "[": "_LSQUARE", "]": "_RSQUARE", ";": "_SEMICOLON",
    "*": "STAR", "-": "MINUS", "+": "PLUS", "=": "EQ", "==": "EQ", ">": "GT", ">=": "GE", "<": "LT", "<=": "LE",
    "!=": "NE", "<>": "NE", "!": "_NOT", "|": "_OR", "||": "_OR", "&": "_AND", "&&": "_AND",
}  # fmt: skip
RULES = [
    *((word, re.compile(word, re.IGNORECASE)) for word in sorted(KEYWORDS)),
    ("GLOBAL", re.compile("g", re.IGNORECASE)),
    *((name, re.compile(re.escape(text))) for text, name in SYMBOLS.items()),
    ("SINGLE_QUOTED", re.compile(r"'[^'\\]*'")),
    ("DOUBLE_QUOTED", re.compile(r'"[^"\\]*"')),
    ("NAN", re.compile("NaN")),
    ("INT", re.compile("[0-9]+")),
    ("EXPONENT", re.compile("[0-9]+[eE][+-]?[0-9]+")),
    ("DURATION", re.compile("(?:[0-9]+(?:mo|ms|us|ns|[ywdhms]))+", re.IGNORECASE)),
    (
        "DATETIME",
        re.compile(
            "[0-9]+[-/][0-9]+[-/][0-9]+(?:(?:[tT]|[ \t\r\n]+)[0-9]+:[0-9]+:[0-9]+(?:[.][0-9]+)?(?:[+-][0-9]+:[0-9]+)?)?"
        ),
    ),
    ("ID", re.compile(f"[{START}][{START}:-]*")),
]


def naive(text: str) -> list[tuple[str, str, int]] | None:
    tokens = []
    position = 0
    while position < len(text):
        if text[position] in " \t\r\n":
            position += 1
            continue
        best, best_name = 0, ""
        for name, rule in RULES:
            match = rule.match(text, position)
            if match and len(match[0]) > best:
                best, best_name = len(match[0]), name
        if not best:
            return None
        tokens.append((best_name, text[position : position + best], position))
        position += best
    return tokens


PIECES = st.sampled_from(
    [
        " ", " ", "\n", ",", ".", "(", ")", "*", "-", "+", "=", "<", ">", "!", "|", "&", "'a'", '"b.c"', "s1", "a", "Z",
        "1", "20", "1e5", "e", "E", "T", "t", ":", "/", "2021-01-02", "2021/1/2", "10:20:30", ".123", "+08:00", "mo",
        "1h", "y", "ms", "NaN", "nan", "g", "select", "TIME", "中", "@", "%", "?", "`", "_", "now", "int32", "[", "]",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join))
def test_longest_match(text: str) -> None:
    expected = naive(text)
    try:
        tokens = list(StatementLexer(None).lex(Source(text, ParseContext())))  # type: ignore[arg-type]
    except CallerError:
        assert expected is None
        return
    assert expected is not None
    found = [(token.type.lstrip("_").replace("LAST_AS_NAME", "LAST"), str(token), token.start_pos) for token in tokens]
    assert found == [(name.lstrip("_"), value, position) for name, value, position in expected]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("now()+1d", "NOW _LPAR _RPAR ID"),
        ("now() + 1d", "NOW _LPAR _RPAR PLUS DURATION"),
        ("now()-1d", "NOW _LPAR _RPAR MINUS DURATION"),
        ("now", "_NOW"),
        ("a-b", "ID"),
        ("s1<5&&s2>3", "ID LT ID GT INT"),
        ("2017/11/01 00:30:00", "DATETIME"),
        ("2017-11-01t00:30:00.5+08:00", "DATETIME"),
        ("2017-11-01T00:30:00Z", "ID"),
        ("2017-11-01T00:30:00.5Z", "DATETIME ID"),
        ("2017.11.01", "INT _DOT INT _DOT INT"),
        ("1.0e3", "INT _DOT EXPONENT"),
        (r"'a\'b' 'c\\'", "SINGLE_QUOTED SINGLE_QUOTED"),
        (r"'C:\'", "SINGLE_QUOTED"),
        (r"'C:\', b", "SINGLE_QUOTED _COMMA ID"),
        ("G GLOBAL gg", "_GLOBAL _GLOBAL ID"),
        ("SELECT LAST a", "_SELECT _LAST ID"),
        ("SELECT LAST FROM root", "_SELECT _LAST_AS_NAME _FROM ROOT"),
        ("SELECT TOP 3 LAST a", "_SELECT _TOP INT _LAST ID"),
        ("a LAST", "ID _LAST_AS_NAME"),
    ],
)
def test_traps(text: str, kinds: str) -> None:
    tokens = StatementLexer(None).lex(Source(text, ParseContext()))  # type: ignore[arg-type]
    assert " ".join(token.type for token in tokens) == kinds


# --- times ------------------------------------------------------------------------------------------------------------
@given(
    st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),
    st.integers(-18 * 60, 18 * 60),
    st.sampled_from("-/"),
    st.sampled_from("tT "),
    st.sampled_from([0, 3, 6]),
    st.booleans(),
)
def test_dates(local: datetime, minutes: int, separator: str, middle: str, digits: int, written: bool) -> None:
    zone = timezone(timedelta(minutes=minutes))
    text = local.strftime(f"%Y{separator}%m{separator}%d{middle}%H:%M:%S").zfill(19)
    if digits:
        text += f".{local.microsecond:06}"[: digits + 1]
    if written:
        text += f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    micros = (local.replace(tzinfo=zone) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    micros -= micros % 10 ** (6 - digits)
    context = ParseContext(UTC if written else zone, precision="us")
    assert time_of(text, context) == micros
    assert time_of(text, ParseContext(context.zone)) == micros // 1_000


UNITS_NS = {
    "y": 31_536_000 * 10**9, "w": 604_800 * 10**9, "d": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9,
    "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1,
}  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from([*UNITS_NS, "mo"])), min_size=1, max_size=5), st.booleans()
)
def test_durations(groups: list[tuple[int, str]], upper: bool) -> None:
    text = "".join(f"{count}{unit}" for count, unit in groups)
    text = text.upper() if upper else text
    for precision, tick in (("ms", 10**6), ("us", 10**3), ("ns", 1)):
        months = sum(count for count, unit in groups if unit == "mo")
        fixed = sum(count * UNITS_NS[unit] // tick for count, unit in groups if unit != "mo")
        total = fixed + months * 30 * UNITS_NS["d"] // tick
        if total < 2**63:
            assert duration_of(text, precision) == Duration(months, fixed, total)
        else:
            with pytest.raises(CallerError):
                duration_of(text, precision)
