"""Which log counts after a forced reconfiguration: held against groups in which terms come and go at random."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.forcing import Forcing, LogEnd, winner
from iotdb_cluster.limits import APPLY_ENTRIES_MAX
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.raft import ConfState


def logs_of(rng: random.Random, size: int) -> tuple[list[list[int]], list[int]]:
    """The terms of the entries in the logs of `size` members, and the log as far as it is committed.

    In each term some member leads that a majority votes for, appends, and reaches whom it reaches.
    """
    logs: list[list[int]] = [[] for _ in range(size)]
    committed: list[int] = []
    majority = size // 2 + 1
    for term in range(1, rng.randrange(3, 10)):
        voters = rng.sample(range(size), majority)
        leader = max(voters, key=lambda one: (logs[one][-1:] or [0], len(logs[one])))
        assert logs[leader][: len(committed)] == committed
        logs[leader] = logs[leader] + [term] * rng.randrange(1, 8)
        reached = [one for one in range(size) if one == leader or rng.randrange(2)]
        cut = rng.randrange(len(committed), len(logs[leader]) + 1)
        for one in reached:
            has = logs[one][:cut] == logs[leader][:cut]
            if one != leader and (not has or len(logs[one]) < cut or logs[one] != logs[leader][: len(logs[one])]):
                logs[one] = logs[leader][:cut]
        agreed = [one for one in range(size) if logs[one][:cut] == logs[leader][:cut] and len(logs[one]) >= cut]
        if len(agreed) >= majority and logs[leader][:cut][-1:] == [term]:
            committed = logs[leader][:cut]
    return logs, committed


@pytest.mark.parametrize("seed", range(10))
def test_the_log_that_wins_has_all_that_was_committed(seed: int) -> None:
    rng = random.Random(seed)
    shorter = 0
    for _ in range(300):
        size = rng.choice((2, 4, 6))
        logs, committed = logs_of(rng, size)
        survivors = sorted(rng.sample(range(size), size // 2))
        ends = {10 + one: LogEnd(1, (logs[one] or [0])[-1], len(logs[one])) for one in survivors}
        chosen = logs[winner(ends) - 10]
        assert chosen[: len(committed)] == committed
        shorter += len(chosen) < max(len(logs[one]) for one in survivors)
    assert shorter  # the length of a log says nothing


def test_a_later_generation_wins_whatever_its_terms() -> None:
    assert winner({7: LogEnd(1, 9, 900), 3: LogEnd(2, 8, 10), 5: LogEnd(2, 8, 10)}) == 3


async def test_who_was_being_filled_is_behind_who_was_to_fill_it() -> None:
    """Replica 2 began generation 2 with what it knew to be committed; replica 1, which has won it, had no time to."""
    logs = {1: (1, 100, ConfState((1, 2, 3, 4))), 2: (2, 60, ConfState((1,), (2,)))}
    views = {
        replica: SimpleNamespace(
            generation=generation,
            chosen=1,
            last_index=lambda last=last: last,
            term=lambda _: 5,
            initial_state=lambda conf=conf: (None, conf),
        )
        for replica, (generation, last, conf) in logs.items()
    }
    log: Any = SimpleNamespace(replicas=lambda: list(views), view=views.__getitem__)
    nothing: Any = None
    forcing = Forcing(nothing, log, nothing, nothing)
    ends = {}
    for replica in views:
        forcing._standing[replica] = (3, 0)
        asked = memoryview(pack({"group": 1, "generation": 3, "replica": replica}))
        answer, _ = unpack(await forcing._end_call(asked, nothing))
        ends[replica] = LogEnd(*answer)
    assert ends == {1: LogEnd(1, 5, 100), 2: LogEnd(1, 5, 60)}
    assert winner(ends) == 1
    views[2].initial_state = lambda: (None, ConfState((1, 2)))  # it was promoted: it has all of that
    answer, _ = unpack(await forcing._end_call(asked, nothing))
    assert LogEnd(*answer).generation == 2


async def test_a_log_is_applied_to_its_end_in_pieces() -> None:
    """By a node that serves other groups meanwhile."""
    last, runs = 3 * APPLY_ENTRIES_MAX, []
    machine: Any = SimpleNamespace(data=SimpleNamespace(applied=10))

    def apply(run: range) -> None:
        assert run.start == machine.data.applied + 1
        machine.data.applied = run.stop - 1
        runs.append(len(run))

    machine.apply = apply
    view: Any = SimpleNamespace(first_index=lambda: 5, read=lambda low, high, _: range(low, high))
    nothing: Any = None
    await Forcing(nothing, nothing, nothing, nothing)._apply_to(last, view, machine)
    assert machine.data.applied == last
    assert max(runs) <= APPLY_ENTRIES_MAX
