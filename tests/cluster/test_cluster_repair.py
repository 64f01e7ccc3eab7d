"""A flipped bit in a file of one node: no wrong answer, and the unit comes back whole; nodes in the simulation."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import pytest

from iotdb_cluster.cluster.copying import Fetcher
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.repair import Repair
from iotdb_cluster.errors import CallerError
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.storage import UnitId
from iotdb_cluster.world import World

NAMES = [smoke._name(number) for number in range(1, smoke.NODES + 1)]


class Trial:
    """Three nodes with points of two storage groups in files, each acknowledged one remembered."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        self.history = smoke._History()
        self.random = random.Random(f"repair:{seed}")
        for number in range(1, smoke.NODES + 1):
            self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, smoke._settings(number))
            await node.run()

        return main

    async def _write(self, node: int, times: range) -> None:
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT)
        for time in times:
            device = f"root.fix{time % 2}.d"
            await session.insert(device, "s1", time, float(time))
            self.history.acknowledged.setdefault(f"{device}.s1", {})[time] = float(time)
        session.drop()

    def write(self, node: int, times: range) -> None:
        self.simulation.run(self._write(node, times), smoke.SERVES_AGAIN_MS)

    def flush(self) -> None:
        session = SimulatedClient(self.world, NAMES[0], smoke.CLIENT_PORT)
        self.simulation.run(session.execute("FLUSH"), smoke.SERVES_AGAIN_MS)

    def unit_files(self, number: int, suffix: str) -> list[str]:
        disk = self.simulation.nodes[smoke._name(number)].disk
        found = []
        for group in disk.list("/data/data"):
            for unit in disk.list(f"/data/data/{group}/units"):
                at = f"/data/data/{group}/units/{unit}"
                found += [f"{at}/{name}" for name in disk.list(at) if name.endswith(suffix)]
        return found

    def damage(self, number: int, suffix: str) -> list[str]:
        """Flip a bit in every file of a kind on one node, anywhere behind its first bytes."""
        disk = self.simulation.nodes[smoke._name(number)].disk
        paths = self.unit_files(number, suffix)
        for path in paths:
            # not in the last record of a manifest, which may be lost without harm: it promises nothing
            size = disk.open(path).size() - (60 if suffix == "manifest" else 0)
            disk.flip(path, self.random.randrange(size), self.random.randrange(8))
        return paths

    def damaged_units(self, number: int) -> int:
        return sum(len(machine.data.store.corrupt) for machine in self.nodes[number]._machines.values())

    def read_all(self, node: int) -> int:
        """Read every series; how many reads were refused. A wrong answer fails the test."""
        refused = 0
        session = SimulatedClient(self.world, smoke._name(node), smoke.CLIENT_PORT, 30_000)
        for series, points in self.history.acknowledged.items():
            try:
                assert self.simulation.run(session.points(series), smoke.SERVES_AGAIN_MS) == points
                device, _, name = series.rpartition(".")
                rows = self.simulation.run(session.query(f"SELECT count({name}) FROM {device}"), smoke.SERVES_AGAIN_MS)
                assert [values[0] for _, values in rows] == [len(points)]
            except CallerError:
                refused += 1
        session.drop()
        return refused

    def verify(self) -> None:
        self.simulation.run(smoke._serving(self.world), smoke.SERVES_AGAIN_MS)
        self.simulation.run_until(2_000)  # whoever was started just now is connected to again
        self.simulation.run(smoke._verify(self.world, self.history), smoke.SERVES_AGAIN_MS)


@pytest.mark.parametrize(("seed", "suffix"), [(1, ".chunk"), (2, "manifest"), (3, ".chunk")])
def test_a_node_with_damaged_files_is_whole_again(seed: int, suffix: str) -> None:
    with Trial(seed) as trial:
        trial.write(1, range(0, 3_000, 70))
        trial.flush()
        trial.write(2, range(35, 3_000, 90))  # stays in memory
        victim = seed
        trial.simulation.crash(NAMES[victim - 1])
        damaged = trial.damage(victim, suffix)
        assert damaged
        trial.simulation.restart(NAMES[victim - 1])
        trial.simulation.run(smoke._serving(trial.world), smoke.SERVES_AGAIN_MS)
        for node in (1, 2, 3):
            trial.read_all(node)
        trial.write(3, range(5, 3_000, 300))
        trial.simulation.run_until(20_000)
        assert trial.damaged_units(victim) == 0 or suffix == ".chunk"  # a page that nobody read is not noticed yet
        for node in (1, 2, 3):
            assert trial.read_all(node) == 0 or suffix == ".chunk"  # who leads by now may be the first to meet it
        # The damage may stand where no query looked: a digest of the replica reads all there is.
        for _ in range(20):
            try:
                trial.verify()
                break
            except (CallerError, KeyError):  # the answer says that the replica is damaged
                trial.simulation.run_until(5_000)
        trial.verify()
        assert trial.damaged_units(victim) == 0
        for node in (1, 2, 3):
            assert trial.read_all(node) == 0
        assert not set(damaged) & set(trial.unit_files(victim, suffix))  # each was noticed, and what it was in has gone
        trial.simulation.crash(NAMES[victim - 1])
        trial.simulation.restart(NAMES[victim - 1])
        trial.verify()
        assert trial.damaged_units(victim) == 0


def test_a_power_cut_during_the_repair_leaves_a_unit_that_is_damaged_or_whole() -> None:
    with Trial(7) as trial:
        trial.write(1, range(0, 2_000, 90))
        trial.flush()
        name = NAMES[1]
        disk = trial.simulation.nodes[name].disk
        for skip in range(1, 40, 4):
            trial.simulation.crash(name)
            trial.damage(2, "manifest")
            trial.simulation.restart(name)
            trial.simulation.run_until(skip * 25)
            trial.simulation.crash(name)
            trial.simulation.restart(name)
        trial.simulation.run_until(20_000)
        trial.verify()
        assert trial.damaged_units(2) == 0
        assert disk.powered


def test_with_one_copy_the_lost_range_is_named_and_all_else_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = smoke._settings

    def alone(number: int, small_logs: bool = False) -> Any:
        return dataclasses.replace(usual(number, small_logs), replication=1)

    monkeypatch.setattr(smoke, "_settings", alone)
    with Trial(11) as trial:
        trial.write(1, range(0, 3_000, 50))
        trial.flush()
        damaged = {number: trial.unit_files(number, ".chunk") for number in (1, 2, 3)}
        victim = next(number for number, paths in damaged.items() if paths)
        trial.simulation.crash(NAMES[victim - 1])
        disk = trial.simulation.nodes[NAMES[victim - 1]].disk
        disk.open(damaged[victim][0]).truncate(100)
        trial.simulation.restart(NAMES[victim - 1])
        trial.simulation.run(smoke._serving(trial.world), smoke.SERVES_AGAIN_MS)
        trial.write(1, range(5, 3_000, 35))  # writes to the damaged unit are taken
        session = SimulatedClient(trial.world, NAMES[0], smoke.CLIENT_PORT)
        refused = 0
        for series, points in trial.history.acknowledged.items():
            for partition in range(3):
                device, _, name = series.rpartition(".")
                low, high = partition * 1_000, partition * 1_000 + 999
                question = f"SELECT {name} FROM {device} WHERE time >= {low} AND time <= {high}"
                want = [time for time in sorted(points) if low <= time <= high]
                try:
                    rows = trial.simulation.run(session.query(question), smoke.SERVES_AGAIN_MS)
                except CallerError as error:
                    refused += "there is no other copy" in error.message
                else:
                    assert [time for time, _ in rows] == want
        assert refused == 1
        asked = ask_admin(trial.world, NAMES[0], smoke.NODETOOL_PORT + 1, {"command": "groups"})
        rows = trial.simulation.run(asked, smoke.SERVES_AGAIN_MS)["groups"]
        (told,) = [text for row in rows for text in row.get("damaged", ())]
        assert "root.fix" in told
        assert "is 100 bytes long" in told
        # What was written since is in the log, whatever was flushed: it is there after a restart too.
        trial.flush()
        trial.simulation.crash(NAMES[victim - 1])
        trial.simulation.restart(NAMES[victim - 1])
        trial.simulation.run(smoke._serving(trial.world), smoke.SERVES_AGAIN_MS)
        assert trial.damaged_units(victim) == 1
        stores = [machine.data.store for machine in trial.nodes[victim]._machines.values()]
        assert sum(store.unit_memory(unit) for store in stores for unit in store.corrupt) > 0


def test_a_checkpoint_does_not_pass_what_a_copy_on_its_way_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written while a unit is fetched stands in no file of the copy: until it does, the log alone has it."""
    with Trial(5) as trial:
        trial.write(1, range(0, 3_000, 70))
        trial.flush()
        trial.simulation.crash(NAMES[1])
        held = asyncio.Event()
        begun: list[int] = []
        fetch = Fetcher.fetch

        async def slow(self: Fetcher, node: int, number: int, wanted: Any) -> None:
            begun.append(number)
            await held.wait()
            await fetch(self, node, number, wanted)

        monkeypatch.setattr(Fetcher, "fetch", slow)
        trial.damage(2, "manifest")
        trial.simulation.restart(NAMES[1])
        trial.simulation.run(smoke._serving(trial.world), smoke.SERVES_AGAIN_MS)
        trial.simulation.run_until(trial.simulation.now_ms + 2_000)
        assert begun
        trial.write(1, range(24, 3_000, 70))  # to the units that are damaged
        trial.flush()
        held.set()
        trial.simulation.run_until(trial.simulation.now_ms + 300)
        trial.simulation.crash(NAMES[1])
        trial.simulation.restart(NAMES[1])
        trial.simulation.run_until(trial.simulation.now_ms + 20_000)
        trial.verify()


def test_a_storage_group_is_dropped_while_its_units_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with Trial(6) as trial:
        trial.write(1, range(0, 3_000, 70))
        trial.flush()
        trial.simulation.crash(NAMES[1])
        dropped: list[str] = []
        fetch = Repair._fetch

        async def late(self: Repair, node: int, group: int, data: Any, unit: UnitId, index: int, into: str) -> None:
            for _ in range(100):
                if dropped and unit not in data.store.units():
                    break
                await asyncio.sleep(0.1)
            await fetch(self, node, group, data, unit, index, into)

        monkeypatch.setattr(Repair, "_fetch", late)
        trial.damage(2, "manifest")
        trial.simulation.restart(NAMES[1])
        trial.simulation.run(smoke._serving(trial.world), smoke.SERVES_AGAIN_MS)
        trial.simulation.run_until(trial.simulation.now_ms + 1_000)
        session = SimulatedClient(trial.world, NAMES[0], smoke.CLIENT_PORT)
        trial.simulation.run(session.execute("DELETE STORAGE GROUP root.fix0"), smoke.SERVES_AGAIN_MS)
        dropped.append("root.fix0")
        del trial.history.acknowledged["root.fix0.d.s1"]
        trial.simulation.run_until(trial.simulation.now_ms + 40_000)
        assert trial.damaged_units(2) == 0
        trial.verify()  # every node runs


@pytest.mark.parametrize("leaders", [1, 2])
def test_a_scan_that_meets_damage_before_its_first_row_begins_anew_elsewhere(leaders: int) -> None:
    with Trial(7 + leaders) as trial:
        trial.write(1, range(0, 5_000, 250))
        trial.flush()
        trial.simulation.run_until(2_000)
        for number in range(1, leaders + 1):
            assert trial.damage(number, ".chunk")
        for node in range(1, smoke.NODES + 1):
            session = SimulatedClient(trial.world, smoke._name(node), smoke.CLIENT_PORT, 30_000)
            for series, points in trial.history.acknowledged.items():
                assert trial.simulation.run(session.points(series), smoke.SERVES_AGAIN_MS) == points
            session.drop()
