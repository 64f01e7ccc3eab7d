"""Digests of what a group holds that do not depend on which group holds it: they compare a cluster with another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.data.digests import Pinned
from iotdb_cluster.data.group import DataGroup
from iotdb_cluster.packing import pack
from iotdb_cluster.schema import PathPattern, SchemaTree

__all__ = ["Content", "PinnedContent", "merged_digests"]

_EMPTY = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class Content:
    """Digests by storage-group id: of its schema, where that lives here, and of each time partition with points."""

    schemas: dict[int, str] = field(default_factory=dict)
    partitions: dict[tuple[int, int], str] = field(default_factory=dict)

    def to_json(self) -> list[Any]:
        return [sorted(self.schemas.items()), [[*key, digest] for key, digest in sorted(self.partitions.items())]]

    @classmethod
    def from_json(cls, value: list[Any]) -> Content:
        schemas, partitions = value
        return cls(dict(map(tuple, schemas)), {(group, partition): digest for group, partition, digest in partitions})


class PinnedContent(Pinned):
    """What a group holds as it is when this is made."""

    def __init__(self, group: DataGroup) -> None:
        """CorruptData where a unit is damaged."""
        super().__init__(group.store, group.units(), group.trees())

    def digests(self) -> Content:
        """On a worker. CorruptData where a unit is damaged."""
        found = Content({number: _schema_digest(SchemaTree.load(tree.encode())) for number, tree in self.trees.items()})
        for key, reader in self.readers.items():
            if reader.series():
                found.partitions[key] = f"{reader.digest():016x}"
        return found


def _schema_digest(tree: SchemaTree) -> str:
    """Over every series with all that is declared of it, whenever and in whatever order they were created."""
    found = hashlib.sha256()
    for series in tree.iterate(PathPattern.parse(tree.storage_group)):
        found.update(pack(series.to_json()))
    return found.hexdigest()


def merged_digests(contents: Iterable[Content], paths: Mapping[int, str]) -> dict[str, str]:
    """One digest for each storage group by its path, of what several groups hold; ids not in `paths` are left out.

    A storage group without series has none, also where its schema was once made and is empty again.
    """
    lines: dict[str, list[str]] = {path: [] for path in paths.values()}
    for content in contents:
        for number, digest in content.schemas.items():
            if number in paths and digest != _EMPTY:
                lines[paths[number]].append(f"schema {digest}")
        for (number, partition), digest in content.partitions.items():
            if number in paths:
                lines[paths[number]].append(f"{partition} {digest}")
    return {path: hashlib.sha256("\n".join(sorted(some)).encode()).hexdigest() for path, some in sorted(lines.items())}
