"""The simulated world: virtual time, an in-memory network and a disk that forgets, all of it a function of a seed.

`Simulation(seed)` runs whole nodes; `SimulatedDisk` alone serves tests of whatever writes files.
"""

from __future__ import annotations

from iotdb_cluster.simulation.disk import FaultRule, Mount, PowerCut, SimulatedDisk
from iotdb_cluster.simulation.loop import DeadSimulation, NodeRun, VirtualLoop
from iotdb_cluster.simulation.network import NetworkFaults, NodeNetwork, SimulatedNetwork
from iotdb_cluster.simulation.world import (
    NodeFailed,
    SimulatedClock,
    SimulatedWorkers,
    Simulation,
    SimulationTimeout,
)

__all__ = [
    "DeadSimulation",
    "FaultRule",
    "Mount",
    "NetworkFaults",
    "NodeFailed",
    "NodeNetwork",
    "NodeRun",
    "PowerCut",
    "SimulatedClock",
    "SimulatedDisk",
    "SimulatedNetwork",
    "SimulatedWorkers",
    "Simulation",
    "SimulationTimeout",
    "VirtualLoop",
]
