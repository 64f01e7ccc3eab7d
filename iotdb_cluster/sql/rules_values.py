"""What the grammar's rules for paths, constants and conditions mean.

A method has the name of its rule and takes the rule's children. It may raise CallerError (see `builder.Builder`).
"""

from __future__ import annotations

from lark.lexer import Token

from iotdb_cluster.sql.lexer import TimeToken
from iotdb_cluster.sql.statements import (
    TIME,
    And,
    CompareOp,
    Comparison,
    Condition,
    Duration,
    In,
    Like,
    Literal,
    LiteralKind,
    Not,
    Or,
    Regexp,
    Target,
)
from iotdb_cluster.sql.times import duration_of, int64_of, semantic_error, time_of

__all__ = ["IndexPredicate", "Pair", "ValueRules", "plain_string"]

Pair = tuple[str, str]
_OPERATORS = {"EQ": CompareOp.EQ, "GT": CompareOp.GT, "GE": CompareOp.GE, "LT": CompareOp.LT, "LE": CompareOp.LE}
_TIME_NAMES = ("time", "timestamp")


class IndexPredicate:
    """A WHERE clause that only an index could answer."""


def plain_string(token: str) -> str:
    """A string without its outer quotes; backslashes stay."""
    return str(token)[1:-1]


def _target(path: str) -> Target:
    return TIME if path.lower() in _TIME_NAMES else path


class ValueRules:
    """Rules below the level of statements that need no look at their neighbours."""

    # --- paths
    def prefix_path(self, *nodes: str) -> str:
        return ".".join(nodes)

    def suffix_path(self, *nodes: str) -> str:
        return ".".join(nodes)

    def prefix_node(self, *parts: str) -> str:
        return "".join(parts)

    negative_node = date_node = now_text = date_shift = bracket_node = prefix_node

    # --- times
    def date_shift_value(self, sign: Token, duration: Duration) -> int:
        return duration.total if sign.type == "PLUS" else -duration.total

    def date_point(self, token: TimeToken) -> int:
        source = token.source
        if token.type == "NOW":
            source.used_now = True
            return source.context.now
        source.used_zone = True
        return time_of(str(token), source.context)

    def date_expression(self, base: int, *shifts: int) -> int:
        time = base + sum(shifts)
        return int64_of(str(time))

    def duration(self, token: TimeToken) -> Duration:
        return duration_of(str(token), token.source.context.precision)

    def time_value(self, value: int | Token) -> int:
        return value if isinstance(value, int) else int64_of(value)

    # --- constants
    def date_literal(self, time: int) -> Literal:
        return Literal(LiteralKind.DATE, str(time), time)

    def nan_literal(self, token: Token) -> Literal:
        return Literal(LiteralKind.NAN, str(token))

    def int_literal(self, *parts: str) -> Literal:
        return Literal(LiteralKind.INT, "".join(parts))

    def real_literal(self, *parts: str) -> Literal:
        return Literal(LiteralKind.REAL, "".join(parts))

    def string_literal(self, token: Token) -> Literal:
        return Literal(LiteralKind.STRING, str(token))

    def boolean_literal(self, token: str) -> Literal:
        return Literal(LiteralKind.BOOLEAN, token)

    def true(self, token: Token) -> str:
        return str(token)

    false = true

    def string(self, token: Token) -> str:
        return plain_string(token)

    def property(self, name: Token, _equals: Token, value: str | Literal) -> Pair:
        return str(name), value.unquoted if isinstance(value, Literal) else str(value)

    def properties(self, *pairs: Pair) -> tuple[Pair, ...]:
        return pairs

    def string_pair(self, name: str, _equals: Token, value: str) -> Pair:
        return name, value

    def privileges(self, *names: str) -> tuple[str, ...]:
        return names

    def paths(self, *paths: str) -> tuple[str, ...]:
        return paths

    # --- conditions
    def any_of(self, *children: Condition) -> Condition:
        merged: list[Condition] = []
        for child in children:
            merged.extend(child.children if isinstance(child, Or) else (child,))
        return Or(tuple(merged))

    def all_of(self, *children: Condition) -> Condition:
        merged: list[Condition] = []
        for child in children:
            merged.extend(child.children if isinstance(child, And) else (child,))
        return And(tuple(merged))

    def negation(self, child: Condition) -> Condition:
        return Not(child)

    def comparison(self, path: str, operator: Token, literal: Literal) -> Comparison:
        target = _target(path)
        _check_literals(target, (literal,))
        return Comparison(target, _OPERATORS.get(operator.type, CompareOp.NE), literal)

    def negated(self, _token: Token) -> bool:
        return True

    def membership(self, path: str, *rest: bool | Literal) -> In:
        target = _target(path)
        literals = tuple(literal for literal in rest if isinstance(literal, Literal))
        _check_literals(target, literals)
        return In(target, literals, negated=len(literals) < len(rest))

    def like(self, path: str, pattern: Literal) -> Like:
        return Like(path, pattern)

    def regexp(self, path: str, pattern: Literal) -> Regexp:
        return Regexp(path, pattern)

    def index_predicate(self, *_parts: object) -> IndexPredicate:
        return IndexPredicate()

    def where(self, condition: Condition | IndexPredicate) -> dict[str, object]:
        return {"where": condition}


def _check_literals(target: Target, literals: tuple[Literal, ...]) -> None:
    for literal in literals:
        if target is TIME:
            if literal.kind is LiteralKind.INT:
                int64_of(literal.text)
            elif literal.kind is not LiteralKind.DATE:
                raise semantic_error(f"Unsupported type: [{literal.text}]. Time can only be an integer or a date")
        elif literal.kind is LiteralKind.DATE:
            raise semantic_error(f"Unsupported type: [{target}]. Date can only be used to time")
