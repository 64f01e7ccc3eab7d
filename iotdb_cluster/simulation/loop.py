"""An event loop with virtual time: where nothing is ready, the clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

__all__ = ["NODE_RUN", "DeadSimulation", "NodeRun", "VirtualLoop"]

RESOLUTION_S: Final = 1e-9  # timers so near to each other are due together


class DeadSimulation(Exception):
    """Nothing is ready and no timer is set, so nothing can ever happen again."""


class NodeRun:
    """One life of a node, from a start to a crash. What it scheduled carries it in its context.

    While it is paused, what becomes due is held back: the process is stopped, and the world goes on.
    """

    __slots__ = ("alive", "held", "name", "number", "paused", "tasks")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.alive = True
        self.paused = False
        self.held: list[_Handle | _TimerHandle] = []
        self.tasks: dict[asyncio.Future[Any], None] = {}  # in the order of their making

    def __repr__(self) -> str:
        return f"{self.name}#{self.number}"


NODE_RUN: contextvars.ContextVar[NodeRun | None] = contextvars.ContextVar("NODE_RUN", default=None)


class _Selector:
    """Stands where the operating system's would: nothing is ever waited for."""

    def select(self, timeout: float | None) -> list[Any]:  # noqa: ARG002
        return []


class _Handle(asyncio.Handle):
    """A callback that is ready, and whose it is."""

    __slots__ = ("run",)
    run: NodeRun | None


class _TimerHandle(asyncio.TimerHandle):
    """A callback that becomes ready at some time, and whose it is."""

    __slots__ = ("run",)
    run: NodeRun | None


class VirtualLoop(asyncio.BaseEventLoop):
    """Time is in virtual seconds from 0. Callbacks and tasks of a node run that has died are dropped.

    `executor_delay` gives the seconds until a function that was handed to an executor runs (inline, in the loop).

    A turn of the loop is much of what a simulated second costs, so it is our own: timers stand in a heap of tuples,
    those of one moment in the order of their making.
    """

    _selector: _Selector

    def __init__(self, executor_delay: Callable[[], float] = lambda: 0.001) -> None:
        super().__init__()
        self._selector = _Selector()
        self._now = 0.0
        self._turn: Callable[[], None] | None = None
        self._ready: deque[_Handle | _TimerHandle] = deque()
        self._timers: list[tuple[float, int, _TimerHandle]] = []
        self._timers_made = count()
        self._executor_delay = executor_delay
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._now

    def set_turn(self, turn: Callable[[], None] | None) -> None:
        """Call this before every turn of the loop."""
        self._turn = turn

    def _run_once(self) -> None:
        """One turn: where nothing is ready, the clock jumps to the next timer; then everything ready runs."""
        if self._turn is not None:
            self._turn()
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise DeadSimulation(f"nothing can happen any more after {self._now:.6f} s")
            self._now = max(self._now, timers[0][0])
        due = self._now + RESOLUTION_S
        while timers and timers[0][0] < due:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if handle.run is not None and handle.run.paused:
                handle.run.held.append(handle)
            else:
                handle._run()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]  # noqa: ARG002
        return self.run_later(func, *args, before=self._executor_delay(), after=0.0)

    def run_later(self, work: Callable[..., Any], *args: Any, before: float, after: float) -> asyncio.Future[Any]:
        """Do the work `before` seconds from now, also where nobody waits for it; its outcome is known `after` that."""
        future: asyncio.Future[Any] = self.create_future()

        def deliver(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def run() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = work(*args)
            except BaseException as exception:
                error = exception
            self.call_later(after, deliver, result, error)

        self.call_later(before, run)
        return future

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        run = NODE_RUN.get() if context is None else context.get(NODE_RUN)
        handle = _Handle(callback, args, self, context)
        handle.run = run
        if run is not None and not run.alive:
            handle.cancel()
        else:
            self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        run = NODE_RUN.get() if context is None else context.get(NODE_RUN)
        handle = _TimerHandle(when, callback, args, self, context)
        handle.run = run
        if run is not None and not run.alive:
            handle.cancel()
        else:
            heappush(self._timers, (when, next(self._timers_made), handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def resume(self, run: NodeRun) -> None:
        """Let a paused node run go on with what was held back, in the order in which it became due."""
        run.paused = False
        self._ready.extend(run.held)
        run.held.clear()

    def bury(self, run: NodeRun) -> None:
        """Drop everything that a node run has scheduled, and whatever it will."""
        run.alive = False
        run.held.clear()
        for handle in [*self._ready, *(timer for _, _, timer in self._timers)]:
            if handle.run is run:
                handle.cancel()

    @staticmethod
    def _make_task(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        context = options.get("context")
        run = NODE_RUN.get() if context is None else context.get(NODE_RUN)
        if run is not None:
            run.tasks[task] = None
            task.add_done_callback(lambda done: run.tasks.pop(done, None))
        return task

    def _process_events(self, event_list: Any) -> None:
        """There are none: the network is in memory."""

    def _write_to_self(self) -> None:
        """Nothing has to be woken: there is one thread."""
