"""Drivers of one group on several nodes in virtual time: durable logs on simulated disks, a network with faults."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from iotdb_cluster.cluster.beats import Commits, Covered
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.group import Group, Outcome
from iotdb_cluster.cluster.log import DurableLog, Install, LogOptions
from iotdb_cluster.cluster.lone import AckRow, Acks, AppendRow, Appends
from iotdb_cluster.cluster.outbox import Word
from iotdb_cluster.limits import KIB, LOG_CACHE_BYTES_MAX
from iotdb_cluster.raft import (
    Config,
    ConfState,
    Entries,
    Message,
    MessageType,
    RawNode,
    Snapshot,
    decode_message,
    encode_message,
)
from iotdb_cluster.simulation import NodeRun, SimulatedClock, SimulatedDisk, SimulatedWorkers, VirtualLoop
from iotdb_cluster.simulation.loop import NODE_RUN
from iotdb_cluster.world import World

T = TypeVar("T")
TICK_MS = 100


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]], limit_s: float = 600) -> T:
    """Run to the end on a loop whose time is virtual."""
    loop = VirtualLoop()
    loop.set_debug(True)

    async def bounded() -> T:
        async with asyncio.timeout(limit_s):
            return await main()

    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(bounded())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


def world_of(seed: int, disk: SimulatedDisk | None = None) -> World:
    """A simulated world without a network, on the running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    rng = random.Random(seed)
    workers = SimulatedWorkers(loop, random.Random(seed + 1))
    files = (disk or SimulatedDisk(random.Random(seed + 2))).mount()
    return World(SimulatedClock(loop), rng, files, None, workers)  # type: ignore[arg-type]


def watch_reads(log: DurableLog, on_the_loop: list[int]) -> None:
    """Note the first index of each run that is not read by a worker."""
    workers, read = log._workers, log._reads.read
    assert workers is not None
    run_work = workers.run
    working = False

    async def run(work: Any, *args: Any) -> Any:
        def at_work() -> Any:
            nonlocal working
            working = True
            try:
                return work(*args)
            finally:
                working = False

        return await run_work(at_work)

    def noted(run: Any) -> Any:
        if not working:
            on_the_loop.append(run.first)
        return read(run)

    workers.run = run  # type: ignore[method-assign]
    log._reads.read = noted  # type: ignore[method-assign]


class Machine:
    """Remembers what was applied."""

    def __init__(self) -> None:
        self.applied: list[bytes] = []
        self.index = 1
        self.term = 1
        self.members = ConfState()
        self.runs: list[int] = []

    def apply(self, entries: Entries) -> list[Outcome]:
        self.runs.append(sum(map(len, entries.data)))
        self.index, self.term = entries.last, entries.terms[-1]
        outcomes = []
        for data in entries.data:
            if data:
                self.applied.append(data)
            outcomes.append(Outcome(data.decode() if len(data) < 100 else len(data)))
        return outcomes

    def configured(self, configuration: ConfState, index: int) -> None:
        del index
        self.members = configuration

    def snapshot(self) -> Snapshot:
        return Snapshot(self.index, self.term, self.members, b"\n".join(self.applied))

    def require_staged(self, snapshot: Snapshot) -> None:
        """Nothing: these tests do not restart from one."""

    def install(self, snapshot: Snapshot) -> None:
        self.applied = snapshot.data.split(b"\n")
        self.index, self.term = snapshot.index, snapshot.term


class Outbox:
    def __init__(self, cluster: Cluster, node: int) -> None:
        self._cluster = cluster
        self._node = node
        self._parts: list[tuple[int, int, bytes | Word, MessageType]] = []

    def post(self, node: int, group: Group, message: Message, heartbeat: bool) -> None:
        assert heartbeat == (message.type in (MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP))
        self._parts.append((node, group.id, b"".join([encode_message(message)]), message.type))

    def committed(self, node: int, group: Group, pair: Covered) -> None:
        assert pair.group == group.id
        self._parts.append((node, group.id, Commits((pair,)), MessageType.APP))

    def append(self, node: int, group: Group, row: AppendRow, payload: bytes) -> None:
        self._parts.append((node, group.id, Appends((row,), (payload,)), MessageType.APP))

    def acknowledge(self, node: int, group: Group, row: AckRow) -> None:
        self._parts.append((node, group.id, Acks((row,)), MessageType.APP_RESP))

    def tell(self, node: int, word: Word) -> None:
        self._parts.append((node, 0, word, MessageType.HEARTBEAT))

    def flush(self) -> list[tuple[Group, int]]:
        parts, self._parts = self._parts, []
        for node, group, data, kind in parts:
            self._cluster.carry(self._node, node, group, data, kind)
        return []


class Cluster:
    """`count` voters of each group on nodes 1..count; the replica of node n has id 100 * k + n in the k-th group.

    The groups are 7, 8, ...; `groups` and `machines` are the replicas of group 7 by node, `every` those of all by node
    and group. With `plain` no heartbeat is left to a beat.
    """

    def __init__(
        self,
        seed: int,
        count: int = 3,
        apply_bytes_max: int = 256 * KIB,
        group_count: int = 1,
        plain: bool = False,
        log_cache_bytes: int = LOG_CACHE_BYTES_MAX,
    ) -> None:
        self.random = random.Random(seed)
        self.loss = 0.0
        self.reorder = False
        self.cut: set[frozenset[int]] = set()
        self.drop: Callable[[MessageType], bool] = lambda _: False
        self.faults: list[BaseException] = []
        self.drivers: dict[int, Driver] = {}
        self.groups: dict[int, Group] = {}
        self.machines: dict[int, Machine] = {}
        self.every: dict[int, dict[int, Group]] = {}
        self.logs: dict[int, DurableLog] = {}
        self.delivered: Counter[str] = Counter()
        self.leader_changed: Callable[[int, Group], None] = lambda *_: None
        self.delivered_in: dict[int, NodeRun] = {}  # nodes that get their messages as part of a run that can be paused
        self._disks: dict[int, SimulatedDisk] = {}
        self._lives: Counter[int] = Counter()
        self._apply_bytes_max = apply_bytes_max
        self._group_count = group_count
        self._plain = plain
        self._log_cache_bytes = log_cache_bytes
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []
        self._nodes = list(range(1, count + 1))

    async def start(self) -> None:
        for node in self._nodes:
            self._disks[node] = self.disk_of(node)
            await self.start_node(node)

    def disk_of(self, node: int) -> SimulatedDisk:
        return SimulatedDisk(random.Random(self._seed * 100 + node + 2))

    async def start_node(self, node: int) -> None:
        """The first time, or after `crash`."""
        self._lives[node] += 1
        world = world_of(self._seed * 100 + node + 1000 * (self._lives[node] - 1), self._disks[node])
        options = LogOptions(segment_bytes=1024 * KIB, cache_bytes_max=self._log_cache_bytes)
        fault = self.faults.append
        log = DurableLog.open(world.files, "/log", world.random, options, workers=world.workers, on_fault=fault)
        self._tasks.append(asyncio.get_running_loop().create_task(log.run()))
        driver = Driver(world, log, Outbox(self, node), node, TICK_MS, fault)
        if self._plain:
            driver._timing.takes = lambda *_: False  # type: ignore[method-assign]
        self.drivers[node], self.logs[node], self.every[node] = driver, log, {}
        for number in range(self._group_count):
            self.every[node][7 + number] = await self._open(node, number)
        self.groups[node] = self.every[node][7]
        machine = self.groups[node].machine
        assert isinstance(machine, Machine)
        self.machines[node] = machine
        driver.start()

    async def _open(self, node: int, number: int) -> Group:
        log = self.logs[node]
        voters = ConfState(tuple(100 * (number + 1) + one for one in self._nodes))
        replica = 100 * (number + 1) + node
        view = log.view(replica)
        if view.last_index() == 0:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            log.submit([Install(replica, 1, 1, voters)], lambda: done.set_result(None))
            await done
        machine = Machine()
        machine.members = voters
        view.snapshot_source = machine.snapshot
        raw = RawNode(
            Config(
                replica,
                view,
                random.Random(self._seed + node + 10 * number),
                applied=1,
                election_tick=5,
                committed_bytes_per_ready_max=self._apply_bytes_max,
                async_storage_writes=True,
                disable_proposal_forwarding=True,
            )
        )
        nodes = {100 * (number + 1) + one: one for one in self._nodes}
        group = Group(7 + number, 1, replica, raw, view, machine, nodes, applied=1)
        group.leader_changed = lambda group: self.leader_changed(node, group)
        self.drivers[node].add(group)
        return group

    async def crash(self, node: int) -> None:
        """The node is gone, with all that it knew but its log."""
        self.drivers.pop(node).stop()
        del self.every[node], self.groups[node], self.machines[node]
        await self.logs.pop(node).close()

    def carry(self, source: int, target: int, group: int, data: bytes | Word, kind: MessageType) -> None:
        rng = self.random
        if frozenset((source, target)) in self.cut or rng.random() < self.loss or self.drop(kind):
            return
        delay = rng.uniform(0.0005, 0.08) if self.reorder else 0.001
        for _ in range(2 if self.reorder and rng.random() < 0.05 else 1):
            context = contextvars.copy_context()
            context.run(NODE_RUN.set, self.delivered_in.get(target))
            asyncio.get_running_loop().call_later(delay, self._deliver, source, target, group, data, context=context)

    def _deliver(self, source: int, target: int, group: int, data: bytes | Word) -> None:
        driver = self.drivers.get(target)
        if driver is None:
            return
        if not isinstance(data, bytes):
            self.delivered[type(data).__name__] += 1
            driver.told(source, type(data).decode(memoryview(data.encode())))
        else:
            message = decode_message(data)
            self.delivered[message.type.name] += 1
            if group in driver.groups:
                driver.step(driver.groups[group], message)

    def isolate(self, node: int) -> None:
        self.cut = {frozenset((node, other)) for other in self._nodes if other != node}

    def heal(self) -> None:
        self.cut = set()

    async def leader(self) -> int:
        """The node that leads, with an entry of its term committed."""
        while True:
            leading = [n for n, group in self.groups.items() if group.leads and group.raw.committed_in_term]
            if leading:
                return max(leading, key=lambda node: self.groups[node].raw.term)
            await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Until every member has applied the same."""
        self.heal()
        self.loss, self.reorder = 0.0, False
        self.drop = lambda _: False
        while True:
            await asyncio.sleep(1)
            node = await self.leader()
            last = self.groups[node].raw.last_index
            if all(group.applied == last for group in self.groups.values()):
                return

    async def close(self) -> None:
        for driver in self.drivers.values():
            driver.stop()
        for log in self.logs.values():
            await log.close()
        await asyncio.wait(self._tasks)
        assert not self.faults, self.faults
