"""Room for points: writers wait while memory is full, then hear why; a full disk is told at once."""

import asyncio
import random
from typing import Any

import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.room import WAIT_MS_MAX, DiskSpace, RoomGuard
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.data import Header, OpenUnit, encode, encode_insert
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import MIB
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.simulation import SimulatedDisk, Simulation
from iotdb_cluster.world import World

INSERT = encode_insert(
    Header(RequestId(1, 1, 1, 1), 1),
    [
        Tablet(
            "root.a.b",
            shape_of(("s",), (DataType.INT64,)),
            Column.of(DataType.INT64, [1]).values,
            [Column.of(DataType.INT64, [2])],
        )
    ],
)
OTHER = encode(Header(NO_REQUEST, 1), OpenUnit(0, 0))


class Fixture:
    def __init__(self, simulation: Simulation, free: int = 10 * MIB) -> None:
        world = simulation.world("guard")
        disk = SimulatedDisk(random.Random(1), capacity=free)
        disk.make_directories("/data/data")
        self.world = World(world.clock, world.random, disk, world.network, world.workers)
        settings = Settings(
            NodeAddress("h", 1, 2, 3), (), "/data", memtable_bytes_max=1_000_000, disk_free_min_bytes=MIB
        )
        self.used = 0
        self.guard = RoomGuard(settings, lambda: self.used, DiskSpace(self.world, settings))

    def run(self, simulation: Simulation, payload: bytes) -> float:
        """Virtual ms until the payload was admitted; raises what refused it."""

        async def admit() -> float:
            began = simulation.now_ms
            await self.guard.admit(payload, Deadline(self.world, 30_000))
            return simulation.now_ms - began

        return simulation.run(admit())


def test_a_writer_waits_for_memory() -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation)
        fixture.used = 1_000_000

        async def flush() -> None:
            await asyncio.sleep(1.0)
            fixture.used = 0

        simulation.spawn(flush())
        assert 1_000 <= fixture.run(simulation, INSERT) <= 1_200


def refused(simulation: Simulation, fixture: Fixture) -> CallerError:
    caught: list[Any] = []

    async def admit() -> None:
        try:
            await fixture.guard.admit(INSERT, Deadline(fixture.world, 30_000))
        except CallerError as error:
            caught.append(error)

    simulation.run(admit())
    assert len(caught) == 1
    return caught[0]


def test_then_it_hears_why() -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation)
        fixture.used = 1_000_000
        error = refused(simulation, fixture)
        assert error.code == Status.WRITE_PROCESS_REJECT
        assert "writes are faster" in error.message
        assert WAIT_MS_MAX - 100 <= simulation.now_ms <= WAIT_MS_MAX + 100


def test_a_full_disk_is_told_at_once_and_all_else_goes_on() -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation, free=MIB // 2)
        error = refused(simulation, fixture)
        assert error.code == Status.WRITE_PROCESS_REJECT
        assert "reserve" in error.message
        assert simulation.now_ms < 100
        fixture.used = 10_000_000
        assert fixture.run(simulation, OTHER) < 100


@pytest.mark.parametrize("used", [0, 500_000])
def test_room_is_room(used: int) -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation)
        fixture.used = used
        assert fixture.run(simulation, INSERT) < 10
