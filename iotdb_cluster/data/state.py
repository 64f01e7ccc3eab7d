"""The state of a data group but for its points, and its form in checkpoints and snapshots.

Everything here changes by applied entries alone, so it is equal on all replicas at an equal log position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.data.deletes import Intent
from iotdb_cluster.data.entries import DeleteIntent, Header, IntentKind, OpenUnit
from iotdb_cluster.data.outcomes import NotReady, Retiring
from iotdb_cluster.errors import CallerError, CorruptData, Moved, Status
from iotdb_cluster.requests import RequestWindow
from iotdb_cluster.schema import PathPattern, SchemaTree

__all__ = ["GroupState", "Listed", "SlotState", "StorageGroupState", "UnitState"]

STATE_VERSION = 2


@dataclass(frozen=True, slots=True)
class SlotState:
    """Meta's last decision about a slot that this group heard of: owned here since `epoch`."""

    epoch: int
    meta_index: int


@dataclass(slots=True)
class UnitState:
    """An open unit: what decides the fate of an insert into it."""

    slot: int
    floor: int
    last_intent: int


@dataclass(slots=True)
class Listed:
    """A partition in the directory: (floor, last intent) at its listing, and the last intent that concerns it since."""

    slot: int
    floor: int
    last_intent: int
    assigned: int


@dataclass(slots=True)
class StorageGroupState:
    """The schema slot of a storage group. `changed` is the log index at which its tree last changed."""

    slot: int
    tree: SchemaTree
    epoch: int = 0
    last_intent: int = 0
    changed: int = 0
    intents: dict[int, Intent] = field(default_factory=dict)
    directory: dict[int, Listed] = field(default_factory=dict)
    retiring: list[tuple[PathPattern, int]] = field(default_factory=list)

    def check_not_retiring(self, nodes: tuple[str, ...]) -> None:
        """Raise Retiring where an open DELETE TIMESERIES matches the series."""
        for pattern, number in self.retiring:
            if pattern.matches(nodes):
                raise Retiring(
                    f"{'.'.join(nodes)} is being deleted (delete {number}): try again later",
                    number,
                    tuple(self.intents[number].partitions),
                )

    def add_intent(self, intent: Intent) -> None:
        self.intents[intent.number] = intent
        if intent.delete.intent is IntentKind.TIMESERIES:
            self.retiring.extend((pattern, intent.number) for pattern in intent.delete.patterns)

    def remove_intent(self, number: int) -> Intent | None:
        self.retiring = [item for item in self.retiring if item[1] != number]
        return self.intents.pop(number, None)

    def to_json(self, storage_group: int) -> list[Any]:
        intents = [
            [
                intent.number,
                intent.delete.to_json(),
                [list(item) for item in intent.partitions.items()],
                list(intent.request),
            ]
            for intent in self.intents.values()
        ]
        listed = [[p, one.slot, one.floor, one.last_intent, one.assigned] for p, one in self.directory.items()]
        return [storage_group, self.slot, self.epoch, self.last_intent, self.changed, intents, listed]

    @classmethod
    def from_json(cls, value: list[Any], tree: SchemaTree) -> tuple[int, StorageGroupState]:
        storage_group, slot, epoch, last_intent, changed, intents, listed = value
        state = cls(slot, tree, epoch, last_intent, changed)
        for number, delete, partitions, (node, start, sequence) in intents:
            body = DeleteIntent.from_json(delete)
            state.add_intent(Intent(number, body, dict(partitions), (node, start, sequence)))
        for partition, *fields in listed:
            state.directory[partition] = Listed(*fields)
        return storage_group, state


@dataclass(slots=True)
class GroupState:
    """The whole of it. `units` is by (storage-group id, time partition); `dropped` maps ids to meta indexes."""

    slots: dict[int, SlotState] = field(default_factory=dict)
    units: dict[tuple[int, int], UnitState] = field(default_factory=dict)
    storage_groups: dict[int, StorageGroupState] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    requests: RequestWindow = field(default_factory=RequestWindow)

    def check_slot(self, slot: int, epoch: int) -> None:
        """Raise Moved where the slot's epoch has gone on, NotReady where this group has not heard of `epoch` yet."""
        known = self.slots.get(slot)
        here = 0 if known is None else known.epoch
        if epoch < here:
            raise Moved(f"slot {slot} has epoch {here} here, the request has {epoch}")
        if epoch > here or not here:
            raise NotReady(f"slot {slot} has epoch {here} here, the request has {epoch}")

    def check_exists(self, storage_group: int) -> None:
        """Raise CallerError 322 where the storage group was dropped."""
        if storage_group in self.dropped:
            raise CallerError(Status.STORAGE_GROUP_NOT_EXIST, f"storage group {storage_group} was deleted")

    def unit_of(self, header: Header) -> UnitState:
        """The open unit of a request; CallerError 322, Moved or NotReady."""
        self.check_exists(header.storage_group)
        self.check_slot(header.slot, header.slot_epoch)
        unit = self.units.get((header.storage_group, header.partition))
        if unit is None:
            raise NotReady(
                f"partition {header.partition} of storage group {header.storage_group} is not open here", True
            )
        self.check_same_slot(header.slot, unit.slot)
        return unit

    @staticmethod
    def check_same_slot(named: int, real: int) -> None:
        """Raise CallerError where a request names another slot than the object's."""
        if named != real:
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"the request names slot {named}; it is slot {real}")

    def opening(self, header: Header, body: OpenUnit) -> UnitState:
        """The unit of the header, opened by `body` where it is not open; raises as `unit_of`."""
        self.check_exists(header.storage_group)
        self.check_slot(header.slot, header.slot_epoch)
        key = (header.storage_group, header.partition)
        unit = self.units.get(key)
        if unit is None:
            unit = self.units[key] = UnitState(header.slot, body.floor, body.last_intent)
        self.check_same_slot(header.slot, unit.slot)
        return unit

    def _slot_runs(self) -> list[list[int]]:
        """[first slot, last slot, epoch, meta index] of neighbours that are alike: thousands of slots in a few runs."""
        runs: list[list[int]] = []
        first = last = -2
        known: SlotState | None = None
        for slot in sorted(self.slots):
            one = self.slots[slot]
            if slot != last + 1 or (one is not known and one != known):
                if known is not None:
                    runs.append([first, last, known.epoch, known.meta_index])
                first, known = slot, one
            last = slot
        if known is not None:
            runs.append([first, last, known.epoch, known.meta_index])
        return runs

    def to_json(self) -> dict[str, Any]:
        """All but the trees, which follow in the order of `storage_groups`."""
        return {
            "version": STATE_VERSION,
            "slots": self._slot_runs(),
            "units": [
                [storage_group, partition, unit.slot, unit.floor, unit.last_intent]
                for (storage_group, partition), unit in sorted(self.units.items())
            ],
            "storage_groups": [one.to_json(number) for number, one in sorted(self.storage_groups.items())],
            "dropped": sorted(self.dropped.items()),
            "requests": self.requests.dump(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], trees: list[SchemaTree]) -> GroupState:
        """The inverse of `to_json`; CorruptData where it cannot be read."""
        try:
            if value["version"] != STATE_VERSION:
                raise CorruptData(f"a group's state has version {value['version']}, this program knows {STATE_VERSION}")
            state = cls(requests=RequestWindow.load(value["requests"]), dropped=dict(map(tuple, value["dropped"])))
            for first, last, epoch, meta_index in value["slots"]:
                state.slots.update(dict.fromkeys(range(first, last + 1), SlotState(epoch, meta_index)))
            for storage_group, partition, slot, floor, last_intent in value["units"]:
                state.units[storage_group, partition] = UnitState(slot, floor, last_intent)
            for one, tree in zip(value["storage_groups"], trees, strict=True):
                number, known = StorageGroupState.from_json(one, tree)
                state.storage_groups[number] = known
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptData(f"a group's state cannot be read: {error!r}") from None
        return state
