"""A tree as it was at one moment, while it goes on changing.

Walking a large tree takes longer than the loop may be held. So a snapshot walks in steps; before a device changes that
the walk has not come to, the tree hands it over as it is. Devices are all that is remembered of the tree: each with its
series, in whose facts nothing ever changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from iotdb_cluster.errors import check
from iotdb_cluster.schema.facts import Facts, dump_devices

__all__ = ["TreeSnapshot", "Walked"]

STEP_NODES = 2_000  # looked at in one step: some 1 ms


class _Series:
    """Series one after another; in arrays, since the search for cycles would look at each cell of a list."""

    __slots__ = ("count", "facts", "names")

    def __init__(self, most: int) -> None:
        self.names = np.empty(most, object)
        self.facts = np.empty(most, object)
        self.count = 0

    def add(self, name: str, facts: Facts) -> None:
        self.names[self.count] = name
        self.facts[self.count] = facts
        self.count += 1


class Walked(Protocol):
    """What a snapshot needs of a node."""

    @property
    def children(self) -> Mapping[str, Walked] | None: ...
    @property
    def facts(self) -> Facts | None: ...


class TreeSnapshot:
    """Walk it with `step` on the loop until that gives False; then `encode` on any thread."""

    def __init__(self, storage_group: str, root: Walked, total: int, on_walked: Callable[[TreeSnapshot], None]) -> None:
        # `total`: how many series there are
        self._storage_group = storage_group
        self._found = _Series(total)  # by the walk
        # of each device that was come to or handed over: where its series are, from and to
        self._devices: dict[str, tuple[_Series, int, int]] = {}
        self._waiting: list[tuple[str, Walked]] = [(storage_group, root)]
        # the device at hand, where its series begin (-1: they were handed over), what is left of its children
        self._at: tuple[str, int, Iterator[tuple[str, Walked]]] | None = None
        self._on_walked = on_walked
        self._done = False

    def keep(self, device: str, node: Walked | None) -> None:
        """Its series are about to change; None where there is no such node yet."""
        if self._at is not None and self._at[0] == device:
            self._look(1 << 62)
        if device not in self._devices:
            children = (node.children if node is not None else None) or {}
            own = _Series(len(children))
            for name, child in children.items():
                if child.facts is not None:
                    own.add(name, child.facts)
            self._devices[device] = (own, 0, own.count)

    def step(self, nodes: int = STEP_NODES) -> bool:
        """Look at so many nodes; False when all is done."""
        while not self._done and nodes > 0:
            if self._at is None:
                if not self._waiting:
                    self._done = True
                    self._on_walked(self)
                    break
                path, node = self._waiting.pop()
                begin = -1 if path in self._devices else self._found.count
                self._at = (path, begin, iter(list((node.children or {}).items())))
            nodes = self._look(nodes) - 1
        return not self._done

    def _look(self, nodes: int) -> int:
        """On with the children of the node at hand; how many of `nodes` are left."""
        if self._at is None:
            return nodes
        path, begin, rest = self._at
        for name, child in rest:
            if child.facts is not None and begin >= 0:
                self._found.add(name, child.facts)
            if child.children is not None:
                self._waiting.append((f"{path}.{name}", child))
            nodes -= 1
            if nodes <= 0:
                return 0
        if begin >= 0:
            self._devices[path] = (self._found, begin, self._found.count)
        self._at = None
        return nodes

    def encode(self) -> bytes:
        """The bytes of a checkpoint; equal trees give equal bytes."""
        check(self._done, "the snapshot of %s was not walked to its end", self._storage_group)
        devices = []
        for path, (series, begin, end) in self._devices.items():
            if begin < end:
                names, facts = series.names[begin:end].tolist(), series.facts[begin:end].tolist()
                order = sorted(range(end - begin), key=names.__getitem__)
                devices.append((path, [names[at] for at in order], [facts[at] for at in order]))
        devices.sort(key=lambda device: f"{device[0]}.{device[1][0]}")
        return dump_devices(self._storage_group, devices)
