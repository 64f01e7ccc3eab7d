"""What goes wrong: the kinds of a plan, at its rates, each undone after some time.

Faults overlap: each is undone by itself some time later. A node that went down, by whatever cause, is started again
after a while, its disk mended.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.simulation.damage import flip_a_bit
from iotdb_cluster.simulation.network import NetworkFaults
from iotdb_cluster.simulation.plan import FAILING, STALE, Plan
from iotdb_cluster.simulation.world import Simulation

__all__ = ["Nemesis"]

ROUND_MS: Final = 50.0
STUTTER_MS: Final = ((100.0, 700.0), (5.0, 60.0))  # a stuttering process stands, and runs, for so long
STALE_MS: Final = (1_200.0, 2_600.0)  # how long a leader is kept from hearing of another
SLOW_DISK_MS: Final = (20.0, 300.0)


class Nemesis:
    """`run` does harm for the plan's time; `leave_out` and `mend` end it."""

    def __init__(
        self,
        simulation: Simulation,
        rng: random.Random,
        names: Sequence[str],
        running: Mapping[str, Node],
        plan: Plan,
        chase: Callable[[str, float], None],
        ports: Mapping[str, Sequence[int]],
    ) -> None:
        """`chase(node, ms)` sets clients on a node and others on the rest; `ports`: those between nodes, by traffic."""
        self._simulation = simulation
        self._random = rng
        self._names = list(names)
        self._running = running
        self._plan = plan
        self._chase = chase
        self._ports = ports
        self._due: dict[str, float] = {}  # when a node that is down starts again
        self._undoing: list[tuple[float, Callable[[], None]]] = []
        self._failed: set[str] = set()  # nodes whose disks have failed at some time
        self.damaged = ""  # the node whose files have a flipped bit: it may refuse to serve
        self._left_out = ""
        self.crashes = 0
        self.said: list[str] = []
        simulation.expected = self._expected

    def _expected(self, name: str, error: BaseException) -> bool:
        """A node stops when its disk fails; it may not take that for damaged data."""
        self._say(name, "stops:", repr(error))
        if isinstance(error, CorruptData):
            return name == self.damaged
        return name in self._failed and isinstance(error, OSError | SystemFault)

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

    def _leads(self, name: str) -> bool:
        node = self._running.get(name)
        return node is not None and bool(node.leading())

    def _harm(self, kind: str) -> None:
        rng, simulation = self._random, self._simulation
        running = [name for name in self._names if simulation.is_running(name)]
        if not running:
            return
        victim = rng.choice(running)
        leads = "leader" in kind or kind == "transfer"
        if leads:
            victim = rng.choice([name for name in running if self._leads(name)] or running)
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
        elif kind == "stutter":
            self._say(victim, "stutters")
            self._stutter(victim, simulation.now_ms + rng.uniform(*self._plan.lasting_ms))
        elif kind == "stale leader":
            self._leave_stale(victim, others)
        elif kind == "transfer":
            self._transfer(victim)
        elif kind == "clock":
            jump = rng.choice((1.0, -1.0)) * rng.choice((100.0, 5_000.0, 3_600_000.0)) * rng.random()
            self._say(victim, f"clock jumps by {jump:.0f} ms")
            simulation.nodes[victim].clock.jump(jump)
        elif "disk" in kind:
            self._harm_disk(victim, kind)
        elif kind == "flip":
            self._flip(victim)
        else:
            self._harm_network(victim, others, kind.removeprefix("leader "))

    def _harm_network(self, victim: str, others: Sequence[str], kind: str) -> None:
        rng, network = self._random, self._simulation.network
        other = rng.choice(others)
        if kind == "one way":
            self._cut([rng.choice(((victim, other), (other, victim)))])
        elif kind == "partition":
            self._cut([pair for one in others for pair in ((victim, one), (one, victim))])
        elif kind == "bridge":  # the third still reaches both
            self._cut([(victim, other), (other, victim)])
        elif kind == "some ports":
            ports = self._ports[rng.choice(sorted(self._ports))]
            pairs = [pair for one in others for pair in ((victim, one), (one, victim))]
            self._cut(rng.choice((pairs, pairs[:2], pairs[:1])), ports)
        elif kind == "drop":
            self._say("drop connections of", victim)
            network.drop_connections(victim)
        elif kind == "slow link":
            low = rng.choice((5.0, 50.0, 400.0))
            self._say("slow link", victim, other, low)
            network.slow_link(victim, other, (low, 2 * low))
            self._lasting(lambda: network.slow_link(victim, other, None))
        else:
            self._slow()

    def _cut(self, pairs: Sequence[tuple[str, str]], ports: Sequence[int] = ()) -> None:
        undo = self._blocked(pairs, ports)
        self._lasting(undo)

    def _blocked(self, pairs: Sequence[tuple[str, str]], ports: Sequence[int] = ()) -> Callable[[], None]:
        """Block these ways now; what takes that back."""
        network = self._simulation.network
        self._say("block", " ".join(f"{source}>{target}" for source, target in pairs), *ports)
        for source, target in pairs:
            network.block(source, target, ports)

        def undo() -> None:
            for source, target in pairs:
                network.unblock(source, target, ports)

        return undo

    def _stutter(self, name: str, until: float) -> None:
        """A process that gets a processor now and then."""
        rng, simulation = self._random, self._simulation
        stands, runs = STUTTER_MS

        def go_on() -> None:
            simulation.resume(name)
            if simulation.now_ms < until:
                self._undoing.append((simulation.now_ms + rng.uniform(*runs), stand))

        def stand() -> None:
            if simulation.is_running(name):
                simulation.pause(name)
                self._undoing.append((simulation.now_ms + rng.uniform(*stands), go_on))

        stand()

    def _leave_stale(self, victim: str, others: Sequence[str]) -> None:
        """A leader cannot hear of its successor, while clients ask both sides."""
        rng, simulation = self._random, self._simulation
        manner, lasting = rng.choice(STALE), rng.uniform(*STALE_MS)
        self._say(victim, "leads on, stale:", manner)
        self._chase(victim, lasting + 800.0)
        end = simulation.now_ms + lasting
        if manner == "stutter":
            self._stutter(victim, end)
        ways = [(one, victim) for one in others]
        if manner != "deaf":
            ways += [(victim, one) for one in others]
        ports = self._ports["data"] if manner == "data ports" else ()
        self._undoing.append((end, self._blocked(ways, ports)))
        if manner == "paused":
            simulation.pause(victim)
            self._undoing.append((end - rng.uniform(200.0, 900.0), lambda: simulation.resume(victim)))

    def _transfer(self, victim: str) -> None:
        node = self._running.get(victim)
        led = [group for group in node.replicas() if group.leads] if node is not None else []
        if not led:
            return
        group = self._random.choice(led)
        target = self._random.choice(sorted(member for member in group.nodes if member != group.replica))
        self._say(victim, "hands over group", group.id, "to replica", target)
        self._simulation.run_as(victim, group.raw.transfer_leader, target)

    def _flip(self, victim: str) -> None:
        """At most one node's: what one copy lost, the others have."""
        if self.damaged in ("", victim):
            place = flip_a_bit(self._simulation.nodes[victim].disk, self._random)
            if place:
                self.damaged = victim
                self._say(victim, "has a flipped bit in", place)

    def _crash(self, name: str) -> None:
        power = bool(self._random.randrange(3))
        self._say(name, "loses power" if power else "is killed")
        self._simulation.crash(name, power_cut=power)
        self.crashes += 1

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
        if kind == "slow disk":
            self._say(victim, "has a slow disk")
            self._simulation.set_pace(victim, (rng.uniform(0.0, SLOW_DISK_MS[0]), rng.uniform(*SLOW_DISK_MS)))
            self._lasting(lambda: self._simulation.set_pace(victim, None))
            return
        self._failed.add(victim)
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

    async def supervise(self) -> None:
        """After the faults: a node that stops because its disk had failed is started again, as a machine does that."""
        while True:
            await asyncio.sleep(ROUND_MS / 1000)
            for name in self._names:
                if name != self._left_out and not self._simulation.is_running(name):
                    self._start(name)

    def mend(self, but: str = "") -> None:
        """Everything is well again, and every node runs; but one that is left out."""
        self._left_out = but
        self._undoing.clear()
        self._simulation.network.faults = NetworkFaults()
        self._simulation.network.heal()
        for name in self._names:
            self._mend_disk(name)
            self._simulation.set_pace(name, None)
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
