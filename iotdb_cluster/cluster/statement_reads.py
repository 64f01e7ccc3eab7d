"""The reads of one statement: each request of a running query, sent to the leaders of the groups concerned.

The storage groups, TTLs and slot owners are fixed when the statement begins (one barrier on the meta group); the series
and partitions of a storage group when its schema slot is first asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from iotdb_cluster.auth import AuthState
from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.catalog import Catalog, Place, StorageGroupRef, reference
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.errors import CallerError, Moved, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.meta import StorageGroup
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.query import codec
from iotdb_cluster.query.partials import Partials, empty, merge
from iotdb_cluster.query.requests import (
    Aggregate,
    CloseScan,
    CountNodes,
    CountSeries,
    CountSeriesByLevel,
    DeviceInfo,
    FlushTasks,
    FlushTasksInfo,
    IsTag,
    Last,
    ListQueries,
    ListStorageGroups,
    MatchChildren,
    MatchDevices,
    MatchSeries,
    MergeInfo,
    MergeTasks,
    Nearest,
    OpenScan,
    Point,
    Pull,
    Request,
    RunningQuery,
    SeriesInfo,
    StorageGroupInfo,
    Stream,
)
from iotdb_cluster.schema import PathPattern, Series
from iotdb_cluster.world import World

__all__ = ["Interrupted", "ReadServices", "StatementReads"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

CLOSE_TIMEOUT_MS = 5_000
DECODE_INLINE_BYTES = 64 * 1024  # longer answers of other nodes are decoded on a worker
SERIES_INLINE_MAX = 500  # series whose descriptions, or parts of an answer, are made on the loop: about 2 ms
PATTERNS_INLINE_MAX = 200  # patterns that are looked up before others may use the loop
MID_TIMEOUT_MS = 1_000  # of the try at a leader at consistency `mid`
_LOST_CODES = (Status.NO_CONNECTION, Status.NO_LEADER, Status.QUERY_ID_NOT_EXIST)
_ONE_PULL = Pull((0,))  # of one stream, whatever its number: answers are decoded by the kind of request


class Interrupted(CallerError):
    """A cursor is lost: while no row was sent the statement may begin anew."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.QUERY_PROCESS_ERROR, message)


@dataclass(frozen=True, slots=True)
class ReadServices:
    """What reads need of their node."""

    world: World
    meta: MetaAccess
    catalog: Catalog
    calls: Calls
    leaders: Leaders
    settings: Settings
    running: Callable[[Deadline], Awaitable[list[RunningQuery]]]  # of all nodes
    flushing: Callable[[Deadline], Awaitable[FlushTasksInfo]]
    merging: Callable[[], list[MergeInfo]]


@dataclass(slots=True)
class _Directory:
    """A storage group's time partitions and the schema epoch under which its series were found."""

    epoch: int
    partitions: list[int]


@dataclass(frozen=True, slots=True)
class _Share:
    """The units of one storage group that one data group owns, by the slots' epochs."""

    group: StorageGroupRef
    owner: int
    units: tuple[tuple[int, int, int], ...]  # (partition, slot, slot epoch), ascending


@dataclass(slots=True)
class _Cursor:
    node: int
    id: int
    columns: tuple[int, ...]


class StatementReads:
    """Answers the requests of one statement; `close` it whatever happens."""

    def __init__(self, services: ReadServices, deadline: Deadline, now_ms: int) -> None:
        self._s = services
        self._deadline = deadline
        self._now_ms = now_ms
        self._consistency = services.settings.consistency
        self._interval = services.settings.partition_interval_ms
        self._directories: dict[int, _Directory] = {}
        self._groups: dict[int, StorageGroupRef] = {}
        self._cursors: dict[int, _Cursor] = {}
        self._streams = 0

    @property
    def auth(self) -> AuthState:
        """Users and their privileges."""
        return self._s.meta.state.auth

    async def begin(self) -> None:
        """Fix what the statement sees of meta."""
        if self._consistency != "weak":
            try:
                limit = self._s.settings.read_timeout_ms if self._consistency == "strong" else MID_TIMEOUT_MS
                await self._s.meta.barrier(self._deadline.within(limit))
            except CallerError:
                if self._consistency == "strong":
                    raise

    def extend(self, limit_ms: float) -> None:
        """A later fetch of the same statement has a time of its own."""
        self._deadline = Deadline(self._s.world, limit_ms, self._deadline.waits)

    async def answer(self, request: Request) -> Any:
        """The answer to a request; raises CallerError. Where slots have moved it is asked anew, at their new owners."""
        handler: Callable[[StatementReads, Any], Awaitable[Any]] = _HANDLERS[type(request)]
        while True:
            seen = self._s.catalog.version
            try:
                return await handler(self, request)
            except Moved:
                if self._deadline.passed:
                    raise
            await self._s.catalog.moved(seen, self._deadline)

    # --- schema -------------------------------------------------------------------------------------------------------

    def _touched(self, *patterns: PathPattern) -> list[StorageGroupRef]:
        found: dict[int, StorageGroup] = {}
        for pattern in patterns:
            for touched in self._s.meta.state.storage_groups_touched(pattern):
                found.setdefault(touched.id, touched)
        groups = [reference(one) for one in sorted(found.values(), key=lambda one: one.path)]
        for group in groups:
            self._groups[group.id] = group
        return groups

    async def _ask(self, groups: Sequence[StorageGroupRef], question: str, **arguments: Any) -> list[Any]:
        """The question's value for each storage group, asked once a data group."""
        by_owner: dict[int, list[tuple[StorageGroupRef, Place]]] = {}
        for group in groups:
            place = self._s.catalog.schema_place(group)
            by_owner.setdefault(place.group, []).append((group, place))
        answers: dict[int, Any] = {}

        async def ask(owner: int, members: list[tuple[StorageGroupRef, Place]]) -> None:
            items = [[group.id, group.path, place.slot, place.epoch] for group, place in members]

            async def attempt(node: int, within: Deadline, consistency: str) -> memoryview:
                head = {
                    "group": owner,
                    "consistency": consistency,
                    "question": question,
                    "storage_groups": items,
                    **arguments,
                }
                return await self._s.calls.call(node, "schema", pack(head), within)

            reply, _ = await self._decoded(unpack, await self._at_leader(owner, attempt))
            for (group, _), item in zip(members, reply, strict=True):
                answers[group.id] = item["value"]
                # The lowest epoch under which any series was found: what was deleted since must not be read as it.
                known = self._directories.get(group.id)
                epoch = int(item["epoch"]) if known is None else min(known.epoch, int(item["epoch"]))
                self._directories[group.id] = _Directory(epoch, list(item["partitions"]))

        await asyncio.gather(*(ask(owner, members) for owner, members in by_owner.items()))
        return [answers[group.id] for group in groups]

    async def _decoded(self, decode: Callable[[memoryview], T], answer: memoryview) -> T:
        """A long answer is decoded on a worker."""
        if len(answer) <= DECODE_INLINE_BYTES:
            return decode(answer)
        return await self._s.world.workers.run(decode, answer)

    async def _at_leader(self, owner: int, attempt: Callable[[int, Deadline, str], Awaitable[T]]) -> T:
        """At the leader; at `weak` whichever member answers soonest, as it is; at `mid` so where no leader is there."""

        async def asked(node: int, within: Deadline) -> T:
            return await attempt(node, within, "strong" if self._consistency == "mid" else self._consistency)

        if self._consistency == "weak":
            return await self._s.leaders.nearest(owner, asked, self._deadline)
        if self._consistency == "strong":
            return await self._s.leaders.run(owner, asked, self._deadline, repeatable=True)
        try:
            return await self._s.leaders.run(owner, asked, self._deadline.within(MID_TIMEOUT_MS), repeatable=True)
        except CallerError as error:
            if error.code not in (*_LOST_CODES, Status.CONSISTENCY_FAILURE, Status.TIME_OUT):
                raise

        async def as_it_is(node: int, within: Deadline) -> T:
            return await attempt(node, within, "mid")

        return await self._s.leaders.nearest(owner, as_it_is, self._deadline)

    async def _match_series(self, request: MatchSeries) -> list[list[SeriesInfo]]:
        texts = list(request.patterns)
        touched: dict[int, StorageGroupRef] = {}
        for at in range(0, len(texts), PATTERNS_INLINE_MAX):
            if at:
                await asyncio.sleep(0)
            some = self._touched(*(PathPattern.parse(text) for text in texts[at : at + PATTERNS_INLINE_MAX]))
            touched |= {group.id: group for group in some}
        groups = sorted(touched.values(), key=lambda group: group.path)
        found = await self._ask(groups, "series", patterns=texts, limit=request.limit)
        if sum(len(items) for answer in found for items in answer) <= SERIES_INLINE_MAX:
            return self._matched(groups, found, request)
        return await self._s.world.workers.run(self._matched, groups, found, request)

    def _matched(
        self, groups: Sequence[StorageGroupRef], found: Sequence[Any], request: MatchSeries
    ) -> list[list[SeriesInfo]]:
        result: list[list[SeriesInfo]] = []
        for at in range(len(request.patterns)):
            series = [
                self._info(group, item) for group, answer in zip(groups, found, strict=True) for item in answer[at]
            ]
            series.sort(key=lambda one: one.path)
            result.append(series if request.limit is None else series[: request.limit])
        return result

    def _info(self, group: StorageGroupRef, item: Any) -> SeriesInfo:
        series = Series.from_json(item)
        visible_from = INT64_MIN if group.ttl_ms is None else max(INT64_MIN, self._now_ms - group.ttl_ms)
        return SeriesInfo(
            series.path,
            series.device,
            series.measurement,
            series.type,
            group.path,
            group.id,
            series.encoding,
            series.compressor,
            series.alias,
            series.decimals(self._s.settings.float_precision),
            visible_from,
            tuple(series.tags.items()),
            tuple(series.attributes.items()),
        )

    async def _match_devices(self, request: MatchDevices) -> list[DeviceInfo]:
        groups = self._touched(PathPattern.parse(request.pattern))
        found = await self._ask(groups, "devices", pattern=request.pattern, limit=request.limit)
        devices = [DeviceInfo(path, group.path) for group, paths in zip(groups, found, strict=True) for path in paths]
        devices.sort(key=lambda device: device.path)
        return devices if request.limit is None else devices[: request.limit]

    async def _match_children(self, request: MatchChildren) -> list[str]:
        groups = self._touched(PathPattern.parse(request.pattern))
        found = await self._ask(groups, "children", pattern=request.pattern)
        return sorted({path for paths in found for path in paths})

    async def _count_series(self, request: CountSeries) -> int | None:
        pattern = PathPattern.parse(request.pattern, prefix_stars=False)
        groups = self._touched(pattern)
        found = await self._ask(groups, "count", pattern=request.pattern)
        if max((reached for _, reached in found), default=0) < len(pattern.literal_prefix) and len(pattern.nodes) > 1:
            return None
        return sum(int(count) for count, _ in found)

    async def _count_by_level(self, request: CountSeriesByLevel) -> list[tuple[str, int]]:
        groups = self._touched(PathPattern.parse(request.pattern, prefix_stars=False))
        counts: dict[str, int] = {}
        for answer in await self._ask(groups, "count by level", pattern=request.pattern, level=request.level):
            for path, count in answer.items():
                counts[path] = counts.get(path, 0) + count
        return sorted(counts.items())

    async def _count_nodes(self, request: CountNodes) -> int:
        pattern = PathPattern.parse(request.pattern)
        groups = self._touched(pattern)
        found = await self._ask(groups, "nodes", pattern=request.pattern, level=request.level)
        if max((reached for _, reached in found), default=0) < len(pattern.literal_prefix) and len(pattern.nodes) > 1:
            return -1
        return len({path for paths, _ in found for path in paths})

    async def _is_tag(self, request: IsTag) -> bool:
        groups = self._touched(PathPattern.parse("root"))
        return any(await self._ask(groups, "is tag", key=request.key))

    async def _list_storage_groups(self, request: ListStorageGroups) -> list[StorageGroupInfo]:
        found = self._s.meta.state.storage_groups(PathPattern.parse(request.pattern))
        return [StorageGroupInfo(group.path, group.ttl_ms, group.id) for group in found if not group.dropping]

    async def everything(self) -> list[Series]:
        """Every series of the cluster, by path."""
        groups = self._touched(PathPattern.parse("root"))
        found = await self._ask(groups, "everything")
        series = [Series.from_json(item) for items in found for item in items]
        return sorted(series, key=lambda one: one.path)

    # --- points -------------------------------------------------------------------------------------------------------

    def _shares(self, identifier: int, low: int, high: int) -> list[_Share]:
        """Which data groups hold units of the storage group with points in [low, high]."""
        group = self._groups[identifier]
        first = INT64_MIN if low == INT64_MIN else low // self._interval
        last = INT64_MAX if high == INT64_MAX else high // self._interval
        owners: dict[int, list[tuple[int, int, int]]] = {}
        for partition in self._directories[identifier].partitions:
            if first <= partition <= last:
                place: Place = self._s.catalog.place(group, partition)
                owners.setdefault(place.group, []).append((partition, place.slot, place.epoch))
        return [_Share(group, owner, tuple(units)) for owner, units in owners.items()]

    async def _by_storage_group(self, series: Sequence[SeriesInfo]) -> dict[int, list[int]]:
        if len(series) <= SERIES_INLINE_MAX:
            return _places_by_storage_group(series)
        return await self._s.world.workers.run(_places_by_storage_group, series)

    def _head(self, share: _Share, part: Callable[[], Request], consistency: str) -> bytes:
        return pack(
            {
                "group": share.owner,
                "consistency": consistency,
                "storage_group": share.group.id,
                "schema_epoch": self._directories[share.group.id].epoch,
                "units": [list(unit) for unit in share.units],
                "interval": self._interval,
            },
            [codec.encode_request(part())],
        )

    async def _at_owner(
        self, share: _Share, method: str, series: int, part: Callable[[], Request]
    ) -> tuple[int, memoryview]:
        """(the node that answered, its answer). `part` makes the request, for that many series."""

        async def attempt(node: int, within: Deadline, consistency: str) -> tuple[int, memoryview]:
            if series > SERIES_INLINE_MAX:
                body = await self._s.world.workers.run(self._head, share, part, consistency)
            else:
                body = self._head(share, part, consistency)
            return node, await self._s.calls.call(node, method, body, within)

        return await self._at_leader(share.owner, attempt)

    async def _open_scan(self, request: OpenScan) -> list[Stream]:
        jobs: list[tuple[_Share, tuple[int, ...]]] = []
        for identifier, places in (await self._by_storage_group(request.series)).items():
            jobs += [(share, tuple(places)) for share in self._shares(identifier, request.low, request.high)]

        async def open_one(share: _Share, places: tuple[int, ...]) -> Stream:
            def part() -> Request:
                series = tuple(request.series[at] for at in places)
                return OpenScan(series, request.low, request.high, request.ascending, request.batch_rows)

            node, answer = await self._at_owner(share, "scan open", len(places), part)
            head, _ = unpack(answer)
            self._streams += 1
            self._cursors[self._streams] = _Cursor(node, int(head["cursor"]), places)
            return Stream(self._streams, places)

        # All of them, also where one fails: a cursor that is opened must be known to be closed again.
        opened = await asyncio.gather(*(open_one(share, places) for share, places in jobs), return_exceptions=True)
        for one in opened:
            if isinstance(one, BaseException):
                raise one
        return [one for one in opened if isinstance(one, Stream)]

    async def _pull(self, request: Pull) -> list[Any]:
        return list(await asyncio.gather(*(self._pull_one(stream) for stream in request.streams)))

    async def _pull_one(self, stream: int) -> Any:
        cursor = self._cursors[stream]
        try:
            answer = await self._s.calls.call(cursor.node, "scan pull", pack({"cursor": cursor.id}), self._deadline)
        except CallerError as error:
            if type(error) is CallerError and error.code not in _LOST_CODES:
                raise
            raise Interrupted(
                f"the query ended, a node that it reads from is lost: repeat it ({error.message})"
            ) from None
        if len(cursor.columns) <= SERIES_INLINE_MAX:
            (rows,) = codec.decode_answer(_ONE_PULL, answer)
        else:
            (rows,) = await self._s.world.workers.run(codec.decode_answer, _ONE_PULL, answer)
        if rows is None:
            del self._cursors[stream]
        return rows

    async def _close_scan(self, request: CloseScan) -> None:
        by_node: dict[int, list[int]] = {}
        for stream in request.streams:
            cursor = self._cursors.pop(stream, None)
            if cursor is not None:
                by_node.setdefault(cursor.node, []).append(cursor.id)
        deadline = Deadline(self._s.world, CLOSE_TIMEOUT_MS)  # of its own: the statement's may have passed
        await asyncio.gather(*(self._close_at(node, cursors, deadline) for node, cursors in by_node.items()))

    async def _close_at(self, node: int, cursors: list[int], deadline: Deadline) -> None:
        """What cannot be closed ends there by itself when it was idle for long enough."""
        try:
            await self._s.calls.call(node, "scan close", pack({"cursors": cursors}), deadline)
        except CallerError as error:
            logger.debug("cursors at node %d stay open for a while: %s", node, error.message)

    async def close(self) -> None:
        """Close what is still open."""
        if self._cursors:
            await self._close_scan(CloseScan(tuple(self._cursors)))

    async def _gather(
        self, series: Sequence[SeriesInfo], low: int, high: int, part: Callable[[list[int]], Request]
    ) -> list[tuple[list[int], memoryview]]:
        """Ask every share of the series' storage groups for its part; (places in `series`, answer)."""
        jobs: list[tuple[_Share, list[int]]] = []
        for identifier, places in (await self._by_storage_group(series)).items():
            jobs += [(share, places) for share in self._shares(identifier, low, high)]
        answers = await asyncio.gather(
            *(self._at_owner(share, "points", len(places), partial(part, places)) for share, places in jobs)
        )
        return [(places, answer) for (_, places), (_, answer) in zip(jobs, answers, strict=True)]

    async def _aggregate(self, request: Aggregate) -> list[Partials]:
        def part(places: list[int]) -> Request:
            return Aggregate(
                tuple(request.series[at] for at in places),
                tuple(request.needs[at] for at in places),
                request.starts,
                request.ends,
            )

        low = int(request.starts[0]) if len(request.starts) else 0
        high = int(request.ends[-1]) if len(request.ends) else -1
        answers = await self._gather(request.series, low, high, part)
        if (
            len(request.series) <= SERIES_INLINE_MAX
            and sum(len(answer) for _, answer in answers) <= DECODE_INLINE_BYTES
        ):
            return _merged(request, answers)
        return await self._s.world.workers.run(_merged, request, answers)

    async def _last(self, request: Last) -> list[Point | None]:
        def part(places: list[int]) -> Request:
            return Last(tuple(request.series[at] for at in places), request.low)

        found: list[Point | None] = [None] * len(request.series)
        for places, answer in await self._gather(request.series, request.low, INT64_MAX, part):
            for at, point in zip(places, codec.decode_answer(request, answer), strict=True):
                known = found[at]
                if point is not None and (known is None or point.time > known.time):
                    found[at] = point
        return found

    async def _nearest(self, request: Nearest) -> list[tuple[Point | None, Point | None]]:
        def part(places: list[int]) -> Request:
            series = tuple(request.series[at] for at in places)
            return Nearest(series, request.time, request.low, request.high)

        previous: list[Point | None] = [None] * len(request.series)
        following: list[Point | None] = [None] * len(request.series)
        for places, answer in await self._gather(request.series, request.low, request.high, part):
            for at, (before, after) in zip(places, codec.decode_answer(request, answer), strict=True):
                known = previous[at]
                if before is not None and (known is None or before.time > known.time):
                    previous[at] = before
                known = following[at]
                if after is not None and (known is None or after.time < known.time):
                    following[at] = after
        return list(zip(previous, following, strict=True))

    # --- the node -----------------------------------------------------------------------------------------------------

    async def _flush_tasks(self, request: FlushTasks) -> FlushTasksInfo:
        del request
        return await self._s.flushing(self._deadline)

    async def _merge_tasks(self, request: MergeTasks) -> list[MergeInfo]:
        del request
        return self._s.merging()

    async def _list_queries(self, request: ListQueries) -> list[RunningQuery]:
        del request
        return await self._s.running(self._deadline)


def _places_by_storage_group(series: Sequence[SeriesInfo]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for at, one in enumerate(series):
        found.setdefault(one.storage_group_id, []).append(at)
    return found


def _merged(request: Aggregate, answers: Sequence[tuple[list[int], memoryview]]) -> list[Partials]:
    """The states of each series of all the shares' answers; (places in `request.series`, answer)."""
    found: list[list[Partials]] = [[] for _ in request.series]
    for places, answer in answers:
        for at, states in zip(places, codec.decode_answer(request, answer), strict=True):
            found[at].append(states)
    return [
        merge(parts) if parts else empty(one.type, need, len(request.starts))
        for one, need, parts in zip(request.series, request.needs, found, strict=True)
    ]


_HANDLERS: dict[type, Any] = {
    MatchSeries: StatementReads._match_series,
    MatchDevices: StatementReads._match_devices,
    MatchChildren: StatementReads._match_children,
    CountSeries: StatementReads._count_series,
    CountSeriesByLevel: StatementReads._count_by_level,
    CountNodes: StatementReads._count_nodes,
    IsTag: StatementReads._is_tag,
    ListStorageGroups: StatementReads._list_storage_groups,
    OpenScan: StatementReads._open_scan,
    Pull: StatementReads._pull,
    CloseScan: StatementReads._close_scan,
    Aggregate: StatementReads._aggregate,
    Last: StatementReads._last,
    Nearest: StatementReads._nearest,
    FlushTasks: StatementReads._flush_tasks,
    MergeTasks: StatementReads._merge_tasks,
    ListQueries: StatementReads._list_queries,
}
