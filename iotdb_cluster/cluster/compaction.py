"""Compaction on a node: one job at a time, a storage group of each data group in turn, at bounded speed.

A job works in steps on a worker thread; the pauses between them keep it below `compaction_bytes_per_s`. Nothing that it
does changes an answer, and a job that is given up half-way leaves a file that no manifest names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.room import disk_is_full
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.errors import CorruptData, SystemFault
from iotdb_cluster.limits import MIB
from iotdb_cluster.meta import StorageGroup
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.query.requests import MergeInfo
from iotdb_cluster.storage import CompactionJob, MergeRequest, Store, UnitId
from iotdb_cluster.world import World

__all__ = ["MERGE_CALL", "Compaction"]

logger = logging.getLogger(__name__)

MERGE_CALL = "merge"
PAUSE_MS = 200  # behind a round in which something was done
IDLE_MS = 2_000  # between two looks for files to merge
STEP_BYTES = 1 * MIB


@dataclass(slots=True)
class _Running:
    job: CompactionJob
    since_ms: int


class Compaction:
    """Merges chunk files, and removes those that nobody reads any more.

    `flush(group)` puts a group's memtables on disk; `collect(group)` removes its garbage.
    """

    def __init__(
        self,
        world: World,
        settings: Settings,
        machines: dict[int, DataMachine],
        flush: Callable[[int], Awaitable[object]],
        collect: Callable[[int], Awaitable[None]],
        path_of: Callable[[int], StorageGroup | None],
    ) -> None:
        self._world = world
        self._settings = settings
        self._machines = machines
        self._flush = flush
        self._collect = collect
        self._path_of = path_of
        self._asked = asyncio.Event()
        self._request = MergeRequest.NONE
        self._asked_at_ms = 0
        self._running: _Running | None = None

    def register(self, calls: Calls) -> None:
        calls.handlers[MERGE_CALL] = self._merge_call

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            busy = False
            await self._take_request()
            for number, machine in list(self._machines.items()):
                if self._machines.get(number) is not machine:
                    continue
                store = machine.data.store
                job = store.pick(self._world.clock.monotonic_ms())
                if job is not None:
                    busy = True
                    await self._carry_out(store, job)
                    await self._collect(number)
            try:
                async with asyncio.timeout((PAUSE_MS if busy else IDLE_MS) / 1000):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _take_request(self) -> None:
        """A FULL MERGE begins with what is in memory, which it would have to leave out."""
        self._asked.clear()
        request, self._request = self._request, MergeRequest.NONE
        if not request:
            return
        for number, machine in list(self._machines.items()):
            if request is MergeRequest.FULL:
                await self._flush(number)
            machine.data.store.request_merge(request)

    async def _carry_out(self, store: Store, job: CompactionJob) -> None:
        begun_ms = self._world.clock.monotonic_ms()
        self._running = _Running(job, self._world.clock.wall_ms())
        try:
            while not await self._step(job):
                due_ms = begun_ms + 1000 * job.written / self._settings.compaction_bytes_per_s
                await asyncio.sleep(max(0.0, due_ms - self._world.clock.monotonic_ms()) / 1000)
        except CorruptData as error:
            if not job.is_void:
                store.note_damage(job.unit, str(error))
            logger.error("unit %s is damaged and not compacted: %s", job.unit, error)
        except SystemFault as error:
            if not disk_is_full(error):
                raise
            logger.warning("unit %s is not compacted: %s", job.unit, error)
            await asyncio.sleep(IDLE_MS / 1000)
        finally:
            self._running = None
            job.finish()

    async def _step(self, job: CompactionJob) -> bool:
        """Whoever is cancelled waits until the worker is done: the job is finished on the loop afterwards."""
        step = asyncio.ensure_future(self._world.workers.run(job.step, STEP_BYTES))
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            await asyncio.wait([step])
            raise

    # --- MERGE, SHOW MERGE --------------------------------------------------------------------------------------------

    async def _merge_call(self, body: memoryview, deadline: Deadline) -> bytes:
        """Answered at once: the work goes on in the background, and shows in SHOW MERGE."""
        del deadline
        head, _ = unpack(body)
        self._request = max(self._request, MergeRequest.FULL if head["full"] else MergeRequest.OVERLAPPING)
        self._asked_at_ms = self._world.clock.wall_ms()
        self._asked.set()
        return pack(None)

    def tasks(self) -> list[MergeInfo]:
        """What is being merged here, and what was asked for and waits."""
        found: list[MergeInfo] = []
        running = self._running
        if running is not None:
            job = running.job
            done = min(99, 100 * job.written // max(1, job.bytes))
            found.append(self._info(job.unit, f"{job.files}-files", running.since_ms, f"{done}%"))
        for machine in self._machines.values():
            waiting = [
                unit for unit in machine.data.store.merges_asked() if running is None or unit != running.job.unit
            ]
            found += [self._info(unit, "waiting", self._asked_at_ms, "0%") for unit in waiting]
        return sorted(found, key=lambda one: (one.storage_group, one.task))

    def _info(self, unit: UnitId, what: str, since_ms: int, progress: str) -> MergeInfo:
        group = self._path_of(unit.storage_group_id)
        path = f"storage group {unit.storage_group_id}" if group is None else group.path
        return MergeInfo(path, f"{path}-{unit.partition}-{what}", since_ms, progress)
