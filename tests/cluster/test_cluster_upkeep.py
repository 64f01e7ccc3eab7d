"""What a cluster does with its files: expiry, FLUSH of some storage groups, MERGE; whole nodes in the simulation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from iotdb_cluster.cluster.expiry import LOOK_MS, Expiry
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.node import Node
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.data import Kind, decode_header
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.requests import RequestId
from iotdb_cluster.simulation import smoke
from iotdb_cluster.simulation.client import SimulatedClient, ask_admin
from iotdb_cluster.simulation.world import Simulation
from iotdb_cluster.storage import Store
from iotdb_cluster.world import World

NAMES = [smoke._name(number) for number in range(1, smoke.NODES + 1)]


class Trial:
    """Three nodes and a session at the first."""

    def __init__(self, seed: int) -> None:
        self.simulation = Simulation(seed, debug=False)
        self.nodes: dict[int, Node] = {}
        for number in range(1, smoke.NODES + 1):
            self.simulation.add_node(smoke._name(number), self._main(number))
        self.world = self.simulation.world("client")
        self.run(smoke._serving(self.world))
        self.session = SimulatedClient(self.world, NAMES[0], smoke.CLIENT_PORT)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self.simulation.close()

    def _main(self, number: int) -> Any:
        async def main(world: World) -> None:
            node = self.nodes[number] = Node(world, smoke._settings(number))
            await node.run()

        return main

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.simulation.run(work, smoke.SERVES_AGAIN_MS)

    def execute(self, statement: str) -> None:
        self.run(self.session.execute(statement))

    def query(self, statement: str) -> Any:
        return self.run(self.session.query(statement))

    def stores(self) -> list[Store]:
        return [machine.data.store for node in self.nodes.values() for machine in node._machines.values()]

    def files(self) -> int:
        return sum(len(store.files_of(unit)) for store in self.stores() for unit in store.units())

    def memory(self, path: str) -> int:
        group = self.nodes[1]._meta.state.storage_group_of(path)
        assert group is not None
        return sum(
            store.unit_memory(unit)
            for store in self.stores()
            for unit in store.units()
            if unit.storage_group_id == group.id
        )

    def insert(self, device: str, times: list[int]) -> None:
        for time in times:
            self.run(self.session.insert(device, "s1", time, float(time)))

    def equal(self) -> bool:
        answer = self.run(ask_admin(self.world, NAMES[0], smoke.NODETOOL_PORT + 1, {"command": "digest"}))
        return all(group["equal"] and len(group["digests"]) == smoke.NODES for group in answer["groups"])


def test_points_beyond_their_ttl_give_their_space_back() -> None:
    with Trial(1) as trial:
        now = trial.world.clock.wall_ms()
        trial.insert("root.old.d", [now + step * 400 for step in range(10)])
        trial.insert("root.kept.d", [now + step * 400 for step in range(10)])
        trial.execute("FLUSH")
        before = trial.files()
        trial.execute("SET TTL TO root.old 20000")
        trial.simulation.run_until(15_000)
        assert trial.files() == before
        assert len(trial.query("SELECT s1 FROM root.old.d")) == 10
        trial.simulation.run_until(30_000)
        assert trial.query("SELECT s1 FROM root.old.d") == []
        trial.execute("FLUSH")
        trial.simulation.run_until(10_000)
        assert trial.files() == before // 2
        assert trial.equal()
        # Expiry is a deletion: what comes later is not hidden by it, and what went does not come back.
        trial.execute("UNSET TTL TO root.old")
        trial.insert("root.old.d", [now + 401])
        assert [time for time, _ in trial.query("SELECT s1 FROM root.old.d")] == [now + 401]
        assert len(trial.query("SELECT s1 FROM root.kept.d")) == 10
        trial.simulation.crash(NAMES[1])
        trial.simulation.restart(NAMES[1])
        trial.run(smoke._serving(trial.world))
        assert trial.equal()


@pytest.mark.parametrize("late", ["entry", "look"])
def test_what_is_written_after_its_ttl_was_unset_stays_however_late_an_expiry_is(
    monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Neither an entry that is repeated until it stands may come behind, nor one by a TTL that was looked at before."""
    held: list[asyncio.Event] = []
    seen: dict[Any, Any] = {}
    identified, barrier, due = Proposals.identified, MetaAccess.barrier, Expiry._due

    async def pause() -> None:
        held.append(asyncio.Event())
        await held[-1].wait()

    async def late_entry(self: Proposals, group: Any, wanted: Any, deadline: Any) -> Any:
        if late == "entry" and decode_header(wanted.payload(RequestId(9, 9, 9, 9)))[0] is Kind.EXPIRE:
            await pause()
        return await identified(self, group, wanted, deadline)

    async def late_look(self: MetaAccess, deadline: Any) -> None:
        of_expiry = late == "look" and deadline.left_ms <= LOOK_MS
        await barrier(self, deadline)
        if of_expiry:
            await pause()

    def as_before(self: Expiry, group: Any) -> Any:
        """The second look sees what the first one saw: this node has not heard of what meta decided meanwhile."""
        found = seen.pop((self, group.id), None) or due(self, group)
        if found and late == "look" and not held:
            seen[self, group.id] = found
        return found

    monkeypatch.setattr(Proposals, "identified", late_entry)
    monkeypatch.setattr(MetaAccess, "barrier", late_look)
    monkeypatch.setattr(Expiry, "_due", as_before)
    with Trial(3) as trial:
        trial.execute("SET STORAGE GROUP TO root.old")
        trial.insert("root.old.d", [1, 2, 3])
        trial.execute("FLUSH")
        trial.execute("SET TTL TO root.old 20000")
        trial.run(asyncio.sleep(10))
        trial.execute("UNSET TTL TO root.old")
        trial.insert("root.old.d", [4, 5])
        for one in held:
            one.set()
        trial.run(asyncio.sleep(10))
        found = {time for time, _ in trial.query("SELECT s1 FROM root.old.d")}
        assert {4, 5} <= found


def test_a_clock_that_runs_ahead_expires_nothing() -> None:
    """t is at most the median of the members' clocks: one of three that is an hour ahead changes nothing."""
    with Trial(2) as trial:
        now = trial.world.clock.wall_ms()
        trial.insert("root.old.d", [now])
        trial.execute("FLUSH")
        trial.execute("SET TTL TO root.old 600000")
        for node in trial.nodes.values():
            clock = node._marks._world.clock
            if node is trial.nodes[2]:
                real = clock.wall_ms
                clock.wall_ms = lambda real=real: real() + 3_600_000  # type: ignore[method-assign]
        trial.simulation.run_until(30_000)
        assert all(not store.tombstones_of(unit) for store in trial.stores() for unit in store.units())


def test_flush_of_one_storage_group_leaves_the_others_in_memory() -> None:
    with Trial(3) as trial:
        for path in ("root.a", "root.b", "root.c"):
            trial.insert(f"{path}.d", [1, 2, 3])
        trial.execute("FLUSH root.a,root.c TRUE")
        assert trial.memory("root.a") == trial.memory("root.c") == 0
        assert trial.memory("root.b") > 0
        with pytest.raises(
            CallerError, match=r"Storage group is not set for current seriesPath: \[root.x\]"
        ) as refusal:
            trial.execute("FLUSH root.b,root.x")
        assert refusal.value.code == Status.METADATA_ERROR
        assert trial.memory("root.b") > 0
        trial.execute("FLUSH FALSE")
        assert trial.memory("root.b") == 0
        rows = {item: value for _, (item, value) in trial.query("SHOW FLUSH TASK INFO")}
        assert set(rows.values()) == {b"0"}


def test_full_merge_makes_one_file_of_each_unit_and_merge_joins_what_overlaps() -> None:
    with Trial(4) as trial:
        for times in ([1, 5, 9], [20, 25], [3, 4]):  # the third overlaps the first
            trial.insert("root.m.d", times)
            trial.execute("FLUSH")
        assert trial.files() == 9
        trial.execute("MERGE")
        trial.simulation.run_until(5_000)
        assert trial.files() == 3
        trial.insert("root.m.d", [30])
        trial.execute("FLUSH")
        trial.execute("MERGE")
        trial.simulation.run_until(5_000)
        assert trial.files() == 6
        trial.execute("DELETE FROM root.m.d.s1 WHERE time <= 4")
        trial.execute("FULL MERGE")
        trial.simulation.run_until(5_000)
        assert trial.files() == 3
        assert all(not store.tombstones_of(unit) for store in trial.stores() for unit in store.units())
        assert trial.query("SHOW MERGE") == []
        assert [time for time, _ in trial.query("SELECT s1 FROM root.m.d")] == [5, 9, 20, 25, 30]
        assert trial.equal()
        trial.execute("CLEAR CACHE")
        assert trial.equal()
