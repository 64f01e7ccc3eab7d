"""The way of an insert at the coordinator: resolve series, find the slot's group, cut, propose, tell what failed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.catalog import Catalog, Place, Resolved, StorageGroupRef
from iotdb_cluster.cluster.proposals import Proposals
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.columns import Block, DataType, Int64Array, Rows, Shape, Tablet, shape_of
from iotdb_cluster.data import (
    Header,
    ListPartition,
    OpenUnit,
    Piece,
    cut,
    encode,
    encode_insert,
    split_by_partition,
    times_of,
)
from iotdb_cluster.errors import CallerError, Moved, StaleSchema, Status
from iotdb_cluster.limits import SERIES_CACHE_MAX
from iotdb_cluster.partition import partition_of
from iotdb_cluster.requests import NO_REQUEST, RequestId

__all__ = ["Failure", "Writer", "partition_range"]

OPEN_UNITS_MAX = 100_000  # units that this node knows to be open
_LOST = CallerError(Status.INTERNAL_SERVER_ERROR, "the schema gave no answer for a device")


@dataclass(frozen=True, slots=True)
class Failure:
    """What was not written: `rows: int64[n]` of block `origin` of the call (None: all), and why."""

    origin: int
    rows: Int64Array | None
    error: CallerError


@dataclass(slots=True)
class _Part:
    """One entry of a call: what it holds, and where it goes."""

    group: StorageGroupRef
    partition: int
    epoch: int
    pieces: list[Piece]
    origins: list[int] = field(default_factory=list)


class Writer:
    """Writes blocks through whichever groups own their slots."""

    def __init__(self, catalog: Catalog, proposals: Proposals, settings: Settings) -> None:
        self._catalog = catalog
        self._proposals = proposals
        self._interval = settings.partition_interval_ms
        self._cache: OrderedDict[tuple[str, Shape], Resolved] = OrderedDict()
        self._open_units: OrderedDict[tuple[int, int], None] = OrderedDict()

    async def insert(self, blocks: Sequence[Block], now: int, deadline: Deadline) -> list[Failure]:
        """Write every block; what failed. Rows that are older than their storage group's TTL fail with 305."""
        failures: list[Failure] = []
        work = list(enumerate(blocks))
        while work:
            parts, refused = await self._plan(work, now, deadline)
            failures += refused
            work = []
            if len(parts) == 1:
                outcomes: list[CallerError | None] = [await self._write(parts[0], deadline)]
            else:
                outcomes = list(await asyncio.gather(*(self._write(part, deadline) for part in parts)))
            for part, error in zip(parts, outcomes, strict=True):
                if error is None:
                    continue
                if _is_outdated(error) and not deadline.passed:
                    await self._catalog.refresh(deadline)
                    self._forget(part)
                    work += [(origin, piece.block) for origin, piece in zip(part.origins, part.pieces, strict=True)]
                    continue
                failures += [
                    Failure(origin, piece.rows, error) for origin, piece in zip(part.origins, part.pieces, strict=True)
                ]
        return failures

    def leader_hint(self, blocks: Sequence[Block]) -> Place | None:
        """Where the one device of these blocks is written, for clients that remember it; None where it is unknown."""
        first = blocks[0]
        resolved = self._cache.get((first.device, first.shape))
        if resolved is None or not len(first):
            return None
        partition = int(times_of(first)[0]) // self._interval
        return self._catalog.place(resolved.group, partition)

    # --- planning -----------------------------------------------------------------------------------------------------

    async def _plan(
        self, work: Sequence[tuple[int, Block]], now: int, deadline: Deadline
    ) -> tuple[list[_Part], list[Failure]]:
        failures: list[Failure] = []
        found = [self._known(block) for _, block in work]
        if None in found:
            unknown = [block for (_, block), known in zip(work, found, strict=True) if known is None]
            learned = await self._resolve(unknown, deadline)
            found = [
                known if known is not None else learned[block.device, block.shape]
                for (_, block), known in zip(work, found, strict=True)
            ]
        by_group: dict[int, list[tuple[int, Block, Resolved]]] = {}
        for (origin, block), resolved in zip(work, found, strict=True):
            if isinstance(resolved, CallerError) or resolved is None:
                failures.append(Failure(origin, None, resolved or _LOST))
                continue
            if resolved.error is not None:
                failures.append(Failure(origin, None, resolved.error))
            kept = _keep(block, resolved)
            if kept is None:
                continue
            kept, late = _alive(kept, resolved.group, now)
            if late is not None:
                failures.append(Failure(origin, late[0], late[1]))
            if kept is not None:
                by_group.setdefault(resolved.group.id, []).append((origin, kept, resolved))
        parts: list[_Part] = []
        for members in by_group.values():
            parts += self._cut(members)
        return parts, failures

    def _cut(self, members: list[tuple[int, Block, Resolved]]) -> list[_Part]:
        group = members[0][2].group
        epochs = [resolved.epoch for _, _, resolved in members]
        origins = [origin for origin, _, _ in members]
        parts = []
        for partition, pieces in split_by_partition([block for _, block, _ in members], self._interval).items():
            for entry in cut(pieces):
                epoch = min(epochs[piece.origin] for piece in entry)
                parts.append(_Part(group, partition, epoch, entry, [origins[piece.origin] for piece in entry]))
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
        for identifier, devices in wanted.items():
            known = await self._catalog.ensure(groups[identifier], devices, deadline)
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

    def _remember(self, block: Block, resolved: Resolved) -> None:
        self._cache[block.device, block.shape] = resolved
        while len(self._cache) > SERIES_CACHE_MAX:
            self._cache.popitem(last=False)

    def _forget(self, part: _Part) -> None:
        """What led to a refusal as moved or stale: the group's resolved series and its open unit."""
        self._open_units.pop((part.group.id, part.partition), None)
        for piece in part.pieces:
            self._cache.pop((piece.block.device, piece.block.shape), None)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(self, part: _Part, deadline: Deadline) -> CallerError | None:
        unit = (part.group.id, part.partition)
        try:
            if unit not in self._open_units:
                await self._open(part.group, part.partition, deadline)
            place = self._catalog.place(part.group, part.partition)
            blocks = [piece.block for piece in part.pieces]

            def payload(request: RequestId) -> bytes:
                header = Header(request, part.group.id, place.slot, place.epoch, part.epoch, part.partition)
                return encode_insert(header, blocks)

            async def open_unit() -> None:  # it is closed after all
                await self._open(part.group, part.partition, deadline)

            await self._proposals.identified(lambda: place.group, payload, deadline, open_unit)
        except CallerError as error:
            return error
        return None

    async def _open(self, group: StorageGroupRef, partition: int, deadline: Deadline) -> None:
        """List the partition at the schema slot, then open its unit: both are harmless when done twice."""
        schema, place = self._catalog.schema_place(group), self._catalog.place(group, partition)
        listing = Header(NO_REQUEST, group.id, schema.slot, schema.epoch, 0, partition)
        answer = await self._proposals.patiently(
            lambda: schema.group, encode(listing, ListPartition(place.slot)), deadline
        )
        header = Header(NO_REQUEST, group.id, place.slot, place.epoch, 0, partition)
        opening = OpenUnit(int(answer["floor"]), int(answer["last_intent"]))
        await self._proposals.patiently(lambda: place.group, encode(header, opening), deadline)
        self._open_units[(group.id, partition)] = None
        while len(self._open_units) > OPEN_UNITS_MAX:
            self._open_units.popitem(last=False)


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
        tuple(block.shape.measurements[i] for i in resolved.kept), tuple(block.shape.types[i] for i in resolved.kept)
    )
    return Tablet(block.device, shape, tablet.times, [tablet.columns[i] for i in resolved.kept])


def _alive(
    block: Block, group: StorageGroupRef, now: int
) -> tuple[Block | None, tuple[Int64Array | None, CallerError] | None]:
    """(the rows within the storage group's TTL, (the others, why they are refused) or None)."""
    if group.ttl_ms is None:
        return block, None
    bound = now - group.ttl_ms
    times = times_of(block)
    late = np.flatnonzero(times < bound).astype(np.int64)
    if not len(late):
        return block, None
    error = CallerError(Status.OUT_OF_TTL, f"time {int(times[late[0]])} in current line is out of TTL: {bound}")
    if len(late) == len(times):
        return None, (None, error)
    keep = times >= bound
    tablet = block.to_tablet() if isinstance(block, Rows) else block
    kept = Tablet(block.device, block.shape, tablet.times[keep], [column[keep] for column in tablet.columns])
    return kept, (late, error)


def partition_range(low: int, high: int, interval: int) -> tuple[int, int]:
    """The first and last time partition of [low, high]."""
    bounds = partition_of(np.array([low, high], np.int64), interval)
    return int(bounds[0]), int(bounds[1])
