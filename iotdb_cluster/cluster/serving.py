"""What a node answers to other nodes about writing: proposals to groups that it leads, and series to be resolved.

Every method takes a packed body and gives one (`packing`), but for `propose`, whose body is a group and an entry; that
of `propose together` is a group and packed entries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.failures import dump_failure
from iotdb_cluster.cluster.group import Group, Outcome
from iotdb_cluster.cluster.proposals import GROUP, Proposals, Wanted
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.cluster.room import RoomGuard
from iotdb_cluster.columns import DataType
from iotdb_cluster.data import DataGroup, EnsureSeries, Header, Kind, Retiring, decode_header, encode
from iotdb_cluster.errors import CallerError, NotLeader, OutcomeUnknown, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import Series, SeriesSpec, check_series_path

__all__ = ["WriteServing"]

RETIRED_LOOK_MS = 200  # who waits for the end of a delete looks so often whether its schema slot is still here
RETIRING_PAUSE_MS = 10  # between two looks whether a delete of series has ended
SERIES_PER_ENTRY = 10_000  # created at once by automatic creation: plain series, a path each


@dataclass(slots=True)
class _Found:
    """Series as the schema has them under `epoch`: types by device and the name asked for, the real names of those that
    were asked for by an alias, and what does not exist, with the type wanted."""

    epoch: int
    types: dict[str, dict[str, int]]
    names: dict[str, dict[str, str]]
    missing: list[tuple[str, str, int]]

    @property
    def known(self) -> bool:
        """Whether any of them exists."""
        return any(self.types.values())

    @classmethod
    def of(
        cls, epoch: int, asked: Mapping[str, Mapping[str, int]], found: Mapping[str, Sequence[Series | None]]
    ) -> _Found:
        self = cls(epoch, {device: {} for device in asked}, {}, [])
        for device, columns in asked.items():
            for (name, kind), series in zip(columns.items(), found[device], strict=True):
                if series is None:
                    self.missing.append((device, name, kind))
                    continue
                self.types[device][name] = int(series.type)
                if series.measurement != name:
                    self.names.setdefault(device, {})[name] = series.measurement
        return self


def _outcome(group: Group, future: asyncio.Future[Outcome]) -> tuple[Any, CallerError | None]:
    """What became of a proposal by now: its value, or the failure."""
    if not future.done():
        return None, OutcomeUnknown(
            f"group {group.id} has not decided within the time: the request may still take effect"
        )
    try:
        outcome = future.result()
    except CallerError as error:
        return None, error
    return outcome.value, outcome.error


class WriteServing:
    """The handlers `propose`, `propose together`, `resolve` and `retired`."""

    def __init__(
        self, driver: Driver, machines: dict[int, DataMachine], proposals: Proposals, guard: RoomGuard
    ) -> None:
        self._driver = driver
        self._machines = machines
        self._proposals = proposals
        self._guard = guard

    def register(self, calls: Calls) -> None:
        calls.handlers.update(
            {
                "propose": self.propose,
                "propose together": self.propose_together,
                "resolve": self.resolve,
                "retired": self.retired,
            }
        )

    def group(self, number: int) -> Group:
        """The replica of a group here; 702 where this node has none."""
        group = self._driver.groups.get(number)
        if group is None:
            raise CallerError(Status.NO_LEADER, f"this node has no replica of group {number}")
        return group

    async def propose(self, body: memoryview, deadline: Deadline) -> bytes:
        """The packed value of the applied entry."""
        (number,) = GROUP.unpack_from(body)
        ((value, error),) = await self._decided(number, [bytes(body[GROUP.size :])], deadline)
        if error is not None:
            raise error
        return pack(value)

    async def propose_together(self, body: memoryview, deadline: Deadline) -> bytes:
        """For each of the entries [value, failure or null]: they are admitted one by one, and logged together."""
        (number,) = GROUP.unpack_from(body)
        _, entries = unpack(body[GROUP.size :])
        outcomes = await self._decided(number, [bytes(entry) for entry in entries], deadline)
        return pack([[value, None if error is None else dump_failure(error)] for value, error in outcomes])

    async def _decided(
        self, number: int, payloads: Sequence[bytes], deadline: Deadline
    ) -> list[tuple[Any, CallerError | None]]:
        """The outcome of each entry: its value, or why it was refused; raises NotLeader for all of them."""
        group = self.group(number)
        if not group.leads:
            raise group.not_leader()
        await self._slow_down(group, payloads, deadline)
        refusals = [await self._refusal(group, payload, deadline) for payload in payloads]
        taken = [payload for payload, refusal in zip(payloads, refusals, strict=True) if refusal is None]
        futures = self._driver.propose(group, taken) if taken else []
        try:
            if futures:
                await asyncio.wait(futures, timeout=max(0.0, deadline.left_ms) / 1000)
            decided = iter([_outcome(group, future) for future in futures])
        finally:
            for future in futures:
                future.cancel()  # means nothing where it is done
        return [(None, refusal) if refusal is not None else next(decided) for refusal in refusals]

    async def _slow_down(self, group: Group, payloads: Sequence[bytes], deadline: Deadline) -> None:
        """Points for slots whose move does not come to its end wait a little, once a call."""
        slowed = self._machines[group.id].slowed if group.id else {}
        if slowed:
            heads = [decode_header(payload) for payload in payloads]
            delays = [slowed.get(header.slot, 0.0) for kind, header in heads if kind is Kind.INSERT]
            await asyncio.sleep(min(max(delays, default=0.0), deadline.left_ms / 2) / 1000)

    async def _refusal(self, group: Group, payload: bytes, deadline: Deadline) -> CallerError | None:
        """Why an entry is not proposed. Raises NotLeader where the lead was lost while it waited."""
        if not group.id:
            return None
        try:
            await self._guard.admit(payload, group, deadline)
            if not group.leads:
                raise group.not_leader()
            await self._validate(group, self._machines[group.id], payload, deadline)
        except NotLeader:
            raise
        except CallerError as refusal:
            if not group.leads:  # what this node lacks, another that leads now may have
                raise group.not_leader() from None
            return refusal
        return None

    async def _validate(self, group: Group, machine: DataMachine, payload: bytes, deadline: Deadline) -> None:
        """Raise why the group would refuse the entry.

        A leader that is new, or cut off, may not know yet what was acknowledged: a refusal that is not true for ever is
        given only after a majority has confirmed that it knows everything.
        """
        try:
            machine.data.validate(payload)
        except CallerError as refusal:
            if type(refusal) is not CallerError or refusal.code == Status.STORAGE_GROUP_NOT_EXIST:
                raise
        else:
            return
        await barrier_at_leader(self._driver, group.id, "strong", deadline)
        machine.data.validate(payload)

    async def resolve(self, body: memoryview, deadline: Deadline) -> bytes:
        """The types of series as they are; with `create` those that are missing are created first."""
        head, _ = unpack(body)
        group = self.group(int(head["group"]))
        if not group.leads:
            raise group.not_leader()
        data = self._machines[group.id].data
        number, slot, epoch = int(head["storage_group"]), int(head["slot"]), int(head["epoch"])
        found = await self._settled(data, head, deadline)
        if found.missing and not head["create"]:  # what is said not to exist must be known for certain
            await barrier_at_leader(self._driver, group.id, "strong", deadline)
            data = self._machines[group.id].data  # a snapshot may have taken the place of the one before
            found = await self._settled(data, head, deadline)
        epochs = [found.epoch]
        errors: dict[str, dict[str, Any]] = {}
        if found.missing and head["create"]:
            for start in range(0, len(found.missing), SERIES_PER_ENTRY):
                some = found.missing[start : start + SERIES_PER_ENTRY]
                where = (number, slot, epoch)
                epochs += await self._ensure(group, head["path"], where, some, found.types, errors, deadline)
            if not found.known:
                epochs = epochs[1:] or epochs
        answer = {"epoch": min(epochs), "devices": found.types, "names": found.names, "errors": errors}
        return pack(answer)

    async def _settled(self, data: DataGroup, head: Any, deadline: Deadline) -> _Found:
        """What the schema says, once none of the series is being deleted."""
        asked: dict[str, dict[str, int]] = head["devices"]
        where = int(head["storage_group"]), int(head["slot"]), int(head["epoch"])
        while True:
            try:
                epoch, series = data.resolve(*where, {device: list(columns) for device, columns in asked.items()})
                return _Found.of(epoch, asked, series)
            except Retiring:
                if deadline.left_ms <= RETIRING_PAUSE_MS:
                    raise
            await asyncio.sleep(RETIRING_PAUSE_MS / 1000)

    async def _ensure(
        self,
        group: Group,
        storage_group: str,
        where: tuple[int, int, int],
        missing: list[tuple[str, str, int]],
        types: dict[str, dict[str, int]],
        errors: dict[str, dict[str, Any]],
        deadline: Deadline,
    ) -> list[int]:
        """The schema epoch under which they were created; none where no path was legal."""
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
            return []
        number, slot, epoch = where

        def payload(request: RequestId) -> bytes:
            return encode(Header(request, number, slot, epoch), EnsureSeries(storage_group, tuple(specs)))

        value = await self._proposals.identified(lambda: group.id, Wanted(payload), deadline)
        for (device, name), answer in zip(asked, value["series"], strict=True):
            if isinstance(answer, int):
                types.setdefault(device, {})[name] = answer
            else:
                error = CallerError(Status(answer[0]), answer[1])
                errors.setdefault(device, {})[name] = dump_failure(error)
        return [int(value["epoch"])]

    async def retired(self, body: memoryview, deadline: Deadline) -> bytes:
        """Wait until a delete of a storage group, whose schema slot is led here, has come to its end."""
        head, _ = unpack(body)
        group = self.group(int(head["group"]))
        if not group.leads:
            raise group.not_leader()
        number = int(head["storage_group"])
        while not deadline.passed:
            machine = self._machines[group.id]
            if not machine.data.is_dropped(number):
                machine.data.schema(number, int(head["slot"]), int(head["epoch"]))  # raises Moved where that is over
            try:
                async with asyncio.timeout(min(RETIRED_LOOK_MS, max(0.0, deadline.left_ms)) / 1000):
                    await machine.retired(number, int(head["intent"]))
                    return pack(None)
            except TimeoutError:
                continue
        raise OutcomeUnknown("the delete has begun and is being carried out")
