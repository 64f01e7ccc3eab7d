"""Questions about the schema: asked by a coordinator, answered by the leader of each storage group's schema slot.

A call names storage groups as [id, path, slot, epoch]; the answer has one item a storage group, in that order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.data_group import DataMachine
from iotdb_cluster.cluster.driver import Driver
from iotdb_cluster.cluster.reading import barrier_at_leader
from iotdb_cluster.cluster.settings import Settings
from iotdb_cluster.data import DataGroup
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.schema import PathPattern, SchemaTree
from iotdb_cluster.world import World

__all__ = ["SchemaServing"]

NODES_INLINE_MAX = 500  # nodes of a tree that are looked at on the loop: about 3 ms
PATTERNS_INLINE_MAX = 100
WALKS_MAX = 5  # tries on a worker before a tree that changes all the time is walked on the loop


class SchemaServing:
    """The handler `schema`.

    Long walks run on a worker while the loop goes on. Where a tree changed meanwhile the walk is worth nothing and is
    done again; after some tries on the loop, where nothing changes.
    """

    def __init__(self, world: World, driver: Driver, machines: dict[int, DataMachine], settings: Settings) -> None:
        self._world = world
        self._driver = driver
        self._settings = settings
        self._machines = machines

    def register(self, calls: Calls) -> None:
        calls.handlers["schema"] = self.answer

    async def answer(self, body: memoryview, deadline: Deadline) -> bytes:
        head, _ = unpack(body)
        number = int(head["group"])
        await barrier_at_leader(self._driver, number, head["consistency"], deadline, self._settings.read_lag_max)
        data = self._machines[number].data
        items = [_Item.of(data, item) for item in head["storage_groups"]]
        if all(item.is_quick(head) for item in items):
            return _answered(items, head)
        for _ in range(WALKS_MAX):
            versions = [item.tree.version for item in items]
            try:
                found = await self._world.workers.run(_answered, items, head)
            except Exception:  # of whatever kind: a change came in the way of the walk, unless there was none
                if versions == [item.tree.version for item in items]:
                    raise
                continue
            if versions == [item.tree.version for item in items]:
                return found
        return _answered(items, head)


@dataclass(frozen=True, slots=True)
class _Item:
    """What is asked of one storage group."""

    tree: SchemaTree
    epoch: int
    partitions: list[int]

    @classmethod
    def of(cls, data: DataGroup, item: Sequence[Any]) -> _Item:
        identifier, path, slot, epoch = item
        known = data.schema(identifier, slot, epoch)
        if known is None:
            return cls(SchemaTree(path), 0, [])
        return cls(known.tree, known.epoch, sorted(known.directory))

    def is_quick(self, head: Any) -> bool:
        if head["question"] == "is tag":
            return True
        patterns = head.get("patterns") or [head.get("pattern", "root")]
        if len(patterns) > PATTERNS_INLINE_MAX:
            return False
        return all(self.tree.is_quick(PathPattern.parse(text), NODES_INLINE_MAX) for text in patterns)


def _answered(items: Sequence[_Item], head: Any) -> bytes:
    question = _QUESTIONS[head["question"]]
    return pack(
        [{"epoch": item.epoch, "partitions": item.partitions, "value": question(item.tree, head)} for item in items]
    )


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
