"""A delete that stands in the log is never answered as if it had been refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from iotdb_cluster.cluster.calls import Calls, Deadline, Leaders
from iotdb_cluster.cluster.catalog import StorageGroupRef
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.settings import NodeAddress, Settings
from iotdb_cluster.data import DeleteIntent, IntentKind
from iotdb_cluster.errors import CallerError, NotLeader, Status
from iotdb_cluster.schema import PathPattern
from tests.cluster.shell import run_virtual, world_of


class NoPeers:
    async def call(self, *_: object) -> memoryview:
        raise AssertionError("nobody else is asked")


@pytest.mark.parametrize(
    "lost", [NotLeader(0, "no leader"), CallerError(Status.NO_CONNECTION, "gone"), CallerError(Status.TIME_OUT, "late")]
)
def test_a_leader_that_is_lost_after_the_intent(lost: CallerError) -> None:
    """The intent is logged; then nobody can say when the delete has ended, until the time is up."""

    async def main() -> object:
        world = world_of(1)
        calls = Calls(1, NoPeers())

        async def retired(*_: object) -> bytes:
            raise lost

        calls.handlers["retired"] = retired

        async def identified(*_: object) -> Any:
            return {"intent": 4}

        changes = Changes(
            cast(Any, None),
            cast(Any, SimpleNamespace(version=1, schema_place=lambda _: SimpleNamespace(group=1, slot=0, epoch=1))),
            cast(Any, SimpleNamespace(identified=identified)),
            calls,
            Leaders(world, lambda _: 1, lambda _: [1]),
            Settings(NodeAddress("a", 1, 2, 3), (), "/d"),
        )
        group = cast(StorageGroupRef, SimpleNamespace(id=1, path="root.a"))
        intent = DeleteIntent(IntentKind.RANGE, (PathPattern.parse("root.a.d.s"),), 0, 9, 0, 0)
        try:
            return await changes._delete_in(group, intent, Deadline(world, 500))
        except CallerError as error:
            return error.code

    assert run_virtual(main) is Status.TIME_OUT
