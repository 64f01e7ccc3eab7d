"""The coordinator of inserts: what is outdated is planned anew, and every failure names the right rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.catalog import Known, Place, StorageGroupRef
from iotdb_cluster.cluster.proposals import Wanted
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.writes import WAVE_BYTES, Failure, Writer
from iotdb_cluster.columns import Column, DataType, Tablet, shape_of
from iotdb_cluster.data import Header, Kind, decode_header, times_of
from iotdb_cluster.data.entries import decode_insert
from iotdb_cluster.errors import CallerError, Moved, OutcomeUnknown, StaleSchema, Status
from iotdb_cluster.requests import RequestId
from tests.cluster.shell import run_virtual, world_of

INTERVAL = 100
ADDRESS = NodeAddress("127.0.0.1", 1, 2, 3)
SETTINGS = Settings(ADDRESS, (ADDRESS,), "/d", partition_interval_ms=INTERVAL)
Refuse = Callable[[Header, list[int]], CallerError | None]


class FakeCatalog:
    def __init__(self) -> None:
        self.group = StorageGroupRef(5, "root.sg", None)
        self.epoch = 1
        self.types: dict[str, int] = {"s1": int(DataType.INT64), "s2": int(DataType.INT64)}
        self.refreshed = 0
        self.asked = 0  # how often the schema was
        self.version = 7
        self.broken: dict[str, CallerError] = {}

    def place(self, _: StorageGroupRef, partition: int) -> Place:
        return Place(partition % 7, 1, 1)

    def current(self, group: StorageGroupRef) -> StorageGroupRef | None:
        return group if group == self.group else None

    async def refresh(self, _: Deadline) -> None:
        self.refreshed += 1

    async def moved(self, seen: int, _: Deadline) -> None:
        assert seen == self.version
        self.refreshed += 1

    async def storage_group(self, device: str, _: Deadline) -> StorageGroupRef:
        if device.startswith("root.other"):
            return StorageGroupRef(6, "root.other", None)
        return self.group

    async def ensure(self, group: StorageGroupRef, devices: Mapping[str, Mapping[str, DataType]], _: Deadline) -> Known:
        self.asked += 1
        await asyncio.sleep(0)
        if group.path in self.broken:
            raise self.broken[group.path]
        return Known(self.epoch, dict.fromkeys(devices, self.types), {})


class FakeProposals:
    def __init__(self, refuse: Refuse) -> None:
        self.refuse = refuse
        self.sequence = 0
        self.written: list[int] = []
        self.at_once = self.most = self.calls_together = 0

    async def identified(self, _group: Callable[[], int], wanted: Wanted, _deadline: Deadline) -> Any:
        self.sequence += 1
        entry = wanted.payload(RequestId(1, 1, self.sequence, 1))
        kind, header = decode_header(entry)
        assert kind is Kind.INSERT
        self.at_once += len(entry)
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= len(entry)
        times = [time for block in decode_insert(entry) for time in times_of(block).tolist()]
        error = self.refuse(header, times)
        if error is not None:
            raise error
        self.written += times
        return "done"

    async def together(self, group: Callable[[], int], wanted: Sequence[Wanted], deadline: Deadline) -> list[Any]:
        self.calls_together += 1
        each = (self.identified(group, one, deadline) for one in wanted)
        return await asyncio.gather(*each, return_exceptions=True)


def tablet(times: list[int], device: str = "root.sg.d1", names: tuple[str, ...] = ("s1",)) -> Tablet:
    columns = [Column(DataType.INT64, np.array(times, np.int64) * 10) for _ in names]
    return Tablet(device, shape_of(names, (DataType.INT64,) * len(names)), np.array(times, np.int64), columns)


def insert(
    blocks: list[Tablet], catalog: FakeCatalog, refuse: Refuse = lambda *_: None, now: int = 0, limit_ms: float = 1_000
) -> tuple[list[Failure], FakeProposals]:
    proposals = FakeProposals(refuse)

    async def main() -> list[Failure]:
        world = world_of(3)
        writer = Writer(catalog, proposals, SETTINGS, world.workers)  # type: ignore[arg-type]
        writer._open = AsyncMock()  # type: ignore[method-assign]
        return await writer.insert(blocks, now, Deadline(world, limit_ms))

    return run_virtual(main), proposals


def times_of_failures(failures: list[Failure], blocks: list[Tablet]) -> dict[int, Status]:
    found: dict[int, Status] = {}
    for failure in failures:
        times = blocks[failure.origin].times
        for time in times if failure.rows is None else times[failure.rows]:
            found[int(time)] = failure.error.code
    return found


@pytest.mark.parametrize("outdated", [Moved("m"), StaleSchema("s"), CallerError(Status.STORAGE_GROUP_NOT_EXIST, "g")])
def test_what_is_outdated_is_cut_anew_and_failures_name_the_rows_of_the_call(outdated: CallerError) -> None:
    catalog = FakeCatalog()
    blocks = [tablet([250, 10, 120, 20, 130]), tablet([140, 30], "root.sg.d2")]
    met: set[int] = set()

    def refuse(header: Header, _: list[int]) -> CallerError | None:
        if header.partition == 1 and header.request.sequence not in met and len(met) < 2:
            met.add(header.request.sequence)
            if len(met) == 2:
                return CallerError(Status.WRITE_PROCESS_REJECT, "full")
            catalog.epoch = 9
            return outdated
        return None

    failures, proposals = insert(blocks, catalog, refuse)
    assert catalog.refreshed == 1
    assert times_of_failures(failures, blocks) == dict.fromkeys([120, 130, 140], Status.WRITE_PROCESS_REJECT)
    assert sorted(proposals.written) == [10, 20, 30, 250]


@pytest.mark.parametrize(("outdated", "asked"), [(Moved("m"), 1), (StaleSchema("s"), 2)], ids=["moved", "stale"])
def test_a_slot_that_moves_takes_series_and_open_units_along(outdated: CallerError, asked: int) -> None:
    """The schema slot is not asked again: it may be fenced for a move of its own, and the call would wait for both."""
    catalog, refused, opened = FakeCatalog(), [], []

    def refuse(*_: Any) -> CallerError | None:
        refused.append(1)
        return outdated if len(refused) == 1 else None

    async def main() -> None:
        world = world_of(3)
        writer = Writer(catalog, FakeProposals(refuse), SETTINGS, world.workers)  # type: ignore[arg-type]

        async def opening(group: StorageGroupRef, partition: int, _: Deadline) -> None:
            opened.append(partition)
            writer._open_units[group.id, partition] = None

        writer._open = opening  # type: ignore[method-assign]
        assert not await writer.insert([tablet([1, 2])], 0, Deadline(world, 1_000))

    run_virtual(main)
    assert (catalog.asked, len(opened), len(refused)) == (asked, asked, 2)


def test_what_stays_outdated_fails_at_the_deadline_and_is_not_tried_in_a_hot_loop() -> None:
    catalog = FakeCatalog()
    failures, proposals = insert([tablet([1])], catalog, lambda *_: StaleSchema("always"))
    assert [failure.error.code for failure in failures] == [Status.METADATA_ERROR]
    assert 3 < proposals.sequence < 40


def test_rows_outside_the_ttl_do_not_shift_the_others() -> None:
    catalog = FakeCatalog()
    catalog.group = catalog.group._replace(ttl_ms=1_000)
    blocks = [tablet([50, 4_900, 60, 4_110, 4_910, 4_120])]

    def refuse(header: Header, _: list[int]) -> CallerError | None:
        return OutcomeUnknown("?") if header.partition == 41 else None

    failures, proposals = insert(blocks, catalog, refuse, now=5_000)
    expected = {50: Status.OUT_OF_TTL, 60: Status.OUT_OF_TTL, 4_110: Status.TIME_OUT, 4_120: Status.TIME_OUT}
    assert times_of_failures(failures, blocks) == expected
    assert sorted(proposals.written) == [4_900, 4_910]


def test_a_column_of_another_type_fails_and_the_others_are_written() -> None:
    catalog = FakeCatalog()
    catalog.types["s2"] = int(DataType.TEXT)
    failures, proposals = insert([tablet([1, 2], names=("s1", "s2"))], catalog)
    assert [(failure.rows, failure.error.code) for failure in failures] == [(None, Status.STORAGE_ENGINE_ERROR)]
    assert sorted(proposals.written) == [1, 2]


def test_a_storage_group_that_cannot_be_asked_fails_alone() -> None:
    catalog = FakeCatalog()
    catalog.broken["root.other"] = CallerError(Status.NO_LEADER, "no leader")
    blocks = [tablet([1]), tablet([2], "root.other.d"), tablet([3], "root.sg.d3")]
    failures, proposals = insert(blocks, catalog)
    assert times_of_failures(failures, blocks) == {2: Status.NO_LEADER}
    assert sorted(proposals.written) == [1, 3]


def test_a_huge_call_has_few_bytes_under_way_at_once() -> None:
    times = np.arange(3_000_000, dtype=np.int64)
    block = Tablet("root.sg.d1", shape_of(("s1",), (DataType.INT64,)), times, [Column(DataType.INT64, times)])
    proposals = FakeProposals(lambda *_: None)

    async def main() -> list[Failure]:
        world = world_of(4)
        settings = replace(SETTINGS, partition_interval_ms=1 << 40)
        writer = Writer(FakeCatalog(), proposals, settings, world.workers)  # type: ignore[arg-type]
        writer._open = AsyncMock()  # type: ignore[method-assign]
        return await writer.insert([block], 0, Deadline(world, 60_000))

    assert not run_virtual(main)
    assert proposals.sequence > 10
    assert proposals.most <= WAVE_BYTES


def test_parts_of_one_data_group_go_there_in_one_call() -> None:
    times = [partition * INTERVAL for partition in range(14)]  # all their slots belong to one group
    failures, proposals = insert([tablet(times)], FakeCatalog())
    assert not failures
    assert proposals.calls_together == 1
    assert sorted(proposals.written) == times
