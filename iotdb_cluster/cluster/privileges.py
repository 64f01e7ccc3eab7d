"""Whether a session may do what it asks for: its user's privileges, and whether the system takes changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from iotdb_cluster.auth import OPEN_OPERATIONS, OPERATION_PRIVILEGES, no_permission
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.handler import Session
from iotdb_cluster.sql import (
    AlterTimeseries,
    AlterUser,
    ClearCache,
    CreateSnapshot,
    CreateTimeseries,
    Delete,
    DeletePartition,
    DeleteStorageGroups,
    DeleteTimeseries,
    Flush,
    Insert,
    Kill,
    LoadConfiguration,
    SetStorageGroup,
    SetSystemMode,
    SetTtl,
    Statement,
    Tracing,
    UnsetTtl,
)

__all__ = ["Privileges"]

# The paths that a statement changes; others concern none.
_PATHS: dict[type[Statement], Callable[[Any], Sequence[str]]] = {
    Insert: lambda statement: (statement.device,),
    Delete: lambda statement: statement.paths,
    DeletePartition: lambda statement: (statement.path,),
    SetStorageGroup: lambda statement: (statement.path,),
    DeleteStorageGroups: lambda statement: statement.paths,
    CreateTimeseries: lambda statement: (statement.path,),
    DeleteTimeseries: lambda statement: statement.paths,
    AlterTimeseries: lambda statement: (statement.path,),
    SetTtl: lambda statement: (statement.path,),
    UnsetTtl: lambda statement: (statement.path,),
}
# What changes no data, no schema and no users: taken while the system is read-only.
_HARMLESS = (SetSystemMode, Kill, LoadConfiguration, Tracing, Flush, ClearCache, CreateSnapshot)


class Privileges:
    """Checks of one node, by meta's state."""

    def __init__(self, meta: MetaAccess) -> None:
        self._meta = meta

    async def require_statement(self, session: Session, statement: Statement, deadline: Deadline) -> None:
        """What a statement without a result set needs: the privilege (602), then a system that takes changes (411)."""
        paths = _PATHS.get(type(statement), _none)(statement)
        if isinstance(statement, Insert):
            self.require_here(session, statement.operation, *paths)
        elif not (isinstance(statement, AlterUser) and statement.user == session.user):
            await self.require(session, statement.operation, *paths, deadline=deadline)
        if not isinstance(statement, _HARMLESS):
            self.require_writable()

    async def require(self, session: Session, operation: str, *paths: str, deadline: Deadline) -> None:
        """Raise 602 unless the user has what the operation needs, on each path, by the newest decision of meta."""
        if session.user != self._meta.state.auth.administrator and operation not in OPEN_OPERATIONS:
            await self._meta.barrier(deadline)
        self.require_here(session, operation, *paths)

    def require_here(self, session: Session, operation: str, *paths: str) -> None:
        """As `require`, by what this node knows: for inserts. Changes of privileges wait for the nodes that answer."""
        auth = self._meta.state.auth
        if session.user == auth.administrator or operation in OPEN_OPERATIONS:
            return
        privilege = OPERATION_PRIVILEGES.get(operation)
        for path in paths or ("root",):
            if not auth.allowed(session.user, privilege, path):
                raise no_permission(operation)

    @property
    def read_only(self) -> bool:
        """Whether SET SYSTEM TO READONLY holds."""
        return self._meta.state.read_only

    def require_writable(self) -> None:
        """Raise 411 while the system is read-only."""
        if self.read_only:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR,
                "Current system mode is read-only, does not support non-query operation",
            )


def _none(statement: Statement) -> Sequence[str]:
    del statement
    return ()
