"""What the log of a data group lacks of meta's decisions about slots: a comparison of meta's table with its state."""

from __future__ import annotations

from iotdb_cluster.data import DataGroup, Discard, DropSlots, Fence, Own, runs_of, slots_in
from iotdb_cluster.meta import MetaState

__all__ = ["due_decisions"]


def due_decisions(state: MetaState, index: int, data: DataGroup) -> list[Own | Fence | DropSlots | Discard]:
    """The entries that the leader of the group is to propose, in this order; harmless when they come twice.

    `index` is that of the last entry that `state` holds: of a later move it knows nothing yet. Slots that come with a
    move are owned together, with what was imported for it.
    """
    changed = state.members_changed
    arrivals: list[Own | Discard] = []
    arriving: dict[int, int] = {}  # slot: the epoch under which it comes with a move
    decided = _decided_for(state, data)
    for move, one in sorted(data.imports().items()):
        if move in decided:
            arrivals.append(Own(one.slots, changed, move))
            arriving.update(slots_in(one.slots))
        elif state.move(move) is None and index >= move:
            arrivals.append(Discard(move))
    drops: list[DropSlots] = []
    for move in data.moves_away():
        gone = []
        for slot, epoch in slots_in(data.fenced(move)).items():
            owner, newest = state.table.owner(slot)
            if (owner != data.number and newest >= epoch) or arriving.get(slot, 0) > epoch:  # gone, and back already
                gone.append((slot, epoch))
        if gone:
            drops.append(DropSlots(runs_of(gone), changed))
    plain = []
    for slot in state.table.slots_of(data.number):
        epoch = state.table.owner(slot)[1]
        if arriving.get(slot) != epoch and data.slot_epoch(slot) < epoch:
            plain.append((slot, epoch))
    fences = _lost_fences(state, index, data)
    return [*fences, *drops, *arrivals, *([Own(runs_of(plain), changed)] if plain else [])]


def _lost_fences(state: MetaState, index: int, data: DataGroup) -> list[Fence]:
    """Slots that went to another group, and that this one never fenced: so a forced reconfiguration has lost that.

    They are fenced under the number of no move that is known, and dropped when that is applied.
    """
    gone = []
    for slot, epoch in data.slots().items():
        owner, newest = state.table.owner(slot)
        if owner != data.number and newest > epoch and not data.is_fenced(slot):
            gone.append((slot, newest))
    number = index
    while number in data.moves_away() or state.move(number) is not None:
        number -= 1
    return [Fence(number, runs_of(gone), state.members_changed)] if gone else []


def _decided_for(state: MetaState, data: DataGroup) -> set[int]:
    """The moves to this group that meta has decided for it, and whose slots its log has not heard of since.

    Meta's table may have gone on: a slot that came under epoch e, and was to move on and then stayed, is owned under
    e + 2. Every other way to own it under a later epoch is a later move, which is ready here too.
    """
    ready = [(move, slots_in(one.slots)) for move, one in data.imports().items() if one.ready is not None]
    newest: dict[int, int] = {}
    for _, slots in ready:
        for slot, epoch in slots.items():
            if epoch <= state.table.owner(slot)[1]:
                newest[slot] = max(newest.get(slot, 0), epoch)

    def is_owned(slot: int, epoch: int) -> bool:
        mine = state.table.owner(slot)[0] == data.number
        return mine and newest.get(slot) == epoch and data.heard_epoch(slot) < epoch

    return {move for move, slots in ready if all(is_owned(slot, epoch) for slot, epoch in slots.items())}
