"""What the rules of SELECT mean, and the checks that need no schema."""

from __future__ import annotations

from typing import Any

from lark.lexer import Token

from iotdb_cluster.columns import DataType
from iotdb_cluster.errors import Status
from iotdb_cluster.sql.rules_values import IndexPredicate
from iotdb_cluster.sql.statements import (
    TIME,
    Aggregate,
    CompareOp,
    Comparison,
    Condition,
    Constant,
    Duration,
    FillMethod,
    GroupByTime,
    Literal,
    RawItem,
    Select,
    SelectItem,
    Statement,
    TypeFill,
    Udtf,
    Unsupported,
)
from iotdb_cluster.sql.times import semantic_error

__all__ = ["Clause", "SelectRules", "int32_of", "plan_error_text"]

# A clause is the fields of the statement that it sets.
Clause = dict[str, Any]

_INT32_MAX = (1 << 31) - 1
_NO_LINEAR = (DataType.TEXT, DataType.BOOLEAN)


def plan_error_text(text: str) -> str:
    """The form in which errors of planning are told."""
    return f"Error occurred in query process: {text}"


def int32_of(text: str, complaint: str) -> int:
    """A number of digits within int32; raises CallerError (303) with the complaint."""
    digits = text.lstrip("0") or "0"
    if len(digits) > 10 or int(digits) > _INT32_MAX:
        raise semantic_error(complaint)
    return int(digits)


def _positive(text: str, word: str, name: str) -> int:
    number = int32_of(text, f"Out of range. {word} <{name}>: {name} should be Int32.")
    if number <= 0:
        raise semantic_error(f"{word} <{name}>: {name} should be greater than 0.")
    return number


def _offset(text: str, word: str) -> int:
    return int32_of(text, f"Out of range. {word} <{word}Value>: {word}Value should be Int32.")


class SelectRules:
    """SELECT: every clause gives a dict of fields, `select` joins them."""

    # --- columns
    def raw(self, path: str) -> SelectItem:
        return SelectItem(RawItem(path))

    def raw_as(self, path: str, alias: Token) -> SelectItem:
        return SelectItem(RawItem(path), str(alias))

    def aggregate(self, function: Token, path: str, alias: Token | None = None) -> SelectItem:
        form = Aggregate(function.lower(), str(function), path)
        return SelectItem(form, None if alias is None else str(alias))

    aggregate_as = aggregate

    def udtf(self, name: Token, *arguments: Any) -> SelectItem:
        paths = tuple(argument for argument in arguments if isinstance(argument, str))
        return SelectItem(Udtf(str(name), paths, tuple(arguments[len(paths) :])))

    def quoted(self, token: Token) -> SelectItem:
        return SelectItem(Constant(str(token)))

    def elements(self, *items: SelectItem) -> Clause:
        return {"items": items}

    def last_elements(self, *items: SelectItem) -> Clause:
        return {"items": items, "last": True}

    def from_clause(self, *paths: str) -> Clause:
        return {"from_": paths}

    def top(self, count: Token) -> Clause:
        return {"top": _positive(count, "TOP", "N")}

    # --- order, limits, layout
    def order(self, direction: str = "asc") -> Clause:
        return {"ordered": True, "descending": direction == "desc"}

    def direction(self, token: Token) -> str:
        return token.lower()

    def limit(self, limit: Token, offset: Token | None = None) -> Clause:
        clause = {"limit": _positive(limit, "LIMIT", "N")}
        return clause if offset is None else clause | {"offset": _offset(offset, "OFFSET")}

    def offset_limit(self, offset: Token, limit: Token) -> Clause:
        return self.limit(limit, offset)

    def slimit(self, limit: Token, offset: Token | None = None) -> Clause:
        clause = {"slimit": _positive(limit, "SLIMIT", "SN")}
        return clause if offset is None else clause | {"soffset": _offset(offset, "SOFFSET")}

    def soffset_slimit(self, offset: Token, limit: Token) -> Clause:
        return self.slimit(limit, offset)

    def without_null(self, scope: Token) -> Clause:
        return {"without_null": scope.lower()}

    def align_by_device(self) -> Clause:
        return {"align_by_device": True}

    def disable_align(self) -> Clause:
        return {"disable_align": True}

    # --- group by
    def levels(self, _equals: Token, *levels: Token) -> Clause:
        numbers = [int32_of(level, f"the level {level[:20]} should be Int32.") for level in levels]
        return {"levels": tuple(numbers)}

    def closed_open(self, start: int, end: int) -> tuple[int, int, bool]:
        return start, end, False

    def open_closed(self, start: int, end: int) -> tuple[int, int, bool]:
        return start, end, True

    def group_by_time(self, window: tuple[int, int, bool], interval: Duration, step: Duration | None = None) -> Clause:
        start, end, left_open = window
        if interval.total <= 0:
            raise semantic_error("The second parameter time interval should be a positive integer.")
        if step is None:
            step = interval
        elif step.total < interval.total:
            raise semantic_error(
                "The third parameter sliding step shouldn't be smaller than the second parameter time interval."
            )
        if start >= end:
            raise semantic_error("start time should be smaller than endTime in GroupBy")
        return {"group_by": GroupByTime(start, end, interval, step, left_open)}

    # --- fill
    def fill_linear(self, before: Duration | None = None, after: Duration | None = None) -> Clause:
        clause: Clause = {"method": FillMethod.LINEAR}
        return clause if before is None or after is None else clause | {"before": before.total, "after": after.total}

    def fill_previous(self, before: Duration | None = None) -> Clause:
        clause: Clause = {"method": FillMethod.PREVIOUS}
        return clause if before is None else clause | {"before": before.total}

    def fill_until_last(self, before: Duration | None = None) -> Clause:
        return self.fill_previous(before) | {"method": FillMethod.PREVIOUSUNTILLAST}

    def fill_value(self, value: Literal | None = None) -> Clause:
        if value is None:
            raise semantic_error("fill value cannot be null")
        return {"method": FillMethod.VALUE, "value": value}

    def type_fill(self, name: Token, method: Clause) -> TypeFill:
        type_name = name.upper()
        data_type = None if type_name == "ALL" else DataType[type_name]
        if method["method"] is FillMethod.LINEAR and data_type in _NO_LINEAR:
            raise semantic_error(f"type {type_name} cannot use linear fill function")
        return TypeFill(data_type, **method)

    def fill(self, *fills: TypeFill) -> Clause:
        return {"fill": fills}

    # --- the statement
    def select(self, *clauses: Clause) -> Statement:
        fields: Clause = {}
        for clause in clauses:
            fields |= clause
        if isinstance(fields.get("where"), IndexPredicate):
            message = plan_error_text("Query index hasn't been supported yet")
            return Unsupported("QUERY_INDEX", Status.QUERY_PROCESS_ERROR, message)
        statement = Select(**fields)
        if (statement.group_by is not None or statement.levels) and not statement.has_aggregate:
            raise semantic_error("There is no aggregation function with group by query")
        if statement.fill:
            if statement.group_by is None:
                _check_fill(statement.where)
            else:
                _check_group_by_fill(statement)
        return statement


def _check_fill(where: Condition | None) -> None:
    if isinstance(where, Comparison) and where.target is TIME:
        if where.op is not CompareOp.EQ:
            raise semantic_error('Only "=" can be used in fill function')
        return
    raise semantic_error("Slice query must select a single time point")


def _check_group_by_fill(statement: Select) -> None:
    for item in statement.items:
        # The original compares the function's name as it was typed.
        if not isinstance(item.form, Aggregate) or item.form.text != "last_value":
            raise semantic_error("Group By Fill only support last_value function")
    for fill in statement.fill:
        if fill.method in (FillMethod.LINEAR, FillMethod.VALUE):
            raise semantic_error(f"group by fill doesn't support {fill.method.value.lower()} fill")
