"""Units of which a file is damaged: they are made anew, whole, from a replica that has all of them.

A replica with a damaged unit goes on applying, into memory; it answers no read of the unit, and a leader hands the lead
to a member that is complete. The damaged replica notes how far it has applied, asks a complete one to flush the unit at
least that far, and fetches what the unit consists of then: the manifest and its files, by checksum, into a directory of
their own. Once that is durable it takes the damaged one's place; what was written above it stays in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.copying import BrokenFile, Fetcher, GivenCopies, Listing
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.log import make_durable_directories
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.cluster.reading import applied_here, replica_here
from iotdb_cluster.data import DataGroup
from iotdb_cluster.errors import CallerError, CorruptData, Status, SystemFault
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.storage import PinnedUnit, UnitId
from iotdb_cluster.world import World

__all__ = ["REPAIR_CALLS", "Repair"]

logger = logging.getLogger(__name__)

REPAIR_CALLS = ("mirror open", "damaged units")
ROUND_MS = 300
RETRY_MS = 2_000  # between two attempts to repair a unit
CALL_MS = 30_000
ASK_MS = 2_000


class Repair:
    """Repairs the units of one node, and gives copies of its own. `flushed_copy(group, unit)` flushes and pins one,
    `collect(group)` removes what is not needed any more.
    """

    def __init__(
        self,
        world: World,
        driver: Driver,
        machines: dict[int, DataMachine],
        calls: Calls,
        given: GivenCopies,
        fetcher: Fetcher,
        flushed_copy: Callable[[int, UnitId], Awaitable[PinnedUnit]],
        collect: Callable[[int], Awaitable[None]],
    ) -> None:
        self._world = world
        self._driver = driver
        self._machines = machines
        self._calls = calls
        self._given = given
        self._fetcher = fetcher
        self._flushed_copy = flushed_copy
        self._collect = collect
        self._tried_ms: dict[tuple[int, UnitId], float] = {}

    def register(self, calls: Calls) -> None:
        handlers = (self._open_call, self._damaged_call)
        calls.handlers.update(zip(REPAIR_CALLS, handlers, strict=True))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(ROUND_MS / 1000)
            now = self._world.clock.monotonic_ms()
            for known in [known for known in self._tried_ms if not self._is_damaged(*known)]:
                del self._tried_ms[known]
            for number, machine in list(self._machines.items()):
                data = machine.data
                if not data.store.corrupt:
                    continue
                await self._world.workers.run(data.store.mark_absent)
                group = self._driver.groups.get(number)
                if group is None:
                    continue
                if group.leads:
                    await self._hand_over(group)
                for unit in sorted(data.store.corrupt):
                    if unit in data.store.corrupt and now - self._tried_ms.get((number, unit), -1e18) >= RETRY_MS:
                        self._tried_ms[number, unit] = now
                        await self._repair(group, data, unit)

    def _is_damaged(self, number: int, unit: UnitId) -> bool:
        return number in self._machines and unit in self._machines[number].data.store.corrupt

    # --- the lead -----------------------------------------------------------------------------------------------------

    async def _hand_over(self, group: Group) -> None:
        """To a member that has every unit and was heard of; writes go on meanwhile."""
        if group.raw.transferee:
            return
        progress = group.raw.status().progress
        for member, node in sorted(group.nodes.items()):
            if node == self._calls.node or member not in progress or not progress[member].active:
                continue
            try:
                head, _ = unpack(await self._call(node, "damaged units", {"group": group.id}, ASK_MS))
            except CallerError:
                continue
            if not head and group.leads:
                logger.warning("group %d: units here are damaged: node %d is to lead", group.id, node)
                self._driver.transfer_leader(group, member)
                return

    async def _damaged_call(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        group = replica_here(self._driver, int(head["group"]))
        return pack([list(unit) for unit in sorted(self._machines[group.id].data.store.corrupt)])

    # --- the damaged side ---------------------------------------------------------------------------------------------

    async def _repair(self, group: Group, data: DataGroup, unit: UnitId) -> None:
        reason = data.store.corrupt.get(unit)
        if reason is None:  # dropped while another unit was fetched
            return
        others = [node for node in group.nodes.values() if node != self._calls.node]
        if not others:
            logger.error("group %d: unit %s is damaged and has no other copy: %s", group.id, unit, reason)
            return
        logger.warning("group %d: unit %s is damaged and fetched anew: %s", group.id, unit, reason)
        for node in sorted(others, key=lambda node: node != group.leader_node):
            if unit not in data.store.corrupt:  # dropped while it was fetched
                return
            index, directory = data.applied, data.store.begin_mirror(unit)
            try:
                await self._fetch(node, group.id, data, unit, index, directory)
            except (CallerError, OSError, SystemFault) as error:
                logger.warning("group %d: unit %s is not fetched from node %d: %s", group.id, unit, node, error)
                await self._world.workers.run(self._remove, directory)
            else:
                logger.warning("group %d: unit %s is whole again, from node %d", group.id, unit, node)
                await self._collect(group.id)
                return
            finally:
                data.store.end_mirror(unit)

    def _remove(self, directory: str) -> None:
        if self._world.files.exists(directory):
            self._world.files.remove_tree(directory)

    async def _fetch(self, node: int, group: int, data: DataGroup, unit: UnitId, index: int, directory: str) -> None:
        head = {"group": group, "unit": list(unit), "index": index}
        answer, buffers = unpack(await self._call(node, "mirror open", head, CALL_MS))
        listing = Listing.load(answer)
        broken: BrokenFile | None = None
        try:
            await self._world.workers.run(make_durable_directories, self._world.files, directory)
            wanted = [(file, f"{directory}/{file.name}") for file in listing.files]
            await self._fetcher.fetch(node, listing.number, wanted)
            mirrored = await self._world.workers.run(data.store.open_mirror, unit, directory, bytes(buffers[0]))
            data.store.finish_mirror(mirrored)
        except BrokenFile as error:
            broken = error
            raise
        finally:
            await self._fetcher.end(node, listing.number, broken)

    async def _call(self, node: int, method: str, head: Any, timeout_ms: float) -> memoryview:
        return await self._calls.call(node, method, pack(head), Deadline(self._world, timeout_ms), Channel.SNAPSHOT)

    # --- the complete side --------------------------------------------------------------------------------------------

    async def _open_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """A copy of the unit as of a log index at or above the one that is asked for: its files, and the manifest."""
        head, _ = unpack(body)
        group = replica_here(self._driver, int(head["group"]))
        unit = UnitId(*head["unit"])
        await applied_here(self._driver, group, int(head["index"]), deadline)
        data = self._machines[group.id].data
        if unit not in data.store.units() or unit in data.store.corrupt:
            raise CallerError(Status.PARTITION_NOT_READY, f"unit {unit} is not whole here either")
        try:
            pinned = await self._flushed_copy(group.id, unit)
        except CorruptData as error:
            raise CallerError(Status.PARTITION_NOT_READY, f"unit {unit} is not whole here either: {error}") from None
        return pack(self._given.give_units(data, [(unit, pinned)]), [pinned.manifest])
