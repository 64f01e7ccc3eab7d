"""The state of a data group but for its points, and its form in checkpoints and snapshots.

Everything here changes by applied entries alone, so it is equal on all replicas at an equal log position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.data.deletes import Intent
from iotdb_cluster.data.entries import DeleteIntent, Header, IntentKind, OpenUnit
from iotdb_cluster.data.moves import Runs, read_runs
from iotdb_cluster.data.outcomes import NotReady, Retiring
from iotdb_cluster.errors import CallerError, CorruptData, Moved, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestWindow
from iotdb_cluster.schema import PathPattern, SchemaTree

__all__ = ["GroupState", "ImportState", "Listed", "SlotState", "StorageGroupState", "UnitState"]

STATE_VERSION = 3
_READABLE = (2, 3)  # 3: slots that move


@dataclass(frozen=True, slots=True)
class SlotState:
    """Meta's last decision about a slot that this group heard of: owned here since `epoch`, or gone under it.

    `move` has fenced an owned slot, and is to give it the epoch `fence` elsewhere; 0 and 0 where nothing has.
    """

    epoch: int
    meta_index: int
    owned: bool = True
    move: int = 0
    fence: int = 0


@dataclass(slots=True)
class ImportState:
    """What came of a giver's export: `found` of `parts` so far, the last one with the log entry `changed`.

    `ready`: the checksum of the staged files' manifests, once the log says that a majority has them.
    """

    slots: Runs
    export: int
    parts: int
    changed: int
    ready: int | None = None
    found: dict[int, bytes] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return len(self.found) == self.parts

    def content(self) -> bytes:
        """The export, of one that is whole."""
        return b"".join(self.found[part] for part in range(self.parts))

    def to_json(self, move: int) -> list[Any]:
        return [move, self.changed, [list(run) for run in self.slots], self.export, self.parts, self.ready]

    def dump(self) -> bytes:
        """The parts themselves."""
        return pack(sorted(self.found), [self.found[part] for part in sorted(self.found)])

    @classmethod
    def from_json(cls, value: list[Any], dumped: bytes | memoryview) -> tuple[int, ImportState]:
        move, changed, slots, export, parts, ready = value
        numbers, buffers = unpack(dumped)
        found = {int(part): bytes(data) for part, data in zip(numbers, buffers, strict=True)}
        return move, cls(read_runs(slots), export, parts, changed, ready, found)


@dataclass(slots=True)
class UnitState:
    """An open unit: what decides the fate of an insert into it."""

    slot: int
    floor: int
    last_intent: int


@dataclass(slots=True)
class Listed:
    """A partition in the directory: the last intent at its listing, the last that concerns it since, and the floor."""

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
    """The whole of it. `units` is by (storage-group id, time partition); `dropped` maps ids to meta indexes.

    `imports` is by move; `dissolved` is the meta index of the decision that the group is no more, 0 before.
    """

    slots: dict[int, SlotState] = field(default_factory=dict)
    units: dict[tuple[int, int], UnitState] = field(default_factory=dict)
    storage_groups: dict[int, StorageGroupState] = field(default_factory=dict)
    dropped: dict[int, int] = field(default_factory=dict)
    requests: RequestWindow = field(default_factory=RequestWindow)
    imports: dict[int, ImportState] = field(default_factory=dict)
    dissolved: int = 0

    def check_slot(self, slot: int, epoch: int) -> None:
        """Raise Moved where the slot's epoch has gone on, or is about to; NotReady where `epoch` is not known yet."""
        known = self.slots.get(slot)
        if known is None:
            raise NotReady(f"slot {slot} is not known here, the request has epoch {epoch}")
        if known.fence and epoch <= known.fence:
            raise Moved(f"slot {slot} is leaving with move {known.move} under epoch {known.fence}")
        if epoch < known.epoch or (epoch == known.epoch and not known.owned):
            raise Moved(f"slot {slot} has epoch {known.epoch} here, the request has {epoch}")
        if epoch > known.epoch:
            raise NotReady(f"slot {slot} has epoch {known.epoch} here, the request has {epoch}")

    def check_exists(self, storage_group: int) -> None:
        """Raise CallerError 322 where the storage group was dropped."""
        if storage_group in self.dropped:
            raise CallerError(Status.STORAGE_GROUP_NOT_EXIST, f"storage group {storage_group} was deleted")

    def check_not_dissolved(self) -> None:
        """Raise CallerError where the group is no more."""
        if self.dissolved:
            raise CallerError(Status.INTERNAL_SERVER_ERROR, "the group is dissolved: it takes no slots any more")

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
        """[first slot, last slot, epoch, meta index, (where it is not just owned:) owned, move, fence] of neighbours
        that are alike: thousands of slots in a few runs."""
        runs: list[list[int]] = []
        last = -2
        known: SlotState | None = None
        for slot in sorted(self.slots):
            one = self.slots[slot]
            if slot == last + 1 and (one is known or one == known):
                runs[-1][1] = slot
            else:
                plain = one.owned and not one.fence
                runs.append([slot, slot, one.epoch, one.meta_index])
                runs[-1] += [] if plain else [int(one.owned), one.move, one.fence]
                known = one
            last = slot
        return runs

    def to_json(self) -> dict[str, Any]:
        """All but the trees and parts of imports, which follow in the order of `storage_groups` and `imports`."""
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
            "imports": [one.to_json(move) for move, one in sorted(self.imports.items())],
            "dissolved": self.dissolved,
        }

    @classmethod
    def from_json(
        cls, value: dict[str, Any], trees: Sequence[SchemaTree], imports: Sequence[bytes | memoryview]
    ) -> GroupState:
        """The inverse of `to_json`, of this version or the one before; CorruptData where it cannot be read."""
        try:
            if value["version"] not in _READABLE:
                raise CorruptData(f"a group's state has version {value['version']}, this program knows {STATE_VERSION}")
            state = cls(requests=RequestWindow.load(value["requests"]), dropped=dict(map(tuple, value["dropped"])))
            for first, last, epoch, meta_index, *rest in value["slots"]:
                owned, move, fence = rest or (1, 0, 0)
                slot = SlotState(epoch, meta_index, bool(owned), move, fence)
                state.slots.update(dict.fromkeys(range(first, last + 1), slot))
            for storage_group, partition, slot, floor, last_intent in value["units"]:
                state.units[storage_group, partition] = UnitState(slot, floor, last_intent)
            for one, tree in zip(value["storage_groups"], trees, strict=True):
                number, known = StorageGroupState.from_json(one, tree)
                state.storage_groups[number] = known
            for dumped, parts in zip(value.get("imports", ()), imports, strict=True):
                move, arriving = ImportState.from_json(dumped, parts)
                state.imports[move] = arriving
            state.dissolved = value.get("dissolved", 0)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptData(f"a group's state cannot be read: {error!r}") from None
        return state
