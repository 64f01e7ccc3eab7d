"""A node in this process whose event loop notes how long each callback kept it, in CPU time of the loop's thread."""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio.events import Handle
from pathlib import Path
from typing import Any

from iotdb_cluster.cluster.node import Node
from iotdb_cluster.tools.arguments import parse_arguments, read_settings
from iotdb_cluster.world import real_world

START_S_MAX = 60


def _told(handle: Handle) -> str:
    """The callback, and the task where it is one's next step."""
    task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return repr(task)[:400] if isinstance(task, asyncio.Task) else repr(handle)[:400]


class WatchedNode:
    """Serves on a thread until the end of the `with` block; `longest` since `forget` is (ms, what it was)."""

    def __init__(self, directory: Path) -> None:
        self._settings = read_settings(parse_arguments(["-c", str(directory / "conf"), "-home", str(directory)]))
        self._thread = threading.Thread(target=self._run, name="watched node")
        self._serves = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._node: Node | None = None
        self._failure: BaseException | None = None
        self.longest: tuple[float, str] = (0.0, "")

    def forget(self) -> None:
        self.longest = (0.0, "")

    def __enter__(self) -> WatchedNode:
        self._plain = Handle._run
        watched, plain = self, self._plain

        def run(handle: Handle) -> None:
            if threading.current_thread() is not watched._thread:
                plain(handle)
                return
            began = time.thread_time()
            plain(handle)
            took_ms = (time.thread_time() - began) * 1_000
            if took_ms > watched.longest[0]:
                watched.longest = (took_ms, _told(handle))

        Handle._run = run  # type: ignore[method-assign]
        self._thread.start()
        assert self._serves.wait(START_S_MAX), "the node does not serve"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._node is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._node.request_stop)
        self._thread.join(START_S_MAX)
        Handle._run = self._plain  # type: ignore[method-assign]

    def _run(self) -> None:
        try:
            with asyncio.Runner(debug=False, loop_factory=asyncio.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # told by the thread that waits
            self._failure = error
        finally:
            self._serves.set()

    async def _serve(self) -> None:
        world = real_world()
        self._loop = asyncio.get_running_loop()
        settings: Any = self._settings.settings
        self._node = Node(world, settings, {})
        try:
            await self._node.run(on_serving=self._serves.set)
        finally:
            world.workers.close()
