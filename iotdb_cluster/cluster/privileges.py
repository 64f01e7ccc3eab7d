"""Whether a session may do what it asks for: its user's privileges, and whether the system takes changes."""

from __future__ import annotations

from iotdb_cluster.auth import ADMINISTRATOR, OPERATION_PRIVILEGES, no_permission
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.rpc.handler import Session

__all__ = ["Privileges"]


class Privileges:
    """Checks of one node; `read_only` is what SET SYSTEM TO READONLY set, on this node until it restarts."""

    def __init__(self, meta: MetaAccess) -> None:
        self._meta = meta
        self.read_only = False

    async def require(self, session: Session, operation: str, *paths: str, deadline: Deadline) -> None:
        """Raise 602 unless the user has what the operation needs, on each path, by the newest decision of meta."""
        if session.user != ADMINISTRATOR and operation in OPERATION_PRIVILEGES:
            await self._meta.barrier(deadline)
        self.require_here(session, operation, *paths)

    def require_here(self, session: Session, operation: str, *paths: str) -> None:
        """As `require`, by what this node knows: a change of privileges may be a moment old. For inserts."""
        if session.user == ADMINISTRATOR or operation not in OPERATION_PRIVILEGES:
            return
        privilege = OPERATION_PRIVILEGES[operation]
        for path in paths or ("root",):
            if not self._meta.state.auth.allowed(session.user, privilege, path):
                raise no_permission(operation)

    def require_writable(self) -> None:
        """Raise 411 while the system is read-only."""
        if self.read_only:
            raise CallerError(
                Status.QUERY_PROCESS_ERROR,
                "Current system mode is read-only, does not support non-query operation",
            )
