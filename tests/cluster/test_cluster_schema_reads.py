"""Walks of a schema on a worker, while the loop changes it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.schema_reads import SchemaServing
from iotdb_cluster.columns import DataType
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.schema import SchemaTree, SeriesSpec
from tests.cluster.shell import run_virtual, world_of


class Tree(SchemaTree):
    """Its first walks meet a change in the midst of it, which may show as anything."""

    broken: list[Exception]
    changes = True

    def is_quick(self, *_: Any) -> bool:
        return False

    def match(self, *how: Any, **also: Any) -> Any:
        if self.broken:
            self.version += self.changes
            raise self.broken.pop()
        return super().match(*how, **also)


def asked(tree: Tree) -> Any:
    """The series of the tree, as `SchemaServing` finds them."""

    async def main() -> Any:
        data = SimpleNamespace(schema=lambda *_: SimpleNamespace(tree=tree, epoch=3, directory={}))
        driver: Any = SimpleNamespace(groups={7: SimpleNamespace(id=7)})
        world, machines, settings = world_of(1), {7: SimpleNamespace(data=data)}, SimpleNamespace(read_lag_max=None)
        serving = SchemaServing(world, driver, machines, settings)  # type: ignore[arg-type]
        head = {
            "group": 7,
            "consistency": "weak",
            "question": "series",
            "patterns": ["root.sg"],
            "limit": None,
            "storage_groups": [[1, "root.sg", 5, 2]],
        }
        answer = await serving.answer(memoryview(pack(head)), Deadline(world, 1_000))
        await asyncio.sleep(0)
        return unpack(answer)[0]

    return run_virtual(main)


def tree_with(*broken: Exception) -> Tree:
    tree = Tree("root.sg")
    tree.create_series(SeriesSpec.default("root.sg.d.s", DataType.INT32))
    tree.broken = list(broken)
    return tree


def test_a_change_in_the_midst_of_a_walk_shows_as_nothing() -> None:
    broken = AttributeError("'NoneType' object has no attribute 'get'"), KeyError("s"), RuntimeError("changed size")
    tree = tree_with(*broken, TypeError("'NoneType' object is not iterable"))
    ((found, *_),) = [one["value"] for one in asked(tree)]
    assert len(found) == 1
    assert not tree.broken


def test_a_walk_that_fails_though_nothing_changed_is_our_bug() -> None:
    tree = tree_with(AttributeError("'NoneType' object has no attribute 'get'"))
    tree.changes = False
    with pytest.raises(AttributeError):
        asked(tree)
