"""Long work that an operator started on a node: one at a time, with its progress for whoever asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.errors import CallerError, InvariantViolation, Status, SystemFault
from iotdb_cluster.world import World

__all__ = ["Job", "Jobs"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """What it does, how far it is (`done` of `total`, in what `unit` names), and how it ended."""

    number: int
    name: str
    since_ms: float
    phase: str = "begins"
    done: int = 0
    total: int = 0
    unit: str = "bytes"
    ended: bool = False
    failure: str = ""
    result: dict[str, Any] | None = None

    def enter(self, phase: str, total: int, unit: str) -> None:
        """A new phase, of which nothing is done yet."""
        self.phase, self.done, self.total, self.unit = phase, 0, total, unit

    def dump(self, now_ms: float) -> dict[str, Any]:
        """For JSON."""
        return {
            "job": self.number,
            "name": self.name,
            "seconds": round((now_ms - self.since_ms) / 1000, 3),
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "ended": self.ended,
            "failure": self.failure,
            "result": self.result,
        }


class Jobs:
    """The job that runs, or the one that ran last. A job's failure is its own: the node goes on.

    `fault(error)` ends the node, where a job finds that something does not hold that must.
    """

    def __init__(self, world: World, fault: Callable[[BaseException], None]) -> None:
        self._world = world
        self._fault = fault
        self._job: Job | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, name: str, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> Job:
        """Begin; 411 where another one runs."""
        if self._job is not None and not self._job.ended:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR, f"a {self._job.name} runs on this node already: wait until it has ended"
            )
        number = 1 if self._job is None else self._job.number + 1
        job = self._job = Job(number, name, self._world.clock.monotonic_ms())
        self._task = asyncio.get_running_loop().create_task(self._run(job, work))
        return job

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> None:
        try:
            job.result = await work(job)
        except CallerError as error:
            job.failure = error.message
        except (SystemFault, OSError) as error:
            job.failure = str(error)
        except Exception as error:
            job.failure = f"a bug of this program: {error!r}"
            logger.exception("%s met a bug", job.name)
            if isinstance(error, InvariantViolation):
                self._fault(error)
        except asyncio.CancelledError:
            job.failure = "the node stopped"
            raise
        finally:
            job.ended = True
            if job.failure:
                logger.warning("%s failed: %s", job.name, job.failure)

    def progress(self) -> dict[str, Any]:
        """Of the job that runs or ran last; 411 where there was none."""
        if self._job is None:
            raise CallerError(Status.QUERY_PROCESS_ERROR, "no job was started on this node")
        return self._job.dump(self._world.clock.monotonic_ms())

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
