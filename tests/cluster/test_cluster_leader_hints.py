"""What a coordinator remembers of where a group's leader was, from call to call (found by seeds of the simulation)."""

from __future__ import annotations

import asyncio

import pytest

from iotdb_cluster.cluster.calls import Deadline, Leaders
from iotdb_cluster.errors import CallerError, OutcomeUnknown, Status
from tests.cluster.shell import run_virtual, world_of

GROUP = 7


def test_a_node_that_is_cut_off_does_not_eat_every_calls_time() -> None:
    """Node 1 swallows what it is sent until the call's time is up: the second call has to begin with another."""
    asked: list[int] = []

    async def main() -> list[object]:
        world = world_of(1)
        leaders = Leaders(world, lambda _: 0, lambda _: [1, 2, 3])

        async def attempt(node: int, within: Deadline) -> str:
            asked.append(node)
            if node == 1:
                await asyncio.sleep(within.left_ms / 1000)
                raise CallerError(Status.NO_CONNECTION, "no connection in time")
            if node == 2:
                raise CallerError(Status.NO_LEADER, "this node has no replica")
            return "there"

        outcomes: list[object] = []
        for _ in range(3):
            try:
                outcomes.append(await leaders.run(GROUP, attempt, Deadline(world, 1_000), repeatable=True))
            except CallerError as error:
                outcomes.append(error.code)
        return outcomes

    assert run_virtual(main) == [Status.NO_CONNECTION, "there", "there"]
    assert asked == [1, 2, 3, 3]


def test_what_the_own_replica_knows_goes_before_what_is_remembered() -> None:
    asked: list[int] = []
    known = {GROUP: 0}

    async def main() -> None:
        world = world_of(1)
        leaders = Leaders(world, lambda group: known[group], lambda _: [1, 2])

        async def attempt(node: int, within: Deadline) -> None:
            del within
            asked.append(node)
            if node == 1:
                raise OutcomeUnknown("no answer")

        await leaders.run(GROUP, attempt, Deadline(world, 1_000), repeatable=True)
        known[GROUP] = 2
        await leaders.run(GROUP, attempt, Deadline(world, 1_000), repeatable=True)
        known[GROUP] = 0
        await leaders.run(GROUP, attempt, Deadline(world, 1_000), repeatable=True)

    run_virtual(main)
    assert asked == [1, 2, 2, 2]


def test_nobody_waits_for_a_node_that_fell_silent_once_another_leads() -> None:
    async def main() -> None:
        world = world_of(1)
        known = {GROUP: 1}
        leaders = Leaders(world, lambda group: known[group], lambda _: [1, 2])
        cancelled = []

        async def attempt(node: int, within: Deadline) -> int:
            if node == 1:
                try:
                    await asyncio.sleep(within.left_ms / 1000)
                except asyncio.CancelledError:
                    cancelled.append(node)
                    raise
                raise OutcomeUnknown("no answer")
            return node

        def another_leads() -> None:
            leaders.changed(GROUP)  # nothing has changed yet
            known[GROUP] = 2
            leaders.changed(GROUP)
            leaders.changed(GROUP)

        loop = asyncio.get_running_loop()
        loop.call_later(0.7, another_leads)
        began = loop.time()
        waiting = [leaders.run(GROUP, attempt, Deadline(world, 20_000), repeatable=True) for _ in range(3)]
        once = asyncio.create_task(leaders.run(GROUP, attempt, Deadline(world, 2_000), repeatable=False))
        assert await asyncio.gather(*waiting) == [2, 2, 2]
        assert loop.time() - began < 0.8
        assert cancelled == [1, 1, 1]
        with pytest.raises(OutcomeUnknown):
            await once  # not repeatable: its outcome is its own
        assert not any(leaders._running.values())

    run_virtual(main)
