"""What a seed means: kinds of faults, rates, durations, and the cluster's own parameters, all drawn from it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from iotdb_cluster.limits import KIB, MIB
from iotdb_cluster.simulation.disk import Operation
from iotdb_cluster.simulation.network import NetworkFaults

__all__ = ["FAILING", "KINDS", "LEFT_OUT", "STALE", "Plan", "Shape"]

KINDS: Final = (
    "crash", "leader crash", "crash at a disk call", "all crash", "pause", "leader pause", "stutter", "one way",
    "partition", "leader partition", "leader one way", "bridge", "some ports", "drop", "slow network", "slow link",
    "transfer", "clock", "disk error", "full disk", "slow disk", "flip", "stale leader",
    "power cut of a majority",
)  # fmt: skip
LEFT_OUT: Final = ("down", "cut off", "deaf", "mute", "paused")
STALE: Final = ("cut off", "deaf", "data ports", "paused", "stutter")  # how a leader is kept from hearing of another
OPERATIONS, OPERATIONS_OF_FIVE = 200, 120  # five nodes cost twice as much a second and an operation
FAILING: Final[tuple[Operation, ...]] = (
    "write", "sync", "open", "rename", "sync_directory", "truncate", "remove", "read",
)  # fmt: skip


@dataclass(slots=True)
class Plan:
    """The nemesis' parameters of one run; durations in virtual milliseconds, drawn evenly from (low, high)."""

    kinds: tuple[str, ...]
    between_ms: tuple[float, float]
    lasting_ms: tuple[float, float]
    down_ms: tuple[float, float]
    network: NetworkFaults
    faults_ms: float
    late_rate: float  # the chance that a batch of Raft messages comes late, out of order, or twice
    late_ms: float

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        kinds = tuple(kind for kind in KINDS if rng.random() < 0.4) or ("crash",)
        if "stale leader" in kinds:
            kinds += ("stale leader",) * 2
        network = NetworkFaults(
            delay_ms=(0.1, rng.choice((1.0, 2.0, 2.0, 20.0))),
            stall_rate=rng.choice((0.0, 0.002, 0.02)),
            break_rate=rng.choice((0.0, 0.0005, 0.005)),
            split_rate=rng.choice((0.0, 0.1, 0.5)),
            stalled_break_ms=rng.choice((3_000.0, 30_000.0)),
        )
        return cls(
            kinds,
            (100.0, rng.choice((1_000.0, 2_000.0, 4_000.0))),
            (50.0, rng.choice((500.0, 2_000.0, 8_000.0))),
            (20.0, rng.choice((200.0, 2_000.0, 6_000.0))),
            network,
            rng.choice((15_000.0, 20_000.0, 30_000.0)),
            rng.choice((0.0, 0.0, 0.01, 0.1)),
            rng.choice((5.0, 200.0, 2_000.0)),
        )


@dataclass(slots=True)
class Shape:
    """The cluster's and the clients' parameters of one run."""

    nodes: int
    clients: int
    operations: int  # of all clients together; a run is not over before
    partition_ms: int
    flush_bytes: int
    segment_bytes: int
    log_bytes_max: int
    timeout_ms: int
    patience_ms: float  # of a client
    skew_ms: float

    @classmethod
    def draw(cls, rng: random.Random) -> Shape:
        timeout = rng.choice((1_000, 2_000, 5_000))
        nodes = 5 if rng.random() < 0.08 else 3
        return cls(
            nodes,
            rng.randint(3, 6),
            OPERATIONS if nodes == 3 else OPERATIONS_OF_FIVE,
            rng.choice((1_000, 60_000)),
            rng.choice((1 * KIB, 16 * KIB, 1 * MIB)),
            rng.choice((128 * KIB, 256 * KIB, 1 * MIB)),
            rng.choice((512 * KIB, 4 * MIB)),
            timeout,
            timeout * rng.choice((0.4, 1.5, 3.0)),
            rng.choice((0.0, 200.0, 60_000.0)),
        )
