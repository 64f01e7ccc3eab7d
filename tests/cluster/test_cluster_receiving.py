"""Rounds of a move at a voter of the receiver: one at a time works in the stage, the latest one counts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.receiving import MoveReceiving, _Fetching
from iotdb_cluster.data import Runs
from iotdb_cluster.errors import CallerError, CorruptData, InvariantViolation, Status
from iotdb_cluster.packing import pack, unpack
from tests.cluster.shell import run_virtual

MOVE, GROUP, STOPS_S = 50, 7, 3.0


class Slow(MoveReceiving):
    """A round takes a minute, and a while to stop: its worker waits for a disk."""

    def __init__(self) -> None:
        group: Any = SimpleNamespace(id=GROUP, raw=SimpleNamespace(term=1))
        clock = SimpleNamespace(monotonic_ms=lambda: asyncio.get_running_loop().time() * 1000)
        state = SimpleNamespace(move=lambda move: move)
        parts: list[Any] = [
            SimpleNamespace(clock=clock),
            None,
            SimpleNamespace(groups={GROUP: group}),
            {},
            SimpleNamespace(state=state, index=90),
            None,
            None,
        ]
        self.faults: list[BaseException] = []
        self.fails: BaseException | None = None
        super().__init__(*parts, self.faults.append)
        self.working: list[int] = []
        self.most = 0

    async def _fetch(self, one: _Fetching, number: int, runs: Runs) -> int:
        del number, runs
        self.working.append(one.round.number)
        self.most = max(self.most, len(self.working))
        try:
            await asyncio.sleep(60)
            if self.fails is not None:
                raise self.fails
        finally:
            await asyncio.sleep(STOPS_S)
            self.working.remove(one.round.number)
        return 0

    async def ask(self, number: int) -> Any:
        head = {"group": GROUP, "slots": [], "round": [MOVE, 1, number, 1, 1, False]}
        deadline: Any = SimpleNamespace(left_ms=5_500)
        return unpack(await self._fetch_call(memoryview(pack(head)), deadline))[0]


def test_rounds_that_come_while_another_stops_do_not_meet_in_the_stage() -> None:
    async def main() -> None:
        receiving = Slow()
        assert not (await receiving.ask(1))["done"]
        asked = [asyncio.create_task(receiving.ask(number)) for number in (2, 3, 2, 3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, dict | CallerError) for one in outcomes), outcomes
        assert receiving.most == 1
        assert receiving.working == [3]
        assert isinstance((await asyncio.gather(receiving.ask(2), return_exceptions=True))[0], CallerError)
        assert receiving.working == [3]
        await receiving.close()
        assert receiving.working == []

    run_virtual(main)


class Working(Slow):
    """Its worker cannot be stopped."""

    def __init__(self) -> None:
        super().__init__()
        world: Any = self._world
        world.workers = SimpleNamespace(run=self._run)

    async def _run(self, _: Any, number: int) -> None:
        self.working.append(number)
        self.most = max(self.most, len(self.working))
        await asyncio.sleep(STOPS_S)
        self.working.remove(number)

    async def _fetch(self, one: _Fetching, number: int, runs: Runs) -> int:
        del number, runs
        for _ in range(20):
            await self._work(int, one.round.number)
        return 0


def test_a_round_that_is_ended_by_several_is_waited_for_by_each() -> None:
    async def main() -> None:
        receiving = Working()
        await receiving.ask(1)
        asked = []
        for number in (2, 3, 4):
            asked.append(asyncio.create_task(receiving.ask(number)))
            await asyncio.sleep(0.1)
        await asyncio.gather(*asked, return_exceptions=True)
        assert receiving.most == 1
        assert receiving.working == [4]
        await receiving.close()
        assert receiving.working == []

    run_virtual(main)


def test_what_is_over_ends_while_another_asks_for_it() -> None:
    """The sweep stops a round of a move that is over, and another round comes meanwhile."""

    async def main() -> None:
        receiving = Slow()
        await receiving.ask(1)
        one = receiving._fetching[MOVE]
        sweep = asyncio.create_task(receiving._end(one))
        again = asyncio.create_task(receiving.ask(2))
        await sweep
        await again
        assert receiving.working == [2]
        assert receiving.most == 1
        await receiving.close()

    run_virtual(main)


@pytest.mark.parametrize("fails", [OSError("no disk"), CorruptData("x"), CallerError(Status.NO_LEADER, "n")], ids=repr)
def test_a_round_that_fails_while_nobody_asks_is_told_to_who_asks_next(fails: BaseException) -> None:
    async def main() -> None:
        receiving = Slow()
        receiving.fails = fails
        await receiving.ask(1)
        await asyncio.sleep(70)
        assert not receiving.faults
        with pytest.raises(CallerError, match=r"no disk|x|n"):
            await receiving.ask(1)
        await receiving.close()

    run_virtual(main)


@pytest.mark.parametrize("fails", [InvariantViolation("a bug"), TypeError("another")], ids=repr)
def test_a_bug_in_a_round_stops_the_node_also_where_nobody_asks(fails: BaseException) -> None:
    async def main() -> None:
        receiving = Slow()
        receiving.fails = fails
        await receiving.ask(1)
        await asyncio.sleep(70)
        assert receiving.faults == [fails]
        await receiving.close()

    run_virtual(main)
