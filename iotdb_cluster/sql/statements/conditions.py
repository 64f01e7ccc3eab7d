"""Conditions of a WHERE clause."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from iotdb_cluster.sql.statements.values import Literal, Target

__all__ = ["And", "CompareOp", "Comparison", "Condition", "In", "Like", "Not", "Or", "Regexp"]


class CompareOp(Enum):
    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    EQ = "="
    NE = "!="


@dataclass(frozen=True, slots=True)
class Comparison:
    """`target op literal`; the literal of TIME is INT or DATE."""

    target: Target
    op: CompareOp
    literal: Literal


@dataclass(frozen=True, slots=True)
class In:
    target: Target
    literals: tuple[Literal, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Like:
    """`path LIKE 'pattern'`; the pattern keeps its quotes (only single quotes are allowed, checked with the type)."""

    path: str
    pattern: Literal


@dataclass(frozen=True, slots=True)
class Regexp:
    """`path REGEXP 'pattern'`: matches where the pattern is found anywhere; quotes as in `Like`."""

    path: str
    pattern: Literal


@dataclass(frozen=True, slots=True)
class And:
    """At least two children, in the order written; a child that is itself And has been merged into it."""

    children: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least two children, in the order written; a child that is itself Or has been merged into it."""

    children: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    child: Condition


Condition: TypeAlias = And | Or | Not | Comparison | In | Like | Regexp
