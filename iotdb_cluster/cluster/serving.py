"""What a node answers to other nodes about writing: proposals to groups that it leads, and series to be resolved.

Every method takes a packed body and gives one (`packing`), but for `propose`, whose body is a group and an entry.
"""

from __future__ import annotations

import asyncio
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.failures import dump_failure
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.proposals import GROUP, Proposals
from iotdb_cluster.cluster.room import RoomGuard
from iotdb_cluster.columns import DataType
from iotdb_cluster.data import EnsureSeries, Header, encode
from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import SeriesSpec, check_series_path

__all__ = ["WriteServing"]

SERIES_PER_ENTRY = 10_000  # created at once by automatic creation: plain series, a path each


class WriteServing:
    """The handlers `propose`, `resolve` and `retired`."""

    def __init__(
        self, driver: Driver, machines: dict[int, DataMachine], proposals: Proposals, guard: RoomGuard
    ) -> None:
        self._driver = driver
        self._machines = machines
        self._proposals = proposals
        self._guard = guard

    def register(self, calls: Calls) -> None:
        calls.handlers.update({"propose": self.propose, "resolve": self.resolve, "retired": self.retired})

    def group(self, number: int) -> Group:
        """The replica of a group here; 702 where this node has none."""
        group = self._driver.groups.get(number)
        if group is None:
            raise CallerError(Status.NO_LEADER, f"this node has no replica of group {number}")
        return group

    async def propose(self, body: memoryview, deadline: Deadline) -> bytes:
        """The packed value of the applied entry."""
        (number,) = GROUP.unpack_from(body)
        payload = bytes(body[GROUP.size :])
        group = self.group(number)
        if not group.leads:
            raise group.not_leader()
        if number:
            machine = self._machines[number]
            self._guard.check(payload)
            machine.data.validate(payload)
        (future,) = self._driver.propose(group, [payload])
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                outcome = await future
        except TimeoutError:
            raise OutcomeUnknown(
                f"group {number} has not decided within the time: the request may still take effect"
            ) from None
        if outcome.error is not None:
            raise outcome.error
        return pack(outcome.value)

    async def resolve(self, body: memoryview, deadline: Deadline) -> bytes:
        """The types of series as they are; with `create` those that are missing are created first."""
        head, _ = unpack(body)
        group = self.group(int(head["group"]))
        if not group.leads:
            raise group.not_leader()
        data = self._machines[group.id].data
        number, slot, epoch = int(head["storage_group"]), int(head["slot"]), int(head["epoch"])
        known = data.schema(number, slot, epoch)
        schema_epoch = 0 if known is None else known.epoch
        types: dict[str, dict[str, int]] = {}
        errors: dict[str, dict[str, Any]] = {}
        missing: list[tuple[str, str, int]] = []
        for device, columns in head["devices"].items():
            found = types.setdefault(device, {})
            for name, kind in columns.items():
                series = None if known is None else known.tree.get(f"{device}.{name}")
                if series is None:
                    missing.append((device, name, kind))
                else:
                    found[name] = int(series.type)
        if missing and head["create"]:
            for start in range(0, len(missing), SERIES_PER_ENTRY):
                some = missing[start : start + SERIES_PER_ENTRY]
                made = await self._ensure(group, head["path"], (number, slot, epoch), some, types, errors, deadline)
                schema_epoch = min(schema_epoch, made) if known is not None else made
        return pack({"epoch": schema_epoch, "devices": types, "errors": errors})

    async def _ensure(
        self,
        group: Group,
        storage_group: str,
        where: tuple[int, int, int],
        missing: list[tuple[str, str, int]],
        types: dict[str, dict[str, int]],
        errors: dict[str, dict[str, Any]],
        deadline: Deadline,
    ) -> int:
        specs: list[SeriesSpec] = []
        asked: list[tuple[str, str]] = []
        for device, name, kind in missing:
            path = f"{device}.{name}"
            try:
                check_series_path(path)
            except CallerError as illegal:
                errors.setdefault(device, {})[name] = dump_failure(illegal)
                continue
            specs.append(SeriesSpec.default(path, DataType(kind)))
            asked.append((device, name))
        if not specs:
            return 0
        number, slot, epoch = where

        def payload(request: RequestId) -> bytes:
            return encode(Header(request, number, slot, epoch), EnsureSeries(storage_group, tuple(specs)))

        value = await self._proposals.identified(lambda: group.id, payload, deadline)
        for (device, name), answer in zip(asked, value["series"], strict=True):
            if isinstance(answer, int):
                types.setdefault(device, {})[name] = answer
            else:
                error = CallerError(Status(answer[0]), answer[1])
                errors.setdefault(device, {})[name] = dump_failure(error)
        return int(value["epoch"])

    async def retired(self, body: memoryview, deadline: Deadline) -> bytes:
        """Wait until a delete of a storage group, whose schema slot is led here, has come to its end."""
        head, _ = unpack(body)
        group = self.group(int(head["group"]))
        if not group.leads:
            raise group.not_leader()
        try:
            async with asyncio.timeout(max(0.0, deadline.left_ms) / 1000):
                await self._machines[group.id].retired(int(head["storage_group"]), int(head["intent"]))
        except TimeoutError:
            raise OutcomeUnknown("the delete has begun and is being carried out") from None
        return pack(None)
