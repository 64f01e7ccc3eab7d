"""Statements about the working of the servers: configuration, mode, tracing, running queries, snapshots of the schema.

Each concerns the whole cluster, whichever node is asked, unless its text says otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from iotdb_cluster.cluster.activity import Activity
from iotdb_cluster.cluster.calls import Calls, Deadline
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.queries import Queries
from iotdb_cluster.cluster.reloading import Reloading
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import commands
from iotdb_cluster.packing import pack, unpack
from iotdb_cluster.query.udtf import BUILT_IN_CLASSES
from iotdb_cluster.rpc.handler import Done
from iotdb_cluster.sql import (
    CreateFunction,
    CreateSnapshot,
    CreateTrigger,
    DropFunction,
    DropTrigger,
    Kill,
    LoadConfiguration,
    LoadFiles,
    LoadTimeseries,
    MoveFile,
    RemoveFile,
    SetSystemMode,
    StartTrigger,
    Statement,
    StopTrigger,
    Tracing,
)

__all__ = ["NOT_SUPPORTED", "Administration"]

logger = logging.getLogger(__name__)

_JAVA = "functions and triggers are Java classes in the original, and this server runs no Java"
_FILES = "there are no TsFiles here: bring data in by inserts"
# Statements that are refused with 703, and why.
NOT_SUPPORTED: dict[type[Statement], str] = {
    CreateFunction: _JAVA,
    DropFunction: _JAVA,
    CreateTrigger: _JAVA,
    DropTrigger: _JAVA,
    StartTrigger: _JAVA,
    StopTrigger: _JAVA,
    LoadFiles: _FILES,
    RemoveFile: _FILES,
    MoveFile: _FILES,
    LoadTimeseries: "the servers read no files of yours: import the CSV with a client",
}


class Administration:
    """Carries these statements out; who may ask for them was checked before."""

    def __init__(
        self,
        meta: MetaAccess,
        calls: Calls,
        queries: Queries,
        activity: Activity,
        reloading: Reloading,
        snapshot: Callable[[Deadline], Awaitable[None]],
    ) -> None:
        """`snapshot` writes checkpoints of all that this node holds."""
        self._meta = meta
        self._calls = calls
        self._queries = queries
        self._activity = activity
        self._reloading = reloading
        self._snapshot = snapshot
        self.handlers: dict[type[Statement], Callable[[Any, Deadline], Awaitable[Done | None]]] = {
            LoadConfiguration: self._load_configuration,
            SetSystemMode: self._set_mode,
            Kill: self._kill,
            Tracing: self._trace,
            CreateSnapshot: self._create_snapshot,
            **dict.fromkeys(NOT_SUPPORTED, _refuse),
        }

    def register(self, calls: Calls) -> None:
        calls.handlers.update({"tracing": self._trace_here, "schema snapshot": self._snapshot_here})

    async def _everywhere(self, method: str, body: bytes, deadline: Deadline) -> None:
        """Call every node; 706 naming those that were not reached, the others have done it."""
        await self._meta.barrier(deadline)
        nodes = [node for node in self._meta.state.nodes if node.registered]
        failures = await self._calls.call_each([node.id for node in nodes], method, body, deadline)
        lost = [
            f"{node.address.host}:{node.address.meta_port} ({failure.message})"
            for node, failure in zip(nodes, failures, strict=True)
            if failure is not None
        ]
        if lost:
            raise CallerError(
                Status.NO_CONNECTION, f"done, but not on {', '.join(lost)}: repeat it when all nodes are back"
            )

    async def _load_configuration(self, statement: LoadConfiguration, deadline: Deadline) -> Done:
        return Done(await self._reloading.load(statement.everywhere, deadline))

    async def _set_mode(self, statement: SetSystemMode, deadline: Deadline) -> None:
        await self._meta.propose(lambda request: commands.set_system_mode(request, statement.read_only), deadline)
        await self._meta.settle(deadline)

    async def _kill(self, statement: Kill, deadline: Deadline) -> None:
        await self._activity.kill(statement.query_id, deadline)

    async def _trace(self, statement: Tracing, deadline: Deadline) -> None:
        await self._everywhere("tracing", pack({"on": statement.on}), deadline)

    async def _trace_here(self, body: memoryview, deadline: Deadline) -> bytes:
        del deadline
        head, _ = unpack(body)
        self._queries.tracing = bool(head["on"])
        logger.info("tracing of queries is %s", "on" if self._queries.tracing else "off")
        return pack(None)

    async def _create_snapshot(self, statement: CreateSnapshot, deadline: Deadline) -> None:
        del statement
        await self._everywhere("schema snapshot", pack(None), deadline)

    async def _snapshot_here(self, body: memoryview, deadline: Deadline) -> bytes:
        del body
        await self._snapshot(deadline)
        return pack(None)


async def _refuse(statement: Statement, deadline: Deadline) -> None:
    """703 with the reason; 411 where a function is to go that the server itself brings."""
    del deadline
    name = statement.operation.replace("_", " ")
    if isinstance(statement, DropFunction) and statement.name.upper() in BUILT_IN_CLASSES:
        raise CallerError(
            Status.QUERY_PROCESS_ERROR, f"Built-in function {statement.name.upper()} can not be deregistered."
        )
    raise CallerError(Status.UNSUPPORTED_OPERATION, f"{name} is not supported: {NOT_SUPPORTED[type(statement)]}")
