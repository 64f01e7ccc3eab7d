"""Seeds of the swarm: what clients saw is linearizable, a healed majority lives, and what is planted is found.

An early plan's seed 1031 found that a coordinator without a replica of the group asked the same cut-off node first, at
every call, until the call's time was up: `tests/cluster/test_cluster_leader_hints.py` keeps that, since a change of the
plan changes what a seed means.
"""

from __future__ import annotations

import random

import pytest

from iotdb_cluster.simulation.disk import SimulatedDisk
from iotdb_cluster.simulation.plan import KINDS, Plan
from iotdb_cluster.simulation.swarm import SwarmFailure, run_seed

FIVE_NODES = 11


def test_a_seed_repeats_event_for_event() -> None:
    first, second = run_seed(1), run_seed(1)
    assert first == second
    assert first.crashes > 0


def test_five_nodes() -> None:
    assert run_seed(FIVE_NODES).acknowledged > 30


def test_without_faults_nothing_is_unknown() -> None:
    result = run_seed(3, faults=False)
    assert result.acknowledged > 50
    assert result.unknown == 0


def test_a_disk_that_forgets_what_was_synced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedDisk, "sync_data", lambda *_: None)
    with pytest.raises(SwarmFailure, match="make sim SEED=1"):
        run_seed(1)


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = {kind for seed in range(30) for kind in Plan.draw(random.Random(seed)).kinds}
    assert drawn == set(KINDS)
