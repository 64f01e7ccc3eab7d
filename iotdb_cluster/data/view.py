"""What a data group knows and answers, as of the last applied entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from iotdb_cluster.data.deletes import Intent
from iotdb_cluster.data.entries import Header, OpenUnit
from iotdb_cluster.data.handoff import Export, Handoff
from iotdb_cluster.data.moves import Runs, runs_of
from iotdb_cluster.data.outcomes import NotReady
from iotdb_cluster.data.state import GroupState, ImportState, StorageGroupState, UnitState
from iotdb_cluster.errors import Moved, StaleSchema
from iotdb_cluster.requests import NO_REQUEST
from iotdb_cluster.schema import PathPattern, Series, split_path
from iotdb_cluster.storage import PinnedUnit, Stage, Store, UnitId, UnitReader

__all__ = ["GroupView", "Held", "check_floor"]


class Held(NamedTuple):
    """What a slot holds: open units, their bytes in files and memory, series of the schemas in it."""

    units: int
    bytes: int
    series: int


_NOTHING = Held(0, 0, 0)
WALK_UNITS = 1_000  # of which the bytes are added up before others may use the loop: a few milliseconds


def _nothing(slot: int) -> int:
    del slot
    return 0


class GroupView:
    """The reading side of `DataGroup`."""

    def __init__(self, number: int, store: Store, state: GroupState, handoff: Handoff) -> None:
        self.number = number
        self.store = store
        self._state = state
        self._handoff = handoff
        # The epoch of the last decision about a slot, as this node's meta state has it: the log may not have heard of
        # it, or, after a forced reconfiguration that lost entries, have forgotten it.
        self.decided: Callable[[int], int] = _nothing
        self.moving_entries = 0  # about slots that move, as they were applied in this life

    # --- what the group knows -----------------------------------------------------------------------------------------

    def slot_epoch(self, slot: int) -> int:
        """The epoch under which this group owns the slot, fenced or not; 0 where it does not."""
        known = self._state.slots.get(slot)
        return 0 if known is None or not known.owned else known.epoch

    def heard_epoch(self, slot: int) -> int:
        """The epoch of the last decision about the slot that this group heard of, whoever owns it then; 0: of none."""
        known = self._state.slots.get(slot)
        return 0 if known is None else known.epoch

    def slots(self) -> dict[int, int]:
        """Every slot that this group owns, fenced ones too, with its epoch."""
        return {slot: known.epoch for slot, known in sorted(self._state.slots.items()) if known.owned}

    def is_fenced(self, slot: int) -> bool:
        """Whether the slot is about to leave."""
        known = self._state.slots.get(slot)
        return known is not None and known.fence > 0

    def is_dropped(self, storage_group: int) -> bool:
        return storage_group in self._state.dropped

    def units(self) -> dict[tuple[int, int], UnitState]:
        """The open units by (storage-group id, partition); not to be changed."""
        return self._state.units

    def storage_groups(self) -> list[int]:
        """The ids of the storage groups whose schema slot is here, ascending."""
        return sorted(self._state.storage_groups)

    def intents(self, storage_group: int) -> list[Intent]:
        """The open deletes of a storage group whose schema slot is here, oldest first; not to be changed."""
        known = self._state.storage_groups.get(storage_group)
        return [] if known is None else list(known.intents.values())

    def is_retired(self, storage_group: int, number: int) -> bool:
        """Whether delete `number` has come to its end here; CallerError 322 where the storage group was dropped."""
        self._state.check_exists(storage_group)
        known = self._state.storage_groups.get(storage_group)
        return known is not None and number <= known.last_intent and number not in known.intents

    def schema_header(self, storage_group: int) -> Header:
        """A header, without request id, for an entry to the storage group's schema slot here."""
        slot = self._state.storage_groups[storage_group].slot
        return Header(NO_REQUEST, storage_group, slot, self.slot_epoch(slot))

    def listed(self, storage_group: int, partition: int) -> tuple[int, OpenUnit]:
        """(slot, what opens the unit) of a partition in the directory."""
        one = self._state.storage_groups[storage_group].directory[partition]
        return one.slot, OpenUnit(one.floor, one.last_intent)

    def check_current(self, slot: int, epoch: int) -> None:
        """Raise Moved where meta has decided about the slot since. For reads, never for entries of the log."""
        if epoch < self.decided(slot):
            raise Moved(f"slot {slot} has a later epoch than the request's {epoch}: meta has decided about it since")

    def check_told(self, slot: int, epoch: int) -> None:
        """The same for what is to be logged: NotReady. Moved is final for a request, so the log alone may say it.

        An earlier attempt of the request may stand in the log already, not applied yet: then it takes effect.
        """
        if epoch < self.decided(slot):
            raise NotReady(f"meta has decided about slot {slot} since epoch {epoch}: this group is being told")

    # --- reads --------------------------------------------------------------------------------------------------------

    def reader(self, storage_group: int, partition: int, slot: int, slot_epoch: int, schema_epoch: int) -> UnitReader:
        """A reader that pins the unit as of `applied`; close it.

        Raises Moved, StaleSchema (plan again), CallerError 322, or NotReady; one with `unit_closed` says that the unit
        holds no points yet, which at an index that a read barrier gave is an answer.
        """
        header = Header(NO_REQUEST, storage_group, slot, slot_epoch, schema_epoch, partition)
        self.check_current(slot, slot_epoch)
        check_floor(self._state.unit_of(header), header)
        return self.store.reader(UnitId(storage_group, partition))

    def schema(self, storage_group: int, slot: int, slot_epoch: int) -> StorageGroupState | None:
        """The schema slot's state for reading: `tree`, `epoch`, `directory`. None: nothing was ever created in it.

        Raises Moved, NotReady, or CallerError 322.
        """
        self.check_current(slot, slot_epoch)
        return self._schema_here(storage_group, slot, slot_epoch)

    def _schema_here(self, storage_group: int, slot: int, slot_epoch: int) -> StorageGroupState | None:
        """What the log alone says."""
        self._state.check_exists(storage_group)
        self._state.check_slot(slot, slot_epoch)
        known = self._state.storage_groups.get(storage_group)
        if known is not None:
            self._state.check_same_slot(slot, known.slot)
        return known

    def resolve(
        self, storage_group: int, slot: int, slot_epoch: int, devices: Mapping[str, Sequence[str]]
    ) -> tuple[int, dict[str, list[Series | None]]]:
        """(schema epoch, for each device the series of these measurements or aliases, None where there is none).

        What a coordinator may remember and write under that epoch; a write names `Series.measurement`, never an alias.
        Raises as `schema`, and Retiring where one of the series is being deleted: under the new epoch nobody may learn
        the old one's type.
        """
        known = self.schema(storage_group, slot, slot_epoch)
        if known is None:
            return 0, {device: [None] * len(names) for device, names in devices.items()}
        found = {device: known.tree.resolve(device, names) for device, names in devices.items()}
        if known.retiring:
            for series in (one for several in found.values() for one in several if one is not None):
                known.check_not_retiring(split_path(series.path))
        return known.epoch, found

    def match(
        self, storage_group: int, slot: int, slot_epoch: int, pattern: PathPattern, limit: int | None = None
    ) -> tuple[int, list[Series]]:
        """(schema epoch, the series that match, by path): for reads, so series that are being deleted stand there too.

        Raises as `schema`.
        """
        known = self.schema(storage_group, slot, slot_epoch)
        return (0, []) if known is None else (known.epoch, known.tree.match(pattern, limit=limit))

    def partitions(self, storage_group: int, slot: int, slot_epoch: int) -> list[int]:
        """The listed time partitions, ascending; raises as `schema`."""
        known = self.schema(storage_group, slot, slot_epoch)
        return [] if known is None else sorted(known.directory)

    # --- slots that move ----------------------------------------------------------------------------------------------

    def fenced(self, move: int) -> Runs:
        """The slots that this group has fenced for a move, with the epochs that they are to get; empty: none."""
        return runs_of((slot, known.fence) for slot, known in self._state.slots.items() if known.move == move)

    def moves_away(self) -> list[int]:
        """The moves that have fenced slots here, ascending."""
        return sorted({known.move for known in self._state.slots.values() if known.move})

    def imports(self) -> dict[int, ImportState]:
        """What was imported, by move, and waits for meta's decision; not to be changed."""
        return self._state.imports

    @property
    def dissolved(self) -> int:
        """The meta index of the decision that the group is no more; 0 before."""
        return self._state.dissolved

    def units_in(self, slots: Iterable[int]) -> list[UnitId]:
        """The open units in these slots, sorted."""
        inside = set(slots)
        return sorted(UnitId(*key) for key, unit in self._state.units.items() if unit.slot in inside)

    def slots_held(self) -> dict[int, Held]:
        """What the slots hold that this group owns, of those that hold anything."""
        found: dict[int, Held] = {}
        for _ in self.walk_held(found):
            pass
        return dict(sorted(found.items()))

    def walk_held(self, found: dict[int, Held]) -> Iterator[None]:
        """Fill `found` with what the slots hold, as `slots_held`; others may use the loop at each yield."""
        for place, (key, unit) in enumerate(list(self._state.units.items()), 1):
            if self._state.units.get(key) is unit:  # it has not gone since
                held = found.get(unit.slot, _NOTHING)
                size = held.bytes + self.store.unit_bytes(UnitId(*key))
                found[unit.slot] = held._replace(units=held.units + 1, bytes=size)
            if place % WALK_UNITS == 0:
                yield
        for one in self._state.storage_groups.values():
            held = found.get(one.slot, _NOTHING)
            found[one.slot] = held._replace(series=held.series + len(one.tree))

    def export(self, move: int) -> Export:
        """What the receiver's log is to have of the fenced slots; NotReady where the move has fenced none here."""
        slots = self.fenced(move)
        if not slots:
            raise NotReady(f"move {move} has fenced nothing in group {self.number}")
        return Export(move, slots, self._state)

    def pin_fenced(self, move: int) -> list[tuple[PinnedUnit, int]]:
        """(a unit's final files, the epoch that its slot is to get), sorted; release each.

        Raises NotReady where the move has fenced nothing here or a unit is not flushed yet, CorruptData where one is
        damaged.
        """
        epochs = {slot: known.fence for slot, known in self._state.slots.items() if known.move == move}
        if not epochs:
            raise NotReady(f"move {move} has fenced nothing in group {self.number}")
        found: list[tuple[PinnedUnit, int]] = []
        try:
            for unit in self.units_in(epochs):
                if self.store.oldest_unflushed(unit) is not None:
                    raise NotReady(f"unit {unit} is not flushed yet")
                found.append((self.store.pin_files(unit), epochs[self._state.units[unit].slot]))
        except BaseException:
            for pinned, _ in found:
                pinned.release()
            raise
        return found

    def reading_ahead(self) -> dict[int, Callable[[], None]]:
        """What a worker may run, by move, of imports that are whole: OWN then does not hold up the loop."""
        return self._handoff.reading_ahead(self._state)

    # --- stages: files of moves that come here; all but `stage` and `is_over` on a worker -----------------------------

    def stage(self, move: int) -> Stage:
        """Where this replica keeps the files of a move until OWN; `begin` it with the runs of its slots."""
        return self._handoff.stage(move)

    def stages(self) -> dict[int, Runs]:
        """The moves of which files lie here, with their slots. SystemFault."""
        return self._handoff.stages()

    def is_over(self, move: int, slots: Runs, epoch_of: Callable[[int], int]) -> bool:
        """Whether a stage of the move may go that meta does not know any more: this replica has applied what became of
        it, or it came to nothing, for meta's table has gone on (`epoch_of` a slot)."""
        if move in self._state.imports:
            return False
        for first, last, epoch in slots:
            for slot in range(first, last + 1):
                if self.heard_epoch(slot) < epoch and epoch_of(slot) <= epoch:
                    return False
        return True

    def remove_stage(self, move: int) -> None:
        """Only where `is_over`. SystemFault."""
        self._handoff.remove_stage(move)


def check_floor(unit: UnitState, header: Header) -> None:
    if header.schema_epoch < unit.floor:
        raise StaleSchema(
            f"the series were resolved under schema epoch {header.schema_epoch}; partition {header.partition} of"
            f" storage group {header.storage_group} has {unit.floor}"
        )
