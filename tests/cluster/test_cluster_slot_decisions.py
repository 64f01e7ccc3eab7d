"""What a group's log lacks of meta's decisions, also where these have gone on before the group heard of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from iotdb_cluster.cluster.slot_decisions import due_decisions
from iotdb_cluster.data import DataGroup, Discard, DropSlots, Fence, Header, Import, Own, Ready, encode, runs_of
from iotdb_cluster.data.handoff import Export
from iotdb_cluster.partition import PartitionTable
from iotdb_cluster.requests import NO_REQUEST
from iotdb_cluster.simulation import SimulatedDisk

A, B, C = 1, 2, 3


class Trial:
    """Group B with its log, and meta's table."""

    def __init__(self) -> None:
        self.data = DataGroup.open(B, SimulatedDisk(), "/data/group-2-1-1")
        self.table = PartitionTable.initial((A, B, C))
        self.moves: dict[int, Any] = {}
        self.index = 0
        self.slot, self.mine = self.table.slots_of(A)[0], self.table.slots_of(B)[0]
        self.log(Own(runs_of((slot, 1) for slot in self.table.slots_of(B)), 1))

    def log(self, body: Any) -> None:
        self.index += 1
        result = self.data.apply(self.index, 1, encode(Header(NO_REQUEST), body))
        assert result.error is None, (body, result.error)

    def arrives(self, move: int, slots: list[tuple[int, int]]) -> None:
        """All of a move up to its readiness; it holds nothing."""
        source = DataGroup.open(A, SimulatedDisk(), "/data/group-1-1-1")
        runs = runs_of(slots)
        parts = Export(move, runs, source._state).parts()
        for part in parts:
            assert isinstance(part, Import)
            self.log(part)
        self.log(Ready(move, 77))

    def due(self) -> list[Any]:
        state: Any = SimpleNamespace(table=self.table, members_changed=90, move=self.moves.get)
        return due_decisions(state, 90, self.data)

    def settle(self) -> None:
        for body in self.due():
            self.log(body)
        assert self.due() == []


def test_a_slot_that_came_and_was_to_move_on_comes_with_its_import() -> None:
    """The move away began, and ended here, before this group's log heard that the slot had come."""
    trial = Trial()
    trial.arrives(50, [(trial.slot, 2), (trial.slot + 1, 2)])
    for slot in (trial.slot, trial.slot + 1):
        trial.table.decide(slot, B, 2)
    trial.table.decide(trial.slot, B, 4)
    runs = runs_of([(trial.slot, 2), (trial.slot + 1, 2)])
    assert trial.due() == [Own(runs, 90, 50), Own(runs_of([(trial.slot, 4)]), 90)]
    trial.settle()
    assert trial.data.slot_epoch(trial.slot) == 4
    assert trial.data.slot_epoch(trial.slot + 1) == 2
    assert not trial.data.imports()


def test_of_two_moves_the_one_that_was_decided_counts() -> None:
    trial = Trial()
    trial.arrives(50, [(trial.slot, 2)])
    trial.table.decide(trial.slot, A, 3)  # it came to nothing
    trial.arrives(60, [(trial.slot, 4)])
    trial.moves[60] = object()
    assert trial.due() == [Discard(50)]
    trial.table.decide(trial.slot, B, 4)
    del trial.moves[60]
    assert trial.due() == [Discard(50), Own(runs_of([(trial.slot, 4)]), 90, 60)]
    trial.settle()
    assert trial.data.slot_epoch(trial.slot) == 4


def test_a_slot_that_went_and_came_back_is_dropped_in_between() -> None:
    trial = Trial()
    trial.log(Fence(40, runs_of([(trial.mine, 2)]), 40))
    trial.table.decide(trial.mine, A, 2)
    trial.arrives(50, [(trial.mine, 3)])
    refused = trial.data.apply(trial.index + 1, 1, encode(Header(NO_REQUEST), Own(runs_of([(trial.mine, 3)]), 90, 50)))
    trial.index += 1
    assert refused.error is not None
    trial.table.decide(trial.mine, B, 3)
    assert trial.due() == [DropSlots(runs_of([(trial.mine, 2)]), 90), Own(runs_of([(trial.mine, 3)]), 90, 50)]
    trial.settle()
    assert trial.data.slot_epoch(trial.mine) == 3


def test_a_slot_that_went_is_fenced_and_dropped_though_the_log_has_lost_the_fence() -> None:
    """A forced reconfiguration went on with a log that ends before it."""
    trial = Trial()
    trial.table.decide(trial.mine, A, 2)
    runs = runs_of([(trial.mine, 2)])
    trial.moves[90] = object()
    assert trial.due() == [Fence(89, runs, 90)]
    trial.log(Fence(89, runs, 90))
    assert trial.due() == [DropSlots(runs, 90)]
    trial.settle()
    assert trial.data.slot_epoch(trial.mine) == 0
    assert trial.data.moves_away() == []
