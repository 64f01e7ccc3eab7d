"""Users, roles and privileges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from iotdb_cluster.sql.statements.base import Statement

__all__ = [
    "AlterUser",
    "CreateRole",
    "CreateUser",
    "DropRole",
    "DropUser",
    "GrantRoleToUser",
    "GrantWatermark",
    "ListRolePrivileges",
    "ListRoles",
    "ListRolesOfUser",
    "ListUserPrivileges",
    "ListUsers",
    "ListUsersOfRole",
    "PrivilegeChange",
    "RevokeRoleFromUser",
    "RevokeWatermark",
]


@dataclass(frozen=True, slots=True)
class CreateUser(Statement):
    OPERATION: ClassVar[str] = "CREATE_USER"

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class DropUser(Statement):
    OPERATION: ClassVar[str] = "DELETE_USER"

    user: str


@dataclass(frozen=True, slots=True)
class AlterUser(Statement):
    OPERATION: ClassVar[str] = "MODIFY_PASSWORD"

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class CreateRole(Statement):
    OPERATION: ClassVar[str] = "CREATE_ROLE"

    role: str


@dataclass(frozen=True, slots=True)
class DropRole(Statement):
    OPERATION: ClassVar[str] = "DELETE_ROLE"

    role: str


@dataclass(frozen=True, slots=True)
class PrivilegeChange(Statement):
    """GRANT or REVOKE (USER or ROLE) name PRIVILEGES ... ON path; privilege names as typed, without quotes."""

    grant: bool
    is_role: bool
    name: str
    privileges: tuple[str, ...]
    path: str

    @property
    def operation(self) -> str:
        return f"{'GRANT' if self.grant else 'REVOKE'}_{'ROLE' if self.is_role else 'USER'}_PRIVILEGE"


@dataclass(frozen=True, slots=True)
class GrantRoleToUser(Statement):
    OPERATION: ClassVar[str] = "GRANT_USER_ROLE"

    role: str
    user: str


@dataclass(frozen=True, slots=True)
class RevokeRoleFromUser(Statement):
    OPERATION: ClassVar[str] = "REVOKE_USER_ROLE"

    role: str
    user: str


@dataclass(frozen=True, slots=True)
class GrantWatermark(Statement):
    OPERATION: ClassVar[str] = "GRANT_WATERMARK_EMBEDDING"

    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RevokeWatermark(Statement):
    OPERATION: ClassVar[str] = "REVOKE_WATERMARK_EMBEDDING"

    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListUsers(Statement):
    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "LIST_USER"


@dataclass(frozen=True, slots=True)
class ListRoles(Statement):
    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "LIST_ROLE"


@dataclass(frozen=True, slots=True)
class ListUserPrivileges(Statement):
    """`path` is None for LIST USER PRIVILEGES."""

    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "LIST_USER_PRIVILEGE"

    user: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class ListRolePrivileges(Statement):
    """`path` is None for LIST ROLE PRIVILEGES."""

    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "LIST_ROLE_PRIVILEGE"

    role: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class ListRolesOfUser(Statement):
    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "LIST_USER_ROLES"

    user: str


@dataclass(frozen=True, slots=True)
class ListUsersOfRole(Statement):
    is_query: ClassVar[bool] = True
    OPERATION: ClassVar[str] = "LIST_ROLE_USERS"

    role: str
