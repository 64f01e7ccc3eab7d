"""The state machine of the meta group."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import crc32c

from iotdb_cluster import packing
from iotdb_cluster.auth import AuthState
from iotdb_cluster.errors import CallerError, CorruptData, Status, check
from iotdb_cluster.meta import changes, groups, members, moves
from iotdb_cluster.meta.cluster import Cluster, refused
from iotdb_cluster.meta.commands import COMMAND_VERSION
from iotdb_cluster.meta.fields import Fields
from iotdb_cluster.meta.records import META_GROUP, Change, Group, Loss, Move, Node, Replica, Result, StorageGroup
from iotdb_cluster.meta.storage_groups import StorageGroups
from iotdb_cluster.partition import PartitionTable, Ring, SlotMap
from iotdb_cluster.requests import Admission, RequestId, RequestWindow, refusal
from iotdb_cluster.schema.paths import PathPattern

__all__ = ["LEVEL", "MetaState"]

LEVEL = 1  # the cluster level that this program knows
_SNAPSHOT_VERSION = 2
_SNAPSHOT_VERSIONS = (1, 2)  # those that can be loaded
_ENVELOPE = struct.Struct(">4sBI")  # magic, version, CRC32C of the rest
_MAGIC = b"META"
_NOT_FOUNDED = "the cluster is not founded yet: try again when it is"


class MetaState:
    """Who is in the cluster, which group owns which slot, storage groups, TTLs, users.

    A function of the meta group's log: `apply` in the order of the log, nothing else changes it. The objects that the
    reading methods return are values and never change.
    """

    def __init__(self) -> None:
        self._applied = 0
        self._cluster = Cluster()
        self._storage_groups = StorageGroups()
        self._auth = AuthState()
        self._window = RequestWindow()
        # The outcome of each request in the window: node -> sequence -> what `_remembered` reads.
        self._outcomes: dict[int, dict[int, Any]] = {}
        self._read_only = False

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def applied(self) -> int:
        """The log index of the last entry applied."""
        return self._applied

    @property
    def bootstrapped(self) -> bool:
        return self._cluster.table is not None

    @property
    def level(self) -> int:
        """The cluster level: what every member's current start knows. 0 before the bootstrap."""
        return self._cluster.level

    @property
    def settings(self) -> Mapping[str, Any]:
        """What was fixed at bootstrap, and the replication number as it is now."""
        return MappingProxyType(self._cluster.settings)

    @property
    def replication(self) -> int:
        return self._cluster.replication

    @property
    def partition_interval_ms(self) -> int:
        return int(self._cluster.settings["partition_interval_ms"])

    @property
    def members_changed(self) -> int:
        """The log index of the last decision about nodes, groups, slots or the change under way."""
        return self._cluster.changed

    @property
    def nodes(self) -> list[Node]:
        """By identifier."""
        return [node for _, node in sorted(self._cluster.nodes.items())]

    def node(self, identifier: int) -> Node | None:
        return self._cluster.nodes.get(identifier)

    @property
    def ring(self) -> Ring:
        """Of the nodes that stay and live: the target of the groups."""
        return self._cluster.ring

    @property
    def groups(self) -> list[Group]:
        """The data groups, by id."""
        return [group for number, group in sorted(self._cluster.groups.items()) if number != META_GROUP]

    def group(self, number: int) -> Group | None:
        """A data group, or the meta group for 0."""
        return self._cluster.groups.get(number)

    @property
    def meta_group(self) -> Group | None:
        return self._cluster.groups.get(META_GROUP)

    def group_of_replica(self, replica_id: int) -> tuple[Group, Replica] | None:
        """The group (the meta group too) that has this replica, and the replica."""
        for _, group in sorted(self._cluster.groups.items()):
            replica = group.replica(replica_id)
            if replica is not None:
                return group, replica
        return None

    @property
    def table(self) -> PartitionTable:
        """The owners of the slots. Read only."""
        return self._cluster.owners

    @property
    def slot_map(self) -> SlotMap:
        """Which slot a storage group's time partition has."""
        return self._cluster.slot_map

    def owner_of_slot(self, slot: int) -> tuple[Group, int]:
        """(the data group that owns it, slot epoch)."""
        number, epoch = self.table.owner(slot)
        return self._cluster.groups[number], epoch

    @property
    def change(self) -> Change | None:
        """The change of membership under way."""
        return self._cluster.change

    @property
    def moves(self) -> list[Move]:
        """The moves of slots under way, by id."""
        return [move for _, move in sorted(self._cluster.moves.items())]

    def move(self, identifier: int) -> Move | None:
        """The move, while it is under way."""
        return self._cluster.moves.get(identifier)

    def removed_node(self, identifier: int) -> bool:
        """Whether it was a member, and is none any more."""
        return self._cluster.removed_node(identifier)

    def left_out(self, identifier: int) -> bool:
        """Whether it is a member still, but dead, and out of the meta group: who comes back is told so."""
        return self._cluster.left_out(identifier)

    def removed_replica(self, replica_id: int) -> bool:
        """Whether a group had it as a member, and none has any more: its node deletes it."""
        return self._cluster.removed_replica(replica_id)

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
    def losses(self) -> tuple[Loss, ...]:
        """What operators accepted to lose, the latest last; the oldest are forgotten."""
        return self._cluster.losses

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
            result = Result(value=_HANDLERS[head["kind"]](self, index, Fields(head)))
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

    def _bootstrap(self, index: int, fields: Fields) -> Any:
        password, administrator = fields.text("password"), fields.optional_text("administrator", "root")
        if members.found(self._cluster, index, fields):
            self._auth = AuthState(administrator)
            self._auth.set_password(administrator, password)

    def _join_node(self, index: int, fields: Fields) -> Any:
        return self._members_change(members.join, index, fields)

    def _leave_node(self, index: int, fields: Fields) -> Any:
        return self._members_change(members.leave, index, fields)

    def _members_change(
        self, change: Callable[[Cluster, int, Fields, members.SchemasIn], Any], index: int, fields: Fields
    ) -> Any:
        """What `change` does; storage groups whose schema is lost by it are dropped."""
        if not self.bootstrapped:
            raise refused(_NOT_FOUNDED)

        def schemas_in(slots: set[int]) -> list[str]:
            groups = self._storage_groups.select(None, dropping=False)
            return [group.path for group in groups if self.slot_map.schema_slot_of(group.path) in slots]

        value = change(self._cluster, index, fields, schemas_in)
        if value.get("dropped"):
            self._storage_groups.begin_drop(value["dropped"], index)
        return value

    def _create_storage_group(self, index: int, fields: Fields) -> Any:
        return {"id": self._storage_groups.create(fields.text("path"), index).id}

    def _drop_storage_groups(self, index: int, fields: Fields) -> Any:
        dropped = self._storage_groups.begin_drop(fields.texts("paths"), index)
        return {"ids": [group.id for group in dropped], "paths": [group.path for group in dropped]}

    def _finish_drop(self, _: int, fields: Fields) -> Any:
        self._storage_groups.finish_drop(fields.number("id"))

    def _set_ttl(self, index: int, fields: Fields) -> Any:
        ttl_ms = fields.optional_number("ttl")
        if ttl_ms is not None and ttl_ms < 0:
            raise CallerError(Status.ILLEGAL_PARAMETER, f"TTL should not be negative: {ttl_ms}")
        changed = self._storage_groups.set_ttl(fields.text("path"), ttl_ms, index)
        return {"paths": [group.path for group in changed]}

    def _set_system_mode(self, _: int, fields: Fields) -> Any:
        self._read_only = bool(fields.number("read_only"))

    def _create_user(self, _: int, fields: Fields) -> Any:
        self._auth.create_user(fields.text("user"), fields.text("password"))

    def _drop_user(self, _: int, fields: Fields) -> Any:
        self._auth.drop_user(fields.text("user"))

    def _alter_password(self, _: int, fields: Fields) -> Any:
        self._auth.set_password(fields.text("user"), fields.text("password"))

    def _create_role(self, _: int, fields: Fields) -> Any:
        self._auth.create_role(fields.text("role"))

    def _drop_role(self, _: int, fields: Fields) -> Any:
        self._auth.drop_role(fields.text("role"))

    def _grant_role(self, _: int, fields: Fields) -> Any:
        self._auth.grant_role(fields.text("role"), fields.text("user"))

    def _revoke_role(self, _: int, fields: Fields) -> Any:
        self._auth.revoke_role(fields.text("role"), fields.text("user"))

    def _grant_user_privileges(self, _: int, fields: Fields) -> Any:
        self._auth.grant_user(fields.text("user"), fields.privileges(), fields.text("path"))

    def _revoke_user_privileges(self, _: int, fields: Fields) -> Any:
        self._auth.revoke_user(fields.text("user"), fields.privileges(), fields.text("path"))

    def _grant_role_privileges(self, _: int, fields: Fields) -> Any:
        self._auth.grant_role_privileges(fields.text("role"), fields.privileges(), fields.text("path"))

    def _revoke_role_privileges(self, _: int, fields: Fields) -> Any:
        self._auth.revoke_role_privileges(fields.text("role"), fields.privileges(), fields.text("path"))

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """The whole state at `applied`; equal states give equal bytes."""
        body = packing.pack(
            {
                **self._cluster.dump(),
                "applied": self._applied,
                "storage_groups": self._storage_groups.dump(),
                "auth": self._auth.dump(),
                "window": self._window.dump(),
                "outcomes": [
                    [node, [[sequence, outcome] for sequence, outcome in sorted(outcomes.items())]]
                    for node, outcomes in sorted(self._outcomes.items())
                ],
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
        if magic != _MAGIC or version not in _SNAPSHOT_VERSIONS:
            raise CorruptData(f"a meta snapshot has version {version}, this program knows {_SNAPSHOT_VERSIONS}")
        body = bytes(memoryview(data)[_ENVELOPE.size :])
        if crc32c.crc32c(body) != checksum:
            raise CorruptData("the checksum of a meta snapshot does not match")
        head, _ = packing.unpack(body)
        state = cls()
        state._applied = head["applied"]
        state._cluster = Cluster.load(head, version)
        state._storage_groups = StorageGroups.load(head["storage_groups"])
        state._auth = AuthState.load(head["auth"])
        state._window = RequestWindow.load(head["window"])
        state._outcomes = {node: dict(items) for node, items in head["outcomes"]}
        state._read_only = head.get("read_only", False)
        return state


_HANDLERS: dict[str, Callable[[MetaState, int, Fields], Any]] = {
    "bootstrap": MetaState._bootstrap,
    "join_node": MetaState._join_node,
    "leave_node": MetaState._leave_node,
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


def _of_cluster(handler: Callable[[Cluster, int, Fields], Any]) -> Callable[[MetaState, int, Fields], Any]:
    def handle(state: MetaState, index: int, fields: Fields) -> Any:
        if not state.bootstrapped:
            raise refused(_NOT_FOUNDED)
        return handler(state._cluster, index, fields)

    return handle


for _table in (members.HANDLERS, changes.HANDLERS, groups.HANDLERS, moves.HANDLERS):
    _HANDLERS.update((kind, _of_cluster(handler)) for kind, handler in _table.items())
