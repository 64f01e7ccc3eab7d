"""The partition table: the owner group and the epoch of each slot."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from iotdb_cluster.errors import check
from iotdb_cluster.limits import SLOTS

__all__ = ["PartitionTable"]


class PartitionTable:
    """For each slot the group that owns it, and how often meta has decided about it (the slot epoch)."""

    __slots__ = ("_epochs", "_owners")

    def __init__(self, owners: list[int], epochs: list[int]) -> None:
        check(len(owners) == len(epochs) == SLOTS, "a table of %s owners and %s epochs", len(owners), len(epochs))
        self._owners = owners
        self._epochs = epochs

    @classmethod
    def initial(cls, groups: Iterable[int]) -> PartitionTable:
        """Even runs of slots in the order of the group ids, everything at epoch 1."""
        ids = sorted(groups)
        check(ids, "a partition table needs a group")
        return cls([ids[slot * len(ids) // SLOTS] for slot in range(SLOTS)], [1] * SLOTS)

    def owner(self, slot: int) -> tuple[int, int]:
        """(group id, slot epoch)."""
        return self._owners[slot], self._epochs[slot]

    @property
    def owners(self) -> tuple[int, ...]:
        """The group id of each slot."""
        return tuple(self._owners)

    def slots_of(self, group: int) -> list[int]:
        """The slots that the group owns, ascending."""
        return [slot for slot, owner in enumerate(self._owners) if owner == group]

    def counts(self) -> dict[int, int]:
        """How many slots each group owns, by ascending group id; groups without slots are not there."""
        found: dict[int, int] = {}
        for owner in self._owners:
            found[owner] = found.get(owner, 0) + 1
        return dict(sorted(found.items()))

    def decide(self, slot: int, group: int, epoch: int) -> None:
        """Meta's decision about a slot; epochs only grow."""
        check(epoch > self._epochs[slot], "slot %s is at epoch %s, not before %s", slot, self._epochs[slot], epoch)
        self._owners[slot] = group
        self._epochs[slot] = epoch

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartitionTable):
            return NotImplemented
        return self._owners == other._owners and self._epochs == other._epochs

    __hash__ = None  # type: ignore[assignment]

    def dump(self) -> list[list[int]]:
        """For JSON: runs of [owner, epoch, slots]."""
        runs = groupby(zip(self._owners, self._epochs, strict=True))
        return [[owner, epoch, sum(1 for _ in run)] for (owner, epoch), run in runs]

    @classmethod
    def load(cls, dumped: Any) -> PartitionTable:
        owners: list[int] = []
        epochs: list[int] = []
        for owner, epoch, count in dumped:
            owners += [owner] * count
            epochs += [epoch] * count
        return cls(owners, epochs)
