"""What a coordinator knows of storage groups, slots and series: this node's replica of meta, and the schema slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.failures import load_failure
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.columns import DataType, Shape
from iotdb_cluster.errors import CallerError, Moved, Status
from iotdb_cluster.meta import StorageGroup, commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.schema import split_path, storage_group_for

__all__ = ["Catalog", "Known", "Place", "Resolved", "StorageGroupRef"]


class StorageGroupRef(NamedTuple):
    """A storage group as a statement uses it."""

    id: int
    path: str
    ttl_ms: int | None


class Place(NamedTuple):
    """The slot of a unit or a schema, its epoch, and the group that owns it by this node's knowledge of meta."""

    slot: int
    epoch: int
    group: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """A device's columns as the schema has them: those that fit (`kept`, None: all) under `epoch`; why others don't."""

    group: StorageGroupRef
    epoch: int
    kept: tuple[int, ...] | None
    error: CallerError | None
    names: tuple[str, ...] | None = None  # of the kept columns, where a client wrote under an alias


@dataclass(frozen=True, slots=True)
class Known:
    """Types of series by device and measurement under a schema epoch, and why others could not be created."""

    epoch: int
    types: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, Mapping[str, CallerError]]
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # alias -> measurement, by device

    def resolve(self, group: StorageGroupRef, device: str, shape: Shape) -> Resolved:
        """Compare a write's columns with the schema: a column of another type, or that is not there, is left out."""
        types, errors = self.types.get(device, {}), self.errors.get(device, {})
        kept, failed, missing = [], [], []
        reason: CallerError | None = None
        for at, (name, kind) in enumerate(zip(shape.measurements, shape.types, strict=True)):
            there = types.get(name)
            if there is None:
                missing.append(f"{device}.{name}")
                reason = reason or errors.get(name)
            elif there != kind:
                failed.append((name, kind, DataType(there)))
            else:
                kept.append(at)
        aliases = self.names.get(device, {})
        names = None
        if any(shape.measurements[at] in aliases for at in kept):
            # Where both names of a series are given the last one counts.
            columns = {aliases.get(shape.measurements[at], shape.measurements[at]): at for at in kept}
            names, kept = tuple(columns), list(columns.values())
        if not failed and not missing:
            return Resolved(group, self.epoch, None if names is None else tuple(kept), None, names)
        if failed:
            unfit = ", ".join(name for name, _, _ in failed)
            name, kind, there_type = failed[0]
            error = CallerError(
                Status.STORAGE_ENGINE_ERROR,
                f"failed to insert measurements [{unfit}] caused by DataType mismatch, Insert measurement {name} "
                f"type {kind.name}, metadata tree type {there_type.name}",
            )
        else:
            error = reason or CallerError(Status.TIMESERIES_NOT_EXIST, f"Path [{' '.join(missing)}] does not exist")
        return Resolved(group, self.epoch, tuple(kept), error, names)


class Catalog:
    """Storage groups and places from meta, series from their schema slots."""

    def __init__(self, meta: MetaAccess, calls: Calls, leaders: Leaders, settings: Settings) -> None:
        self._meta = meta
        self._calls = calls
        self._leaders = leaders
        self._settings = settings

    # --- places -------------------------------------------------------------------------------------------------------

    def place(self, group: StorageGroupRef, partition: int) -> Place:
        return self._place(self._meta.state.slot_map.slot_of(group.path, partition))

    def schema_place(self, group: StorageGroupRef) -> Place:
        return self._place(self._meta.state.slot_map.schema_slot_of(group.path))

    def _place(self, slot: int) -> Place:
        owner, epoch = self._meta.state.owner_of_slot(slot)
        return Place(slot, epoch, owner.id)

    # --- storage groups -----------------------------------------------------------------------------------------------

    def current(self, group: StorageGroupRef) -> StorageGroupRef | None:
        """The same storage group as meta has it here now; None where it goes, or went."""
        found = self._meta.state.storage_group(group.id)
        if found is None or found.dropping:
            return None
        return group if found.ttl_ms == group.ttl_ms else reference(found)

    @property
    def version(self) -> int:
        """Of the places: what `moved` compares with."""
        return self._meta.state.members_changed

    async def moved(self, seen: int, deadline: Deadline) -> None:
        """A place of version `seen` does not hold any more: wait until this node knows better, or a while."""
        await self._meta.moved(seen, deadline)

    async def refresh(self, deadline: Deadline) -> None:
        """Have this node's replica of meta catch up with what a group knew better."""
        await self._meta.barrier(deadline)

    async def storage_group(self, device: str, deadline: Deadline) -> StorageGroupRef:
        """The storage group that a device lies in; made where that is allowed."""
        found = self._meta.state.storage_group_of(device)
        if found is None:
            await self._meta.barrier(deadline)
            found = self._meta.state.storage_group_of(device)
        if found is None:
            if not self._settings.auto_create_schema:
                raise CallerError(Status.METADATA_ERROR, f"Storage group is not set for current seriesPath: [{device}]")
            path = storage_group_for(split_path(device), self._settings.storage_group_level)
            try:
                await self._meta.propose(lambda request: commands.create_storage_group(request, path), deadline)
            except CallerError as error:
                if error.code != Status.PATH_ALREADY_EXIST:
                    raise
                await self._meta.barrier(deadline)
            found = self._meta.state.storage_group_of(device)
            if found is None:
                raise CallerError(
                    Status.STORAGE_GROUP_NOT_READY, f"the storage group of {device} went while it was being made"
                )
        return reference(found)

    # --- series -------------------------------------------------------------------------------------------------------

    async def ensure(
        self,
        group: StorageGroupRef,
        devices: Mapping[str, Mapping[str, DataType]],
        deadline: Deadline,
        *,
        create: bool = True,
    ) -> Known:
        """The types of these series as they are; those that do not exist are created where that is allowed."""
        while True:
            seen, place = self.version, self.schema_place(group)
            try:
                return await self._ensure(group, place, devices, deadline, create)
            except Moved:
                if deadline.passed:
                    raise
            await self.moved(seen, deadline)

    async def _ensure(
        self,
        group: StorageGroupRef,
        place: Place,
        devices: Mapping[str, Mapping[str, DataType]],
        deadline: Deadline,
        create: bool,
    ) -> Known:
        async def attempt(node: int, within: Deadline) -> memoryview:
            head = {
                "group": place.group,
                "storage_group": group.id,
                "path": group.path,
                "slot": place.slot,
                "epoch": place.epoch,
                "create": create and self._settings.auto_create_schema,
                "devices": {
                    device: {name: int(kind) for name, kind in columns.items()} for device, columns in devices.items()
                },
            }
            return await self._calls.call(node, "resolve", pack(head), within)

        answer = await self._leaders.run(place.group, attempt, deadline, repeatable=True)
        head, _ = unpack(answer)
        errors = {
            device: {name: load_failure(failure) for name, failure in failures.items()}
            for device, failures in head["errors"].items()
        }
        return Known(int(head["epoch"]), head["devices"], errors, head["names"])


def reference(group: StorageGroup) -> StorageGroupRef:
    """The part of meta's record that a statement uses; 317 where it is being dropped."""
    if group.dropping:
        raise CallerError(
            Status.STORAGE_GROUP_NOT_READY, f"storage group {group.path} is being deleted, try again when it is gone"
        )
    return StorageGroupRef(group.id, group.path, group.ttl_ms)
