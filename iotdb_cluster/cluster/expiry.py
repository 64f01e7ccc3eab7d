"""Points whose TTL has run out: entries that delete them, proposed by the leader of each group where it frees space.

Reads hide what is older than the TTL at once, whatever stands here. An `EXPIRE` entry reaches up to the median of the
members' clocks less the TTL, as meta's newest decision has it, so that no single clock that runs ahead deletes what is
still alive. A TTL that is raised while such an entry is on its way takes effect for what the entry left, and for all
that is written once the change was acknowledged.
"""

from __future__ import annotations

import asyncio
import logging

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.cluster.marks import Marks
from iotdb_cluster.cluster.meta_access import SETTLE_MS, MetaAccess
from iotdb_cluster.cluster.request_ids import RequestIds
from iotdb_cluster.data import Expire, Header, encode
from iotdb_cluster.errors import CallerError, OutcomeUnknown
from iotdb_cluster.limits import INT64_MIN
from iotdb_cluster.meta import StorageGroup
from iotdb_cluster.storage import UnitId
from iotdb_cluster.world import World

__all__ = ["Expiry"]

logger = logging.getLogger(__name__)

EXPIRY_MS = 5_000  # between two looks for what has expired
PROPOSAL_MS = 5_000
LOOK_MS = SETTLE_MS / 2  # from the beginning of a look at the TTLs to the entries that follow from it


class Expiry:
    """Proposes the expiry of points in the groups that this node leads."""

    def __init__(
        self,
        world: World,
        driver: Driver,
        meta: MetaAccess,
        requests: RequestIds,
        machines: dict[int, DataMachine],
        marks: Marks,
    ) -> None:
        self._world = world
        self._driver = driver
        self._meta = meta
        self._requests = requests
        self._machines = machines
        self._marks = marks

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EXPIRY_MS / 1000)
            for group in list(self._driver.groups.values()):
                if group.id and group.leads and self._due(group):
                    try:
                        await self._expire(group)
                    except CallerError as error:
                        logger.debug("group %d: expiry is tried again: %s", group.id, error)

    def _due(self, group: Group) -> list[tuple[StorageGroup, int]]:
        """(storage group, the time before which its points have expired) of those where an entry frees space."""
        clock = self._marks.median_clock_ms(group.nodes.values())
        if clock is None:
            return []
        data = self._machines[group.id].data
        units: dict[int, list[UnitId]] = {}
        for storage_group, partition in data.units():
            units.setdefault(storage_group, []).append(UnitId(storage_group, partition))
        due = []
        for one in self._meta.state.storage_groups():
            if one.ttl_ms is None:
                continue
            before = max(clock - one.ttl_ms, INT64_MIN)
            if any(data.store.expiry_pays(unit, before) for unit in units.get(one.id, ())):
                due.append((one, before))
        return due

    async def _expire(self, group: Group) -> None:
        """Look once more, with the TTLs as they were acknowledged last, and append the entries in the same breath.

        Nothing is forwarded, and nothing repeated: where a TTL is unset meanwhile, what is written then must not be
        hidden by an entry that comes behind it. Whoever changes a TTL waits for this node, longer than this look takes.
        """
        began_ms = self._world.clock.monotonic_ms()
        await self._meta.barrier(Deadline(self._world, LOOK_MS))
        if self._world.clock.monotonic_ms() - began_ms > LOOK_MS or not group.leads_whole:
            return
        due = self._due(group)
        requests = [self._requests.take() for _ in due]
        try:
            heads = [Header(request, one.id) for request, (one, _) in zip(requests, due, strict=True)]
            entries = [encode(head, Expire(before)) for head, (_, before) in zip(heads, due, strict=True)]
            futures = self._driver.propose(group, entries) if entries else []
            if futures:
                await asyncio.wait(futures, timeout=PROPOSAL_MS / 1000)
            for (one, before), future in zip(due, futures, strict=True):
                if not future.done():
                    raise OutcomeUnknown(f"group {group.id} has not decided yet")
                outcome = future.result()
                if outcome.error is not None:
                    raise outcome.error
                logger.info("group %d: points of %s before %d have expired", group.id, one.path, before)
        finally:
            for request in requests:
                self._requests.finish(request)
