"""Queries at the coordinator and cursors at the data groups: time-outs, cancellations and ends never meet a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from iotdb_cluster.auth import AuthState, Privilege
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.points import PointServing, _Cursor
from iotdb_cluster.cluster.queries import Queries, _Runner, _Running
from iotdb_cluster.cluster.statement_reads import Interrupted, StatementReads
from iotdb_cluster.cluster.statement_reads import _Cursor as _RemoteCursor
from iotdb_cluster.columns import DataType, RowBatch
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import CURSOR_IDLE_MS_MAX
from iotdb_cluster.packing import pack
from iotdb_cluster.query.requests import CloseScan, MatchSeries, OpenScan, Pull, RunningQuery, SeriesInfo, Steps
from iotdb_cluster.simulation import VirtualLoop
from iotdb_cluster.sql import ParseContext, parse
from tests.cluster.shell import run_virtual, world_of


class SlowWorkers:
    """The work begins at once and its end is noticed after `seconds`: between the two it counts as running."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.running = 0

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.running += 1

        def ended() -> Any:
            self.running -= 1
            return work(*args)

        return await loop.run_later(ended, before=self.seconds, after=0.0)

    def close(self) -> None:
        """Nothing is held."""


def slow_world(seconds: float) -> tuple[Any, SlowWorkers]:
    world = world_of(1)
    workers = SlowWorkers(seconds)
    return SimpleNamespace(clock=world.clock, random=world.random, files=world.files, workers=workers), workers


# --- cursors ----------------------------------------------------------------------------------------------------------


def serving(world: Any, batches: int = 3) -> tuple[PointServing, list[int]]:
    """Cursor 1 with some batches; what is appended to the list when its pins are let go is how many workers run."""
    points = PointServing(world, None, {}, SimpleNamespace(read_lag_max=0))  # type: ignore[arg-type]
    pins = ExitStack()
    let_go: list[int] = []
    pins.callback(lambda: let_go.append(world.workers.running))

    def rows() -> Iterator[RowBatch]:
        for at in range(batches):
            yield RowBatch(np.array([at], np.int64), [])

    points._cursors[1] = _Cursor(pins, rows(), world.clock.monotonic_ms(), 1)
    return points, let_go


@pytest.mark.parametrize("how", ["cancelled", "closed", "both"])
def test_a_cursor_that_ends_while_a_worker_reads_stays_pinned_until_the_worker_is_done(how: str) -> None:
    async def main() -> None:
        world, workers = slow_world(1.0)
        points, let_go = serving(world)
        body = memoryview(pack({"cursor": 1}))
        pull = asyncio.create_task(points.pull(body, Deadline(world, 1_000)))
        await asyncio.sleep(0.1)
        if how != "closed":
            pull.cancel()
        if how != "cancelled":
            await points.close_scans(memoryview(pack({"cursors": [1]})), Deadline(world, 1_000))
        await asyncio.sleep(0.1)
        assert workers.running == 1
        assert not let_go
        assert points.open_cursors == 0
        await asyncio.gather(pull, return_exceptions=True)
        await asyncio.sleep(1)
        assert let_go == [0]
        with pytest.raises(CallerError, match="run the query again"):
            await points.pull(body, Deadline(world, 1_000))

    run_virtual(main)


def test_a_cursor_is_read_to_its_end_and_lets_go_once() -> None:
    async def main() -> None:
        world, _ = slow_world(0.001)
        points, let_go = serving(world)
        for _ in range(4):
            assert points.open_cursors == 1
            await points.pull(memoryview(pack({"cursor": 1})), Deadline(world, 1_000))
        assert points.open_cursors == 0
        assert let_go == [0]

    run_virtual(main)


def test_idle_cursors_end_behind_a_busy_one() -> None:
    async def main() -> None:
        world, _ = slow_world(0.001)
        points, let_go = serving(world)
        points._cursors[1].busy = True
        points._cursors[2] = _Cursor(ExitStack(), iter(()), world.clock.monotonic_ms(), 1)
        await asyncio.sleep(CURSOR_IDLE_MS_MAX / 1000 + 1)
        points.expire()
        assert list(points._cursors) == [1]
        assert not let_go

    run_virtual(main)


def test_an_aggregation_that_is_cancelled_keeps_its_pins_until_the_worker_is_done() -> None:
    async def main() -> None:
        world, workers = slow_world(1.0)
        points, _ = serving(world)
        ended: list[int] = []
        task = asyncio.create_task(points._on_worker(lambda: ended.append(workers.running), lambda: 1 // 0))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not ended
        await asyncio.sleep(1)
        assert ended == [0]

    run_virtual(main)


# --- the runner -------------------------------------------------------------------------------------------------------


def series(path: str) -> SeriesInfo:
    device, _, measurement = path.rpartition(".")
    return SeriesInfo(path, device, measurement, DataType.INT64, "root.sg", 1)


class FakeReads:
    def __init__(self, auth: AuthState | None = None, known: tuple[str, ...] = ()) -> None:
        self.auth = auth or AuthState()
        self.known = known

    def extend(self, deadline: Deadline) -> None:
        """No matter."""

    async def answer(self, request: Any) -> Any:
        if isinstance(request, MatchSeries):
            return [[series(path) for path in self.known]]
        await asyncio.sleep(0.001)
        return [None]


def runner(world: Any, reads: FakeReads, text: str = "select s1 from root.sg.d1", user: str = "root") -> _Runner:
    statement = parse(text, ParseContext())
    return _Runner(world, reads, _Running(RunningQuery(0, 1, text)), user, statement, 500)  # type: ignore[arg-type]


def test_a_time_out_waits_for_the_worker_before_it_closes_the_generator() -> None:
    async def main() -> None:
        world, workers = slow_world(2.0)
        closed: list[int] = []

        def steps() -> Steps[int]:
            try:
                yield Pull((1,))
                return 1
            finally:
                closed.append(workers.running)

        with pytest.raises(CallerError) as caught:
            await runner(world, FakeReads()).run(steps())
        assert caught.value.code == Status.TIME_OUT
        assert closed == [0]

    run_virtual(main)


def test_a_client_that_goes_cancels_only_after_the_worker() -> None:
    async def main() -> None:
        world, workers = slow_world(0.3)
        closed: list[int] = []

        def steps() -> Steps[int]:
            try:
                yield Pull((1,))
                yield Pull((1,))
                return 1
            finally:
                closed.append(workers.running)

        task = asyncio.create_task(runner(world, FakeReads()).run(steps()))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == [0]

    run_virtual(main)


def reader_of(*paths: str) -> AuthState:
    auth = AuthState()
    auth.create_user("user", "hash")
    for path in paths:
        auth.grant_user("user", [Privilege.READ_TIMESERIES], path)
    return auth


def asks(*read: str) -> Steps[str]:
    yield MatchSeries(("root.sg.d1",))
    if read:
        yield OpenScan(tuple(map(series, read)), 0, 9, True, 10)
    return "done"


@pytest.mark.parametrize(
    ("text", "read", "allowed"),
    [
        ("select s1 from root.sg.d1", ["root.sg.d1.s1"], False),
        ("select s1 from root.sg.d1 align by device", ["root.sg.d1.s1"], True),
        ("select s1 from root.sg.d1 align by device", ["root.sg.d1.s1", "root.sg.d1.s2"], False),
        ("  show timeseries root.sg.d1", [], True),
        ("count timeseries root.sg.d1", [], True),
    ],
)
def test_a_user_reads_what_is_granted_and_no_more(text: str, read: list[str], allowed: bool) -> None:
    async def main() -> None:
        world, _ = slow_world(0.001)
        reads = FakeReads(reader_of("root.sg.d1.s1"), ("root.sg.d1.s1", "root.sg.d1.s2"))
        running = runner(world, reads, text, "user").run(asks(*read))
        if allowed:
            assert await running == "done"
            return
        with pytest.raises(CallerError) as caught:
            await running
        assert caught.value.code == Status.NO_PERMISSION

    run_virtual(main)


def test_a_killed_query_ends_at_its_next_step() -> None:
    async def main() -> None:
        world, _ = slow_world(0.001)
        queries = Queries(world, None, "v")  # type: ignore[arg-type]
        entry = _Running(RunningQuery(0, 7, "q"))
        queries._running[7] = entry
        assert queries.kill(8) == 0
        assert queries.kill(None) == 1
        statement = parse("select s1 from root.sg.d1", ParseContext())
        one = _Runner(world, FakeReads(), entry, "root", statement, 500)  # type: ignore[arg-type]
        with pytest.raises(CallerError, match="killed"):
            await one.run(asks("root.sg.d1.s1"))

    run_virtual(main)


# --- the reads of a statement -----------------------------------------------------------------------------------------


class FakeCalls:
    def __init__(self, answers: Callable[[int, str, Any], Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[int, str]] = []

    async def call(self, node: int, method: str, body: bytes, deadline: Deadline) -> memoryview:
        deadline.check("x")
        self.asked.append((node, method))
        found = self.answers(node, method, body)
        if isinstance(found, BaseException):
            raise found
        return memoryview(found)


def reads_with(world: Any, calls: FakeCalls, limit_ms: float = 1_000) -> StatementReads:
    settings = SimpleNamespace(consistency="strong", partition_interval_ms=100, float_precision=2)
    services = SimpleNamespace(
        world=world, calls=calls, settings=settings, meta=None, catalog=SimpleNamespace(version=1), leaders=None
    )
    reads = StatementReads(services, Deadline(world, limit_ms), 0)  # type: ignore[arg-type]
    for number, node in ((1, 1), (2, 2), (3, 2)):
        reads._cursors[number] = _RemoteCursor(node, number * 10, (0,))
    return reads


def test_cursors_are_closed_after_the_deadline_too_and_a_node_that_is_down_is_no_failure() -> None:
    async def main() -> None:
        world, _ = slow_world(0.001)
        calls = FakeCalls(lambda node, *_: CallerError(Status.NO_CONNECTION, "down") if node == 1 else pack(None))
        reads = reads_with(world, calls, 10)
        await asyncio.sleep(1)
        await reads.answer(CloseScan((1,)))
        await reads.close()
        assert calls.asked == [(1, "scan close"), (2, "scan close")]
        assert not reads._cursors

    run_virtual(main)


@pytest.mark.parametrize("code", [Status.NO_CONNECTION, Status.NO_LEADER, Status.QUERY_ID_NOT_EXIST])
def test_a_lost_cursor_can_be_told_from_other_failures(code: Status) -> None:
    async def main() -> None:
        world, _ = slow_world(0.001)
        with pytest.raises(Interrupted):
            await reads_with(world, FakeCalls(lambda *_: CallerError(code, "lost"))).answer(Pull((1,)))
        other = FakeCalls(lambda *_: CallerError(Status.INTERNAL_SERVER_ERROR, "bug"))
        with pytest.raises(CallerError) as caught:
            await reads_with(world, other).answer(Pull((1,)))
        assert not isinstance(caught.value, Interrupted)

    run_virtual(main)
