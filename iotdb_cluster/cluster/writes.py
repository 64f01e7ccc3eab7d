"""The way of an insert at the coordinator: resolve series, find the slot's group, cut, propose, tell what failed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.catalog import Catalog, Known, Place, Resolved, StorageGroupRef
from iotdb_cluster.cluster.proposals import Proposals, Wanted
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.columns import Block, DataType, Int64Array, Rows, Shape, Tablet, shape_of
from iotdb_cluster.data import (
    Header,
    ListPartition,
    OpenUnit,
    cut,
    encode,
    encode_insert,
    split_by_partition,
    times_of,
)
from iotdb_cluster.data.blocks import encoded_bytes
from iotdb_cluster.errors import CallerError, Moved, StaleSchema, Status
from iotdb_cluster.limits import MIB, SERIES_CACHE_MAX
from iotdb_cluster.partition import partition_of
from iotdb_cluster.requests import NO_REQUEST, RequestId
from iotdb_cluster.world import Workers

__all__ = ["Failure", "Writer", "partition_range"]

OPEN_UNITS_MAX = 100_000  # units that this node knows to be open
WAVE_BYTES = 8 * MIB  # entries of one call that are under way at once: a huge call must not fill the group's window
CUT_INLINE_ROWS = 50_000  # calls of more rows are cut on a worker
REPLAN_PAUSE_MS = 5.0
_LOST = CallerError(Status.INTERNAL_SERVER_ERROR, "the schema gave no answer for a device")


@dataclass(frozen=True, slots=True)
class Failure:
    """What was not written: `rows: int64[n]` of block `origin` of the call (None: all), and why."""

    origin: int
    rows: Int64Array | None
    error: CallerError


@dataclass(frozen=True, slots=True)
class _Work:
    """What is still to be written of block `origin` of the call: `rows` of it (None: all) are the rows of `block`."""

    origin: int
    block: Block
    rows: Int64Array | None = None

    def within(self, rows: Int64Array | None) -> Int64Array | None:
        """Rows of `block` as rows of the call's block."""
        return self.rows if rows is None else rows if self.rows is None else self.rows[rows]


@dataclass(slots=True)
class _Part:
    """One entry of a call: what it holds, and where it goes."""

    group: StorageGroupRef
    partition: int
    epoch: int
    work: list[_Work]

    @property
    def bytes(self) -> int:
        return sum(encoded_bytes(item.block) for item in self.work)


class Writer:
    """Writes blocks through whichever groups own their slots."""

    def __init__(self, catalog: Catalog, proposals: Proposals, settings: Settings, workers: Workers) -> None:
        self._workers = workers
        self._catalog = catalog
        self._proposals = proposals
        self._interval = settings.partition_interval_ms
        self._cache: OrderedDict[tuple[str, Shape], Resolved] = OrderedDict()
        self._open_units: OrderedDict[tuple[int, int], None] = OrderedDict()

    async def insert(self, blocks: Sequence[Block], now: int, deadline: Deadline) -> list[Failure]:
        """Write every block; what failed. Rows that are older than their storage group's TTL fail with 305."""
        try:
            return await self._insert(blocks, now, deadline)
        finally:
            deadline.tell_if_slow("an insert")

    async def _insert(self, blocks: Sequence[Block], now: int, deadline: Deadline) -> list[Failure]:
        failures: list[Failure] = []
        work = [_Work(origin, block) for origin, block in enumerate(blocks)]
        pause_ms = 0.0
        while work:
            seen = self._catalog.version
            parts, refused = await self._plan(work, now, deadline)
            failures += refused
            work, moved = [], False
            for wave in _waves(parts):
                for part, error in await self._write(wave, deadline):
                    if error is None:
                        continue
                    moved |= isinstance(error, Moved)
                    if _is_outdated(error) and deadline.left_ms > pause_ms:
                        if not isinstance(error, Moved):
                            self._forget(part)
                        work += part.work
                    else:
                        failures += [Failure(item.origin, item.rows, error) for item in part.work]
            if work:
                await asyncio.sleep(pause_ms / 1000)
                pause_ms = min(2 * pause_ms + REPLAN_PAUSE_MS, 20 * REPLAN_PAUSE_MS)
                try:
                    await (self._catalog.moved(seen, deadline) if moved else self._catalog.refresh(deadline))
                except CallerError as error:
                    return [*failures, *(Failure(item.origin, item.rows, error) for item in work)]
        return failures

    def clear_cache(self) -> None:
        """Forget the series that were resolved: the schema is asked again."""
        self._cache.clear()

    def leader_hint(self, blocks: Sequence[Block]) -> Place | None:
        """Where the one device of these blocks is written, for clients that remember it; None where it is unknown."""
        first = blocks[0]
        resolved = self._cache.get((first.device, first.shape))
        if resolved is None or not len(first):
            return None
        partition = int(times_of(first)[0]) // self._interval
        return self._catalog.place(resolved.group, partition)

    # --- planning -----------------------------------------------------------------------------------------------------

    async def _plan(self, work: Sequence[_Work], now: int, deadline: Deadline) -> tuple[list[_Part], list[Failure]]:
        failures: list[Failure] = []
        found = [self._known(item.block) for item in work]
        if None in found:
            unknown = [item.block for item, known in zip(work, found, strict=True) if known is None]
            learned = await self._resolve(unknown, deadline)
            found = [
                known if known is not None else learned[item.block.device, item.block.shape]
                for item, known in zip(work, found, strict=True)
            ]
        by_group: dict[int, list[tuple[_Work, Resolved]]] = {}
        rows = 0
        for item, resolved in zip(work, found, strict=True):
            if isinstance(resolved, CallerError) or resolved is None:
                failures.append(Failure(item.origin, item.rows, resolved or _LOST))
                continue
            if resolved.error is not None:
                failures.append(Failure(item.origin, item.rows, resolved.error))
            kept = _keep(item.block, resolved)
            if kept is None:
                continue
            alive, late = _alive(replace(item, block=kept), resolved.group, now)
            if late is not None:
                failures.append(late)
            if alive is not None:
                by_group.setdefault(resolved.group.id, []).append((alive, resolved))
                rows += len(alive.block)
        parts: list[_Part] = []
        for members in by_group.values():
            if rows > CUT_INLINE_ROWS:
                parts += await self._workers.run(self._cut, members)
            else:
                parts += self._cut(members)
        return parts, failures

    def _cut(self, members: list[tuple[_Work, Resolved]]) -> list[_Part]:
        """Touches nothing but its arguments: it may run on a worker."""
        group = members[0][1].group
        parts = []
        for partition, pieces in split_by_partition([item.block for item, _ in members], self._interval).items():
            for entry in cut(pieces):
                epoch = min(members[piece.origin][1].epoch for piece in entry)
                items = [members[piece.origin][0] for piece in entry]
                work = [
                    _Work(item.origin, piece.block, item.within(piece.rows))
                    for item, piece in zip(items, entry, strict=True)
                ]
                parts.append(_Part(group, partition, epoch, work))
        return parts

    def _known(self, block: Block) -> Resolved | CallerError | None:
        """The block's columns as this node has seen them, while their storage group is still the one it was."""
        resolved = self._cache.get((block.device, block.shape))
        if resolved is None:
            return None
        current = self._catalog.current(resolved.group)
        if current is resolved.group:
            return resolved
        if current is None:
            return None
        resolved = replace(resolved, group=current)
        self._cache[block.device, block.shape] = resolved
        return resolved

    async def _resolve(
        self, blocks: Sequence[Block], deadline: Deadline
    ) -> dict[tuple[str, Shape], Resolved | CallerError]:
        """Learn (and create, where that is allowed) the series of these blocks."""
        learned: dict[tuple[str, Shape], Resolved | CallerError] = {}
        refusals: dict[str, CallerError] = {}
        wanted: dict[int, dict[str, dict[str, DataType]]] = {}
        groups: dict[int, StorageGroupRef] = {}
        for block in blocks:
            if block.device in refusals:
                continue
            try:
                group = await self._catalog.storage_group(block.device, deadline)
            except CallerError as error:
                refusals[block.device] = error
                continue
            groups[group.id] = group
            columns = wanted.setdefault(group.id, {}).setdefault(block.device, {})
            for name, kind in zip(block.shape.measurements, block.shape.types, strict=True):
                columns.setdefault(name, kind)
        answers = await asyncio.gather(
            *(self._ensure(groups[identifier], devices, deadline) for identifier, devices in wanted.items())
        )
        for (identifier, devices), known in zip(wanted.items(), answers, strict=True):
            if isinstance(known, CallerError):
                refusals.update(dict.fromkeys(devices, known))
                continue
            for block in blocks:
                if block.device in devices:
                    resolved = known.resolve(groups[identifier], block.device, block.shape)
                    learned[block.device, block.shape] = resolved
                    if resolved.error is None:  # what did not fit may fit next time: the schema is asked again
                        self._remember(block, resolved)
        for block in blocks:
            if block.device in refusals:
                learned[block.device, block.shape] = refusals[block.device]
        return learned

    async def _ensure(
        self, group: StorageGroupRef, devices: dict[str, dict[str, DataType]], deadline: Deadline
    ) -> Known | CallerError:
        """What one storage group refuses, or cannot answer, does not keep the others' rows from being written."""
        try:
            return await self._catalog.ensure(group, devices, deadline)
        except CallerError as error:
            return error

    def _remember(self, block: Block, resolved: Resolved) -> None:
        self._cache[block.device, block.shape] = resolved
        while len(self._cache) > SERIES_CACHE_MAX:
            self._cache.popitem(last=False)

    def _forget(self, part: _Part) -> None:
        """What led to a refusal as stale: the group's resolved series and its open unit.

        Both stay where the slot moved: it takes them along, and the schema slot may be on its way as well.
        """
        self._open_units.pop((part.group.id, part.partition), None)
        for item in part.work:
            self._cache.pop((item.block.device, item.block.shape), None)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(self, parts: Sequence[_Part], deadline: Deadline) -> list[tuple[_Part, CallerError | None]]:
        """Each part and why it was not written; those of one data group go there in one call."""
        closed = [part for part in parts if (part.group.id, part.partition) not in self._open_units]
        refused = await asyncio.gather(*(self._opened(part, deadline) for part in closed)) if closed else []
        failed = {id(part): error for part, error in zip(closed, refused, strict=True) if error is not None}
        by_owner: dict[int, list[tuple[_Part, Place]]] = {}
        for part in parts:
            if id(part) not in failed:
                place = self._catalog.place(part.group, part.partition)
                by_owner.setdefault(place.group, []).append((part, place))
        if len(by_owner) == 1:
            written = [await self._write_at(*by_owner.popitem(), deadline)]
        else:
            written = await asyncio.gather(*(self._write_at(*item, deadline) for item in by_owner.items()))
        unopened: list[tuple[_Part, CallerError | None]] = [
            (part, failed[id(part)]) for part in closed if id(part) in failed
        ]
        return [*unopened, *(outcome for some in written for outcome in some)]

    async def _opened(self, part: _Part, deadline: Deadline) -> CallerError | None:
        """Open the part's unit; why that was not possible."""
        try:
            await self._open(part.group, part.partition, deadline)
        except CallerError as error:
            return error
        return None

    async def _write_at(
        self, owner: int, placed: Sequence[tuple[_Part, Place]], deadline: Deadline
    ) -> list[tuple[_Part, CallerError | None]]:
        parts = [part for part, _ in placed]
        wanted = [self._wanted(part, place, deadline) for part, place in placed]
        if len(wanted) > 1:
            outcomes = await self._proposals.together(lambda: owner, wanted, deadline)
            return [
                (part, outcome if isinstance(outcome, CallerError) else None)
                for part, outcome in zip(parts, outcomes, strict=True)
            ]
        try:
            await self._proposals.identified(lambda: owner, wanted[0], deadline)
        except CallerError as error:
            return [(parts[0], error)]
        return [(parts[0], None)]

    def _wanted(self, part: _Part, place: Place, deadline: Deadline) -> Wanted:
        blocks = [item.block for item in part.work]

        def payload(request: RequestId) -> bytes:
            header = Header(request, part.group.id, place.slot, place.epoch, part.epoch, part.partition)
            return encode_insert(header, blocks)

        async def open_unit() -> None:  # it is closed after all
            await self._open(part.group, part.partition, deadline)

        return Wanted(payload, open_unit)

    async def _open(self, group: StorageGroupRef, partition: int, deadline: Deadline) -> None:
        """List the partition at the schema slot, then open its unit: both are harmless when done twice."""
        answer = await self._list(group, partition, deadline)
        place = self._catalog.place(group, partition)
        header = Header(NO_REQUEST, group.id, place.slot, place.epoch, 0, partition)
        opening = OpenUnit(int(answer["floor"]), int(answer["last_intent"]))
        await self._proposals.patiently(lambda: place.group, encode(header, opening), deadline)
        self._open_units[(group.id, partition)] = None
        while len(self._open_units) > OPEN_UNITS_MAX:
            self._open_units.popitem(last=False)

    async def _list(self, group: StorageGroupRef, partition: int, deadline: Deadline) -> Any:
        """{"floor", "last_intent"} for the unit. That the schema slot moves is no answer for who writes to the unit."""
        while True:
            seen, schema = self._catalog.version, self._catalog.schema_place(group)
            header = Header(NO_REQUEST, group.id, schema.slot, schema.epoch, 0, partition)
            listing = encode(header, ListPartition(self._catalog.place(group, partition).slot))
            try:
                return await self._proposals.patiently(lambda owner=schema.group: owner, listing, deadline)  # type: ignore[misc]
            except Moved:
                if deadline.passed:
                    raise CallerError(Status.TIME_OUT, f"the schema of {group.path} moves: try again") from None
            await self._catalog.moved(seen, deadline)


def _is_outdated(error: CallerError) -> bool:
    """Whether what this node knew of the storage group, its series or its slots is older than what the group knows."""
    return isinstance(error, Moved | StaleSchema) or error.code == Status.STORAGE_GROUP_NOT_EXIST


def _keep(block: Block, resolved: Resolved) -> Block | None:
    """The block's columns that fit the schema; None where none does."""
    if resolved.kept is None:
        return block
    if not resolved.kept:
        return None
    tablet = block.to_tablet() if isinstance(block, Rows) else block
    shape = shape_of(
        resolved.names or tuple(block.shape.measurements[i] for i in resolved.kept),
        tuple(block.shape.types[i] for i in resolved.kept),
    )
    return Tablet(block.device, shape, tablet.times, [tablet.columns[i] for i in resolved.kept])


def _waves(parts: Sequence[_Part]) -> Iterator[list[_Part]]:
    """The parts in runs of `WAVE_BYTES`, at least one each."""
    wave: list[_Part] = []
    room = WAVE_BYTES
    for part in parts:
        size = part.bytes if len(parts) > 1 else 0
        if wave and size > room:
            yield wave
            wave, room = [], WAVE_BYTES
        wave.append(part)
        room -= size
    if wave:
        yield wave


def _alive(item: _Work, group: StorageGroupRef, now: int) -> tuple[_Work | None, Failure | None]:
    """(the rows within the storage group's TTL, the others with why they are refused); None where there are none."""
    block = item.block
    if group.ttl_ms is None:
        return item, None
    bound = now - group.ttl_ms
    times = times_of(block)
    late = np.flatnonzero(times < bound).astype(np.int64)
    if not len(late):
        return item, None
    error = CallerError(Status.OUT_OF_TTL, f"time {int(times[late[0]])} in current line is out of TTL: {bound}")
    failure = Failure(item.origin, item.rows if len(late) == len(times) else item.within(late), error)
    if len(late) == len(times):
        return None, failure
    keep = np.flatnonzero(times >= bound).astype(np.int64)
    tablet = block.to_tablet() if isinstance(block, Rows) else block
    kept = Tablet(block.device, block.shape, tablet.times[keep], [column[keep] for column in tablet.columns])
    return _Work(item.origin, kept, item.within(keep)), failure


def partition_range(low: int, high: int, interval: int) -> tuple[int, int]:
    """The first and last time partition of [low, high]."""
    bounds = partition_of(np.array([low, high], np.int64), interval)
    return int(bounds[0]), int(bounds[1])
