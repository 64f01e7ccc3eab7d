"""The commands of the meta group, as payloads of its log entries.

A payload is `packing.pack(head)`, the head an object with `v` (1), `kind`, `request` and the command's own fields. The
functions here are the only place that writes those names; `state.py` and the tables of handlers beside it read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iotdb_cluster import packing
from iotdb_cluster.auth import Privilege
from iotdb_cluster.meta.records import Address
from iotdb_cluster.requests import NO_REQUEST, RequestId

__all__ = [
    "COMMAND_VERSION",
    "DATA_REPLICAS_FROM",
    "alter_password",
    "begin_move",
    "bootstrap",
    "create_group",
    "create_role",
    "create_storage_group",
    "create_user",
    "drop_role",
    "drop_storage_groups",
    "drop_user",
    "end_move",
    "finish_change",
    "finish_drop",
    "force_group",
    "grant_role_privileges",
    "grant_role_to_user",
    "grant_user_privileges",
    "group_shaped",
    "join_node",
    "leave_node",
    "pause_change",
    "rebalance",
    "register_node",
    "remove_group",
    "remove_node",
    "resume_change",
    "revoke_role_from_user",
    "revoke_role_privileges",
    "revoke_user_privileges",
    "set_replication",
    "set_system_mode",
    "set_ttl",
    "shift_group",
    "unset_ttl",
]

COMMAND_VERSION = 1
DATA_REPLICAS_FROM = 100_001  # the first replica id of data groups; what is below numbers nodes, also later ones


def _command(kind: str, request: RequestId, **fields: Any) -> bytes:
    return packing.pack({"v": COMMAND_VERSION, "kind": kind, "request": list(request), **fields})


def bootstrap(
    settings: Mapping[str, Any],
    nodes: Sequence[tuple[int, Address]],
    administrator_password: str,
    *,
    administrator: str = "root",
    level: int = 1,
) -> bytes:
    """The first entry: the cluster exists. A repetition with equal settings and nodes changes nothing.

    `settings` are what must be equal on all nodes for ever; it holds at least `cluster_name` (text), `replication`
    and `partition_interval_ms` (whole numbers above 0). `nodes`: identifiers from 1, with addresses. The meta group's
    replica ids are the identifiers; those of data groups count from `DATA_REPLICAS_FROM`. `administrator_password` is
    hashed.
    """
    return _command(
        "bootstrap",
        NO_REQUEST,
        settings=dict(settings),
        nodes=[[node, *address] for node, address in nodes],
        password=administrator_password,
        administrator=administrator,
        level=level,
        first_replica=DATA_REPLICAS_FROM,
    )


def register_node(
    request: RequestId, node: int, incarnation: int, start_number: int, address: Address, level: int
) -> bytes:
    """A node has started: which start it is, where it is reached, and the cluster level that its program knows."""
    return _command(
        "register_node",
        request,
        node=node,
        incarnation=incarnation,
        start=start_number,
        address=list(address),
        level=level,
    )


def join_node(
    request: RequestId,
    address: Address,
    incarnation: int,
    start_number: int,
    level: int,
    settings: Mapping[str, Any],
    replaces: int = 0,
    accept_loss: bool = False,
) -> bytes:
    """A new member; `settings` are what it must have in common, by the names of the keys (`Settings.agreement`).

    `replaces`: the member that is dead and whose place it takes; 0: none. Value: {"node": its identifier, "founders":
    the replica ids that the meta group began with, "nodes": [[id, host, meta port, data port, client port], ...]}, with
    a loss, as of `leave_node`, also "lost" and "dropped". The same address and incarnation again: the same answer,
    without these.
    """
    return _command(
        "join_node",
        request,
        address=list(address),
        incarnation=incarnation,
        start=start_number,
        level=level,
        settings=dict(settings),
        replaces=replaces,
        accept_loss=int(accept_loss),
    )


def leave_node(request: RequestId, node: int, dead: bool, accept_loss: bool = False) -> bytes:
    """The member is to go; `dead`: it will not come back, and has no part in that.

    Refused where the only copy of slots is there, unless `accept_loss`: then they begin anew, empty, elsewhere. Value:
    {"change": the change}, with a loss also {"lost": slots, "dropped": paths of storage groups}.
    """
    return _command("leave_node", request, node=node, dead=int(dead), accept_loss=int(accept_loss))


def remove_node(request: RequestId, node: int) -> bytes:
    """The member that was leaving is none any more; nothing where it is none already."""
    return _command("remove_node", request, node=node)


def set_replication(request: RequestId, replication: int) -> bytes:
    """How many replicas a group is to have. Value: {"change": the change, 0 where the number is the same}."""
    return _command("set_replication", request, replication=replication)


def rebalance(request: RequestId, moves: Iterable[tuple[int, int, Sequence[int]]]) -> bytes:
    """Moves that are wanted: (giver, receiver, slots). Value: {"change": the change, 0 where nothing is to do}."""
    wanted = [[giver, receiver, list(slots)] for giver, receiver, slots in moves]
    return _command("rebalance", request, moves=wanted)


def pause_change(request: RequestId) -> bytes:
    """No new step of the change begins. Value: {"change": the change}."""
    return _command("pause_change", request)


def resume_change(request: RequestId) -> bytes:
    """Steps begin again. Value: {"change": the change}."""
    return _command("resume_change", request)


def finish_change(request: RequestId, change: int) -> bytes:
    """Nothing is left to do: nodes that were joining are normal. Nothing where the change is over already."""
    return _command("finish_change", request, change=change)


def create_group(request: RequestId, header: int) -> bytes:
    """The group headed by a member, with the ring's members; nothing where it is there."""
    return _command("create_group", request, header=header)


def shift_group(request: RequestId, group: int, add: Iterable[int], remove: Iterable[int]) -> bytes:
    """The group's target: `add` are nodes, `remove` replica ids; what is so already is left alone."""
    return _command("shift_group", request, group=group, add=list(add), remove=list(remove))


def group_shaped(
    request: RequestId, group: int, generation: int, voters: Iterable[int], learners: Iterable[int] = ()
) -> bytes:
    """A report: Raft's configuration has these replica ids, and is not joint. `learners`: of the meta group alone."""
    return _command(
        "group_shaped", request, group=group, generation=generation, voters=list(voters), learners=list(learners)
    )


def remove_group(request: RequestId, group: int) -> bytes:
    """The group, whose header leaves, is dissolved; nothing where it is gone."""
    return _command("remove_group", request, group=group)


def force_group(
    request: RequestId, group: int, generation: int, dead: Iterable[int], accept_loss: bool = False
) -> bytes:
    """Forced reconfiguration to `generation` (the present one + 1) without the dead replica ids.

    Refused where these were a majority of a configuration, unless `accept_loss`. Value: {"survivors": replica ids}.
    """
    return _command(
        "force_group", request, group=group, generation=generation, dead=sorted(dead), accept_loss=int(accept_loss)
    )


def begin_move(request: RequestId, giver: int, receiver: int, slots: Iterable[int]) -> bytes:
    """Slots begin to move; the epoch after the present one is set aside for each. Value: {"move": its id}."""
    return _command("begin_move", request, giver=giver, receiver=receiver, slots=list(slots))


def end_move(request: RequestId, move: int, to: str) -> bytes:
    """The decision: the slots are the "receiver"'s, or stay the "giver"'s, at a new epoch either way.

    Nothing where it has been taken already. Value: {"over": whether it had}.
    """
    return _command("end_move", request, move=move, to=to)


def create_storage_group(request: RequestId, path: str) -> bytes:
    """Value: {"id": the new storage group's id}."""
    return _command("create_storage_group", request, path=path)


def drop_storage_groups(request: RequestId, paths: Iterable[str]) -> bytes:
    """Begins the drop of every storage group at or below each path. Value: {"ids": [...], "paths": [...]}."""
    return _command("drop_storage_groups", request, paths=list(paths))


def finish_drop(request: RequestId, storage_group: int) -> bytes:
    """Every group concerned has dropped its part: the storage group is gone, its path is free."""
    return _command("finish_drop", request, id=storage_group)


def set_ttl(request: RequestId, path: str, ttl_ms: int) -> bytes:
    """For every storage group at or below the path. Value: {"paths": [...]}; none is no error."""
    return _command("set_ttl", request, path=path, ttl=ttl_ms)


def unset_ttl(request: RequestId, path: str) -> bytes:
    """For every storage group at or below the path. Value: {"paths": [...]}; none is no error."""
    return _command("set_ttl", request, path=path, ttl=None)


def set_system_mode(request: RequestId, read_only: bool) -> bytes:
    """Whether clients may change anything, on all nodes, until it is said otherwise."""
    return _command("set_system_mode", request, read_only=int(read_only))


def create_user(request: RequestId, user: str, hashed: str) -> bytes:
    return _command("create_user", request, user=user, password=hashed)


def drop_user(request: RequestId, user: str) -> bytes:
    return _command("drop_user", request, user=user)


def alter_password(request: RequestId, user: str, hashed: str) -> bytes:
    return _command("alter_password", request, user=user, password=hashed)


def create_role(request: RequestId, role: str) -> bytes:
    return _command("create_role", request, role=role)


def drop_role(request: RequestId, role: str) -> bytes:
    return _command("drop_role", request, role=role)


def grant_role_to_user(request: RequestId, role: str, user: str) -> bytes:
    return _command("grant_role", request, role=role, user=user)


def revoke_role_from_user(request: RequestId, role: str, user: str) -> bytes:
    return _command("revoke_role", request, role=role, user=user)


def grant_user_privileges(request: RequestId, user: str, privileges: Iterable[Privilege], path: str) -> bytes:
    return _command("grant_user_privileges", request, user=user, privileges=list(map(int, privileges)), path=path)


def revoke_user_privileges(request: RequestId, user: str, privileges: Iterable[Privilege], path: str) -> bytes:
    return _command("revoke_user_privileges", request, user=user, privileges=list(map(int, privileges)), path=path)


def grant_role_privileges(request: RequestId, role: str, privileges: Iterable[Privilege], path: str) -> bytes:
    return _command("grant_role_privileges", request, role=role, privileges=list(map(int, privileges)), path=path)


def revoke_role_privileges(request: RequestId, role: str, privileges: Iterable[Privilege], path: str) -> bytes:
    return _command("revoke_role_privileges", request, role=role, privileges=list(map(int, privileges)), path=path)
