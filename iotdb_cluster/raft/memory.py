"""A `LogView` in memory, for tests and simulations."""

from __future__ import annotations

from iotdb_cluster.errors import check
from iotdb_cluster.raft.message import (
    Compacted,
    ConfState,
    Entries,
    HardState,
    Snapshot,
    SnapshotNotReady,
    Unavailable,
)

__all__ = ["MemoryLog"]


class MemoryLog:
    """What was written counts as durable at once."""

    def __init__(self, conf_state: ConfState | None = None) -> None:
        """An empty log; `conf_state` names the members of a group that begins at index 1."""
        self.hard_state = HardState()
        self.conf_state = conf_state if conf_state is not None else ConfState()
        self.newest_snapshot = Snapshot()
        self._before = (0, 0)  # (index, term) of the entry before the first
        self._terms: list[int] = []
        self._kinds: list[int] = []
        self._data: list[bytes] = []

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self.hard_state, self.conf_state

    def first_index(self) -> int:
        return self._before[0] + 1

    def last_index(self) -> int:
        return self._before[0] + len(self._terms)

    def term(self, index: int) -> int:
        at = index - self._before[0]
        if at < 0:
            raise Compacted(index)
        if at > len(self._terms):
            raise Unavailable(index)
        return self._terms[at - 1] if at else self._before[1]

    def entries(self, low: int, high: int, bytes_max: int) -> Entries:
        if low <= self._before[0]:
            raise Compacted(low)
        check(low <= high, "entries [%d, %d)", low, high)
        if high > self.last_index() + 1:
            raise Unavailable(high)
        a, b = low - self.first_index(), high - self.first_index()
        return Entries(low, self._terms[a:b], self._kinds[a:b], self._data[a:b]).limit(bytes_max)

    def has_changes(self, low: int, high: int) -> bool:
        first = self.first_index()
        return any(self._kinds[max(0, low - first) : high - first])

    def snapshot(self) -> Snapshot:
        if not self.newest_snapshot.index:
            raise SnapshotNotReady
        return self.newest_snapshot

    # --- writing ----------------------------------------------------------------------------------------------------
    def append(self, entries: Entries) -> None:
        """Entries take the place of everything from their first index on; what is compacted already is left out."""
        if not entries.terms or entries.last < self.first_index():
            return
        entries = entries.slice(max(entries.first, self.first_index()), entries.last + 1)
        at = entries.first - self.first_index()
        check(at <= len(self._terms), "entries from %d leave a gap behind %d", entries.first, self.last_index())
        self._terms[at:] = entries.terms
        self._kinds[at:] = entries.kinds
        self._data[at:] = entries.data

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`. Raises Compacted where they are gone."""
        if index <= self._before[0]:
            raise Compacted(index)
        check(index <= self.last_index(), "compact %d behind %d", index, self.last_index())
        term = self.term(index)
        count = index - self._before[0]
        del self._terms[:count], self._kinds[:count], self._data[:count]
        self._before = (index, term)

    def install(self, snapshot: Snapshot) -> None:
        """A received snapshot replaces the whole log. Raises Compacted where it is no newer than the last one."""
        if self.newest_snapshot.index >= snapshot.index:
            raise Compacted(snapshot.index)
        self.newest_snapshot = snapshot
        self.conf_state = snapshot.conf_state
        self._before = (snapshot.index, snapshot.term)
        self._terms, self._kinds, self._data = [], [], []
