"""Which slots should lie elsewhere: even by number, or by load. Pure functions, the same answer on every node."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence

from iotdb_cluster.errors import check
from iotdb_cluster.partition.view import Slots

__all__ = ["even_moves", "load_moves", "quotas"]

LOAD_TOLERANCE = 0.02  # a group whose load is within this part of the average gives nothing
Moves = dict[tuple[int, int], Slots]


def quotas(counts: Mapping[int, int], total: int) -> dict[int, int]:
    """How many of `total` slots each group is to have, even within 1, so that as few as possible move.

    The groups that have more than the lower number come first for the higher one, then those with smaller ids: so the
    answer stays the same while the moves that follow from it are carried out, in any order.
    """
    low, rest = divmod(total, len(counts))
    order = sorted(counts, key=lambda group: (counts[group] <= low, group))
    return {group: low + (place < rest) for place, group in enumerate(order)}


def even_moves(owners: Sequence[int], groups: Iterable[int]) -> Moves:
    """The fewest moves after which `groups` own all slots, even within 1: {(giver, receiver): slots}, sorted.

    Owners that are not among `groups` give all that they have. Of a group's slots the last ones go, first to the
    receiver with the smallest id. What is left of the answer when a part of it has been done is the answer then.
    """
    receivers = sorted(set(groups))
    check(receivers, "slots need a group")
    owned: dict[int, list[int]] = {group: [] for group in receivers}
    for slot, owner in enumerate(owners):
        owned.setdefault(owner, []).append(slot)
    quota = quotas({group: len(owned[group]) for group in receivers}, len(owners))
    needs = [(group, quota[group] - len(owned[group])) for group in receivers if len(owned[group]) < quota[group]]
    moves: dict[tuple[int, int], list[int]] = {}
    at = 0
    for giver in sorted(owned):
        surplus = owned[giver][quota.get(giver, 0) :]
        while surplus:
            receiver, room = needs[at]
            taken, surplus = surplus[:room], surplus[room:]
            moves[giver, receiver] = taken
            needs[at] = (receiver, room - len(taken))
            at += room == len(taken)
    return {pair: tuple(slots) for pair, slots in sorted(moves.items())}


def load_moves(owners: Sequence[int], groups: Iterable[int], weights: Sequence[int]) -> Moves:
    """Moves that even out the load: `weights[slot]` is what it holds (bytes) or takes (points/s), 0 or more.

    From the heaviest group to the lightest the slot that comes nearest to what both are off the average, over and
    over, until the heaviest is within `LOAD_TOLERANCE` of it, or no slot lessens the difference. No slot moves twice,
    and one that weighs nothing not at all.
    """
    ids = sorted(set(groups))
    check(ids and len(weights) == len(owners), "%s weights for %s slots", len(weights), len(owners))
    check(set(owners) <= set(ids), "slots of groups that are not among %s", ids)
    loads = dict.fromkeys(ids, 0)
    movable: dict[int, list[tuple[int, int]]] = {group: [] for group in ids}  # (weight, slot), ascending
    for slot, owner in enumerate(owners):
        loads[owner] += weights[slot]
        if weights[slot]:
            movable[owner].append((weights[slot], slot))
    for items in movable.values():
        items.sort()
    average = sum(loads.values()) / len(ids)
    moves: dict[tuple[int, int], list[int]] = {}
    while True:
        heavy = max(ids, key=lambda group: (loads[group], -group))
        light = min(ids, key=lambda group: (loads[group], group))
        if loads[heavy] <= average * (1 + LOAD_TOLERANCE):
            break
        wish = min(loads[heavy] - average, average - loads[light])
        found = _nearest(movable[heavy], wish, loads[heavy] - loads[light])
        if found is None:
            break
        weight, slot = movable[heavy].pop(found)
        loads[heavy] -= weight
        loads[light] += weight
        insort(moves.setdefault((heavy, light), []), slot)
    return {pair: tuple(slots) for pair, slots in sorted(moves.items())}


def _nearest(items: Sequence[tuple[int, int]], wish: float, below: int) -> int | None:
    """The place of the item whose weight is nearest to `wish` and below `below`; None where there is none."""
    at = bisect_right(items, wish, key=lambda item: item[0])
    places = [place for place in (at - 1, at) if 0 <= place < len(items) and items[place][0] < below]
    return min(places, key=lambda place: abs(items[place][0] - wish), default=None)
