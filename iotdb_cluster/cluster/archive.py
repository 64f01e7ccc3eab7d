"""What an operator asks a node for: backups, restores, how far they are, and digests of the whole content."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from iotdb_cluster.cluster.backup import Backup
from iotdb_cluster.cluster.calls import Calls
from iotdb_cluster.cluster.contents import Contents
from iotdb_cluster.cluster.jobs import Job, Jobs
from iotdb_cluster.cluster.restore import Restore
from iotdb_cluster.errors import CallerError, Status
from iotdb_cluster.world import World

__all__ = ["Archive"]


class Archive:
    """The commands `backup`, `restore`, `job` and `content` of the nodetool port."""

    def __init__(
        self,
        world: World,
        backup: Backup,
        restore: Restore,
        contents: Contents,
        fault: Callable[[BaseException], None],
    ) -> None:
        self._world = world
        self._backup = backup
        self._restore = restore
        self._contents = contents
        self._jobs = Jobs(world, fault)
        self.commands: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "backup": lambda request: self._start("backup", backup.run, request),
            "restore": lambda request: self._start("restore", restore.run, request),
            "job": self._job,
            "content": self._content,
        }

    def register(self, calls: Calls) -> None:
        self._backup.register(calls)
        self._contents.register(calls)

    async def _start(
        self, name: str, work: Callable[[str, Job], Awaitable[dict[str, Any]]], request: dict[str, Any]
    ) -> dict[str, Any]:
        directory = str(request.get("directory", "")).rstrip("/")
        if not directory.startswith("/"):
            raise CallerError(
                Status.ILLEGAL_PARAMETER,
                f"give the whole path of a directory on the node that is asked, not {directory!r}",
            )
        return self._jobs.start(name, lambda job: work(directory, job)).dump(self._world.clock.monotonic_ms())

    async def _job(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return self._jobs.progress()

    async def _content(self, request: dict[str, Any]) -> dict[str, Any]:
        del request
        return {"storage_groups": await self._contents.digests()}

    async def close(self) -> None:
        await self._jobs.close()
