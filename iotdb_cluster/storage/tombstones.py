"""Deletions: what they hide, and from which writes on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from iotdb_cluster.columns import BoolArray, Int64Array
from iotdb_cluster.errors import CorruptData
from iotdb_cluster.storage.types import Position

__all__ = ["NOTHING_DELETED", "Ranges", "Tombstone", "ranges_of"]


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Hides, of the series whose "device.measurement" matches `pattern` whole (None: of all), the points with
    low <= time <= high that were written before it.

    `sequence` is its place among the writes of the running store; 0 where it was read from a manifest.
    """

    position: Position
    pattern: str | None
    low: int
    high: int
    sequence: int = 0

    def covers(self, path: str) -> bool:
        return self.pattern is None or _compiled(self.pattern).fullmatch(path) is not None

    def to_json(self) -> list[Any]:
        return [*self.position, self.pattern, self.low, self.high]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Tombstone:
        epoch, index, pattern, low, high = value
        try:
            if pattern is not None:
                _compiled(pattern)
        except re.error as error:
            raise CorruptData(f"a tombstone has the pattern {pattern!r}: {error}") from error
        return cls((epoch, index), pattern, low, high)


class Ranges:
    """Disjoint ascending ranges of time, bounds inclusive."""

    __slots__ = ("highs", "lows")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        lows: list[int] = []
        highs: list[int] = []
        for low, high in sorted(ranges):
            if highs and low <= highs[-1]:
                highs[-1] = max(highs[-1], high)
            else:
                lows.append(low)
                highs.append(high)
        self.lows: Int64Array = np.array(lows, np.int64)
        self.highs: Int64Array = np.array(highs, np.int64)

    def __bool__(self) -> bool:
        return len(self.lows) > 0

    def touches(self, low: int, high: int) -> bool:
        """Whether any range meets [low, high]."""
        at = int(np.searchsorted(self.highs, low, "left"))
        return at < len(self.lows) and int(self.lows[at]) <= high

    def hides(self, low: int, high: int) -> bool:
        """Whether one range holds all of [low, high]."""
        at = int(np.searchsorted(self.lows, low, "right")) - 1
        return at >= 0 and int(self.highs[at]) >= high

    def touch_each(self, lows: Int64Array, highs: Int64Array) -> BoolArray:
        """bool[n]: `touches` for each pair."""
        if not len(self.lows):
            return np.zeros(len(lows), np.bool_)
        at = np.searchsorted(self.highs, lows, "left")
        inside = np.minimum(at, len(self.lows) - 1)
        result: BoolArray = (at < len(self.lows)) & (self.lows[inside] <= highs)
        return result

    def mask(self, times: Int64Array) -> BoolArray:
        """bool[n]: which times are in a range."""
        return self.touch_each(times, times)


NOTHING_DELETED = Ranges(())


def ranges_of(tombstones: Iterable[Tombstone], path: str) -> Ranges:
    """What these hide of a series ("device.measurement")."""
    found = [(stone.low, stone.high) for stone in tombstones if stone.covers(path)]
    return Ranges(found) if found else NOTHING_DELETED
