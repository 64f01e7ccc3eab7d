"""Deletes as numbered intents, driven to their end by whoever leads the schema slot.

The log of the schema slot holds what must survive (the intent, with the partitions that it concerns); which of them
have it already is only remembered by the driver: a new driver sends the intent to all of them again, and those that
have it answer done. So a driver may die at any moment and its successor needs nothing of it.

    progress = DeleteProgress()
    for action in due_actions(group, progress):     # again after each outcome, a change of leader, a new intent
        ... propose action.payload in the group that owns action.slot ...
        progress.finished(action) or progress.postponed(action)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iotdb_cluster.data.entries import NO_REQUEST, DeleteIntent, DeleteRetire, DeleteUnit, Header

if TYPE_CHECKING:
    from iotdb_cluster.data.group import DataGroup

__all__ = ["DeleteAction", "DeleteProgress", "Intent", "due_actions"]


@dataclass(slots=True)
class Intent:
    """An open delete of a storage group.

    `partitions` maps each listed partition that it concerns to the number of the intent before it there. `request` is
    the (node, start, sequence) that asked for it.
    """

    number: int
    delete: DeleteIntent
    partitions: dict[int, int]
    request: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class DeleteAction:
    """A proposal that is due: `header` and `body` make the entry, in the group that owns `header.slot`.

    A `DeleteUnit` goes to the partition's group with that slot's epoch, which the driver puts into the header
    (`header._replace(slot_epoch=...)`) from meta's table; a `DeleteRetire` to the schema slot's own group, complete.
    """

    header: Header
    body: DeleteUnit | DeleteRetire

    @property
    def key(self) -> tuple[int, int, int | None]:
        """(storage-group id, intent, partition; None for a retirement)."""
        partition = self.header.partition if isinstance(self.body, DeleteUnit) else None
        return self.header.storage_group, self.body.number, partition


@dataclass(slots=True)
class DeleteProgress:
    """What one driver has seen so far; lost with it, and empty again after it led no longer.

    `done`: by (storage group, intent) the partitions that have the intent. `running`: keys of actions on their way.
    """

    done: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    running: set[tuple[int, int, int | None]] = field(default_factory=set)

    def started(self, action: DeleteAction) -> None:
        self.running.add(action.key)

    def finished(self, action: DeleteAction) -> None:
        """The action's entry was applied there (its outcome had no error)."""
        self.running.discard(action.key)
        storage_group, number, partition = action.key
        if partition is not None:
            self.done.setdefault((storage_group, number), set()).add(partition)
        else:
            self.done.pop((storage_group, number), None)

    def postponed(self, action: DeleteAction) -> None:
        """The action failed, or its outcome is unknown: it is due again (after a moment of the driver's choice)."""
        self.running.discard(action.key)

    def missing(self, storage_group: int, intent: Intent) -> list[int]:
        """The partitions that are not known to have the intent."""
        done = self.done.get((storage_group, intent.number), set())
        return [partition for partition in intent.partitions if partition not in done]


def due_actions(group: DataGroup, progress: DeleteProgress) -> Iterator[DeleteAction]:
    """What can be proposed now for the open intents of every storage group whose schema slot `group` owns.

    For one partition only the oldest intent that it lacks is due, because a unit takes them in order. Actions that
    `progress` knows to be running are left out. The order is that of storage groups, then intents, then partitions.
    """
    for storage_group in group.storage_groups():
        intents = group.intents(storage_group)
        if not intents:
            continue
        schema = group.schema_header(storage_group)
        if group.is_fenced(schema.slot):  # whoever has the slot then goes on
            continue
        waiting: set[int] = set()
        open_ones = {intent.number for intent in intents}
        for intent in intents:
            missing = progress.missing(storage_group, intent)
            for partition in missing:
                if partition in waiting:
                    continue
                waiting.add(partition)
                slot, opening = group.listed(storage_group, partition)
                header = Header(NO_REQUEST, storage_group, slot, 0, 0, partition)
                before = intent.partitions[partition]
                if before not in open_ones:  # it was done there; where copies were lost the unit may not know it
                    before = 0
                body = DeleteUnit(intent.number, before, intent.delete, opening)
                action = DeleteAction(header, body)
                if action.key not in progress.running:
                    yield action
            if not missing:
                retire = DeleteAction(schema, DeleteRetire(intent.number))
                if retire.key not in progress.running:
                    yield retire
