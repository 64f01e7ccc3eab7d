"""Constants, durations, and paths as the other modules name them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

__all__ = ["TIME", "Duration", "Literal", "LiteralKind", "Pairs", "Target", "TimeColumn", "is_full_path"]

Pairs: TypeAlias = tuple[tuple[str, str], ...]


def is_full_path(path: str) -> bool:
    """Whether the path begins with the keyword ROOT (in any case; only the lower-case one resolves to a series)."""
    return path[:4].lower() == "root" and (len(path) == 4 or path[4] == ".")


class LiteralKind(Enum):
    INT = "INT"
    REAL = "REAL"
    STRING = "STRING"
    BOOLEAN = "BOOLEAN"
    NAN = "NAN"
    DATE = "DATE"


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant as it was written: `text` has the sign of a number and the quotes of a string.

    `time` is set for DATE alone: the int64 that the date expression means; `text` is then its decimal form.
    """

    kind: LiteralKind
    text: str
    time: int | None = None

    @property
    def unquoted(self) -> str:
        """The text without the outer quotes of a string; backslashes stay, as the language does not unescape."""
        return self.text[1:-1] if self.kind is LiteralKind.STRING else self.text


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time: calendar months written with the unit `mo`, and all other units, which have a fixed length.

    `fixed` and `total` are in units of the server's precision (milliseconds by default); `total` counts a month as 30
    days and is what every place but GROUP BY uses.
    """

    months: int
    fixed: int
    total: int


class TimeColumn(Enum):
    TIME = "time"


TIME = TimeColumn.TIME
Target: TypeAlias = str | TimeColumn  # TIME, a suffix path, or a full path (is_full_path)
