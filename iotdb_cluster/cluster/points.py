"""Reads of points at the leader of a data group: aggregations, single points, and scans with cursors.

A cursor pins the files and memtables that it began with. It ends when it is read out, closed, idle for too long, or
the oldest where there are too many; a pull from one that has ended is a clear error, never less data.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.columns import RowBatch
from iotdb_cluster.data import NotReady
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import CURSOR_IDLE_MS_MAX, CURSORS_MAX
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.query import codec
from iotdb_cluster.query.fragments import Unit, aggregate, last, nearest, scan
from iotdb_cluster.query.requests import Aggregate, Last, Nearest, OpenScan, Pull, Request
from iotdb_cluster.world import World

__all__ = ["PointServing"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
DECODE_INLINE_BYTES = 64 * 1024  # longer requests are decoded on a worker
_ONE_PULL = Pull((0,))


@dataclass(slots=True)
class _Cursor:
    pins: ExitStack
    rows: Iterator[RowBatch]
    used_ms: float
    group: int
    busy: bool = False


class PointServing:
    """The handlers `points`, `scan open`, `scan pull` and `scan close`."""

    def __init__(self, world: World, driver: Driver, machines: dict[int, DataMachine], settings: Settings) -> None:
        self._world = world
        self._driver = driver
        self._settings = settings
        self._machines = machines
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()
        self._next = 1
        self._ended: OrderedDict[int, str] = OrderedDict()  # why the last cursors that did not end by themselves did

    def register(self, calls: Calls) -> None:
        calls.handlers.update(
            {
                "points": self.points,
                "scan open": self.open_scan,
                "scan pull": self.pull,
                "scan close": self.close_scans,
            }
        )

    @property
    def open_cursors(self) -> int:
        return len(self._cursors)

    async def _units(self, head: Any, pins: ExitStack, deadline: Deadline) -> list[Unit]:
        """The pinned units that the call names, in order of time; those without any point are left out."""
        number = int(head["group"])
        await barrier_at_leader(self._driver, number, head["consistency"], deadline, self._settings.read_lag_max)
        data = self._machines[number].data
        interval = int(head["interval"])
        units: list[Unit] = []
        for partition, slot, epoch in sorted(head["units"]):
            try:
                reader = data.reader(int(head["storage_group"]), partition, slot, epoch, int(head["schema_epoch"]))
            except NotReady as refusal:
                if not refusal.unit_closed:
                    raise
                continue
            except CorruptData as damage:
                raise self._absent(number, damage) from None
            pins.callback(reader.close)
            units.append(Unit(reader, partition * interval, (partition + 1) * interval - 1))
        return units

    async def _request(self, body: memoryview) -> Request:
        if len(body) <= DECODE_INLINE_BYTES:
            return codec.decode_request(body)
        return await self._world.workers.run(codec.decode_request, body)

    async def points(self, body: memoryview, deadline: Deadline) -> bytes:
        """Aggregate, Last or Nearest over the units named."""
        head, buffers = unpack(body)
        request = await self._request(buffers[0])
        pins = ExitStack()
        try:
            units = await self._units(head, pins, deadline)
        except BaseException:
            pins.close()
            raise
        try:
            return await self._on_worker(pins.close, _compute, units, request)
        except CorruptData as damage:
            raise self._absent(int(head["group"]), damage) from None

    def _absent(self, number: int, damage: CorruptData) -> CallerError:
        """Points cannot be read here: tried again until another member leads, or the unit is whole again."""
        logger.warning("group %d: a read meets damage: %s", number, damage)
        if self._machines[number].alone:
            return CallerError(Status.INTERNAL_SERVER_ERROR, f"a file is damaged, and there is no other copy: {damage}")
        return NotReady(f"group {number}: a file of this replica is damaged, it is fetched from another: try again")

    async def _on_worker(self, ended: Callable[[], None], work: Callable[..., T], *args: Any) -> T:
        """Run on a worker; `ended` is called when the worker is done, also where the caller is cancelled before that.

        What a worker still reads must stay pinned: a file that is closed under it gives another file's bytes.
        """
        running = asyncio.ensure_future(self._world.workers.run(work, *args))

        def done(work_done: asyncio.Future[T]) -> None:
            if not work_done.cancelled():
                work_done.exception()  # the caller may be gone: then nobody else looks at it
            ended()

        running.add_done_callback(done)
        return await asyncio.shield(running)

    async def open_scan(self, body: memoryview, deadline: Deadline) -> bytes:
        head, buffers = unpack(body)
        request = await self._request(buffers[0])
        if not isinstance(request, OpenScan):
            raise CallerError(Status.INTERNAL_SERVER_ERROR, f"a scan cannot be opened by {type(request).__name__}")
        self.expire()
        pins = ExitStack()
        try:
            units = await self._units(head, pins, deadline)
        except BaseException:
            pins.close()
            raise
        rows = scan(units, request.series, request.low, request.high, request.ascending, request.batch_rows)
        number = self._next
        self._next += 1
        self._cursors[number] = _Cursor(pins, rows, self._world.clock.monotonic_ms(), int(head["group"]))
        return pack({"cursor": number})

    async def pull(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        number = int(head["cursor"])
        cursor = self._cursors.get(number)
        if cursor is None or cursor.busy:
            why = self._ended.get(number, "it was idle too long, or its node restarted")
            raise CallerError(Status.QUERY_ID_NOT_EXIST, f"the query's cursor has ended ({why}): run the query again")
        cursor.busy = True

        def rested() -> None:
            cursor.busy = False
            if number not in self._cursors:  # it was ended meanwhile
                cursor.pins.close()

        try:
            encoded, more = await self._on_worker(rested, _pull_one, cursor.rows)
        except CorruptData as damage:
            self._end(number)
            # Where there are other copies the statement may begin anew, if no row was sent yet.
            raise self._absent(cursor.group, damage) from None
        except BaseException:
            self._end(number)
            raise
        cursor.used_ms = self._world.clock.monotonic_ms()
        if not more:
            self._end(number)
        elif number in self._cursors:
            self._cursors.move_to_end(number)
        return encoded

    async def close_scans(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        for number in head["cursors"]:
            self._end(int(number))
        return pack(None)

    def _end(self, number: int) -> None:
        cursor = self._cursors.pop(number, None)
        if cursor is not None and not cursor.busy:  # else its worker's end does the rest
            cursor.pins.close()

    def end_oldest(self, why: str) -> None:
        """End the cursor that was opened first; who pulls from it hears why."""
        number = min(self._cursors, default=0)
        if number:
            self._end_because(number, why)

    def end_group(self, group: int, why: str) -> None:
        """End the cursors of a group; who pulls from one hears why."""
        for number in [number for number, cursor in self._cursors.items() if cursor.group == group]:
            self._end_because(number, why)

    def _end_because(self, number: int, why: str) -> None:
        self._end(number)
        self._ended[number] = why
        while len(self._ended) > CURSORS_MAX:
            self._ended.popitem(last=False)

    def expire(self) -> None:
        """End cursors that are idle for too long, and the oldest where there are too many."""
        now = self._world.clock.monotonic_ms()
        for number, cursor in list(self._cursors.items()):
            if cursor.busy:
                continue
            idle = now - cursor.used_ms > CURSOR_IDLE_MS_MAX
            if not idle and len(self._cursors) < CURSORS_MAX:
                return
            self._end(number)

    def close(self) -> None:
        for number in list(self._cursors):
            self._end(number)


def _pull_one(rows: Iterator[RowBatch]) -> tuple[bytes, bool]:
    """(the answer to a pull, whether more can follow)."""
    batch = next(rows, None)
    return codec.encode_answer(_ONE_PULL, [batch]), batch is not None


def _compute(units: list[Unit], request: Request) -> bytes:
    answer: Any
    if isinstance(request, Aggregate):
        answer = aggregate(units, request.series, request.needs, request.starts, request.ends)
    elif isinstance(request, Last):
        answer = last(units, request.series, request.low)
    elif isinstance(request, Nearest):
        answer = nearest(units, request.series, request.time, request.low, request.high)
    else:
        raise CallerError(Status.INTERNAL_SERVER_ERROR, f"{type(request).__name__} is no read of points")
    return codec.encode_answer(request, answer)
