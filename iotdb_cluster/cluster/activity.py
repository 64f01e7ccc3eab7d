"""What all nodes are doing: running queries, which any node lists and kills, and flushes.

A query's number says which node runs it (`limits.QUERY_IDS_PER_NODE`). A node that does not answer in time is left out
of the lists: nobody but itself knows what it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.limits import QUERY_IDS_PER_NODE
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.query.requests import FlushTasksInfo, RunningQuery

__all__ = ["Activity", "first_query_id", "no_such_query"]

logger = logging.getLogger(__name__)

ASK_MS = 1_000  # a node that does not answer within is left out


def first_query_id(node: int) -> int:
    """Queries of a node are numbered from here."""
    return node * QUERY_IDS_PER_NODE


def no_such_query(query_id: int) -> CallerError:
    """411, as the original answers."""
    return CallerError(Status.QUERY_PROCESS_ERROR, f"Query Id {query_id} is not exist, please check it.")


class Activity:
    """One node's view of them, and its own part for others to see."""

    def __init__(
        self,
        meta: MetaAccess,
        calls: Calls,
        running: Callable[[], list[RunningQuery]],
        kill: Callable[[int | None], int],
        flushing: Callable[[], FlushTasksInfo],
    ) -> None:
        """`kill(id or None)` ends a query of this node, or all, and says how many that were."""
        self._meta = meta
        self._calls = calls
        self._running = running
        self._kill = kill
        self._flushing = flushing

    def register(self, calls: Calls) -> None:
        calls.handlers.update({"activity": self._tell, "kill query": self._kill_here})

    # --- asking everybody ---------------------------------------------------------------------------------------------

    async def _all(self, deadline: Deadline) -> list[Any]:
        async def ask(node: int) -> Any:
            try:
                head, _ = unpack(await self._calls.call(node, "activity", pack(None), deadline.within(ASK_MS)))
            except CallerError as error:
                logger.info("node %d does not say what it does: %s", node, error.message)
                return {"queries": [], "flush": [0, 0, 0]}
            return head

        return await asyncio.gather(*(ask(node.id) for node in self._meta.state.nodes if node.registered))

    async def queries(self, deadline: Deadline) -> list[RunningQuery]:
        """Queries of all nodes that have a result set open, by id."""
        found = [RunningQuery(*item) for head in await self._all(deadline) for item in head["queries"]]
        return sorted(found, key=lambda query: query.id)

    async def flush_tasks(self, deadline: Deadline) -> FlushTasksInfo:
        """Of all nodes together."""
        counts = [head["flush"] for head in await self._all(deadline)]
        total, working, waiting = (sum(column) for column in zip(*counts, strict=True))
        return FlushTasksInfo(total, working, waiting)

    async def kill(self, query_id: int | None, deadline: Deadline) -> None:
        """End a query wherever it runs, or all of the cluster; 411 where there is none of that id."""
        nodes = [node.id for node in self._meta.state.nodes if node.registered]
        if query_id is not None:
            nodes = [node for node in nodes if node == query_id // QUERY_IDS_PER_NODE]
        ended = 0
        for answer in await asyncio.gather(
            *(self._calls.call(node, "kill query", pack({"id": query_id}), deadline) for node in nodes)
        ):
            head, _ = unpack(answer)
            ended += int(head)
        if query_id is not None and not ended:
            raise no_such_query(query_id)

    # --- answering ----------------------------------------------------------------------------------------------------

    async def _tell(self, body: memoryview, deadline: Deadline) -> bytes:
        del body, deadline
        queries = [[query.start_ms, query.id, query.statement] for query in self._running()]
        flushing = self._flushing()
        return pack({"queries": queries, "flush": [flushing.total, flushing.working, flushing.waiting]})

    async def _kill_here(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        return pack(self._kill(head["id"]))
