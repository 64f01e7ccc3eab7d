"""How much is applied in a turn of the loop, whatever number of groups has much to apply, as after a restart."""

from __future__ import annotations

from iotdb_cluster.cluster.group import Group
from iotdb_cluster.limits import APPLY_BYTES_MAX, APPLY_ENTRIES_MAX
from iotdb_cluster.raft import Entries

__all__ = ["Applying"]


class Applying:
    """What a turn may still apply; the last run may go beyond it. A group for which nothing is left waits its turn."""

    def __init__(self) -> None:
        self.waiting: dict[int, Group] = {}  # in the order in which they are to go on
        self.spent = False
        self._bytes = 0
        self._entries = 0

    def begin(self) -> None:
        """A turn begins."""
        self.spent = False
        self._bytes = self._entries = 0

    def took(self, entries: Entries) -> None:
        """A run was applied."""
        self._bytes += entries.byte_size
        self._entries += len(entries.terms)
        self.spent = self._bytes >= APPLY_BYTES_MAX or self._entries >= APPLY_ENTRIES_MAX

    def wait(self, group: Group) -> None:
        """The group has something to apply: behind those that wait already."""
        self.waiting.setdefault(group.id, group)

    def next(self) -> Group:
        """Who has waited longest, and waits no more."""
        return self.waiting.pop(next(iter(self.waiting)))
