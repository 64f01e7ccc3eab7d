"""Texts to types and values: what SQL and untyped inserts send.

The reading of numbers is Java's, because clients of the original rely on it; error texts are the original's too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from iotdb_cluster.columns import Column, DataType
from iotdb_cluster.errors import CallerError, Status

__all__ = ["InferenceRules", "Value", "convert", "convert_column", "infer_type", "insert_failure", "unquote"]

Value: TypeAlias = bool | int | float | bytes

_BLANKS = "".join(map(chr, range(0x21)))  # what Java's trim() takes away
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fFdD]?")
_HEXADECIMAL = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+[fFdD]?")
_NAMED = {
    sign + name: factor * value
    for sign, factor in (("", 1.0), ("+", 1.0), ("-", -1.0))
    for name, value in (("NaN", float("nan")), ("Infinity", float("inf")))
}
_WHOLE = re.compile(r"[+-]?[0-9]+")
_LONG_FROM = 1 << 25  # a larger whole number is no exact FLOAT any more
_BOUNDS = {DataType.INT32: (-(1 << 31), (1 << 31) - 1), DataType.INT64: (-(1 << 63), (1 << 63) - 1)}
_DIGITS_MAX = 5_000  # of a number; more mean nothing and take long


@dataclass(frozen=True, slots=True)
class InferenceRules:
    """The type that a series gets from the text of its first value."""

    boolean: DataType = DataType.BOOLEAN
    integer: DataType = DataType.FLOAT
    long: DataType = DataType.DOUBLE
    floating: DataType = DataType.FLOAT
    nan: DataType = DataType.DOUBLE


_RULES = InferenceRules()


def _not_a_number(text: str) -> CallerError:
    return CallerError(Status.STORAGE_ENGINE_ERROR, f'For input string: "{text}"')


def infer_type(text: str, rules: InferenceRules = _RULES) -> DataType:
    """The type of the series that an insert of this text creates.

    500 for a number without a point that is no 64-bit whole number ("1e5"), as the original answers.
    """
    if text.lower() in ("true", "false"):
        return rules.boolean
    if text == "NaN":
        return rules.nan
    if not _is_floating(text):
        return DataType.TEXT
    if "." in text:
        return rules.floating
    try:
        whole = _whole(text, DataType.INT64)
    except CallerError as error:
        raise CallerError(Status.INTERNAL_SERVER_ERROR, error.message) from None
    return rules.long if whole > _LONG_FROM else rules.integer


def convert(text: str, kind: DataType) -> Value:
    """The text as a value of an existing series' type (TEXT as UTF-8 bytes); 313 with the cause alone as message."""
    if kind is DataType.TEXT:
        return unquote(text).encode("utf-8", "surrogatepass")
    if kind is DataType.BOOLEAN:
        folded = text.lower()
        if folded in ("true", "1"):
            return True
        if folded in ("false", "0"):
            return False
        message = "The BOOLEAN should be true/TRUE, false/FALSE or 0/1"
        raise CallerError(Status.STORAGE_ENGINE_ERROR, message)
    if kind in _BOUNDS:
        return _whole(text, kind)
    return _floating(text, kind)


def convert_column(texts: Sequence[str], kind: DataType) -> tuple[Column, dict[int, CallerError]]:
    """All texts as one column, and for each cell that failed (null in the column) why."""
    failures: dict[int, CallerError] = {}
    cells: list[Any] = []
    for at, text in enumerate(texts):
        try:
            cells.append(convert(text, kind))
        except CallerError as error:
            failures[at] = error
            cells.append(None)
    return Column.of(kind, cells), failures


def insert_failure(measurements: Sequence[str], cause: str) -> CallerError:
    """313, the answer to an insert of which these measurements failed; the others are stored."""
    return CallerError(
        Status.STORAGE_ENGINE_ERROR, f"failed to insert measurements [{', '.join(measurements)}] caused by {cause}"
    )


def unquote(text: str) -> str:
    """Without one pair of equal outer quotes."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _whole(text: str, kind: DataType) -> int:
    low, high = _BOUNDS[kind]
    if len(text) > _DIGITS_MAX or not _WHOLE.fullmatch(text):
        raise _not_a_number(text)
    # More digits than Python reads at once by default cannot be in bounds unless they are zeros.
    value = int(text[:1] + (text[1:].lstrip("0") or "0")[:25]) if len(text) > 25 else int(text)
    if not low <= value <= high:
        raise _not_a_number(text)
    return value


def _is_floating(text: str) -> bool:
    trimmed = text.strip(_BLANKS)
    if trimmed in _NAMED:
        return True
    if len(trimmed) > _DIGITS_MAX:
        return False
    return _DECIMAL.fullmatch(trimmed) is not None or _HEXADECIMAL.fullmatch(trimmed) is not None


def _floating(text: str, kind: DataType) -> float:
    trimmed = text.strip(_BLANKS)
    if not trimmed:
        raise CallerError(Status.STORAGE_ENGINE_ERROR, "empty String")
    if trimmed in _NAMED:
        return _NAMED[trimmed]
    if not _is_floating(text):
        raise _not_a_number(text)
    if "x" in trimmed or "X" in trimmed:
        value = _hexadecimal(trimmed)
        return value if kind is DataType.DOUBLE else float(_to_float32(value, None))
    digits = trimmed.rstrip("fFdD")
    value = float(digits)
    return value if kind is DataType.DOUBLE else float(_to_float32(value, digits))


def _hexadecimal(text: str) -> float:
    try:
        return float.fromhex(text.rstrip("fFdD") if text[-1] in "fFdD" else text)
    except OverflowError:
        return float("-inf") if text.startswith("-") else float("inf")


def _to_float32(value: float, digits: str | None) -> np.float32:
    """`value`, the double nearest to the decimal `digits`, as the FLOAT nearest to those digits.

    Rounding twice goes wrong only where the double lies half-way between two FLOATs; then the digits decide.
    """
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if digits is None or not np.isfinite(value) or float(rounded) == value:
        return rounded
    (bits,) = struct.unpack(">Q", struct.pack(">d", value))
    if bits & 0x1FFF_FFFF != 0x1000_0000 and abs(value) >= 2.0**-126:
        return rounded
    if abs(value) < 2.0**-150 or abs(value) > 3.5e38:
        return rounded
    exact, near = Fraction(digits), Fraction(value)
    if exact == near:
        return rounded
    # Step off the half-way point towards the digits: what was a tie is none any more.
    return np.float32(np.nextafter(value, np.inf if exact > near else -np.inf))
