"""What nodes tell each other once a second: low water, free space, clocks and their median."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.marks import APPLIED_STALE_MS, MARKS_MS, STALE_MS, Marks, NodeFacts, Water
from iotdb_cluster.cluster.outbox import Channel
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.simulation import Simulation


class Telling:
    """Two or more nodes whose calls go straight to each other; `cut` nodes answer nothing."""

    def __init__(self, simulation: Simulation, nodes: int) -> None:
        self.simulation = simulation
        self.cut: set[int] = set()
        self.faults: list[BaseException] = []
        self.heard: dict[int, Water] = {}
        self.free = {node: node * 1_000 for node in range(1, nodes + 1)}
        self.applied: dict[int, list[int]] = {node: [7] for node in range(1, nodes + 1)}
        self.calls: dict[int, Calls] = {}
        self.marks: dict[int, Marks] = {}
        for node in range(1, nodes + 1):
            self.calls[node] = Calls(node, self)
            world = simulation.world(f"node{node}")
            self.marks[node] = Marks(
                world,
                self.calls[node],
                lambda: range(1, nodes + 1),
                lambda node=node: self.free[node],
                lambda node=node: self.applied[node],
                lambda to, node=node: {"7": (node, to)},
                lambda water, node=node: self.heard.update({node: water}),
                self.faults.append,
            )
            self.marks[node].register(self.calls[node])

    async def call(self, node: int, channel: Channel, method: str, body: bytes, timeout_ms: float) -> memoryview:
        assert channel is Channel.META
        if node in self.cut:
            await asyncio.sleep(timeout_ms / 1000)
            raise CallerError(Status.NO_CONNECTION, "cut")
        deadline = Deadline(self.simulation.world("client"), timeout_ms)
        return memoryview(await self.calls[node].handlers[method](memoryview(body), deadline))


def test_every_node_hears_every_other_and_a_dead_one_holds_nobody_up() -> None:
    with Simulation(1) as simulation:
        telling = Telling(simulation, 3)
        telling.cut.add(3)
        tasks = [simulation.spawn(marks.run()) for marks in telling.marks.values()]
        simulation.run_until(10 * MARKS_MS)
        told = telling.marks[2].facts(1)
        assert told is not None
        assert told.free_bytes == 1_000
        assert simulation.now_ms - told.heard_ms <= MARKS_MS
        assert telling.heard[1] == {"7": [3, 1]} or telling.heard[1] == {"7": [2, 1]}
        assert telling.marks[1].facts(3) is not None
        assert 3 not in telling.heard
        assert not telling.faults
        for task in tasks:
            task.cancel()
        simulation.run_until(lambda: all(task.done() for task in tasks), 1_000)


def test_who_is_behind_in_a_group_is_known_and_an_old_word_counts_for_nothing() -> None:
    with Simulation(1) as simulation:
        telling = Telling(simulation, 3)
        asked = telling.marks[1]
        assert not asked.has_applied(2, 7)  # never heard
        assert asked.has_applied(1, 7)
        tasks = [simulation.spawn(marks.run()) for marks in telling.marks.values()]
        telling.applied[2] = []
        simulation.run_until(2 * MARKS_MS)
        assert [asked.has_applied(node, 7) for node in (1, 2, 3)] == [True, False, True]
        telling.applied[2].append(7)
        telling.cut.add(1)  # hears nothing any more
        simulation.run_until(APPLIED_STALE_MS + 2 * MARKS_MS)
        assert [asked.has_applied(node, 7) for node in (1, 2, 3)] == [True, False, False]
        telling.cut.clear()
        simulation.run_until(3 * MARKS_MS)
        assert [asked.has_applied(node, 7) for node in (1, 2, 3)] == [True, True, True]
        for task in tasks:
            task.cancel()
        simulation.run_until(lambda: all(task.done() for task in tasks), 1_000)


def test_a_node_that_tells_nothing_counts_for_the_clock_no_more() -> None:
    with Simulation(1) as simulation:
        marks = Telling(simulation, 3).marks[1]
        assert marks.median_clock_ms([1, 2, 3]) is None
        marks._facts[2] = NodeFacts(5_000, 0, frozenset(), simulation.world("node1").clock.monotonic_ms())
        here = simulation.world("node1").clock.wall_ms()
        assert marks.median_clock_ms([1, 2, 3]) == min(here, 5_000)
        simulation.run_until(STALE_MS + 1.0)
        assert marks.median_clock_ms([1, 2, 3]) is None
        assert marks.median_clock_ms([1]) == simulation.world("node1").clock.wall_ms()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=7), st.sets(st.integers(0, 6)))
def test_the_clock_never_runs_ahead_of_the_median(clocks: list[int], silent: set[int]) -> None:
    """Whatever the clocks of those that were not heard of say."""
    with Simulation(1) as simulation:
        marks = Telling(simulation, 1).marks[1]
        now = simulation.world("node1").clock.monotonic_ms()
        marks._facts = {
            node + 10: NodeFacts(clocks[node], 0, frozenset(), now) for node in range(len(clocks)) if node not in silent
        }
        found: Any = marks.median_clock_ms(node + 10 for node in range(len(clocks)))
        if len(marks._facts) * 2 <= len(clocks):
            assert found is None
            return
        behind = [clock if node not in silent else -1 for node, clock in enumerate(clocks)]
        assert found == statistics.median_low(behind)
        if not silent:
            assert found == statistics.median_low(clocks)
