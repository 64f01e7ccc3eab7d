"""Statements that act on the files and caches of every node: FLUSH, MERGE, CLEAR CACHE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.compaction import MERGE_CALL
from iotdb_cluster.cluster.housekeeping import FLUSH_CALL
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.packing import pack

__all__ = ["CLEAR_CACHE_CALL", "Everywhere"]

CLEAR_CACHE_CALL = "clear cache"


class Everywhere:
    """Asks every registered node. The first failure is raised, after all others were asked too."""

    def __init__(self, meta: MetaAccess, calls: Calls) -> None:
        self._meta = meta
        self._calls = calls

    async def flush(self, paths: Sequence[str], deadline: Deadline) -> None:
        """The memtables of these storage groups (none named: of all) go to disk; 303 where a path is no such group."""
        await self._meta.barrier(deadline)
        known = {group.path: group.id for group in self._meta.state.storage_groups()}
        missing = [path for path in paths if path not in known]
        if missing:
            raise CallerError(
                Status.METADATA_ERROR,
                f"Storage group is not set for current seriesPath: [{','.join(missing)}]",
            )
        named = sorted({known[path] for path in paths}) if paths else None
        await self._ask(FLUSH_CALL, {"storage_groups": named}, deadline)

    async def merge(self, full: bool, deadline: Deadline) -> None:
        """Begin to merge files; it goes on in the background."""
        await self._ask(MERGE_CALL, {"full": full}, deadline)

    async def clear_caches(self, deadline: Deadline) -> None:
        await self._ask(CLEAR_CACHE_CALL, None, deadline)

    async def _ask(self, method: str, body: Any, deadline: Deadline) -> None:
        nodes = [node.id for node in self._meta.state.nodes if node.registered]
        for failure in await self._calls.call_each(nodes, method, pack(body), deadline):
            if failure is not None:
                raise failure
