"""The fast way of INSERT: a scanner for its plain form.

It takes lower-case `root`, ASCII names that begin with a letter, a time in digits, and plain constants; anything else,
also everything wrong, it leaves to the grammar. What it takes means the same there (tested).
"""

from __future__ import annotations

import re

from iotdb_cluster.limits import INT64_MAX
from iotdb_cluster.sql.lexer import KEYWORDS, NAME_KEYWORDS
from iotdb_cluster.sql.statements import Insert

__all__ = ["scan_insert"]

_BLANK = r"[ \t\r\n]*+"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*+"
_VALUE = (
    r"(?:-?[0-9]++(?:\.(?:[0-9]++(?:[eE][+-]?[0-9]++)?)?|[eE][+-]?[0-9]++)?"
    r"|'[^'\\]*+'|\"[^\"\\]*+\"|(?i:true|false)|NaN)"
)
_INSERT = re.compile(
    rf"{_BLANK}(?i:insert)[ \t\r\n]++(?i:into)[ \t\r\n]++(root(?:\.{_NAME})++){_BLANK}"
    rf"\({_BLANK}(?i:timestamp|time){_BLANK}((?:,{_BLANK}{_NAME}{_BLANK})++)\){_BLANK}"
    rf"(?i:values){_BLANK}\({_BLANK}([0-9]++){_BLANK}((?:,{_BLANK}{_VALUE}{_BLANK})++)\){_BLANK};?{_BLANK}"
)
_NAMES = re.compile(_NAME)
_VALUES = re.compile(_VALUE)
_TIME_DIGITS_MAX = len(str(INT64_MAX))
_NOT_NAMES = KEYWORDS - NAME_KEYWORDS


def scan_insert(text: str) -> Insert | None:
    """The statement if the text is an INSERT of the plain form and right, else None."""
    match = _INSERT.fullmatch(text)
    if match is None:
        return None
    device, name_list, time_text, value_list = match.groups()
    names: list[str] = _NAMES.findall(name_list)
    values: list[str] = _VALUES.findall(value_list)
    if len(names) != len(values) or len(time_text) > _TIME_DIGITS_MAX or int(time_text) > INT64_MAX:
        return None
    nodes = device.split(".")[1:]
    for name in (*nodes, *names):
        if name.upper() in _NOT_NAMES or name == "NaN":
            return None
    return Insert(device, int(time_text), tuple(names), tuple(values))
