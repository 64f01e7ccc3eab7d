"""Copies that are gone: what would be lost with a dead node, what an operator accepted to lose, and what is then.

Slots of which the last copy is gone begin anew, empty, in other groups, under epochs that nobody has heard of. A
storage group whose schema lay in one of them is dropped whole, as nothing tells what its points elsewhere are.
"""

from __future__ import annotations

from collections.abc import Iterable

from iotdb_cluster.meta.cluster import Cluster, refused
from iotdb_cluster.meta.records import META_GROUP, Group, Loss, Node, Role

__all__ = ["begin_anew", "end_moves", "only_copies", "raise_epochs", "slots_text"]

RUNS_SHOWN_MAX = 20
LOSSES_KEPT_MAX = 16


def slots_text(slots: Iterable[int]) -> str:
    """How many they are, and their runs."""
    runs: list[list[int]] = []
    count = 0
    for slot in slots:
        count += 1
        if runs and slot == runs[-1][1] + 1:
            runs[-1][1] = slot
        else:
            runs.append([slot, slot])
    shown = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in runs[:RUNS_SHOWN_MAX])
    return f"{count} slots ({shown}{', ...' if len(runs) > RUNS_SHOWN_MAX else ''})"


def only_copies(cluster: Cluster, node: Node) -> list[Group]:
    """Its groups of which nothing is left when this node is dead; who joins may have nothing yet."""
    found = []
    mine = [group for _, group in sorted(cluster.groups.items()) if group.replica_of(node.id) is not None]
    for group in [group for group in mine if group.id != META_GROUP]:
        alive = [r for r in group.replicas if r.node != node.id and not cluster.nodes[r.node].dead]
        if not any(r.role is not Role.JOINING for r in alive):
            found.append(group)
    return found


def end_moves(cluster: Cluster, number: int) -> None:
    """The moves of a group end where they began: what its log says of them may be lost."""
    for move in [move for _, move in sorted(cluster.moves.items()) if number in (move.giver, move.receiver)]:
        del cluster.moves[move.id]
        for slot, epoch in move.slots:
            cluster.owners.decide(slot, move.giver, epoch + 1)


def raise_epochs(cluster: Cluster, number: int) -> None:
    """What is written from now on counts more than what a member of an earlier generation may still have."""
    for slot in cluster.owners.slots_of(number):
        cluster.owners.decide(slot, number, cluster.owners.owner(slot)[1] + 1)


def begin_anew(cluster: Cluster, index: int, node: int, lost: list[Group]) -> list[int]:
    """The slots of these groups begin anew elsewhere; the groups are gone. The slots, ascending.

    Slots that were on their way belong to the receiver, which may have all of them already.
    """
    gone = {group.id for group in lost}
    receivers = [number for number in cluster.ring.nodes if number in cluster.groups and number not in gone]
    slots = [slot for slot, owner in enumerate(cluster.owners.owners) if owner in gone]
    if slots and not receivers:
        raise refused("no group is left that could take the slots: bring the node back")
    for move in [move for _, move in sorted(cluster.moves.items()) if move.giver in gone]:
        if move.receiver not in receivers:
            continue
        del cluster.moves[move.id]
        for slot, epoch in move.slots:
            cluster.owners.decide(slot, move.receiver, epoch + 1)
    for number in sorted(gone):
        end_moves(cluster, number)
        del cluster.groups[number]
    left = [slot for slot in slots if cluster.owners.owner(slot)[0] in gone]
    counts = cluster.owners.counts()
    shares = dict.fromkeys(receivers, 0)
    for _ in left:
        least = min(receivers, key=lambda number: (counts.get(number, 0) + shares[number], number))
        shares[least] += 1
    places = iter(left)
    for number, share in shares.items():
        for _ in range(share):
            slot = next(places)
            cluster.owners.decide(slot, number, cluster.owners.owner(slot)[1] + 1)
    if slots:
        record(cluster, Loss(index, node, tuple(sorted(gone)), len(slots)))
    return slots


def record(cluster: Cluster, loss: Loss) -> None:
    cluster.losses = (*cluster.losses, loss)[-LOSSES_KEPT_MAX:]
