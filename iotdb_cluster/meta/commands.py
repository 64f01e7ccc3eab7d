"""The commands of the meta group, as payloads of its log entries.

A payload is `packing.pack(head)`, the head an object with `v` (1), `kind`, `request` and the command's own fields. The
functions here are the only place that writes those names, `state.py` the only one that reads them.
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
    "alter_password",
    "bootstrap",
    "create_role",
    "create_storage_group",
    "create_user",
    "drop_role",
    "drop_storage_groups",
    "drop_user",
    "finish_drop",
    "grant_role_privileges",
    "grant_role_to_user",
    "grant_user_privileges",
    "register_node",
    "revoke_role_from_user",
    "revoke_role_privileges",
    "revoke_user_privileges",
    "set_system_mode",
    "set_ttl",
    "unset_ttl",
]

COMMAND_VERSION = 1


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
    replica ids are the identifiers. `administrator_password`: hashed.
    """
    return _command(
        "bootstrap",
        NO_REQUEST,
        settings=dict(settings),
        nodes=[[node, *address] for node, address in nodes],
        password=administrator_password,
        administrator=administrator,
        level=level,
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
