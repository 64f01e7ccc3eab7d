"""The state machine of the meta group."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import crc32c

from iotdb_cluster import packing
from iotdb_cluster.auth import AuthState, Privilege
from iotdb_cluster.errors import CallerError, CorruptData, Status, check
from iotdb_cluster.meta.commands import COMMAND_VERSION
from iotdb_cluster.meta.records import META_GROUP, Address, Group, Node, Replica, Result, StorageGroup
from iotdb_cluster.meta.storage_groups import StorageGroups
from iotdb_cluster.partition import PartitionTable, Ring
from iotdb_cluster.requests import Admission, RequestId, RequestWindow, refusal
from iotdb_cluster.schema.paths import PathPattern

__all__ = ["LEVEL", "META_VOTERS_MAX", "MetaState"]

LEVEL = 1  # the cluster level that this program knows
META_VOTERS_MAX = 7  # further members of the meta group are learners: larger quorums only slow every decision
_SNAPSHOT_VERSION = 1
_ENVELOPE = struct.Struct(">4sBI")  # magic, version, CRC32C of the rest
_MAGIC = b"META"


class _Fields:
    """The fields of a command, checked: CallerError where one is missing or of another type."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = head

    def _of(self, name: str, kind: type | tuple[type, ...]) -> Any:
        found = self._head.get(name)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is int):
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"a meta command's field {name} is {found!r}")
        return found

    def text(self, name: str) -> str:
        return str(self._of(name, str))

    def number(self, name: str) -> int:
        return int(self._of(name, int))

    def items(self, name: str) -> list[Any]:
        return list(self._of(name, list))

    def texts(self, name: str) -> list[str]:
        return [str(item) for item in self.items(name)]

    def mapping(self, name: str) -> dict[str, Any]:
        return dict(self._of(name, dict))

    def optional_number(self, name: str) -> int | None:
        return None if self._head.get(name) is None else self.number(name)

    def optional_text(self, name: str, default: str) -> str:
        return default if self._head.get(name) is None else self.text(name)

    def privileges(self) -> list[Privilege]:
        try:
            return [Privilege(number) for number in self.items("privileges")]
        except ValueError as error:
            raise CallerError(Status.QUERY_PROCESS_ERROR, f"No such privilege {error}") from None


def _address(items: list[Any]) -> Address:
    if len(items) != 4 or not isinstance(items[0], str) or not all(type(port) is int for port in items[1:]):
        raise CallerError(Status.INTERNAL_SERVER_ERROR, f"{items!r} is no address of a node")
    return Address(*items)


class MetaState:
    """Who is in the cluster, which group owns which slot, storage groups, TTLs, users.

    A function of the meta group's log: `apply` in the order of the log, nothing else changes it. The objects that the
    reading methods return are values and never change.
    """

    def __init__(self) -> None:
        self._applied = 0
        self._level = 0
        self._settings: dict[str, Any] = {}
        self._nodes: dict[int, Node] = {}
        self._groups: dict[int, Group] = {}
        self._next_replica = 1
        self._table: PartitionTable | None = None
        self._storage_groups = StorageGroups()
        self._auth = AuthState()
        self._window = RequestWindow()
        # The outcome of each request in the window: node -> sequence -> what `_remembered` reads.
        self._outcomes: dict[int, dict[int, Any]] = {}
        self._members_changed = 0
        self._read_only = False

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def applied(self) -> int:
        """The log index of the last entry applied."""
        return self._applied

    @property
    def bootstrapped(self) -> bool:
        return self._table is not None

    @property
    def level(self) -> int:
        """The cluster level: what every member's current start knows. 0 before the bootstrap."""
        return self._level

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was fixed at bootstrap."""
        return MappingProxyType(self._settings)

    @property
    def replication(self) -> int:
        return int(self._settings["replication"])

    @property
    def partition_interval_ms(self) -> int:
        return int(self._settings["partition_interval_ms"])

    @property
    def members_changed(self) -> int:
        """The log index of the last change of nodes, groups or slot owners."""
        return self._members_changed

    @property
    def nodes(self) -> list[Node]:
        """By identifier."""
        return [node for _, node in sorted(self._nodes.items())]

    def node(self, identifier: int) -> Node | None:
        return self._nodes.get(identifier)

    @property
    def ring(self) -> Ring:
        return Ring(self._nodes)

    @property
    def groups(self) -> list[Group]:
        """The data groups, by id."""
        return [group for number, group in sorted(self._groups.items()) if number != META_GROUP]

    def group(self, number: int) -> Group | None:
        """A data group, or the meta group for 0."""
        return self._groups.get(number)

    @property
    def meta_group(self) -> Group | None:
        return self._groups.get(META_GROUP)

    def group_of_replica(self, replica_id: int) -> tuple[Group, Replica] | None:
        """The group (the meta group too) that has this replica, and the replica."""
        for _, group in sorted(self._groups.items()):
            replica = group.replica(replica_id)
            if replica is not None:
                return group, replica
        return None

    @property
    def table(self) -> PartitionTable:
        """The owners of the slots. Read only."""
        check(self._table is not None, "the partition table is read before the bootstrap")
        return self._table  # type: ignore[return-value]

    def owner_of_slot(self, slot: int) -> tuple[Group, int]:
        """(the data group that owns it, slot epoch)."""
        number, epoch = self.table.owner(slot)
        return self._groups[number], epoch

    def storage_group_of(self, path: str) -> StorageGroup | None:
        """The storage group that a device's or series' path lies in (it may be `dropping`)."""
        return self._storage_groups.at_or_above(path)

    def storage_group(self, identifier: int) -> StorageGroup | None:
        return self._storage_groups.by_id(identifier)

    def storage_groups(self, pattern: PathPattern | None = None, *, dropping: bool = False) -> list[StorageGroup]:
        """Those at or below the pattern (None: all), by path; with `dropping` also those being dropped."""
        return self._storage_groups.select(pattern, dropping=dropping)

    def storage_groups_touched(self, pattern: PathPattern) -> list[StorageGroup]:
        """Those in which a series that matches can lie, by path, without those being dropped."""
        return self._storage_groups.touched(pattern)

    @property
    def auth(self) -> AuthState:
        """Users and roles. Read only."""
        return self._auth

    @property
    def read_only(self) -> bool:
        """Whether SET SYSTEM TO READONLY holds."""
        return self._read_only

    # --- applying -----------------------------------------------------------------------------------------------------

    def apply(self, index: int, payload: bytes | memoryview) -> Result:
        """Takes the entry at this log index into the state, and says what became of it. An empty payload does nothing.

        A command that cannot be carried out changes nothing and gives a Result with the error, the same on every node.
        CorruptData where the payload is of a version, or a kind, that this program does not know: the node must stop.
        """
        check(index > self._applied, "meta entry %s comes after %s", index, self._applied)
        if not len(payload):
            self._applied = index
            return Result()
        head, _ = packing.unpack(payload)
        if not isinstance(head, dict) or head.get("v") != COMMAND_VERSION or head.get("kind") not in _HANDLERS:
            version, kind = (head.get("v"), head.get("kind")) if isinstance(head, dict) else (None, None)
            raise CorruptData(f"meta entry {index} is of kind {kind!r}, version {version!r}: not known to this program")
        request = RequestId(*head["request"])
        self._applied = index
        admission = self._window.admit(request)
        if admission is Admission.APPLIED:
            return self._remembered(request)
        if admission is not Admission.NEW:
            return Result(error=refusal(request, admission))
        try:
            result = Result(value=_HANDLERS[head["kind"]](self, index, _Fields(head)))
        except CallerError as error:
            result = Result(error=error)
        self._remember(request, result)
        return result

    def _remember(self, request: RequestId, result: Result) -> None:
        if request.node == 0:
            return
        start, low = self._window.low_of(request.node)
        self._window.record(request)
        outcomes = self._outcomes.get(request.node)
        if outcomes is None or start != request.start:
            outcomes = self._outcomes[request.node] = {}
        elif low < request.low:
            for sequence in [sequence for sequence in outcomes if sequence < request.low]:
                del outcomes[sequence]
        error = result.error
        outcomes[request.sequence] = [result.value] if error is None else [int(error.code), error.message]

    def _remembered(self, request: RequestId) -> Result:
        outcome = self._outcomes[request.node][request.sequence]
        if len(outcome) == 1:
            return Result(value=outcome[0], duplicate=True)
        return Result(error=CallerError(Status(outcome[0]), outcome[1]), duplicate=True)

    def _bootstrap(self, index: int, fields: _Fields) -> Any:
        settings = fields.mapping("settings")
        named = _Fields(settings)
        replication, interval = named.number("replication"), named.number("partition_interval_ms")
        named.text("cluster_name")
        if replication < 1 or interval < 1:
            raise CallerError(
                Status.START_UP_ERROR, f"replication {replication} and partition interval {interval} must be above 0"
            )
        nodes = {}
        for identifier, *address in fields.items("nodes"):
            nodes[int(identifier)] = Node(int(identifier), _address(address))
        if not nodes or min(nodes) < 1 or len({node.address[:2] for node in nodes.values()}) < len(nodes):
            raise CallerError(Status.START_UP_ERROR, "a cluster begins with nodes of different addresses")
        level, password = fields.number("level"), fields.text("password")
        administrator = fields.optional_text("administrator", "root")
        if self.bootstrapped:
            if settings == self._settings and set(nodes) == set(self._nodes):
                return None
            raise CallerError(Status.START_UP_ERROR, f"the cluster {self._settings['cluster_name']} exists already")
        self._settings = settings
        self._level = level
        self._nodes = nodes
        self._auth = AuthState(administrator)
        self._auth.set_password(administrator, password)
        ring = Ring(nodes)
        self._groups[META_GROUP] = Group(
            META_GROUP, 1, tuple(Replica(node, node, at < META_VOTERS_MAX) for at, node in enumerate(ring.nodes))
        )
        self._next_replica = ring.nodes[-1] + 1
        for header in ring.nodes:
            replicas = []
            for member in ring.members(header, replication):
                replicas.append(Replica(self._next_replica, member))
                self._next_replica += 1
            self._groups[header] = Group(header, 1, tuple(replicas))
        self._table = PartitionTable.initial(ring.nodes)
        self._members_changed = index
        return None

    def _register_node(self, index: int, fields: _Fields) -> Any:
        identifier, incarnation = fields.number("node"), fields.number("incarnation")
        start, level = fields.number("start"), fields.number("level")
        address = _address(fields.items("address"))
        node = self._nodes.get(identifier)
        reason = ""
        if node is None:
            reason = f"node {identifier} is not a member of the cluster"
        elif node.incarnation not in (0, incarnation):
            reason = f"node {identifier} is known with other data: an emptied disk comes back by replacing the node"
        elif start < max(node.start, 1):
            reason = f"node {identifier} reports its start {start} after start {node.start}"
        elif level < self._level:
            reason = f"the cluster is at level {self._level}, the program of node {identifier} knows level {level}"
        else:
            for other in self.nodes:
                if other.id != identifier and other.address[:2] == address[:2]:
                    reason = f"node {other.id} is at {address.host}:{address.meta_port} already"
        if reason or node is None:
            raise CallerError(Status.START_UP_ERROR, reason)
        self._nodes[identifier] = replace(node, incarnation=incarnation, start=start, address=address, level=level)
        self._level = max(self._level, min(known.level for known in self._nodes.values()))
        self._members_changed = index
        return {"level": self._level}

    def _create_storage_group(self, index: int, fields: _Fields) -> Any:
        return {"id": self._storage_groups.create(fields.text("path"), index).id}

    def _drop_storage_groups(self, index: int, fields: _Fields) -> Any:
        dropped = self._storage_groups.begin_drop(fields.texts("paths"), index)
        return {"ids": [group.id for group in dropped], "paths": [group.path for group in dropped]}

    def _finish_drop(self, _: int, fields: _Fields) -> Any:
        self._storage_groups.finish_drop(fields.number("id"))

    def _set_ttl(self, index: int, fields: _Fields) -> Any:
        ttl_ms = fields.optional_number("ttl")
        if ttl_ms is not None and ttl_ms < 0:
            raise CallerError(Status.ILLEGAL_PARAMETER, f"TTL should not be negative: {ttl_ms}")
        changed = self._storage_groups.set_ttl(fields.text("path"), ttl_ms, index)
        return {"paths": [group.path for group in changed]}

    def _set_system_mode(self, _: int, fields: _Fields) -> Any:
        self._read_only = bool(fields.number("read_only"))

    def _create_user(self, _: int, fields: _Fields) -> Any:
        self._auth.create_user(fields.text("user"), fields.text("password"))

    def _drop_user(self, _: int, fields: _Fields) -> Any:
        self._auth.drop_user(fields.text("user"))

    def _alter_password(self, _: int, fields: _Fields) -> Any:
        self._auth.set_password(fields.text("user"), fields.text("password"))

    def _create_role(self, _: int, fields: _Fields) -> Any:
        self._auth.create_role(fields.text("role"))

    def _drop_role(self, _: int, fields: _Fields) -> Any:
        self._auth.drop_role(fields.text("role"))

    def _grant_role(self, _: int, fields: _Fields) -> Any:
        self._auth.grant_role(fields.text("role"), fields.text("user"))

    def _revoke_role(self, _: int, fields: _Fields) -> Any:
        self._auth.revoke_role(fields.text("role"), fields.text("user"))

    def _grant_user_privileges(self, _: int, fields: _Fields) -> Any:
        self._auth.grant_user(fields.text("user"), fields.privileges(), fields.text("path"))

    def _revoke_user_privileges(self, _: int, fields: _Fields) -> Any:
        self._auth.revoke_user(fields.text("user"), fields.privileges(), fields.text("path"))

    def _grant_role_privileges(self, _: int, fields: _Fields) -> Any:
        self._auth.grant_role_privileges(fields.text("role"), fields.privileges(), fields.text("path"))

    def _revoke_role_privileges(self, _: int, fields: _Fields) -> Any:
        self._auth.revoke_role_privileges(fields.text("role"), fields.privileges(), fields.text("path"))

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """The whole state at `applied`; equal states give equal bytes."""
        body = packing.pack(
            {
                "applied": self._applied,
                "level": self._level,
                "settings": self._settings,
                "nodes": [
                    [node.id, list(node.address), node.incarnation, node.start, node.level] for node in self.nodes
                ],
                "groups": [
                    [group.id, group.generation, [[item.id, item.node, item.voter] for item in group.replicas]]
                    for _, group in sorted(self._groups.items())
                ],
                "next_replica": self._next_replica,
                "table": None if self._table is None else self._table.dump(),
                "storage_groups": self._storage_groups.dump(),
                "auth": self._auth.dump(),
                "window": self._window.dump(),
                "outcomes": [
                    [node, [[sequence, outcome] for sequence, outcome in sorted(outcomes.items())]]
                    for node, outcomes in sorted(self._outcomes.items())
                ],
                "members_changed": self._members_changed,
                "read_only": self._read_only,
            }
        )
        return _ENVELOPE.pack(_MAGIC, _SNAPSHOT_VERSION, crc32c.crc32c(body)) + body

    @classmethod
    def load(cls, data: bytes | memoryview) -> MetaState:
        """The inverse of `dump`; CorruptData where bytes are damaged, or of a version not known to this program."""
        if len(data) < _ENVELOPE.size:
            raise CorruptData(f"a meta snapshot of {len(data)} bytes is too short")
        magic, version, checksum = _ENVELOPE.unpack_from(data)
        if magic != _MAGIC or version != _SNAPSHOT_VERSION:
            raise CorruptData(f"a meta snapshot has version {version}, this program knows {_SNAPSHOT_VERSION}")
        body = bytes(memoryview(data)[_ENVELOPE.size :])
        if crc32c.crc32c(body) != checksum:
            raise CorruptData("the checksum of a meta snapshot does not match")
        head, _ = packing.unpack(body)
        state = cls()
        state._applied = head["applied"]
        state._level = head["level"]
        state._settings = head["settings"]
        for identifier, address, incarnation, start, level in head["nodes"]:
            state._nodes[identifier] = Node(identifier, Address(*address), incarnation, start, level)
        for number, generation, replicas in head["groups"]:
            state._groups[number] = Group(number, generation, tuple(Replica(*replica) for replica in replicas))
        state._next_replica = head["next_replica"]
        state._table = None if head["table"] is None else PartitionTable.load(head["table"])
        state._storage_groups = StorageGroups.load(head["storage_groups"])
        state._auth = AuthState.load(head["auth"])
        state._window = RequestWindow.load(head["window"])
        state._outcomes = {node: dict(items) for node, items in head["outcomes"]}
        state._members_changed = head["members_changed"]
        state._read_only = head.get("read_only", False)
        return state


_HANDLERS: dict[str, Callable[[MetaState, int, _Fields], Any]] = {
    "bootstrap": MetaState._bootstrap,
    "register_node": MetaState._register_node,
    "create_storage_group": MetaState._create_storage_group,
    "drop_storage_groups": MetaState._drop_storage_groups,
    "finish_drop": MetaState._finish_drop,
    "set_ttl": MetaState._set_ttl,
    "set_system_mode": MetaState._set_system_mode,
    "create_user": MetaState._create_user,
    "drop_user": MetaState._drop_user,
    "alter_password": MetaState._alter_password,
    "create_role": MetaState._create_role,
    "drop_role": MetaState._drop_role,
    "grant_role": MetaState._grant_role,
    "revoke_role": MetaState._revoke_role,
    "grant_user_privileges": MetaState._grant_user_privileges,
    "revoke_user_privileges": MetaState._revoke_user_privileges,
    "grant_role_privileges": MetaState._grant_role_privileges,
    "revoke_role_privileges": MetaState._revoke_role_privileges,
}
