"""Changes of schema and deletes at the coordinator: storage groups, series, TTLs, points."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.catalog import Catalog, Place, StorageGroupRef, reference
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.proposals import Proposals, Wanted
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.data import (
    AlterSeries,
    CreateSeries,
    DeleteIntent,
    Header,
    IntentKind,
    encode,
)
from iotdb_cluster.errors import CallerError, Moved, OutcomeUnknown, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN
from iotdb_cluster.meta import commands
from iotdb_cluster.packing import pack
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import Alter, PathPattern, SeriesSpec, check_series_path, parent_path, path_does_not_exist

__all__ = ["Changes"]

ERRORS_TOLD_MAX = 20  # of a delete in many storage groups
SERIES_PER_ENTRY = 5_000  # so that an entry with long names, tags and attributes stays below its limit


@dataclass(slots=True)
class _Batch:
    """Series of one storage group, with their places in the call."""

    group: StorageGroupRef
    places: list[int]
    specs: list[SeriesSpec]


class Changes:
    """What changes schema, and deletes."""

    def __init__(
        self,
        meta: MetaAccess,
        catalog: Catalog,
        proposals: Proposals,
        calls: Calls,
        leaders: Leaders,
        settings: Settings,
    ) -> None:
        self._meta = meta
        self._catalog = catalog
        self._proposals = proposals
        self._calls = calls
        self._leaders = leaders
        self._interval = settings.partition_interval_ms

    # --- storage groups -----------------------------------------------------------------------------------------------

    async def set_storage_group(self, path: str, deadline: Deadline) -> None:
        await self._meta.propose(lambda request: commands.create_storage_group(request, path), deadline)

    async def delete_storage_groups(self, paths: Sequence[str], deadline: Deadline) -> None:
        """Begin the drops and wait until each is carried out; what takes longer is carried out all the same."""
        value = await self._meta.propose(lambda request: commands.drop_storage_groups(request, paths), deadline)
        pause_ms = 2.0
        while any(self._meta.state.storage_group(number) is not None for number in value["ids"]):
            if deadline.left_ms <= pause_ms:
                raise CallerError(
                    Status.TIME_OUT, f"the deletion of {', '.join(value['paths'])} has begun and is being carried out"
                )
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 1.5, 50.0)

    async def set_ttl(self, path: str, ttl_ms: int | None, deadline: Deadline) -> None:
        if ttl_ms is None:
            await self._meta.propose(lambda request: commands.unset_ttl(request, path), deadline)
        else:
            await self._meta.propose(lambda request: commands.set_ttl(request, path, ttl_ms), deadline)
        await self._meta.settle(deadline)  # no node proposes an expiry any more by the TTL that was

    # --- series -------------------------------------------------------------------------------------------------------

    async def create_series(
        self, specs: Sequence[SeriesSpec | CallerError], deadline: Deadline
    ) -> list[CallerError | None]:
        """Create each; why not, by place. A spec that is an error already stays one."""
        outcomes: list[CallerError | None] = [spec if isinstance(spec, CallerError) else None for spec in specs]
        wanted = {place: spec for place, spec in enumerate(specs) if not isinstance(spec, CallerError)}
        while True:
            await self._create_all(wanted, outcomes, deadline)
            # What this node knew of the storage group was old: it was deleted, and is made again.
            wanted = {place: spec for place, spec in wanted.items() if _is_gone(outcomes[place])}
            if not wanted or deadline.passed:
                return outcomes
            await self._catalog.refresh(deadline)

    async def _create_all(
        self, wanted: Mapping[int, SeriesSpec], outcomes: list[CallerError | None], deadline: Deadline
    ) -> None:
        batches: dict[int, _Batch] = {}
        for place, spec in wanted.items():
            outcomes[place] = None
            try:
                check_series_path(spec.path)
                group = await self._catalog.storage_group(parent_path(spec.path), deadline)
                batch = batches.setdefault(group.id, _Batch(group, [], []))
                batch.places.append(place)
                batch.specs.append(spec)
            except CallerError as error:
                outcomes[place] = error
        await asyncio.gather(*(self._create(batch, outcomes, deadline) for batch in batches.values()))

    async def _create(self, batch: _Batch, outcomes: list[CallerError | None], deadline: Deadline) -> None:
        for start in range(0, len(batch.specs), SERIES_PER_ENTRY):
            places = batch.places[start : start + SERIES_PER_ENTRY]
            body = CreateSeries(batch.group.path, tuple(batch.specs[start : start + SERIES_PER_ENTRY]))
            try:
                value = await self._at_schema_slot(batch.group, body, deadline)
                for place, failure in zip(places, value["series"], strict=True):
                    if failure is not None:
                        outcomes[place] = CallerError(Status(failure[0]), failure[1])
            except CallerError as error:
                for place in places:
                    outcomes[place] = error

    async def _at_schema_slot(
        self, group: StorageGroupRef, body: CreateSeries | AlterSeries | DeleteIntent, deadline: Deadline
    ) -> Any:
        while True:
            seen, place = self._catalog.version, self._catalog.schema_place(group)

            def payload(request: RequestId, slot: int = place.slot, epoch: int = place.epoch) -> bytes:
                return encode(Header(request, group.id, slot, epoch), body)

            try:
                return await self._proposals.identified(lambda number=place.group: number, Wanted(payload), deadline)  # type: ignore[misc]
            except Moved:  # final for that id
                if deadline.passed:
                    raise
            await self._catalog.moved(seen, deadline)

    async def alter(self, path: str, change: Alter, deadline: Deadline) -> None:
        await self._meta.barrier(deadline)
        found = self._meta.state.storage_group_of(path)
        if found is None:
            raise path_does_not_exist(path)
        await self._at_schema_slot(reference(found), AlterSeries(path, change), deadline)

    async def delete_series(self, paths: Sequence[str], deadline: Deadline) -> list[CallerError | None]:
        """Delete every series that each pattern matches; 304 at a pattern's place where it matches none."""
        await self._meta.barrier(deadline)
        outcomes: list[CallerError | None] = []
        for path in paths:
            outcomes.append(None)
            try:
                pattern = PathPattern.parse(path)
                intent = DeleteIntent(IntentKind.TIMESERIES, (pattern,))
                if not await self._delete(pattern, intent, deadline):
                    raise path_does_not_exist(path)
            except CallerError as error:
                outcomes[-1] = error
        return outcomes

    async def delete_points(self, path: str, low: int, high: int, deadline: Deadline) -> None:
        """Delete the points of every series that matches with low <= time <= high; none is no error."""
        if low > high:
            return
        await self._meta.barrier(deadline)
        pattern = PathPattern.parse(path, prefix_stars=False)  # here 0.12 knows a bare * alone
        first, last = INT64_MIN, INT64_MAX
        if low > INT64_MIN:
            first = low // self._interval
        if high < INT64_MAX:
            last = high // self._interval
        intent = DeleteIntent(IntentKind.RANGE, (pattern,), low, high, first, last)
        await self._delete(pattern, intent, deadline)

    async def _delete(self, pattern: PathPattern, intent: DeleteIntent, deadline: Deadline) -> bool:
        """Carry a delete out in every storage group that the pattern touches; whether any series matched.

        It goes on where it can when one storage group fails; the error tells all that failed.
        """
        groups = [reference(group) for group in self._meta.state.storage_groups_touched(pattern)]
        found = await asyncio.gather(
            *(self._delete_in(group, intent, deadline) for group in groups), return_exceptions=True
        )
        errors: list[CallerError] = []
        for outcome in found:
            if isinstance(outcome, CallerError):
                errors.append(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        if errors:
            raise _together(errors)
        return any(found)

    async def _delete_in(self, group: StorageGroupRef, intent: DeleteIntent, deadline: Deadline) -> bool:
        try:
            value = await self._at_schema_slot(group, intent, deadline)
        except CallerError as error:
            if type(error) is CallerError and error.code == Status.TIMESERIES_NOT_EXIST:
                return False
            raise
        if value["intent"]:
            await self._wait_until_retired(group, int(value["intent"]), deadline)
        return True

    async def _wait_until_retired(self, group: StorageGroupRef, number: int, deadline: Deadline) -> None:
        """The leader of the schema slot drives the delete to its end: ask it to say when."""

        try:
            while True:
                seen, place = self._catalog.version, self._catalog.schema_place(group)
                try:
                    await self._hear_of_retired(group, place, number, deadline)
                    return
                except Moved:
                    if deadline.passed:
                        raise
                await self._catalog.moved(seen, deadline)
        except CallerError:  # whatever keeps the end from being told: the delete stands in the log
            raise CallerError(
                Status.TIME_OUT, f"the delete in {group.path} has begun and is being carried out"
            ) from None

    async def _hear_of_retired(self, group: StorageGroupRef, place: Place, number: int, deadline: Deadline) -> None:
        head = {
            "group": place.group,
            "storage_group": group.id,
            "slot": place.slot,
            "epoch": place.epoch,
            "intent": number,
        }

        async def attempt(node: int, within: Deadline) -> memoryview:
            return await self._calls.call(node, "retired", pack(head), within)

        await self._leaders.run(place.group, attempt, deadline, repeatable=True)


def _is_gone(error: CallerError | None) -> bool:
    return error is not None and error.code == Status.STORAGE_GROUP_NOT_EXIST


def _together(errors: Sequence[CallerError]) -> CallerError:
    """One error for several: that the outcome of one is unknown counts most, then what the first was."""
    if len(errors) == 1:
        return errors[0]
    messages = list(dict.fromkeys(error.message for error in errors))
    text = "; ".join(messages[:ERRORS_TOLD_MAX])
    if len(messages) > ERRORS_TOLD_MAX:
        text += f"; and {len(messages) - ERRORS_TOLD_MAX} more"
    if any(isinstance(error, OutcomeUnknown) for error in errors):
        return OutcomeUnknown(text)
    return CallerError(errors[0].code, text)
