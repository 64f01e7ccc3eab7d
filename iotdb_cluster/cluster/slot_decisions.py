"""What the log of a data group lacks of meta's decisions about slots: a comparison of meta's table with its state."""

from __future__ import annotations

from iotdb_cluster.data import DataGroup, Discard, DropSlots, Own, runs_of, slots_in
from iotdb_cluster.meta import MetaState

__all__ = ["due_decisions"]


def due_decisions(state: MetaState, index: int, data: DataGroup) -> list[Own | DropSlots | Discard]:
    """The entries that the leader of the group is to propose, harmless when they come twice.

    `index` is that of the last entry that `state` holds: of a later move it knows nothing yet. Slots that come with a
    move are owned together, with what was imported for it.
    """
    changed = state.members_changed
    due: list[Own | DropSlots | Discard] = []
    arriving: dict[int, int] = {}  # slot: the move that brings it
    for move, one in sorted(data.imports().items()):
        slots = slots_in(one.slots)
        if all(state.table.owner(slot) == (data.number, epoch) for slot, epoch in slots.items()):
            due.append(Own(one.slots, changed, move))
            arriving.update(dict.fromkeys(slots, move))
        elif state.move(move) is None and index >= move:
            due.append(Discard(move))
    plain = []
    for slot in state.table.slots_of(data.number):
        epoch = state.table.owner(slot)[1]
        if slot not in arriving and data.slot_epoch(slot) < epoch:
            plain.append((slot, epoch))
    if plain:
        due.append(Own(runs_of(plain), changed))
    for move in data.moves_away():
        gone = []
        for slot, epoch in slots_in(data.fenced(move)).items():
            owner, decided = state.table.owner(slot)
            if owner != data.number and decided >= epoch:
                gone.append((slot, epoch))
        if gone:
            due.append(DropSlots(runs_of(gone), changed))
    return due
