"""The simulated world: virtual time, an in-memory network and a disk that forgets, all of it a function of a seed."""

from __future__ import annotations

from iotdb_cluster.simulation.disk import FaultRule, Mount, PowerCut, SimulatedDisk

__all__ = ["FaultRule", "Mount", "PowerCut", "SimulatedDisk"]
