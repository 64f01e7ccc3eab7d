"""Fields of the JSON bodies of entries: each function gives the value, or raises CorruptData with what stood there."""

from __future__ import annotations

from typing import Any

from iotdb_cluster.errors import CallerError, CorruptData
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.schema import split_path

__all__ = ["count", "field_of", "items", "path_of", "text", "texts", "time", "within"]


def field_of(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise CorruptData(f"an entry's body lacks {name}")
    return value[name]


def items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CorruptData(f"an entry's body holds {value!r} where a list belongs")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not (value.isascii() or _is_utf8(value)):
        raise CorruptData(f"an entry's body holds {value!r} where a text belongs")
    return value


def path_of(value: Any) -> str:
    try:
        split_path(text(value))
    except CallerError as error:
        raise CorruptData(f"an entry's body holds {value!r} where a path belongs: {error.message}") from None
    return str(value)


def _is_utf8(value: str) -> bool:
    """Whether a text out of JSON, which may hold half a character, can be written again."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptData(f"an entry's body holds {value!r} where texts by key belong")
    return {text(key): text(one) for key, one in value.items()}


def within(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise CorruptData(f"an entry's body holds {value!r} where a number from {low} to {high} belongs")
    return value


def count(value: Any) -> int:
    return within(value, 0, INT64_MAX)


def time(value: Any) -> int:
    return within(value, INT64_MIN, INT64_MAX)
