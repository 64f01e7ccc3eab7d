"""Questions about the schema: asked by a coordinator, answered by the leader of each storage group's schema slot.

A call names storage groups as [id, path, slot, epoch]; the answer has one item a storage group, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.data import DataGroup
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.schema import PathPattern, SchemaTree

__all__ = ["SchemaServing"]


class SchemaServing:
    """The handler `schema`."""

    def __init__(self, driver: Driver, machines: dict[int, DataMachine]) -> None:
        self._driver = driver
        self._machines = machines

    def register(self, calls: Calls) -> None:
        calls.handlers["schema"] = self.answer

    async def answer(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        number = int(head["group"])
        await barrier_at_leader(self._driver, number, head["consistency"], deadline)
        data = self._machines[number].data
        question = _QUESTIONS[head["question"]]
        return pack([_one(data, item, question, head) for item in head["storage_groups"]])


def _one(data: DataGroup, item: Sequence[Any], question: Callable[[SchemaTree, Any], Any], head: Any) -> Any:
    identifier, path, slot, epoch = item
    known = data.schema(identifier, slot, epoch)
    if known is None:
        return {"epoch": 0, "partitions": [], "value": question(SchemaTree(path), head)}
    return {"epoch": known.epoch, "partitions": sorted(known.directory), "value": question(known.tree, head)}


# --- the questions ----------------------------------------------------------------------------------------------------


def _series(tree: SchemaTree, head: Any) -> list[Any]:
    """For each pattern its series."""
    limit = head["limit"]
    return [
        [series.to_json() for series in tree.match(PathPattern.parse(text), limit=limit)] for text in head["patterns"]
    ]


def _devices(tree: SchemaTree, head: Any) -> list[str]:
    return tree.devices(PathPattern.parse(head["pattern"]), limit=head["limit"])


def _children(tree: SchemaTree, head: Any) -> list[str]:
    return tree.child_paths(PathPattern.parse(head["pattern"]))


def _count(tree: SchemaTree, head: Any) -> list[int]:
    """[how many series match, how many nodes before the first wildcard are there]."""
    pattern = PathPattern.parse(head["pattern"], prefix_stars=False)
    return [tree.count(pattern), tree.reach(pattern.literal_prefix)]


def _count_by_level(tree: SchemaTree, head: Any) -> dict[str, int]:
    return tree.count_by_level(PathPattern.parse(head["pattern"], prefix_stars=False), head["level"])


def _nodes(tree: SchemaTree, head: Any) -> list[Any]:
    """[paths of the nodes at the level, how many nodes before the first wildcard are there]."""
    pattern = PathPattern.parse(head["pattern"])
    return [tree.nodes_at_level(pattern, head["level"]), tree.reach(pattern.literal_prefix)]


def _is_tag(tree: SchemaTree, head: Any) -> bool:
    return tree.has_tag(head["key"])


def _everything(tree: SchemaTree, head: Any) -> list[Any]:
    del head
    return [series.to_json() for series in tree.iterate(PathPattern.parse("root"))]


_QUESTIONS: dict[str, Callable[[SchemaTree, Any], Any]] = {
    "series": _series,
    "devices": _devices,
    "children": _children,
    "count": _count,
    "count by level": _count_by_level,
    "nodes": _nodes,
    "is tag": _is_tag,
    "everything": _everything,
}
