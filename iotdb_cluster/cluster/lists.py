"""LIST of users, roles and privileges: small tables out of meta's state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iotdb_cluster.auth import AuthState, Privilege
from iotdb_cluster.columns import Column, DataType, Int64Array, RowBatch
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.query.operators import select_rows
from iotdb_cluster.rpc.handler import ResultHeader
from iotdb_cluster.sql import (
    ListRolePrivileges,
    ListRoles,
    ListRolesOfUser,
    ListUserPrivileges,
    ListUsers,
    ListUsersOfRole,
    Statement,
)

__all__ = ["TableResult", "list_result"]


class TableResult:
    """A result set whose rows are there already (`rpc.ResultSet`)."""

    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[str]], operation: str) -> None:
        types = (DataType.TEXT,) * len(names)
        self.header = ResultHeader(tuple(names), types, True, operation)
        cells = zip(*rows, strict=True) if rows else [()] * len(names)
        columns = [Column.of(DataType.TEXT, list(column)) for column in cells]
        self._rest = RowBatch(np.zeros(len(rows), np.int64), columns)

    @property
    def done(self) -> bool:
        return not len(self._rest)

    async def fetch(self, rows: int) -> RowBatch | None:
        """The next rows, None at the end."""
        batch, self._rest = select_rows(self._rest, slice(0, rows)), select_rows(self._rest, slice(rows, None))
        return batch if len(batch) else None

    async def fetch_columns(self, rows: int) -> list[tuple[Int64Array, Column]] | None:
        batch = await self.fetch(rows)
        return None if batch is None else [(batch.times, column) for column in batch.columns]

    async def close(self) -> None:
        """Nothing is held."""


def list_result(auth: AuthState, user: str, statement: Statement) -> TableResult:
    """The table; empty where the user may not see it. 411 for a user or role that does not exist."""
    operation = statement.operation
    users = auth.allowed(user, Privilege.LIST_USER)
    roles = auth.allowed(user, Privilege.LIST_ROLE)
    if isinstance(statement, ListUsers):
        return TableResult(["user"], [[name] for name in auth.users()] if users else [], operation)
    if isinstance(statement, ListRoles):
        return TableResult(["role"], [[name] for name in auth.roles()] if roles else [], operation)
    if isinstance(statement, ListRolesOfUser):
        allowed = users or statement.user == user
        return TableResult(["role"], [[name] for name in auth.roles_of(statement.user)] if allowed else [], operation)
    if isinstance(statement, ListUsersOfRole):
        return TableResult(["user"], [[name] for name in auth.users_of(statement.role)] if roles else [], operation)
    if isinstance(statement, ListUserPrivileges):
        allowed = users or statement.user == user
        rows = auth.user_privileges(statement.user, statement.path) if allowed else []
        return TableResult(["role", "privilege"], [list(row) for row in rows], operation)
    if isinstance(statement, ListRolePrivileges):
        rows_of_role = auth.role_privileges(statement.role, statement.path) if roles else []
        return TableResult(["privilege"], [[text] for text in rows_of_role], operation)
    raise CallerError(Status.UNSUPPORTED_OPERATION, f"{operation} is not supported by this server")
