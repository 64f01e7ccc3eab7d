"""The storage groups of the cluster, by path and by id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta.records import StorageGroup
from iotdb_cluster.schema.paths import PathPattern, check_storage_group_path, path_does_not_exist, split_path

__all__ = ["StorageGroups"]


class StorageGroups:
    """No one lies above or below another, those being dropped included. Operations that raise have changed nothing."""

    def __init__(self) -> None:
        self._by_path: dict[str, StorageGroup] = {}
        self._by_id: dict[int, StorageGroup] = {}
        self._nodes: dict[str, tuple[str, ...]] = {}
        self._sorted: list[StorageGroup] | None = None  # by path; made anew after a change

    # --- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._by_path)

    def at_or_above(self, path: str) -> StorageGroup | None:
        """The storage group that a device's or series' path lies in."""
        # Nodes of storage groups have no quotes, so cutting at every dot finds each path that can be one.
        end = path.find(".")
        while end >= 0:
            end = path.find(".", end + 1)
            found = self._by_path.get(path if end < 0 else path[:end])
            if found is not None:
                return found
        return None

    def by_id(self, storage_group: int) -> StorageGroup | None:
        return self._by_id.get(storage_group)

    def by_path(self, path: str) -> StorageGroup | None:
        return self._by_path.get(path)

    def select(self, pattern: PathPattern | None, *, dropping: bool) -> list[StorageGroup]:
        """Those at or below the pattern (None: all), by path; `dropping`: also those that are being dropped."""
        return [
            group
            for group in self._ordered()
            if (dropping or not group.dropping) and (pattern is None or pattern.matches(self._nodes[group.path]))
        ]

    def touched(self, pattern: PathPattern) -> list[StorageGroup]:
        """Those in which a matching series can lie, by path, without those that are being dropped."""
        return [group for group in self._ordered() if not group.dropping and pattern.touches(self._nodes[group.path])]

    def _ordered(self) -> list[StorageGroup]:
        if self._sorted is None:
            self._sorted = [group for _, group in sorted(self._by_path.items())]
        return self._sorted

    # --- changing -----------------------------------------------------------------------------------------------------

    def create(self, path: str, index: int) -> StorageGroup:
        nodes = check_storage_group_path(path)
        for end in range(2, len(nodes) + 1):
            found = self._by_path.get(".".join(nodes[:end]))
            if found is not None:
                self._refuse_while_dropping(found)
                text = f"{found.path} has already been set to storage group"
                raise CallerError(Status.PATH_ALREADY_EXIST, text)
        below = [group for group in self._ordered() if group.path.startswith(path + ".")]
        for found in below:
            self._refuse_while_dropping(found)
        if below:
            text = f"some children of {path} have already been set to storage group"
            raise CallerError(Status.PATH_ALREADY_EXIST, text)
        group = StorageGroup(id=index, path=path, changed=index)
        self._put(group)
        return group

    @staticmethod
    def _refuse_while_dropping(group: StorageGroup) -> None:
        if group.dropping:
            text = f"storage group {group.path} is being deleted, try again when it is gone"
            raise CallerError(Status.STORAGE_GROUP_NOT_READY, text)

    def begin_drop(self, paths: Iterable[str], index: int) -> list[StorageGroup]:
        """Those at or below each path; 304 where a path has none, and then none is dropped."""
        chosen: dict[str, StorageGroup] = {}
        missing = []
        for path in paths:
            found = self.select(PathPattern.parse(path), dropping=True)
            if not found:
                missing.append(path)
            chosen.update((group.path, group) for group in found)
        if missing:
            raise path_does_not_exist(*missing)
        dropped = []
        for _, group in sorted(chosen.items()):
            marked = group if group.dropping else replace(group, dropping=True, changed=index)
            self._put(marked)
            dropped.append(marked)
        return dropped

    def finish_drop(self, storage_group: int) -> None:
        """Does nothing where it is gone already."""
        group = self._by_id.get(storage_group)
        if group is None:
            return
        if not group.dropping:
            text = f"the deletion of storage group {group.path} has not begun"
            raise CallerError(Status.METADATA_ERROR, text)
        self._sorted = None
        del self._by_id[storage_group]
        del self._by_path[group.path]
        del self._nodes[group.path]

    def set_ttl(self, path: str, ttl_ms: int | None, index: int) -> list[StorageGroup]:
        """For those at or below the path, which may be none."""
        changed = []
        for group in self.select(PathPattern.parse(path), dropping=False):
            fresh = replace(group, ttl_ms=ttl_ms, changed=index)
            self._put(fresh)
            changed.append(fresh)
        return changed

    def _put(self, group: StorageGroup) -> None:
        self._sorted = None
        self._by_path[group.path] = group
        self._by_id[group.id] = group
        self._nodes[group.path] = split_path(group.path)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def dump(self) -> list[list[Any]]:
        return [[group.id, group.path, group.ttl_ms, group.dropping, group.changed] for group in self._ordered()]

    @classmethod
    def load(cls, dumped: Iterable[Any]) -> StorageGroups:
        groups = cls()
        for storage_group, path, ttl_ms, dropping, changed in dumped:
            groups._put(StorageGroup(storage_group, path, ttl_ms, dropping, changed))
        return groups
