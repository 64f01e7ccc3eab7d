"""Whole nodes in the simulated world: one seed twice, and seeds that once found a bug.

Seed 1 found that directories were made without syncing their names: a node came back from a power cut with empty disks.
Seed 9 found that a refusal hid an earlier attempt whose outcome was unknown: a refused write took effect.
"""

import pytest

from iotdb_cluster.simulation.smoke import run_smoke


def test_a_seed_repeats_event_for_event() -> None:
    first, second = run_smoke(1), run_smoke(1)
    assert first == second
    assert first.acknowledged > 100
    assert first.crashes > 0


@pytest.mark.parametrize("seed", [9, 20])
def test_what_was_acknowledged_is_there(seed: int) -> None:
    assert run_smoke(seed).acknowledged > 100


@pytest.mark.parametrize("seed", [3, 8])
def test_a_node_that_was_away_for_long_gets_snapshots(seed: int) -> None:
    result = run_smoke(seed, small_logs=True)
    assert result.acknowledged > 100
    assert result.snapshots >= 3


def test_without_faults_nothing_is_refused() -> None:
    result = run_smoke(5, faults=False)
    assert (result.refused, result.unknown) == (0, 0)
