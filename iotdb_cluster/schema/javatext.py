"""How Java would write it: values as text, and the order of a Java hash map.

Values appear as text in LAST, in SHOW outputs and in messages; users compare them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from iotdb_cluster.columns import Column, DataType

__all__ = ["java_hash", "java_map_json", "java_map_order", "java_text", "java_texts", "java_tree_order"]

_PLAIN_MIN, _PLAIN_MAX = 1e-3, 1e7  # between them floating numbers are written without an exponent


def java_text(value: Any, kind: DataType) -> str:
    """A value of a column (texts as bytes or str) as `toString` would write it."""
    if kind is DataType.TEXT:
        return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
    if kind is DataType.BOOLEAN:
        return "true" if value else "false"
    if kind is DataType.FLOAT:
        return _floating(np.float32(value))
    if kind is DataType.DOUBLE:
        return _floating(np.float64(value))
    return str(int(value))


def java_texts(column: Column) -> list[str | None]:
    """Cell by cell; None for null."""
    return [None if cell is None else java_text(cell, column.type) for cell in column.tolist()]


def _floating(value: np.float32 | np.float64) -> str:
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    sign = "-" if np.signbit(value) else ""
    if value == 0:
        return sign + "0.0"
    # The shortest digits that read back as the value; the exponent is that of d.ddd.
    magnitude = np.abs(value)
    text = np.format_float_scientific(magnitude, unique=True, trim="-")
    mantissa, _, exponent = text.partition("e")
    digits, power = mantissa.replace(".", ""), int(exponent)
    if len(digits) == 1:
        # Java writes two digits at least, and then the nearest two: 4.9E-324, not 5.0E-324.
        mantissa, _, exponent = f"{float(magnitude):.1e}".partition("e")
        digits, power = mantissa.replace(".", ""), int(exponent)
    if _PLAIN_MIN <= float(magnitude) < _PLAIN_MAX:
        return sign + _plain(digits.rstrip("0"), power)
    return f"{sign}{digits[0]}.{digits[1:]}E{power}"


def _plain(digits: str, power: int) -> str:
    """d.ddd * 10^power with at least one digit on either side of the point."""
    if power < 0:
        return "0." + "0" * (-power - 1) + digits
    whole = digits[: power + 1].ljust(power + 1, "0")
    return f"{whole}.{digits[power + 1 :] or '0'}"


def java_hash(text: str) -> int:
    """`String.hashCode` as unsigned 32 bits."""
    units = text.encode("utf-16-be", "surrogatepass")
    found = 0
    for at in range(0, len(units), 2):
        found = (31 * found + (units[at] << 8 | units[at + 1])) & 0xFFFF_FFFF
    return found


def java_map_order(keys: Iterable[str]) -> list[str]:
    """The order in which a Java hash map gives its keys (of those in one bucket, the order given here)."""
    known = list(keys)
    buckets = 16
    while len(known) > buckets * 3 // 4:
        buckets *= 2

    def bucket(key: str) -> int:
        code = java_hash(key)
        return (code ^ code >> 16) & (buckets - 1)

    return sorted(known, key=bucket)


def java_map_json(items: Mapping[str, str]) -> str | None:
    """Tags or attributes as SHOW TIMESERIES writes them: JSON without spaces; None where there are none."""
    if not items:
        return None
    ordered = {key: items[key] for key in java_map_order(sorted(items))}
    return json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)


def java_tree_order(paths: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Distinct paths (as nodes) in the order in which the original walks its tree, each level a hash map.

    Right only if `paths` is everything that stands in the tree: the order depends on the number of siblings.
    """
    tree: dict[str, Any] = {}
    ends = set()
    for nodes in paths:
        ends.add(tuple(nodes))
        at = tree
        for node in nodes:
            at = at.setdefault(node, {})
    found: list[tuple[str, ...]] = []
    stack: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), tree)]
    while stack:
        path, children = stack.pop()
        if path in ends:
            found.append(path)
        stack.extend(((*path, name), children[name]) for name in reversed(java_map_order(sorted(children))))
    return found
