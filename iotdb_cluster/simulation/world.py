"""Whole nodes in a simulated world: everything that happens is a function of one seed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from iotdb_cluster.errors import check
from iotdb_cluster.simulation.disk import PowerCut, SimulatedDisk
from iotdb_cluster.simulation.loop import NODE_RUN, NodeRun, VirtualLoop
from iotdb_cluster.simulation.network import SimulatedNetwork
from iotdb_cluster.world import World

__all__ = ["NodeFailed", "SimulatedClock", "SimulatedWorkers", "Simulation", "SimulationTimeout"]

T = TypeVar("T")
Main = Callable[[World], Coroutine[Any, Any, Any]]

WALL_START_MS: Final = 1_700_000_000_000
BURIAL_TURNS: Final = 100  # a crashed node's tasks get so many loop turns to end
WORK_MS: Final = (0.05, 3.0)  # until a worker begins, and until its end is noticed
TRACE_LINES_MAX: Final = 2_000


class SimulationTimeout(Exception):
    """What was waited for did not happen in virtual time."""


class NodeFailed(Exception):
    """A node's main function, or a callback of a node, raised an exception that was not expected."""


class SimulatedClock:
    """Implements `world.Clock`: the loop's time, running at `rate`, with a wall time that may be off and jump."""

    def __init__(self, loop: VirtualLoop, rate: float = 1.0, skew_ms: float = 0.0, start_ms: float = 0.0) -> None:
        self._loop = loop
        self.rate = rate
        self.skew_ms = skew_ms
        self._start_ms = start_ms

    def monotonic_ms(self) -> float:
        return self._start_ms + self._loop.time() * 1000.0 * self.rate

    def wall_ms(self) -> int:
        return WALL_START_MS + int(self._loop.time() * 1000.0 * self.rate + self.skew_ms)

    def jump(self, ms: float) -> None:
        """Set the wall time forward or back."""
        self.skew_ms += ms


class SimulatedWorkers:
    """Implements `world.Workers`: work runs inline at a seeded later time, and is known to be done some time after."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, work_ms: tuple[float, float] = WORK_MS) -> None:
        """`work_ms`: until a worker begins; it takes up to the lower of the two until its end is noticed."""
        self._loop = loop
        self._random = rng
        self.work_ms = work_ms

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        low, high = self.work_ms
        before = self._random.uniform(low, high) / 1000
        after = self._random.uniform(0.0, low) / 1000
        result: T = await self._loop.run_later(work, *args, before=before, after=after)
        return result

    def close(self) -> None:
        """There are no threads."""


@dataclass(slots=True, eq=False)
class _Node:
    name: str
    main: Main
    disk: SimulatedDisk
    clock: SimulatedClock
    workers: SimulatedWorkers | None = None
    pace: tuple[float, float] = WORK_MS
    starts: int = 0
    run: NodeRun | None = None
    task: asyncio.Task[Any] | None = None
    ended: list[BaseException | None] = field(default_factory=list)  # how each life ended; None where it returned


class Simulation:
    """`Simulation(seed).add_node(name, main)`, then `run_until`. A context manager: it closes the loop.

    `main(world)` is a node: it serves until it is cancelled. An exception of a node ends `run_until` with `NodeFailed`,
    unless `expected` says that it may happen. `check_turn` is called before every turn of the loop: the place for
    invariants that must hold at every step.
    """

    def __init__(self, seed: int, *, debug: bool = False, skew_ms: float = 0.0, drift: float = 0.0) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.loop = VirtualLoop(lambda: self.random.uniform(*WORK_MS) / 1000)
        self.loop.set_debug(debug)
        self.loop.set_exception_handler(self._loop_exception)
        self.network = SimulatedNetwork(self.loop, self._derived("network"), self.trace)
        self.nodes: dict[str, _Node] = {}
        self.expected: Callable[[str, BaseException], bool] = lambda name, error: False  # noqa: ARG005
        self.check_turn: Callable[[], None] | None = None
        self.lines: deque[str] = deque(maxlen=TRACE_LINES_MAX)  # the newest events, as text
        self.events = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._skew_ms = skew_ms
        self._drift = drift
        self._failures: list[BaseException] = []
        self._condition: Callable[[], bool] | None = None
        self._reached = False
        self._spawned: dict[asyncio.Task[Any], None] = {}
        self.loop.set_turn(self._turn)

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the world ----------------------------------------------------------------------------------------------------
    @property
    def now_ms(self) -> float:
        return self.loop.time() * 1000.0

    def trace(self, *event: object) -> None:
        """Count an event in the digest. Two runs of a seed have equal digests; events must print alike in both."""
        line = f"{self.loop.time():.6f} {' '.join(map(str, event))}"
        self.events += 1
        self._digest.update(f"{line}\n".encode())
        self.lines.append(line)

    def digest(self) -> str:
        """Hash of all events up to now."""
        return self._digest.hexdigest()

    def _derived(self, *name: object) -> random.Random:
        """A random source of its own, so that what one consumer draws does not shift the others."""
        return random.Random(":".join(map(str, (self.seed, *name))))

    def world(self, name: str) -> World:
        """A world for a client or a fault script, which is no node: it has a disk of its own and never crashes."""
        rng = self._derived("client", name)
        disk = SimulatedDisk(rng, trace=self.trace)
        workers = SimulatedWorkers(self.loop, rng)
        return World(SimulatedClock(self.loop), rng, disk, self.network.of(name), workers)

    # --- nodes --------------------------------------------------------------------------------------------------------
    def add_node(
        self, name: str, main: Main, *, disk: SimulatedDisk | None = None, start: bool = True
    ) -> SimulatedDisk:
        """Add a node, and start it; its disk. `main` gets a new world at each start."""
        check(name not in self.nodes, "node %s is there already", name)
        rng = self._derived("node", name)
        if disk is None:
            disk = SimulatedDisk(rng, trace=lambda *event: self.trace(name, *event))
        clock = SimulatedClock(
            self.loop,
            1.0 + rng.uniform(-self._drift, self._drift),
            rng.uniform(-self._skew_ms, self._skew_ms),
            rng.uniform(0.0, 1e6),
        )
        self.nodes[name] = _Node(name, main, disk, clock)
        disk.on_cut = lambda: self._crashed(name)
        if start:
            self.restart(name)
        return disk

    def restart(self, name: str, main: Main | None = None) -> None:
        """Start a node that does not run; with another main function where one is given."""
        node = self.nodes[name]
        check(node.run is None, "node %s runs already", name)
        if main is not None:
            node.main = main
        node.starts += 1
        node.disk.power_on()
        self.trace(name, "starts", node.starts)
        run = node.run = NodeRun(name, node.starts)
        rng = self._derived("node", name, node.starts)
        node.workers = SimulatedWorkers(self.loop, rng, node.pace)
        world = World(node.clock, rng, node.disk.mount(), self.network.of(name), node.workers)
        context = copy_context()
        context.run(NODE_RUN.set, run)
        node.task = self.loop.create_task(node.main(world), name=f"{name} main", context=context)
        node.task.add_done_callback(lambda task: self._ended(node, run, task))

    def is_running(self, name: str) -> bool:
        return self.nodes[name].run is not None

    def set_pace(self, name: str, work_ms: tuple[float, float] | None) -> None:
        """How long a node's workers take, and its disk with them; None: as usual."""
        node = self.nodes[name]
        node.pace = WORK_MS if work_ms is None else work_ms
        if node.workers is not None:
            node.workers.work_ms = node.pace

    def run_as(self, name: str, work: Callable[..., Any], *args: Any) -> None:
        """Do something in the name of a running node: what it schedules dies with that."""
        run = self.nodes[name].run
        check(run is not None, "node %s does not run", name)
        context = copy_context()
        context.run(NODE_RUN.set, run)
        context.run(work, *args)

    def tasks_of(self, name: str) -> int:
        """How many tasks a node has."""
        run = self.nodes[name].run
        return 0 if run is None else len(run.tasks)

    def pause(self, name: str) -> None:
        """Stop the node's process: nothing of it runs until `resume`, or until it crashes."""
        run = self.nodes[name].run
        check(run is not None, "node %s does not run", name)
        if run is not None and not run.paused:
            self.trace(name, "pauses")
            run.paused = True

    def resume(self, name: str) -> None:
        """Let a paused process go on; nothing happens where it is not paused or does not run."""
        run = self.nodes[name].run
        if run is not None and run.paused:
            self.trace(name, "resumes")
            self.loop.resume(run)

    def crash(self, name: str, *, power_cut: bool = True) -> None:
        """The node ends at once: its tasks, its connections, and what is not synced unless only the process dies."""
        node = self.nodes[name]
        check(node.run is not None, "node %s does not run", name)
        if power_cut:
            node.disk.power_cut()
        else:
            node.disk.process_crash()
        self._crashed(name)

    def _crashed(self, name: str) -> None:
        node = self.nodes[name]
        run = node.run
        if run is None:
            return
        self.trace(name, "crashes")
        node.run = None
        self.network.kill(name)
        self.loop.resume(run)
        self._cancel(run, BURIAL_TURNS)

    def _cancel(self, run: NodeRun, turns: int) -> None:
        """Its disk and network are gone: what its tasks do on their way out has no effect."""
        pending = [task for task in list(run.tasks) if not task.done()]
        if pending and turns > 0:
            for task in pending:
                task.cancel()
            self._spare_context().run(self.loop.call_soon, self._cancel, run, turns - 1)
            return
        if pending:
            self._failures.append(NodeFailed(f"{run}: {pending} did not end when the node crashed"))
        self.loop.bury(run)

    @staticmethod
    def _spare_context() -> Any:
        context = copy_context()
        context.run(NODE_RUN.set, None)
        return context

    def _ended(self, node: _Node, run: NodeRun, task: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        node.ended.append(error)
        if node.run is not run:
            return
        self.trace(node.name, "ends", type(error).__name__)
        if error is not None and not isinstance(error, asyncio.CancelledError | PowerCut):
            self._failed(node.name, error)
        node.disk.process_crash()
        self._crashed(node.name)

    def _failed(self, name: str, error: BaseException) -> None:
        if not self.expected(name, error):
            failure = NodeFailed(f"seed {self.seed}, {self.loop.time():.3f} s, {name}: {error!r}")
            failure.__cause__ = error
            self._failures.append(failure)

    def _loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG002
        error = context.get("exception")
        run = NODE_RUN.get()
        if isinstance(error, PowerCut) or (
            run is not None and run.name in self.nodes and self.nodes[run.name].run is not run
        ):
            return
        if not isinstance(error, BaseException):
            error = RuntimeError(str(context.get("message")))
        self._failed(run.name if run is not None else "the simulation", error)

    # --- running ------------------------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task beside the nodes: a client, a fault script. Its exceptions end `run_until`."""
        task = self.loop.create_task(coroutine, context=self._spare_context())
        self._spawned[task] = None
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[Any]) -> None:
        self._spawned.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            if error is not None:
                self._failures.append(error)

    def run_until(self, until: float | Callable[[], bool], limit_ms: float = 600_000.0) -> None:
        """Run for `until` virtual milliseconds, or until a condition holds.

        Raises SimulationTimeout where it does not within `limit_ms`, and what a node or a spawned task raised.
        """
        condition: Callable[[], bool] | None = None
        if callable(until):
            condition, duration_ms = until, limit_ms
        else:
            duration_ms = until
        self._condition = condition
        self._reached = False
        stop = self.loop.call_later(duration_ms / 1000, self.loop.stop)
        try:
            self.loop.run_forever()
        finally:
            stop.cancel()
            self._condition = None
        if self._failures:
            raise self._failures.pop(0)
        if condition is not None and not self._reached:
            raise SimulationTimeout(f"seed {self.seed}: not reached within {limit_ms:.0f} virtual ms")

    def run(self, coroutine: Coroutine[Any, Any, T], limit_ms: float = 600_000.0) -> T:
        """Run a client's coroutine to its end."""
        task = self.spawn(coroutine)
        self.run_until(task.done, limit_ms)
        return task.result()

    def _turn(self) -> None:
        if self.check_turn is not None:
            try:
                self.check_turn()
            except Exception as error:
                self._failures.append(error)
        if self._failures or (self._condition is not None and self._condition()):
            self._reached = not self._failures
            self.loop.stop()

    def close(self) -> None:
        """End every node and task, and the loop."""
        self.check_turn = None
        for name, node in self.nodes.items():
            if node.run is not None:
                self.crash(name, power_cut=False)
        for task in list(self._spawned):
            task.cancel()
        self._failures.clear()
        for _ in range(BURIAL_TURNS):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            if not asyncio.all_tasks(self.loop):
                break
        self.loop.set_turn(None)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
