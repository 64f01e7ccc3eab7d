"""Statements that change users, roles and privileges, as commands of the meta group.

A change is answered when every node that can be reached has applied it: none of them decides by what was before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from iotdb_cluster.auth import SALT_BYTES, check_password, hash_password, privilege_of
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.meta import commands
from iotdb_cluster.requests import RequestId
from iotdb_cluster.sql import (
    AlterUser,
    CreateRole,
    CreateUser,
    DropRole,
    DropUser,
    GrantRoleToUser,
    GrantWatermark,
    PrivilegeChange,
    RevokeRoleFromUser,
    RevokeWatermark,
    Statement,
)
from iotdb_cluster.world import World

__all__ = ["Accounts"]


class Accounts:
    """Carries these statements out; who may ask for them was checked before."""

    def __init__(self, world: World, meta: MetaAccess) -> None:
        self._world = world
        self._meta = meta
        self.handlers: dict[type[Statement], Callable[[Any, Deadline], Awaitable[None]]] = {
            CreateUser: self._create_user,
            DropUser: self._drop_user,
            AlterUser: self._alter_user,
            CreateRole: self._create_role,
            DropRole: self._drop_role,
            PrivilegeChange: self._change_privileges,
            GrantRoleToUser: self._grant_role,
            RevokeRoleFromUser: self._revoke_role,
            GrantWatermark: self._watermark,
            RevokeWatermark: self._watermark,
        }

    async def _decide(self, command: Callable[[RequestId], bytes], deadline: Deadline) -> None:
        await self._meta.propose(command, deadline)
        await self._meta.settle(deadline)

    async def _hashed(self, password: str) -> str:
        check_password(password)
        salt = self._world.random.randbytes(SALT_BYTES)
        return await self._world.workers.run(hash_password, password, salt)

    async def _create_user(self, statement: CreateUser, deadline: Deadline) -> None:
        hashed = await self._hashed(statement.password)
        await self._decide(lambda request: commands.create_user(request, statement.user, hashed), deadline)

    async def _drop_user(self, statement: DropUser, deadline: Deadline) -> None:
        await self._decide(lambda request: commands.drop_user(request, statement.user), deadline)

    async def _alter_user(self, statement: AlterUser, deadline: Deadline) -> None:
        hashed = await self._hashed(statement.password)
        await self._decide(lambda request: commands.alter_password(request, statement.user, hashed), deadline)

    async def _create_role(self, statement: CreateRole, deadline: Deadline) -> None:
        await self._decide(lambda request: commands.create_role(request, statement.role), deadline)

    async def _drop_role(self, statement: DropRole, deadline: Deadline) -> None:
        await self._decide(lambda request: commands.drop_role(request, statement.role), deadline)

    async def _change_privileges(self, statement: PrivilegeChange, deadline: Deadline) -> None:
        try:
            privileges = [privilege_of(name) for name in statement.privileges]
        except CallerError as error:  # the original finds it while planning
            raise CallerError(error.code, f"Error occurred in query process: {error.message}") from None
        command = {
            (True, False): commands.grant_user_privileges,
            (False, False): commands.revoke_user_privileges,
            (True, True): commands.grant_role_privileges,
            (False, True): commands.revoke_role_privileges,
        }[statement.grant, statement.is_role]
        await self._decide(lambda request: command(request, statement.name, privileges, statement.path), deadline)

    async def _grant_role(self, statement: GrantRoleToUser, deadline: Deadline) -> None:
        await self._decide(
            lambda request: commands.grant_role_to_user(request, statement.role, statement.user), deadline
        )

    async def _revoke_role(self, statement: RevokeRoleFromUser, deadline: Deadline) -> None:
        await self._decide(
            lambda request: commands.revoke_role_from_user(request, statement.role, statement.user), deadline
        )

    async def _watermark(self, statement: GrantWatermark | RevokeWatermark, deadline: Deadline) -> None:
        """Plain success for users that there are: results carry no watermark."""
        await self._meta.barrier(deadline)
        for user in statement.users:
            if self._meta.state.auth.password_of(user) is None:
                raise CallerError(Status.QUERY_PROCESS_ERROR, f"No such user {user}")
