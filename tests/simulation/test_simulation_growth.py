"""Joins and leaves with crashes at any moment, simulated; `make sim-membership SEEDS=300` is the long form."""

from __future__ import annotations

import pytest

from iotdb_cluster.simulation.growth import run_sequence


@pytest.mark.parametrize("seed", range(1, 9))
def test_nodes_join_and_leave_under_faults(seed: int) -> None:
    result = run_sequence(seed)
    assert result.acknowledged > 20


def test_a_sequence_is_a_function_of_its_seed() -> None:
    assert run_sequence(3) == run_sequence(3)
