"""Restore: what a backup holds is written into a new cluster, of any size, by its ordinary ways.

Users, storage groups and series come first, then the points, unit by unit as they are read from the backup's files, and
the TTLs last, so that no point is refused for its age. At the end the digests of the backup and of the cluster are
compared, storage group by storage group.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import crc32c

from iotdb_cluster.auth import AuthState, Privilege
from iotdb_cluster.cluster.backup import BACKUP_FILE, BACKUP_VERSION, META_FILE, group_directory
from iotdb_cluster.cluster.calls import Deadline
from iotdb_cluster.cluster.changes import Changes
from iotdb_cluster.cluster.contents import Contents
from iotdb_cluster.cluster.jobs import Job
from iotdb_cluster.cluster.meta_access import MetaAccess
from iotdb_cluster.cluster.overlay import Overlay
from iotdb_cluster.cluster.writes import Writer
from iotdb_cluster.columns import DataType, Tablet, shape_of
from iotdb_cluster.data import Content, DataGroup, PinnedContent, merged_digests
from iotdb_cluster.errors import CallerError, CorruptData, Status
from iotdb_cluster.limits import INT64_MAX, INT64_MIN, SNAPSHOT_PIECE_BYTES
from iotdb_cluster.meta import MetaState, commands
from iotdb_cluster.requests import RequestId
from iotdb_cluster.schema import PathPattern, SchemaTree, SeriesSpec
from iotdb_cluster.storage import UnitId, UnitReader
from iotdb_cluster.world import FileSystem, World

__all__ = ["Restore"]

STEP_MS = 60_000  # of one change of the cluster
SERIES_A_STEP = 500  # some milliseconds of the coordinator
CELLS_A_STEP = 200_000  # points of one insert
TEXTS_A_STEP = 256  # they may be large
STEPS_IN_FLIGHT = 4
REFUSED_PAUSE_MS = 500  # before an insert that found no room is tried again, ...
REFUSED_MAX = 120  # ... so many times
LEFT_OUT_SHOWN_MAX = 20
_FIXED = ("partition_interval_ms", "timestamp_precision")  # what gives a point's time its meaning and its partition


@dataclass(frozen=True, slots=True)
class _Source:
    """A backup, opened: meta's state, the groups, and the paths of the storage groups by their ids there."""

    meta: MetaState
    groups: list[DataGroup]
    paths: dict[int, str]

    def tree_of(self, storage_group: int) -> SchemaTree | None:
        found = (group.trees().get(storage_group) for group in self.groups)
        return next((tree for tree in found if tree is not None), None)

    def digests(self) -> dict[str, str]:
        """As `Contents.digests`; on a worker."""
        found: list[Content] = []
        for group in self.groups:
            with PinnedContent(group) as content:
                while content.step():
                    pass
                found.append(content.digests())
        return merged_digests(found, self.paths)

    def close(self) -> None:
        for group in self.groups:
            group.close()


class Restore:
    """Restores backups into the cluster of the node that was asked."""

    def __init__(self, world: World, meta: MetaAccess, changes: Changes, writer: Writer, contents: Contents) -> None:
        self._world = world
        self._meta = meta
        self._changes = changes
        self._writer = writer
        self._contents = contents

    def _deadline(self) -> Deadline:
        return Deadline(self._world, STEP_MS)

    async def run(self, directory: str, job: Job) -> dict[str, Any]:
        """Restore a backup into this cluster, which must be new; what was restored. CallerError, SystemFault, OSError.

        What it began and did not end is to be deleted (DELETE STORAGE GROUP) before it is tried again.
        """
        await self._meta.barrier(self._deadline())
        if self._meta.state.storage_groups(dropping=True):
            raise CallerError(
                Status.QUERY_PROCESS_ERROR, "this cluster has storage groups: a backup is restored into a new cluster"
            )
        source = await self._world.workers.run(self._open, directory, job)
        try:
            await self._restore_accounts(source.meta.auth)
            series = await self._restore_schema(source, job)
            points = _Points(self._world, self._writer, source, job)
            await points.restore()
            for one in source.meta.storage_groups():
                if one.ttl_ms is not None:
                    await self._changes.set_ttl(one.path, one.ttl_ms, self._deadline())
            job.enter("compares with the backup", len(source.paths), "storage groups")
            expected = await self._world.workers.run(source.digests)
        finally:
            source.close()
        found = await self._contents.digests()
        unequal = sorted(path for path, digest in expected.items() if found.get(path) != digest)
        if unequal and not points.left_out:
            raise CorruptData(f"restored, but the content differs from the backup's in {', '.join(unequal[:10])}")
        job.done = len(expected)
        return {
            "storage_groups": len(source.paths),
            "series": series,
            "points": points.written,
            "equal": not unequal,
            "left_out": sorted(points.left_out)[:LEFT_OUT_SHOWN_MAX],
        }

    # --- the backup ---------------------------------------------------------------------------------------------------

    def _open(self, directory: str, job: Job) -> _Source:
        """Verify every file and open the groups; on a worker. CallerError, CorruptData, OSError."""
        files = self._world.files
        if not files.exists(f"{directory}/{BACKUP_FILE}"):
            raise CallerError(
                Status.ILLEGAL_PARAMETER,
                f"{directory} has no {BACKUP_FILE}: it is no backup, or one that was not ended",
            )
        try:
            said = json.loads(_read(files, f"{directory}/{BACKUP_FILE}"))
            if said.get("version") != BACKUP_VERSION:
                raise CorruptData(f"the backup has version {said.get('version')}, this program knows {BACKUP_VERSION}")
            return self._verified(directory, said, job)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptData(f"the backup in {directory} cannot be read: {error!r}") from None

    def _verified(self, directory: str, said: dict[str, Any], job: Job) -> _Source:
        """The backup that `said` describes, every file of it whole, opened."""
        files = self._world.files
        stored = self._meta.state.settings
        unequal = [
            f"{key} is {stored.get(key)!r} here and {said['settings'].get(key)!r} in the backup"
            for key in _FIXED
            if stored.get(key) != said["settings"].get(key)
        ]
        if unequal:
            raise CallerError(Status.ILLEGAL_PARAMETER, f"{'; '.join(unequal)}: found the cluster with the same values")
        meta = _read(files, f"{directory}/{META_FILE}")
        if crc32c.crc32c(meta) != said["meta"]["crc32c"]:
            raise CorruptData(f"{directory}/{META_FILE} does not match its checksum")
        job.enter("verifies the backup", sum(one[1] for group in said["groups"] for one in group["files"]), "bytes")
        for group in said["groups"]:
            for path, size, crc in group["files"]:
                _verify(files, f"{directory}/{group_directory(group['group'])}/{path}", size, crc)
                job.done += size
        state = MetaState.load(meta)
        groups: list[DataGroup] = []
        overlay = Overlay(files)
        for group in said["groups"]:
            opened = DataGroup.open(group["group"], overlay, f"{directory}/{group_directory(group['group'])}")
            groups.append(opened)
            if opened.store.corrupt:
                raise CorruptData(f"group {group['group']} of the backup is damaged: {opened.store.corrupt}")
        return _Source(state, groups, {one.id: one.path for one in state.storage_groups()})

    # --- users and schema ---------------------------------------------------------------------------------------------

    async def _decide(self, command: Callable[[RequestId], bytes]) -> None:
        await self._meta.propose(command, self._deadline())

    async def _restore_accounts(self, auth: AuthState) -> None:
        """Roles and users with what they may do; the administrator keeps this cluster's name, and gets the password.

        What an earlier attempt has made is made anew.
        """
        dumped, here = auth.dump(), self._meta.state.auth
        for role, grants in dumped["roles"]:
            if role in here.roles():
                await self._decide(lambda request, role=role: commands.drop_role(request, role))  # type: ignore[misc]
            await self._decide(lambda request, role=role: commands.create_role(request, role))  # type: ignore[misc]
            await self._grant(commands.grant_role_privileges, role, grants)
        for user, password, grants, roles in dumped["users"]:
            if user == auth.administrator:
                name = self._meta.state.auth.administrator
                await self._decide(lambda request, p=password, n=name: commands.alter_password(request, n, p))  # type: ignore[misc]
                continue
            if user in here.users():
                await self._decide(lambda request, u=user: commands.drop_user(request, u))  # type: ignore[misc]
            await self._decide(lambda request, u=user, p=password: commands.create_user(request, u, p))  # type: ignore[misc]
            await self._grant(commands.grant_user_privileges, user, grants)
            for role in roles:
                await self._decide(lambda request, r=role, u=user: commands.grant_role_to_user(request, r, u))  # type: ignore[misc]

    async def _grant(
        self, command: Callable[[RequestId, str, Iterable[Privilege], str], bytes], name: str, grants: list[Any]
    ) -> None:
        for path, numbers in grants:
            privileges = [Privilege(number) for number in numbers]
            await self._decide(lambda request, p=privileges, at=path: command(request, name, p, at))  # type: ignore[misc]

    async def _restore_schema(self, source: _Source, job: Job) -> int:
        """Storage groups and series; how many series."""
        trees = {number: source.tree_of(number) for number in source.paths}
        total = sum(len(tree) for tree in trees.values() if tree is not None)
        job.enter("creates series", total, "series")
        for number, path in sorted(source.paths.items(), key=lambda item: item[1]):
            await self._changes.set_storage_group(path, self._deadline())
            tree = trees[number]
            if tree is None:
                continue
            batches = _specs(tree)
            while (specs := await self._world.workers.run(next, batches, None)) is not None:
                outcomes = await self._changes.create_series(specs, self._deadline())
                refused = next((error for error in outcomes if error is not None), None)
                if refused is not None:
                    raise refused
                job.done += len(specs)
        return total


def _specs(tree: SchemaTree) -> Iterator[list[SeriesSpec]]:
    """How to make the series of a tree again, some at a time; on a worker."""
    series = tree.iterate(PathPattern.parse(tree.storage_group))
    while some := list(islice(series, SERIES_A_STEP)):
        yield [
            SeriesSpec(
                one.path, one.type, one.encoding, one.compressor, one.alias, one.tags, one.attributes, one.properties
            )
            for one in some
        ]


class _Points:
    """Writes the points of a backup. `left_out`: series whose points have no series of that type in the backup: these
    were created, or deleted, while it was taken."""

    def __init__(self, world: World, writer: Writer, source: _Source, job: Job) -> None:
        self._world = world
        self._writer = writer
        self._source = source
        self._job = job
        self.written = 0
        self.left_out: set[str] = set()

    async def restore(self) -> None:
        units = [
            (group, UnitId(*key))
            for group in self._source.groups
            for key in sorted(group.units())
            if key[0] in self._source.paths
        ]
        self._job.enter(
            "writes points", sum(sum(f.bytes for f in group.store.files_of(unit)) for group, unit in units), "bytes"
        )
        trees = {number: self._source.tree_of(number) for number in self._source.paths}
        flying: set[asyncio.Task[None]] = set()
        try:
            for group, unit in units:
                with group.store.reader(unit) as reader:
                    batches = self._tablets(reader, trees[unit.storage_group_id])
                    while (tablet := await self._world.workers.run(next, batches, None)) is not None:
                        if len(flying) >= STEPS_IN_FLIGHT:
                            flying = await _one_less(flying)
                        flying.add(asyncio.get_running_loop().create_task(self._insert(tablet)))
                self._job.done += sum(file.bytes for file in group.store.files_of(unit))
            while flying:
                flying = await _one_less(flying)
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    def _tablets(self, reader: UnitReader, tree: SchemaTree | None) -> Iterator[Tablet]:
        """The points of a unit, on a worker."""
        for device, members in groupby(reader.series(), key=lambda one: one[0]):
            wanted: list[tuple[str, DataType]] = []
            for _, name, kind in members:
                found = None if tree is None else tree.get(f"{device}.{name}")
                if found is not None and found.type == kind:
                    wanted.append((name, kind))
                else:
                    self.left_out.add(f"{device}.{name}")
            texts = [[one] for one in wanted if one[1] is DataType.TEXT]  # alone: a row of several may be too large
            for some in [[one for one in wanted if one[1] is not DataType.TEXT], *texts]:
                if not some:
                    continue
                shape = shape_of(tuple(name for name, _ in some), tuple(kind for _, kind in some))
                rows = TEXTS_A_STEP if some in texts else max(1, CELLS_A_STEP // len(some))
                for batch in reader.read_device(device, some, INT64_MIN, INT64_MAX, batch_rows=rows):
                    yield Tablet(device, shape, batch.times, batch.columns)

    async def _insert(self, tablet: Tablet) -> None:
        for attempt in range(REFUSED_MAX):
            failures = await self._writer.insert([tablet], self._world.clock.wall_ms(), Deadline(self._world, STEP_MS))
            if not failures:
                break
            error = failures[0].error
            if error.code not in (Status.WRITE_PROCESS_REJECT, Status.TIME_OUT) or attempt == REFUSED_MAX - 1:
                raise error
            await asyncio.sleep(REFUSED_PAUSE_MS / 1000)
        self.written += sum(
            len(tablet) if column.valid is None else int(column.valid.sum()) for column in tablet.columns
        )


async def _one_less(flying: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, left = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left


def _read(files: FileSystem, path: str) -> bytes:
    file = files.open(path)
    try:
        return file.read(0, file.size())
    finally:
        file.close()


def _verify(files: FileSystem, path: str, size: int, crc: int) -> None:
    file = files.open(path)
    try:
        found = 0
        for offset in range(0, size, SNAPSHOT_PIECE_BYTES):
            found = crc32c.crc32c(file.read(offset, SNAPSHOT_PIECE_BYTES), found)
        if file.size() != size or found != crc:
            raise CorruptData(f"{path} does not match its checksum")
    finally:
        file.close()
