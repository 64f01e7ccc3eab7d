"""Whatever the text: a statement, or CallerError with a message, and in bounded time."""

from __future__ import annotations

import random
import re
import sys
import time
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import STATEMENT_CHARS_MAX, STATEMENT_DEPTH_MAX
from iotdb_cluster.sql import ParseContext, Statement, parse_by_grammar

CODES = (Status.SQL_PARSE_ERROR, Status.METADATA_ERROR)
CONTEXT = ParseContext()
SECONDS_MAX = 8.0  # the slowest takes about 0.5 s on an idle core


def answered(text: str) -> Status | None:
    outcome: Statement | CallerError
    try:
        outcome = parse_by_grammar(text, CONTEXT)
    except CallerError as error:
        outcome = error
    if isinstance(outcome, CallerError):
        assert outcome.code in CODES
        assert 0 < len(outcome.message) < 1_000
        return outcome.code
    assert isinstance(outcome, Statement)
    hash(outcome)
    return None


@given(st.binary(max_size=200))
def test_bytes(data: bytes) -> None:
    answered(data.decode("utf-8", errors="replace"))
    answered(data.decode("latin-1"))


@given(st.text(alphabet=st.sampled_from(" \n'\"\\()[].,;*-+=<>!|&0123456789aeghmnorst:/T"), max_size=60))
def test_syntax_characters(text: str) -> None:
    answered(text)
    answered("SELECT " + text)
    answered("SELECT s FROM root.a WHERE " + text)


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_mutated_statements(statements_ok: list[str], seed: int) -> None:
    chance = random.Random(seed)
    pieces = [re.findall(r"\s+|\w+|.", text) for text in statements_ok]
    for words in chance.sample(pieces, 150):
        changed = list(words)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(changed))
            match chance.randrange(5):
                case 0 if len(changed) > 1:
                    del changed[place]
                case 1:
                    changed.insert(place, changed[chance.randrange(len(changed))])
                case 2:
                    changed[place] = chance.choice(chance.choice(pieces))
                case 3:
                    changed.insert(place, chr(chance.choice((0, 32, 39, 96, 0x4E2D, chance.randrange(1, 0xD000)))))
                case _:
                    changed = changed[: place + 1] + chance.choice(pieces)[-5:]
        answered("".join(changed))


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a FROM root.a WHERE " + "(" * 1_000_000,
        "SELECT a FROM root.a WHERE " + "NOT (" * 500_000 + "a > 1" + ")" * 500_000,
        "SELECT a FROM root.a WHERE a IN " + "(" * 1_000_000,
        "SELECT " + "f(" * 1_000_000,
        "(" * 1_000_000,
        "SELECT '" + "\\'" * 1_000_000,
        "'\\" * 1_000_000,
        '"' * 1_000_001,
        "1d" * 2_000_000,
        "SELECT a FROM root.a WHERE time > now() " + "+ 1d " * 300_000,
        "SELECT a FROM root.a WHERE time > " + "1-" * 2_000_000,
        "SELECT a FROM root.a WHERE time > " + "1" * 4_000_000,
        "SELECT a FROM root.a WHERE time > 1-1-" + "1" * 4_000_000,
        "SELECT a FROM root.a WHERE " + "b" * 4_000_000 + " > 2021-01-01",
        "SELECT a FROM root.a WHERE time > '" + "b" * 4_000_000 + "'",
        "SELECT a FROM root.a LIMIT " + "9" * 4_000_000,
        "SELECT count(a) FROM root.a GROUP BY ([0, 5), " + "9" * 4_000_000 + "d)",
        "SELECT a FROM root" + ".a" * 2_000_000,
        "SELECT " + ", ".join(["a"] * 1_000_000) + " FROM root.a",
        "SELECT a FROM root.a WHERE " + " or ".join(["a > 1"] * 300_000),
        "INSERT INTO root.a(time" + ", a" * 600_000 + ") VALUES (1" + ", 1" * 600_000,
        "SELECT LAST " * 300_000,
        "LAST " * 500_000,
        " " * 4_000_000,
        "\n" * 4_000_000 + "x",
        "x" * (STATEMENT_CHARS_MAX + 1),
    ],
    ids=lambda text: text[:40].strip(),
)
def test_megabytes(text: str) -> None:
    begin = time.monotonic()
    assert answered(text) in CODES
    assert time.monotonic() - begin < SECONDS_MAX


def test_nesting_up_to_the_bound_and_beyond() -> None:
    deep = STATEMENT_DEPTH_MAX
    for opening in ("(", "NOT (", "a > 1 AND (", "a > 1 OR (b > 2 AND NOT ("):
        count = deep // opening.count("(")
        parens = opening.count("(") * count
        inside = f"SELECT a FROM root.a WHERE {opening * count}x > 1{')' * parens}"
        assert answered(inside) is None
        more = (deep + 1) // opening.count("(") + 1
        beyond = f"SELECT a FROM root.a WHERE {opening * more}x > 1{')' * (opening.count('(') * more)}"
        assert answered(beyond) is Status.SQL_PARSE_ERROR


def test_the_bound_is_on_depth_not_on_number() -> None:
    assert answered("SELECT a FROM root.a WHERE " + " OR ".join(["(a > 1)"] * (2 * STATEMENT_DEPTH_MAX))) is None


def test_deep_statements_need_no_deep_stack() -> None:
    text = f"SELECT a FROM root.a WHERE {'NOT (' * STATEMENT_DEPTH_MAX}x > 1{')' * STATEMENT_DEPTH_MAX}"
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len_of_stack() + 60)
        parse_by_grammar(text, CONTEXT)
    finally:
        sys.setrecursionlimit(limit)


def len_of_stack() -> int:
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth
