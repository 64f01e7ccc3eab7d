"""What the commands about nodes do: founding, the report of a start, joining, leaving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from iotdb_cluster.errors import CallerError
from iotdb_cluster.limits import SLOT_SALT
from iotdb_cluster.meta.changes import begin_or_alter, may_begin, require_change
from iotdb_cluster.meta.cluster import META_VOTERS_MAX, Cluster, refused
from iotdb_cluster.meta.fields import Fields, address_of
from iotdb_cluster.meta.losses import begin_anew, only_copies, slots_text
from iotdb_cluster.meta.records import META_GROUP, ChangeKind, Group, Node, NodeState, Replica, Role
from iotdb_cluster.partition import PartitionTable, Ring, SlotStrategy

__all__ = ["HANDLERS", "SchemasIn", "found", "join", "leave"]

PATHS_SHOWN_MAX = 20
SchemasIn: TypeAlias = Callable[
    [set[int]], list[str]
]  # the paths of the storage groups whose schema lies in these slots


def found(cluster: Cluster, index: int, fields: Fields) -> bool:
    """The bootstrap; False where the cluster exists already with the same settings and nodes."""
    settings = fields.mapping("settings")
    named = Fields(settings)
    replication, interval = named.number("replication"), named.number("partition_interval_ms")
    named.text("cluster_name")
    if replication < 1 or interval < 1:
        raise refused(f"replication {replication} and partition interval {interval} must be above 0")
    strategy = settings.get("slot_strategy", SlotStrategy.HASH)
    if strategy not in list(SlotStrategy):
        raise refused(f"slot_strategy is {strategy!r}: it must be one of {', '.join(SlotStrategy)}")
    nodes = {int(identifier): Node(int(identifier), address_of(at)) for identifier, *at in fields.items("nodes")}
    if not nodes or min(nodes) < 1 or len({node.address[:2] for node in nodes.values()}) < len(nodes):
        raise refused("a cluster begins with nodes of different addresses")
    level, first = fields.number("level"), fields.optional_number("first_replica") or max(nodes) + 1
    if first <= max(nodes):
        raise refused(f"replica ids count from {first}, and there is a node {max(nodes)}")
    if cluster.table is not None:
        if settings == cluster.settings and set(nodes) == set(cluster.nodes):
            return False
        raise refused(f"the cluster {cluster.settings['cluster_name']} exists already")
    cluster.settings, cluster.level, cluster.nodes = settings, level, nodes
    cluster.first_replica = cluster.next_replica = first
    cluster.highest_node = max(nodes)
    ring = Ring(nodes)
    meta = [
        Replica(node, node, Role.VOTER if at < META_VOTERS_MAX else Role.LEARNER) for at, node in enumerate(ring.nodes)
    ]
    # Every founder's log begins with the whole of them; the learners among them learn their part from an entry.
    cluster.groups[META_GROUP] = Group(META_GROUP, 1, tuple(meta), ring.nodes)
    for header in ring.nodes:
        replicas = tuple(Replica(cluster.take_replica(), member) for member in ring.members(header, replication))
        cluster.groups[header] = Group(header, 1, replicas, tuple(replica.id for replica in replicas))
    cluster.table = PartitionTable.initial(ring.nodes)
    cluster.map_slots()
    cluster.changed = index
    return True


def _register(cluster: Cluster, index: int, fields: Fields) -> Any:
    identifier, incarnation = fields.number("node"), fields.number("incarnation")
    start, level, address = fields.number("start"), fields.number("level"), fields.address()
    node = cluster.nodes.get(identifier)
    if node is None:
        raise refused(f"node {identifier} is not a member of the cluster")
    if cluster.left_out(identifier):
        raise refused(f"node {identifier} is not a member of the meta group any more: that was forced without it")
    if node.incarnation not in (0, incarnation):
        raise refused(f"node {identifier} is known with other data: an emptied disk comes back by replacing the node")
    if start < max(node.start, 1):
        raise refused(f"node {identifier} reports its start {start} after start {node.start}")
    if level < cluster.level:
        raise refused(f"the cluster is at level {cluster.level}, the program of node {identifier} knows level {level}")
    other = cluster.node_at(address)
    if other is not None and other.id != identifier:
        raise refused(f"node {other.id} is at {address.host}:{address.meta_port} already")
    cluster.nodes[identifier] = replace(node, incarnation=incarnation, start=start, address=address, level=level)
    cluster.level = max(cluster.level, min(known.level for known in cluster.nodes.values()))
    cluster.changed = index
    return {"level": cluster.level}


def _agreed(cluster: Cluster) -> dict[str, Any]:
    """What a node that joins must have, by the names of the configuration's keys."""
    settings = cluster.settings
    found = {
        "cluster_name": settings["cluster_name"],
        "default_replica_num": settings["replication"],
        "hash_salt": settings.get("hash_salt", SLOT_SALT),
        "partition_interval": settings["partition_interval_ms"] // 1000,
        "slot_strategy": cluster.slot_map.strategy.value,
    }
    return found | {name: settings[name] for name in ("timestamp_precision",) if name in settings}


def join(cluster: Cluster, index: int, fields: Fields, schemas_in: SchemasIn) -> Any:
    """A new member, perhaps in the place of a dead one; what was lost with that one is told as by `leave`."""
    address, incarnation, replaces = fields.address(), fields.number("incarnation"), fields.number("replaces")
    start, level, settings = fields.number("start"), fields.number("level"), fields.mapping("settings")
    name = f"{address.host}:{address.meta_port}"
    at = cluster.node_at(address)
    if at is not None and at.incarnation == incarnation and at.stays:
        return _joined(cluster, at.id)
    unequal = [
        f"{key} is {settings.get(key)!r} at {name} and {value!r} in the cluster"
        for key, value in _agreed(cluster).items()
        if settings.get(key) != value
    ]
    if unequal:
        raise refused(f"{'; '.join(unequal)}: put the cluster's values into the configuration of {name}")
    if level < cluster.level:
        raise refused(f"the cluster is at level {cluster.level}, the program of {name} knows level {level}")
    twin = next((node for node in cluster.nodes.values() if node.incarnation == incarnation != 0), None)
    if twin is not None and twin is at:
        raise refused(f"node {twin.id} is leaving the cluster: it can join again, with empty disks, when it has left")
    if twin is not None:
        raise refused(
            f"{name} has the identity of node {twin.id}: its disks are a copy of that node's, start it with empty ones"
        )
    if at is not None and replaces != at.id:
        raise refused(
            f"node {at.id} is at {name} already, with other data: to replace it by this one say so (add-node --replace "
            f"{at.id}), or remove it first"
        )
    replaced, lost = cluster.nodes.get(replaces), list[Group]()
    if replaced is not None:
        lost = _given_up(cluster, replaced, fields, schemas_in)
    elif replaces:
        raise refused(f"node {replaces} is not found in the cluster, so it cannot be replaced")
    if replaced is None or not replaced.stays:
        may_begin(cluster, level)
    loss = {} if replaced is None else _goes(cluster, index, replaced, True, lost, schemas_in)
    identifier = cluster.take_node()
    cluster.nodes[identifier] = Node(identifier, address, incarnation, start, level, NodeState.JOINING)
    meta = cluster.groups[META_GROUP]
    cluster.groups[META_GROUP] = replace(meta, replicas=(*meta.replicas, Replica(identifier, identifier, Role.JOINING)))
    begin_or_alter(cluster, index, ChangeKind.REPLACE if replaces else ChangeKind.JOIN, identifier)
    cluster.changed = index
    return {**_joined(cluster, identifier), **loss}


def _joined(cluster: Cluster, identifier: int) -> Any:
    return {
        "node": identifier,
        "founders": list(cluster.groups[META_GROUP].founders),
        "nodes": [[number, *node.address] for number, node in sorted(cluster.nodes.items())],
    }


def _given_up(cluster: Cluster, node: Node, fields: Fields, schemas_in: SchemasIn) -> list[Group]:
    """The groups of which the only copy is gone with a dead node; raises where slots are, and it was not accepted."""
    lost = only_copies(cluster, node)
    held = _only_copies_text(cluster, lost)
    if held and not fields.optional_number("accept_loss"):
        paths = schemas_in({slot for group in lost for slot in cluster.owners.slots_of(group.id)})
        raise refused(
            f"node {node.id} holds {held}: bring it back; or say --accept-loss: then these slots begin anew, empty, "
            f"and the storage groups whose schema lies in them are dropped whole ({_shown(paths)})"
        )
    return lost


def _only_copies_text(cluster: Cluster, lost: list[Group]) -> str:
    """What of these groups is nowhere else; empty where they own no slots."""
    slots = {group.id: cluster.owners.slots_of(group.id) for group in lost}
    texts = [f"{slots_text(owned)} of the group headed by node {number}" for number, owned in slots.items() if owned]
    return f"the only copy of {', and of '.join(texts)}" if texts else ""


def _goes(
    cluster: Cluster, index: int, node: Node, dead: bool, lost: list[Group], schemas_in: SchemasIn
) -> dict[str, Any]:
    """The member is leaving, and what is `lost` with it begins anew. {"lost", "dropped"} where these are slots.

    Raises, and nothing has changed, where no group is left that could take them.
    """
    cluster.nodes[node.id] = replace(node, state=NodeState.LEAVING, dead=dead or node.dead)
    if not lost:
        return {}
    try:
        slots = begin_anew(cluster, index, node.id, lost)
    except CallerError:
        cluster.nodes[node.id] = node
        raise
    return {"lost": len(slots), "dropped": schemas_in(set(slots))} if slots else {}


def leave(cluster: Cluster, index: int, fields: Fields, schemas_in: SchemasIn) -> Any:
    """A member is to go.

    Value: {"change"}, and where the loss of the only copy of slots was accepted {"lost": how many slots, "dropped": the
    paths of the storage groups that go with them}.
    """
    identifier, dead = fields.number("node"), bool(fields.number("dead"))
    node = cluster.nodes.get(identifier)
    if node is None:
        raise refused(f"node {identifier} is not found in the cluster")
    # Who was leaving may have died with the meta group's majority: then what it alone had is not given up yet.
    if not node.stays and (not dead or (node.dead and not only_copies(cluster, node))):
        return {"change": require_change(cluster).id}
    if node.stays:
        staying = len({identifier, *cluster.ring.nodes})
        if staying == 1:
            raise refused(f"node {identifier} is the last node of the cluster: stop it instead of removing it")
        if staying <= cluster.replication and not cluster.left_out(identifier):
            raise refused(
                f"the cluster size is too small, no node can be removed: {staying} nodes for {cluster.replication} "
                "replicas; add a node or lower the replication number first"
            )
    lost = _given_up(cluster, node, fields, schemas_in) if dead else []
    if not dead:
        may_begin(cluster)
    loss = _goes(cluster, index, node, dead, lost, schemas_in)
    begin_or_alter(cluster, index, ChangeKind.LEAVE, identifier)
    cluster.changed = index
    return {"change": require_change(cluster).id, **loss}


def _shown(paths: list[str]) -> str:
    return ", ".join(paths[:PATHS_SHOWN_MAX]) + (", ..." if len(paths) > PATHS_SHOWN_MAX else "") or "none"


def _remove(cluster: Cluster, index: int, fields: Fields) -> Any:
    identifier = fields.number("node")
    node = cluster.nodes.get(identifier)
    if node is None:
        return
    require_change(cluster, step=True)
    if node.stays:
        raise refused(f"node {identifier} is not leaving")
    for number, group in sorted(cluster.groups.items()):
        if group.replica_of(identifier) is not None:
            raise refused(f"node {identifier} is still a member of group {number}")
    if identifier in cluster.groups:
        raise refused(f"node {identifier} still heads a group")
    del cluster.nodes[identifier]
    cluster.level = max(cluster.level, min(known.level for known in cluster.nodes.values()))
    cluster.changed = index


HANDLERS: dict[str, Callable[[Cluster, int, Fields], Any]] = {
    "register_node": _register,
    "remove_node": _remove,
}
