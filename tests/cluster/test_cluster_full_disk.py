"""A disk that fills: points are refused with the reason, all else goes on, and nothing acknowledged is lost."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import KIB, MIB
from iotdb_cluster.simulation import SimulatedDisk, smoke
from iotdb_cluster.simulation.client import SimulatedClient
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.world import World

RESERVE = 1 * MIB
ALL = (1, 2, 3)


def settings(number: int) -> Settings:
    return dataclasses.replace(
        smoke._settings(number),
        log_segment_bytes=128 * KIB,
        log_bytes_max=512 * KIB,
        memtable_flush_bytes=64 * KIB,
        disk_free_min_bytes=RESERVE,
    )


class Trial:
    """Three nodes whose disks have a size, and what was acknowledged."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        self.disks: dict[int, SimulatedDisk] = {}
        self.history = smoke._History()
        self.count = 0
        for number in ALL:
            self.disks[number] = self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, settings(number))
            await node.run()

        return main

    def leave(self, free: int, *numbers: int) -> None:
        """Leave these nodes' disks so many free bytes; what counts as free is looked at twice a second."""
        for number in numbers or ALL:
            self.disks[number].capacity = self.disks[number].used_bytes + free

    def free(self, number: int) -> int:
        return self.disks[number].free_bytes("/data/data")

    def write(self, count: int, node: int = 1) -> CallerError | None:
        """Single points of three storage groups; what refused one, and ended it."""

        async def main() -> CallerError | None:
            session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT)
            try:
                for _ in range(count):
                    self.count += 1
                    device, time, value = f"root.full{self.count % 3}.d", self.count * 7, float(self.count)
                    try:
                        await session.insert(device, "s1", time, value)
                    except CallerError as error:
                        if error.code != Status.WRITE_PROCESS_REJECT:
                            self.history.maybe.setdefault(f"{device}.s1", {})[time] = value
                        return error
                    self.history.acknowledged.setdefault(f"{device}.s1", {})[time] = value
            finally:
                session.drop()
            return None

        return self.simulation.run(main(), 600_000)

    def execute(self, statement: str, node: int = 2) -> None:
        async def main() -> None:
            session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT)
            await session.execute(statement)
            session.drop()

        self.simulation.run(main(), 60_000)

    def leaders(self) -> dict[int, int]:
        """Group -> the node that leads it."""
        return {group: number for number, node in self.nodes.items() for group, _ in node.leading()}

    def verify(self) -> None:
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)
        self.simulation.run(smoke._verify(self.world, self.history), smoke.SERVES_AGAIN_MS)


def test_points_are_refused_and_all_else_goes_on_in_the_reserve() -> None:
    with Trial(1) as trial:
        assert trial.write(300) is None
        trial.execute("CREATE TIMESERIES root.full0.spare.s WITH DATATYPE=DOUBLE, ENCODING=GORILLA")
        trial.leave(RESERVE // 2)
        trial.simulation.run_until(3_000.0)
        error = trial.write(1)
        assert error is not None
        assert error.code == Status.WRITE_PROCESS_REJECT
        assert "kept in reserve" in error.message
        assert all(trial.free(number) > RESERVE // 2 for number in ALL)
        trial.execute("DELETE TIMESERIES root.full0.spare.s")
        trial.execute("CREATE TIMESERIES root.full0.more.s WITH DATATYPE=DOUBLE, ENCODING=GORILLA")
        trial.execute("FLUSH")
        trial.execute("DELETE STORAGE GROUP root.full1")
        del trial.history.acknowledged["root.full1.d.s1"]
        trial.history.maybe.pop("root.full1.d.s1", None)
        trial.simulation.run_until(5_000.0)
        victim = max(trial.leaders().values())
        trial.simulation.crash(smoke._name(victim))
        trial.simulation.run_until(5_000.0)
        assert set(trial.leaders()) >= {0, 1, 2, 3}, "elections go on"
        trial.simulation.restart(smoke._name(victim))
        trial.verify()
        trial.leave(100 * MIB)
        trial.simulation.run_until(2_000.0)
        assert trial.write(500) is None, "it recovers when there is room"
        trial.verify()


def test_a_disk_without_a_byte_left_keeps_flushes_for_later() -> None:
    """Somebody else has taken the reserve, too."""
    with Trial(2) as trial:
        assert trial.write(300) is None
        trial.leave(0)
        trial.simulation.run_until(1_000.0)
        error = trial.write(1)
        if (
            error is not None and error.code == Status.TIME_OUT
        ):  # a leader was just handing over to where there was room
            error = trial.write(1)
        assert error is not None
        assert error.code == Status.WRITE_PROCESS_REJECT
        with pytest.raises(CallerError, match="disk is full"):
            trial.execute("FLUSH")
        trial.simulation.run_until(10_000.0)
        assert all(trial.simulation.is_running(smoke._name(number)) for number in ALL)
        trial.verify()
        trial.leave(100 * MIB)
        trial.simulation.run_until(5_000.0)
        assert not any(node._log.lacks_spares for node in trial.nodes.values())
        trial.execute("FLUSH")
        assert trial.write(300) is None
        trial.verify()


def test_a_node_whose_disk_is_short_is_told_of_and_the_rest_serves() -> None:
    with Trial(3) as trial:
        assert trial.write(300) is None
        trial.leave(16 * KIB, 2)
        trial.simulation.run_until(10_000.0)
        assert 2 not in trial.leaders().values(), "it has handed over what it led"
        assert trial.write(300) is None
        told = trial.nodes[1]._marks.facts(2)
        assert told is not None
        assert told.free_bytes < RESERVE
        trial.leave(16 * KIB, 3)
        trial.simulation.run_until(3_000.0)
        error = trial.write(1)
        assert error is not None
        assert "node 2" in error.message
        assert "node 3" in error.message
        trial.leave(100 * MIB)
        trial.simulation.run_until(3_000.0)
        assert trial.write(100) is None
        trial.verify()
