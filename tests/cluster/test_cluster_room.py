"""Room for points: writers wait while memory is full, then hear why; a full disk is told at once."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.marks import NodeFacts
from iotdb_cluster.cluster.room import WAIT_MS_MAX, DiskSpace, RoomGuard
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.data import Header, OpenUnit, encode, encode_insert
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import MIB
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.simulation import Simulation

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


ME = 1


class Fixture:
    """A guard of node 1, and the group of nodes 1 to 3 that it leads; `free` is by node."""

    def __init__(self, simulation: Simulation, **free: int) -> None:
        self.world = simulation.world("guard")
        settings = Settings(
            NodeAddress("h", 1, 2, 3),
            (),
            "/data",
            memtable_bytes_max=1_000_000,
            disk_free_min_bytes=MIB,
            uncommitted_entries_max=5,
        )
        self.used = 0
        self.free = {int(node[1:]): size for node, size in free.items()}
        self.raw = SimpleNamespace(last_index=10, commit=10)
        self.group = SimpleNamespace(id=7, leads=True, voter_nodes=lambda: [1, 2, 3], raw=self.raw)
        self.guard = RoomGuard(settings, lambda: self.used, ME, self.told)

    def told(self, node: int) -> NodeFacts | None:
        return NodeFacts(0, self.free[node], frozenset(), 0.0) if node in self.free else None

    def run(self, simulation: Simulation, payload: bytes) -> float:
        """Virtual ms until the payload was admitted; raises what refused it."""

        async def admit() -> float:
            began = simulation.now_ms
            await self.guard.admit(payload, self.group, Deadline(self.world, 30_000))  # type: ignore[arg-type]
            return simulation.now_ms - began

        return simulation.run(admit())


def test_a_refusal_is_the_same_at_home_as_over_the_wire() -> None:
    """Of a kind of its own it would pass for an answer, also behind an attempt that may have taken effect."""
    with Simulation(1) as simulation:
        fixture = Fixture(simulation)
        fixture.used = 1_000_000
        with pytest.raises(CallerError) as caught:
            fixture.run(simulation, INSERT)
    assert type(caught.value) is CallerError
    assert caught.value.code == Status.WRITE_PROCESS_REJECT


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
            await fixture.guard.admit(INSERT, fixture.group, Deadline(fixture.world, 30_000))  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    "free",
    [
        {"n1": MIB // 2, "n2": 0},
        {"n1": MIB // 2, "n2": 5 * MIB, "n3": 0},
        {"n1": 5 * MIB, "n2": 0, "n3": MIB - 1},
        {"n1": 0, "n2": 0, "n3": 0},
    ],
)
def test_without_a_majority_that_has_room_points_are_refused_at_once_and_all_else_goes_on(
    free: dict[str, int],
) -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation, **free)
        error = refused(simulation, fixture)
        assert error.code == Status.WRITE_PROCESS_REJECT
        assert "reserve" in error.message
        for node, size in fixture.free.items():
            assert (f"node {node} has {size // MIB} MiB" in error.message) == (size < MIB)
        assert simulation.now_ms < 100
        fixture.used = 10_000_000
        assert fixture.run(simulation, OTHER) < 100


@pytest.mark.parametrize("free", [{}, {"n2": 0}, {"n1": 5 * MIB, "n3": 0}, {"n1": MIB, "n2": MIB, "n3": MIB}])
def test_a_majority_with_room_is_enough(free: dict[str, int]) -> None:
    with Simulation(1) as simulation:
        assert Fixture(simulation, **free).run(simulation, INSERT) < 10


def test_a_leader_without_room_waits_until_it_has_handed_over() -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation, n1=0, n2=5 * MIB, n3=5 * MIB)

        async def hand_over() -> None:
            await asyncio.sleep(1.0)
            fixture.group.leads = False

        simulation.spawn(hand_over())
        assert "about to lead" in refused(simulation, fixture).message
        assert 1_000 <= simulation.now_ms <= 1_200


def test_room_that_comes_back_is_used_at_once() -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation, n1=0, n2=5 * MIB)

        async def clear() -> None:
            await asyncio.sleep(1.0)
            fixture.free[1] = 5 * MIB

        simulation.spawn(clear())
        assert 1_000 <= fixture.run(simulation, INSERT) <= 1_200


def test_a_writer_waits_for_the_window() -> None:
    """As many entries of the group are on their way as may be."""
    with Simulation(1) as simulation:
        fixture = Fixture(simulation)
        fixture.raw.last_index += 5
        assert "5 entries that are not committed" in refused(simulation, fixture).message
        assert simulation.now_ms >= WAIT_MS_MAX - 100
        fixture.raw.commit += 1
        assert fixture.run(simulation, INSERT) < 10


@pytest.mark.parametrize(
    ("free", "aside"),
    [
        ({"n1": MIB // 2 - 1}, True),
        ({"n1": MIB // 2 - 1, "n2": 0}, False),
        ({"n1": MIB // 2}, False),
        ({"n2": 0}, False),
    ],
)
def test_a_follower_without_room_stands_aside_where_the_others_are_enough(free: dict[str, int], aside: bool) -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation, **free)
        assert fixture.guard.stands_aside(fixture.group) is aside  # type: ignore[arg-type]


def test_free_space_is_that_of_the_fullest_directory() -> None:
    with Simulation(1) as simulation:
        free = {"/data/data": 7, "/data/wal": 3}
        asked: list[str] = []

        def free_bytes(path: str) -> int:
            asked.append(path)
            return free[path]

        world = SimpleNamespace(clock=simulation.world("guard").clock, files=SimpleNamespace(free_bytes=free_bytes))
        short: list[bool] = []
        disk = DiskSpace(world, Settings(NodeAddress("h", 1, 2, 3), (), "/data"), lambda: bool(short))  # type: ignore[arg-type]
        assert [disk.free_bytes for _ in range(5)] == [3] * 5
        assert len(asked) == 2
        free["/data/data"] = 1
        simulation.run_until(1_000.0)
        assert disk.free_bytes == 1
        short.append(True)
        assert disk.free_bytes == 0


@pytest.mark.parametrize("used", [0, 500_000])
def test_room_is_room(used: int) -> None:
    with Simulation(1) as simulation:
        fixture = Fixture(simulation)
        fixture.used = used
        assert fixture.run(simulation, INSERT) < 10
