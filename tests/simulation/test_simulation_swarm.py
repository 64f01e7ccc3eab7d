"""Seeds of the swarm: what clients saw is linearizable, a healed majority lives, and what is planted is found.

An early plan's seed 1031 found that a coordinator without a replica of the group asked the same cut-off node first, at
every call, until the call's time was up: `tests/cluster/test_cluster_leader_hints.py` keeps that, since a change of the
plan changes what a seed means.
"""

from __future__ import annotations

import random

import pytest

from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group
from iotdb_cluster.raft import Message
from iotdb_cluster.simulation.disk import SimulatedDisk
from iotdb_cluster.simulation.nemesis import Nemesis
from iotdb_cluster.simulation.plan import KINDS, Plan
from iotdb_cluster.simulation.swarm import Swarm, SwarmFailure, run_seed
from iotdb_cluster.simulation.world import Simulation

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


def test_an_acknowledgement_before_the_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A majority loses power when one of it has acknowledged what it has not synced."""
    append = Driver._append

    def early(driver: Driver, group: Group, message: Message) -> None:
        for response in message.responses:
            if response.to != group.replica:
                driver._post(group, response)
        message.responses = [response for response in message.responses if response.to == group.replica]
        append(driver, group, message)

    monkeypatch.setattr(Driver, "_append", early)

    def run_some() -> None:
        for seed in range(1, 9):
            swarm = Swarm(seed)
            swarm.plan.kinds = ("power cut of a majority",)
            swarm.run()

    with pytest.raises(SwarmFailure, match="are to lose power"):
        run_some()


def test_every_kind_of_fault_does_something() -> None:
    with Simulation(1) as simulation:
        nemesis = Nemesis(simulation, random.Random(1), (), {}, Swarm(1).plan, lambda *_: None, {})
    assert set(nemesis.kinds) == {kind.removeprefix("leader ") for kind in KINDS}


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = {kind for seed in range(30) for kind in Plan.draw(random.Random(seed)).kinds}
    assert drawn == set(KINDS)
