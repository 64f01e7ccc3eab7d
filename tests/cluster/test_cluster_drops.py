"""A storage group that goes is dropped in every group, also in one that is made meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from iotdb_cluster.cluster.duties import Duties
from tests.cluster.shell import run_virtual


def test_a_group_that_is_made_meanwhile_hears_of_the_drop_too() -> None:
    """Units may move there from a group that had not heard of it when they left."""

    async def main() -> None:
        groups, told, done = [SimpleNamespace(id=number) for number in (1, 2, 3)], [], []

        async def patiently(group: Any, payload: bytes, deadline: Any) -> None:
            del payload, deadline
            told.append(group())
            if group() == 3:
                groups.append(SimpleNamespace(id=4))

        async def propose(command: Any, deadline: Any) -> None:
            del command, deadline
            done.append(list(told))

        state = SimpleNamespace(
            groups=groups,
            owner_of_slot=lambda slot: (groups[1], slot),
            slot_map=SimpleNamespace(schema_slot_of=len),
        )
        world = SimpleNamespace(clock=SimpleNamespace(monotonic_ms=lambda: 0.0))
        parts: list[Any] = [
            world,
            None,
            SimpleNamespace(state=state, propose=propose),
            SimpleNamespace(patiently=patiently),
            {},
            None,
        ]
        going: Any = SimpleNamespace(id=9, path="root.sg", changed=40)
        await Duties(*parts)._drop(going)
        assert done == [[2, 1, 3, 4]]

    run_virtual(main)
