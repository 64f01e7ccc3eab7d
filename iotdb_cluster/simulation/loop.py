"""An event loop with virtual time: where nothing is ready, the clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["NODE_RUN", "DeadSimulation", "NodeRun", "VirtualLoop"]


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
        self.held: list[tuple[asyncio.Handle, contextvars.Context, Callable[..., Any], tuple[Any, ...]]] = []
        self.tasks: dict[asyncio.Future[Any], None] = {}  # in the order of their making

    def __repr__(self) -> str:
        return f"{self.name}#{self.number}"


NODE_RUN: contextvars.ContextVar[NodeRun | None] = contextvars.ContextVar("NODE_RUN", default=None)


class _Selector:
    """Stands where the operating system's would: waiting is adding to the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turn: Callable[[], None] | None = None

    def select(self, timeout: float | None) -> list[Any]:
        if self.turn is not None:
            self.turn()
        if timeout is None:
            raise DeadSimulation(f"nothing can happen any more after {self.now:.6f} s")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Time is in virtual seconds from 0. Callbacks and tasks of a node run that has died are dropped.

    `executor_delay` gives the seconds until a function that was handed to an executor runs (inline, in the loop).
    """

    _selector: _Selector

    def __init__(self, executor_delay: Callable[[], float] = lambda: 0.001) -> None:
        super().__init__()
        self._selector = _Selector()
        self._clock_resolution = 1e-9
        self._executor_delay = executor_delay
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._selector.now

    def set_turn(self, turn: Callable[[], None] | None) -> None:
        """Call this before every turn of the loop."""
        self._selector.turn = turn

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
        if run is None:
            return super().call_soon(callback, *args, context=context)
        if context is None:
            context = contextvars.copy_context()
        own: list[asyncio.Handle] = []
        handle = super().call_soon(self._unless_paused, run, own, context, callback, args, context=context)
        own.append(handle)
        if not run.alive:
            handle.cancel()
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        run = NODE_RUN.get() if context is None else context.get(NODE_RUN)
        if run is None:
            return super().call_at(when, callback, *args, context=context)
        if context is None:
            context = contextvars.copy_context()
        own: list[asyncio.Handle] = []
        handle = super().call_at(when, self._unless_paused, run, own, context, callback, args, context=context)
        own.append(handle)
        if not run.alive:
            handle.cancel()
        return handle

    @staticmethod
    def _unless_paused(
        run: NodeRun,
        own: list[asyncio.Handle],
        context: contextvars.Context,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        """`own` holds the handle that this is the callback of: it may be cancelled still while it is held back."""
        if run.paused:
            run.held.append((own[0], context, callback, args))
        elif not own.pop().cancelled():  # popped: it would hold itself
            callback(*args)

    def resume(self, run: NodeRun) -> None:
        """Let a paused node run go on with what was held back, in the order in which it became due."""
        run.paused = False
        held, run.held = run.held, []
        for handle, context, callback, args in held:
            super().call_soon(self._unless_paused, run, [handle], context, callback, args, context=context)

    def bury(self, run: NodeRun) -> None:
        """Drop everything that a node run has scheduled, and whatever it will."""
        run.alive = False
        run.held.clear()
        for handle in [*self._ready, *self._scheduled]:  # type: ignore[attr-defined]
            if handle._context.get(NODE_RUN) is run:
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
