"""What the commands about groups do: which there are, and who their members are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from iotdb_cluster.meta.changes import require_change
from iotdb_cluster.meta.cluster import Cluster, refused
from iotdb_cluster.meta.fields import Fields
from iotdb_cluster.meta.losses import end_moves, raise_epochs, record, slots_text
from iotdb_cluster.meta.records import META_GROUP, Group, Loss, NodeState, Replica, Role

__all__ = ["HANDLERS"]


def _group(cluster: Cluster, number: int) -> Group:
    group = cluster.groups.get(number)
    if group is None:
        raise refused(f"there is no group {number}")
    return group


def _create(cluster: Cluster, index: int, fields: Fields) -> Any:
    header = fields.number("header")
    if header in cluster.groups:
        return
    require_change(cluster, step=True)
    if header not in cluster.ring.nodes:
        raise refused(f"node {header} is not a member that stays, so it heads no group")
    members = cluster.ring.members(header, cluster.replication)
    replicas = tuple(Replica(cluster.take_replica(), member) for member in members)
    cluster.groups[header] = Group(header, 1, replicas, tuple(replica.id for replica in replicas))
    cluster.changed = index


def _shift(cluster: Cluster, index: int, fields: Fields) -> Any:
    number, add, remove = fields.number("group"), fields.numbers("add"), set(fields.numbers("remove"))
    group = _group(cluster, number)
    require_change(cluster, step=True)
    if number == META_GROUP:
        raise refused("the members of the meta group are the nodes")
    if cluster.moving(number):
        raise refused(f"slots of group {number} move: its members do not change before that is done")
    absent = [node for node in add if node not in cluster.ring.nodes]
    if absent:
        raise refused(f"nodes {absent} are not members that stay")
    replicas = []
    for replica in group.replicas:
        role = replica.role
        if replica.id in remove:
            role = Role.LEAVING
        elif replica.node in add and role is Role.LEAVING:
            role = Role.JOINING  # whether Raft has let it go already is not known here
        replicas.append(replace(replica, role=role))
    if all(replica.role is Role.LEAVING for replica in replicas) and not add:
        raise refused(f"group {number} would have no member left")
    new = sorted(set(add) - set(group.nodes))
    replicas.extend(Replica(cluster.take_replica(), node, Role.JOINING) for node in new)
    if tuple(replicas) != group.replicas:
        earlier = tuple(dict.fromkeys(group.configurations))
        cluster.groups[number] = replace(group, replicas=tuple(replicas), earlier=earlier)
        cluster.changed = index


def _shaped(cluster: Cluster, index: int, fields: Fields) -> Any:
    number, generation = fields.number("group"), fields.number("generation")
    voters, learners = fields.numbers("voters"), fields.numbers("learners")
    group = _group(cluster, number)
    if generation != group.generation:
        raise refused(f"group {number} is at generation {group.generation}, not {generation}")
    if number == META_GROUP:
        shaped = _shaped_meta(cluster, group, voters, learners)
    else:
        target = sorted(replica.id for replica in group.target)
        if sorted(voters) != target or learners:
            raise refused(f"group {number} is to have the voters {target}: {voters} with {learners} are not them")
        shaped = tuple(replace(replica, role=Role.VOTER) for replica in group.target)
    known = replace(group, replicas=shaped, earlier=())
    if known != group:
        cluster.groups[number] = known
        cluster.changed = index


def _shaped_meta(cluster: Cluster, group: Group, voters: Iterable[int], learners: Iterable[int]) -> tuple[Replica, ...]:
    """The meta group's replicas as Raft has them; who has joined and is not in it yet keeps its place."""
    roles = dict.fromkeys(learners, Role.LEARNER) | dict.fromkeys(voters, Role.VOTER)
    unknown = sorted(set(roles) - set(group.nodes))
    if unknown or Role.VOTER not in roles.values():
        raise refused(f"the meta group has the nodes {list(group.nodes)}, not {unknown}, and voters among them")
    shaped = []
    for replica in group.replicas:
        role = roles.get(replica.node)
        if role is not None:
            shaped.append(replace(replica, role=role))
        elif replica.role is Role.JOINING and cluster.nodes[replica.node].stays:
            shaped.append(replica)
        elif cluster.nodes[replica.node].stays:
            raise refused(f"node {replica.node} stays in the cluster, and so in the meta group")
    return tuple(shaped)


def _remove(cluster: Cluster, index: int, fields: Fields) -> Any:
    number = fields.number("group")
    if number not in cluster.groups:
        return
    require_change(cluster, step=True)
    if number == META_GROUP or cluster.nodes[number].stays:
        raise refused(f"the header of group {number} stays, and so does the group")
    slots = len(cluster.owners.slots_of(number))
    if slots or cluster.moving(number):
        raise refused(f"group {number} owns {slots} slots: it goes when it has none, and none is on its way")
    del cluster.groups[number]
    cluster.changed = index


def _force(cluster: Cluster, index: int, fields: Fields) -> Any:
    number, generation, dead = fields.number("group"), fields.number("generation"), set(fields.numbers("dead"))
    accept_loss = bool(fields.number("accept_loss"))
    group = _group(cluster, number)
    if number == META_GROUP:
        return _force_meta(cluster, index, group, generation, dead)
    if generation != group.generation + 1:
        raise refused(f"group {number} is at generation {group.generation}: {generation} is not the next one")
    if not dead <= {replica.id for replica in group.replicas}:
        raise refused(f"group {number} has the replicas {[r.id for r in group.replicas]}, not all of {sorted(dead)}")
    survivors = tuple(replica for replica in group.replicas if replica.id not in dead)
    if not survivors:
        raise refused(
            f"no replica of group {number} survives: bring one of its nodes back, or remove them with --accept-loss"
        )
    if all(2 * len(dead & set(members)) < len(members) for members in group.configurations):
        raise refused(f"a majority of group {number} is alive: it needs no force")
    unmet, slots = group.unmet_majorities(dead), cluster.owners.slots_of(number)
    if unmet and not accept_loss:
        raise refused(
            f"the dead replicas {sorted(dead)} were a majority of {list(unmet[0])} of group {number}: what they alone "
            f"have acknowledged in its {slots_text(slots)} would be lost; bring one back, or say --accept-loss"
        )
    roles = [replica.role if replica.role is Role.LEARNER else Role.VOTER for replica in survivors]
    replicas = tuple(replace(replica, role=role) for replica, role in zip(survivors, roles, strict=True))
    earlier = tuple(dict.fromkeys(group.configurations))
    cluster.groups[number] = replace(group, generation=generation, replicas=replicas, earlier=earlier)
    end_moves(cluster, number)
    raise_epochs(cluster, number)
    if unmet:
        record(cluster, Loss(index, 0, (number,), len(slots)))
    cluster.changed = index
    return {"survivors": [replica.id for replica in replicas]}


def _force_meta(cluster: Cluster, index: int, group: Group, generation: int, dead: set[int]) -> Any:
    """A report: the survivors began this generation before they could decide anything. The nodes of the dead are out.

    Roles are as Raft has them after the next `group_shaped`.
    """
    if generation > group.generation:
        survivors = [replica for replica in group.replicas if replica.id not in dead]
        if not survivors:
            raise refused("no member of the meta group survives")
        replicas = tuple(one if one.role is Role.LEARNER else replace(one, role=Role.VOTER) for one in survivors)
        for node in [replica.node for replica in group.replicas if replica.id in dead]:
            cluster.nodes[node] = replace(cluster.nodes[node], dead=True)
        if not cluster.ring.nodes:  # who was to leave stays: nobody could take what it has, and nobody may join now
            for number, known in [(number, one) for number, one in cluster.nodes.items() if not one.dead]:
                cluster.nodes[number] = replace(known, state=NodeState.NORMAL)
        group = replace(group, generation=generation, replicas=replicas, earlier=())
        cluster.groups[META_GROUP] = group
        cluster.changed = index
    return {"survivors": [replica.id for replica in group.replicas]}


HANDLERS: dict[str, Callable[[Cluster, int, Fields], Any]] = {
    "create_group": _create,
    "shift_group": _shift,
    "group_shaped": _shaped,
    "remove_group": _remove,
    "force_group": _force,
}
