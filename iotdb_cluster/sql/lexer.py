"""Text to tokens, by the language's rule: the longest match wins, of equal ones a keyword before a name.

Identifiers may begin with a digit and hold `-`, `:`, `+`, `/`, `&`: so `a-b` is one name, `+1d` is one name, and
`2021-01-01` is a date only because dates come before names. Every number, duration and date without a blank or a dot
therefore is also the shape of a name; the scanner takes the name's extent first and then asks what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lark.common import LexerConf
from lark.lexer import Lexer, Token

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import STATEMENT_DEPTH_MAX, STATEMENT_TOKENS_MAX
from iotdb_cluster.sql.times import ParseContext

__all__ = ["KEYWORDS", "NAME_KEYWORDS", "TERMINALS", "Source", "StatementLexer", "TimeToken", "shown", "syntax_error"]

# Keywords that may be a node of a path.
_NAME_WORDS = """
CREATE INSERT UPDATE DELETE SELECT SHOW GRANT INTO SET WHERE FROM TO BY DEVICE CONFIGURATION DESCRIBE SLIMIT LIMIT
UNLINK OFFSET SOFFSET FILL LINEAR PREVIOUS PREVIOUSUNTILLAST METADATA TIMESERIES TIMESTAMP PROPERTY WITH DATATYPE
COMPRESSOR STORAGE GROUP LABEL ADD UPSERT VALUES NOW LINK INDEX USING ON DROP MERGE LIST USER PRIVILEGES ROLE ALL OF
ALTER PASSWORD REVOKE LOAD WATERMARK_EMBEDDING UNSET TTL FLUSH TASK INFO VERSION REMOVE MOVE CHILD PATHS DEVICES COUNT
NODES LEVEL MIN_TIME MAX_TIME MIN_VALUE MAX_VALUE AVG FIRST_VALUE SUM LAST_VALUE LAST DISABLE ALIGN COMPRESSION TIME
ATTRIBUTES TAGS RENAME FULL CLEAR CACHE SNAPSHOT FOR SCHEMA TRACING OFF SYSTEM READONLY WRITABLE GLOBAL PARTITION DESC
ASC TRUE FALSE INT32 INT64 FLOAT DOUBLE BOOLEAN TEXT PLAIN PLAIN_DICTIONARY RLE DIFF TS_2DIFF GORILLA REGULAR
UNCOMPRESSED SNAPPY GZIP LZO PAA PLA LZ4
"""
NAME_KEYWORDS = frozenset(_NAME_WORDS.split())
# Keywords that may not.
_RESERVED_WORDS = """
AFTER ALIAS AND ANY AS AUTOREGISTER BEFORE BITMAP CONCAT CONTAIN CONTAINS DEBUG ENCODING EXPLAIN EXTREME FUNCTION
FUNCTIONS IN KILL LATEST LIKE LOCK NOT NULL OR ORDER PROCESSLIST QUERY REGEXP ROOT SGLEVEL START STOP TEMPORARY
TOLERANCE TOP TRIGGER TRIGGERS VERIFY WITHOUT
"""
KEYWORDS = NAME_KEYWORDS | frozenset(_RESERVED_WORDS.split())

# The grammar drops the terminals whose name begins with an underscore; ROOT is kept.
_WORD_TYPES = {word: f"_{word}" for word in KEYWORDS} | {"ROOT": "ROOT"}
_WORD_TYPES |= {"G": "_GLOBAL", "&": "_AND", "&&": "_AND", "+": "PLUS"}

_SYMBOLS = {
    ",": "_COMMA",
    ".": "_DOT",
    "(": "_LPAR",
    ")": "_RPAR",
    "[": "_LSQUARE",
    "]": "_RSQUARE",
    ";": "_SEMICOLON",
    "*": "STAR",
    "-": "MINUS",
    "=": "EQ",
    "==": "EQ",
    ">": "GT",
    ">=": "GE",
    "<": "LT",
    "<=": "LE",
    "!=": "NE",
    "<>": "NE",
    "!": "_NOT",
    "|": "_OR",
    "||": "_OR",
}
# All types that a token can have; the grammar declares them.
_LITERALS = ("NAN", "INT", "EXPONENT", "DURATION", "DATETIME", "SINGLE_QUOTED", "DOUBLE_QUOTED")
TERMINALS = frozenset((*_WORD_TYPES.values(), *_SYMBOLS.values(), *_LITERALS, "ID", "NOW", "_LAST_AS_NAME"))
_NAME_START = "A-Za-z0-9_/@#$%&+\u2e80-\u9fff"
_NAME = f"[{_NAME_START}][{_NAME_START}:\\-]*+"
_TOKEN = re.compile(
    rf"[ \t\r\n]*+(?:(?P<word>{_NAME})"
    r"|(?P<symbol>[,.()\[\];*]|==?|>=?|<[=>]?|!=?|\|\|?|-)"
    r"|(?P<single>'(?:\\.|[^'\\])*+')|(?P<double>\"(?:\\.|[^\"\\])*+\")"
    r"|(?P<open>['\"])|(?P<other>.))",
    re.DOTALL,
)
_DATE = re.compile(
    r"[0-9]+[-/][0-9]+[-/][0-9]+"
    r"(?:(?:[tT]|[ \t\r\n]+)[0-9]+:[0-9]+:[0-9]+(?:\.[0-9]+)?(?:[+-][0-9]+:[0-9]+)?)?"
)
_DATE_LIKE = re.compile(r"[0-9]++[-/][0-9]")
_DURATION = re.compile(r"(?:[0-9]++(?:mo|ms|us|ns|[ywdhms]))++", re.IGNORECASE)
_EXPONENT = re.compile(r"[0-9]+[eE][+-]?[0-9]+")
_INT = re.compile(r"[0-9]+")
_CALL = re.compile(r"[ \t\r\n]*\([ \t\r\n]*\)")
_SHOWN_CHARS_MAX = 100


class Source:
    """One text to be parsed, with what its meaning depends on, and notes of what it did depend on."""

    __slots__ = ("context", "text", "used_now", "used_zone")

    def __init__(self, text: str, context: ParseContext) -> None:
        self.text = text
        self.context = context
        self.used_now = False
        self.used_zone = False


class TimeToken(Token):
    """A date, a duration, or NOW: knows the source, because its value depends on it."""

    source: Source


def syntax_error(text: str, position: int, complaint: str) -> CallerError:
    """The answer to a text that is no statement (401); lines count from 1, columns from 0."""
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1)
    return CallerError(
        Status.SQL_PARSE_ERROR,
        f"Error occurred while parsing SQL to physical plan: line {line}:{column} {complaint}",
    )


def shown(text: str) -> str:
    """A piece of the text as it stands in a message."""
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "..."


def _word_type(word: str) -> str:
    kind = _WORD_TYPES.get(word.upper())
    if kind is not None:
        return kind
    if "0" <= word[0] <= "9":
        if _INT.fullmatch(word):
            return "INT"
        if _EXPONENT.fullmatch(word):
            return "EXPONENT"
        if _DURATION.fullmatch(word):
            return "DURATION"
        if _DATE.fullmatch(word):
            return "DATETIME"
    return "NAN" if word == "NaN" else "ID"


def _scan(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield (type, text, position) of each token."""
    position = 0
    end = len(text)
    match_token = _TOKEN.match
    while position < end:
        match = match_token(text, position)
        if match is None:  # only blanks are left
            return
        kind = match.lastgroup
        value = match[kind] if kind else ""
        start = match.end() - len(value)
        position = match.end()
        if kind == "word":
            if "0" <= value[0] <= "9" and _DATE_LIKE.match(value):
                date = _DATE.match(text, start)
                # A date with a blank or a dot in it is longer than the name that begins at the same place.
                if date is not None and date.end() > position:
                    position = date.end()
                    yield "DATETIME", date[0], start
                    continue
            yield _word_type(value), value, start
        elif kind == "symbol":
            yield _SYMBOLS[value], value, start
        elif kind == "single":
            yield "SINGLE_QUOTED", value, start
        elif kind == "double":
            yield "DOUBLE_QUOTED", value, start
        else:
            closing = text.rfind(value, position) if kind == "open" else -1
            if closing < 0:
                raise syntax_error(text, start, f"token recognition error at: '{shown(text[start:])}'")
            # No quote ends the string but an escaped one: then the backslash is an ordinary character.
            position = closing + 1
            yield ("SINGLE_QUOTED" if value == "'" else "DOUBLE_QUOTED"), text[start:position], start


_AFTER_LAST_AS_NAME = frozenset(("_COMMA", "_DOT", "_AS", "_SEMICOLON"))


def _last_is_name(text: str, position: int) -> bool:
    """Whether LAST right behind SELECT is a series of that name: decided by what follows it."""
    following = _scan(text[position : position + 4096])
    try:
        first = next(following, None)
        if first is None or first[0] in _AFTER_LAST_AS_NAME:
            return True
        if first[0] != "_FROM":
            return False
        second = next(following, None)
        return second is not None and second[0] == "ROOT"
    except CallerError:
        return False


class StatementLexer(Lexer):
    """The lexer that lark drives; what it lexes is a `Source`."""

    def __init__(self, _configuration: LexerConf) -> None:
        pass

    def lex(self, source: Source) -> Iterator[Token]:  # type: ignore[override]
        """Yield the tokens; raises CallerError (401) at what is none, and where nesting or length pass the bounds."""
        text = source.text
        depth = 0
        before = ""
        for count, (kind, value, start) in enumerate(_scan(text)):
            if kind == "_LPAR":
                depth += 1
                if depth > STATEMENT_DEPTH_MAX:
                    raise syntax_error(text, start, f"more than {STATEMENT_DEPTH_MAX} nested parentheses")
            elif kind == "_RPAR":
                depth -= 1
            elif kind == "_LAST" and (before != "_SELECT" or _last_is_name(text, start + len(value))):
                kind = "_LAST_AS_NAME"
            elif kind == "_NOW" and _CALL.match(text, start + len(value)):
                kind = "NOW"
            if count >= STATEMENT_TOKENS_MAX:
                raise syntax_error(text, start, f"more than {STATEMENT_TOKENS_MAX} words and symbols")
            if kind in ("DATETIME", "DURATION", "NOW"):
                token: Token = TimeToken(kind, value, start)
                token.source = source  # type: ignore[attr-defined]
                yield token
            else:
                yield Token(kind, value, start)
            if before != "_TOP" or kind != "INT":
                before = kind
            else:
                before = "_SELECT"
