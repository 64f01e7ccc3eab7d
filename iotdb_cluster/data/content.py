"""Digests of what a group holds that do not depend on which group holds it: they compare a cluster with another one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from iotdb_cluster.data.group import DataGroup
from iotdb_cluster.packing import pack
from iotdb_cluster.schema import PathPattern, SchemaTree
from iotdb_cluster.storage import UnitId, UnitReader

__all__ = ["Content", "content_work", "merged_digests", "tree_of"]

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


def tree_of(group: DataGroup, storage_group: int) -> SchemaTree | None:
    """The schema of a storage group whose schema slot is here."""
    if storage_group not in group.storage_groups():
        return None
    header = group.schema_header(storage_group)
    known = group.schema(storage_group, header.slot, header.slot_epoch)
    return None if known is None else known.tree


def content_work(group: DataGroup) -> tuple[Callable[[], Content], Callable[[], None]]:
    """(what a worker runs for the digests of the group as it is now; what unpins its files, on the loop)."""
    trees = {number: tree_of(group, number) for number in group.storage_groups()}
    dumps = {number: tree.dump() for number, tree in trees.items() if tree is not None}
    units = sorted(group.units())
    readers: list[UnitReader] = []

    def release() -> None:
        for reader in readers:
            reader.close()

    def work() -> Content:
        found = Content({number: _schema_digest(SchemaTree.load(dump)) for number, dump in dumps.items()})
        for key, reader in zip(units, readers, strict=True):
            if reader.series():
                found.partitions[key] = f"{reader.digest():016x}"
        return found

    try:
        readers.extend(group.store.reader(UnitId(*key)) for key in units)
    except BaseException:
        release()
        raise
    return work, release


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
