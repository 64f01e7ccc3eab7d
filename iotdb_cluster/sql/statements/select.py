"""SELECT."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeAlias

from iotdb_cluster.columns import DataType
from iotdb_cluster.sql.statements.base import Statement
from iotdb_cluster.sql.statements.conditions import Condition
from iotdb_cluster.sql.statements.values import Duration, Literal, Pairs

__all__ = [
    "AGGREGATIONS",
    "Aggregate",
    "Constant",
    "FillMethod",
    "GroupByTime",
    "RawItem",
    "Select",
    "SelectForm",
    "SelectItem",
    "TypeFill",
    "Udtf",
]

AGGREGATIONS = frozenset(
    ("min_time", "max_time", "min_value", "max_value", "count", "avg", "first_value", "sum", "last_value", "extreme")
)


@dataclass(frozen=True, slots=True)
class RawItem:
    path: str


@dataclass(frozen=True, slots=True)
class Aggregate:
    """`function` is one of AGGREGATIONS; `text` is the function name as it was typed."""

    function: str
    text: str
    path: str


@dataclass(frozen=True, slots=True)
class Udtf:
    """A call of a user-defined function: name as typed, suffix paths, attributes without quotes in order."""

    name: str
    paths: tuple[str, ...]
    attributes: Pairs


@dataclass(frozen=True, slots=True)
class Constant:
    """A quoted constant as a column; `text` keeps the quotes."""

    text: str


SelectForm: TypeAlias = RawItem | Aggregate | Udtf | Constant


@dataclass(frozen=True, slots=True)
class SelectItem:
    form: SelectForm
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class GroupByTime:
    """Windows over [start, end), or (start, end] if `left_open`; bounds as written. `step` >= `interval` holds."""

    start: int
    end: int
    interval: Duration
    step: Duration
    left_open: bool


class FillMethod(Enum):
    LINEAR = "LINEAR"
    PREVIOUS = "PREVIOUS"
    PREVIOUSUNTILLAST = "PREVIOUSUNTILLAST"
    VALUE = "VALUE"


@dataclass(frozen=True, slots=True)
class TypeFill:
    """`data_type[method ...]`; data_type None is ALL.

    before, after: ranges in units of the server's precision, None = unlimited (use the default); `after` is set for
    LINEAR only. `value` is set for VALUE only.
    """

    data_type: DataType | None
    method: FillMethod
    before: int | None = None
    after: int | None = None
    value: Literal | None = None


@dataclass(frozen=True, slots=True)
class Select(Statement):
    """SELECT. `levels` is empty without GROUP BY LEVEL; `limit`, `slimit` are None or > 0; offsets >= 0.

    `without_null` is None, "any" or "all". `ordered` tells whether ORDER BY TIME was written (LAST sorts only then).
    `top` has no effect.
    """

    is_query: ClassVar[bool] = True

    items: tuple[SelectItem, ...]
    from_: tuple[str, ...]
    last: bool = False
    where: Condition | None = None
    group_by: GroupByTime | None = None
    levels: tuple[int, ...] = ()
    fill: tuple[TypeFill, ...] = ()
    without_null: str | None = None
    ordered: bool = False
    descending: bool = False
    limit: int | None = None
    offset: int = 0
    slimit: int | None = None
    soffset: int = 0
    align_by_device: bool = False
    disable_align: bool = False
    top: int | None = None

    @property
    def has_aggregate(self) -> bool:
        return any(isinstance(item.form, Aggregate) for item in self.items)

    @property
    def has_udtf(self) -> bool:
        return any(isinstance(item.form, Udtf) for item in self.items)

    @property
    def operation(self) -> str:
        if self.last:
            return "LAST"
        if self.has_udtf:
            return "UDTF"
        if self.group_by is not None:
            return "GROUP_BY_FILL" if self.fill else "GROUPBYTIME"
        if self.fill:
            return "FILL"
        return "AGGREGATION" if self.has_aggregate else "QUERY"
