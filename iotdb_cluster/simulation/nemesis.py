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
SLOW_SYNC_MS: Final = (80.0, 250.0)
MAJORITY_MS: Final = (600.0, 1_500.0)  # how long a leader has just one follower, before both lose power
AWAY_MS: Final = (3_000.0, 5_000.0)  # how long the leader does
OF_LEADERS: Final = ("transfer", "power cut of a majority")


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
        self._majority_until = 0.0  # when the last power cut of a majority is over
        self.crashes = 0
        self.said: list[str] = []
        self.kinds = self._table()
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
        """Do one thing of a kind to one node, drawn from those that run."""
        running = [name for name in self._names if self._simulation.is_running(name)]
        if not running:
            return
        victim = self._random.choice(running)
        if "leader" in kind or kind in OF_LEADERS:
            victim = self._random.choice([name for name in running if self._leads(name)] or running)
        what = kind.removeprefix("leader ")
        self.kinds[what](victim, [name for name in self._names if name != victim])

    def _table(self) -> dict[str, Callable[[str, Sequence[str]], None]]:
        """What each kind does to a victim among others; a kind that begins with "leader" chooses it among those."""
        return {
            "crash": lambda victim, _: self._crash(victim),
            "crash at a disk call": lambda victim, _: self._crash_at_a_call(victim),
            "all crash": lambda _, __: self._crash_all(),
            "pause": lambda victim, _: self._pause(victim),
            "stutter": lambda victim, _: self._stutters(victim),
            "one way": self._cut_one_way,
            "partition": lambda victim, others: self._cut(_ways(victim, others)),
            "bridge": self._cut_one_link,
            "some ports": self._cut_some_ports,
            "drop": lambda victim, _: self._drop(victim),
            "slow network": lambda _, __: self._slow(),
            "slow link": self._slow_link,
            "transfer": lambda victim, _: self._transfer(victim),
            "clock": lambda victim, _: self._jump(victim),
            "disk error": lambda victim, _: self._fail_disk(victim),
            "full disk": lambda victim, _: self._fill_disk(victim),
            "slow disk": lambda victim, _: self._slow_disk(victim),
            "flip": lambda victim, _: self._flip(victim),
            "stale leader": self._leave_stale,
            "power cut of a majority": self._cut_a_majority,
        }

    def _crash_all(self) -> None:
        for name in self._names:
            if self._simulation.is_running(name):
                self._crash(name)

    def _pause(self, victim: str) -> None:
        self._say(victim, "pauses")
        self._simulation.pause(victim)
        self._lasting(lambda: self._simulation.resume(victim))

    def _stutters(self, victim: str) -> None:
        self._say(victim, "stutters")
        self._stutter(victim, self._simulation.now_ms + self._random.uniform(*self._plan.lasting_ms))

    def _jump(self, victim: str) -> None:
        rng = self._random
        jump = rng.choice((1.0, -1.0)) * rng.choice((100.0, 5_000.0, 3_600_000.0)) * rng.random()
        self._say(victim, f"clock jumps by {jump:.0f} ms")
        self._simulation.nodes[victim].clock.jump(jump)

    def _cut_one_way(self, victim: str, others: Sequence[str]) -> None:
        other = self._random.choice(others)
        self._cut([self._random.choice(((victim, other), (other, victim)))])

    def _cut_one_link(self, victim: str, others: Sequence[str]) -> None:
        """The third still reaches both."""
        self._cut(_ways(victim, [self._random.choice(others)]))

    def _cut_some_ports(self, victim: str, others: Sequence[str]) -> None:
        ports = self._ports[self._random.choice(sorted(self._ports))]
        pairs = _ways(victim, others)
        self._cut(self._random.choice((pairs, pairs[:2], pairs[:1])), ports)

    def _drop(self, victim: str) -> None:
        self._say("drop connections of", victim)
        self._simulation.network.drop_connections(victim)

    def _slow_link(self, victim: str, others: Sequence[str]) -> None:
        other, low = self._random.choice(others), self._random.choice((5.0, 50.0, 400.0))
        self._say("slow link", victim, other, low)
        self._simulation.network.slow_link(victim, other, (low, 2 * low))
        self._lasting(lambda: self._simulation.network.slow_link(victim, other, None))

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

    # --- disks --------------------------------------------------------------------------------------------------------

    def _crash_at_a_call(self, victim: str) -> None:
        rng, disk = self._random, self._simulation.nodes[victim].disk
        disk.cut_power = bool(rng.randrange(3))
        disk.cut_at = disk.calls + rng.randint(1, rng.choice((5, 50, 300)))
        self._say(victim, "crashes at disk call", disk.cut_at)
        self.crashes += 1

    def _slow_disk(self, victim: str) -> None:
        rng = self._random
        self._say(victim, "has a slow disk")
        self._simulation.set_pace(victim, (rng.uniform(0.0, SLOW_DISK_MS[0]), rng.uniform(*SLOW_DISK_MS)))
        self._lasting(lambda: self._simulation.set_pace(victim, None))

    def _fill_disk(self, victim: str) -> None:
        disk = self._simulation.nodes[victim].disk
        self._failed.add(victim)
        disk.capacity = disk.used_bytes + self._random.choice((0, 4096, 65536))
        self._say(victim, "disk is full at", disk.capacity)
        self._lasting(lambda: self._mend_disk(victim))

    def _fail_disk(self, victim: str) -> None:
        rng, disk = self._random, self._simulation.nodes[victim].disk
        self._failed.add(victim)
        operation = rng.choice(FAILING)
        path = rng.choice(("", "/wal", "/data/data", "/system"))
        disk.inject(operation, path, rng.choice((errno.EIO, errno.ENOSPC)), rng.choice((1, 3, 100)))
        self._say(victim, "disk fails to", operation, path)
        self._lasting(lambda: self._mend_disk(victim))

    def _cut_a_majority(self, victim: str, others: Sequence[str]) -> None:
        """Just enough members hear a leader, one of them over a slow disk; then the leader and that one lose power.

        The slow one is back at once, the leader after a new election: what was acknowledged stands on the slow one's
        disk, or nowhere that asks.
        """
        rng, simulation = self._random, self._simulation
        running = [name for name in others if simulation.is_running(name)]
        if not running or simulation.now_ms < self._majority_until:  # two at a time spoil each other
            return
        slow = rng.choice(running)
        behind = [name for name in others if name != slow]
        behind = behind[: len(self._names) // 2]
        self._say(victim, "and", slow, "are to lose power")
        simulation.set_pace(slow, SLOW_SYNC_MS)
        open_again = self._blocked([(victim, one) for one in behind], self._ports["data log"])
        lasting = rng.uniform(*MAJORITY_MS)
        self._chase(victim, lasting)
        strikes_ms = simulation.now_ms + lasting
        self._majority_until = strikes_ms + AWAY_MS[1]

        def strike() -> None:
            simulation.set_pace(slow, None)
            for name, away_ms in ((slow, rng.uniform(20.0, 200.0)), (victim, rng.uniform(*AWAY_MS))):
                if simulation.is_running(name):
                    self._say(name, "loses power")
                    simulation.crash(name)
                    self.crashes += 1
                    self._due[name] = simulation.now_ms + away_ms

        self._undoing.append((strikes_ms, strike))
        self._undoing.append((self._majority_until, open_again))

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


def _ways(victim: str, others: Sequence[str]) -> list[tuple[str, str]]:
    """Both ways between a node and others."""
    return [pair for one in others for pair in ((victim, one), (one, victim))]
