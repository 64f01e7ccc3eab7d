"""What a group does with the entries of slots that move: fences and imports, and meta's decisions.

What travels is an *export* of the giver, made after its fence: the schema, the directory and the open deletes of the
schema slots among the slots, what decides the fate of inserts into their units, the dropped ids, and the applied
request ids. The points travel as files, beside the log (`storage.Stage`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from iotdb_cluster.data.moves import Discard, Dissolve, DropSlots, Fence, Import, Own, Ready, Runs, runs_of, slots_in
from iotdb_cluster.data.outcomes import NotReady
from iotdb_cluster.data.state import GroupState, ImportState, SlotState, StorageGroupState, UnitState
from iotdb_cluster.errors import CallerError, CorruptData, Moved, Status, SystemFault, check
from iotdb_cluster.limits import ENTRY_BYTES_MAX, KIB
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestWindow
from iotdb_cluster.schema import SchemaTree, TreeSnapshot
from iotdb_cluster.storage import Stage, Store, UnitId
from iotdb_cluster.world import FileSystem

__all__ = ["Export", "Handoff", "moves_directory"]

_RECEIVED = re.compile(r"\.[0-9]{20}$")  # the name of a directory that came as a snapshot ends so
PART_BYTES = ENTRY_BYTES_MAX - 256 * KIB  # beside it the entry names the slots: at most 10,000 runs


def moves_directory(directory: str) -> str:
    """Where a replica in `directory` stages what moves to it: beside its first directory, snapshots do not touch it."""
    return f"{_RECEIVED.sub('', directory)}.moves"


class Export:
    """What decides an entry's fate in some fenced slots. Walk it with `step` on the loop until that gives False, then
    call `parts` on a worker."""

    def __init__(self, move: int, slots: Runs, state: GroupState) -> None:
        inside = slots_in(slots)
        groups = [(number, one) for number, one in sorted(state.storage_groups.items()) if one.slot in inside]
        self._move = move
        self._slots = slots
        self._head = {
            "units": [
                [*key, unit.slot, unit.floor, unit.last_intent]
                for key, unit in sorted([(key, unit) for key, unit in state.units.items() if unit.slot in inside])
            ],
            "storage_groups": [one.to_json(number) for number, one in groups],
            "dropped": sorted(state.dropped.items()),
            "requests": state.requests.dump(),
        }
        self._trees: list[TreeSnapshot] = [one.tree.still() for _, one in groups]

    def step(self) -> bool:
        """Walk on through the trees, some milliseconds; False when all is walked."""
        return any(tree.step() for tree in self._trees)

    def parts(self) -> list[Import]:
        """The entries for the receiver's log, in order."""
        while self.step():
            pass
        content = pack(self._head, [tree.encode() for tree in self._trees])
        export = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1
        pieces = [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]
        return [Import(self._move, self._slots, export, part, len(pieces), piece) for part, piece in enumerate(pieces)]


@dataclass(slots=True)
class _Arriving:
    """An export that was read again."""

    units: dict[tuple[int, int], UnitState]
    storage_groups: dict[int, StorageGroupState]
    dropped: dict[int, int]
    requests: RequestWindow


def _read(content: bytes) -> _Arriving:
    """CorruptData where it is no export."""
    try:
        head, trees = unpack(content)
        arriving = _Arriving({}, {}, {}, RequestWindow.load(head["requests"]))
        arriving.dropped.update((int(number), int(meta_index)) for number, meta_index in head["dropped"])
        for storage_group, partition, slot, floor, last_intent in head["units"]:
            arriving.units[storage_group, partition] = UnitState(slot, floor, last_intent)
        for one, tree in zip(head["storage_groups"], trees, strict=True):
            number, known = StorageGroupState.from_json(one, SchemaTree.load(tree))
            arriving.storage_groups[number] = known
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(f"an export cannot be read: {error!r}") from None
    return arriving


class Handoff:
    """The part of one replica that slots need to move; what it knows beside the state are files, and work done ahead.

    Each `check_...` raises CallerError where the entry would be refused now, and changes nothing.
    """

    def __init__(self, files: FileSystem, directory: str, store: Store) -> None:
        self._files = files
        self._directory = directory  # of the stages, by move
        self._store = store
        self._read_ahead: dict[int, tuple[int, _Arriving]] = {}  # by move: (export, what it says)

    # --- the giver ----------------------------------------------------------------------------------------------------

    def check_fence(self, state: GroupState, body: Fence) -> None:
        for slot, epoch in slots_in(body.slots).items():
            known = state.slots.get(slot)
            if known is not None and epoch <= known.epoch:
                raise Moved(f"slot {slot} has epoch {known.epoch} here, move {body.move} would give it {epoch}")
            if known is None or not known.owned:
                raise NotReady(f"slot {slot} is not owned here: move {body.move} cannot fence it yet")
            if known.move not in (0, body.move):
                raise NotReady(f"slot {slot} is fenced by move {known.move}, not by {body.move}")

    def fence(self, state: GroupState, body: Fence) -> None:
        self.check_fence(state, body)
        for slot, epoch in slots_in(body.slots).items():
            state.slots[slot] = replace(state.slots[slot], move=body.move, fence=epoch)

    def check_drop(self, state: GroupState, body: DropSlots) -> dict[int, SlotState]:
        """What these slots are then."""
        gone: dict[int, SlotState] = {}
        for slot, epoch in slots_in(body.slots).items():
            known = state.slots.get(slot)
            if known is None or epoch <= known.epoch or body.meta_index < known.meta_index:
                continue
            if known.owned and known.fence != epoch:
                raise NotReady(f"slot {slot} is not fenced here for epoch {epoch}: it cannot go")
            gone[slot] = SlotState(epoch, body.meta_index, owned=False)
        return gone

    def drop(self, state: GroupState, index: int, body: DropSlots) -> dict[str, int]:
        """{"slots": how many went}."""
        gone = self.check_drop(state, body)
        state.slots.update(gone)
        for key in sorted(key for key, unit in state.units.items() if unit.slot in gone):
            unit = state.units.pop(key)
            self._store.drop_unit(UnitId(*key), (gone[unit.slot].epoch, index))
        for number in [number for number, one in state.storage_groups.items() if one.slot in gone]:
            del state.storage_groups[number]
        return {"slots": len(gone)}

    # --- the receiver -------------------------------------------------------------------------------------------------

    def check_import(self, state: GroupState, body: Import) -> None:
        state.check_not_dissolved()
        for slot, epoch in slots_in(body.slots).items():
            known = state.slots.get(slot)
            if known is not None and epoch <= known.epoch:
                raise Moved(f"slot {slot} has epoch {known.epoch} here, move {body.move} would give it {epoch}")
        one = state.imports.get(body.move)
        if one is not None and one.export == body.export and (one.parts, one.slots) != (body.parts, body.slots):
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"export {body.export} of move {body.move} has two forms")

    def take_part(self, state: GroupState, index: int, body: Import) -> None:
        """Another export takes the place of the one before; not once that is ready."""
        self.check_import(state, body)
        one = state.imports.get(body.move)
        if one is not None and one.ready is not None:
            return
        if one is None or one.export != body.export:
            one = state.imports[body.move] = ImportState(body.slots, body.export, body.parts, index)
        if body.part not in one.found:
            one.found[body.part] = body.data
            one.changed = index

    def check_ready(self, state: GroupState, body: Ready) -> ImportState:
        one = state.imports.get(body.move)
        if one is None or not one.is_whole:
            here = "nothing" if one is None else f"{len(one.found)} of {one.parts} parts"
            raise NotReady(f"of move {body.move} {here} is here")
        return one

    def ready(self, state: GroupState, body: Ready) -> None:
        self.check_ready(state, body).ready = body.checksum

    def discard(self, state: GroupState, body: Discard) -> None:
        state.imports.pop(body.move, None)
        self._read_ahead.pop(body.move, None)

    def reading_ahead(self, state: GroupState) -> dict[int, Callable[[], None]]:
        """What a worker may do before OWN comes, by move, so that a large schema does not hold up the loop then.

        Of the imports that are whole and were not read yet; a second reading of one comes to the same.
        """
        for over in [move for move in list(self._read_ahead) if move not in state.imports]:
            del self._read_ahead[over]
        return {
            move: partial(self._read_now, move, one.export, one.content)
            for move, one in state.imports.items()
            if one.is_whole and self._read_ahead.get(move, (-1, None))[0] != one.export
        }

    def _read_now(self, move: int, export: int, content: Callable[[], bytes]) -> None:
        """Of a move that is over by then it stays until the next look."""
        self._read_ahead[move] = (export, _read(content()))

    # --- decisions ----------------------------------------------------------------------------------------------------

    def check_own(self, state: GroupState, body: Own) -> dict[int, SlotState]:
        """The slots of which the decision is new here, as they are then."""
        state.check_not_dissolved()
        taken: dict[int, SlotState] = {}
        for first, last, epoch in body.slots:
            decided = SlotState(epoch, body.meta_index)
            for slot in range(first, last + 1):
                known = state.slots.get(slot)
                if known is None or (epoch > max(known.epoch, known.fence) and body.meta_index >= known.meta_index):
                    taken[slot] = decided
        if taken:
            self._check_import_of(state, body, taken)
        return taken

    def _check_import_of(self, state: GroupState, body: Own, taken: dict[int, SlotState]) -> None:
        one = state.imports.get(body.move)
        if body.move and (one is None or one.ready is None):
            raise NotReady(f"move {body.move} is not ready here: its slots cannot be owned")
        for move, other in state.imports.items():
            slots = slots_in(other.slots)
            here = [slot for slot, epoch in slots.items() if slot in taken and taken[slot].epoch == epoch]
            if here and move != body.move:
                raise NotReady(f"slot {here[0]} comes with move {move}, not with {body.move}")
            held = [slot for slot in here if slot in state.slots and state.slots[slot].owned]
            if held:
                raise NotReady(f"slot {held[0]} went away before, and has not been dropped here yet")
            if move == body.move and not len(here) == len(slots) == len(taken):
                raise CallerError(Status.INTERNAL_SERVER_ERROR, f"these are not the {len(slots)} slots of move {move}")

    def own(self, state: GroupState, index: int, body: Own) -> dict[str, int]:
        """{"slots": how many have a new epoch here}; what is older than known is ignored."""
        taken = self.check_own(state, body)
        one = state.imports.pop(body.move, None) if taken and body.move else None
        arriving = None if one is None else self._arriving(body.move, one)
        state.slots.update(taken)
        if one is not None and arriving is not None:
            self._take_over(state, index, body.move, one, arriving)
        return {"slots": len(taken)}

    def _arriving(self, move: int, one: ImportState) -> _Arriving:
        export, arriving = self._read_ahead.pop(move, (-1, None))
        return arriving if export == one.export and arriving is not None else _read(one.content())

    def _take_over(self, state: GroupState, index: int, move: int, one: ImportState, arriving: _Arriving) -> None:
        for number, meta_index in sorted(arriving.dropped.items()):
            self.drop_storage_group(state, index, number, meta_index)
        state.requests.merge(arriving.requests)
        for number, known in sorted(arriving.storage_groups.items()):
            if number not in state.dropped:
                check(number not in state.storage_groups, "schema %d is here, and comes with move %d", number, move)
                known.changed = index
                state.storage_groups[number] = known
        staged, reason = self._staged(move, one)
        for key, unit in sorted(arriving.units.items()):
            if key[0] not in state.dropped:
                check(key not in state.units, "unit %s is here, and comes with move %d", key, move)
                state.units[key] = unit
                name = UnitId(*key)
                epoch = state.slots[unit.slot].epoch
                self._store.adopt_unit(name, epoch, index, staged.get(name), f"move {move}: {reason}")

    def _staged(self, move: int, one: ImportState) -> tuple[dict[UnitId, str], str]:
        """(where the units lie that came with a move, why one that is not among them is missing)."""
        stage = self.stage(move)
        try:
            whole = stage.whole()
        except SystemFault as error:
            return {}, str(error)
        if whole is None:
            return {}, f"{stage.directory} is not whole"
        checksum, units = whole
        if checksum != one.ready:
            return {}, f"{stage.directory} has manifests of checksum {checksum}, the group agreed on {one.ready}"
        return units, f"not in {stage.directory}"

    def drop_storage_group(self, state: GroupState, index: int, number: int, meta_index: int) -> None:
        """Its schema and units here go, and its id is refused for ever; nothing where it was dropped before."""
        if number in state.dropped:
            return
        state.dropped[number] = meta_index
        state.storage_groups.pop(number, None)
        for key in sorted(key for key in state.units if key[0] == number):
            epoch = state.slots[state.units.pop(key).slot].epoch
            self._store.drop_unit(UnitId(*key), (epoch, index))

    def check_dissolve(self, state: GroupState, body: Dissolve) -> None:
        del body
        owned = [slot for slot, known in state.slots.items() if known.owned]
        if owned:
            raise NotReady(f"the group owns {len(owned)} slots, {min(owned)} among them: it cannot be dissolved")
        if state.imports:
            raise NotReady(f"move {min(state.imports)} comes here: the group cannot be dissolved")

    def dissolve(self, state: GroupState, body: Dissolve) -> None:
        self.check_dissolve(state, body)
        state.dissolved = state.dissolved or body.meta_index

    # --- stages -------------------------------------------------------------------------------------------------------

    def stage(self, move: int) -> Stage:
        return Stage(self._files, f"{self._directory}/{move}")

    def stages(self) -> dict[int, Runs]:
        """The moves of which files lie here, with their slots; on a worker. SystemFault."""
        found: dict[int, Runs] = {}
        try:
            names = self._files.list(self._directory) if self._files.exists(self._directory) else []
        except OSError as error:
            raise SystemFault(f"{self._directory}: {error}") from error
        for name in names:
            if name.isdecimal():
                note = self.stage(int(name)).note()
                found[int(name)] = runs_of(()) if note is None else tuple(tuple(run) for run in note)
        return found

    def remove_stage(self, move: int) -> None:
        """On a worker; only of a move whose decision this replica has applied. SystemFault."""
        try:
            self._files.sync_directory(self._store.directory)  # what was renamed out of it is there for good
        except OSError as error:
            raise SystemFault(f"{self._store.directory}: {error}") from error
        self.stage(move).remove()
