"""What goes wrong: kinds, rates and durations drawn from the seed, each kind present in some runs only.

Faults overlap: each is undone by itself some time later. A node that went down, by whatever cause, is started again
after a while, its disk mended.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.simulation.disk import Operation
from iotdb_cluster.simulation.network import NetworkFaults
from iotdb_cluster.simulation.world import Simulation

__all__ = ["LEFT_OUT", "Nemesis", "Plan"]

KINDS: Final = (
    "crash", "leader crash", "crash at a disk call", "all crash", "pause", "leader pause", "one way", "partition",
    "leader partition", "leader one way", "drop", "slow network", "clock", "disk error", "full disk",
)  # fmt: skip
LEFT_OUT: Final = ("down", "cut off", "deaf", "mute", "paused")
FAILING: Final[tuple[Operation, ...]] = (
    "write", "sync", "open", "rename", "sync_directory", "truncate", "remove", "read",
)  # fmt: skip
ROUND_MS: Final = 50.0


@dataclass(slots=True)
class Plan:
    """The swarm's parameters of one run; durations in virtual milliseconds, drawn evenly from (low, high)."""

    kinds: tuple[str, ...]
    between_ms: tuple[float, float]
    lasting_ms: tuple[float, float]
    down_ms: tuple[float, float]
    network: NetworkFaults
    faults_ms: float

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        kinds = tuple(kind for kind in KINDS if rng.random() < 0.5) or ("crash",)
        network = NetworkFaults(
            delay_ms=(0.1, rng.choice((1.0, 2.0, 2.0, 20.0))),
            stall_rate=rng.choice((0.0, 0.002, 0.02)),
            break_rate=rng.choice((0.0, 0.0005, 0.005)),
            split_rate=rng.choice((0.0, 0.1, 0.5)),
            stalled_break_ms=rng.choice((3_000.0, 30_000.0)),
        )
        return cls(
            kinds,
            (100.0, rng.choice((600.0, 1_500.0, 4_000.0))),
            (50.0, rng.choice((500.0, 2_000.0, 8_000.0))),
            (20.0, rng.choice((200.0, 2_000.0, 6_000.0))),
            network,
            rng.choice((8_000.0, 12_000.0, 20_000.0)),
        )


class Nemesis:
    """`run` does harm for the plan's time; `leave_out` and `mend` end it."""

    def __init__(
        self,
        simulation: Simulation,
        rng: random.Random,
        names: Sequence[str],
        led: Callable[[str], float],
        plan: Plan,
    ) -> None:
        """`led(name)`: how many groups a node leads."""
        self._simulation = simulation
        self._random = rng
        self._names = list(names)
        self._led = led
        self._plan = plan
        self._due: dict[str, float] = {}  # when a node that is down starts again
        self._undoing: list[tuple[float, Callable[[], None]]] = []
        self._mended: set[str] = set()  # nodes whose disks have failed at some time
        self.crashes = 0
        self.said: list[str] = []
        simulation.expected = self._expected

    def _expected(self, name: str, error: BaseException) -> bool:
        """A node stops when its disk fails; it may not take that for damaged data."""
        self._say(name, "stops:", repr(error))
        return name in self._mended and isinstance(error, OSError | SystemFault) and not isinstance(error, CorruptData)

    def _say(self, *words: object) -> None:
        self.said.append(f"{self._simulation.now_ms / 1000:.3f} {' '.join(map(str, words))}")
        self._simulation.trace("nemesis", *words)

    async def run(self) -> None:
        rng, plan, simulation = self._random, self._plan, self._simulation
        simulation.network.faults = plan.network
        end = simulation.now_ms + plan.faults_ms
        next_ms = simulation.now_ms + rng.uniform(*plan.between_ms)
        while simulation.now_ms < end:
            await asyncio.sleep(ROUND_MS / 1000)
            self._undo(simulation.now_ms)
            self._revive(simulation.now_ms)
            if simulation.now_ms >= next_ms:
                next_ms = simulation.now_ms + rng.uniform(*plan.between_ms)
                self._harm(rng.choice(plan.kinds))

    def _undo(self, now: float) -> None:
        due = [undo for at, undo in self._undoing if at <= now]
        self._undoing = [(at, undo) for at, undo in self._undoing if at > now]
        for undo in due:
            undo()

    def _revive(self, now: float) -> None:
        for name in self._names:
            if self._simulation.is_running(name):
                continue
            if name not in self._due:
                self._due[name] = now + self._random.uniform(*self._plan.down_ms)
            elif self._due[name] <= now:
                self._start(name)

    def _start(self, name: str) -> None:
        self._due.pop(name, None)
        self._mend_disk(name)
        self._say(name, "starts")
        self._simulation.restart(name)

    def _mend_disk(self, name: str) -> None:
        disk = self._simulation.nodes[name].disk
        disk.rules.clear()
        disk.capacity = None
        disk.cut_at = None

    def _lasting(self, undo: Callable[[], None]) -> None:
        self._undoing.append((self._simulation.now_ms + self._random.uniform(*self._plan.lasting_ms), undo))

    # --- faults -------------------------------------------------------------------------------------------------------

    def _harm(self, kind: str) -> None:
        rng, simulation = self._random, self._simulation
        running = [name for name in self._names if simulation.is_running(name)]
        if not running:
            return
        victim = rng.choice(running)
        if kind.startswith("leader"):
            victim = rng.choice([name for name in running if self._led(name)] or running)
        others = [name for name in self._names if name != victim]
        if kind in ("crash", "leader crash"):
            self._crash(victim)
        elif kind == "all crash":
            for name in running:
                self._crash(name)
        elif kind in ("pause", "leader pause"):
            self._say(victim, "pauses")
            simulation.pause(victim)
            self._lasting(lambda: simulation.resume(victim))
        elif kind in ("one way", "leader one way") and others:
            source, target = rng.choice(((victim, rng.choice(others)), (rng.choice(others), victim)))
            self._say("block", source, target)
            simulation.network.block(source, target)
            self._lasting(lambda: simulation.network.unblock(source, target))
        elif kind in ("partition", "leader partition") and others:
            self._say("partition", victim)
            simulation.network.partition([victim], others)
            self._lasting(lambda: self._join(victim, others))
        elif kind == "drop":
            self._say("drop connections of", victim)
            simulation.network.drop_connections(victim)
        elif kind == "slow network":
            self._slow()
        elif kind == "clock":
            jump = rng.choice((1.0, -1.0)) * rng.choice((100.0, 5_000.0, 3_600_000.0)) * rng.random()
            self._say(victim, f"clock jumps by {jump:.0f} ms")
            simulation.nodes[victim].clock.jump(jump)
        else:
            self._harm_disk(victim, kind)

    def _crash(self, name: str) -> None:
        power = bool(self._random.randrange(3))
        self._say(name, "loses power" if power else "is killed")
        self._simulation.crash(name, power_cut=power)
        self.crashes += 1

    def _join(self, victim: str, others: Sequence[str]) -> None:
        for other in others:
            self._simulation.network.unblock(victim, other)
            self._simulation.network.unblock(other, victim)

    def _slow(self) -> None:
        network, usual = self._simulation.network, self._plan.network
        self._say("slow network")
        low = self._random.choice((1.0, 20.0, 80.0))
        network.faults = NetworkFaults((low, low * 3), usual.stall_rate, usual.stall_ms, usual.break_rate)

        def undo() -> None:
            network.faults = usual

        self._lasting(undo)

    def _harm_disk(self, victim: str, kind: str) -> None:
        rng, disk = self._random, self._simulation.nodes[victim].disk
        if kind == "crash at a disk call":
            disk.cut_power = bool(rng.randrange(3))
            disk.cut_at = disk.calls + rng.randint(1, rng.choice((5, 50, 300)))
            self._say(victim, "crashes at disk call", disk.cut_at)
            self.crashes += 1
            return
        self._mended.add(victim)
        if kind == "full disk":
            disk.capacity = disk.used_bytes + rng.choice((0, 4096, 65536))
            self._say(victim, "disk is full at", disk.capacity)
        else:
            operation = rng.choice(FAILING)
            path = rng.choice(("", "/wal", "/data/data", "/system"))
            disk.inject(operation, path, rng.choice((errno.EIO, errno.ENOSPC)), rng.choice((1, 3, 100)))
            self._say(victim, "disk fails to", operation, path)
        self._lasting(lambda: self._mend_disk(victim))

    # --- the end ------------------------------------------------------------------------------------------------------

    def mend(self, but: str | None = None) -> None:
        """Everything is well again, and every node runs; but one that is left out."""
        self._undoing.clear()
        self._simulation.network.faults = NetworkFaults()
        self._simulation.network.heal()
        for name in self._names:
            self._mend_disk(name)
            if name == but:
                continue
            self._simulation.resume(name)
            if not self._simulation.is_running(name):
                self._start(name)

    def leave_out(self, name: str, manner: str) -> None:
        """Heal all nodes but one, which stays away in one of the manners `LEFT_OUT`."""
        self.mend(but=name)
        simulation, others = self._simulation, [other for other in self._names if other != name]
        self._say(name, "is left out:", manner)
        running = simulation.is_running(name)
        if manner == "down" and running:
            simulation.crash(name)
            return
        if manner != "down" and not running:
            self._start(name)
        if manner == "paused":
            simulation.pause(name)
            return
        simulation.resume(name)
        for other in others:
            if manner in ("cut off", "deaf"):
                simulation.network.block(other, name)
            if manner in ("cut off", "mute"):
                simulation.network.block(name, other)
