"""Digests of a cluster's content, storage group by storage group: equal contents give equal ones, whatever the size."""

from __future__ import annotations

import asyncio

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.reading import barrier_at_leader, read_pinned
from iotdb_cluster.data import Content, PinnedContent, merged_digests
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.world import World

__all__ = ["CONTENT_CALL", "CONTENT_MS", "Contents"]

CONTENT_CALL = "content"
CONTENT_MS = 3_600_000  # everything is read


class Contents:
    """Asks every group's leader what it holds, and answers for those that are led here."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        machines: dict[int, DataMachine],
        meta: MetaAccess,
        calls: Calls,
        leaders: Leaders,
    ) -> None:
        self._world = world
        self._driver = driver
        self._machines = machines
        self._meta = meta
        self._calls = calls
        self._leaders = leaders

    def register(self, calls: Calls) -> None:
        calls.handlers[CONTENT_CALL] = self._content_call

    async def digests(self, timeout_ms: float = CONTENT_MS) -> dict[str, str]:
        """A digest for each storage group, by path. The cluster is meant to be at rest: no instant is common to all."""
        deadline = Deadline(self._world, timeout_ms)
        await self._meta.barrier(deadline)
        state = self._meta.state
        found = await asyncio.gather(*(self._ask(group.id, deadline) for group in state.groups))
        return merged_digests(found, {one.id: one.path for one in state.storage_groups()})

    async def _ask(self, group: int, deadline: Deadline) -> Content:
        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self._calls.call(node, CONTENT_CALL, pack({"group": group}), within)

        head, _ = unpack(await self._leaders.run(group, attempt, deadline, repeatable=False))
        return Content.from_json(head)

    async def _content_call(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        group = await barrier_at_leader(self._driver, int(head["group"]), "strong", deadline)
        try:
            content = PinnedContent(self._machines[group.id].data)
            return pack((await read_pinned(self._world.workers, content, content.digests)).to_json())
        except CorruptData as error:
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"group {group.id} is damaged here: {error}") from None
