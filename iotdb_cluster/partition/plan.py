"""What is to come of a change of membership: pure functions of the cluster's state, the same on every node.

`next_steps` says what may begin now. Each step is harmless when done twice; what is under way is no step, and when it
has ended the function is asked again. So there is no plan to keep: a node that dies meanwhile, and is removed, changes
the answer and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iotdb_cluster.errors import check
from iotdb_cluster.partition.balance import even_moves, load_moves
from iotdb_cluster.partition.view import ClusterView, GroupView, ReplicaView, Slots

__all__ = [
    "AddMetaMember",
    "CreateGroup",
    "DissolveGroup",
    "EndMove",
    "Finish",
    "ForceGroup",
    "MoveSlots",
    "RemoveMetaMember",
    "RemoveNode",
    "ShiftGroup",
    "Step",
    "next_steps",
    "rebalance",
    "waiting_for",
    "whole_plan",
]

_ROUNDS_MAX = 100  # of a whole plan: a change has some ten stages


@dataclass(frozen=True, slots=True)
class AddMetaMember:
    """Into the meta group's Raft configuration, as voter or as learner; a learner there may become a voter."""

    node: int
    voter: bool = True


@dataclass(frozen=True, slots=True)
class RemoveMetaMember:
    node: int


@dataclass(frozen=True, slots=True)
class CreateGroup:
    header: int


@dataclass(frozen=True, slots=True)
class ForceGroup:
    """Forced reconfiguration without the dead replica ids, half of the group's; `generation` is the next one."""

    group: int
    generation: int
    dead: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShiftGroup:
    """`add` are nodes, `remove` replica ids: the difference to the group's present target."""

    group: int
    add: tuple[int, ...]
    remove: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MoveSlots:
    """All that is still to go from the giver to the receiver; how much of it at once, its leader says."""

    giver: int
    receiver: int
    slots: Slots


@dataclass(frozen=True, slots=True)
class EndMove:
    """A move whose receiver leaves: its slots stay at the giver."""

    move: int


@dataclass(frozen=True, slots=True)
class DissolveGroup:
    """`answers`: it has members enough to log its end; else meta removes it without."""

    group: int
    answers: bool = True


@dataclass(frozen=True, slots=True)
class RemoveNode:
    node: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left: the change is over."""

    change: int


Step = (
    AddMetaMember
    | RemoveMetaMember
    | CreateGroup
    | ForceGroup
    | ShiftGroup
    | MoveSlots
    | EndMove
    | DissolveGroup
    | RemoveNode
    | Finish
)


def next_steps(cluster: ClusterView) -> list[Step]:
    """What may begin now, in order; empty where no change is under way, it is paused, or waits for what is under way.

    A stage begins when those before it have nothing left to do: members of the meta group, groups of new headers, force
    for groups that have lost half their members, members of groups, slots, the end of groups and of members.
    """
    if not cluster.change or cluster.paused:
        return []
    steps: list[Step] = []
    steps += [EndMove(move.id) for move in cluster.moves if not cluster.members[move.receiver].stays]
    steps += _meta_members(cluster)
    if not steps:
        steps += [CreateGroup(node) for node in cluster.staying if node not in cluster.by_id]
    if steps:
        return steps
    used = [group for group in cluster.groups if _used(cluster, group)]
    shifts = _shifts(cluster)
    steps += _forced(cluster)
    for shift in shifts:
        if shift.group not in cluster.moving and cluster.serves(cluster.by_id[shift.group]):
            steps.append(shift)
    if shifts or not all(group.settled and cluster.serves(group) for group in used):
        return steps
    moves = _slot_moves(cluster)
    if moves or cluster.moves:
        return [*moves]
    return _endings(cluster)


def _meta_members(cluster: ClusterView) -> list[Step]:
    """The dead leave the meta group first: they only make its majority larger. Then those that are missing come."""
    voters = set(cluster.meta_voters)
    members = voters | set(cluster.meta_learners)
    steps: list[Step] = [RemoveMetaMember(node) for node in sorted(cluster.meta_members & cluster.dead)]
    if steps:
        return steps
    room = cluster.meta_voters_max - len(voters & set(cluster.staying))
    for node in cluster.staying:
        if node not in voters:
            if room > 0 or node not in members:
                steps.append(AddMetaMember(node, room > 0))
            room -= 1
    return steps


def _used(cluster: ClusterView, group: GroupView) -> bool:
    """Whether the group goes on, or still has slots to give."""
    return group.id in cluster.staying or group.id in cluster.owners or group.id in cluster.moving


def _lost(cluster: ClusterView, group: GroupView) -> tuple[int, ...]:
    """The dead replica ids."""
    return tuple(sorted(replica.id for replica in group.replicas if replica.node in cluster.dead))


def _forcible(cluster: ClusterView, group: GroupView) -> bool:
    """Whether the survivors meet every majority of each configuration that meta has authorised: nothing is lost."""
    alive = {replica.id for replica in group.replicas} - set(_lost(cluster, group))
    return bool(alive) and all(len(set(members) - alive) < len(members) // 2 + 1 for members in group.configurations)


def _forced(cluster: ClusterView) -> list[Step]:
    return [
        ForceGroup(group.id, group.generation + 1, _lost(cluster, group))
        for group in cluster.groups
        if _used(cluster, group) and not cluster.serves(group) and _forcible(cluster, group)
    ]


def _shifts(cluster: ClusterView) -> list[ShiftGroup]:
    """Groups whose target is not what the ring says. That of a header who leaves, or is dead, stays as it is until it
    is empty, but waits for nobody who leaves or is dead."""
    found = []
    for group in (group for group in cluster.groups if _used(cluster, group)):
        now = {replica.node: replica for replica in group.replicas if replica.wanted}
        if group.id in cluster.staying:
            target = set(cluster.ring.members(group.id, cluster.replication))
        else:
            target = {node for node, replica in now.items() if replica.settled or node in cluster.staying}
        add = tuple(sorted(target - set(now)))
        remove = tuple(sorted(replica.id for node, replica in now.items() if node not in target))
        if add or remove:
            found.append(ShiftGroup(group.id, add, remove))
    return found


def _slot_moves(cluster: ClusterView) -> list[Step]:
    """What is still to move, beyond what is on its way."""
    owners = list(cluster.owners)
    for move in cluster.moves:
        for slot in move.slots:
            owners[slot] = move.receiver
    wanted = (
        [(giver, receiver, slots) for (giver, receiver), slots in even_moves(owners, cluster.staying).items()]
        if cluster.membership_changes
        else cluster.wanted
    )
    on_the_way = {slot for move in cluster.moves for slot in move.slots}
    steps: list[Step] = []
    for giver, receiver, slots in wanted:
        left = tuple(slot for slot in slots if owners[slot] == giver and slot not in on_the_way)
        if left and {giver, receiver} <= cluster.by_id.keys():
            steps.append(MoveSlots(giver, receiver, left))
    return steps


def _endings(cluster: ClusterView) -> list[Step]:
    """Nobody moves: groups of those that leave end, then these leave the meta group, then the cluster."""
    leaving = sorted(node.id for node in cluster.nodes if not node.stays)
    steps: list[Step] = [
        DissolveGroup(node, cluster.serves(cluster.by_id[node])) for node in leaving if node in cluster.by_id
    ]
    steps = steps or [RemoveMetaMember(node) for node in leaving if node in cluster.meta_members]
    steps = steps or [RemoveNode(node) for node in leaving]
    return steps or [Finish(cluster.change)]


def rebalance(cluster: ClusterView, weights: Sequence[int] | None = None) -> list[MoveSlots]:
    """The moves that make slots even in number, or, given `weights[slot]`, in load."""
    groups = [group.id for group in cluster.groups]
    moves = even_moves(cluster.owners, groups) if weights is None else load_moves(cluster.owners, groups, weights)
    return [MoveSlots(giver, receiver, slots) for (giver, receiver), slots in moves.items()]


def waiting_for(cluster: ClusterView) -> list[str]:
    """What is under way, or keeps the change from going on, one text each."""
    texts = ["the change is paused"] if cluster.paused else []
    for group in cluster.groups:
        if _used(cluster, group) and not cluster.serves(group) and not _forcible(cluster, group):
            nodes = sorted(replica.node for replica in group.replicas if replica.node in cluster.dead)
            texts.append(
                f"group {group.id} has lost its majority with the nodes {nodes}: bring one back, or force the group "
                "and accept the loss"
            )
        elif not group.settled:
            if all(replica.settled for replica in group.replicas):
                texts.append(f"group {group.id} begins generation {group.generation} with its survivors")
                continue
            joining = sorted(r.node for r in group.replicas if r.wanted and not r.settled)
            leaving = sorted(r.node for r in group.replicas if not r.wanted)
            texts.append(f"group {group.id} changes its members: {joining} join, {leaving} leave")
    texts += [
        f"move {move.id}: {len(move.slots)} slots from group {move.giver} to group {move.receiver}"
        for move in cluster.moves
    ]
    return texts


# --- the whole plan ---------------------------------------------------------------------------------------------------


def whole_plan(cluster: ClusterView) -> list[Step]:
    """All steps that are to come, as if each succeeded at once and what is under way had ended.

    It ends before `Finish` where a group waits for the operator (see `waiting_for`).
    """
    view = _ended(replace(cluster, paused=False))
    plan: list[Step] = []
    for _ in range(_ROUNDS_MAX):
        steps = next_steps(view)
        plan += steps
        for step in steps:
            view = _ended(_after(view, step))
        if not steps or not view.change:
            return plan
    check(False, "a plan of membership does not end: %s", plan[-3:])
    return plan


def _ended(view: ClusterView) -> ClusterView:
    """What is under way has ended, as far as it can."""
    groups = tuple(
        replace(group, replicas=tuple(replace(r, settled=True) for r in group.replicas if r.wanted), earlier=())
        for group in view.groups
    )
    owners = list(view.owners)
    moves = [move for move in view.moves if not view.members[move.receiver].stays]
    for move in view.moves:
        for slot in move.slots if move not in moves else ():
            owners[slot] = move.receiver
    return replace(view, groups=groups, owners=tuple(owners), moves=tuple(moves))


def _after(view: ClusterView, step: Step) -> ClusterView:
    """The view when a step has succeeded."""
    fresh = 1 + max((replica.id for group in view.groups for replica in group.replicas), default=0)
    match step:
        case AddMetaMember(node, voter):
            return view.with_meta(node, voter=voter)
        case RemoveMetaMember(node):
            return view.with_meta(node, voter=None)
        case CreateGroup(header):
            members = view.ring.members(header, view.replication)
            replicas = tuple(ReplicaView(fresh + place, node) for place, node in enumerate(members))
            made = GroupView(header, 1, replicas)
            return replace(view, groups=tuple(sorted((*view.groups, made), key=lambda group: group.id)))
        case ForceGroup(group, generation, dead):
            old = view.by_id[group]
            kept = tuple(ReplicaView(r.id, r.node) for r in old.replicas if r.id not in dead)
            return _with_group(view, GroupView(group, generation, kept))
        case ShiftGroup(group, add, remove):
            old = view.by_id[group]
            kept = tuple(replica for replica in old.replicas if replica.id not in remove)
            new = tuple(ReplicaView(fresh + place, node) for place, node in enumerate(add))
            return _with_group(view, replace(old, replicas=(*kept, *new)))
        case MoveSlots(_, receiver, slots):
            owners = list(view.owners)
            for slot in slots:
                owners[slot] = receiver
            return replace(view, owners=tuple(owners))
        case EndMove(move):
            return replace(view, moves=tuple(one for one in view.moves if one.id != move))
        case DissolveGroup(group):
            return replace(view, groups=tuple(one for one in view.groups if one.id != group))
        case RemoveNode(node):
            return replace(view, nodes=tuple(one for one in view.nodes if one.id != node))
        case Finish():
            nodes = tuple(replace(node, joining=False) for node in view.nodes)
            return replace(view, nodes=nodes, change=0, wanted=())


def _with_group(view: ClusterView, made: GroupView) -> ClusterView:
    return replace(view, groups=tuple(made if group.id == made.id else group for group in view.groups))
