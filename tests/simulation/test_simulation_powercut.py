"""The short form of `make powercut`: some of the first calls of a disk, power cut on one node, two, or all."""

from __future__ import annotations

import pytest

from iotdb_cluster.simulation.powercut import run_cut

CALLS = range(7, 2_000, 50)


@pytest.mark.parametrize("call", CALLS)
def test_a_power_cut_at_any_call_loses_nothing(call: int) -> None:
    result = run_cut(call, 1 + CALLS.index(call) % 3)
    assert result.failure == ""
    assert result.struck
