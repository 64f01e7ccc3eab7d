"""What a group holds at one moment, pinned while it is read: to hash it, for example."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Self

from iotdb_cluster.packing import pack
from iotdb_cluster.schema import SchemaTree, TreeSnapshot
from iotdb_cluster.storage import Store, UnitId, UnitReader

__all__ = ["Digest", "Pinned"]


class Pinned:
    """Schemas and units as they are when this is made. Walk it with `step` on the loop until that gives False; then a
    worker may read it. A context manager, which lets go of it, on the loop."""

    def __init__(self, store: Store, units: Mapping[tuple[int, int], Any], trees: Mapping[int, SchemaTree]) -> None:
        """CorruptData where a unit is damaged."""
        self.readers: dict[tuple[int, int], UnitReader] = {}
        self.trees: dict[int, TreeSnapshot] = {}
        try:
            for key in sorted(units):
                self.readers[key] = store.reader(UnitId(*key))
        except BaseException:
            self.close()
            raise
        self.trees.update((number, tree.snapshot()) for number, tree in sorted(trees.items()))

    def step(self) -> bool:
        """Walk on through the schemas, some milliseconds; False when all are walked."""
        return any(tree.step() for tree in self.trees.values())

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Digest(Pinned):
    """A hash over what a group holds at a log position, equal for equal replicas, however their files lie."""

    def __init__(
        self,
        store: Store,
        units: Mapping[tuple[int, int], Any],
        trees: Mapping[int, SchemaTree],
        state: Any,
        imports: list[bytes],
    ) -> None:
        """`state`: what JSON can say of it. CorruptData where a unit is damaged."""
        super().__init__(store, units, trees)
        self._state = state
        self._imports = imports

    def compute(self) -> str:
        """On a worker. CorruptData where a unit is damaged."""
        found = hashlib.sha256(pack(self._state, [tree.encode() for tree in self.trees.values()] + self._imports))
        for (storage_group, partition), reader in self.readers.items():
            found.update(f"{storage_group} {partition} {reader.digest()}\n".encode())
        return found.hexdigest()
