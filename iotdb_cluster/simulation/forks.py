"""Many endings of one run: the process forks where they part, and each child hands back what it found."""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["Forks"]

READ_BYTES = 1 << 16


class Forks:
    """Children of this process, `jobs` at once, each at most `limit_s` seconds old.

    `told(key, answer, status)` hears of each child that has ended: its answer, empty where it gave none, and the wait
    status of its process.
    """

    def __init__(self, jobs: int, limit_s: int, told: Callable[[Any, bytes, int], None]) -> None:
        self._jobs = jobs
        self._limit_s = limit_s
        self._told = told
        self._ends = selectors.DefaultSelector()
        self._answer_to = -1

    @property
    def is_child(self) -> bool:
        return self._answer_to >= 0

    def fork(self, key: Any) -> bool:
        """Go on twice: True in the child, which must end with `answer`. Waits while too many children run."""
        while len(self._ends.get_map()) >= self._jobs:
            self._reap()
        loop = asyncio.events._get_running_loop()
        gc.freeze()  # collections of the children need not copy the pages of what is common
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            self._ends.register(reading, selectors.EVENT_READ, (pid, key, bytearray()))
            return False
        signal.alarm(self._limit_s)
        asyncio.events._set_running_loop(loop)  # which asyncio forgets in a new process
        self._answer_to = writing
        return True

    def answer(self, answer: bytes) -> None:
        """Hand back what was found, and end this child at once: nothing is closed, flushed or cleaned up."""
        while answer:
            answer = answer[os.write(self._answer_to, answer) :]
        os._exit(0)

    def _reap(self) -> None:
        for found, _ in self._ends.select():
            pid, key, answer = found.data
            data = os.read(found.fd, READ_BYTES)
            if data:
                answer += data
                continue
            self._ends.unregister(found.fd)
            os.close(found.fd)
            _, status = os.waitpid(pid, 0)
            self._told(key, bytes(answer), status)

    def wait(self) -> None:
        """Until every child has ended."""
        while self._ends.get_map():
            self._reap()
