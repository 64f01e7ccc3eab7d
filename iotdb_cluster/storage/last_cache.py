"""The latest point of series that were asked for it.

What is remembered of a series says from which to which write of its unit it held. Neither flush nor compaction changes
it; later writes are looked at alone, a deletion or expiry makes it void.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from iotdb_cluster.columns import DataType
from iotdb_cluster.limits import LAST_CACHE_SERIES_MAX
from iotdb_cluster.storage.types import Point

__all__ = ["LastCache", "LastKey", "LastPoint"]

TEXT_BYTES_MAX = 1_024  # longer texts are read anew: so many of them have no bound in bytes

LastKey = tuple[int, str, str, DataType]  # number of the unit in the running store, device, measurement, type


class LastPoint(NamedTuple):
    """`point` was the latest one (None: there was none) after each write from `since` to `until`."""

    since: int
    until: int
    point: Point | None


class LastCache:
    """Of one store, the least recently used leave first. For any thread."""

    def __init__(self, series_max: int = LAST_CACHE_SERIES_MAX) -> None:
        self._series_max = series_max
        self._entries: OrderedDict[LastKey, LastPoint] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: LastKey) -> LastPoint | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: LastKey, last: LastPoint) -> None:
        """An older one never takes the place of a newer one; what ends with a long text is not remembered."""
        if last.point is not None and isinstance(last.point[1], bytes) and len(last.point[1]) > TEXT_BYTES_MAX:
            return
        with self._lock:
            known = self._entries.get(key)
            if known is not None and known.until > last.until:
                return
            self._entries[key] = last
            self._entries.move_to_end(key)
            if len(self._entries) > self._series_max:
                self._entries.popitem(last=False)
