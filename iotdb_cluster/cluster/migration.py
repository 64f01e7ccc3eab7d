"""Copies of units and moves of slots on one node, put together."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from iotdb_cluster.cluster.bandwidth import Bandwidth
from iotdb_cluster.cluster.calls import Calls, Leaders
from iotdb_cluster.cluster.copying import COPY_CALLS, Fetcher, GivenCopies
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.giving import GIVING_CALLS, MoveGiving
from iotdb_cluster.cluster.housekeeping import Housekeeping
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.moving import MOVES_CALL, Moving
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.receiving import RECEIVING_CALLS, MoveReceiving
from iotdb_cluster.cluster.repair import REPAIR_CALLS, Repair
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.world import World

__all__ = ["MIGRATION_CALLS", "Migration"]

MIGRATION_CALLS = (*COPY_CALLS, *REPAIR_CALLS, *GIVING_CALLS, *RECEIVING_CALLS, MOVES_CALL)


class Migration:
    """Repairs and moves, which share their copies and bandwidth; `moving` tells how far moves are.

    `given` and `fetcher` serve a backup too.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        driver: Driver,
        machines: dict[int, DataMachine],
        meta: MetaAccess,
        calls: Calls,
        leaders: Leaders,
        proposals: Proposals,
        housekeeping: Housekeeping,
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        """`spawn` makes a task of the node's own."""

        def operations() -> int:
            """Of clients: what moves themselves put into logs is none."""
            return driver.operations() - sum(machine.data.moving_entries for machine in machines.values())

        self.given = GivenCopies(world, Bandwidth(world, settings, operations))
        self.fetcher = Fetcher(world, calls, Bandwidth(world, settings, operations))
        self._repair = Repair(
            world, driver, machines, calls, self.given, self.fetcher, housekeeping.flushed_copy, housekeeping.collect
        )
        self.moving = Moving(world, driver, machines, meta, calls, leaders, proposals, fault)
        self._giving = MoveGiving(world, driver, machines, meta, self.given, proposals, housekeeping, spawn)
        self._receiving = MoveReceiving(world, settings, driver, machines, meta, calls, self.fetcher, fault)
        self.rooms = (self.given, self._repair, self.moving, self._giving, self._receiving)  # each has a `run`
        for room in self.rooms:
            room.register(calls)

    async def close(self) -> None:
        await self._receiving.close()
        self.given.close()
