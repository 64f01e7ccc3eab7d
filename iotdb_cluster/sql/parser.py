"""From text to statement: a fast way for plain INSERTs, a cache, and the grammar."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark
from lark.exceptions import UnexpectedToken

from iotdb_cluster.errors import CallerError, check
from iotdb_cluster.limits import STATEMENT_CACHE_CHARS_MAX, STATEMENT_CACHE_ENTRIES_MAX, STATEMENT_CHARS_MAX
from iotdb_cluster.sql.inserts import scan_insert
from iotdb_cluster.sql.lexer import TERMINALS, Source, StatementLexer, shown, syntax_error
from iotdb_cluster.sql.rules_select import SelectRules
from iotdb_cluster.sql.rules_statements import StatementRules
from iotdb_cluster.sql.rules_values import ValueRules
from iotdb_cluster.sql.statements import Statement
from iotdb_cluster.sql.times import ParseContext

__all__ = ["StatementCache", "parse", "parse_by_grammar", "warm_up"]

# Read at import: the first statement may be parsed on an event loop, where no file is opened.
_GRAMMAR = files("iotdb_cluster.sql").joinpath("grammar.lark").read_text(encoding="utf-8")
_EXPECTED_SHOWN_MAX = 16
_SIGNS = {
    "_COMMA": "','",
    "_DOT": "'.'",
    "_LPAR": "'('",
    "_RPAR": "')'",
    "_LSQUARE": "'['",
    "_RSQUARE": "']'",
    "_SEMICOLON": "';'",
    "STAR": "'*'",
    "MINUS": "'-'",
    "PLUS": "'+'",
    "EQ": "OPERATOR_EQ",
    "GT": "'>'",
    "GE": "'>='",
    "LT": "'<'",
    "LE": "'<='",
    "NE": "OPERATOR_NEQ",
    "_AND": "OPERATOR_AND",
    "_OR": "OPERATOR_OR",
    "_NOT": "OPERATOR_NOT",
    "_IN": "OPERATOR_IN",
    "_CONTAINS": "OPERATOR_CONTAINS",
    "_LAST_AS_NAME": "LAST",
    "NAN": "NaN",
    "SINGLE_QUOTED": "SINGLE_QUOTE_STRING_LITERAL",
    "DOUBLE_QUOTED": "DOUBLE_QUOTE_STRING_LITERAL",
    "$END": "<EOF>",
}


def _soft(rule: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    """The rule as lark calls it. An error of meaning becomes the rule's value and thus the statement's.

    A text that is both wrong in meaning and, further on, in syntax is answered with the error of syntax: so what is
    found while the parser is still reading waits until it has read all.
    """

    def call(children: list[Any]) -> Any:
        for child in children:
            if isinstance(child, CallerError):
                return child
        try:
            return rule(*children)
        except CallerError as error:
            return error

    return call


class Builder:
    """What lark calls at the end of each rule: the methods of the rule classes, by name."""

    def __init__(self) -> None:
        self.start: Callable[[list[Any]], Any] = lambda children: children[0]
        for rules in (ValueRules(), SelectRules(), StatementRules()):
            for name in dir(rules):
                if not name.startswith("_"):
                    check(not hasattr(self, name), "two rules of the grammar are called %s", name)
                    setattr(self, name, _soft(getattr(rules, name)))


@cache
def _lark() -> Lark:
    declared = f"\n%declare {' '.join(sorted(TERMINALS))}\n"
    builder: Any = Builder()
    return Lark(_GRAMMAR + declared, parser="lalr", lexer=StatementLexer, transformer=builder, maybe_placeholders=False)


def warm_up() -> None:
    """Build the parser's tables now (about 0.3 s) rather than at the first statement."""
    _lark()


def _complaint(error: UnexpectedToken) -> str:
    token = error.token
    found = "<EOF>" if token.type == "$END" else shown(str(token))
    expected = sorted({_SIGNS.get(name, name.lstrip("_")) for name in error.expected})
    if len(expected) == 1:
        wanted = expected[0]
    else:
        more = ", ..." if len(expected) > _EXPECTED_SHOWN_MAX else ""
        wanted = "{" + ", ".join(expected[:_EXPECTED_SHOWN_MAX]) + more + "}"
    return f"mismatched input '{found}' expecting {wanted}"


def _parse_source(source: Source) -> Statement:
    try:
        # lark takes any object where the lexer is one's own.
        statement: Any = _lark().parse(source)
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        position = len(source.text) if at_end else (error.token.start_pos or 0)
        raise syntax_error(source.text, position, _complaint(error)) from None
    if isinstance(statement, CallerError):
        raise statement
    check(isinstance(statement, Statement), "the grammar made a %s", type(statement).__name__)
    result: Statement = statement
    return result


def parse_by_grammar(text: str, context: ParseContext) -> Statement:
    """Parse with the grammar alone: neither the cache nor the fast way. Raises CallerError as `parse` does."""
    if len(text) > STATEMENT_CHARS_MAX:
        raise syntax_error("", 0, f"the statement has {len(text)} characters, more than {STATEMENT_CHARS_MAX}")
    return _parse_source(Source(text, context))


class StatementCache:
    """Parsed statements by their text, at most `STATEMENT_CACHE_ENTRIES_MAX`; the oldest goes first.

    A statement with now() is not kept; one with a date is kept with the offset of the zone that it was read in.
    """

    def __init__(self, entries_max: int = STATEMENT_CACHE_ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries: dict[tuple[str, str], tuple[Statement, timedelta | None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def parse(self, text: str, context: ParseContext) -> Statement:
        """The statement of a text. Raises CallerError: 401 for errors of syntax, 303 for errors of meaning."""
        key = (text, context.precision)
        entry = self._entries.get(key)
        if entry is not None and (entry[1] is None or entry[1] == context.offset()):
            return entry[0]
        if len(text) > STATEMENT_CHARS_MAX:
            return parse_by_grammar(text, context)
        insert = scan_insert(text)
        if insert is not None:
            return insert
        source = Source(text, context)
        statement = _parse_source(source)
        if not source.used_now and len(text) <= STATEMENT_CACHE_CHARS_MAX:
            if len(self._entries) >= self._entries_max:
                self._entries.pop(next(iter(self._entries)), None)
            self._entries[key] = (statement, context.offset() if source.used_zone else None)
        return statement


_CACHE = StatementCache()


def parse(text: str, context: ParseContext) -> Statement:
    """Parse one statement; DEBUG before it and one semicolon behind it are allowed.

    Raises CallerError: SQL_PARSE_ERROR (401) with line and column for what is no statement, METADATA_ERROR (303) for a
    statement whose meaning is wrong whatever the schema.
    """
    return _CACHE.parse(text, context)
