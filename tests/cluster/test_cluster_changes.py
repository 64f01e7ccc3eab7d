"""Changes of schema at the coordinator, and reads by consistency level."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.calls import Deadline, Leaders
from iotdb_cluster.cluster.catalog import Known, Place, StorageGroupRef
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.cluster.statement_reads import StatementReads
from iotdb_cluster.columns import DataType, shape_of
from iotdb_cluster.data import decode_header
from iotdb_cluster.errors import CallerError, Moved, OutcomeUnknown, Status
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import SeriesSpec
from tests.cluster.shell import run_virtual, world_of

ADDRESS = NodeAddress("127.0.0.1", 1, 2, 3)
SETTINGS = Settings(ADDRESS, (ADDRESS,), "/d")


class Fakes:
    """A catalog whose storage group was deleted and made again, and a group that knows it; both in one."""

    def __init__(self) -> None:
        self.seen = StorageGroupRef(5, "root.sg", None)
        self.real = StorageGroupRef(9, "root.sg", None)
        self.epoch = 1
        self.sequence = 0

    async def storage_group(self, _device: str, _deadline: Deadline) -> StorageGroupRef:
        return self.seen

    def schema_place(self, _: StorageGroupRef) -> Place:
        return Place(3, self.epoch, 1)

    version = 1

    async def moved(self, _seen: int, deadline: Deadline) -> None:
        await self.refresh(deadline)

    async def refresh(self, _: Deadline) -> None:
        await asyncio.sleep(0.001)
        self.seen, self.epoch = self.real, 2

    async def identified(self, _group: Any, wanted: Any, _deadline: Deadline) -> Any:
        self.sequence += 1
        _, header = decode_header(wanted.payload(RequestId(1, 1, self.sequence, 1)))
        if header.storage_group != self.real.id:
            raise CallerError(Status.STORAGE_GROUP_NOT_EXIST, "deleted")
        if header.slot_epoch < 2:
            raise Moved("slot 3 has epoch 2 here")
        return {"series": [None]}


def test_a_column_named_by_its_alias_is_that_of_its_series_and_the_last_name_counts() -> None:
    types = {"root.sg.d": {"a": int(DataType.INT32), "s": int(DataType.INT32), "t": int(DataType.INT32)}}
    known = Known(4, types, {}, {"root.sg.d": {"a": "s"}})
    group = StorageGroupRef(1, "root.sg", None)

    def resolve(*names: str) -> tuple[Any, ...]:
        found = known.resolve(group, "root.sg.d", shape_of(names, (DataType.INT32,) * len(names)))
        return found.kept, found.names, found.error

    assert resolve("s", "t") == (None, None, None)
    assert resolve("a", "t") == ((0, 1), ("s", "t"), None)
    assert resolve("s", "t", "a") == ((2, 1), ("s", "t"), None)


@pytest.mark.parametrize("old_group", [True, False])
def test_a_series_is_created_in_the_storage_group_that_is_there_now(old_group: bool) -> None:
    async def main() -> None:
        fakes = Fakes()
        if not old_group:
            fakes.seen = fakes.real
        changes = Changes(None, fakes, fakes, None, None, SETTINGS)  # type: ignore[arg-type]
        spec = SeriesSpec.default("root.sg.d.s", DataType.INT32)
        refused = CallerError(Status.METADATA_ERROR, "bad")
        outcomes = await changes.create_series([refused, spec], Deadline(world_of(1), 1_000))
        assert outcomes == [refused, None]
        assert fakes.sequence == 2

    run_virtual(main)


@pytest.mark.parametrize("consistency", ["strong", "mid", "weak"])
def test_mid_reads_what_a_member_has_where_no_leader_answers(consistency: str) -> None:
    async def main() -> None:
        world = world_of(1)
        leaders = Leaders(world, lambda _: 0, lambda _: [1, 2])
        settings = SimpleNamespace(consistency=consistency, partition_interval_ms=100)
        services = SimpleNamespace(world=world, leaders=leaders, settings=settings)
        reads = StatementReads(services, Deadline(world, 4_000), 0)  # type: ignore[arg-type]
        asked: list[str] = []

        async def attempt(_node: int, _within: Deadline, level: str) -> str:
            asked.append(level)
            await asyncio.sleep(0.01)
            if level == "strong":
                raise CallerError(Status.CONSISTENCY_FAILURE, "no majority")
            return level

        if consistency == "strong":
            with pytest.raises(CallerError, match="no majority"):
                await reads._at_leader(7, attempt)
            assert set(asked) == {"strong"}
        else:
            assert await reads._at_leader(7, attempt) == consistency
            assert asyncio.get_running_loop().time() < 1.5
            assert ("strong" in asked) == (consistency == "mid")

    run_virtual(main)


class _Groups:
    """Meta with storage groups a to d; deletes in b and c fail."""

    def __init__(self, failures: dict[str, CallerError]) -> None:
        self.failures = failures
        self.state = SimpleNamespace(storage_groups_touched=lambda _: [_group(name) for name in "abcd"])
        self.asked: list[str] = []

    async def barrier(self, _: Deadline) -> None:
        await asyncio.sleep(0)

    async def delete(self, group: StorageGroupRef, _intent: Any, _deadline: Deadline) -> bool:
        await asyncio.sleep(0.01 if group.path in self.failures else 0.02)
        self.asked.append(group.path)
        if group.path in self.failures:
            raise self.failures[group.path]
        return True


def _group(name: str) -> Any:
    return SimpleNamespace(id=ord(name), path=f"root.{name}", ttl_ms=None, dropping=False)


@pytest.mark.parametrize(
    ("failures", "wanted"),
    [
        ({"root.b": CallerError(Status.NO_LEADER, "no b")}, (Status.NO_LEADER, "no b")),
        (
            {"root.b": CallerError(Status.NO_LEADER, "no b"), "root.c": CallerError(Status.TIME_OUT, "no c")},
            (Status.NO_LEADER, "no b; no c"),
        ),
        (
            {"root.b": CallerError(Status.NO_LEADER, "no b"), "root.c": OutcomeUnknown("who knows")},
            (Status.TIME_OUT, "no b; who knows"),
        ),
    ],
)
def test_a_delete_in_several_storage_groups_tells_every_failure(
    failures: dict[str, CallerError], wanted: tuple[Status, str]
) -> None:
    async def main() -> None:
        groups = _Groups(failures)
        changes = Changes(groups, None, None, None, None, SETTINGS)  # type: ignore[arg-type]
        changes._delete_in = groups.delete  # type: ignore[method-assign]
        with pytest.raises(CallerError) as caught:
            await changes.delete_points("root", 0, 10, Deadline(world_of(1), 1_000))
        assert (caught.value.code, caught.value.message) == wanted
        assert sorted(groups.asked) == ["root.a", "root.b", "root.c", "root.d"], "it goes on where it can"

    run_virtual(main)
