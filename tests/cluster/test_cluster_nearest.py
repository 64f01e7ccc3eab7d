"""Reads that need no leader go to the member that answers soonest, by what was measured."""

from __future__ import annotations

import asyncio

import pytest

from iotdb_cluster.cluster.calls import ATTEMPT_MS_MAX, RESPONSE_HALF_MS, Deadline, Leaders
from iotdb_cluster.errors import CallerError, Moved, Status
from tests.cluster.shell import run_virtual, world_of


def leaders(world: object, nodes: list[int]) -> Leaders:
    return Leaders(world, lambda _: nodes[0], lambda _: nodes)  # type: ignore[arg-type]


def test_the_soonest_is_asked_and_a_slow_one_is_tried_again_later() -> None:
    async def main() -> None:
        world = world_of(1)
        chosen = leaders(world, [1, 2, 3])
        slow_ms = {1: 300.0, 2: 20.0, 3: 100.0}
        asked: list[int] = []

        async def attempt(node: int, within: Deadline) -> int:
            del within
            asked.append(node)
            await asyncio.sleep(slow_ms[node] / 1000)
            return node

        for _ in range(6):
            await chosen.nearest(7, attempt, Deadline(world, 10_000))
        assert asked == [1, 2, 3, 2, 2, 2]
        slow_ms[1] = 1.0
        await asyncio.sleep(6 * RESPONSE_HALF_MS / 1000)
        found = [await chosen.nearest(7, attempt, Deadline(world, 10_000)) for _ in range(6)]
        assert found[-1] == 1

    run_virtual(main)


@pytest.mark.parametrize("code", [Status.NO_CONNECTION, Status.TIME_OUT, Status.NO_LEADER])
def test_the_others_follow_where_the_soonest_fails(code: Status) -> None:
    async def main() -> None:
        world = world_of(1)
        chosen = leaders(world, [1, 2, 3])
        asked: list[int] = []

        async def attempt(node: int, within: Deadline) -> int:
            asked.append(node)
            assert within.left_ms <= ATTEMPT_MS_MAX
            if node == 1:
                raise CallerError(code, "not now")
            return node

        assert await chosen.nearest(7, attempt, Deadline(world, 1_000)) == 2
        assert await chosen.nearest(7, attempt, Deadline(world, 1_000)) == 2
        assert asked == [1, 2, 2]

    run_virtual(main)


def test_refusals_are_answers_and_a_time_that_is_up_ends_it() -> None:
    async def main() -> None:
        world = world_of(1)
        chosen = leaders(world, [1, 2, 3])

        async def refuses(node: int, within: Deadline) -> int:
            del within
            if node == 1:
                raise Moved("the slot moved")
            raise AssertionError(node)

        with pytest.raises(Moved):
            await chosen.nearest(7, refuses, Deadline(world, 1_000))

        async def unreached(node: int, within: Deadline) -> int:
            del within
            await asyncio.sleep(0.01)
            raise CallerError(Status.NO_CONNECTION, f"node {node} is away")

        began = world.clock.monotonic_ms()
        with pytest.raises(CallerError) as refused:
            await chosen.nearest(7, unreached, Deadline(world, 1_000))
        assert refused.value.code == Status.NO_CONNECTION
        assert world.clock.monotonic_ms() - began < 1_500

    run_virtual(main)
